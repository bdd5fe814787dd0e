"""Backoff: how long a model that fails repeatedly is not started, and when a failure counts.

A failed start costs the evicted models a reload, and a server that crashes on every request costs each client a useless
wait. One failure may be an accident, so the first pause is zero; from the second in a row on the pauses double. A
server that has worked, or an operator, ends the series. Pure; times are arguments.
"""

from __future__ import annotations

from llamaswap.config.schema.routing import FifoSettings
from llamaswap.errors import FailureRecord

STABLE_SECONDS = 60.0  # ready for so long, a server that crashes begins a new series of failures
WORKED_SECONDS = 1.0  # that a server has to live after a response: the response that kills it ends a moment before it
PAUSE_FACTOR = 2.0  # by which a pause grows with each failure in a row


def pause(fifo: FifoSettings, count: int) -> float:
    """How long a model is not started after its `count`-th failure in a row."""
    if count < 2:
        return 0.0
    return min(fifo.backoff_max, fifo.backoff * PAUSE_FACTOR ** min(count - 2, 60))


def failed_again(
    fifo: FifoSettings, model: str, earlier: FailureRecord | None, cause: str, now: float
) -> FailureRecord:
    """The record of one more failure after `earlier`."""
    count = 1 if earlier is None else earlier.count + 1
    return FailureRecord(model, "", count, now + pause(fifo, count), cause)


def has_worked(ready_at: float, worked_at: float | None, now: float) -> bool:
    """Whether a server that ends now has worked: it was ready for long, or lived on after its first response."""
    return now - ready_at >= STABLE_SECONDS or (worked_at is not None and now - worked_at >= WORKED_SECONDS)
