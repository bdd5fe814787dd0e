"""One client connection: reads the heads of requests and hands each request to its handler.

A request for a model becomes an exchange and goes straight to the proxy's handler; any other goes, byte for byte, to a
twisted.web channel on the same connection. The few responses given here are those to bytes that are not a request.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from twisted.internet.interfaces import IDelayedCall, IHalfCloseableProtocol, ISSLTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from llamaswap.errors import BodyTooLarge, NoRoom
from llamaswap.proxy.fastpath.direct_write import close_when_sent, forget_unsent, unsent, write_through
from llamaswap.proxy.framing import Framing, HeadTooSlow, MalformedMessage, find_head_end, with_target
from llamaswap.proxy.response_framer import refusal
from llamaswap.proxy.site_transaction import SiteLink, SiteTransaction
from llamaswap.proxy.transaction import HttpTransaction, ProxyTransaction
from llamaswap.proxy.transport import TcpTransport, client_has_closed, peer_host
from llamaswap.proxy.tunnel import ClientPipe

if TYPE_CHECKING:
    from llamaswap.proxy.server_factory import ProxyServerFactory

HANDSHAKE_SECONDS = 1.0  # in which a new secure connection usually brings its first request
PIPELINE_LIMIT = 64 * 1024  # bytes of later requests read behind the present one
CLOSE_CHECK_INTERVAL = 0.1  # seconds between two checks for a client that leaves while nothing is read from it
LINGER_SECONDS = 2.0  # for the client to read our response before its unread upload resets the connection
LOG_NAME = "client"

log = Logger()


class ConnectionState:
    """What a client's connection does."""

    IDLE = "idle"  # between requests
    READING_HEAD = "reading head"  # part of a head has come
    LOADING_SITE = "loading site"  # the site, which a request is for, is being loaded
    HANDLING = "handling"  # a request is handled
    DRAINING = "draining"  # the response is complete; the rest of the request's body is read and discarded
    TUNNELLING = "tunnelling"  # its bytes belong to a tunnel
    CLOSED = "closed"  # nothing that is read from now on means anything


_WAITING = (ConnectionState.IDLE, ConnectionState.READING_HEAD)


