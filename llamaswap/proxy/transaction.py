"""A request's turn on a client's connection: from its head to the end of both its body and its answer.

What the connection does for its turns is a `ClientTransport`. Here are the turns of requests that become an exchange;
those of the site have a file of their own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.interfaces import IPushProducer, ITransport
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaswap.proxy.bodies import BytesBody
from llamaswap.proxy.exchange import BodySource, Exchange, Headers, RequestHead, ResponseSink
from llamaswap.proxy.fastpath.direct_write import unsent_bytes
from llamaswap.proxy.framing import LAST_CHUNK, ChunkWalker, Framing, as_chunk
from llamaswap.proxy.incoming_body import SpooledBody
from llamaswap.proxy.response_framer import ResponseFramer
from llamaswap.proxy.tunnel import ClientPipe
from llamaswap.wire.byte_budget import ByteBudget

log = Logger()


class ConnectionOwner(Protocol):
    """What all connections have in common: where bodies go, and who is told of an answer's end."""

    clock: Any
    spool_threshold: int
    spool_folder: str | None
    memory: ByteBudget
    disk: ByteBudget
    served: Callable[[Exchange, int, int], None]


class ClientTransport(Protocol):
    """A client's connection, as its turns see it. `wire` is its transport, `send` writes to it."""

    peer: str
    secure: bool
    wire: Any
    send: Callable[[bytes], None]

    @property
    def owner(self) -> ConnectionOwner: ...
    @property
    def closing(self) -> bool:
        """Whether this answer shall be the connection's last."""

    def reading_changed(self) -> None:
        """The present turn can take more of its body, or no more."""

    def answered(self, turn: HttpTransaction) -> None:
        """A turn's answer is complete."""

    def lend(self, pipe: ClientPipe) -> None:
        """From now on the client's bytes belong to a tunnel."""

    def lose(self) -> None:
        """Close, after what was written has gone out."""

    def hang_up(self) -> None:
        """Close after what was written has gone out, whatever the client still sends; within a bounded time."""

    def cut(self) -> None:
        """Close at once."""


class HttpTransaction(ABC):
    """One request of a connection, from its head to the end of both its body and its answer."""

    __slots__ = (
        "_left",
        "_walker",
        "answered",
        "body_done",
        "door",
        "keep_alive",
    )

    def __init__(self, door: ClientTransport, framing: Framing) -> None:
        length = framing.length
        self.door = door
        self.keep_alive = framing.keep_alive
        self.body_done = length == 0
        self.answered = False
        self._left = length or 0
        self._walker = ChunkWalker() if length is None else None

    def feed(self, data: bytes) -> int:
        """Take this turn's part of `data`; returns its size."""
        walker = self._walker
        if walker is None:
            if len(data) > self._left:
                data = data[: self._left]
            used = len(data)
            self._left -= used
            self.body_done = not self._left
            self.came(data, [data])
            return used
        pieces: list[bytes] = []
        used = walker.feed(data, pieces)
        self.body_done = walker.done
        self.came(data if used == len(data) else data[:used], pieces)
        return used

    @property
    def rest(self) -> int | None:
        """Body bytes still to come; None when unknown."""
        return self._left if self._walker is None else None

    @property
    @abstractmethod
    def wants(self) -> bool:
        """Whether to go on reading the body."""

    @abstractmethod
    def came(self, raw: bytes, pieces: list[bytes]) -> None:
        """Body bytes came."""

    @abstractmethod
    def lost(self, reason: Failure) -> None:
        """The connection is gone."""

    @abstractmethod
    def spoilt(self) -> bool:
        """The body's framing is broken; returns whether an answer may still be given."""


