"""All parts of the service, built in order: each gets those before it."""

from __future__ import annotations

from attrs import frozen

from llamaswap.app.configuration import ConfigApplier, build_reloader
from llamaswap.app.hang_detection import LiveModels
from llamaswap.app.log_output import LogParts, build_logging
from llamaswap.app.model_parts import ModelParts, build_models
from llamaswap.app.observability import ObservabilityParts, build_observability
from llamaswap.app.settings import ServiceContext, ServiceControl
from llamaswap.app.web_parts import WebParts, build_web
from llamaswap.config import Config
from llamaswap.config.reload import Reloader
from llamaswap.liveness.watchdog import Watchdog
from llamaswap.observe.worker import WorkerThread


@frozen(eq=False)
class ServiceParts:
    """The parts of one service."""

    context: ServiceContext
    logs: LogParts
    models: ModelParts
    observability: ObservabilityParts
    watchdog: Watchdog
    reloader: Reloader
    web: WebParts


def build_parts(context: ServiceContext, control: ServiceControl, config: Config) -> ServiceParts:
    """The parts for a configuration; none of them runs yet."""
    reactor = context.reactor
    logs = build_logging(reactor, config)
    models = build_models(context, config, logs.registry)
    observability = build_observability(context, config, models, logs.registry)
    watchdog = Watchdog(reactor, LiveModels(reactor, models, observability.inflight))
    # A configuration is written in one step, so this thread may be left in the middle of its work at the end.
    config_thread = WorkerThread("configuration", reactor, collect=False)
    applier = ConfigApplier(logs, models, observability, watchdog, monitored=not config.performance.disabled)
    web = build_web(context, control, logs, models, observability, watchdog, config_thread)
    reloader = build_reloader(context, applier, config_thread)
    return ServiceParts(context, logs, models, observability, watchdog, reloader, web)