@implementer(IHalfCloseableProtocol)
class ClientConnection(Protocol):
    """One client connection."""

    owner: ProxyServerFactory

    def __init__(self, owner: ProxyServerFactory) -> None:
        self.owner = owner
        self.client_address = ""
        self.secure = False
        self.since = 0.0  # of the present wait for a head, or for more of a body
        self.wire: TcpTransport
        self.send: Callable[[bytes], None] = _discard
        self._state = ConnectionState.IDLE
        self._buffer = b""
        self._transaction: HttpTransaction | None = None
        self._reading = False  # `_read` is on the stack
        self._first_request = True  # no request has come yet
        self._paused = False
        self._site_link: SiteLink | None = None
        self._pipe: ClientPipe | None = None
        self._close_check: IDelayedCall | None = None
        self._linger: IDelayedCall | None = None

    # -- what Twisted calls

    def connectionMade(self) -> None:
        self.wire = self.transport  # type: ignore[assignment] # of a TCP connection
        self.send = write_through(self.wire)
        self.wire.logstr = LOG_NAME  # Twisted makes a text for each
        self.client_address = sys.intern(peer_host(self.wire))
        self.secure = bool(ISSLTransport.providedBy(self.wire))
        if hasattr(self.wire, "setTcpNoDelay"):
            self.wire.setTcpNoDelay(True)
        if hasattr(self.wire, "setTcpKeepAlive"):
            self.wire.setTcpKeepAlive(True)  # a long response may be silent; a vanished host must be noticed
        self.since = self.owner.clock.seconds()
        self.owner.client_connected(self)

    def dataReceived(self, data: bytes) -> None:
        self._read(self._buffer + data if self._buffer else data)

    def readConnectionLost(self) -> None:
        if self._pipe is not None:
            self._pipe.half_lost()
            return
        # A client that closes its side before the response counts as disconnected, as with every common server.
        self._end_transaction(connectionDone)
        self.close()

    def writeConnectionLost(self) -> None:
        """Our own half-close went out."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.owner.client_disconnected(self)
        self._state = ConnectionState.CLOSED
        self.send = _discard
        forget_unsent(self.wire)
        for call in (self._close_check, self._linger):
            if call is not None and call.active():
                call.cancel()
        self._close_check = self._linger = None
        self._end_transaction(reason)
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            pipe.lost(reason)
        link, self._site_link = self._site_link, None
        if link is not None:
            link.channel.connectionLost(reason)

    # -- reading requests

    def _read(self, data: bytes) -> None:
        """Handle as much of `data` as the state of the connection allows; keep the rest."""
        self._buffer = b""
        self._reading = True
        try:
            while data or self._state is ConnectionState.DRAINING:
                state = self._state
                if state in _WAITING:
                    rest = self._read_head(data)
                    if rest is None:
                        break
                    data = rest
                    continue
                if state is ConnectionState.CLOSED:
                    return
                if state is ConnectionState.TUNNELLING:
                    assert self._pipe is not None  # it belongs to the state
                    self._pipe.received(data)
                    return
                transaction = self._transaction
                if transaction is None:
                    break  # the site is being loaded
                if not transaction.body_done:
                    if not data:
                        break
                    used = transaction.feed(data)
                    self.since = self.owner.clock.seconds()
                    data = data[used:] if used < len(data) else b""
                elif state is ConnectionState.DRAINING:
                    self._transaction = None
                    self._state = ConnectionState.IDLE
                    if not transaction.keep_alive or self.closing:
                        self.close()
                        return
                else:
                    break  # a later request of the client waits for the present one
            self._buffer = data if self._state is not ConnectionState.CLOSED else b""
        except (MalformedMessage, BodyTooLarge, NoRoom) as error:
            self._refuse(error)
        except MemoryError:
            self._refuse(self.owner.memory.full())
        finally:
            self._reading = False
        self.reading_changed()

    def _read_head(self, data: bytes) -> bytes | None:
        """Begin the request that `data` starts with; returns what is behind its head and body, None if incomplete."""
        if data[:1] in (b"\r", b"\n"):
            data = data.lstrip(b"\r\n")  # an empty line before a request is to be ignored (RFC 9112, 2.2)
            if not data:
                return b""
        end = find_head_end(data)
        if end < 0:
            self._state = ConnectionState.READING_HEAD
            return None
        raw = data[:end]
        self._first_request = False
        head, framing = self.owner.parse_request(raw)
        rest = data[end:]
        self._state = ConnectionState.HANDLING
        known = head.known
        if known.routed is None:
            known.routed = self.owner.routes(head)
        if not known.routed:
            if self.owner.site is None:
                known.routed = None
                self._state = ConnectionState.LOADING_SITE
                self.owner.need_site(self)
                return None
            self._begin_site(with_target(raw, head.target), framing, self.owner.body_limit(head))
            return rest
        length = framing.length
        if length is not None and length <= len(rest) and head.first(b"content-encoding") is None:
            # Most bodies come with their head: they are then complete before anything else happens. An encoded one may
            # become large, so it is one that takes its memory from the budget.
            whole = rest if length == len(rest) else rest[:length]
            transaction = self._transaction = ProxyTransaction(self, head, framing, whole)
            rest = rest[length:] if length < len(rest) else b""
        else:
            transaction = self._transaction = ProxyTransaction(self, head, framing, None)
            if rest:
                used = transaction.feed(rest)
                rest = rest[used:] if used < len(rest) else b""
            if not transaction.body_done:
                self.since = self.owner.clock.seconds()
        self._handle(transaction)
        return rest

    def _handle(self, transaction: ProxyTransaction) -> None:
        exchange = transaction.exchange
        assert exchange is not None  # it has just begun
        try:
            handling = self.owner.handler(exchange)
        except Exception:  # a fault in one request must not reach the others
            transaction.handled(Failure())
            return
        handling.addBoth(transaction.handled)

    def completed(self, transaction: HttpTransaction) -> None:
        """A transaction's response is complete, and its handler has ended: the next request may begin."""
        if self._state is not ConnectionState.HANDLING:
            return
        self._state = ConnectionState.DRAINING
        self.since = self.owner.clock.seconds()
        if isinstance(transaction, ProxyTransaction) and transaction.spooled_body is not None:
            transaction.spooled_body.close()
            left = transaction.body_left
            if not transaction.body_done and (transaction.waits_for_continue or left is None or left > PIPELINE_LIMIT):
                self.close_lingering()
                return
        if not self._reading:
            self._read(self._buffer)

    # -- requests for the site

    def _begin_site(self, raw: bytes, framing: Framing, body_limit: int) -> None:
        assert self.owner.site is not None  # else it is loaded first
        link = self._site_link = self._site_link or SiteLink(self, self.owner.site, self._site_completed)
        self._transaction = SiteTransaction(self, framing, link, body_limit)
        link.begin(raw)

    def site_loaded(self) -> None:
        """The site can serve the request that has waited for it."""
        if self._state is ConnectionState.LOADING_SITE:
            self._state = ConnectionState.IDLE
            self._read(self._buffer)

    def _site_completed(self) -> None:
        transaction = self._transaction
        if isinstance(transaction, SiteTransaction) and self._state is not ConnectionState.TUNNELLING:
            self.wire.unregisterProducer()
            self.completed(transaction)

    # -- reading or not

    def reading_changed(self) -> None:
        """Pause or resume reading, as the present transaction can take more or not."""
        if self._reading or self._state in (ConnectionState.CLOSED, ConnectionState.TUNNELLING):
            return
        transaction = self._transaction
        if transaction is None and self._state is not ConnectionState.LOADING_SITE:
            wanted = not self.owner.holding or self.expects_first_request
        elif transaction is not None and not transaction.body_done:
            wanted = transaction.wants_body
        else:
            wanted = len(self._buffer) < PIPELINE_LIMIT
        if wanted and self._paused:
            self._paused = False
            self.since = self.owner.clock.seconds()
            self.wire.resumeProducing()
        elif not wanted and not self._paused:
            self._paused = True
            self.wire.pauseProducing()
            if self._close_check is None:
                self._close_check = self.owner.clock.callLater(CLOSE_CHECK_INTERVAL, self._check_client_closed)

    def _check_client_closed(self) -> None:
        """While nothing is read the reactor does not notice a client that leaves: ask the kernel."""
        self._close_check = None
        if not self._paused or self._state is ConnectionState.CLOSED:
            return
        if client_has_closed(self.wire):
            self._end_transaction(connectionDone)
            self.abort()
        else:
            self._close_check = self.owner.clock.callLater(CLOSE_CHECK_INTERVAL, self._check_client_closed)

    # -- ends

    def start_tunnel(self, pipe: ClientPipe) -> None:
        """Pass the client's bytes on to a tunnel from now on."""
        self._pipe = pipe
        self._state = ConnectionState.TUNNELLING
        if self._paused:
            self._paused = False
            self.wire.resumeProducing()
        early, self._buffer = self._buffer, b""
        if early:
            pipe.received(early)

    def waiting_since(self) -> tuple[float, bool] | None:
        """Since when it waits for the client, and whether for the rest of a request; None if a request is handled."""
        if self._state is ConnectionState.IDLE:
            return self.since, False
        if self._state in (ConnectionState.READING_HEAD, ConnectionState.DRAINING):
            return self.since, True
        return None

    def body_overdue(self, now: float) -> bool:
        """Whether the next piece of a body is overdue. A client that waits for 100 Continue is not late."""
        transaction = self._transaction
        if self._state is not ConnectionState.HANDLING or self._paused or transaction is None or transaction.body_done:
            return False
        if isinstance(transaction, ProxyTransaction) and transaction.waits_for_continue:
            return False
        return now - self.since >= self.owner.body_timeout

    def refuse_overdue_body(self) -> None:
        """Refuse the request whose body does not come."""
        log.info(
            "client did not send the rest of its request within {limit:g} s; closing its connection",
            limit=self.owner.body_timeout,
        )
        self._refuse(HeadTooSlow("the rest of the request's body did not come in time"))

    @property
    def closing(self) -> bool:
        """Whether the present response must be the connection's last."""
        return self.owner.draining or (self.secure and self.owner.holding)

    @property
    def expects_first_request(self) -> bool:
        """Whether a secure connection is so new that its first request is probably on its way."""
        return self.secure and self._first_request and self.owner.clock.seconds() - self.since < HANDSHAKE_SECONDS

    @property
    def idle(self) -> bool:
        """Whether it waits for a request, and everything before was sent."""
        return self._state in _WAITING and not unsent(self.wire) and not self.expects_first_request

    @property
    def lingering(self) -> bool:
        """Whether its last response is complete and on its way out; that takes a bounded time."""
        return self._linger is not None

    def handover(self) -> tuple[socket.socket, bytes]:
        """Its socket, and what was read of the next request."""
        return cast(socket.socket, self.wire.getHandle()), self._buffer

    def close(self) -> None:
        """Close, after everything written was sent."""
        self._state = ConnectionState.CLOSED
        self._buffer = b""
        close_when_sent(self.wire)

    def abort(self) -> None:
        """Close at once."""
        self._state = ConnectionState.CLOSED
        self._buffer = b""
        self.wire.abortConnection()

    def close_lingering(self) -> None:
        """Close while the client may still be sending: a reset because of unread bytes would discard the response."""
        self._state = ConnectionState.CLOSED
        self._buffer = b""
        if self._paused:
            self._paused = False
            self.wire.resumeProducing()
        if self.secure or not hasattr(self.wire, "loseWriteConnection"):
            self.wire.loseConnection()
        else:
            self.wire.loseWriteConnection()
        self._linger = self.owner.clock.callLater(LINGER_SECONDS, self.abort)

    def _refuse(self, error: MalformedMessage | BodyTooLarge | NoRoom) -> None:
        transaction, self._transaction = self._transaction, None
        if transaction is not None and not transaction.body_failed():
            self.abort()
            return
        if isinstance(error, NoRoom):
            log.warn("request refused with status 507: {error}", error=error)
        self.send(refusal(error))
        self.close_lingering()

    def _end_transaction(self, reason: Failure) -> None:
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            transaction.lost(reason)


def _discard(data: bytes) -> None:
    """Not connected."""
