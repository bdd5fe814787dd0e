"""Waits until the GPU memory of a stopped server is free, before the next server starts.

A process that ended uses no memory of the machine, but a driver may take seconds to release a GPU's, and the next model
then fails to load. The memory of a model is the difference between the readings before and after its load. Without
readings, or if two models loaded at once, no start waits. This module must not know why a server stops or starts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import define, field
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaswap.observe.gpus import GpuReading

MIN_SHARE = 64  # MiB on one GPU; less is noise
ENOUGH = 0.9  # of the expected memory counts as all: readings are rounded, other processes grow a little
POLL_INTERVAL = 0.1  # seconds between two readings during a wait
READ_GRACE = 1.0  # seconds for a reading at the end of a wait; a driver that hangs must not block a start
STEADY = 1.0  # seconds without a change after which half the memory is enough: another process took the rest

log = Logger()
Usage = dict[int, int]  # MiB in use by GPU


@define(eq=False)
class VramReclaim:
    """Knows the GPU memory of each model, and waits for its release.

    `read` reads the GPUs (not on the reactor's thread); `longest` returns the seconds that a start may wait at most, 0
    for none.
    """

    read: Callable[[], Deferred[Sequence[GpuReading]]]
    clock: IReactorTime
    longest: Callable[[], float]
    _used: Usage | None = None
    _shares: dict[str, Usage] = field(factory=dict)
    _loading: dict[str, Usage | None] = field(factory=dict)
    _pending: Usage = field(factory=dict)
    _pending_since: float = 0.0
    _generation: int = 0  # a reading is only used if no server started or stopped since it began

    # -- events --------------------------------------------------------------------------------------------

    def loading(self, model: str) -> None:
        """A server of this model starts."""
        self._generation += 1
        self._loading[model] = None
        if len(self._loading) > 1:
            self._loading = dict.fromkeys(self._loading)  # readings cannot tell the models apart
        else:
            self._read_then(lambda usage: self._loading.update({model: usage}))

    def loaded(self, model: str) -> None:
        """The model's server is ready."""
        before = self._loading.pop(model, None)
        self._generation += 1
        if before is not None:
            self._read_then(lambda usage: self._keep_share(model, before, usage))

    def _keep_share(self, model: str, before: Usage, usage: Usage) -> None:
        share = {gpu: used - before.get(gpu, 0) for gpu, used in usage.items()}
        self._shares[model] = {gpu: size for gpu, size in share.items() if size >= MIN_SHARE}
        self._used = usage

    def stopped(self, model: str) -> None:
        """The model's server ended, or never became ready."""
        self._generation += 1
        self._loading.pop(model, None)
        share = self._shares.pop(model, {})
        if share and self._used is not None:
            if self.clock.seconds() - self._pending_since > self.longest():
                self._pending = {}
            self._pending_since = self.clock.seconds()
            for gpu, size in share.items():
                self._pending[gpu] = self._pending.get(gpu, 0) + size

    def wait_for_reclaim(self, model: str) -> Deferred[None] | None:
        """Fires when the memory of stopped servers is free, or the time is over; None if no start has to wait."""
        left = self._pending_since + self.longest() - self.clock.seconds()
        if not self._pending or self._used is None or left <= 0:
            self._pending = {}
            return None
        waiting = Deferred.fromCoroutine(self._wait(model, self._used, self._pending, left))
        self._pending = {}
        # A start must neither fail nor hang because of a reading.
        waiting.addTimeout(left + READ_GRACE, self.clock)
        return waiting.addErrback(lambda failure: _log_failed_reading(failure, model))

    def shares(self, model: str) -> Usage | None:
        """MiB of a loaded model by GPU; None if unknown."""
        return self._shares.get(model)

    def share(self, model: str) -> int | None:
        """MiB of a loaded model on all GPUs; None if unknown."""
        share = self._shares.get(model)
        return None if share is None else sum(share.values())

    # -- waiting -------------------------------------------------------------------------------------------

    async def _wait(self, model: str, used: Usage, expected: Usage, left: float) -> None:
        until = self.clock.seconds() + left
        best: Usage = dict.fromkeys(expected, 0)
        changed = self.clock.seconds()
        while True:
            usage = _by_gpu(await self.read())
            now = self.clock.seconds()
            if not usage:
                self._used = None
                return
            self._used = usage
            freed = {gpu: used.get(gpu, 0) - usage.get(gpu, 0) for gpu in expected}
            missing = {gpu: size - freed[gpu] for gpu, size in expected.items() if freed[gpu] < size * ENOUGH}
            if not missing:
                return
            if any(freed[gpu] > best[gpu] for gpu in expected):
                best, changed = freed, now
            if now - changed >= STEADY and all(freed[gpu] >= size / 2 for gpu, size in expected.items()):
                return
            if now >= until:
                words = ", ".join(f"{size} MiB on GPU {gpu}" for gpu, size in sorted(missing.items()))
                log.warn("loading {model} although {words} has not been released yet", model=model, words=words)
                return
            await deferLater(self.clock, min(POLL_INTERVAL, until - now))

    def _read_then(self, keep: Callable[[Usage], None]) -> None:
        """Call `keep` with a reading, unless a server starts or stops before it arrives."""
        generation = self._generation

        def arrived(readings: Sequence[GpuReading]) -> None:
            usage = _by_gpu(readings)
            if usage and self._generation == generation:
                keep(usage)

        maybeDeferred(self.read).addCallback(arrived).addErrback(_log_failed_reading)


def _log_failed_reading(failure: Failure, model: str = "") -> None:
    if failure.check(DeferredTimeout):
        log.warn("loading {model} although the GPUs do not report their memory use", model=model)
    else:
        log.failure("reading the GPUs' memory failed", failure)


def _by_gpu(readings: Sequence[GpuReading]) -> Usage:
    return {reading.id: reading.mem_used_mb for reading in readings if reading.mem_total_mb}
