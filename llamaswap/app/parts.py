"""All parts of the service: how they are built, each with those before it, and how a new configuration reaches them."""

from __future__ import annotations

import os

from attrs import evolve, frozen

from llamaswap.app.log_output import LogParts, build_logging
from llamaswap.app.model_parts import ModelParts, build_models, enable_tls_if_needed
from llamaswap.app.observability import ObservabilityParts, build_observability
from llamaswap.app.settings import ServiceContext, ServiceControl, sources_of
from llamaswap.app.web_parts import WebParts, build_web
from llamaswap.config import Config, ConfigDiff, LoadedConfig, load
from llamaswap.config import files as config_files
from llamaswap.config.ports import keep
from llamaswap.config.reload import Reloader
from llamaswap.liveness.watchdog import Watchdog
from llamaswap.liveness.watched_models import WatchedModels
from llamaswap.observe.worker import WorkerThread


@frozen(eq=False)
class ServiceParts:
    """The parts of one service. `monitored` says that the machine is monitored from the start; a monitor that is off
    then stays off."""

    context: ServiceContext
    logs: LogParts
    models: ModelParts
    observability: ObservabilityParts
    watchdog: Watchdog
    reloader: Reloader
    web: WebParts
    monitored: bool

    def apply(self, config: Config, changes: ConfigDiff) -> None:
        """Use a new configuration. The router comes first; the other parts read the configuration from it."""
        router = self.models.router
        old = router.config
        enable_tls_if_needed(config)
        for name in (*changes.removed, *changes.restarted):
            endpoint = old.models[name].endpoint
            if endpoint is not None:
                self.models.pool.forget(endpoint)
        router.apply(config, changes)
        self.logs.apply(config)
        self.observability.apply(config, old)
        self.watchdog.retain(config.models)
        self.models.peers.retune()
        machine = self.observability.machine
        if config.performance.disabled:
            machine.stop()
        elif self.monitored:
            machine.retune(config.performance.every)
            machine.start()


def build_parts(context: ServiceContext, control: ServiceControl, config: Config) -> ServiceParts:
    """The parts for a configuration; none of them runs yet."""
    reactor, settings = context.reactor, context.settings
    logs = build_logging(reactor, config)
    models = build_models(context, config, logs.registry)
    observability = build_observability(context, config, models, logs.registry)
    printed = lambda model: logs.registry.model(model).written
    watched = WatchedModels(reactor, models.router, observability.inflight, models.ask, models.read_gpus, printed)
    watchdog = Watchdog(reactor, watched)
    # A configuration is written in one step, so this thread may be left in the middle of its work at the end.
    config_thread = WorkerThread("configuration", reactor, collect=False)
    web = build_web(context, control, logs, models, observability, watchdog, config_thread)

    def load_from_disk() -> LoadedConfig:
        """The configuration on disk, with the ports that the present one uses."""
        loaded = load(sources_of(settings), {**os.environ}, store_problem=config_files.store_problem)
        return evolve(loaded, config=keep(models.router.config, loaded.config))

    reloader = Reloader(
        clock=reactor,
        bus=context.bus,
        current=lambda: models.router.config,
        load=lambda: config_thread(load_from_disk),
        keep=lambda old, new: models.peers.filled(new),
        apply=lambda config, changes: parts.apply(config, changes),
        changed=config_files.FileWatch(settings.config, settings.config_dir).changed,
    )
    monitored = not config.performance.disabled
    parts = ServiceParts(context, logs, models, observability, watchdog, reloader, web, monitored)
    return parts
