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

from twisted.internet.interfaces import IDelayedCall, IHalfCloseableProtocol, ISSLTransport
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from llamaswap.errors import BodyTooLarge, NoRoom
from llamaswap.proxy.exchange import Exchange, RequestHead
from llamaswap.proxy.fastpath.direct_write import forget_unsent, unsent, write_through
from llamaswap.proxy.fastpath.memory_trim import LowWaterTrimmer, trimmer
from llamaswap.proxy.framing import (
    Framing,
    HeadTooLarge,
    HeadTooSlow,
    MalformedMessage,
    find_head_end,
    parse_request,
    with_target,
    write_head,
)
from llamaswap.proxy.incoming_body import SPOOL_THRESHOLD
from llamaswap.proxy.response_framer import status_line
from llamaswap.proxy.site_transaction import SiteChannel, SiteTransaction, SiteTransport
from llamaswap.proxy.task import Awaitable
from llamaswap.proxy.transaction import HttpTransaction, ProxyTransaction
from llamaswap.proxy.tunnel import ClientPipe
from llamaswap.wire.byte_budget import UNBOUNDED, ByteBudget
from llamaswap.wire.headers import peer_host

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


@implementer(IHalfCloseableProtocol)
class ClientConnection(Protocol):
    """One client connection."""

    owner: ProxyServerFactory

    def __init__(self, factory: ProxyServerFactory) -> None:
        self.owner = factory
        self.peer = ""
        self.secure = False
        self.since = 0.0  # of the present wait for a head, or for more of a body
        self.wire: Any = None
        self.send: Callable[[bytes], None] = _drop
        self._buffer = b""
        self._turn: HttpTransaction | None = None
        self._advancing = False
        self._fresh = True  # no request came yet
        self._closed = False  # nothing read from now on means anything
        self._paused = False
        self._channel: SiteChannel | None = None
        self._site_transport: SiteTransport | None = None
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
        forget_unsent(self.wire)
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
        except (MalformedMessage, BodyTooLarge, NoRoom) as error:
            self._refuse(error)
        except MemoryError:
            self._refuse(self.owner.memory.full())
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
            self._begin_site(with_target(raw, head.target), framing, self.owner.largest(head))
            return rest
        length = framing.length
        if length is not None and length <= len(rest):
            # What came with the head belongs to the body before anybody asks: most bodies are then whole.
            turn = self._turn = ProxyTransaction(self, head, framing, rest if length == len(rest) else rest[:length])
            rest = rest[length:] if length < len(rest) else b""
        else:
            turn = self._turn = ProxyTransaction(self, head, framing, None)
            if rest:
                used = turn.feed(rest)
                rest = rest[used:] if used < len(rest) else b""
            if not turn.body_done:
                self.since = self.owner.clock.seconds()
        self._handle(turn)
        return rest

    def _handle(self, turn: ProxyTransaction) -> None:
        exchange = turn.exchange
        assert exchange is not None  # its turn begins
        try:
            handling = self.owner.handler(exchange)
        except Exception:  # the edge of a floor: one request's fault must not reach the others
            turn.over(Failure())
            return
        handling.addBoth(turn.over)

    def answered(self, turn: HttpTransaction) -> None:
        """A turn's answer is complete."""
        turn.answered = True
        self.since = self.owner.clock.seconds()
        if isinstance(turn, ProxyTransaction) and turn.arriving is not None:
            turn.arriving.close()
            if not turn.body_done and (turn.waits_for_continue or turn.rest is None or turn.rest > PIPELINE_LIMIT):
                self.hang_up()
                return
        if not self._advancing:
            self._advance(self._buffer)

    # -- the site's turns

    def _begin_site(self, raw: bytes, framing: Framing, largest: int) -> None:
        if (framing.length or 0) > largest:
            raise BodyTooLarge(largest)
        channel, transport = self._channel, self._site_transport
        if channel is None or transport is None:
            transport = self._site_transport = SiteTransport(self)
            channel = self._channel = SiteChannel(self.owner.site, self._site_answered)
            channel.makeConnection(transport)
        turn = SiteTransaction(self, framing, channel, transport, largest)
        self._turn = turn
        if transport.producer is not None:
            self.wire.registerProducer(transport.producer, True)
            channel.resumeProducing()  # it may have been left paused at the end of its last turn
        channel.dataReceived(raw)

    def _site_answered(self) -> None:
        turn = self._turn
        if isinstance(turn, SiteTransaction) and self._pipe is None:
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
        if isinstance(turn, ProxyTransaction) and turn.waits_for_continue:
            return False
        return now - self.since >= self.owner.body_timeout

    def give_up(self) -> None:
        """Refuse the request whose body does not come."""
        log.info("a client did not send the rest of its request within {limit:g}s", limit=self.owner.body_timeout)
        self._refuse(HeadTooSlow("the rest of the request's body did not come in time"))

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

    @property
    def delivering(self) -> bool:
        """Whether its last answer has ended and is on its way out; that takes a bounded time."""
        return self._linger is not None

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

    def hang_up(self) -> None:
        """Close while the client may still be sending: unread bytes would reset away the answer."""
        self._closed = True
        self._buffer = b""
        if self._paused:
            self._paused = False
            self.wire.resumeProducing()
        if self.secure or not hasattr(self.wire, "loseWriteConnection"):
            self.wire.loseConnection()
        else:
            self.wire.loseWriteConnection()
        self._linger = self.owner.clock.callLater(LINGER_SECONDS, self.cut)

    def _refuse(self, error: MalformedMessage | BodyTooLarge | NoRoom) -> None:
        turn, self._turn = self._turn, None
        if turn is not None and not turn.spoilt():
            self.cut()
            return
        status, reason = 400, b"Bad Request"
        if isinstance(error, HeadTooLarge):
            status, reason = 431, b"Request Header Fields Too Large"
        elif isinstance(error, BodyTooLarge):
            status, reason = 413, b"Content Too Large"
        elif isinstance(error, HeadTooSlow):
            status, reason = 408, b"Request Timeout"
        elif isinstance(error, NoRoom):
            status, reason = 507, b"Insufficient Storage"
            log.warn("a request is refused with status 507: {error}", error=error)
        body = b"%d %b: %b\n" % (status, reason, str(error).encode("ascii", "replace"))
        headers = [
            (b"Content-Type", b"text/plain; charset=utf-8"),
            (b"Content-Length", b"%d" % len(body)),
            (b"Connection", b"close"),
        ]
        self.send(write_head(status_line(status, reason), headers) + body)
        self.hang_up()

    def _leave(self, reason: Failure) -> None:
        turn, self._turn = self._turn, None
        if turn is not None:
            turn.lost(reason)


