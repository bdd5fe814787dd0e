"""The relay: one exchange carried to one server and back.

Bytes go on as they came, with back-pressure both ways; whoever leaves is noticed by the other side at once. It
decides nothing about models, keys or errors' wording: it reports how the exchange ended.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any, Protocol

from attrs import define
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer
from twisted.python.failure import Failure
from zope.interface import implementer

from llamaswap.errors import BadUpstream, ClientGone, UpstreamDeclined, UpstreamTruncated, UpstreamUnreachable
from llamaswap.proxy.exchange import BodySource, Exchange, Headers, RequestHead
from llamaswap.proxy.framing import CHUNKED, LAST_CHUNK, ResponseHead, as_chunk, write_head
from llamaswap.proxy.pool import Pool
from llamaswap.proxy.reader import ReaderWatch, Report
from llamaswap.proxy.task import Future
from llamaswap.proxy.tunnel import Tunnel
from llamaswap.proxy.upstream import UpstreamConnection, UpstreamTarget
from llamaswap.wire.headers import comma_items, to_client
from llamaswap.wire.sse import DONE

JOIN_LIMIT = 64 * 1024  # up to here one copy is cheaper than a second system call
# A larger body, or one of unknown size, may be unrepeatable: it gets a fresh connection, for an idle one might be
# closing just now. What it costs to connect is little beside such a body.
FRESH_BEYOND = 1024 * 1024
BODY_METHODS = (b"POST", b"PUT", b"PATCH")
_ONE_LINE = bytes.maketrans(b"\r\n", b"  ")  # blanks to JSON, ends of a field to a stream of events


class ResponseObserver(Protocol):
    """Hears what passes to the client, de-framed. Must be cheap: the stream waits for it."""

    def head(self, status: int, headers: Headers) -> None:
        """The answer's status and its headers as the client gets them."""

    def data(self, data: bytes) -> None:
        """Some body bytes."""

    def ended(self) -> None:
        """The answer is complete."""


@define
class ForwardOutcome:
    """How an exchange ended well. `bytes_sent`: body bytes without framing; `reason`: "complete" or "tunnel"."""

    status: int
    bytes_sent: int
    reason: str = "complete"


class RequestForwarder:
    """Carries exchanges over the pool's connections. `clock` provides IReactorTime."""

    def __init__(self, clock: Any, pool: Pool) -> None:
        self._clock = clock
        self._pool = pool

    def carry(
        self,
        exchange: Exchange,
        upstream: UpstreamTarget,
        *,
        head: RequestHead,
        body: BodySource,
        observer: ResponseObserver | None = None,
        answered: bool = False,
        decline: Container[int] = (),
        reader: Report | None = None,
    ) -> Future[ForwardOutcome]:
        """Carry one request, already rewritten for the server, and its answer.

        `head.target` and the headers go out as they are; only the body's framing headers and `Expect` are ours.
        The answer's headers cross as `fields.to_client` says. With `answered` a head has gone to the client before: the
        body is appended de-framed, and a JSON document as an event, since events went before it. An answer whose status
        is in `decline` is not passed on. `reader` hears since when the client takes nothing of its response any more,
        and None when it reads again.

        The result is to be awaited in a Flow. It fails with UpstreamUnreachable (no answer byte came), BadUpstream (no
        head that could be passed on), UpstreamDeclined, UpstreamTruncated (after the head: nothing was said to the
        sink), ClientGone.
        Cancelling it closes the server's connection at once.
        """
        carriage = _ForwardedExchange(
            *(self._clock, self._pool, exchange, upstream, head, body, observer, answered, decline), reader
        )
        carriage.go()
        return carriage.result


