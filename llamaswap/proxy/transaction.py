"""One request of a client's connection: from its head to the end of its body, its response and its handling.

Here are those of requests for the proxy; `site_transaction` has those for the twisted.web site.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from twisted.internet.error import ConnectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaswap.proxy.bodies import BytesBody
from llamaswap.proxy.connection_sink import ConnectionSink
from llamaswap.proxy.exchange import BodySource, Exchange, RequestHead, ResponseSink
from llamaswap.proxy.framing import ChunkWalker, Framing
from llamaswap.proxy.incoming_body import SpooledBody

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


class ProxyTransaction(HttpTransaction, ConnectionSink):
    """A request that became an exchange, and the sink of its response. `whole` is its body, if that came with the head
    completely."""

    def __init__(self, connection: ClientConnection, head: RequestHead, framing: Framing, whole: bytes | None) -> None:
        super().__init__(connection, framing)
        factory = connection.owner
        self._framer = None
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

    # -- the response

    def finish(self) -> None:
        """The response is complete."""
        if self.response_closed:
            return
        self.response_closed = self._response_sent = True
        self.end_body()
        if self.exchange is None:
            self.connection.completed(self)


_check: type[ResponseSink] = ProxyTransaction
