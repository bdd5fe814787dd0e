"""Whether the GPU memory of a server that ended is back, asked before the next one starts.

A process that is gone holds no memory of the machine's, but a driver may take seconds to give a board's back, and the
next model then fails for lack of it. What a model took is learned while it loads: the difference between two readings.
Where there are no readings, or none that can be trusted (two models loaded at once), nobody waits. Must not know why
something stopped or starts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import define, field
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.defer import TimeoutError as TimeIsUp
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaswap.observe.gpus import GpuReading

LEAST = 64  # MiB on one board below which a model's share is noise
NEARLY = 0.9  # of the expected memory counts as all of it: readings are rounded, neighbours grow a little
LOOK = 0.1  # seconds between two readings while somebody waits
LATE = 1.0  # seconds past its time that a reading under way may take; a driver that hangs must not keep a model away
STEADY = 1.0  # seconds without a change after which half of it counts too: a neighbour grew into the rest

log = Logger()
Usage = dict[int, int]  # MiB in use by board


@define(eq=False)
class VramReclaim:
    """Knows what each model took, and waits for it to come back.

    `read` asks the boards (elsewhere than on the reactor), `longest` says how many seconds a start may wait at most;
    0: none ever waits.
    """

    read: Callable[[], Deferred[Sequence[GpuReading]]]
    clock: IReactorTime
    longest: Callable[[], float]
    _used: Usage | None = None
    _shares: dict[str, Usage] = field(factory=dict)
    _loading: dict[str, Usage | None] = field(factory=dict)
    _pending: Usage = field(factory=dict)
    _pending_since: float = 0.0
    _turn: int = 0

    # -- what happens --------------------------------------------------------------------------------------

    def loading(self, model: str) -> None:
        """A server of this model is being started."""
        self._turn += 1
        alone = not self._loading
        self._loading[model] = None
        if not alone:
            self._loading = dict.fromkeys(self._loading)  # what was read before is of no use to any of them
            return
        turn = self._turn

        def note(usage: Usage) -> None:
            if self._turn == turn and usage:
                self._loading[model] = usage

        self._ask(note)

    def loaded(self, model: str) -> None:
        """It is ready."""
        before = self._loading.pop(model, None)
        self._turn += 1
        turn = self._turn
        if before is None:
            return
        began = before

        def note(usage: Usage) -> None:
            if self._turn == turn and usage:
                share = {board: used - began.get(board, 0) for board, used in usage.items()}
                self._shares[model] = {board: taken for board, taken in share.items() if taken >= LEAST}
                self._used = usage

        self._ask(note)

    def gone(self, model: str) -> None:
        """Its server is no more, or never became ready."""
        self._turn += 1
        self._loading.pop(model, None)
        share = self._shares.pop(model, {})
        if share and self._used is not None:
            if self.clock.seconds() - self._pending_since > self.longest():
                self._pending = {}
            self._pending_since = self.clock.seconds()
            for board, taken in share.items():
                self._pending[board] = self._pending.get(board, 0) + taken

    def wait_for_reclaim(self, model: str) -> Deferred[None] | None:
        """Fires when what ended models held is back, or has had its time; None when there is nothing to wait for."""
        left = self._pending_since + self.longest() - self.clock.seconds()
        if not self._pending or self._used is None or left <= 0:
            self._pending = {}
            return None
        waiting = Deferred.fromCoroutine(self._wait(model, self._used, self._pending, left))
        self._pending = {}
        # A start must not fail, or hang, because of a reading.
        waiting.addTimeout(left + LATE, self.clock)
        return waiting.addErrback(lambda failure: _unread(failure, model))

    def share(self, model: str) -> int | None:
        """MiB that a loaded model took on all boards; None where that is not known."""
        share = self._shares.get(model)
        return None if share is None else sum(share.values())

    # -- waiting -------------------------------------------------------------------------------------------

    async def _wait(self, model: str, used: Usage, expected: Usage, left: float) -> None:
        until = self.clock.seconds() + left
        lowest: Usage = dict(used)
        changed = self.clock.seconds()
        while True:
            usage = _by_board(await self.read())
            now = self.clock.seconds()
            if not usage:
                self._used = None
                return
            self._used = usage
            missing = {
                board: taken - (used.get(board, 0) - usage.get(board, 0))
                for board, taken in expected.items()
                if used.get(board, 0) - usage.get(board, 0) < taken * NEARLY
            }
            if not missing:
                return
            if any(usage.get(board, 0) < lowest.get(board, 0) for board in expected):
                lowest = usage
                changed = now
            halved = all(used.get(board, 0) - usage.get(board, 0) >= taken / 2 for board, taken in expected.items())
            if halved and now - changed >= STEADY:
                return
            if now >= until:
                words = ", ".join(f"{amount} MiB on GPU {board}" for board, amount in sorted(missing.items()))
                log.warn(
                    "loading {model} although {words} has not been released yet",
                    model=model,
                    words=words,
                )
                return
            await deferLater(self.clock, min(LOOK, until - now))

    def _ask(self, note: Callable[[Usage], None]) -> None:
        """A reading that nobody waits for."""
        asked = maybeDeferred(self.read).addCallback(lambda readings: note(_by_board(readings)))
        asked.addErrback(_unread)


def _unread(failure: Failure, model: str = "") -> None:
    if failure.check(TimeIsUp):
        log.warn("loading {model} although the GPUs do not report their memory use", model=model)
    else:
        log.failure("reading the GPUs' memory failed", failure)


def _by_board(readings: Sequence[GpuReading]) -> Usage:
    return {reading.id: reading.mem_used_mb for reading in readings if reading.mem_total_mb}
