"""How long a model that keeps failing is left alone, and when it counts as failing at all.

A failed start costs whoever was evicted for it a reload, and a server that crashes on every request costs each
client a wait for nothing. One failure proves nothing, so the first pause is none; from the second in a row on they
double. What was proved wrong is forgotten: by work done, by time, by an operator. Pure; times are arguments.
"""

from __future__ import annotations

from attrs import frozen

from llamaswap.errors import FailureRecord

STEADY = 60.0  # seconds ready after which a crash starts a new series of failures
OUTLIVED = 1.0  # seconds a server has to live after an answer: the answer it dies of ends a moment before it does
SOON = 2.0  # a pause grows by this factor with each failure in a row


@frozen
class Backoff:
    """The pauses: `first` seconds after the second failure in a row (0: never any), doubling up to `longest`."""

    first: float = 1.0
    longest: float = 60.0

    def pause(self, count: int) -> float:
        """How long to leave a model alone after its `count`-th failure in a row."""
        if count < 2:
            return 0.0
        return min(self.longest, self.first * SOON ** min(count - 2, 60))

    def failed_again(self, model: str, earlier: FailureRecord | None, cause: str, now: float) -> FailureRecord:
        """The record of one more failure after `earlier`."""
        count = 1 if earlier is None else earlier.count + 1
        return FailureRecord(model, "", count, now + self.pause(count), cause)


def proved(ready_at: float, worked_at: float | None, now: float) -> bool:
    """Whether a server that ends now had shown that it can work: it stood for long, or outlived its first answer."""
    return now - ready_at >= STEADY or (worked_at is not None and now - worked_at >= OUTLIVED)
