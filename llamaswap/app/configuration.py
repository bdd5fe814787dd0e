"""Reloading: the configuration is loaded on its own thread, compared, and applied to all parts."""

from __future__ import annotations

import os

from attrs import evolve, frozen

from llamaswap.app.log_output import LogParts
from llamaswap.app.model_parts import ModelParts, enable_tls_if_needed
from llamaswap.app.observability import ObservabilityParts
from llamaswap.app.settings import ServiceContext, sources_of
from llamaswap.config import Config, ConfigDiff, LoadedConfig, load
from llamaswap.config import files as config_files
from llamaswap.config.ports import keep
from llamaswap.config.reload import Reloader
from llamaswap.liveness.watchdog import Watchdog
from llamaswap.observe.worker import WorkerThread


@frozen
class ConfigApplier:
    """Applies a new configuration to the parts. `monitored` says that the machine was monitored from the start: a
    monitor that was off then stays off."""

    logs: LogParts
    models: ModelParts
    observability: ObservabilityParts
    watchdog: Watchdog
    monitored: bool

    def apply(self, config: Config, changes: ConfigDiff) -> None:
        """The router comes first; the other parts read the configuration from it."""
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


def build_reloader(context: ServiceContext, applier: ConfigApplier, thread: WorkerThread) -> Reloader:
    """The reloader of this service; files are read on `thread`."""
    models = applier.models
    watch = config_files.FileWatch(context.settings.config, context.settings.config_dir)

    def load_from_disk() -> LoadedConfig:
        """The configuration on disk, with the ports that the present one uses."""
        loaded = load(sources_of(context.settings), {**os.environ}, store_problem=config_files.store_problem)
        return evolve(loaded, config=keep(models.router.config, loaded.config))

    return Reloader(
        clock=context.reactor,
        bus=context.bus,
        current=lambda: models.router.config,
        load=lambda: thread(load_from_disk),
        keep=lambda old, new: models.peers.filled(new),
        apply=applier.apply,
        changed=watch.changed,
    )