@implementer(IPushProducer)
class _ForwardedExchange:
    """One exchange under way: body consumer, answer receiver, and the producer of the answer."""

    __slots__ = (
        "_answered",
        "_body",
        "_body_done",
        "_chunking",
        "_clock",
        "_connection",
        "_decline",
        "_dialling",
        "_exchange",
        "_feeding",
        "_feeding_registered",
        "_first",
        "_head",
        "_observe",
        "_observer",
        "_opening",
        "_over",
        "_passed",
        "_patience",
        "_pool",
        "_producing",
        "_raw",
        "_reader",
        "_reader_watch",
        "_request",
        "_retried",
        "_reused",
        "_sink",
        "_status",
        "_tunnel",
        "_upgrade",
        "_upstream",
        "_watching",
        "_write",
        "result",
    )

    def __init__(
        self,
        clock: Any,
        pool: Pool,
        exchange: Exchange,
        upstream: UpstreamTarget,
        head: RequestHead,
        body: BodySource,
        observer: ResponseObserver | None,
        answered: bool,
        decline: Container[int],
        reader: Report | None,
    ) -> None:
        self._clock = clock
        self._pool = pool
        self._exchange = exchange
        self._sink = exchange.sink
        self._upstream = upstream
        self._request = head
        self._body = body
        self._observer = observer
        self._answered = answered
        self._decline = decline
        self.result: Future[ForwardOutcome] = Future(self._cancelled)
        self._over = False
        self._watching = False
        self._dialling: Deferred[UpstreamConnection] | None = None
        self._connection: UpstreamConnection | None = None
        self._tunnel: Tunnel | None = None
        self._reused = False
        self._retried = False
        # the request's way
        self._first: bytes | None = None  # the head, until it goes out with the first body bytes
        self._chunking = False
        self._body_done = False
        self._feeding: IPushProducer | None = None
        self._feeding_registered = False
        self._patience: IDelayedCall | None = None
        # the answer's way
        self._status = 0
        self._head: ResponseHead | None = None
        self._raw = True
        self._opening: bytes | None = None  # of the event that a document becomes; empty once it went out
        self._write: Callable[[bytes], None] = exchange.sink.write
        self._observe = observer.data if observer is not None else None
        self._passed = 0  # raw body bytes that went out by the sink's shortest way
        self._producing = False
        self._reader = reader
        self._reader_watch: ReaderWatch | None = None
        self._upgrade = b""

    # -- the way there

    def go(self) -> None:
        exchange = self._exchange
        if exchange.gone:
            self._fail(ClientGone())
            return
        exchange.on_gone(self._client_gone)
        self._watching = True
        length = self._body.length
        repeatable = length is not None and length <= FRESH_BEYOND
        connection = self._pool.take(self._upstream) if repeatable else None
        if connection is not None:
            self._reused = True
            self._ask(connection)
        else:
            self._dial()

    def _dial(self) -> None:
        self._reused = False
        self._dialling = dialling = self._pool.dial(self._upstream)
        dialling.addCallbacks(self._dialled, self._undialled)

    def _dialled(self, connection: UpstreamConnection) -> None:
        self._dialling = None
        if self._over:
            connection.abort()
        else:
            self._ask(connection)

    def _undialled(self, failure: Failure) -> None:
        self._dialling = None
        if not self._over:
            error = failure.value
            assert error is not None  # a dialler fails with an exception
            self._fail(error)

    def _ask(self, connection: UpstreamConnection) -> None:
        self._connection = connection
        request = self._request
        connection.begin(
            self, bodyless=request.method == b"HEAD", payload=self._observer is not None or self._must_deframe()
        )
        length = self._body.length
        headers: Headers = []
        for item in request.headers:
            size = len(item[0])
            if size == 14 or size == 17 or size == 6 or size == 7:
                name = item[0].lower()
                if name == b"content-length" or name == b"transfer-encoding" or name == b"expect":
                    continue
                if name == b"upgrade":
                    self._upgrade = item[1]
            headers.append(item)
        self._chunking = length is None
        if length is None:
            headers.append(CHUNKED)
        elif length or request.method in BODY_METHODS:
            headers.append((b"Content-Length", b"%d" % length))
        first = write_head(b"%b %b HTTP/1.1" % (request.method, request.target), headers)
        if length == 0:
            self._body_done = True
            connection.send(first)
            self._wait_for_head()
            return
        self._first = first
        feeding = self._body.start(self, keep=False)
        if self._over or self._connection is not connection:
            feeding.stopProducing()
            return
        if self._first is not None:
            # The body's bytes are still under way; its head need not wait for them.
            self._first = None
            connection.send(first)
        if not self._body_done:
            self._feeding = feeding
            self._feeding_registered = True
            connection.wire.registerProducer(feeding, True)

    def body_data(self, data: bytes) -> None:
        connection = self._connection
        if connection is None:
            return
        if self._chunking:
            data = as_chunk(data)
        first, self._first = self._first, None
        if first is not None:
            if len(data) <= JOIN_LIMIT:
                connection.send(first + data)
                return
            connection.send(first)
        connection.send(data)

    def body_ended(self) -> None:
        connection = self._connection
        if connection is None:
            return
        self._body_done = True
        if self._chunking:
            first, self._first = self._first, None
            connection.send(first + LAST_CHUNK if first is not None else LAST_CHUNK)
        self._stop_feeding()
        self._wait_for_head()

    def body_lost(self) -> None:
        self._client_gone()

    def body_refused(self, error: Exception) -> None:
        self._fail(error)

    def _wait_for_head(self) -> None:
        patience = self._upstream.timeouts.response_header
        if patience and self._head is None and not self._over:
            self._patience = self._clock.callLater(patience, self._no_head, patience)

    def _no_head(self, patience: float) -> None:
        self._patience = None
        self._fail(UpstreamUnreachable(self._upstream.where, f"no answer within {patience:g} s"))

    def _stop_feeding(self) -> None:
        self._feeding = None
        if self._feeding_registered:
            self._feeding_registered = False
            if self._connection is not None and not self._connection.closed:
                self._connection.wire.unregisterProducer()

    # -- the way back

    def _must_deframe(self) -> bool:
        return self._answered or self._exchange.head.version < (1, 1)

    def answer_interim(self, head: ResponseHead) -> None:
        if not self._answered and self._exchange.head.version >= (1, 1):
            self._sink.interim(head.status, head.reason, head.headers)

    def answer_began(self, head: ResponseHead, raw: bytes, pieces: list[bytes], ended: bool) -> None:
        if head.status in self._decline:
            self._fail(UpstreamDeclined(self._upstream.where, head.status))
            return
        self._head = head
        self._status = head.status
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        headers = self._client_headers(head)
        if self._observer is not None:
            self._observer.head(head.status, headers)
        if self._answered:
            self._raw = False
            self._opening = b"data: " if _is_json(headers) else None
            self.answer_data(raw, pieces, ended)
            return
        self._raw = not (head.until_close or (head.chunked and self._exchange.head.version < (1, 1)))
        if self._raw:
            data = raw
        elif len(pieces) == 1:
            data = pieces[0]
        else:
            data = b"".join(pieces)
        self._sink.head(head.status, head.reason, headers, raw=self._raw, data=data)
        if self._raw and not ended:
            self._write = self._sink.writer()
        self._continue(pieces, ended)

    def answer_data(self, raw: bytes, pieces: list[bytes], ended: bool) -> None:
        # Each chunk of a stream comes this way, hence the few steps.
        if self._raw:
            if raw:
                self._passed += len(raw)
                self._write(raw)
        else:
            if self._opening is not None:
                pieces = self._as_event(pieces, ended)
            for piece in pieces:
                self._sink.write(piece)
        self._continue(pieces, ended)

    def _as_event(self, pieces: list[bytes], ended: bool) -> list[bytes]:
        """Pieces of a JSON document as those of an event with one line, and of the end of the stream."""
        lines = [piece.translate(_ONE_LINE) for piece in pieces]
        if lines and self._opening:
            lines[0], self._opening = self._opening + lines[0], b""
        if ended:
            lines.append(DONE if self._opening else b"\n\n" + DONE)
        return lines

    def _continue(self, pieces: list[bytes], ended: bool) -> None:
        if self._over:
            return
        observe = self._observe
        if observe is not None:
            for piece in pieces:
                observe(piece)
        if ended:
            self._complete()
        elif not self._producing:
            # Not sooner: most answers are complete in their first read and need no producer.
            self._producing = True
            self._sink.register_producer(self)

    def _client_headers(self, head: ResponseHead) -> Headers:
        headers = to_client(head.headers)
        if head.chunked and self._exchange.head.version >= (1, 1):
            headers.extend(item for item in head.headers if len(item[0]) == 7 and item[0].lower() == b"trailer")
            headers.append(CHUNKED)
        elif self._request.method == b"HEAD":
            headers.extend(item for item in head.headers if item[0].lower() == b"transfer-encoding")
        return headers

    def pauseProducing(self) -> None:
        if self._connection is not None:
            self._connection.pause()
            if self._reader_watch is None:
                self._watch_reader()
            if self._reader_watch is not None:
                self._reader_watch.paused()

    def resumeProducing(self) -> None:
        if self._connection is not None:
            self._connection.resume()
            if self._reader_watch is not None:
                self._reader_watch.resumed()

    def stopProducing(self) -> None:
        # A lost transport says so here before it tells its protocol: who serves the exchange shall know why it ended.
        self._exchange.client_left()

    # -- upgrades

    def answer_upgraded(self, head: ResponseHead, raw_head: bytes, rest: bytes) -> None:
        connection = self._connection
        assert connection is not None  # it is the one that speaks
        offered = b",".join(value for name, value in head.headers if name.lower() == b"upgrade")
        if not self._upgrade or self._answered or not self._agreed(offered):
            self._fail(BadUpstream(self._upstream.where, "switched to a protocol nobody asked for"))
            return
        self._head, self._status = head, 101
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        if self._observer is not None:
            self._observer.head(101, head.headers)
        if self._watching:
            self._watching = False
            self._exchange.forget(self._client_gone)
        self._stop_feeding()
        client = self._sink.upgrade(raw_head)
        self._watch_reader()
        self._tunnel = Tunnel(
            client, connection.wire, closed=self._tunnelled, early_server=rest, reader=self._reader_watch
        )

    def _watch_reader(self) -> None:
        if self._reader is not None:
            self._reader_watch = ReaderWatch(self._clock, self._sink.unsent, self._reader)

    def _agreed(self, offered: bytes) -> bool:
        asked = comma_items(self._upgrade)
        return bool(offered) and all(token in asked for token in comma_items(offered))

    def _tunnelled(self) -> None:
        tunnel = self._tunnel
        self._connection = None
        if self._observer is not None and not self._over:
            self._observer.ended()
        self._succeed(ForwardOutcome(101, tunnel.sent if tunnel is not None else 0, "tunnel"))

    # -- ends

    def _complete(self) -> None:
        connection, head = self._connection, self._head
        assert connection is not None and head is not None  # an answer has come over it
        self._connection = None
        if self._producing:
            self._sink.unregister_producer()
        if self._body_done:
            self._pool.give(self._upstream, connection, head)
        else:
            # It answered before it had read the request: the rest would be taken for the next one.
            feeding, self._feeding = self._feeding, None
            if self._feeding_registered:
                self._feeding_registered = False
                if not connection.closed:
                    connection.wire.unregisterProducer()
            if feeding is not None:
                feeding.stopProducing()
            connection.abort()
        self._sink.finish()
        if self._observer is not None:
            self._observer.ended()
        self._succeed(ForwardOutcome(self._status, connection.received))

    def answer_broken(self, cause: str, *, silent: bool, malformed: bool) -> None:
        where = self._upstream.where
        if self._head is not None:
            self._fail(UpstreamTruncated(where, cause))
        elif malformed:
            self._fail(BadUpstream(where, cause))
        elif silent and self._reused and not self._retried and self._may_repeat():
            # The server closed an idle connection just as we used it: it has not seen this request.
            self._retried = True
            self._drop()
            self._body_done = False
            self._first = None
            self._dial()
        else:
            self._fail(UpstreamUnreachable(where, cause))

    def _may_repeat(self) -> bool:
        return self._body.length == 0 or self._body.replayable

    def _client_gone(self) -> None:
        self._fail(ClientGone())

    def _cancelled(self) -> None:
        self._fail(CancelledError())

    def _drop(self) -> None:
        """Let go of the server, at once."""
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        connection, self._connection = self._connection, None
        feeding, self._feeding = self._feeding, None
        if connection is not None:
            if self._feeding_registered and not connection.closed:
                connection.wire.unregisterProducer()
            connection.abort()
        self._feeding_registered = False
        if feeding is not None:
            feeding.stopProducing()
        dialling, self._dialling = self._dialling, None
        if dialling is not None:
            dialling.cancel()

    def _fail(self, error: BaseException) -> None:
        if self._over:
            return
        self._over = True
        if self._head is not None and self._connection is not None:
            self._exchange.last = b"\r\n" if self._connection.between_chunks else b"..."
        tunnel, self._tunnel = self._tunnel, None
        if tunnel is not None:
            tunnel.cut()
        self._drop()
        self._leave()
        if self._producing:
            self._sink.unregister_producer()
        self.result.fail(error)

    def _succeed(self, outcome: ForwardOutcome) -> None:
        if self._over:
            return
        self._over = True
        self._leave()
        self.result.settle(outcome)

    def _leave(self) -> None:
        if self._reader_watch is not None:
            self._reader_watch.stop()
        self._exchange.passed += self._passed
        if self._watching:
            self._watching = False
            self._exchange.forget(self._client_gone)


def _is_json(headers: Headers) -> bool:
    """Whether a body is a JSON document that can be read as it comes."""
    said = {name.lower(): value.lower() for name, value in headers}
    return b"json" in said.get(b"content-type", b"") and b"content-encoding" not in said
