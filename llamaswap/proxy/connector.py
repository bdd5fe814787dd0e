"""Makes connections to servers: plain, by name, or encrypted."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.error import ConnectionDone, ConnectionRefusedError, UserError
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.interfaces import IReactorPluggableNameResolver, IReactorTCP, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import ClientFactory
from twisted.python.failure import Failure

from llamaswap.errors import UpstreamUnreachable
from llamaswap.proxy.fastpath.direct_connect import connect_now
from llamaswap.proxy.upstream import UpstreamConnection, UpstreamTarget

NO_TIMEOUT = 10.0**6  # seconds; Twisted's endpoints want a number


class ConnectAttempt(ClientFactory):
    """One attempt to connect; `failed` is called if it ends without a connection."""

    noisy = False

    def __init__(self, connection: UpstreamConnection, failed: Callable[[Failure], None] | None = None) -> None:
        self._connection: UpstreamConnection | None = connection
        self._failed = failed

    def buildProtocol(self, addr: object) -> UpstreamConnection | None:
        # The attempt lives as long as the connection and must not form a reference cycle with it.
        connection, self._connection, self._failed = self._connection, None, None
        return connection

    def clientConnectionFailed(self, connector: Any, reason: Failure) -> None:
        failed, self._connection, self._failed = self._failed, None, None
        if failed is not None:
            failed(reason)

    def clientConnectionLost(self, connector: Any, reason: Failure) -> None:
        connector.transport = None  # or the two would form a reference cycle


@lru_cache(maxsize=256)
def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


class IReactorForConnections(IReactorTCP, IReactorTime, IReactorPluggableNameResolver):
    """What a Connector needs of the reactor."""


@define(eq=False)
class Connector:
    """Makes connections."""

    _reactor: IReactorForConnections
    # The loopback address on which localhost:PORT was reached last; a resolver would cost a thread's round trip.
    _loopback: dict[int, str] = field(factory=dict, init=False)

    def connect(self, upstream: UpstreamTarget) -> Deferred[UpstreamConnection]:
        """A new connection, after its TLS handshake if it has one. Fails with UpstreamUnreachable(sent=False)."""
        endpoint = upstream.endpoint
        if upstream.encrypted:
            return Deferred.fromCoroutine(self._resolved(upstream))
        if endpoint.host.lower() == "localhost":
            return self._localhost(upstream)
        if _is_literal(endpoint.host):
            return self._plain(upstream, endpoint.host)
        return Deferred.fromCoroutine(self._resolved(upstream))

    def connect_now(self, upstream: UpstreamTarget) -> UpstreamConnection | None:
        """A new connection to a server of this machine, if there is one at once; else it takes `connect`."""
        host, port = upstream.endpoint.host, upstream.endpoint.port
        if host == "localhost":
            host = self._loopback.get(port, "127.0.0.1")
        if upstream.encrypted or not host.startswith("127.") or not _is_literal(host):
            return None
        connection = UpstreamConnection()
        if not connect_now(self._reactor, host, port, connection):
            return None
        self._tune(connection, upstream)
        return connection

    def _plain(self, upstream: UpstreamTarget, host: str) -> Deferred[UpstreamConnection]:
        connection = UpstreamConnection()
        limit = upstream.timeouts.connect
        result: Deferred[UpstreamConnection] = Deferred(lambda _: connector.disconnect())

        def connected() -> None:
            self._tune(connection, upstream)
            result.callback(connection)

        def failed(reason: Failure) -> None:
            if not result.called:
                result.errback(_unreachable(upstream, reason, limit))

        connection.on_made = connected
        connector = self._reactor.connectTCP(
            host,
            upstream.endpoint.port,
            ConnectAttempt(connection, failed),
            timeout=limit or None,  # type: ignore[arg-type] # Twisted takes None for no limit
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

    async def _resolved(self, upstream: UpstreamTarget) -> UpstreamConnection:
        """A connection to a server that is known by its name, or encrypted."""
        from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS

        limit, host = upstream.timeouts.connect, upstream.endpoint.host
        connection = UpstreamConnection()
        handshake: Deferred[None] | None = None
        endpoint: IStreamClientEndpoint = HostnameEndpoint(
            self._reactor, host, upstream.endpoint.port, timeout=limit or NO_TIMEOUT
        )
        if upstream.encrypted:
            # OpenSSL takes 13 MB of memory: it is imported with the first connection to an encrypted server.
            from twisted.internet.ssl import optionsForClientTLS

            endpoint = wrapClientTLS(optionsForClientTLS(host), endpoint)
            handshake = done = Deferred[None]()
            connection.on_handshake = lambda: done.callback(None) if not done.called else None
            connection.on_idle_loss = lambda _: done.errback(ConnectionDone()) if not done.called else None
        try:
            await endpoint.connect(ConnectAttempt(connection))
            if handshake is not None:
                if upstream.timeouts.tls_handshake and not handshake.called:
                    handshake.addTimeout(upstream.timeouts.tls_handshake, self._reactor)
                await handshake
        except Exception as error:
            if connection.transport is not None:  # it was connected
                connection.abort()
            if isinstance(error, DeferredTimeout):
                raise UpstreamUnreachable(upstream.where, "TLS handshake timed out", sent=False)
            raise _unreachable(upstream, Failure(), limit)
        connection.on_idle_loss = None
        self._tune(connection, upstream)
        return connection

    def _tune(self, connection: UpstreamConnection, upstream: UpstreamTarget) -> None:
        wire = connection.wire
        wire.setTcpNoDelay(True)
        if upstream.timeouts.keepalive:
            # A long response may be silent; a vanished host must still be noticed.
            wire.setTcpKeepAlive(True)


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
