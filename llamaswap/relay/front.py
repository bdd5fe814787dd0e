"""The front door: the listening protocol.

It reads heads. A request for a model becomes an exchange and goes straight to the handler; any other goes, byte
for byte, to a twisted.web channel on the same connection. The choice is made for each request anew. What an
exchange or a resource means is not known here; the few answers given here are those to bytes that are no request.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import (
    IDelayedCall,
    IHalfCloseableProtocol,
    IPushProducer,
    ISSLTransport,
    ITransport,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, Request
from zope.interface import directlyProvides, implementer, providedBy

from llamaswap.relay.arriving import SPOOL_THRESHOLD, ArrivingBody
from llamaswap.relay.bodies import BytesBody
from llamaswap.relay.ebb import Ebb, trimmer
from llamaswap.relay.exchange import BodySource, Exchange, Headers, RequestHead, ResponseSink
from llamaswap.relay.flow import Under
from llamaswap.relay.framing import (
    HEAD_LIMIT,
    HEADER_COUNT,
    LAST_CHUNK,
    BodyTooLarge,
    ChunkWalker,
    Framing,
    Malformed,
    TooLarge,
    TooSlow,
    as_chunk,
    find_head_end,
    parse_request,
    write_head,
)
from llamaswap.relay.response import ResponseFramer, status_line
from llamaswap.relay.room import UNBOUNDED, Room
from llamaswap.relay.sending import unsent, write_through
from llamaswap.relay.tunnel import ClientPipe
from llamaswap.wire.fields import peer_host

HEAD_SECONDS = 60.0
IDLE_SECONDS = 75.0  # longer than the 60 s for which common proxies keep their side
BODY_SECONDS = 120.0  # between two pieces of a body; a client that stalls may hold a model that others wait for
SWEEP_SECONDS = 5.0
HANDSHAKE_SECONDS = 1.0  # in which a new secure connection usually brings its first request
PIPELINE_LIMIT = 64 * 1024  # bytes of later requests read behind an open one
WATCH_SECONDS = 0.1  # how soon a leaving client is noticed while nothing is read from it
_LOGGED_AS = "client"
EBB_SECONDS = 0.02  # in which those who leave together have left
LINGER_SECONDS = 2.0  # for the client to read our answer before its unread upload resets the connection
ESTABLISHED = 1  # the kernel's word in TCP_INFO

log = Logger()
trim = trimmer()


class _Turn:
    """One request of a connection, from its head to the end of both its body and its answer."""

    __slots__ = (
        "_left",
        "_walker",
        "answered",
        "body_done",
        "door",
        "keep_alive",
    )

    def __init__(self, door: FrontDoor, framing: Framing) -> None:
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
    def wants(self) -> bool:
        """Whether to go on reading the body."""
        raise NotImplementedError

    def came(self, raw: bytes, pieces: list[bytes]) -> None:
        """Body bytes came."""
        raise NotImplementedError

    def lost(self, reason: Failure) -> None:
        """The connection is gone."""
        raise NotImplementedError

    def spoilt(self) -> bool:
        """The body's framing is broken; returns whether an answer may still be given."""
        raise NotImplementedError


