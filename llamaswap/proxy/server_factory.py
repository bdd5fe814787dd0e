"""Listens for clients: the factory of their connections, with the limits and queries that concern all of them."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaswap.proxy.client_connection import ClientConnection
from llamaswap.proxy.exchange import Exchange, RequestHead
from llamaswap.proxy.fastpath.known_heads import request_parser
from llamaswap.proxy.fastpath.memory_trim import LowWaterTrimmer, trimmer
from llamaswap.proxy.framing import Framing
from llamaswap.proxy.incoming_body import SPOOL_THRESHOLD
from llamaswap.proxy.task import Awaitable
from llamaswap.wire.byte_budget import UNBOUNDED, ByteBudget

if TYPE_CHECKING:
    from twisted.web.server import Site

HEAD_TIMEOUT = 60.0  # seconds for a head to be complete
IDLE_TIMEOUT = 75.0  # seconds; longer than the 60 for which common proxies keep their side
BODY_TIMEOUT = 120.0  # seconds between two pieces of a body; a stalled client may hold a model that others wait for
SWEEP_INTERVAL = 5.0  # seconds

trim = trimmer()
log = Logger()


@define(eq=False, slots=False)
class ProxyServerFactory(Factory):
    """Makes a ClientConnection for each client.

    `routes(head)` says, of the head alone, whether a request goes to `handler(exchange)`; every other goes to the
    twisted.web `site`. If that is None, `load_site` makes it when the first request for it comes, and `routes` is asked
    again. What the handler returns ends when the response is complete or will never be; then
    `served(exchange, status, bytes)` is called with what went out (status 0: nothing). Times are in seconds,
    `spool_threshold` in bytes; `spool_folder` None is the system's folder for temporary files. `body_limit(head)` is
    how many bytes the body of a request for the site may have; `memory` and `disk` bound all other bodies. Pages of
    `origins()` may read responses of models.
    """

    noisy = False
    routes: Callable[[RequestHead], bool]
    handler: Callable[[Exchange], Awaitable]
    site: Site | None
    clock: IReactorTime
    head_timeout: float = HEAD_TIMEOUT
    idle_timeout: float = IDLE_TIMEOUT
    body_timeout: float = BODY_TIMEOUT
    spool_threshold: int = SPOOL_THRESHOLD
    spool_folder: str | None = None
    memory: ByteBudget = UNBOUNDED
    disk: ByteBudget = UNBOUNDED
    body_limit: Callable[[RequestHead], int] = lambda head: sys.maxsize
    served: Callable[[Exchange, int, int], None] = lambda exchange, status, sent: None
    origins: Callable[[], Collection[str]] = lambda: ("*",)
    load_site: Callable[[], Deferred[Site]] = Deferred
    parse_request: Callable[[bytes], tuple[RequestHead, Framing]] = field(factory=request_parser, init=False)
    draining: bool = field(default=False, init=False)
    holding: bool = field(default=False, init=False)
    _connections: set[ClientConnection] = field(factory=set, init=False)
    _memory_trimmer: LowWaterTrimmer = field(init=False)
    _sweep: IDelayedCall | None = field(default=None, init=False)
    _waiting_for_site: list[ClientConnection] = field(factory=list, init=False)

    @_memory_trimmer.default
    def _default_memory_trimmer(self) -> LowWaterTrimmer:
        return LowWaterTrimmer(self.clock, trim)

    def buildProtocol(self, addr: object) -> ClientConnection:
        return ClientConnection(self)

    def startFactory(self) -> None:
        if self.site is not None:
            self.site.doStart()

    def stopFactory(self) -> None:
        if self.site is not None:
            self.site.doStop()

    def need_site(self, connection: ClientConnection) -> None:
        """Load the site, then pass the request of this connection to it; close the connection if loading fails."""
        self._waiting_for_site.append(connection)
        if len(self._waiting_for_site) == 1:
            self.load_site().addCallbacks(self._site_loaded, self._site_failed)

    def _site_loaded(self, site: Site) -> None:
        self.site = site
        if self.numPorts:
            site.doStart()
        waiting, self._waiting_for_site = self._waiting_for_site, []
        for connection in waiting:
            connection.site_loaded()

    def _site_failed(self, failure: Failure) -> None:
        log.failure("the admin site cannot be loaded; closing the connections that wait for it", failure)
        waiting, self._waiting_for_site = self._waiting_for_site, []
        for connection in self._connections.intersection(waiting):
            connection.abort()

    @property
    def connections(self) -> int:
        """Open client connections."""
        return len(self._connections)

    def drain(self) -> None:
        """Close what is idle now, and every other connection after its present response."""
        self.draining = True
        for connection in list(self._connections):
            if connection.waiting_since() is not None:
                connection.close()

    def hold(self) -> None:
        """Begin no request that has not come yet: what clients send meanwhile stays unread. Secure connections are
        closed as soon as they are idle, because their state cannot be handed over."""
        self.holding = True
        for connection in list(self._connections):
            if connection.secure and not connection.expects_first_request and connection.waiting_since() is not None:
                connection.close()
            else:
                connection.reading_changed()

    def release(self) -> None:
        """Read requests again."""
        self.holding = False
        for connection in list(self._connections):
            connection.reading_changed()

    @property
    def busy(self) -> int:
        """Connections with a request under way, or with the rest of a response to send."""
        return sum(not connection.idle for connection in self._connections)

    def abort_busy(self) -> None:
        """Close all busy connections at once."""
        for connection in list(self._connections):
            if not connection.idle:
                connection.abort()

    def handover(self) -> list[tuple[socket.socket, bytes]]:
        """The socket of each idle connection, and what was read of its next request, for the next program."""
        return [connection.handover() for connection in self._connections if connection.idle and not connection.secure]

    def adopt(self, reactor: Any, descriptor: int, family: int, early: bytes) -> None:
        """Serve a connection that was handed over, unless it was closed meanwhile."""
        try:
            wire = reactor.adoptStreamConnection(descriptor, family, self)
        except OSError:
            return
        finally:
            os.close(descriptor)  # the transport has its own
        if early:
            wire.protocol.dataReceived(early)

    def abort(self) -> None:
        """Close every connection at once, except those that still deliver the end of a response."""
        self.draining = True
        for connection in list(self._connections):
            if not connection.lingering:
                connection.abort()

    def client_connected(self, connection: ClientConnection) -> None:
        """A client connected."""
        self._connections.add(connection)
        self._memory_trimmer.count(len(self._connections))
        if self._sweep is None:
            self._sweep = self.clock.callLater(SWEEP_INTERVAL, self._sweep_connections)

    def client_disconnected(self, connection: ClientConnection) -> None:
        """A client has disconnected."""
        self._connections.discard(connection)
        self._memory_trimmer.count(len(self._connections))
        if not self._connections and self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None

    def _sweep_connections(self) -> None:
        # One walk every few seconds costs less than a timer that every request moves.
        now = self.clock.seconds()
        self._sweep = self.clock.callLater(SWEEP_INTERVAL, self._sweep_connections)
        for connection in list(self._connections):
            waiting = connection.waiting_since()
            if waiting is not None:
                since, begun = waiting
                if now - since >= (self.head_timeout if begun else self.idle_timeout):
                    connection.close()
            elif connection.body_overdue(now):
                connection.refuse_overdue_body()
