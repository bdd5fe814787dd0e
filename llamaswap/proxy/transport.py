"""What the proxy uses of a Twisted transport: of a TCP, UNIX or TLS connection alike."""

from __future__ import annotations

import socket
from typing import Protocol

from twisted.internet.interfaces import IAddress, IProtocol, IPushProducer

from llamaswap.wire.headers import address_host

TCP_ESTABLISHED = 1  # in the kernel's TCP_INFO


class Transport(Protocol):
    """A connection's transport. `protocol` receives its bytes."""

    protocol: IProtocol | None

    def write(self, data: bytes, /) -> None: ...
    def writeSequence(self, data: list[bytes], /) -> None: ...
    def loseConnection(self) -> None: ...
    def abortConnection(self) -> None: ...
    def registerProducer(self, producer: IPushProducer, streaming: bool, /) -> None: ...
    def unregisterProducer(self) -> None: ...
    def pauseProducing(self) -> None: ...
    def resumeProducing(self) -> None: ...
    def getPeer(self) -> IAddress: ...
    def getHost(self) -> IAddress: ...


class TcpTransport(Transport, Protocol):
    """The transport of a TCP connection, perhaps with TLS on it. `logstr` names it in Twisted's own log."""

    logstr: str

    def setTcpNoDelay(self, enabled: bool, /) -> None: ...
    def setTcpKeepAlive(self, enabled: bool, /) -> None: ...
    def loseWriteConnection(self) -> None: ...
    def getHandle(self) -> object: ...


def kernel_socket(transport: object) -> socket.socket | None:
    """The socket of a connection, perhaps with TLS on it; None for a transport without one."""
    tcp = getattr(transport, "transport", transport)  # below TLS
    handle = tcp.getHandle() if hasattr(tcp, "getHandle") else None
    return handle if isinstance(handle, socket.socket) else None


def peer_host(transport: TcpTransport) -> str:
    """The host of the other side, "" if it has none (a UNIX socket)."""
    client = getattr(transport, "client", None)  # what accept() gave: it saves making an address object
    if isinstance(client, tuple) and not client[0].startswith("::ffff:"):
        return str(client[0])
    return address_host(transport.getPeer())


def client_has_closed(transport: TcpTransport) -> bool:
    """Whether the kernel knows that the client has closed its side of the connection or is gone."""
    handle = kernel_socket(transport)
    if handle is None or not hasattr(socket, "TCP_INFO"):
        return False
    try:
        return handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != TCP_ESTABLISHED
    except OSError:
        return False