class ProxyTransaction(HttpTransaction):
    """A request that became an exchange, and the sink of its answer."""

    __slots__ = (
        "_explained",
        "_framer",
        "_producing",
        "_request",
        "_sent",
        "arriving",
        "dead",
        "exchange",
        "waits_for_continue",
    )

    def __init__(self, door: ClientTransport, head: RequestHead, framing: Framing, whole: bytes | None) -> None:
        super().__init__(door, framing)
        factory = door.owner
        self._framer: ResponseFramer | None = None
        self._request = head
        self._producing = False
        self._explained = False  # a last word says why the answer is incomplete
        self._sent = 0
        self.dead = False
        self.arriving: SpooledBody | None = None
        body: BodySource
        if whole is not None:
            self.waits_for_continue = False
            self.body_done = True
            self._left = 0
            body = BytesBody(whole)
        else:
            self.waits_for_continue = framing.expects and not self.body_done
            body = self.arriving = SpooledBody(
                factory.clock,
                framing.length,
                changed=door.reading_changed,
                continue_=self._continue,
                threshold=factory.spool_threshold,
                folder=factory.spool_folder,
                memory=factory.memory,
                disk=factory.disk,
            )
        self.exchange: Exchange | None = Exchange(head, body, self, door.peer, factory.clock.seconds(), door.secure)

    # -- the request's way in

    @property
    def wants(self) -> bool:
        return self.arriving is None or self.arriving.wants

    def came(self, raw: bytes, pieces: list[bytes]) -> None:
        self.waits_for_continue = False
        body = self.arriving
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
            self.door.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def lost(self, reason: Failure) -> None:
        if self.exchange is not None:
            self.exchange.client_left()
        if self.arriving is not None:
            self.arriving.lost()
            self.arriving.close()

    def spoilt(self) -> bool:
        started = self.started
        self.dead = True
        if self.exchange is not None:
            self.exchange.client_left()
        if self.arriving is not None:
            self.arriving.lost()
            self.arriving.close()
        return not started

    def over(self, result: object) -> None:
        """Whoever serves the exchange is through with it."""
        exchange, self.exchange = self.exchange, None  # they know each other: untied, they need no garbage collector
        assert exchange is not None  # it is over once
        framer = self._framer
        self.door.owner.served(exchange, framer.status if framer is not None else 0, self._sent)
        if isinstance(result, Failure):
            if not exchange.gone:
                log.failure("handling {target} failed", result, target=exchange.head.target)
            self.abort()
        elif not self.dead and not exchange.gone:
            # A client that left is told to the exchange first, and whoever serves it may be done before we hear of it.
            log.error(
                "handler for {target} returned before the response was complete; the connection is closed",
                target=exchange.head.target,
            )
            self.abort()

    # -- the answer's way out

    @property
    def started(self) -> bool:
        """Whether a head has gone out."""
        return self._framer is not None

    def interim(self, status: int, reason: bytes, headers: Headers) -> None:
        """A 1xx head."""
        if not self.dead and self._framer is None:
            self.door.send(ResponseFramer.interim(status, reason, headers))

    def head(self, status: int, reason: bytes, headers: Headers, *, raw: bool, data: bytes = b"") -> None:
        """The head, with the first body bytes in the same write."""
        framer = self._framer = ResponseFramer(self._request, status, headers, raw=raw)
        self._sent += len(data)
        # A client told to wait with its body may never send it: where the next request begins is then unknown.
        if self.waits_for_continue or not framer.delimited or self.door.closing:
            self.keep_alive = False
        if not self.dead:
            self.door.send(framer.head(reason, keep_alive=self.keep_alive, data=data))

    def write(self, data: bytes) -> None:
        """Some body bytes."""
        framer = self._framer
        assert framer is not None  # the head comes first
        self._sent += len(data)
        if framer.body and not self.dead:
            self.door.send(as_chunk(data) if framer.chunking else data)

    def writer(self) -> Callable[[bytes], None]:
        """Straight to the connection, where nothing is to be framed."""
        framer = self._framer
        assert framer is not None  # the head comes first
        return self.door.send if framer.body and not framer.chunking and not self.dead else self.write

    def last_word(self, words: bytes, last: bytes) -> None:
        """Some more body bytes, if there is room for them."""
        framed = self._framer.last_word(words, last) if self._framer is not None else None
        if framed and not self.dead:
            self._sent += len(words)
            self._explained = True
            self.door.send(framed)

    def finish(self) -> None:
        """The answer is complete."""
        if self.dead:
            return
        self.dead = True
        framer = self._framer
        if framer is not None and framer.chunking:
            self.door.send(LAST_CHUNK)
        if self._producing:
            self.unregister_producer()
        self.door.answered(self)

    def abort(self) -> None:
        """Cut the connection; a last word is delivered first, because a reset would discard it."""
        if not self.dead:
            self.dead = True
            self.unregister_producer()
            if self._explained:
                self.door.hang_up()
            else:
                self.door.cut()

    def unsent(self) -> int:
        """Bytes that the kernel has not taken yet."""
        return unsent_bytes(self.door.wire)

    def register_producer(self, producer: IPushProducer) -> None:
        """Back-pressure for the answer."""
        if not self._producing and not self.dead:
            self._producing = True
            self.door.wire.registerProducer(producer, True)

    def unregister_producer(self) -> None:
        """No more of it."""
        if self._producing:
            self._producing = False
            self.door.wire.unregisterProducer()

    def upgrade(self, status_line_and_head: bytes) -> ITransport:
        """Hand the connection over for a tunnel."""
        self._framer = ResponseFramer(self._request, 101, [], raw=True)
        self.dead = True
        self.unregister_producer()
        pipe = ClientPipe(self.door.wire)
        self.door.send(status_line_and_head)
        self.door.lend(pipe)
        return pipe


_check: type[ResponseSink] = ProxyTransaction
