"""The machine over the last hour: CPU, memory, load, network and GPUs, sampled on a worker's thread.

GPUs are only read while a model's server runs or a client asks for samples, because a query can keep a board from
sleeping. This module must not know how GPUs are read (gpus.py) or who shows the samples.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from attrs import Attribute, asdict, define, field, frozen
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from llamaswap.observe.exposition import MetricFamily
from llamaswap.observe.gpus import GpuReader, GpuReading
from llamaswap.observe.log_format import timestamp
from llamaswap.observe.worker import RunBlocking
from llamaswap.wire.byte_budget import MIB

KEPT_SECONDS = 3600.0
ASKED_SECONDS = 60.0  # for which the GPUs are read after a question

log = Logger()
T = TypeVar("T")
Document = dict[str, object]


@frozen
class NetworkCounts:
    """The bytes that passed a network interface."""

    name: str
    bytes_recv: int
    bytes_sent: int


@frozen
class SystemReading:
    """The machine at one moment; sizes in MB (2**20 bytes)."""

    cpu_util_per_core: tuple[float, ...] = ()
    mem_total_mb: int = 0
    mem_used_mb: int = 0
    mem_free_mb: int = 0
    swap_total_mb: int = 0
    swap_used_mb: int = 0
    load_avg_1: float = 0.0
    load_avg_5: float = 0.0
    load_avg_15: float = 0.0
    net_io: tuple[NetworkCounts, ...] = ()


def read_system() -> SystemReading:
    """Ask psutil; the CPU's utilisation is that since the last call."""
    import psutil  # on the worker's thread, because the import takes longer than opening the port may

    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    one, five, fifteen = os.getloadavg()
    return SystemReading(
        cpu_util_per_core=tuple(psutil.cpu_percent(percpu=True)),
        mem_total_mb=memory.total // MIB,
        mem_used_mb=memory.used // MIB,
        mem_free_mb=memory.free // MIB,
        swap_total_mb=swap.total // MIB,
        swap_used_mb=swap.used // MIB,
        load_avg_1=one,
        load_avg_5=five,
        load_avg_15=fifteen,
        net_io=tuple(
            NetworkCounts(name, count.bytes_recv, count.bytes_sent)
            for name, count in sorted(psutil.net_io_counters(pernic=True).items())
            if name not in ("lo", "lo0")
        ),
    )


@frozen
class MachineSample:
    """The readings at the time `at` (unix seconds)."""

    at: float
    system: SystemReading
    gpus: tuple[GpuReading, ...] = ()


@define(eq=False, kw_only=True)
class MachineMonitor:
    """Samples every `every` seconds between `start` and `stop`; keeps an hour.

    `wanted` says whether a model's server runs. If not, the GPUs are only read in the minute after a question.
    """

    run: RunBlocking
    clock: IReactorTime
    wall: Callable[[], float]
    every: float
    gpus: GpuReader
    wanted: Callable[[], bool] = lambda: True
    read: Callable[[], SystemReading] = read_system
    _samples: deque[MachineSample] = field(factory=deque, init=False)
    _loop: LoopingCall | None = field(default=None, init=False)
    _asked: float = field(default=float("-inf"), init=False)
    _listeners: tuple[Callable[[Document], None], ...] = field(default=(), init=False)

    @property
    def enabled(self) -> bool:
        """Whether it samples."""
        return self._loop is not None

    def start(self) -> None:
        """Begin to sample; the first sample is taken at once."""
        if self._loop is not None:
            return
        self._loop = loop = LoopingCall(self._sample)
        loop.clock = self.clock
        loop.start(self.every).addErrback(lambda failure: log.failure("sampling stopped unexpectedly", failure=failure))

    def stop(self) -> Deferred[None]:
        """Stop sampling and close the GPU source."""
        if self._loop is None:
            return succeed(None)
        loop, self._loop = self._loop, None
        loop.stop()
        return self.run(self.gpus.close)

    def retune(self, every: float) -> None:
        """A reload changed `performance.every`."""
        if every == self.every:
            return
        self.every = every
        if self._loop is not None:
            self._loop.stop()
            self._loop = None
            self.start()

    def _sample(self) -> Deferred[None]:
        # The loop waits for this Deferred, so with a slow driver samples become rarer instead of piling up.
        with_gpus = self.wanted() or bool(self._listeners) or self.clock.seconds() - self._asked < ASKED_SECONDS
        taken = self.run(lambda: self._take(with_gpus))
        return taken.addCallbacks(self._keep, lambda failure: log.failure("a sample failed", failure=failure))

    def _take(self, with_gpus: bool) -> MachineSample:
        if not with_gpus:
            self.gpus.close()
        gpus = tuple(self.gpus.read()) if with_gpus else ()
        return MachineSample(self.wall(), self.read(), gpus)

    def _keep(self, sample: MachineSample) -> None:
        self._samples.append(sample)
        while len(self._samples) > max(1, int(KEPT_SECONDS / self.every)):
            self._samples.popleft()
        if self._listeners:
            document = _document([sample])
            for listener in self._listeners:
                try:
                    listener(document)
                except Exception:  # a fault in a listener must not end the sampling
                    log.failure("a listener to samples failed")

    def subscribe(self, listener: Callable[[Document], None]) -> Callable[[], None]:
        """Call `listener` with the document of each later sample; returns the unsubscriber (idempotent)."""
        self._listeners = (*self._listeners, listener)

        def leave() -> None:
            self._listeners = tuple(other for other in self._listeners if other is not listener)

        return leave

    # -- questions -----------------------------------------------------------------------------------------

    def samples(self, after: float | None = None, max_points: int | None = None) -> Document:
        """The document of GET /api/performance: samples later than `after`, at most `max_points` of each kind."""
        self._asked = self.clock.seconds()
        if not self._samples:
            # Without any sample the lists are null, without a later one they are empty.
            nothing: list[Document] | None = None if after is None else []
            return {"enabled": True, "sys_stats": nothing, "gpu_stats": nothing}
        chosen = thinned([sample for sample in self._samples if after is None or sample.at > after], max_points)
        document = _document(chosen)
        if after is None and not any(sample.gpus for sample in self._samples):
            document["gpu_stats"] = None
        return document

    def families(self) -> Iterator[MetricFamily]:
        """The newest readings, for /metrics. A scrape does not count as a question: it would keep GPUs awake for
        ever."""
        if self._samples:
            newest = next((sample.gpus for sample in reversed(self._samples) if sample.gpus), ())
            yield from machine_families(self._samples[-1].system, sorted(newest, key=lambda reading: reading.id))


