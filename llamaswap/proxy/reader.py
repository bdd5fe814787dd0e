"""Notices a client that takes nothing of its response any more. What follows from that is decided elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall

LOOK_SECONDS = 5.0  # between two looks at a paused response

Report = Callable[["float | None"], None]


class ReaderWatch:
    """Watches one response while back-pressure pauses it.

    `unsent()` counts the bytes that the kernel has not taken yet: a slow reader makes it smaller, one that stands
    still does not. `report` gets the clock's seconds since which it stands still, then None when it reads again.
    """

    __slots__ = ("_call", "_clock", "_last", "_paused", "_report", "_reported", "_since", "_unsent")

    def __init__(self, clock: Any, unsent: Callable[[], int], report: Report) -> None:
        self._clock = clock
        self._unsent = unsent
        self._report = report
        self._paused = False
        self._reported = False
        self._since = 0.0
        self._last = 0
        self._call: IDelayedCall | None = None

    def paused(self) -> None:
        """The client's socket is full."""
        self._paused = True
        self._mark()
        # The timer of an earlier pause may still run: a fast response is paused many times a second.
        if self._call is None:
            self._call = self._clock.callLater(LOOK_SECONDS, self._look)

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

    def _look(self) -> None:
        self._call = None
        if not self._paused:
            return
        self._call = self._clock.callLater(LOOK_SECONDS, self._look)
        if self._unsent() != self._last:
            self._mark()
            self._moved()
        elif not self._reported and self._since + LOOK_SECONDS <= self._clock.seconds():
            self._reported = True
            self._report(self._since)

    def _moved(self) -> None:
        if self._reported:
            self._reported = False
            self._report(None)
