"""The machine over the last hour: CPU, memory, load, network and GPUs, sampled on a worker's thread.

Idle costs next to nothing: GPUs are only asked while a model's server runs or somebody looks, because a
query can keep a board from sleeping. Must not know how GPUs are read (gpus.py) or who shows the samples.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, TypeVar

from attrs import frozen
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from llamaswap.observe.exposition import MetricFamily
from llamaswap.observe.gpus import GpuReader, GpuReading
from llamaswap.observe.log_format import local_time, rfc3339nano
from llamaswap.observe.machine_metrics import machine_families
from llamaswap.observe.worker import RunBlocking
from llamaswap.wire.byte_budget import MIB

HOUR = 3600.0
LOOKING = 60.0  # seconds after a question during which somebody counts as looking

log = Logger()
T = TypeVar("T")


@frozen
class SystemReading:
    """The machine at one moment; sizes in MB (2**20 bytes), `net_io` as (name, received, sent) in bytes."""

    cpu_util_per_core: tuple[float, ...] = ()
    mem_total_mb: int = 0
    mem_used_mb: int = 0
    mem_free_mb: int = 0
    swap_total_mb: int = 0
    swap_used_mb: int = 0
    load_avg: tuple[float, float, float] = (0.0, 0.0, 0.0)
    net_io: tuple[tuple[str, int, int], ...] = ()


def read_system() -> SystemReading:
    """Ask psutil; the CPU's share is since the last call."""
    import psutil  # on the worker's thread: listening need not wait for it

    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    return SystemReading(
        cpu_util_per_core=tuple(psutil.cpu_percent(percpu=True)),
        mem_total_mb=memory.total // MIB,
        mem_used_mb=memory.used // MIB,
        mem_free_mb=memory.free // MIB,
        swap_total_mb=swap.total // MIB,
        swap_used_mb=swap.used // MIB,
        load_avg=os.getloadavg(),
        net_io=tuple(
            (name, count.bytes_recv, count.bytes_sent)
            for name, count in sorted(psutil.net_io_counters(pernic=True).items())
            if name not in ("lo", "lo0")
        ),
    )


@frozen
class MachineSample:
    """What was read at `at` (unix seconds)."""

    at: float
    system: SystemReading
    gpus: tuple[GpuReading, ...] = ()


