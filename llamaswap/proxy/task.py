"""Runs the coroutine of a request, with fewer calls than Deferreds need.

The coroutine may await Deferreds, and Futures. Most requests wait only for the response of their server; a Future costs
them a tenth of the calls of a Deferred.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, Protocol, TypeVar

from twisted.python.failure import Failure


class Awaitable(Protocol):
    """Something in progress: a Deferred, or a `Task`."""

    def addBoth(self, callback: Callable[[Any], object], /) -> object:
        """Call back with a Failure or a value when it is over; at once if it is."""


T = TypeVar("T")


def _ignore(result: object) -> None:
    """Stands for a listener that was not set yet, and for a canceller that has no effect any more."""


class Future(Generic[T]):
    """Like a Deferred with one listener; only awaiting it gives the outcome."""

    __slots__ = ("_cancel", "_error", "_listener", "_outcome", "_settled")

    def __init__(self, cancel: Callable[[BaseException | None], None]) -> None:
        self._cancel = cancel
        self._listener: Callable[[None], object] = _ignore
        self._settled = False
        self._outcome: T | None = None
        self._error: BaseException | None = None

    def settle(self, outcome: T) -> None:
        """Set the outcome. Call this or `fail`, once."""
        self._outcome = outcome
        self._notify()

    def fail(self, error: BaseException) -> None:
        """Set the error that awaiting raises."""
        self._error = error
        del error  # its traceback may come to refer to this frame
        self._notify()

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
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback refers to this frame, and so to the caller's: they would stay alive
        return self._outcome  # type: ignore[return-value] # settled

    def _notify(self) -> None:
        self._settled = True
        self._cancel = _ignore
        listener, self._listener = self._listener, _ignore
        listener(None)


class Task:
    """Runs a coroutine: at once until it has to wait, and on when what it awaits is there."""

    __slots__ = ("_coroutine", "_listener", "_over", "_result")

    def __init__(self, coroutine: Coroutine[Awaitable, None, None]) -> None:
        self._coroutine = coroutine
        self._listener: Callable[[Failure | None], object] = _ignore
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
                waiting = self._coroutine.send(None)  # the awaited object knows the result
        except StopIteration:
            pass
        except BaseException:  # the listener gets every kind of failure
            self._result = Failure()
        else:
            waiting.addBoth(self._go)
            return
        self._over = True
        self._listener(self._result)
        self._listener = _ignore


def forget_frames(error: BaseException) -> None:
    """Release the frames in the tracebacks of a handled error and of its causes.

    Twisted ties an awaited Deferred's error and its Failure to each other, and a frame may have its own error in a
    variable. The frames, and the bodies of the request in them, would stay in memory until a full garbage collection.
    """
    next_error: BaseException | None = error
    seen: set[int] = set()
    while next_error is not None and id(next_error) not in seen:
        seen.add(id(next_error))
        next_error.__traceback__ = None
        vars(next_error).pop("__failure__", None)
        next_error = next_error.__cause__ or next_error.__context__
