"""A coroutine that serves a request, run without Deferreds of its own.

What it awaits may be a Deferred or anything else that can be awaited like one. A request that has to wait for nothing
but its server's answer is so spared the half dozen calls that a Deferred costs at each of its ends.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from twisted.python.failure import Failure


class Under(Protocol):
    """Something under way: a Deferred, or a `Flow`."""

    def addBoth(self, callback: Callable[[Any], Any], /) -> Any:
        """Call back with a Failure or a value when it is over; at once if it is."""


def _nobody(result: Failure | None) -> None:
    """Nobody listens yet."""


class Flow:
    """Runs a coroutine, at once and as far as it gets, and then on whenever what it awaits is there."""

    __slots__ = ("_coroutine", "_listener", "_over", "_result")

    def __init__(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._coroutine = coroutine
        self._listener: Callable[[Failure | None], object] = _nobody
        self._over = False
        self._result: Failure | None = None
        self._go(None)

    def addBoth(self, callback: Callable[[Failure | None], object]) -> None:
        """Call back with None or a Failure when it is over; at once if it is. There is one listener."""
        if self._over:
            callback(self._result)
        else:
            self._listener = callback

    def _go(self, result: object) -> None:
        waiting: Under
        try:
            if isinstance(result, Failure):
                waiting = result.throwExceptionIntoGenerator(self._coroutine)
            else:
                waiting = self._coroutine.send(None)  # what it awaits knows the result
        except StopIteration:
            pass
        except BaseException:  # whatever it is belongs to whoever listens
            self._result = Failure()
        else:
            waiting.addBoth(self._go)
            return
        self._over = True
        self._listener(self._result)
        self._listener = _nobody
