"""Notices a client that has stopped reading its response. What follows from that is decided elsewhere."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define
from twisted.internet.interfaces import IDelayedCall, IReactorTime

CHECK_INTERVAL = 5.0  # seconds between two checks of a paused response

ReportStall = Callable[["float | None"], None]


@define(eq=False)
class ReaderWatch:
    """Watches one response while back-pressure pauses it.

    `unsent()` counts the bytes that the kernel has not taken yet: they become fewer while the client reads, however
    slowly. `report` gets the clock's seconds since which it has read nothing, then None when it reads again.
    """

    _clock: IReactorTime
    _unsent: Callable[[], int]
    _report: ReportStall
    _paused: bool = False
    _reported: bool = False
    _since: float = 0.0
    _last: int = 0
    _call: IDelayedCall | None = None

    def paused(self) -> None:
        """The client's socket is full."""
        self._paused = True
        self._mark()
        # The timer of an earlier pause may still run: a fast response is paused many times a second.
        if self._call is None:
            self._call = self._clock.callLater(CHECK_INTERVAL, self._check)

    def resumed(self) -> None:
        """The client took everything."""
        self._paused = False
        self._moved()

    def stop(self) -> None:
        """The response is over."""
        call, self._call = self._call, None
        if call is not None:
            call.cancel()

    def _mark(self) -> None:
        self._since = self._clock.seconds()
        self._last = self._unsent()

    def _check(self) -> None:
        self._call = None
        if not self._paused:
            return
        self._call = self._clock.callLater(CHECK_INTERVAL, self._check)
        if self._unsent() != self._last:
            self._mark()
            self._moved()
        elif not self._reported and self._since + CHECK_INTERVAL <= self._clock.seconds():
            self._reported = True
            self._report(self._since)

    def _moved(self) -> None:
        if self._reported:
            self._reported = False
            self._report(None)
