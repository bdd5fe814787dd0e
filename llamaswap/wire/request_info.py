"""What is known about one request under way, and the interface of those who observe it.

The proxy handler fills the record in and calls the observers (in-flight list, activity, captures). It does not know
who they are: an observer is what a RequestObserverFactory opens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from attrs import Factory, define, field

from llamaswap.errors import RequestError
from llamaswap.wire.headers import Header, ResponseHeaders

# complete: the whole response went out · refused: the proxy answered with an error of its own · truncated: the
# server's response broke off after its head · gone: the client left · cancelled: an operator ended it.
RequestOutcome = Literal["complete", "refused", "truncated", "gone", "cancelled"]


class TokenCharge(Protocol):
    """The tokens that one request counts against the limits of its key.

    `refusal` is set if a limit refuses the request. `headers` tell the client how much is left. `standing` are what the
    key adds to the request's priority, and what the key has used: of equal requests, that with less goes first.
    """

    refusal: RequestError | None
    headers: tuple[Header, ...]
    standing: tuple[int, float]

    def settle(self, tokens: int) -> None:
        """The request used this many tokens; less than 0 if that is unknown."""


@define(eq=False)
class RequestInfo:
    """One request, from the moment its model is known to the end of its response.

    `id` is a decimal that rises with every request. `path` is the path as received (the remainder for /upstream),
    `stored_path` the one without a leading /v or /audioapi. `model` is the resolved id, `requested` the name asked for
    after profile and selector. `server` is the model itself or its replica that serves the request. `headers` are the
    client's, with our API keys replaced. `started` is in the clock's seconds, `timestamp` in seconds since the epoch.
    `tracked` says whether the request belongs in the in-flight list, `metered` whether it belongs in activity and
    captures.

    `key_name` is the name of the client's API key, "" if it has none; `charge` is set if the key has limits.

    While `loading` the response data is our own text about the load, not the server's.

    Small pieces of the response reach the observers a few at a time; `flush` passes on what is buffered, so call it
    before reporting progress. With `followed` nothing is buffered, because an event client watches all the time.

    `captured_body` (the request's body after the filters, None if it was not kept in memory) and `metadata` change
    while the request moves on: read them when it has ended.
    """

    id: str
    method: str
    path: str
    stored_path: str
    model: str
    requested: str
    headers: Sequence[Header]
    remote_ip: str
    started: float
    timestamp: float
    streaming: bool
    tracked: bool
    metered: bool
    metadata: dict[str, str] = field(factory=dict)
    captured_body: bytes | None = field(default=None, repr=False)
    loading: bool = False
    followed: bool = False
    key_name: str = ""
    charge: TokenCharge | None = None
    server: str = field(default=Factory(lambda self: self.model, takes_self=True))

    def cancel(self) -> None:
        """End the request. Idempotent."""

    def flush(self) -> None:
        """Pass buffered pieces on to the observers."""


class RequestObserver(Protocol):
    """Observes one request. Every call must be cheap: the response waits for it."""

    def granted(self) -> None:
        """A server is ready and reserved for the request; once for each attempt."""

    def retargeted(self) -> None:
        """The request goes on to another model, because the one before could not serve it."""

    def head(self, status: int, headers: ResponseHeaders) -> None:
        """The response's head as the client receives it; at most once."""

    def data(self, data: bytes) -> None:
        """Some bytes of the response's body, without framing: one piece or several joined, perhaps content-encoded."""

    def ended(self, outcome: RequestOutcome, error: Exception | None) -> None:
        """The request is over; called exactly once, also if no head was ever sent."""


class RequestObserverFactory(Protocol):
    """Opens an observer for each request that it is interested in."""

    def open(self, request: RequestInfo) -> RequestObserver | None:
        """An observer of this request, or None."""
