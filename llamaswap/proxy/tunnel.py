"""A byte tunnel: two transports, each fed by the other, until either side closes.

Back-pressure works in both directions. When one side ends, what it sent is flushed to the other before that is closed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from twisted.internet.interfaces import (
    IHalfCloseableDescriptor,
    IHalfCloseableProtocol,
    IProtocol,
    IPushProducer,
    ITransport,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from llamaswap.proxy.fastpath.direct_write import write_through
from llamaswap.proxy.reader import ReaderWatch
from llamaswap.proxy.transport import TcpTransport, Transport


@implementer(IHalfCloseableProtocol)
class _End(Protocol):
    """One side: what arrives here goes to the other side's transport."""

    def __init__(self, tunnel: Tunnel) -> None:
        self._tunnel = tunnel
        self.other: _End
        self.wire: Transport
        self.lost = False
        self.ended = False  # it sends nothing more
        self.write: Callable[[bytes], None]

    def attach(self, wire: Transport) -> None:
        self.wire = wire
        self.write = write_through(wire)

    def dataReceived(self, data: bytes) -> None:
        if not self.other.lost:
            self._tunnel.count(self, data)
            self.other.write(data)

    def readConnectionLost(self) -> None:
        # Half-closed: pass it on if the other transport can do that, otherwise end the tunnel.
        self.ended = True
        if self.other.ended or not self.other.half_close():
            self._tunnel.end()

    def half_close(self) -> bool:
        """Close this side for writing; False if its transport cannot do that."""
        able: bool = IHalfCloseableDescriptor.providedBy(self.wire)
        if not able:
            return False
        wire = cast(TcpTransport, self.wire)
        wire.loseWriteConnection()
        return True

    def writeConnectionLost(self) -> None:
        """Our own half-close went out."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = True
        self._tunnel.end()


@implementer(IPushProducer)
class _BackPressure:
    """Pauses the sending side while the receiving side is full; `reader` watches the receiving one."""

    def __init__(self, source: Transport, reader: ReaderWatch | None) -> None:
        self._source = source
        self._reader = reader

    def pauseProducing(self) -> None:
        self._source.pauseProducing()
        if self._reader is not None:
            self._reader.paused()

    def resumeProducing(self) -> None:
        self._source.resumeProducing()
        if self._reader is not None:
            self._reader.resumed()

    def stopProducing(self) -> None:
        """The receiving side is lost, which `connectionLost` reports too."""


class Tunnel:
    """Joins `client` and `server`, transports with a settable `protocol`; calls `closed` once at the end.

    `early_server` is what the server sent before the tunnel was there. `sent` counts the bytes that went to the client,
    and `reader` watches whether the client reads. `passing` is called with the bytes that pass, first with none.
    """

    def __init__(
        self,
        client: Transport,
        server: Transport,
        *,
        closed: Callable[[], None],
        early_server: bytes = b"",
        reader: ReaderWatch | None = None,
        passing: Callable[[bytes], None] | None = None,
    ) -> None:
        self.sent = 0
        self._passing = passing
        self._closed: Callable[[], None] | None = closed
        self._client, self._server = _End(self), _End(self)
        for end, wire, other in ((self._client, client, self._server), (self._server, server, self._client)):
            end.attach(wire)
            end.other = other
        client.registerProducer(_BackPressure(server, reader), True)
        server.registerProducer(_BackPressure(client, None), True)
        client.protocol = self._client
        server.protocol = self._server
        if passing is not None:
            passing(b"")
        if early_server:
            self._server.dataReceived(early_server)

    def count(self, end: _End, data: bytes) -> None:
        """Some bytes pass from `end` to the other side."""
        if end is self._server:
            self.sent += len(data)
        if self._passing is not None:
            self._passing(data)

    def end(self) -> None:
        """Either side has ended: flush and close the rest."""
        closed, self._closed = self._closed, None
        if closed is None:
            return
        for end in (self._client, self._server):
            if not end.lost:
                end.wire.unregisterProducer()
                end.wire.loseConnection()
        closed()

    def abort(self) -> None:
        """End it at once, without flushing."""
        closed, self._closed = self._closed, None
        if closed is None:
            return
        for end in (self._client, self._server):
            if not end.lost:
                end.wire.abortConnection()
        closed()


@implementer(ITransport, IPushProducer)
class ClientPipe:
    """A client's connection as a tunnel sees it: a transport whose `protocol` can be set.

    The connection's owner keeps receiving its bytes and passes them on by `received` and `lost`.
    """

    def __init__(self, wire: Transport) -> None:
        self._wire = wire
        self._early = b""
        self._protocol: IProtocol | None = None
        self._lost: Failure | None = None
        self.write = write_through(wire)

    @property
    def protocol(self) -> IProtocol | None:
        """The protocol that receives the client's bytes."""
        return self._protocol

    @protocol.setter
    def protocol(self, protocol: IProtocol | None) -> None:
        self._protocol = protocol
        if protocol is None:
            return
        early, self._early = self._early, b""
        if early:
            protocol.dataReceived(early)
        if self._lost is not None:
            protocol.connectionLost(self._lost)

    def received(self, data: bytes) -> None:
        """The client sent this."""
        if self._protocol is None:
            self._early += data
        else:
            self._protocol.dataReceived(data)

    def half_lost(self) -> None:
        """The client sends nothing more, but may still read."""
        half = self._protocol
        if half is not None and IHalfCloseableProtocol.providedBy(half):
            half.readConnectionLost()
        else:
            self._wire.loseConnection()

    def lost(self, reason: Failure) -> None:
        """The client's connection is lost."""
        if self._protocol is None:
            self._lost = reason
        else:
            self._protocol.connectionLost(reason)

    def __getattr__(self, name: str) -> object:
        # loseConnection, registerProducer, pauseProducing ...
        return getattr(self._wire, name)