def _shown(attribute: Attribute[object], _: object) -> bool:
    return attribute.name not in ("pci", "unified")


def _document(samples: Sequence[MachineSample]) -> Document:
    system: list[Document] = []
    gpus: list[Document] = []
    for sample in samples:
        at: Document = {"timestamp": timestamp(sample.at)}
        system.append(at | asdict(sample.system))
        gpus += [at | asdict(gpu, filter=_shown) | {"mem_util_pct": round(gpu.mem_util_pct, 2)} for gpu in sample.gpus]
    return {"enabled": True, "sys_stats": system, "gpu_stats": gpus}


def thinned(items: Sequence[T], limit: int | None) -> Sequence[T]:
    """At most `limit` of the items, evenly spread and with the last one."""
    if limit is None or limit <= 0 or len(items) <= limit:
        return items
    return [items[-1 - (step * len(items)) // limit] for step in range(limit)][::-1]


# Existing dashboards rely on the names of the metrics.
_GPU: Sequence[tuple[str, str, Callable[[GpuReading], float]]] = (
    ("temperature_celsius", "Temperature of the GPU.", lambda gpu: gpu.temp_c),
    ("vram_temperature_celsius", "Temperature of the GPU's memory.", lambda gpu: gpu.vram_temp_c),
    ("util_percent", "How busy the GPU is.", lambda gpu: gpu.gpu_util_pct),
    ("memory_util_percent", "How full the GPU's memory is.", lambda gpu: gpu.mem_util_pct),
    ("memory_used_bytes", "GPU memory in use.", lambda gpu: gpu.mem_used_mb * MIB),
    ("memory_total_bytes", "Total GPU memory.", lambda gpu: gpu.mem_total_mb * MIB),
    ("fan_speed_percent", "Speed of the GPU's fan.", lambda gpu: gpu.fan_speed_pct),
    ("power_draw_watts", "Power the GPU draws.", lambda gpu: gpu.power_draw_w),
)


def machine_families(system: SystemReading, gpus: Sequence[GpuReading]) -> Iterator[MetricFamily]:
    """The families of the system, then those of the GPUs."""
    cpu = MetricFamily("gauge", "cpu_util_percent", "How busy each core is.", "core")
    cpu.values = {(str(core),): share for core, share in enumerate(system.cpu_util_per_core)}
    yield cpu
    for name, help_text, megabytes in (
        ("memory_total", "Total memory.", system.mem_total_mb),
        ("memory_used", "Memory in use.", system.mem_used_mb),
        ("memory_free", "Memory that is not in use.", system.mem_free_mb),
        ("swap_total", "Total swap space.", system.swap_total_mb),
        ("swap_used", "Swap space in use.", system.swap_used_mb),
    ):
        size = MetricFamily("gauge", f"{name}_bytes", help_text)
        size.values[()] = megabytes * MIB
        yield size
    load = MetricFamily("gauge", "load_average", "Processes that want to run.", "interval")
    load.values = {("1m",): system.load_avg_1, ("5m",): system.load_avg_5, ("15m",): system.load_avg_15}
    yield load
    network = MetricFamily("counter", "network_bytes", "Bytes that passed an interface.", "interface", "direction")
    for interface in system.net_io:
        network.values[interface.name, "recv"] = interface.bytes_recv
        network.values[interface.name, "sent"] = interface.bytes_sent
    yield network
    for name, help_text, value_of in _GPU:
        family = MetricFamily("gauge", f"gpu_{name}", help_text, "id", "name", "uuid")
        for gpu in gpus:
            family.values[(str(gpu.id), gpu.name, gpu.uuid) if gpu.uuid else (str(gpu.id), gpu.name)] = value_of(gpu)
        yield family
