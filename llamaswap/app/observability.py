"""The parts that record what happens: requests, activity, captures, metrics, and the machine's state."""

from __future__ import annotations

import time
from collections.abc import Callable

from attrs import frozen
from twisted.logger import Logger

from llamaswap.app.model_parts import ModelParts
from llamaswap.app.settings import ServiceContext
from llamaswap.config import Config
from llamaswap.events import StateChanged, SwapBegan, SwapEnded
from llamaswap.observe.activity import ActivityLog
from llamaswap.observe.activity_row import ActivityRow, ActivityStored
from llamaswap.observe.captures import Captures
from llamaswap.observe.file_store import FileStore
from llamaswap.observe.hardware import Hardware
from llamaswap.observe.history import SwapHistory
from llamaswap.observe.inflight import InflightRequests
from llamaswap.observe.logs import LogRegistry
from llamaswap.observe.machine import MachineMonitor
from llamaswap.observe.metrics import Metrics
from llamaswap.observe.store import ActivityStore
from llamaswap.observe.worker import WorkerThread
from llamaswap.version import build as build_info

log = Logger("llamaswap.app.service")


@frozen(eq=False)
class ObservabilityParts:
    """The parts that record what happens. `recorder` is the thread that writes the activity store."""

    context: ServiceContext
    recorder: WorkerThread
    captures: Captures
    metrics: Metrics
    inflight: InflightRequests
    activity: ActivityLog
    history: SwapHistory
    machine: MachineMonitor
    hardware: Hardware

    def apply(self, config: Config, old: Config) -> None:
        """Use the settings of a new configuration."""
        self.inflight.retune(config.ui.activity.session_id)
        self.captures.resize(config.capture_buffer)
        self.activity.retune(config.ui.activity.session_id)
        if config.store != old.store:
            self.activity.use(open_store(self.context, config, self.activity.renumbered))

    async def close(self) -> None:
        """Write what is left, and end the threads that do it."""
        await self.activity.close()
        await self.recorder.close()
        await self.machine.stop()


def build_observability(
    context: ServiceContext, config: Config, models: ModelParts, registry: LogRegistry
) -> ObservabilityParts:
    """The observability parts for a configuration."""
    reactor, router, driver_thread = context.reactor, models.router, models.driver_thread
    recorder, captures = WorkerThread("recorder", reactor), Captures(config.capture_buffer)
    metrics = Metrics(in_flight=lambda: inflight.by_model(), machine=lambda: machine.families())
    inflight = InflightRequests(reactor, metrics.finished, router.wait_reason)
    inflight.retune(config.ui.activity.session_id)
    machine = MachineMonitor(
        run=driver_thread,
        clock=reactor,
        wall=time.time,
        every=config.performance.every,
        gpus=models.gpus,
        wanted=lambda: bool(router.running()),
    )
    history = SwapHistory(wall=time.time, log_tail=lambda model: registry.model(model).history())
    hardware = Hardware(run=driver_thread, wall=time.time, version=build_info().version)
    activity = build_activity(context, config, models, metrics, captures, recorder)
    metrics.listen(context.bus)
    history.listen(context.bus)
    for event in (StateChanged, SwapBegan, SwapEnded):
        context.bus.subscribe(event, lambda _: inflight.wait_reasons_changed())
    return ObservabilityParts(context, recorder, captures, metrics, inflight, activity, history, machine, hardware)


def build_activity(
    context: ServiceContext,
    config: Config,
    models: ModelParts,
    metrics: Metrics,
    captures: Captures,
    recorder: WorkerThread,
) -> ActivityLog:
    """The log of requests; each stored row also counts for the saved slots and the metrics."""

    def stored(row: ActivityRow) -> None:
        model = models.router.config.real(row.model)
        if model is not None:
            usage = row.usage
            models.slots.read(model, usage.input_tokens, usage.cache_tokens, usage.prompt_per_second)
        metrics.stored(row)
        context.bus.publish(ActivityStored(row))

    activity = ActivityLog(
        store=open_store(context, config, lambda: activity.renumbered()),
        captures=captures,
        run=recorder,
        clock=context.reactor,
        wall=time.time,
        stored=stored,
    )
    activity.retune(config.ui.activity.session_id)
    return activity


def open_store(context: ServiceContext, config: Config, renumbered: Callable[[], None]) -> ActivityStore | FileStore:
    """The activity store that a configuration names: a file, else memory. `renumbered` is called if a file that was
    replaced numbers its rows from the start."""
    if config.store is None:
        return ActivityStore(None, config.metrics_max_in_memory)
    later = context.reactor.callFromThread
    return FileStore(
        config.store.path,
        config.metrics_max_in_memory,
        say=lambda text: later(log.warn, "{text}", text=text),
        renumbered=lambda: later(renumbered),
        seconds=context.reactor.seconds,
    )
