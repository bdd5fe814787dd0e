"""All parts of the service: how they are built, each with those before it, and how a new configuration reaches them."""

from __future__ import annotations

import os
from collections.abc import Iterator

from attrs import evolve

from llamaswap.app.log_output import LogParts
from llamaswap.app.memory_wiring import MemoryParts
from llamaswap.app.model_parts import ModelParts, enable_tls_if_needed
from llamaswap.app.observability import ObservabilityParts
from llamaswap.app.settings import ServiceContext, sources_of
from llamaswap.app.web_parts import WebParts
from llamaswap.config import Config, ConfigDiff, LoadedConfig, load
from llamaswap.config import files as config_files
from llamaswap.config.ports import keep
from llamaswap.config.reload import Reloader
from llamaswap.config.schema.hosts import restart_needed
from llamaswap.errors import ConfigError, Problem
from llamaswap.liveness.watchdog import Watchdog
from llamaswap.liveness.watched_models import WatchedModels
from llamaswap.observe.exposition import MetricFamily
from llamaswap.observe.worker import WorkerThread


class ServiceParts:
    """The parts of one service for a configuration; none of them runs yet.

    `monitored` says that the machine is monitored from the start; a monitor that is off then stays off.
    """

    def __init__(self, context: ServiceContext, config: Config) -> None:
        self.context = context
        reactor, settings = context.reactor, context.settings
        self.logs = LogParts(reactor, config)
        registry = self.logs.registry
        self.models = models = ModelParts(context, config, registry)
        self.memory = MemoryParts(context, config, models, registry)
        self.observability = ObservabilityParts(context, config, models, registry, self._families)
        printed = lambda model: registry.model(model).written
        watched = WatchedModels(
            reactor, models.router, self.observability.inflight, models.ask, models.read_gpus, printed
        )
        self.watchdog = Watchdog(reactor, watched)
        # A configuration is written in one step, so this thread may be left in the middle of its work at the end.
        self.config_thread = WorkerThread("configuration", reactor, collect=False)
        self.web = WebParts(self)
        self.reloader = Reloader(
            clock=reactor,
            bus=context.bus,
            current=lambda: models.router.config,
            load=lambda: self.config_thread(self._load_from_disk),
            keep=lambda old, new: models.peers.filled(new),
            apply=self.apply,
            changed=config_files.FileWatch(settings.config, settings.config_dir).changed,
        )
        self.monitored = not config.performance.disabled

    def _families(self) -> Iterator[MetricFamily]:
        """The metrics of parts beside the data path."""
        yield from self.memory.families()
        if self.models.hosts is not None:
            yield from self.models.hosts.families()

    def _load_from_disk(self) -> LoadedConfig:
        """The configuration on disk, with the ports that the present one uses."""
        loaded = load(sources_of(self.context.settings), {**os.environ}, store_problem=config_files.store_problem)
        return evolve(loaded, config=keep(self.models.router.config, loaded.config))

    def apply(self, config: Config, changes: ConfigDiff) -> None:
        """Use a new configuration. The router comes first; the other parts read the configuration from it."""
        router = self.models.router
        old = router.config
        if problem := restart_needed(old.hosts, config.hosts):
            raise ConfigError([Problem(problem, "hosts")])
        enable_tls_if_needed(config)
        for name in (*changes.removed, *changes.restarted):
            endpoint = old.models[name].endpoint
            if endpoint is not None:
                self.models.pool.forget(endpoint)
        router.apply(config, changes)
        self.logs.apply(config)
        self.observability.apply(config, old)
        self.memory.apply(config, old)
        if self.models.hosts is not None:
            self.models.hosts.reconfigured()
        self.watchdog.retain(config.models)
        self.models.peers.retune()
        machine = self.observability.machine
        if config.performance.disabled:
            machine.stop()
        elif self.monitored:
            machine.retune(config.performance.every)
            machine.start()
