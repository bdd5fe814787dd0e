"""One request of a client's connection: from its head to the end of its body, its response and its handling.

Here are those of requests for the proxy; `site_transaction` has those for the twisted.web site.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaswap.proxy.bodies import BytesBody
from llamaswap.proxy.exchange import BodySource, Exchange, Headers, RequestHead, ResponseSink
from llamaswap.proxy.fastpath.direct_write import unsent_bytes
from llamaswap.proxy.framing import LAST_CHUNK, ChunkWalker, Framing, as_chunk
from llamaswap.proxy.incoming_body import SpooledBody
from llamaswap.proxy.response_framer import ResponseFramer
from llamaswap.proxy.transport import Transport
from llamaswap.proxy.tunnel import ClientPipe
from llamaswap.wire.headers import ResponseHeaders

if TYPE_CHECKING:
    from llamaswap.proxy.client_connection import ClientConnection

log = Logger()


class HttpTransaction(ABC):
    """One request of a connection, from its head to the end of its body, its response and its handling."""

    __slots__ = ("_left", "_walker", "body_done", "connection", "keep_alive")

    def __init__(self, connection: ClientConnection, framing: Framing) -> None:
        length = framing.length
        self.connection = connection
        self.keep_alive = framing.keep_alive
        self.body_done = length == 0
        self._left = length or 0
        self._walker = ChunkWalker() if length is None else None

    def feed(self, data: bytes) -> int:
        """Take the part of `data` that belongs to this request's body; returns its size."""
        walker = self._walker
        if walker is None:
            if len(data) > self._left:
                data = data[: self._left]
            used = len(data)
            self._left -= used
            self.body_done = not self._left
            self.body_received(data, [data])
            return used
        pieces: list[bytes] = []
        used = walker.feed(data, pieces)
        self.body_done = walker.done
        self.body_received(data if used == len(data) else data[:used], pieces)
        return used

    @property
    def body_left(self) -> int | None:
        """Bytes of the body still to come; None if unknown."""
        return self._left if self._walker is None else None

    @property
    @abstractmethod
    def wants_body(self) -> bool:
        """Whether to go on reading the body."""

    @abstractmethod
    def body_received(self, raw: bytes, pieces: list[bytes]) -> None:
        """Some bytes of the body, with their framing and as pieces without it."""

    @abstractmethod
    def lost(self, reason: Failure) -> None:
        """The connection is lost."""

    @abstractmethod
    def body_failed(self) -> bool:
        """The rest of the body cannot be taken; returns whether a response may still be given."""


