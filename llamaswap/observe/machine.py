"""The machine over the last hour: CPU, memory, load, network and GPUs, sampled on a worker's thread.

GPUs are only read while a model's server runs or a client asks for samples, because a query can keep a board from
sleeping. This module must not know how GPUs are read (gpus.py) or who shows the samples.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import TypeVar

from attrs import asdict, frozen
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

KEPT_SECONDS = 3600.0
ASKED_SECONDS = 60.0  # for which the GPUs are read after a question

log = Logger()
T = TypeVar("T")
Document = dict[str, object]


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
    """Ask psutil; the CPU's utilisation is that since the last call."""
    import psutil  # on the worker's thread, because the import takes longer than opening the port may

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
    """The readings at the time `at` (unix seconds)."""

    at: float
    system: SystemReading
    gpus: tuple[GpuReading, ...] = ()


class MachineMonitor:
    """Samples every `every` seconds between `start` and `stop`; keeps an hour.

    `wanted` says whether a model's server runs. If not, the GPUs are only read in the minute after a question.
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
        self._samples: deque[MachineSample] = deque(maxlen=max(1, int(KEPT_SECONDS / every)))
        self._loop: LoopingCall | None = None
        self._asked = float("-inf")
        self._listeners: tuple[Callable[[Document], None], ...] = ()

    @property
    def enabled(self) -> bool:
        """Whether it samples."""
        return self._loop is not None

    def start(self) -> None:
        """Begin to sample; the first sample is taken at once."""
        if self._loop is not None:
            return
        self._loop = loop = LoopingCall(self._sample)
        loop.clock = self._clock
        loop.start(self._every).addErrback(
            lambda failure: log.failure("sampling stopped unexpectedly", failure=failure)
        )

    def stop(self) -> Deferred[None]:
        """Stop sampling and close the GPU source."""
        if self._loop is None:
            return succeed(None)
        loop, self._loop = self._loop, None
        loop.stop()
        return self._run(self._gpus.close)

    def retune(self, every: float) -> None:
        """A reload changed `performance.every`."""
        if every == self._every:
            return
        self._every = every
        self._samples = deque(self._samples, maxlen=max(1, int(KEPT_SECONDS / every)))
        if self._loop is not None:
            self._loop.stop()
            self._loop = None
            self.start()

    def _sample(self) -> Deferred[None]:
        # The loop waits for this Deferred, so with a slow driver samples become rarer instead of piling up.
        with_gpus = self._wanted() or bool(self._listeners) or self._clock.seconds() - self._asked < ASKED_SECONDS
        taken = self._run(lambda: self._take(with_gpus))
        return taken.addCallbacks(self._keep, lambda failure: log.failure("a sample failed", failure=failure))

    def _take(self, with_gpus: bool) -> MachineSample:
        if not with_gpus:
            self._gpus.close()
        gpus = tuple(self._gpus.read()) if with_gpus else ()
        return MachineSample(self._wall(), self._read(), gpus)

    def _keep(self, sample: MachineSample) -> None:
        self._samples.append(sample)
        if self._listeners:
            document = self._document([sample])
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
        """The document of GET /api/performance: samples later than `after`, at most `max_points` of each thing."""
        self._asked = self._clock.seconds()
        if not self._samples:
            # Without any sample the lists are null, without a later one they are empty.
            nothing: list[Document] | None = None if after is None else []
            return {"enabled": True, "sys_stats": nothing, "gpu_stats": nothing}
        chosen = thinned([sample for sample in self._samples if after is None or sample.at > after], max_points)
        document = self._document(chosen)
        if after is None and not any(sample.gpus for sample in self._samples):
            document["gpu_stats"] = None
        return document

    def _document(self, samples: Sequence[MachineSample]) -> Document:
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

    def _system(self, sample: MachineSample) -> Document:
        document = asdict(sample.system)
        one, five, fifteen = document.pop("load_avg")
        return {
            "timestamp": rfc3339nano(self._local(sample.at)),
            **document,
            "cpu_util_per_core": list(sample.system.cpu_util_per_core),
            "load_avg_1": one,
            "load_avg_5": five,
            "load_avg_15": fifteen,
            "net_io": [
                {"name": name, "bytes_recv": received, "bytes_sent": sent}
                for name, received, sent in sample.system.net_io
            ],
        }

    def _gpu(self, sample: MachineSample, reading: GpuReading) -> Document:
        timestamp = rfc3339nano(self._local(sample.at))
        return {"timestamp": timestamp, **asdict(reading), "mem_util_pct": round(reading.mem_util_pct, 2)}


def thinned(items: Sequence[T], limit: int | None) -> Sequence[T]:
    """At most `limit` of the items, evenly spread and with the last one."""
    if limit is None or limit <= 0 or len(items) <= limit:
        return items
    return [items[-1 - (step * len(items)) // limit] for step in range(limit)][::-1]