class MachineMonitor:
    """Samples every `every` seconds between `start` and `stop`; keeps an hour.

    `wanted` says whether a model's server runs: else GPUs rest, unless somebody asked within a minute.
    """

    def __init__(
        self,
        *,
        run: RunBlocking,
        clock: IReactorTime,
        wall: Callable[[], float],
        every: float,
        gpus: GpuReader,
        wanted: Callable[[], bool] = lambda: True,
        read: Callable[[], SystemReading] = read_system,
        local: Callable[[float], datetime] = local_time,
    ) -> None:
        self._run = run
        self._clock = clock
        self._wall = wall
        self._gpus = gpus
        self._wanted = wanted
        self._read = read
        self._local = local
        self._every = every
        self._samples: deque[MachineSample] = deque(maxlen=max(1, int(HOUR / every)))
        self._loop: LoopingCall | None = None
        self._asked = float("-inf")
        self._listeners: tuple[Callable[[dict[str, Any]], None], ...] = ()

    @property
    def enabled(self) -> bool:
        """Whether sampling goes on."""
        return self._loop is not None

    def start(self) -> None:
        """Begin; the first sample is taken at once."""
        if self._loop is not None:
            return
        self._loop = loop = LoopingCall(self._sample)
        loop.clock = self._clock
        loop.start(self._every).addErrback(lambda failure: log.failure("sampling ended", failure=failure))

    def stop(self) -> Deferred[None]:
        """End; what GPU sources hold open is closed."""
        if self._loop is None:
            return succeed(None)
        loop, self._loop = self._loop, None
        loop.stop()
        return self._run(self._gpus.rest)

    def retune(self, every: float) -> None:
        """A reload changed `performance.every`."""
        if every == self._every:
            return
        self._every = every
        self._samples = deque(self._samples, maxlen=max(1, int(HOUR / every)))
        if self._loop is not None:
            self._loop.stop()
            self._loop = None
            self.start()

    def _sample(self) -> Deferred[None]:
        # The loop waits for this, so a slow driver makes samples rarer and never piles them up.
        look = self._wanted() or bool(self._listeners) or self._clock.seconds() - self._asked < LOOKING
        taken = self._run(lambda: self._take(look))
        return taken.addCallbacks(self._keep, lambda failure: log.failure("a sample failed", failure=failure))

    def _take(self, look: bool) -> MachineSample:
        if look:
            gpus = tuple(self._gpus.read())
        else:
            self._gpus.rest()
            gpus = ()
        return MachineSample(self._wall(), self._read(), gpus)

    def _keep(self, sample: MachineSample) -> None:
        self._samples.append(sample)
        if self._listeners:
            document = self._document([sample])
            for listener in self._listeners:
                try:
                    listener(document)
                except Exception:  # a listener's fault must not end the sampling
                    log.failure("a listener to samples failed")

    def subscribe(self, listener: Callable[[dict[str, Any]], None]) -> Callable[[], None]:
        """Hear of every later sample, as `samples` would tell it; returns the unsubscriber (idempotent)."""
        self._listeners = (*self._listeners, listener)

        def leave() -> None:
            self._listeners = tuple(other for other in self._listeners if other is not listener)

        return leave

    # -- asking --------------------------------------------------------------------------------------------

    def samples(self, after: float | None = None, max_points: int | None = None) -> dict[str, Any]:
        """The document of GET /api/performance: samples later than `after`, at most `max_points` of each thing."""
        self._asked = self._clock.seconds()
        if not self._samples:
            # "Nothing yet" and "nothing later" are told apart.
            nothing: list[Any] | None = None if after is None else []
            return {"enabled": True, "sys_stats": nothing, "gpu_stats": nothing}
        chosen = thinned([sample for sample in self._samples if after is None or sample.at > after], max_points)
        document = self._document(chosen)
        if after is None and not any(sample.gpus for sample in self._samples):
            document["gpu_stats"] = None
        return document

    def _document(self, samples: Sequence[MachineSample]) -> dict[str, Any]:
        return {
            "enabled": True,
            "sys_stats": [self._system(sample) for sample in samples],
            "gpu_stats": [self._gpu(sample, reading) for sample in samples for reading in sample.gpus],
        }

    def latest(self) -> tuple[SystemReading | None, list[GpuReading]]:
        """The newest system reading, and the newest reading of each GPU by id."""
        newest: dict[int, GpuReading] = {}
        for sample in reversed(self._samples):
            if sample.gpus:
                newest = {reading.id: reading for reading in sample.gpus}
                break
        system = self._samples[-1].system if self._samples else None
        return system, [newest[number] for number in sorted(newest)]

    def families(self) -> Iterable[MetricFamily]:
        """For /metrics. A scrape does not count as a question: it would keep GPUs awake for ever."""
        system, gpus = self.latest()
        return () if system is None else machine_families(system, gpus)

    def _system(self, sample: MachineSample) -> dict[str, Any]:
        system = sample.system
        one, five, fifteen = system.load_avg
        return {
            "timestamp": rfc3339nano(self._local(sample.at)),
            "cpu_util_per_core": list(system.cpu_util_per_core),
            "mem_total_mb": system.mem_total_mb,
            "mem_used_mb": system.mem_used_mb,
            "mem_free_mb": system.mem_free_mb,
            "swap_total_mb": system.swap_total_mb,
            "swap_used_mb": system.swap_used_mb,
            "load_avg_1": one,
            "load_avg_5": five,
            "load_avg_15": fifteen,
            "net_io": [
                {"name": name, "bytes_recv": received, "bytes_sent": sent} for name, received, sent in system.net_io
            ],
        }

    def _gpu(self, sample: MachineSample, reading: GpuReading) -> dict[str, Any]:
        return {
            "timestamp": rfc3339nano(self._local(sample.at)),
            "id": reading.id,
            "name": reading.name,
            "uuid": reading.uuid,
            "temp_c": reading.temp_c,
            "vram_temp_c": reading.vram_temp_c,
            "gpu_util_pct": reading.gpu_util_pct,
            "mem_util_pct": round(reading.mem_util_pct, 2),
            "mem_used_mb": reading.mem_used_mb,
            "mem_total_mb": reading.mem_total_mb,
            "fan_speed_pct": reading.fan_speed_pct,
            "power_draw_w": reading.power_draw_w,
        }


def thinned(items: Sequence[T], most: int | None) -> Sequence[T]:
    """At most `most` of the items, evenly spread, the last always among them."""
    if most is None or most <= 0 or len(items) <= most:
        return items
    return [items[-1 - (step * len(items)) // most] for step in range(most)][::-1]