def _drop(data: bytes) -> None:
    """Not connected."""


class ProxyServerFactory(Factory):
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
        handler: Callable[[Exchange], Awaitable],
        site: Any,
        clock: Any,
        *,
        head_timeout: float = HEAD_SECONDS,
        idle_timeout: float = IDLE_SECONDS,
        body_timeout: float = BODY_SECONDS,
        spool_threshold: int = SPOOL_THRESHOLD,
        spool_folder: str | None = None,
        memory: ByteBudget = UNBOUNDED,
        disk: ByteBudget = UNBOUNDED,
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
        self._doors: set[ClientConnection] = set()
        self._ebb = LowWaterTrimmer(lambda: self.clock.callLater(EBB_SECONDS, trim) and None)
        self._sweep: IDelayedCall | None = None

    def buildProtocol(self, addr: object) -> ClientConnection:
        return ClientConnection(self)

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
        """Close everything at once, but for connections that still deliver the end of an answer."""
        self.draining = True
        for door in list(self._doors):
            if not door.delivering:
                door.cut()

    def joined(self, door: ClientConnection) -> None:
        """A client connected."""
        self._doors.add(door)
        self._ebb.count(len(self._doors))
        if self._sweep is None:
            self._sweep = self.clock.callLater(SWEEP_SECONDS, self._sweep_doors)

    def left(self, door: ClientConnection) -> None:
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
