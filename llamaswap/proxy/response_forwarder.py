"""One response on its way from the server to the client: its head, its body with back-pressure, or a tunnel."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import TYPE_CHECKING, Protocol

from attrs import define, evolve, field
from twisted.internet.interfaces import IPushProducer, IReactorTime
from zope.interface import implementer

from llamaswap.errors import BadUpstream, UpstreamDeclined, UpstreamTruncated, UpstreamUnreachable
from llamaswap.proxy.exchange import Exchange, ResponseSink
from llamaswap.proxy.fastpath.known_heads import to_client
from llamaswap.proxy.framing import ResponseHead
from llamaswap.proxy.reader import ReaderWatch, ReportStall
from llamaswap.proxy.tunnel import Tunnel
from llamaswap.wire.headers import ResponseHeaders, comma_items
from llamaswap.wire.sse import DONE

if TYPE_CHECKING:
    from llamaswap.proxy.forward import RequestSender
    from llamaswap.proxy.upstream import UpstreamTarget

_ONE_LINE = bytes.maketrans(b"\r\n", b"  ")  # white space in JSON, but the end of a field in a stream of events


class ResponseObserver(Protocol):
    """Sees what the client receives, without framing. Must be cheap: the stream waits for it."""

    def response_head(self, status: int, headers: ResponseHeaders) -> None:
        """The response's status and headers."""

    def response_data(self, data: bytes) -> None:
        """Some bytes of its body."""


@define
class ForwardOutcome:
    """How a response ended well. `bytes_sent`: bytes of its body without framing; `reason`: "complete" or "tunnel"."""

    status: int
    bytes_sent: int
    reason: str = "complete"


class ReceiveState:
    """How far a response has got on its way to the client."""

    WAITING = "waiting"
    STREAMING = "streaming"
    TUNNELLING = "tunnelling"
    ENDED = "ended"


