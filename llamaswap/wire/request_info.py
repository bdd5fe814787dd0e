"""What is known about one request under way, and who may watch it.

The pipeline writes these facts, the observers (in-flight list, activity, captures) read them. It must not
know who the observers are: a watcher is anything with `open`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from attrs import define, field

# complete: the whole answer went out · refused: the proxy answered with an error of its own · truncated: the
# server's answer broke off after its head · gone: the client left · cancelled: an operator ended it.
RequestOutcome = Literal["complete", "refused", "truncated", "gone", "cancelled"]


def nothing_held() -> None:
    """What `flush` does where nobody holds anything back."""


@define(eq=False)
class RequestInfo:
    """One request, from the moment its model is known to the end of its answer.

    `id` is a decimal, rising with every request. `path` is the path as received (the remainder for /upstream),
    `stored_path` the one after a leading /v or /audioapi is taken off. `model` is the resolved id, `requested` the
    name asked for after profile and selector. `headers` are the client's, as received. `started` is in
    the clock's seconds, `timestamp` in seconds since the epoch. `tracked` says whether it belongs into the in-flight
    list, `metered` whether into activity and captures. `cancel` ends the request; idempotent.

    While `loading` what passes is our own text about the load, none of the server's answer.

    What passes is told to the watchers a few pieces at a time. `flush` tells them what is still held back: call it
    before saying how far a request is. With `followed` nothing is held back, for somebody looks on all the time.

    `body` (the bytes after the filters, None where they were not held in memory) and `metadata` grow while the
    request moves on: read them when the request is over.
    """

    id: str
    method: str
    path: str
    stored_path: str
    model: str
    requested: str
    headers: Sequence[tuple[bytes, bytes]]
    remote_ip: str
    started: float
    timestamp: float
    streaming: bool
    tracked: bool
    metered: bool
    cancel: Callable[[], None] = field(repr=False)
    metadata: dict[str, str] = field(factory=dict)
    body: bytes | None = field(default=None, repr=False)
    loading: bool = False
    followed: bool = False
    flush: Callable[[], None] = field(default=nothing_held, repr=False)


class RequestObserver(Protocol):
    """Watches one request. Every call must be cheap: they stand between the server's bytes and the client."""

    def metadata_changed(self) -> None:
        """`facts.metadata` has a new entry."""

    def head(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """The answer's head as the client sees it; at most once."""

    def data(self, data: bytes) -> None:
        """Some bytes of the answer's body, without framing: one piece of it, or several that came one after another.
        They may still be content-encoded."""

    def closed(self, ending: RequestOutcome, error: Exception | None) -> None:
        """The request is over; exactly once, also when no head was ever sent."""


class RequestObserverFactory(Protocol):
    """Opens a scope for each request that it wants to see."""

    def open(self, facts: RequestInfo) -> RequestObserver | None:
        """A scope for this request, or None where it is none of this factory's business."""
