"""What this program gets from the one before an upgrade: its state, and the socket it listened on."""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from typing import cast

from attrs import frozen
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.interfaces import IListeningPort, IOpenSSLContextFactory, IReactorSocket, IStreamServerEndpoint
from twisted.internet.protocol import ServerFactory

from llamaswap.proxy.listen import ListenAddress
from llamaswap.upgrade.state import INHERIT, UpgradeState, unpack


@frozen
class InheritedState:
    """What an earlier program left: the listening socket, what its operator called it, and its state, or why that
    cannot be used."""

    listening: int
    where: str
    state: UpgradeState | None
    problem: str = ""


def inherited(environ: MutableMapping[str, str]) -> InheritedState | None:
    """What an earlier program of this process left; None if there was none. Removes the notice from `environ`."""
    notice = environ.pop(INHERIT, None)
    if notice is None:
        return None
    listening, deposited, where = notice.split(":", 2)
    os.set_inheritable(int(listening), False)
    try:
        with os.fdopen(int(deposited), "rb") as file:
            return InheritedState(int(listening), where, unpack(file.read()))
    except (OSError, ValueError) as error:
        return InheritedState(int(listening), where, None, str(error))


class AdoptingReactor:
    """A reactor whose next listening socket is an inherited one, whatever the endpoint asks for."""

    def __init__(self, reactor: IReactorSocket, descriptor: int) -> None:
        self._reactor = reactor
        self._descriptor = descriptor

    def __getattr__(self, name: str) -> object:
        return getattr(self._reactor, name)

    def endpoint(self, listen: ListenAddress) -> IStreamServerEndpoint:
        """The endpoint that `listen` describes, on the inherited socket."""
        if listen.text.startswith("systemd:"):
            return TCP4ServerEndpoint(self, 0)  # any will do: systemd's descriptor was closed once it was adopted
        return listen.endpoint(self)

    def listenTCP(self, port: object, factory: ServerFactory, **options: object) -> IListeningPort:
        """Listen on the inherited socket instead of a new one."""
        with socket.socket(fileno=os.dup(self._descriptor)) as inherited:
            family = inherited.family
        try:
            return self._reactor.adoptStreamPort(self._descriptor, family, factory)
        finally:
            os.close(self._descriptor)  # the port has its own

    listenUNIX = listenTCP

    def listenSSL(
        self, port: object, factory: ServerFactory, contextFactory: IOpenSSLContextFactory, **options: object
    ) -> IListeningPort:
        """Listen with TLS on the inherited socket."""
        from twisted.protocols.tls import TLSMemoryBIOFactory

        wrapped = TLSMemoryBIOFactory(contextFactory, False, factory)
        return self.listenTCP(port, cast(ServerFactory, wrapped))
