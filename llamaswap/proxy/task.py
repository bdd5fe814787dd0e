"""A coroutine that serves a request, run without Deferreds of its own.

What it awaits may be a Deferred or anything else that can be awaited like one. A request that has to wait for nothing
but its server's answer is so spared the half dozen calls that a Deferred costs at each of its ends.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, Protocol, TypeVar

from twisted.python.failure import Failure


class Awaitable(Protocol):
    """Something under way: a Deferred, or a `Task`."""

    def addBoth(self, callback: Callable[[Any], Any], /) -> Any:
        """Call back with a Failure or a value when it is over; at once if it is."""


T = TypeVar("T")


def _nobody(result: object) -> None:
    """Nobody listens yet."""


class Future(Generic[T]):
    """What one flow awaits: like a Deferred with one reader, whose outcome only awaiting tells."""

    __slots__ = ("_cancel", "_error", "_listener", "_outcome", "_settled")

    def __init__(self, cancel: Callable[[BaseException | None], None]) -> None:
        self._cancel = cancel
        self._listener: Callable[[None], object] = _nobody
        self._settled = False
        self._outcome: T | None = None
        self._error: BaseException | None = None

    def settle(self, outcome: T) -> None:
        """It has come. Once, or `fail` once."""
        self._outcome = outcome
        self._tell()

    def fail(self, error: BaseException) -> None:
        """It will not come: awaiting raises this."""
        self._error = error
        self._tell()

    def cancel(self, error: BaseException | None = None) -> None:
        """Ask its maker to end the work and fail it, with this error if one is given. Without effect once settled."""
        if not self._settled:
            self._cancel(error)

    def addBoth(self, callback: Callable[[None], object]) -> None:
        """Call back when it is settled; at once if it is. There is one listener."""
        if self._settled:
            callback(None)
        else:
            self._listener = callback

    def __await__(self) -> Generator[Future[T], None, T]:
        while not self._settled:
            yield self
        error, self._error = self._error, None  # a traceback must not keep what it leads to
        if error is not None:
            raise error
        return self._outcome  # type: ignore[return-value] # settled

    def _tell(self) -> None:
        self._settled = True
        self._cancel = _nothing
        listener, self._listener = self._listener, _nobody
        listener(None)


def _nothing(error: BaseException | None) -> None:
    """The future is settled."""


class Task:
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
        waiting: Awaitable
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
