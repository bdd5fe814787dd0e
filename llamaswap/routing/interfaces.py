"""What the router reports of itself, as records."""

from __future__ import annotations

from attrs import frozen

from llamaswap.scheduling.selectors import TargetChoice as TargetChoice  # for `web`

# What the key of a request's client adds to its priority, and what the key has used: of equal requests, that with less
# use goes first.
Standing = tuple[int, float]
NO_STANDING: Standing = (0, 0.0)
# Seconds. A queued request waits for a load or for another request to end. If neither is in progress, it was forgotten;
# a stop or another effect may take this long to be performed.
FORGOTTEN_AFTER = 15.0


@frozen
class WaitingRequest:
    """One waiting request. `position` is its 1-based position in the queue, 0 if its model is being loaded."""

    number: int
    model: str
    position: int
    age: float
    priority: int


@frozen
class WaitStatus:
    """What a waiting request can expect: the models being loaded now, whether its `own` model is one of them, and in
    how many seconds that should be ready (None: not known) if no more requests delay it."""

    loading: tuple[str, ...]
    own: bool
    eta: float | None


@frozen
class HealthSnapshot:
    """The ages of the oldest waiting request (None if none waits) and of the last decision, in seconds, and counts."""

    oldest_waiter: float | None
    last_decision: float
    waiting: int
    serving: int
    loading: int

    @property
    def stalled(self) -> bool:
        """Whether requests are queued but nothing is in progress that could serve them."""
        idle = not self.loading and not self.serving
        return self.oldest_waiter is not None and self.oldest_waiter > FORGOTTEN_AFTER and idle
