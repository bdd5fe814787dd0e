"""One connection to a server: a lean HTTP/1.1 client protocol, and how such connections are made.

It carries one exchange at a time, passes bodies on as they came and says exactly where they end. It knows
nothing of clients, models or pools.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any, Protocol

from attrs import define, field, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.error import ConnectionDone, ConnectionRefusedError, UserError
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.interfaces import IConnector, IHandshakeListener
from twisted.internet.protocol import ClientFactory, Factory, connectionDone
from twisted.internet.protocol import Protocol as WireProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from llamaswap.config.endpoints import Endpoint
from llamaswap.errors import UpstreamUnreachable
from llamaswap.proxy.fastpath.direct_write import write_through
from llamaswap.proxy.framing import ChunkWalker, MalformedMessage, ResponseHead, find_head_end, parse_response

_LOGGED_AS = "server"
INTERIM_LIMIT = 100  # 1xx heads before the real one; more is a server gone mad
_NO_PIECES: list[bytes] = []


class TimeLimits(Protocol):
    """Seconds, 0 = off."""

    @property
    def connect(self) -> float: ...
    @property
    def keepalive(self) -> float: ...
    @property
    def response_header(self) -> float: ...
    @property
    def tls_handshake(self) -> float: ...
    @property
    def idle_conn(self) -> float: ...


@frozen
class NoLimits:
    """No time limits at all."""

    connect: float = 0
    keepalive: float = 0
    response_header: float = 0
    tls_handshake: float = 0
    idle_conn: float = 0


@define  # made for every request: freezing doubles what that costs
class UpstreamTarget:
    """A server to carry a request to. `name` is for messages; `peer`: another proxy, not a server of ours."""

    endpoint: Endpoint
    timeouts: TimeLimits = NoLimits()
    tls: bool = False
    name: str = ""
    peer: bool = False

    @property
    def where(self) -> str:
        """How messages call it."""
        return self.name or str(self.endpoint)

    @property
    def encrypted(self) -> bool:
        """Whether the connection is TLS."""
        return self.tls or self.endpoint.scheme == "https"


class AnswerReceiver(Protocol):
    """Takes one answer. `raw` is the body as it came, framing included; `pieces` its payload, when wanted."""

    def answer_interim(self, head: ResponseHead) -> None:
        """A 1xx head other than 100 and 101."""

    def answer_began(self, head: ResponseHead, raw: bytes, pieces: list[bytes], ended: bool) -> None:
        """The head, what came of the body in the same read, and whether that was all."""

    def answer_data(self, raw: bytes, pieces: list[bytes], ended: bool) -> None:
        """More of the body."""

    def answer_upgraded(self, head: ResponseHead, raw_head: bytes, rest: bytes) -> None:
        """A 101: from here on the transport's bytes are somebody else's; `rest` was read already."""

    def answer_broken(self, cause: str, *, silent: bool, malformed: bool) -> None:
        """It ends here, too early. `silent`: not one byte of an answer came."""


@implementer(IHandshakeListener)
class UpstreamConnection(WireProtocol):
    """A connection to a server. Idle, or carrying one exchange for one receiver."""

    def __init__(self) -> None:
        self.uses = 0
        self.closed = False
        self.reusable = False  # after an ended answer: whether the connection could carry another
        self.on_idle_loss: Callable[[UpstreamConnection], None] | None = None
        self.on_made: Callable[[], None] | None = None
        self.on_handshake: Callable[[], None] | None = None
        self.paused = False
        self.send: Callable[[bytes], None] = _send_nowhere
        self._receiver: AnswerReceiver | None = None
        self._buffer = b""
        self._in_head = False
        self._bodyless = False
        self._payload = False
        self._head: ResponseHead | None = None
        self._left = 0
        self._walker: ChunkWalker | None = None
        self._interims = 0
        self._passed = 0

    # -- what its user calls

    def begin(self, receiver: AnswerReceiver, *, bodyless: bool, payload: bool) -> None:
        """Expect one answer. `bodyless`: to a HEAD; `payload`: whether chunked pieces are wanted de-framed."""
        self._receiver = receiver
        self._in_head = True
        self._bodyless = bodyless
        self._payload = payload
        self._head = self._walker = None
        self._buffer = b""
        self._left = self._interims = self._passed = 0
        self.reusable = False
        self.uses += 1

    def pause(self) -> None:
        """Read no more until `resume`."""
        if not self.paused and not self.closed:
            self.paused = True
            self._wire.pauseProducing()

    def resume(self) -> None:
        """Read again."""
        if self.paused and not self.closed:
            self.paused = False
            self._wire.resumeProducing()

    def abort(self) -> None:
        """Close at once, telling nobody."""
        self._receiver = None
        self.on_idle_loss = None
        if not self.closed:
            self.closed = True
            self._wire.abortConnection()

    def close(self) -> None:
        """Close in good order, telling nobody."""
        self._receiver = None
        self.on_idle_loss = None
        if not self.closed:
            self.closed = True
            self._wire.loseConnection()

    @property
    def received(self) -> int:
        """Body bytes of the present answer so far, without framing."""
        if self._walker is not None:
            return self._walker.payload
        if self._head is None or self._head.length is None:
            return self._passed
        return self._head.length - self._left

    @property
    def between_chunks(self) -> bool:
        """Whether the present answer is chunked and its last chunk so far complete."""
        return self._walker is not None and self._walker.between

    @property
    def wire(self) -> Any:
        """The transport."""
        return self._wire

    # -- what Twisted calls

    def connectionMade(self) -> None:
        wire: Any = self.transport
        wire.logstr = _LOGGED_AS  # Twisted makes a text for each
        self._wire: Any = wire
        self.send = write_through(self._wire)
        made, self.on_made = self.on_made, None
        if made is not None:
            made()

    def handshakeCompleted(self) -> None:
        if self.on_handshake is not None:
            self.on_handshake()

    def dataReceived(self, data: bytes) -> None:
        receiver = self._receiver
        if receiver is None:
            # Idle, and it speaks unasked: a farewell (408) or nonsense. Either way it is of no more use.
            lost = self.on_idle_loss
            self.abort()
            if lost is not None:
                lost(self)
            return
        try:
            walker = self._walker
            if walker is not None:  # each chunk of a stream comes this way
                pieces: list[bytes] = [] if self._payload else _NO_PIECES
                used = walker.feed(data, pieces if self._payload else None)
                if walker.done:
                    self._ended(used == len(data))
                    receiver.answer_data(data[:used], pieces, True)
                else:
                    receiver.answer_data(data, pieces, False)
            elif self._in_head:
                self._read_head(receiver, self._buffer + data if self._buffer else data)
            else:
                raw, pieces, ended = self._take(data)
                receiver.answer_data(raw, pieces, ended)
        except MalformedMessage as error:
            self.abort()
            receiver.answer_broken(str(error), silent=False, malformed=self._in_head)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.closed = True
        self.send = _send_nowhere  # unties it from its transport: thousands that end at once need no garbage collector
        receiver, self._receiver = self._receiver, None
        if receiver is None:
            lost, self.on_idle_loss = self.on_idle_loss, None
            if lost is not None:
                lost(self)
            return
        head = self._head
        if head is not None and head.until_close and reason.check(ConnectionDone):
            receiver.answer_data(b"", _NO_PIECES, True)
            return
        silent = head is None and not self._buffer and not self._interims
        cause = "connection closed" if reason.check(ConnectionDone) else reason.getErrorMessage()
        receiver.answer_broken(cause, silent=silent, malformed=False)

    # -- reading an answer

    def _read_head(self, receiver: AnswerReceiver, data: bytes) -> None:
        while True:
            if not b"HTTP/1.".startswith(data[:7]):
                raise MalformedMessage("answer is not HTTP/1")
            end = find_head_end(data)
            if end < 0:
                self._buffer = data
                return
            raw_head = data[:end]
            head = parse_response(raw_head, bodyless=self._bodyless)
            data = data[end:]
            if head.status == 101:
                self._receiver = None
                self._buffer = b""
                receiver.answer_upgraded(head, raw_head, data)
                return
            if head.status >= 200:
                break
            self._interims += 1
            if self._interims > INTERIM_LIMIT:
                raise MalformedMessage("too many interim answers")
            if head.status != 100:  # nobody waits for it: the door that met an Expect has answered it itself
                receiver.answer_interim(head)
                if self._receiver is None:
                    return
            if not data:
                self._buffer = b""
                return
        self._buffer = b""
        self._in_head = False
        self._head = head
        if head.chunked:
            self._walker = ChunkWalker()
        elif head.length is not None:
            self._left = head.length
        try:
            raw, pieces, ended = self._take(data)
        except MalformedMessage:
            self._in_head = True  # the head has not been passed on: the caller may still answer for us
            raise
        receiver.answer_began(head, raw, pieces, ended)

    def _take(self, data: bytes) -> tuple[bytes, list[bytes], bool]:
        """The part of `data` that belongs to the body, its payload, and whether the body is complete."""
        walker = self._walker
        if walker is not None:
            pieces: list[bytes] = [] if self._payload else _NO_PIECES
            used = walker.feed(data, pieces if self._payload else None)
            if walker.done:
                self._ended(used == len(data))
                return data[:used], pieces, True
            return data, pieces, False
        head = self._head
        assert head is not None  # a body is read after its head only
        if head.length is None:
            self._passed += len(data)
            return data, [data] if data else _NO_PIECES, False
        size = len(data)
        if size > self._left:
            data = data[: self._left]
            self._left = 0
            self._ended(False)
            return data, [data] if data else _NO_PIECES, True
        self._left -= size
        if not self._left:
            self._ended(True)
            return data, [data] if size else _NO_PIECES, True
        return data, [data] if size else _NO_PIECES, False

    def _ended(self, exact: bool) -> None:
        # Surplus bytes belong to no request: whatever they are, nobody may meet them as an answer.
        self._receiver = None
        self.reusable = exact and self._head is not None and self._head.keep_alive and not self.closed


def _send_nowhere(data: bytes) -> None:
    """Not connected."""


# -- making connections ------------------------------------------------------------------------------------


class _ConnectAttempt(ClientFactory):
    """One plain connection attempt."""

    noisy = False

    def __init__(self, connection: UpstreamConnection, failed: Callable[[Failure], None]) -> None:
        self._connection: UpstreamConnection | None = connection
        self._failed: Callable[[Failure], None] | None = failed

    def buildProtocol(self, addr: object) -> UpstreamConnection | None:
        # Given away: what is left of the attempt must not tie the connection to itself.
        connection, self._connection, self._failed = self._connection, None, None
        return connection

    def clientConnectionFailed(self, connector: IConnector, reason: Failure) -> None:
        failed, self._connection, self._failed = self._failed, None, None
        if failed is not None:
            failed(reason)

    def clientConnectionLost(self, connector: Any, reason: Failure) -> None:
        connector.transport = None  # the two would keep each other


class _Wrapping(Factory):
    """Gives an endpoint the connection it asks for."""

    noisy = False

    def __init__(self, connection: UpstreamConnection) -> None:
        self._connection = connection

    def buildProtocol(self, addr: object) -> UpstreamConnection:
        return self._connection


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


@define(eq=False)
class Connector:
    """Makes connections. `reactor` provides IReactorTCP, IReactorTime and, for names, IReactorPluggableNameResolver."""

    _reactor: Any
    # `localhost` is asked of no resolver: that would cost a thread's round trip for every connection.
    _loopback: dict[int, str] = field(factory=dict, init=False)

    def dial(self, upstream: UpstreamTarget) -> Deferred[UpstreamConnection]:
        """A fresh connection (after its TLS handshake); UpstreamUnreachable(sent=False). Cancelling stops trying."""
        endpoint = upstream.endpoint
        if upstream.encrypted:
            return self._encrypted(upstream)
        if endpoint.host.lower() == "localhost":
            return self._localhost(upstream)
        if _is_literal(endpoint.host):
            return self._plain(upstream, endpoint.host)
        return self._named(upstream)

    def _plain(self, upstream: UpstreamTarget, host: str) -> Deferred[UpstreamConnection]:
        connection = UpstreamConnection()
        limit = upstream.timeouts.connect
        connector: Any = None

        def stop(_: object) -> None:
            connector.disconnect()

        result: Deferred[UpstreamConnection] = Deferred(stop)

        def made() -> None:
            self._tune(connection, upstream)
            result.callback(connection)

        def failed(reason: Failure) -> None:
            if not result.called:
                result.errback(_unreachable(upstream, reason, limit))

        connection.on_made = made
        connector = self._reactor.connectTCP(
            host, upstream.endpoint.port, _ConnectAttempt(connection, failed), timeout=limit or None
        )
        return result

    def _localhost(self, upstream: UpstreamTarget) -> Deferred[UpstreamConnection]:
        port = upstream.endpoint.port
        first = self._loopback.get(port, "127.0.0.1")
        other = "::1" if first == "127.0.0.1" else "127.0.0.1"
        attempt = self._plain(upstream, first)

        def refused(failure: Failure) -> Failure | Deferred[UpstreamConnection]:
            error = failure.value
            if not (isinstance(error, UpstreamUnreachable) and "refused" in error.cause):
                return failure

            def remember(connection: UpstreamConnection) -> UpstreamConnection:
                self._loopback[port] = other
                return connection

            return self._plain(upstream, other).addCallbacks(remember, lambda _: failure)

        attempt.addErrback(refused)
        return attempt

    def _named(self, upstream: UpstreamTarget) -> Deferred[UpstreamConnection]:
        from twisted.internet.endpoints import HostnameEndpoint

        limit = upstream.timeouts.connect
        endpoint = HostnameEndpoint(
            self._reactor, upstream.endpoint.host, upstream.endpoint.port, timeout=limit or _FOR_EVER
        )
        connection = UpstreamConnection()

        def made(_: object) -> UpstreamConnection:
            self._tune(connection, upstream)
            return connection

        return endpoint.connect(_Wrapping(connection)).addCallbacks(
            made, lambda reason: _raise(_unreachable(upstream, reason, limit))
        )

    def _encrypted(self, upstream: UpstreamTarget) -> Deferred[UpstreamConnection]:
        # OpenSSL is 13 MB of memory: it is imported when the first encrypted server is dialled.
        from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
        from twisted.internet.ssl import optionsForClientTLS

        limit = upstream.timeouts.connect
        host = upstream.endpoint.host
        plain = HostnameEndpoint(self._reactor, host, upstream.endpoint.port, timeout=limit or _FOR_EVER)
        connection = UpstreamConnection()
        shaken: Deferred[None] = Deferred(lambda _: connection.abort())
        connection.on_handshake = lambda: shaken.callback(None) if not shaken.called else None
        connection.on_idle_loss = lambda _: shaken.errback(ConnectionDone()) if not shaken.called else None

        def wait(_: object) -> Deferred[None]:
            patience = upstream.timeouts.tls_handshake
            if patience and not shaken.called:
                shaken.addTimeout(patience, self._reactor)
            return shaken

        def made(_: object) -> UpstreamConnection:
            connection.on_idle_loss = None
            self._tune(connection, upstream)
            return connection

        def failed(reason: Failure) -> UpstreamConnection:
            connection.abort()
            if reason.check(DeferredTimeout):
                raise UpstreamUnreachable(upstream.where, "TLS handshake timed out", sent=False)
            raise _unreachable(upstream, reason, limit)

        wrapped = wrapClientTLS(optionsForClientTLS(host), plain)
        return wrapped.connect(_Wrapping(connection)).addCallback(wait).addCallbacks(made, failed)

    def _tune(self, connection: UpstreamConnection, upstream: UpstreamTarget) -> None:
        wire = connection.wire
        wire.setTcpNoDelay(True)
        if upstream.timeouts.keepalive:
            # A silent long answer is legal; a vanished host must still be noticed some day.
            wire.setTcpKeepAlive(True)


_FOR_EVER = 10.0**6  # an endpoint wants a number of seconds


def _raise(error: Exception) -> UpstreamConnection:
    raise error


def _unreachable(upstream: UpstreamTarget, reason: Failure, limit: float) -> Exception:
    if reason.check(ConnectTimeout):  # a subclass of UserError, which is what a cancelled attempt ends with
        cause = f"no connection within {limit:g} s"
    elif reason.check(CancelledError, UserError):
        return CancelledError()
    elif reason.check(ConnectionRefusedError):
        cause = "connection refused"
    else:
        cause = reason.getErrorMessage() or repr(reason.value)
    return UpstreamUnreachable(upstream.where, cause, sent=False)