class ProxyTransaction(HttpTransaction):
    """A request that became an exchange, and the sink of its response. `whole` is its body, if that came with the head
    completely."""

    __slots__ = (
        "_final_data_sent",
        "_framer",
        "_producing",
        "_request",
        "_response_sent",
        "_sent",
        "exchange",
        "response_closed",
        "spooled_body",
        "waits_for_continue",
    )

    def __init__(self, connection: ClientConnection, head: RequestHead, framing: Framing, whole: bytes | None) -> None:
        super().__init__(connection, framing)
        factory = connection.owner
        self._framer: ResponseFramer | None = None
        self._request = head
        self._producing = False
        self._final_data_sent = False  # the final bytes say why the response is incomplete
        self._response_sent = False
        self._sent = 0
        self.response_closed = False  # nothing more is written: the response is complete, or will never be
        self.spooled_body: SpooledBody | None = None
        body: BodySource
        if whole is not None:
            self.waits_for_continue = False
            self.body_done = True
            self._left = 0
            body = BytesBody(whole)
        else:
            self.waits_for_continue = framing.expects and not self.body_done
            body = self.spooled_body = SpooledBody(
                factory.clock,
                framing.length,
                changed=connection.reading_changed,
                continue_=self._continue,
                threshold=factory.spool_threshold,
                folder=factory.spool_folder,
                memory=factory.memory,
                disk=factory.disk,
            )
        self.exchange: Exchange | None = Exchange(
            head, body, self, connection.client_address, factory.clock.seconds(), connection.secure
        )

    # -- the request's way in

    @property
    def wants_body(self) -> bool:
        return self.spooled_body is None or self.spooled_body.wants_body

    def body_received(self, raw: bytes, pieces: list[bytes]) -> None:
        self.waits_for_continue = False
        body = self.spooled_body
        if body is None:
            return
        for piece in pieces:
            if piece:
                body.arrived(piece)
        if self.body_done:
            body.finished()

    def _continue(self) -> None:
        if self.waits_for_continue and self._framer is None:
            self.waits_for_continue = False
            self.connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def lost(self, reason: Failure) -> None:
        if self.exchange is not None:
            self.exchange.client_left()
        if self.spooled_body is not None:
            self.spooled_body.lost()
            self.spooled_body.close()

    def body_failed(self) -> bool:
        started = self.started
        self.response_closed = True
        self.lost(Failure(ConnectionDone()))
        return not started

    def handled(self, result: object) -> None:
        """The exchange's handler has ended."""
        exchange, self.exchange = self.exchange, None  # they know each other: untied, they need no garbage collector
        assert exchange is not None  # its handler ends once
        framer = self._framer
        connection = self.connection
        connection.owner.served(exchange, framer.status if framer is not None else 0, self._sent)
        if isinstance(result, Failure):
            if not exchange.gone:
                log.failure("handling {target} failed", result, target=exchange.head.target)
            self.abort()
        elif not self.response_closed and not exchange.gone:
            # The exchange is notified of a client that left before its connection is.
            log.error(
                "handler for {target} returned before the response was complete; the connection is closed",
                target=exchange.head.target,
            )
            self.abort()
        if self._response_sent:
            connection.completed(self)

    # -- the response's way out

    @property
    def started(self) -> bool:
        """Whether a head was sent."""
        return self._framer is not None

    def interim(self, status: int, reason: bytes, headers: Headers) -> None:
        """A 1xx head."""
        if not self.response_closed and self._framer is None:
            self.connection.send(ResponseFramer.interim(status, reason, headers))

    def head(self, status: int, reason: bytes, headers: ResponseHeaders, *, raw: bool, data: bytes = b"") -> None:
        """The head, with the first body bytes in the same write."""
        framer = self._framer = ResponseFramer(self._request, status, headers, raw=raw)
        self._sent += len(data)
        # A client that waits for 100 Continue may never send its body: where the next request begins is then unknown.
        if self.waits_for_continue or not framer.delimited or self.connection.closing:
            self.keep_alive = False
        if not self.response_closed:
            self.connection.send(framer.head(reason, keep_alive=self.keep_alive, data=data))

    def write(self, data: bytes) -> None:
        """Some body bytes."""
        framer = self._framer
        assert framer is not None  # the head comes first
        self._sent += len(data)
        if framer.body and not self.response_closed:
            self.connection.send(as_chunk(data) if framer.chunking else data)

    def writer(self) -> Callable[[bytes], None]:
        """Straight to the connection, if nothing has to be framed."""
        framer = self._framer
        assert framer is not None  # the head comes first
        return self.connection.send if framer.body and not framer.chunking and not self.response_closed else self.write

    def write_final(self, words: bytes, last: bytes) -> None:
        """The last body bytes before an abort, if the framing allows them."""
        framed = self._framer.write_final(words, last) if self._framer is not None else None
        if framed and not self.response_closed:
            self._sent += len(words)
            self._final_data_sent = True
            self.connection.send(framed)

    def finish(self) -> None:
        """The response is complete."""
        if self.response_closed:
            return
        self.response_closed = self._response_sent = True
        framer = self._framer
        if framer is not None and framer.chunking:
            self.connection.send(LAST_CHUNK)
        if self._producing:
            self.unregister_producer()
        if self.exchange is None:
            self.connection.completed(self)

    def abort(self) -> None:
        """Abort the connection; final bytes are delivered first, because a reset would discard them."""
        if not self.response_closed:
            self.response_closed = True
            self.unregister_producer()
            if self._final_data_sent:
                self.connection.close_lingering()
            else:
                self.connection.abort()

    def unsent(self) -> int:
        """Bytes that the kernel has not taken yet."""
        return unsent_bytes(self.connection.wire)

    def register_producer(self, producer: IPushProducer) -> None:
        """Back-pressure for the response."""
        if not self._producing and not self.response_closed:
            self._producing = True
            self.connection.wire.registerProducer(producer, True)

    def unregister_producer(self) -> None:
        """The producer is done."""
        if self._producing:
            self._producing = False
            self.connection.wire.unregisterProducer()

    def upgrade(self, status_line_and_head: bytes) -> Transport:
        """Hand the connection over for a tunnel."""
        self._framer = ResponseFramer(self._request, 101, ResponseHeaders([]), raw=True)
        self.response_closed = True
        self.unregister_producer()
        pipe = ClientPipe(self.connection.wire)
        self.connection.send(status_line_and_head)
        self.connection.start_tunnel(pipe)
        return pipe


_check: type[ResponseSink] = ProxyTransaction
