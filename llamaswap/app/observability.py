"""The parts that record what happens: requests, activity, captures, metrics, and the machine's state."""

from __future__ import annotations

import time
from collections.abc import Callable

from attrs import frozen
from twisted.logger import Logger

from llamaswap.app.model_parts import ModelParts
from llamaswap.app.settings import ServiceContext
from llamaswap.config import Config
from llamaswap.events import ActivityStored, StateChanged, SwapBegan, SwapEnded
from llamaswap.observe.activity import ActivityLog
from llamaswap.observe.activity_row import ActivityRow
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
    """The parts that record what happens. `recorder` is the thread that writes the activity store; `open_store` opens
    the one that a configuration names: a file, else memory."""

    recorder: WorkerThread
    captures: Captures
    metrics: Metrics
    inflight: InflightRequests
    activity: ActivityLog
    history: SwapHistory
    machine: MachineMonitor
    hardware: Hardware
    open_store: Callable[[Config], ActivityStore | FileStore]

    def apply(self, config: Config, old: Config) -> None:
        """Use the settings of a new configuration."""
        self.inflight.retune(config.ui.activity.session_id)
        self.captures.resize(config.capture_buffer)
        self.activity.retune(config.ui.activity.session_id)
        if config.store != old.store:
            self.activity.use(self.open_store(config))

    async def close(self) -> None:
        """Write what is left, and end the threads that do it."""
        await self.activity.close()
        await self.recorder.close()
        await self.machine.stop()


def build_observability(
    context: ServiceContext, config: Config, models: ModelParts, registry: LogRegistry
) -> ObservabilityParts:
    """The observability parts for a configuration."""
    reactor, bus, router = context.reactor, context.bus, models.router
    parts: ObservabilityParts  # below; the metrics read it later
    recorder = WorkerThread("recorder", reactor)
    metrics = Metrics(in_flight=lambda: parts.inflight.by_model(), machine=lambda: parts.machine.families())
    captures = Captures(config.capture_buffer)

    def stored(row: ActivityRow) -> None:
        model = router.config.real(row.model)
        if model is not None:
            usage = row.usage
            models.slots.read(model, usage.input_tokens, usage.cache_tokens, usage.prompt_per_second)
        metrics.stored(row)
        bus.publish(ActivityStored(row.id))

    def open_store(config: Config) -> ActivityStore | FileStore:
        if config.store is None:
            return ActivityStore(None, config.metrics_max_in_memory)
        return FileStore(
            config.store.path,
            config.metrics_max_in_memory,
            say=lambda text: reactor.callFromThread(log.warn, "{text}", text=text),
            renumbered=lambda: reactor.callFromThread(parts.activity.renumbered),
            seconds=reactor.seconds,
        )

    parts = ObservabilityParts(
        recorder=recorder,
        captures=captures,
        metrics=metrics,
        inflight=InflightRequests(
            clock=reactor,
            sessions=config.ui.activity.session_id,
            finished=metrics.finished,
            why=router.wait_reason,
        ),
        activity=ActivityLog(
            store=open_store(config),
            captures=captures,
            run=recorder,
            clock=reactor,
            wall=time.time,
            stored=stored,
            sessions=config.ui.activity.session_id,
        ),
        history=SwapHistory(wall=time.time, log_tail=lambda model: registry.model(model).history()),
        machine=MachineMonitor(
            run=models.driver_thread,
            clock=reactor,
            wall=time.time,
            every=config.performance.every,
            gpus=models.gpus,
            wanted=lambda: bool(router.running()),
        ),
        hardware=Hardware(run=models.driver_thread, wall=time.time, version=build_info().version),
        open_store=open_store,
    )
    metrics.listen(bus)
    parts.history.listen(bus)
    for event in (StateChanged, SwapBegan, SwapEnded):
        bus.subscribe(event, lambda _: parts.inflight.wait_reasons_changed())
    return parts
