"""One connection to a server: a small HTTP/1.1 client protocol.

It serves one request at a time, passes bodies on unchanged and reports exactly where they end. It knows nothing of
clients, models or pools.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from attrs import define, field
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import Protocol as ConnectionProtocol
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from llamaswap.config.endpoints import Endpoint
from llamaswap.config.schema.model import Timeouts
from llamaswap.proxy.fastpath.direct_write import close_when_sent, write_through
from llamaswap.proxy.fastpath.known_heads import parse_response
from llamaswap.proxy.framing import ChunkWalker, MalformedMessage, ResponseHead, find_head_end
from llamaswap.proxy.transport import TcpTransport

if TYPE_CHECKING:
    from llamaswap.proxy.response_forwarder import ResponseForwarder

LOG_NAME = "server"
INTERIM_LIMIT = 100  # 1xx heads before the final one; a server that sends more is broken
_NO_PIECES: list[bytes] = []


NO_TIMEOUTS = Timeouts(connect=0, keepalive=0, response_header=0, tls_handshake=0, idle_conn=0)


@define
class UpstreamTarget:
    """A server to forward a request to. `name` is for messages; `peer`: another proxy, not a model's server.

    `pool_key` is equal for those whose connections may be exchanged.
    """

    endpoint: Endpoint
    timeouts: Timeouts = NO_TIMEOUTS
    name: str = ""
    peer: bool = False
    pool_key: tuple[str, str, int] = field(init=False, eq=False, repr=False)

    @pool_key.default
    def _default_pool_key(self) -> tuple[str, str, int]:
        return self.endpoint.address

    @property
    def where(self) -> str:
        """Its name in messages."""
        return self.name or str(self.endpoint)

    @property
    def encrypted(self) -> bool:
        """Whether the connection is TLS."""
        return self.endpoint.scheme == "https"


@implementer(IHandshakeListener)
class UpstreamConnection(ConnectionProtocol):
    """A connection to a server: idle, or serving one request for one receiver."""

    def __init__(self) -> None:
        self.uses = 0
        self.closed = False
        self.idle_until = 0.0  # the time up to which the pool may use it again
        self.reusable = False  # after a complete response: whether the connection may serve another request
        self.on_idle_loss: Callable[[UpstreamConnection], None] | None = None
        self.on_made: Callable[[], None] | None = None
        self.on_handshake: Callable[[], None] | None = None
        self.paused = False
        self.send: Callable[[bytes], None] = _send_nowhere
        self._receiver: ResponseForwarder | None = None
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

    def begin(self, receiver: ResponseForwarder, *, bodyless: bool, payload: bool) -> None:
        """Expect one response. `bodyless`: to a HEAD; `payload`: whether a chunked body is wanted as pieces too."""
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
        """Close at once, without calling the receiver."""
        self._receiver = None
        self.on_idle_loss = None
        if not self.closed:
            self.closed = True
            self._wire.abortConnection()

    def close(self) -> None:
        """Close after everything written was sent, without calling the receiver."""
        self._receiver = None
        self.on_idle_loss = None
        if not self.closed:
            self.closed = True
            close_when_sent(self._wire)

    @property
    def received(self) -> int:
        """Bytes of the present response's body so far, without framing."""
        if self._walker is not None:
            return self._walker.payload
        if self._head is None or self._head.length is None:
            return self._passed
        return self._head.length - self._left

    @property
    def between_chunks(self) -> bool:
        """Whether the present response is chunked and its last chunk so far complete."""
        return self._walker is not None and self._walker.between

    @property
    def wire(self) -> TcpTransport:
        """The transport."""
        return self._wire

    # -- what Twisted calls

    def connectionMade(self) -> None:
        wire: TcpTransport = self.transport  # type: ignore[assignment] # of a TCP connection
        wire.logstr = LOG_NAME  # Twisted makes a text for each
        self._wire = wire
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
            # An idle connection that gets data (a 408, or nonsense) cannot be used again.
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
                    receiver.response_more(data[:used], pieces, True)
                else:
                    receiver.response_more(data, pieces, False)
            elif self._in_head:
                self._read_head(receiver, self._buffer + data if self._buffer else data)
            else:
                raw, pieces, ended = self._take(data)
                receiver.response_more(raw, pieces, ended)
        except MalformedMessage as error:
            self.abort()
            receiver.response_broken(str(error), silent=False, malformed=self._in_head)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.closed = True
        self.send = _send_nowhere  # without this reference cycle no garbage collection is needed
        receiver, self._receiver = self._receiver, None
        if receiver is None:
            lost, self.on_idle_loss = self.on_idle_loss, None
            if lost is not None:
                lost(self)
            return
        head = self._head
        if head is not None and head.until_close and reason.check(ConnectionDone):
            receiver.response_more(b"", _NO_PIECES, True)
            return
        silent = head is None and not self._buffer and not self._interims
        cause = "connection closed" if reason.check(ConnectionDone) else reason.getErrorMessage()
        receiver.response_broken(cause, silent=silent, malformed=False)

    # -- reading a response

    def _read_head(self, receiver: ResponseForwarder, data: bytes) -> None:
        while True:
            if not b"HTTP/1.".startswith(data[:7]):
                raise MalformedMessage("the response is not HTTP/1")
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
                receiver.response_upgraded(head, raw_head, data)
                return
            if head.status >= 200:
                break
            self._interims += 1
            if self._interims > INTERIM_LIMIT:
                raise MalformedMessage("too many interim responses")
            if head.status != 100:  # an Expect was answered before the request was sent
                receiver.response_interim(head)
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
            self._in_head = True  # the head has not been passed on, so an error response is still possible
            raise
        receiver.response_began(head, raw, pieces, ended)

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
        # Bytes after the end belong to no request and must not be read as the response to the next.
        self._receiver = None
        self.reusable = exact and self._head is not None and self._head.keep_alive and not self.closed


def _send_nowhere(data: bytes) -> None:
    """Not connected."""
