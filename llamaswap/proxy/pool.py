"""Idle connections to servers, kept only if the server can afford it.

Local servers built on cpp-httplib have a handful of threads, and each idle connection occupies one for seconds: after a
burst the next requests would wait five seconds for a thread. So an unknown server gets at most one idle connection, for
at most two seconds. A server that names itself as event-driven, and a peer, gets a real pool.
"""

from __future__ import annotations

import re
from collections import deque
from functools import lru_cache

from attrs import Factory, define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from llamaswap.config.endpoints import Endpoint
from llamaswap.proxy.connector import Connector, IReactorForConnections
from llamaswap.proxy.framing import ResponseHead
from llamaswap.proxy.upstream import UpstreamConnection, UpstreamTarget

UNKNOWN_IDLE = 1
UNKNOWN_SECONDS = 2.0  # cpp-httplib's own limit is 5 s and its thread is blocked meanwhile
EVENT_DRIVEN_IDLE = 64
EXPIRY_MARGIN = 1.0  # seconds: the server may be closing a connection that is older
PEER_SECONDS = 30.0
# Default idle limits, in seconds, of servers that run an event loop; short ones less the margin.
EVENT_DRIVEN = {
    b"uvicorn": 4.0,  # its own default is 5 s
    b"hypercorn": 4.0,  # 5 s
    b"aiohttp": 60.0,  # 75 s and more
    b"nginx": 60.0,  # 75 s
    b"vllm": 4.0,  # uvicorn inside
    b"granian": 4.0,
}
# As a word anywhere in the Server header: "Python/3.12 aiohttp/3.11", "hypercorn-h11", "uvicorn".
_NAME = re.compile(rb"\b(?:%b)\b" % b"|".join(EVENT_DRIVEN))
# A peer that is such a server itself, or has one behind it. Without TLS a new connection costs little.
_FEW_THREADS = re.compile(rb"llama\.cpp|cpp-httplib", re.IGNORECASE)
_HINT = re.compile(rb"(?:^|[\s,;])timeout\s*=\s*\"?(\d{1,6})", re.IGNORECASE)


@lru_cache(maxsize=64)
def _event_driven(server: bytes) -> float | None:
    """The idle limit of a server that names itself so, in seconds; None when it is not known as event-driven."""
    named = _NAME.search(server.lower())
    return None if named is None else EVENT_DRIVEN[named.group()]


@define(eq=False)
class Pool:
    """Connections that wait for their next request."""

    _reactor: IReactorForConnections
    _connector: Connector = field(default=Factory(lambda self: Connector(self._reactor), takes_self=True))
    _idle: dict[tuple[str, str, int], deque[UpstreamConnection]] = field(factory=dict, init=False)
    _sweep: IDelayedCall | None = field(default=None, init=False)
    _closed: bool = field(default=False, init=False)

    def acquire(self, upstream: UpstreamTarget) -> UpstreamConnection | None:
        """The idle connection used last, if there is one that the server does not close by now."""
        waiting = self._idle.get(upstream.pool_key)
        if not waiting:
            return None
        now = self._reactor.seconds()
        while waiting:
            connection = waiting.pop()
            connection.on_idle_loss = None
            if connection.closed:
                continue
            if connection.idle_until > now:
                return connection
            connection.close()
        return None

    def connect_now(self, upstream: UpstreamTarget) -> UpstreamConnection | None:
        """A new connection, if it can be had at once; see `Connector.connect_now`."""
        return self._connector.connect_now(upstream)

    def connect(self, upstream: UpstreamTarget) -> Deferred[UpstreamConnection]:
        """A new connection; see `Connector.connect`."""
        return self._connector.connect(upstream)

    def release(self, upstream: UpstreamTarget, connection: UpstreamConnection, head: ResponseHead) -> None:
        """Keep a connection whose response is complete, if the server can afford it; else close it."""
        if self._closed or not connection.reusable:
            connection.close()
            return
        bound, seconds = self._policy(upstream, head)
        if seconds <= 0:
            connection.close()
            return
        # A connection that stayed paused would not receive its next response.
        connection.resume()
        key = upstream.pool_key
        waiting = self._idle.get(key)
        if waiting is None:
            waiting = self._idle[key] = deque()
        if len(waiting) >= bound:
            waiting.popleft().close()
        connection.on_idle_loss = self._lost
        connection.idle_until = until = self._reactor.seconds() + seconds
        waiting.append(connection)
        if self._sweep is None:
            self._sweep = self._reactor.callLater(seconds, self._sweep_idle)
        elif self._sweep.getTime() > until:
            self._sweep.reset(seconds)

    def forget(self, endpoint: Endpoint) -> None:
        """Close the idle connections to a server that has stopped."""
        for connection in self._idle.pop(endpoint.address, ()):
            connection.close()

    def close(self) -> None:
        """Close all idle connections, and keep none from now on."""
        self._closed = True
        while self._idle:
            _, waiting = self._idle.popitem()
            for connection in waiting:
                connection.close()
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None

    @property
    def idle(self) -> int:
        """The number of idle connections."""
        return sum(len(waiting) for waiting in self._idle.values())

    def _policy(self, upstream: UpstreamTarget, head: ResponseHead) -> tuple[int, float]:
        bound, seconds = UNKNOWN_IDLE, UNKNOWN_SECONDS
        known = _event_driven(head.server) if head.server else None
        if known is not None:
            bound, seconds = EVENT_DRIVEN_IDLE, known
        elif upstream.peer and (upstream.encrypted or not _FEW_THREADS.search(head.server)):
            bound, seconds = EVENT_DRIVEN_IDLE, PEER_SECONDS
        if head.keep_alive_hint:
            hint = _HINT.search(head.keep_alive_hint)
            if hint is not None:
                offered = int(hint.group(1)) - EXPIRY_MARGIN
                seconds = offered if bound > UNKNOWN_IDLE else min(seconds, offered)
        limit = upstream.timeouts.idle_conn
        return bound, min(seconds, limit) if limit else seconds

    def _lost(self, connection: UpstreamConnection) -> None:
        for key, waiting in self._idle.items():
            if connection in waiting:
                waiting.remove(connection)
                if not waiting:
                    del self._idle[key]
                return

    def _sweep_idle(self) -> None:
        self._sweep = None
        now = self._reactor.seconds()
        soonest: float | None = None
        for key, waiting in list(self._idle.items()):
            for connection in [connection for connection in waiting if connection.idle_until <= now]:
                waiting.remove(connection)
                connection.close()
            if not waiting:
                del self._idle[key]
            for connection in waiting:
                if soonest is None or connection.idle_until < soonest:
                    soonest = connection.idle_until
        if soonest is not None:
            # Not at once, because a busy pool would then wake for each single connection.
            self._sweep = self._reactor.callLater(max(soonest - now, 0.25), self._sweep_idle)
