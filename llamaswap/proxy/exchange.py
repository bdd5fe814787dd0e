"""One request and its answer, as the relay sees them: a head, a body that may still be coming, and a sink.

Both doors build these: the front door from the listening socket's bytes, the Klein door from a twisted.web
request. Nothing here knows which one it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer, ITransport

from llamaswap.wire.headers import ResponseHeaders

Headers = list[tuple[bytes, bytes]]


_lowered: dict[bytes, bytes] = {}  # of names that came before: thousands of requests under way share them
LOWERED = 512


def _lower(name: bytes) -> bytes:
    lower = name.lower()
    if len(_lowered) < LOWERED and len(name) <= 32:
        _lowered[name] = lower
    return lower


@define  # made for every request: freezing doubles what that costs
class RequestHead:
    """A request's first lines. `target` is the raw request target (path?query), never decoded.

    `headers` keep order, case and repetition as received.
    """

    method: bytes
    target: bytes
    headers: Headers
    version: tuple[int, int] = (1, 1)
    _index: dict[bytes, bytes] | None = field(default=None, init=False, eq=False, repr=False)

    @property
    def path(self) -> bytes:
        """The raw path, without the query."""
        return self.target.partition(b"?")[0]

    @property
    def query(self) -> bytes:
        """The raw query, without the question mark; empty when absent."""
        return self.target.partition(b"?")[2]

    def first(self, name: bytes) -> bytes | None:
        """The first value of a header (`name` in lower case), or None."""
        index = self._index
        if index is None:
            index = self._index = {}
            for key, value in self.headers:
                index.setdefault(_lowered.get(key) or _lower(key), value)
        return index.get(name)


class BodyConsumer(Protocol):
    """Takes a request body's bytes as they come."""

    def body_data(self, data: bytes) -> None:
        """Some bytes (never empty, never framing)."""

    def body_ended(self) -> None:
        """The body is complete."""

    def body_lost(self) -> None:
        """The client left before the end."""

    def body_refused(self, error: Exception) -> None:
        """The client is there, but the rest of the body cannot be taken."""


class BodySource(Protocol):
    """A request body: still arriving, held in memory or spooled; readable again while `replayable`."""

    @property
    def length(self) -> int | None:
        """Total bytes (0: no body); None when unknown until its end (chunked, still arriving)."""

    @property
    def replayable(self) -> bool:
        """Whether `start` may be called once more from the first byte."""

    def hold(self, limit: int) -> Deferred[bytes]:
        """The whole body in memory; BodyTooLarge beyond `limit` bytes, ClientGone when it never came."""

    def start(self, consumer: BodyConsumer, *, keep: bool = True) -> IPushProducer:
        """Feed the consumer from the first byte; the producer pauses and resumes the source (back-pressure).

        With `keep` every byte stays readable again (large ones spooled); without it what passed may be
        forgotten, and `replayable` says whether it was. Stopping the producer ends this feeding only: the
        rest of the body waits for the next `start`.
        """

    def close(self) -> None:
        """Forget everything held or spooled, stop a running `start`. Idempotent."""


class ResponseSink(Protocol):
    """Where the answer goes. One of the two: `head` .. `write`* .. `finish`, or `upgrade`; `abort` at any time."""

    @property
    def started(self) -> bool:
        """Whether a head has gone out: from then on errors can only abort."""

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
        """After `head`: what does as `write` does, by the shortest way. Who writes by it a `raw` body says how much
        in the exchange's `passed`, for the sink does not see it."""

    def last_word(self, words: bytes, last: bytes) -> None:
        """Some more body bytes before an `abort`, if the framing lets any in at this point; `last` is the exchange's
        own."""

    def finish(self) -> None:
        """The answer is complete."""

    def abort(self) -> None:
        """Cut the connection so that the client sees a truncation, after a `last_word` has gone out. Idempotent."""

    def unsent(self) -> int:
        """Bytes given to the connection that the kernel has not taken yet: fewer after a while if the client reads."""

    def register_producer(self, producer: IPushProducer) -> None:
        """Pause and resume this producer as the client's socket fills and drains."""

    def unregister_producer(self) -> None:
        """The producer is done; resume nothing any more."""

    def upgrade(self, status_line_and_head: bytes) -> ITransport:
        """Send a 101 head verbatim and hand over the client's transport for a byte tunnel.

        What comes back has a settable `protocol` attribute, as Twisted's transports have: it receives the
        client's bytes, those already read included, and the loss of the connection.
        """


@define(eq=False)
class Exchange:
    """A request under way. `peer` is the client's socket address, `arrived` the clock's seconds at its head.

    `passed` counts the raw body bytes that went out by the sink's `writer`; `last` stands for what went out last of an
    answer that broke off: a line end where that was a whole chunk. Both are known when the carrying is over.
    """

    head: RequestHead
    body: BodySource
    sink: ResponseSink
    peer: str
    arrived: float
    secure: bool = False
    passed: int = field(default=0, init=False)
    last: bytes = field(default=b"", init=False)
    _gone: bool = field(default=False, init=False)
    _watchers: tuple[Callable[[], None], ...] = field(default=(), init=False)

    @property
    def gone(self) -> bool:
        """Whether the client has left."""
        return self._gone

    def on_gone(self, callback: Callable[[], None]) -> None:
        """Call back once when the client leaves; at once if it has."""
        if self._gone:
            callback()
        else:
            self._watchers = (*self._watchers, callback)

    def forget(self, callback: Callable[[], None]) -> None:
        """Do not call back any more. Idempotent."""
        if self._watchers:
            self._watchers = tuple(other for other in self._watchers if other != callback)

    def client_left(self) -> None:
        """The door says: the client's connection is lost. Only the first call counts."""
        if self._gone:
            return
        self._gone = True
        watchers, self._watchers = self._watchers, ()
        for callback in watchers:
            callback()