@implementer(IPushProducer)
@define(eq=False)
class ResponseForwarder:
    """Receives one response and passes it on; the producer of what the client reads.

    `sending` is the request that the response belongs to; it owns the server's connection.
    """

    _clock: IReactorTime
    _exchange: Exchange
    _sink: ResponseSink
    _upstream: UpstreamTarget
    _observer: ResponseObserver | None
    _decline: Container[int]
    _reader: ReportStall | None
    _passing: Callable[[bytes], None] | None
    appended: bool  # whether the body follows a head that went out before
    sending: RequestSender = field(init=False)
    _observe: Callable[[bytes], None] | None = field(default=None, init=False)
    _write: Callable[[bytes], None] = field(init=False)
    _reader_watch: ReaderWatch | None = field(default=None, init=False)  # from the first time that the client is slow
    _state: str = field(default=ReceiveState.WAITING, init=False)
    _head: ResponseHead | None = field(default=None, init=False)
    _raw: bool = field(default=True, init=False)  # whether the body's framing is passed on as it came
    _event_start: bytes | None = field(default=None, init=False)  # of the event that a document becomes; then empty
    _passed: int = field(default=0, init=False)  # bytes, with framing, that went out by the sink's `writer`
    _producing: bool = field(default=False, init=False)
    _tunnel: Tunnel | None = field(default=None, init=False)

    @property
    def begun(self) -> bool:
        """Whether the response's head has been received."""
        return self._head is not None

    @property
    def needs_payload(self) -> bool:
        """Whether the body without its framing is needed too: by an observer, for an addition, or for HTTP/1.0."""
        exchange = self._exchange
        return self._observer is not None or self.appended or exchange.translated or exchange.head.version < (1, 1)

    # -- what the connection calls -------------------------------------------------------------------------
    # `raw` is the body as received, with its framing; `pieces` its payload, if that is needed.

    def response_interim(self, head: ResponseHead) -> None:
        """A 1xx head other than 100 and 101."""
        if not self.appended and self._exchange.head.version >= (1, 1):
            self._sink.interim(head.status, head.reason, head.headers)

    def response_began(self, head: ResponseHead, raw: bytes, pieces: list[bytes], ended: bool) -> None:
        """The head, the part of the body that came in the same read, and whether that was all."""
        if head.status in self._decline:
            self.sending.fail(UpstreamDeclined(self._upstream.where, head.status))
            return
        self._state = ReceiveState.STREAMING
        self._head = head
        self.sending.head_received()
        request = self._exchange.head
        chunks = head.chunked and request.version >= (1, 1) and not self._exchange.translated
        headers = to_client(head, chunked=chunks)
        added = [*self._exchange.added_headers]
        if not head.chunked and request.method == b"HEAD":
            added += [item for item in head.headers if item[0].lower() == b"transfer-encoding"]
        if added:  # not in place: the headers are shared with later responses
            headers = evolve(headers, items=[*headers.items, *added], known=None)
        if self._observer is not None:
            self._observer.response_head(head.status, headers)
            self._observe = self._observer.response_data
        if self.appended:
            self._raw = False
            self._event_start = b"data: " if headers.plain_json else None
            self.response_more(raw, pieces, ended)
            return
        self._raw = (chunks or head.length is not None) and not self._exchange.translated
        data = raw if self._raw else b"".join(pieces)
        self._sink.head(head.status, head.reason, headers, raw=self._raw, data=data)
        if self._raw and not ended:
            self._write = self._sink.writer()
        self._observe_and_go_on(pieces, ended)

    def response_more(self, raw: bytes, pieces: list[bytes], ended: bool) -> None:
        """More of the body. Each chunk of a stream comes this way, hence the few steps."""
        if self._raw:
            if raw:
                self._passed += len(raw)
                self._write(raw)
        else:
            if self._event_start is not None:
                pieces = self._as_event(pieces, ended)
            for piece in pieces:
                self._sink.write(piece)
        self._observe_and_go_on(pieces, ended)

    def response_upgraded(self, head: ResponseHead, raw_head: bytes, rest: bytes) -> None:
        """A 101: the transport belongs to this object from now on; `rest` was read already."""
        offered = b",".join(value for name, value in head.headers if name.lower() == b"upgrade")
        asked = comma_items(self.sending.requested_upgrade)
        agreed = offered and all(item and item in asked for item in comma_items(offered))
        if not agreed or self.appended:
            self.sending.fail(
                BadUpstream(self._upstream.where, "switched to a protocol that the client did not ask for")
            )
            return
        self._state = ReceiveState.TUNNELLING
        self._head = head
        self.sending.head_received()
        if self._observer is not None:
            self._observer.response_head(101, ResponseHeaders.of(head.headers))
        self.sending.stop_body()
        connection = self.sending.detach_connection()
        try:
            client = self._sink.upgrade(raw_head)
        except BadUpstream as error:  # a response that is translated cannot be a tunnel
            connection.abort()
            self.sending.fail(error)
            return
        self._tunnel = Tunnel(
            client,
            connection.wire,
            closed=self._tunnel_closed,
            early_server=rest,
            reader=self._watch_reader(),
            passing=self._passing,
        )

    def response_broken(self, cause: str, *, silent: bool, malformed: bool) -> None:
        """The response ends too early. `silent`: not a byte of it came."""
        if self._state is ReceiveState.STREAMING:
            self.sending.fail(UpstreamTruncated(self._upstream.where, cause))
        elif malformed:
            self.sending.fail(BadUpstream(self._upstream.where, cause))
        elif not self.sending.retry(silent):
            self.sending.fail(UpstreamUnreachable(self._upstream.where, cause))

    # -- the body ------------------------------------------------------------------------------------------

    def _observe_and_go_on(self, pieces: list[bytes], ended: bool) -> None:
        if self._state is not ReceiveState.STREAMING:
            return
        observe = self._observe
        if observe is not None:
            for piece in pieces:
                observe(piece)
        if ended:
            self._complete()
        elif not self._producing:
            # Not sooner, because most responses are complete in their first read and need no producer.
            self._producing = True
            self._sink.register_producer(self)

    def _as_event(self, pieces: list[bytes], ended: bool) -> list[bytes]:
        """Pieces of a JSON document as those of an event with one line, and of the end of the stream."""
        lines = [piece.translate(_ONE_LINE) for piece in pieces]
        if lines and self._event_start:
            lines[0], self._event_start = self._event_start + lines[0], b""
        if ended:
            lines.append(DONE if self._event_start else b"\n\n" + DONE)
        return lines

    def _complete(self) -> None:
        head = self._head
        assert head is not None  # the body follows it
        self._state = ReceiveState.ENDED
        if self._producing:
            self._sink.unregister_producer()
        received = self.sending.release_connection(head)
        self._sink.finish()
        self.sending.succeed(ForwardOutcome(head.status, received))

    def _tunnel_closed(self) -> None:
        tunnel = self._tunnel
        self.sending.succeed(ForwardOutcome(101, tunnel.sent if tunnel is not None else 0, "tunnel"))

    def stop(self) -> None:
        """The request is over, for whatever reason."""
        state, self._state = self._state, ReceiveState.ENDED
        if state is ReceiveState.TUNNELLING and self._tunnel is not None:
            self._tunnel.abort()
        self._tunnel = None
        if state is ReceiveState.STREAMING and self._producing:
            self._sink.unregister_producer()
        if self._reader_watch is not None:
            self._reader_watch.stop()
        self._exchange.passed += self._passed

    # -- the client's back-pressure ------------------------------------------------------------------------

    def pauseProducing(self) -> None:
        self.sending.pause()
        watch = self._reader_watch or self._watch_reader()
        if watch is not None:
            watch.paused()

    def resumeProducing(self) -> None:
        self.sending.resume()
        if self._reader_watch is not None:
            self._reader_watch.resumed()

    def stopProducing(self) -> None:
        # A lost transport calls this before its protocol is notified of the loss; the handler needs the right cause.
        self._exchange.client_left()

    def _watch_reader(self) -> ReaderWatch | None:
        if self._reader is not None:
            self._reader_watch = ReaderWatch(self._clock, self._sink.unsent, self._reader)
        return self._reader_watch
