"""Waits for work that goes on if the waiting client leaves."""

from __future__ import annotations

from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaswap.errors import LlamaswapError, plain_error
from llamaswap.routing.swaps import LOGGED_ERRORS

log = Logger()
T = TypeVar("T")


def shielded(work: Deferred[T], what: str) -> Deferred[T]:
    """A Deferred that fires as `work` does, but whose cancellation leaves `work` alone.

    Klein cancels a handler when its client leaves, but a model that is being stopped must still be stopped. After a
    cancellation, a failure is logged as that of `what`. Several clients may wait for work that does not fail.
    """
    waiting: Deferred[T] = Deferred()

    def succeeded(result: T) -> T:
        if not waiting.called:
            waiting.callback(result)
        return result

    def failed(failure: Failure) -> None:
        if waiting.called:
            log_failure(failure, what)
        else:
            waiting.errback(failure)

    work.addCallbacks(succeeded, failed)
    return waiting


def log_failure(failure: Failure, what: str) -> None:
    """Log the failure of work for which no client waits, unless it is logged; the event stream shows it to all."""
    if failure.check(*LOGGED_ERRORS):
        return
    if failure.check(LlamaswapError):
        log.warn("{what} failed: {reason}", what=what, reason=plain_error(failure.getErrorMessage()))
    else:
        log.failure("{what} failed", failure=failure, what=what)
