"""Requests for the twisted.web site, on a connection that also carries requests for the proxy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from twisted.internet.interfaces import IPushProducer, ISSLTransport, ITransport
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, Request
from zope.interface import directlyProvides, implementer, providedBy

from llamaswap.errors import BodyTooLarge
from llamaswap.proxy.framing import HEAD_LIMIT, HEADER_COUNT, Framing
from llamaswap.proxy.transaction import HttpTransaction

if TYPE_CHECKING:
    from twisted.web.server import Site

    from llamaswap.proxy.client_connection import ClientConnection


class SiteChannel(HTTPChannel):
    """A twisted.web channel that gets its requests one by one from a ClientConnection.

    The connection has checked and bounded the heads, and it also watches the time until the next one.
    """

    totalHeadersSize = HEAD_LIMIT * 2
    maxHeaders = HEADER_COUNT
    MAX_LENGTH = HEAD_LIMIT * 2
    timeOut = None

    def __init__(self, site: Site, completed: Callable[[], None]) -> None:
        super().__init__()
        self.factory = self.site = site
        self.requestFactory = site.requestFactory
        self._completed = completed

    def requestDone(self, request: Request) -> None:
        super().requestDone(request)
        self._completed()


@implementer(ITransport, IPushProducer)
class SiteTransport:
    """The connection as the site's channel sees it: as if it were the channel's alone."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.paused = False
        self.producer: IPushProducer | None = None
        if connection.secure:
            directlyProvides(self, providedBy(self), ISSLTransport)

    def write(self, data: bytes) -> None:
        self.connection.send(data)

    def writeSequence(self, data: Iterable[bytes]) -> None:
        self.connection.send(b"".join(data))

    def loseConnection(self) -> None:
        self.connection.close()

    def abortConnection(self) -> None:
        self.connection.abort()

    def registerProducer(self, producer: IPushProducer, streaming: bool) -> None:
        """The channel registers itself for good, the connection only while it handles a request for the site."""
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None
        self.connection.wire.unregisterProducer()

    def pauseProducing(self) -> None:
        self.paused = True
        self.connection.reading_changed()

    def resumeProducing(self) -> None:
        self.paused = False
        self.connection.reading_changed()

    def stopProducing(self) -> None:
        self.connection.close()

    def __getattr__(self, name: str) -> object:
        # getPeer, getHost, disconnecting, getPeerCertificate ...
        return getattr(self.connection.wire, name)


class SiteLink:
    """What a connection has for the site from its first request there: the channel, and what that writes to."""

    def __init__(self, connection: ClientConnection, site: Site, completed: Callable[[], None]) -> None:
        self.transport = SiteTransport(connection)
        self.channel = SiteChannel(site, completed)
        self.channel.makeConnection(self.transport)

    def begin(self, raw: bytes) -> None:
        """Begin a request, of which this is the head."""
        producer = self.transport.producer
        if producer is not None:
            self.transport.connection.wire.registerProducer(producer, True)
            self.channel.resumeProducing()  # it may have been left paused after its last request
        self.channel.dataReceived(raw)


class SiteTransaction(HttpTransaction):
    """A request for the twisted.web site."""

    __slots__ = ("_body_limit", "_link", "_received")

    def __init__(self, connection: ClientConnection, framing: Framing, link: SiteLink, body_limit: int) -> None:
        super().__init__(connection, framing)
        if self._left > body_limit:
            raise BodyTooLarge(body_limit)
        self._body_limit = body_limit
        self._received = 0
        self._link = link

    @property
    def wants_body(self) -> bool:
        return not self._link.transport.paused

    def body_received(self, raw: bytes, pieces: list[bytes]) -> None:
        self._received += len(raw)
        if self._received > self._body_limit:  # the site holds the whole body before it handles the request
            raise BodyTooLarge(self._body_limit)
        self._link.channel.dataReceived(raw)

    def lost(self, reason: Failure) -> None:
        """The connection notifies the channel itself."""

    def body_failed(self) -> bool:
        return True
