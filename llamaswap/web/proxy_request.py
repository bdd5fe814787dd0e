"""One request on its way: what it is, who watches its answer, and where it stands in the queue."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from attrs import define, field

from llamaswap.config import Config, Model, Peer
from llamaswap.proxy.exchange import BodySource, Exchange, Headers, RequestHead
from llamaswap.wire import headers as header_rules
from llamaswap.wire.request_info import RequestInfo, RequestObserver
from llamaswap.wire.sse import Tail

TOGETHER = 8  # small pieces of an answer that are told to its watchers at once
SMALL_PIECE = 2048  # bytes; what is larger is told when it comes


@define(eq=False)
class ProxyRequest:
    """One request whose model is known. `head` and `body` are what will be sent; `path` is for errors' dialect.

    `model` is the local model, else `peer` the peer; neither: nobody has it. `loading` allows the loading stream,
    `idle_reason` says why this request must not load the model (None: it may), `bypass` that it is served beside the
    scheduler. `tracked` and `metered` tell who watches. `prepare` does what is left before sending (filters); its
    failure is recorded like any other. `fallbacks` make the jobs of the targets to turn to, in order, should
    this one fail before a byte of an answer was seen.
    """

    exchange: Exchange
    path: str
    head: RequestHead
    body: BodySource
    config: Config
    requested: str
    model: Model | None = None
    peer: Peer | None = None
    stored_path: str = ""
    streaming: bool = False
    tracked: bool = True
    metered: bool = True
    loading: bool = False
    bypass: bool = False
    idle_reason: str | None = None
    key_headers: frozenset[bytes] = frozenset()
    metadata: Mapping[str, str] = field(factory=dict)
    prepare: Callable[[ProxyRequest], Awaitable[None]] | None = None
    fallbacks: list[Callable[[], ProxyRequest]] = field(factory=list)
    facts: RequestInfo | None = None
    cancelled: bool = False
    phase: str = "new"  # then: waiting, asking
    stop: Callable[[], None] | None = None

    @property
    def name(self) -> str:
        """The resolved model; what was asked for where nothing has it."""
        return self.model.id if self.model is not None else self.requested

    def turn_to(self, other: ProxyRequest) -> None:
        """Aim where `other` aims; what was begun (facts, watchers) goes on."""
        self.requested, self.model, self.peer = other.requested, other.model, other.peer
        self.head, self.body, self.prepare = other.head, other.body, other.prepare
        self.loading, self.bypass, self.idle_reason = other.loading, other.bypass, other.idle_reason
        if self.facts is not None:
            self.facts.model, self.facts.requested = self.name, self.requested

    def cancel(self) -> None:
        """An operator ends the request. Idempotent."""
        if not self.cancelled:
            self.cancelled = True
            if self.stop is not None:
                self.stop()


@define(eq=False)
class ObserverFanout:
    """Tells every scope what passes to the client, and remembers what an error must know of it.

    Small pieces are told some at a time: to look at each of them is the greater part of what a stream costs.
    """

    scopes: Sequence[RequestObserver]
    facts: RequestInfo | None = None
    status: int = 0
    events: bool = False
    _tail: Tail = field(factory=Tail)
    _held: list[bytes] = field(factory=list)
    _most: int = 1  # pieces to hold: the very first is told at once

    def head(self, status: int, headers: Headers) -> None:
        """The first head counts: behind a loading stream the server's own is never seen by the client."""
        if self.status:
            return
        self.status = status
        self.events = header_rules.is_event_stream(headers)
        for scope in self.scopes:
            scope.head(status, headers)

    def data(self, data: bytes) -> None:
        """Some body bytes."""
        if self._most == 1 and not self.events:
            # A document, most often whole in its first piece: nothing to hold.
            self._most = 1 if self.facts is not None and self.facts.loading else TOGETHER
            for scope in self.scopes:
                scope.data(data)
            return
        held = self._held
        held.append(data)
        if len(held) >= self._most or len(data) > SMALL_PIECE or (self.facts is not None and self.facts.followed):
            self.flush()

    def flush(self) -> None:
        """Tell what is held back."""
        held = self._held
        if not held:
            return
        self._held = []
        data = held[0] if len(held) == 1 else b"".join(held)
        if self.events:
            self._tail.feed(data)
        for scope in self.scopes:
            scope.data(data)
        # What we say ourselves while a model loads must not be taken for the server's words.
        self._most = 1 if self.facts is not None and self.facts.loading else TOGETHER

    @property
    def clean(self) -> bool:
        """Whether the stream stands between two events."""
        self.flush()
        return self._tail.clean

    def ended(self) -> None:
        """The end is told by whoever carries."""


@define(eq=False)
class ReportedPosition:
    """The newest queue position, kept until somebody shows it."""

    also: Callable[[int], None] | None = None
    latest: int | None = None
    listener: Callable[[int], None] | None = None

    def told(self, position: int) -> None:
        """The request stands there now."""
        self.latest = position
        if self.also is not None:
            self.also(position)
        if self.listener is not None:
            self.listener(position)

    def pass_to(self, listener: Callable[[int], None]) -> None:
        """From now on somebody shows it."""
        self.listener = listener
        if self.latest is not None:
            listener(self.latest)
