"""Requests for the twisted.web site, on a connection that others answer on in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IPushProducer, ISSLTransport, ITransport
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, Request
from zope.interface import directlyProvides, implementer, providedBy

from llamaswap.errors import BodyTooLarge
from llamaswap.proxy.framing import HEAD_LIMIT, HEADER_COUNT, Framing
from llamaswap.proxy.transaction import ClientTransport, HttpTransaction
from llamaswap.proxy.tunnel import ClientPipe


class SiteChannel(HTTPChannel):
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
class SiteTransport:
    """The connection as the site's channel sees it: its own, though others answer on it in between."""

    def __init__(self, door: ClientTransport) -> None:
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


class SiteTransaction(HttpTransaction):
    """A request for the twisted.web site."""

    __slots__ = (
        "_arrived",
        "_channel",
        "_largest",
        "_transport",
    )

    def __init__(
        self, door: ClientTransport, framing: Framing, channel: SiteChannel, transport: SiteTransport, largest: int
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
            raise BodyTooLarge(self._largest)
        self._channel.dataReceived(raw)

    def lost(self, reason: Failure) -> None:
        """The channel is told by the door."""

    def spoilt(self) -> bool:
        return True
