"""The parts that record what happens: requests, activity, captures, metrics, and the machine's state."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from twisted.logger import Logger

from llamaswap.app.model_parts import ModelParts
from llamaswap.app.settings import ServiceContext
from llamaswap.config import Config
from llamaswap.events import StateChanged, SwapBegan, SwapEnded
from llamaswap.observe.activity import ActivityLog
from llamaswap.observe.activity_row import ActivityRow, ActivityStored
from llamaswap.observe.capture_files import CaptureFiles
from llamaswap.observe.captures import Captures
from llamaswap.observe.exposition import MetricFamily
from llamaswap.observe.file_store import FileStore
from llamaswap.observe.hardware import Hardware
from llamaswap.observe.history import SwapHistory
from llamaswap.observe.inflight import InflightRequests
from llamaswap.observe.key_usage import BUCKETS, MINUTE, KeyUsage
from llamaswap.observe.logs import LogRegistry
from llamaswap.observe.machine import MachineMonitor
from llamaswap.observe.metrics import Metrics
from llamaswap.observe.store import ActivityStore
from llamaswap.observe.worker import WorkerThread
from llamaswap.version import build as build_info
from llamaswap.wire.byte_budget import MIB

log = Logger("llamaswap.app.service")


class ObservabilityParts:
    """The parts that record what happens. `recorder` is the thread that writes the activity store, `memory` gives the
    families of the models' memory."""

    def __init__(
        self,
        context: ServiceContext,
        config: Config,
        models: ModelParts,
        registry: LogRegistry,
        memory: Callable[[], Iterable[MetricFamily]] = tuple,
    ) -> None:
        reactor, router, driver_thread = context.reactor, models.router, models.driver_thread
        self.context = context
        self.recorder = WorkerThread("recorder", reactor)
        self.captures = Captures(config.capture_buffer)
        self.metrics = Metrics(
            in_flight=lambda: self.inflight.by_model(), machine=lambda: [*self.machine.families(), *memory()]
        )
        self.inflight = InflightRequests(reactor, self.metrics.finished, router.wait_reason)
        self.machine = MachineMonitor(
            run=driver_thread,
            clock=reactor,
            wall=time.time,
            every=config.performance.every,
            gpus=models.gpus,
            wanted=lambda: bool(router.running()),
        )
        self.history = SwapHistory(wall=time.time, log=registry.model)
        self.hardware = Hardware(run=driver_thread, wall=time.time, version=build_info().version)

        def stored(rows: Sequence[ActivityRow]) -> None:
            """Each stored row also counts for the saved slots and the metrics."""
            for row in rows:
                model = router.config.real(row.model)
                if model is not None:
                    usage = row.usage
                    models.slots.read(model, usage.input_tokens, usage.cache_tokens, usage.prompt_per_second)
                if row.charge is not None:
                    row.charge.settle(row.tokens)
                    row.charge = None  # a table in memory keeps the row
            self.metrics.stored(rows)
            context.bus.publish(ActivityStored(rows))

        self.key_usage = KeyUsage(time.time)
        store = open_store(context, config, lambda: self.activity.renumbered())
        self.activity = ActivityLog(store, self.captures, self.recorder, reactor, time.time, stored)
        self.activity.keep_files(capture_files(context, config, early=True))
        self._retune(config)
        self.metrics.listen(context.bus)
        self.history.listen(context.bus)
        self.activity.listen(context.bus)
        for event in (StateChanged, SwapBegan, SwapEnded):
            context.bus.subscribe(event, lambda _: self.inflight.wait_reasons_changed())

    def _retune(self, config: Config) -> None:
        self.inflight.retune(config.ui.activity.session_id)
        self.activity.retune(config.ui.activity.session_id)
        new = self.key_usage.retune(config.api_keys)
        if new:
            windows = {name: meter.spent.window for name in new if (meter := self.key_usage.meter(name)) is not None}
            now = time.time()
            self.activity.ask(lambda table: past_use(table, {*windows.values(), MINUTE}, now)).addCallbacks(
                lambda found: remember_use(self.key_usage, found, windows, new),
                lambda failure: log.failure("reading what the API keys have used failed", failure=failure),
            )

    def apply(self, config: Config, old: Config) -> None:
        """Use the settings of a new configuration."""
        self._retune(config)
        self.captures.resize(config.capture_buffer)
        if config.store != old.store:
            self.activity.use(open_store(self.context, config, self.activity.renumbered))
        if (config.store, config.captures) != (old.store, old.captures):
            self.activity.keep_files(capture_files(self.context, config, early=False))

    async def close(self) -> None:
        """Write what is left, and end the threads that do it."""
        await self.activity.close()
        await self.recorder.close()
        await self.machine.stop()


PastUse = Mapping[float, Sequence[tuple[str, float, int, int]]]


def past_use(table: ActivityStore, windows: Collection[float], now: float) -> PastUse:
    """What the keys have used, by the length of the window for which that is asked."""
    return {window: table.use_by_key(now - window, window / BUCKETS) for window in windows}


def remember_use(usage: KeyUsage, found: PastUse, windows: Mapping[str, float], new: Mapping[str, bool]) -> None:
    """Count what the keys in `windows` have used before, and in the last minute if `new` says that it is not known."""
    for window, rows in found.items():
        for name, at, tokens, requests in rows:
            if windows.get(name) == window:
                usage.remember(name, at, tokens)
            if window == MINUTE and new.get(name):
                usage.remember_minute(name, at, tokens, requests)


def capture_files(context: ServiceContext, config: Config, *, early: bool) -> CaptureFiles | None:
    """The files of captures that a configuration wants; `early`: no row has been numbered yet."""
    settings = config.captures
    if not settings.path:
        return None

    def report(text: str) -> None:
        context.reactor.callFromThread(log.warn, "{text}", text=text)

    store = config.store.path if config.store is not None else ""
    return CaptureFiles(settings.path, settings.max_size * MIB, store, report, context.reactor.seconds, early)


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
