"""One request and its response, as the proxy sees them: a head, a body that may still be arriving, and a sink.

A ClientConnection makes them from the listening socket's bytes, twisted_web_adapter from a request of the Klein app.
Nothing here knows which of the two it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer

from llamaswap.proxy.transport import Transport
from llamaswap.wire.credentials import WEBSOCKET_PROTOCOL
from llamaswap.wire.headers import ResponseHeaders

Headers = list[tuple[bytes, bytes]]


class KnownHead:
    """What was found out about a head, for later requests whose heads differ in nothing but their Content-Length.

    Each attribute belongs to the module that sets it, and depends on the head alone or says what else it depends on.
    """

    __slots__ = ("facts", "index", "logged", "routed")

    def __init__(self) -> None:
        self.index: dict[bytes, bytes] | None = None  # the first value of each header
        self.routed: bool | None = None  # whether the request goes to the proxy's handler
        self.facts: object = None  # of the model routes
        self.logged: object = None  # of the access log


@define(init=False)  # an own __init__ costs half of what attrs' and a hook behind it do
class RequestHead:
    """A request's first lines. `target` is the raw request target (path?query), never decoded; `path` and `query` are
    its parts.

    `headers` keep order, case and repetition as received. `written` are the lines as bytes, without the fields about
    the body's framing and the blank line, once it was sent.
    """

    method: bytes
    target: bytes
    headers: Headers
    version: tuple[int, int]
    path: bytes = field(eq=False, repr=False)
    query: bytes = field(eq=False, repr=False)
    known: KnownHead = field(eq=False, repr=False)
    written: bytes = field(eq=False, repr=False)

    def __init__(
        self,
        method: bytes,
        target: bytes,
        headers: Headers,
        version: tuple[int, int] = (1, 1),
        known: KnownHead | None = None,
    ) -> None:
        self.method, self.target, self.headers, self.version = method, target, headers, version
        self.path, _, self.query = target.partition(b"?")
        self.known = known or KnownHead()
        self.written = b""

    def first(self, name: bytes) -> bytes | None:
        """The first value of a header (`name` in lower case, not Content-Length), or None. Of the protocols of a
        websocket, which may be on several lines, the whole list."""
        index = self.known.index
        if index is None:
            index = self.known.index = {}
            for key, value in self.headers:
                lower = key.lower()
                if index.setdefault(lower, value) is not value and lower == WEBSOCKET_PROTOCOL:
                    index[lower] += b", " + value
        return index.get(name)


class BodyConsumer(Protocol):
    """Takes a request body's bytes as they arrive."""

    def body_data(self, data: bytes) -> None:
        """Some bytes (never empty, never framing)."""

    def body_ended(self) -> None:
        """The body is complete."""

    def body_failed(self, error: Exception) -> None:
        """The rest of the body will not come: ClientGone if the client left before its end, else why it was refused."""


class BodySource(Protocol):
    """A request body: still arriving, in memory or spooled; readable again while `replayable`."""

    @property
    def length(self) -> int | None:
        """Total bytes (0: no body); None when unknown until its end (chunked, still arriving)."""

    @property
    def replayable(self) -> bool:
        """Whether `start` may be called once more from the first byte."""

    def read_all(self, limit: int) -> Deferred[bytes]:
        """The whole body in memory. BodyTooLarge beyond `limit` bytes, ClientGone if it stays incomplete."""

    def start(self, consumer: BodyConsumer, *, keep: bool = True) -> IPushProducer:
        """Feed the consumer from the first byte; the producer pauses and resumes the source (back-pressure).

        With `keep` every byte can be read again (large bodies are spooled to disk); without it what passed may be
        discarded, and `replayable` says whether it was. Stopping the producer ends this reading only: the rest of the
        body waits for the next `start`.
        """

    def close(self) -> None:
        """Discard everything kept or spooled, and stop a running `start`. Idempotent."""


class ResponseSink(Protocol):
    """Where the response goes. Either `head` .. `write`* .. `finish`, or `upgrade`; `abort` at any time."""

    @property
    def started(self) -> bool:
        """Whether a head was sent: from then on errors can only abort."""

    def interim(self, status: int, reason: bytes, headers: Headers) -> None:
        """Send a 1xx head (never 100 or 101) before the real one."""

    def head(self, status: int, reason: bytes, headers: ResponseHeaders, *, raw: bool, data: bytes = b"") -> None:
        """Send the head, and `data` as the first body bytes in the same write.

        With `raw` the writes carry the body's framing themselves, as the headers announce it
        (Content-Length, chunked, or until close); without it the sink frames what it is given.
        """

    def write(self, data: bytes) -> None:
        """Some body bytes, sent at once."""

    def writer(self) -> Callable[[bytes], None]:
        """After `head`: the fastest function that does what `write` does. The caller adds the bytes of a `raw` body
        that it writes with it to the exchange's `passed`, because the sink does not count them."""

    def write_final(self, words: bytes, last: bytes) -> None:
        """The last body bytes before an `abort`, if the framing allows any at this point; `last` is the exchange's."""

    def finish(self) -> None:
        """The response is complete."""

    def abort(self) -> None:
        """Abort the connection, so that the client sees the truncation, after a `write_final` was sent. Idempotent."""

    def unsent(self) -> int:
        """Bytes written that the kernel has not taken yet; they become fewer while the client reads."""

    def register_producer(self, producer: IPushProducer) -> None:
        """Pause and resume this producer as the client's socket fills and drains."""

    def unregister_producer(self) -> None:
        """The producer is done."""

    def upgrade(self, status_line_and_head: bytes) -> Transport:
        """Send a 101 head verbatim and hand over the client's transport for a byte tunnel.

        The transport has a settable `protocol` attribute, as Twisted's have. That protocol receives the client's
        bytes, also those already read, and the loss of the connection.
        """


@define(eq=False)
class Exchange:
    """A request in progress; `gone` when its client has left.

    `client_address` is the socket's, `arrived` the clock's seconds at the request's head.

    `key_name` is that of the client's API key, `added_headers` are those that a server's response gets from us.

    `passed` counts the raw body bytes that went out by the sink's `writer`. `last` stands for the last bytes of a
    response that broke off: a line end if they completed a chunk. Both are final when the forwarding has ended.
    `translated`: the sink takes the server's body without its framing, because it sends another one.
    """

    head: RequestHead
    body: BodySource
    sink: ResponseSink
    client_address: str
    arrived: float
    secure: bool = False
    key_name: str = field(default="", init=False)
    added_headers: tuple[tuple[bytes, bytes], ...] = field(default=(), init=False)
    passed: int = field(default=0, init=False)
    last: bytes = field(default=b"", init=False)
    gone: bool = field(default=False, init=False)
    translated: bool = field(default=False, init=False)
    _watchers: tuple[Callable[[], None], ...] = field(default=(), init=False)

    def on_gone(self, callback: Callable[[], None]) -> None:
        """Call back once when the client leaves; at once if it has."""
        if self.gone:
            callback()
        else:
            self._watchers = (*self._watchers, callback)

    def forget(self, callback: Callable[[], None]) -> None:
        """Do not call this callback. Idempotent."""
        if self._watchers == (callback,):
            self._watchers = ()
        elif self._watchers:
            self._watchers = tuple(other for other in self._watchers if other != callback)

    def client_left(self) -> None:
        """The client's connection is lost. Only the first call counts."""
        if self.gone:
            return
        self.gone = True
        watchers, self._watchers = self._watchers, ()
        for callback in watchers:
            callback()