class _ModelTurn(_Turn):
    """A request that became an exchange, and the sink of its answer."""

    __slots__ = (
        "_framer",
        "_producing",
        "_request",
        "_sent",
        "arriving",
        "dead",
        "exchange",
        "waits_for_continue",
    )

    def __init__(self, door: FrontDoor, head: RequestHead, framing: Framing, whole: bytes | None) -> None:
        super().__init__(door, framing)
        factory = door.owner
        self._framer: ResponseFramer | None = None
        self._request = head
        self._producing = False
        self._sent = 0
        self.dead = False
        self.arriving: ArrivingBody | None = None
        body: BodySource
        if whole is not None:
            self.waits_for_continue = False
            self.body_done = True
            self._left = 0
            body = BytesBody(whole)
        else:
            self.waits_for_continue = framing.expects and not self.body_done
            body = self.arriving = ArrivingBody(
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
            log.error("a request for {target} was left without the end of its answer", target=exchange.head.target)
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
        """Cut the connection."""
        if not self.dead:
            self.dead = True
            self.unregister_producer()
            self.door.cut()

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


_check: type[ResponseSink] = _ModelTurn


# -- requests for the site ---------------------------------------------------------------------------------


class _SiteChannel(HTTPChannel):
    """A twisted.web channel that reads its requests one by one from the front door.

    Heads were judged and bounded before they come here; waiting for the next one is the door's business too.
    """

    totalHeadersSize = HEAD_LIMIT * 2
    maxHeaders = HEADER_COUNT
    MAX_LENGTH = HEAD_LIMIT * 2
    timeOut = None

    def __init__(self, site: Any, turn_over: Callable[[], None]) -> None:
        super().__init__()
        self.factory = self.site = site
        self.requestFactory = site.requestFactory
        self._turn_over = turn_over

    def requestDone(self, request: Request) -> None:
        super().requestDone(request)
        self._turn_over()


@implementer(ITransport, IPushProducer)
class _SiteTransport:
    """The connection as the site's channel sees it: its own, though others answer on it in between."""

    def __init__(self, door: FrontDoor) -> None:
        self._door = door
        self.paused = False
        self.producer: Any = None
        if door.secure:
            directlyProvides(self, providedBy(self), ISSLTransport)

    def write(self, data: bytes) -> None:
        self._door.send(data)

    def writeSequence(self, data: Any) -> None:
        self._door.send(b"".join(data))

    def loseConnection(self) -> None:
        self._door.lose()

    def abortConnection(self) -> None:
        self._door.cut()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """The channel registers itself for good; the wire hears of it during the site's turns only."""
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None
        self._door.wire.unregisterProducer()

    def pauseProducing(self) -> None:
        self.paused = True
        self._door.reading_changed()

    def resumeProducing(self) -> None:
        self.paused = False
        self._door.reading_changed()

    def stopProducing(self) -> None:
        self._door.lose()

    def lend(self, early: bytes, head: bytes) -> ClientPipe:
        """The channel's request becomes a tunnel: after `head`, the connection is lent to it."""
        wire = self._door.wire
        wire.unregisterProducer()
        pipe = ClientPipe(wire, early)
        pipe.write(head)
        self._door.lend(pipe)
        return pipe

    def __getattr__(self, name: str) -> Any:
        # getPeer, getHost, disconnecting, getPeerCertificate ...
        return getattr(self._door.wire, name)


class _SiteTurn(_Turn):
    """A request for the twisted.web site."""

    __slots__ = (
        "_arrived",
        "_channel",
        "_largest",
        "_transport",
    )

    def __init__(
        self, door: FrontDoor, framing: Framing, channel: _SiteChannel, transport: _SiteTransport, largest: int
    ) -> None:
        super().__init__(door, framing)
        self._largest = largest
        self._arrived = 0
        self._channel = channel
        self._transport = transport

    @property
    def wants(self) -> bool:
        return not self._transport.paused

    def came(self, raw: bytes, pieces: list[bytes]) -> None:
        self._arrived += len(raw)
        if self._arrived > self._largest:  # the site keeps all of a body before it looks at the request
            raise BodyTooLarge(f"the body may have {self._largest} bytes, framing included")
        self._channel.dataReceived(raw)

    def lost(self, reason: Failure) -> None:
        """The channel is told by the door."""

    def spoilt(self) -> bool:
        return True


# -- the connection ----------------------------------------------------------------------------------------


@implementer(IHalfCloseableProtocol)
class FrontDoor(Protocol):
    """One client connection."""

    owner: FrontDoorFactory

    def __init__(self, factory: FrontDoorFactory) -> None:
        self.owner = factory
        self.peer = ""
        self.secure = False
        self.since = 0.0  # of the present wait for a head, or for more of a body
        self.wire: Any = None
        self.send: Callable[[bytes], None] = _drop
        self._buffer = b""
        self._turn: _Turn | None = None
        self._advancing = False
        self._fresh = True  # no request came yet
        self._closed = False  # nothing read from now on means anything
        self._paused = False
        self._channel: _SiteChannel | None = None
        self._site_transport: _SiteTransport | None = None
        self._pipe: ClientPipe | None = None
        self._watch: IDelayedCall | None = None
        self._linger: IDelayedCall | None = None

    # -- what Twisted calls

    def connectionMade(self) -> None:
        self.wire = self.transport
        self.send = write_through(self.wire)
        self.wire.logstr = _LOGGED_AS  # Twisted makes a text for each
        self.peer = sys.intern(peer_host(self.wire.getPeer()))
        self.secure = bool(ISSLTransport.providedBy(self.wire))
        if hasattr(self.wire, "setTcpNoDelay"):
            self.wire.setTcpNoDelay(True)
        if hasattr(self.wire, "setTcpKeepAlive"):
            self.wire.setTcpKeepAlive(True)  # a long answer may be silent; a vanished host must be noticed
        self.since = self.owner.clock.seconds()
        self.owner.joined(self)

    def dataReceived(self, data: bytes) -> None:
        self._advance(self._buffer + data if self._buffer else data)

    def readConnectionLost(self) -> None:
        if self._pipe is not None:
            self._pipe.half_lost()
            return
        # A client that closes its side before the answer counts as gone, as with every common server.
        self._leave(connectionDone)
        self.lose()

    def writeConnectionLost(self) -> None:
        """Our own half-close went out."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.owner.left(self)
        self._closed = True
        self.send = _drop
        for call in (self._watch, self._linger):
            if call is not None and call.active():
                call.cancel()
        self._watch = self._linger = None
        self._leave(reason)
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            pipe.lost(reason)
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.connectionLost(reason)

    # -- reading requests

    def _advance(self, data: bytes) -> None:
        """Go through `data` as far as it may be understood now; the rest is kept."""
        self._buffer = b""
        self._advancing = True
        try:
            while True:
                if self._pipe is not None:
                    if data:
                        self._pipe.received(data)
                    return
                if self._closed:
                    return
                turn = self._turn
                if turn is None:
                    if not data:
                        break
                    rest = self._read_head(data)
                    if rest is None:
                        self._buffer = data if not self._closed else b""
                        break
                    data = rest
                elif not turn.body_done:
                    if not data:
                        break
                    used = turn.feed(data)
                    self.since = self.owner.clock.seconds()
                    data = data[used:] if used < len(data) else b""
                elif turn.answered:
                    self._turn = None
                    if not turn.keep_alive or self.closing:
                        self.lose()
                        return
                else:
                    self._buffer = data
                    break
        except Malformed as error:
            self._refuse(error)
        finally:
            self._advancing = False
        self.reading_changed()

    def _read_head(self, data: bytes) -> bytes | None:
        """Begin the turn of the request `data` starts with; returns what lies behind it, None: incomplete."""
        if data[:1] in (b"\r", b"\n"):
            data = data.lstrip(b"\r\n")  # an empty line before a request is to be overlooked (RFC 9112, 2.2)
            if not data:
                return b""
        end = find_head_end(data)
        if end < 0:
            return None
        raw = data[:end]
        self._fresh = False
        head, framing = parse_request(raw)
        rest = data[end:]
        if not self.owner.routes(head):
            self._begin_site(raw, framing, self.owner.largest(head))
            return rest
        length = framing.length
        if length is not None and length <= len(rest):
            # What came with the head belongs to the body before anybody asks: most bodies are then whole.
            turn = self._turn = _ModelTurn(self, head, framing, rest if length == len(rest) else rest[:length])
            rest = rest[length:] if length < len(rest) else b""
        else:
            turn = self._turn = _ModelTurn(self, head, framing, None)
            if rest:
                used = turn.feed(rest)
                rest = rest[used:] if used < len(rest) else b""
            if not turn.body_done:
                self.since = self.owner.clock.seconds()
        self._handle(turn)
        return rest

    def _handle(self, turn: _ModelTurn) -> None:
        exchange = turn.exchange
        assert exchange is not None  # its turn begins
        try:
            handling = self.owner.handler(exchange)
        except Exception:  # the edge of a floor: one request's fault must not reach the others
            turn.over(Failure())
            return
        handling.addBoth(turn.over)

    def answered(self, turn: _Turn) -> None:
        """A turn's answer is complete."""
        turn.answered = True
        self.since = self.owner.clock.seconds()
        if isinstance(turn, _ModelTurn) and turn.arriving is not None:
            turn.arriving.close()
            if not turn.body_done and (turn.waits_for_continue or turn.rest is None or turn.rest > PIPELINE_LIMIT):
                self._hang_up()
                return
        if not self._advancing:
            self._advance(self._buffer)

    # -- the site's turns

    def _begin_site(self, raw: bytes, framing: Framing, largest: int) -> None:
        if (framing.length or 0) > largest:
            raise BodyTooLarge(f"the body may have {largest} bytes")
        channel, transport = self._channel, self._site_transport
        if channel is None or transport is None:
            transport = self._site_transport = _SiteTransport(self)
            channel = self._channel = _SiteChannel(self.owner.site, self._site_answered)
            channel.makeConnection(transport)
        turn = _SiteTurn(self, framing, channel, transport, largest)
        self._turn = turn
        if transport.producer is not None:
            self.wire.registerProducer(transport.producer, True)
            channel.resumeProducing()  # it may have been left paused at the end of its last turn
        channel.dataReceived(raw)

    def _site_answered(self) -> None:
        turn = self._turn
        if isinstance(turn, _SiteTurn) and self._pipe is None:
            self.wire.unregisterProducer()
            self.answered(turn)

    # -- reading or not

    def reading_changed(self) -> None:
        """Pause or resume reading as the present turn can take more or not."""
        if self._closed or self._advancing or self._pipe is not None:
            return
        turn = self._turn
        if turn is None:
            wanted = not self.owner.holding or self.expected
        elif not turn.body_done:
            wanted = turn.wants
        else:
            wanted = len(self._buffer) < PIPELINE_LIMIT
        if wanted and self._paused:
            self._paused = False
            self.since = self.owner.clock.seconds()
            self.wire.resumeProducing()
        elif not wanted and not self._paused:
            self._paused = True
            self.wire.pauseProducing()
            if self._watch is None:
                self._watch = self.owner.clock.callLater(WATCH_SECONDS, self._look)

    def _look(self) -> None:
        """While nothing is read the reactor does not see a client leave: ask the kernel."""
        self._watch = None
        if not self._paused or self._closed:
            return
        if self._departed():
            self._leave(connectionDone)
            self.cut()
        else:
            self._watch = self.owner.clock.callLater(WATCH_SECONDS, self._look)

    def _departed(self) -> bool:
        wire = getattr(self.wire, "transport", self.wire)  # below TLS
        handle = wire.getHandle() if hasattr(wire, "getHandle") else None
        if not isinstance(handle, socket.socket) or not hasattr(socket, "TCP_INFO"):
            return False
        try:
            return handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != ESTABLISHED
        except OSError:
            return False

    # -- ends

    def lend(self, pipe: ClientPipe) -> None:
        """From now on the client's bytes belong to a tunnel."""
        self._pipe = pipe
        if self._paused:
            self._paused = False
            self.wire.resumeProducing()
        early, self._buffer = self._buffer, b""
        if early:
            pipe.received(early)

    def idle_since(self) -> tuple[float, bool] | None:
        """Since when it waits for a head, and whether part of one (or the very first) is awaited; None: busy."""
        if self._pipe is not None or self._closed:
            return None
        if self._turn is not None:
            # An answered request may still owe the rest of its body.
            return (self.since, True) if self._turn.answered else None
        return self.since, bool(self._buffer)

    def stalls(self, now: float) -> bool:
        """Whether a client has owed us the next piece of its body for too long; one told to wait owes nothing."""
        turn = self._turn
        if turn is None or turn.body_done or turn.answered or self._paused or self._closed or self._pipe is not None:
            return False
        if isinstance(turn, _ModelTurn) and turn.waits_for_continue:
            return False
        return now - self.since >= self.owner.body_timeout

    def give_up(self) -> None:
        """Refuse the request whose body does not come."""
        log.info("a client did not send the rest of its request within {limit:g}s", limit=self.owner.body_timeout)
        self._refuse(TooSlow("the rest of the request's body did not come in time"))

    @property
    def closing(self) -> bool:
        """Whether this answer shall be the connection's last."""
        return self.owner.draining or (self.secure and self.owner.holding)

    @property
    def expected(self) -> bool:
        """Whether the first request of a secure connection is on its way, the handshake before it perhaps too."""
        return self.secure and self._fresh and self.owner.clock.seconds() - self.since < HANDSHAKE_SECONDS

    @property
    def resting(self) -> bool:
        """Whether it waits for a request and everything before that has gone out."""
        idle = self._turn is None and self._pipe is None and not self._closed
        return idle and not unsent(self.wire) and not self.expected

    def handover(self) -> tuple[socket.socket, bytes]:
        """(its socket, what was read of the next request)."""
        return self.wire.getHandle(), self._buffer

    def lose(self) -> None:
        """Close, after what was written has gone out."""
        self._closed = True
        self._buffer = b""
        self.wire.loseConnection()

    def cut(self) -> None:
        """Close at once."""
        self._closed = True
        self._buffer = b""
        self.wire.abortConnection()

    def _hang_up(self) -> None:
        """Close while the client may still be sending: unread bytes would reset away the answer."""
        self._closed = True
        self._buffer = b""
        if self.secure or not hasattr(self.wire, "loseWriteConnection"):
            self.wire.loseConnection()
            return
        if self._paused:
            self._paused = False
            self.wire.resumeProducing()
        self.wire.loseWriteConnection()
        self._linger = self.owner.clock.callLater(LINGER_SECONDS, self.cut)

    def _refuse(self, error: Malformed) -> None:
        turn, self._turn = self._turn, None
        if turn is not None and not turn.spoilt():
            self.cut()
            return
        status, reason = 400, b"Bad Request"
        if isinstance(error, TooLarge):
            status, reason = 431, b"Request Header Fields Too Large"
        elif isinstance(error, BodyTooLarge):
            status, reason = 413, b"Content Too Large"
        elif isinstance(error, TooSlow):
            status, reason = 408, b"Request Timeout"
        body = b"%d %b: %b\n" % (status, reason, str(error).encode("ascii", "replace"))
        headers = [
            (b"Content-Type", b"text/plain; charset=utf-8"),
            (b"Content-Length", b"%d" % len(body)),
            (b"Connection", b"close"),
        ]
        self.send(write_head(status_line(status, reason), headers) + body)
        self._hang_up()

    def _leave(self, reason: Failure) -> None:
        turn, self._turn = self._turn, None
        if turn is not None:
            turn.lost(reason)


def _drop(data: bytes) -> None:
    """Not connected."""


class FrontDoorFactory(Factory):
    """Listens for everybody.

    `routes(head)` says whether a request goes to `handler(exchange)`; every other one goes to `site` (a
    twisted.web site). What the handler returns is over when the answer is complete or will never be; then
    `served(exchange, status, bytes)` is told what went out (status 0: nothing). `clock` provides IReactorTime; times
    are in seconds, `spool_threshold` in bytes, `spool_folder` None for the system's own. `largest(head)` is how many
    bytes the body of a request for the site may have; `memory` and `disk` are the rooms of all other bodies.
    """

    noisy = False

    def __init__(
        self,
        routes: Callable[[RequestHead], bool],
        handler: Callable[[Exchange], Under],
        site: Any,
        clock: Any,
        *,
        head_timeout: float = HEAD_SECONDS,
        idle_timeout: float = IDLE_SECONDS,
        body_timeout: float = BODY_SECONDS,
        spool_threshold: int = SPOOL_THRESHOLD,
        spool_folder: str | None = None,
        memory: Room = UNBOUNDED,
        disk: Room = UNBOUNDED,
        largest: Callable[[RequestHead], int] = lambda head: sys.maxsize,
        served: Callable[[Exchange, int, int], None] = lambda exchange, status, sent: None,
    ) -> None:
        self.routes = routes
        self.served = served
        self.handler = handler
        self.site = site
        self.clock = clock
        self.head_timeout = head_timeout
        self.idle_timeout = idle_timeout
        self.body_timeout = body_timeout
        self.spool_threshold = spool_threshold
        self.spool_folder = spool_folder
        self.memory = memory
        self.disk = disk
        self.largest = largest
        self.draining = False
        self.holding = False
        self._doors: set[FrontDoor] = set()
        self._ebb = Ebb(lambda: self.clock.callLater(EBB_SECONDS, trim) and None)
        self._sweep: IDelayedCall | None = None

    def buildProtocol(self, addr: object) -> FrontDoor:
        return FrontDoor(self)

    def startFactory(self) -> None:
        self.site.doStart()

    def stopFactory(self) -> None:
        self.site.doStop()

    @property
    def connections(self) -> int:
        """Open client connections."""
        return len(self._doors)

    def drain(self) -> None:
        """Close what is idle, and everything else after its present answer."""
        self.draining = True
        for door in list(self._doors):
            if door.idle_since() is not None:
                door.lose()

    def hold(self) -> None:
        """Begin no request that is not here yet: what is sent meanwhile waits to be read. Secure connections, whose
        state cannot be handed on, are closed as soon as they are idle."""
        self.holding = True
        for door in list(self._doors):
            if door.secure and not door.expected and door.idle_since() is not None:
                door.lose()
            else:
                door.reading_changed()

    def release(self) -> None:
        """Go on reading."""
        self.holding = False
        for door in list(self._doors):
            door.reading_changed()

    @property
    def busy(self) -> int:
        """Connections with a request under way, or with a rest of an answer to send."""
        return sum(not door.resting for door in self._doors)

    def cut_busy(self) -> None:
        """Close at once what does not rest."""
        for door in list(self._doors):
            if not door.resting:
                door.cut()

    def handover(self) -> list[tuple[socket.socket, bytes]]:
        """(socket, what was read of the next request) of each connection that rests, for another program."""
        return [door.handover() for door in self._doors if door.resting and not door.secure]

    def adopt(self, reactor: Any, descriptor: int, family: int, early: bytes) -> None:
        """Go on with a connection that was handed over; one that was closed meanwhile is dropped."""
        try:
            wire = reactor.adoptStreamConnection(descriptor, family, self)
        except OSError:
            return
        finally:
            os.close(descriptor)  # the transport has its own
        if early:
            wire.protocol.dataReceived(early)

    def cut(self) -> None:
        """Close everything at once."""
        self.draining = True
        for door in list(self._doors):
            door.cut()

    def joined(self, door: FrontDoor) -> None:
        """A client connected."""
        self._doors.add(door)
        self._ebb.count(len(self._doors))
        if self._sweep is None:
            self._sweep = self.clock.callLater(SWEEP_SECONDS, self._sweep_doors)

    def left(self, door: FrontDoor) -> None:
        """A client's connection is lost."""
        self._doors.discard(door)
        self._ebb.count(len(self._doors))
        if not self._doors and self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None

    def _sweep_doors(self) -> None:
        # One walk every few seconds instead of a timer to move with every request.
        now = self.clock.seconds()
        self._sweep = self.clock.callLater(SWEEP_SECONDS, self._sweep_doors)
        for door in list(self._doors):
            waiting = door.idle_since()
            if waiting is not None:
                since, begun = waiting
                if now - since >= (self.head_timeout if begun else self.idle_timeout):
                    door.lose()
            elif door.stalls(now):
                door.give_up()
