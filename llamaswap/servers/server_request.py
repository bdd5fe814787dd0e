"""Requests to a model's own server beside the data path: readiness checks, suspend steps, liveness probes.

Only the status counts, and a connection without a response counts too. So this is not `http_client`: a model that loads
gets a request every 10 ms, and one through treq takes four times the CPU time of these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, cast

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.error import ConnectError, TimeoutError
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IReactorTCP,
    IReactorTime,
    IStreamClientEndpoint,
    ITCPTransport,
)
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.protocol import Protocol as StreamProtocol
from twisted.python.failure import Failure

from llamaswap.config import durations
from llamaswap.config.endpoints import Endpoint
from llamaswap.config.steps import StepRequest

CONNECTED = 0  # the "status" of a request that only asked for a connection
HEAD_BOUND = 4096  # bytes in which a status line must come
READ_REST = 0.25  # seconds for the rest of a response: an abort at once would look like an error to the server

GET = StepRequest("GET", "/")
Connector = Callable[[Endpoint, float], list[IStreamClientEndpoint]]


class ServerRequest(Protocol):
    """One request: GET `path` (None: only connect). Fires with the status, fails if none comes within `limit` seconds.

    `how` gives another method, and a body; its path is not used.
    """

    def __call__(self, endpoint: Endpoint, path: str | None, limit: float, how: StepRequest = GET) -> Deferred[int]: ...


@frozen
class SocketRequest:
    """A ServerRequest over a new connection."""

    clock: IReactorTime
    connector: Connector

    def __call__(self, endpoint: Endpoint, path: str | None, limit: float, how: StepRequest = GET) -> Deferred[int]:
        request = Deferred.fromCoroutine(self._request(endpoint, path, limit, how))
        return request.addTimeout(limit, self.clock, onTimeoutCancel=_too_slow)

    async def _request(self, endpoint: Endpoint, path: str | None, limit: float, how: StepRequest) -> int:
        message = b"" if path is None else _message(endpoint, path, how)
        connection = await _connect(self.connector(endpoint, limit), self.clock, message)
        return await connection.status


def connector(reactor: IReactorTCP) -> Connector:
    """Makes the ways to reach an endpoint, the likeliest first. `localhost` is both families: servers bind either."""

    def ways(endpoint: Endpoint, limit: float) -> list[IStreamClientEndpoint]:
        four = {"localhost": "127.0.0.1", "0.0.0.0": "127.0.0.1"}.get(endpoint.host, endpoint.host)
        found: list[IStreamClientEndpoint] = []
        if endpoint.host in ("::", "::1"):
            found.append(TCP6ClientEndpoint(reactor, "::1", endpoint.port, timeout=limit))
        elif four.replace(".", "").isdigit():
            found.append(TCP4ClientEndpoint(reactor, four, endpoint.port, timeout=limit))
            if endpoint.host == "localhost":
                found.append(TCP6ClientEndpoint(reactor, "::1", endpoint.port, timeout=limit))
        else:
            found.append(HostnameEndpoint(reactor, endpoint.host.encode(), endpoint.port, timeout=limit))
        if endpoint.scheme == "https":
            from twisted.internet.ssl import optionsForClientTLS  # an optional package: only https needs it

            options = optionsForClientTLS(endpoint.host)
            found = [wrapClientTLS(options, way) for way in found]
        return found

    return ways


def _message(endpoint: Endpoint, path: str, how: StepRequest) -> bytes:
    target = f"{endpoint.path}/{path.lstrip('/')}"
    if endpoint.query:
        target += ("&" if "?" in target else "?") + endpoint.query
    body = how.body.encode()
    lines = [
        f"{how.method} {target} HTTP/1.1",
        f"Host: {endpoint.authority}",
        "User-Agent: llamaswap",
        "Accept: */*",
        "Connection: close",  # several servers have few threads, and a kept connection occupies one
    ]
    if body:
        lines.append("Content-Type: application/json")
    if how.method != "GET":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "\r\n"]).encode() + body


async def _connect(ways: Sequence[IStreamClientEndpoint], clock: IReactorTime, message: bytes) -> _RequestConnection:
    for number, way in enumerate(ways):
        connection = _RequestConnection(clock, message)
        try:
            await way.connect(_SingleUse(connection))
        except ConnectError:
            if number + 1 == len(ways):
                raise
        else:
            return connection
    raise ConnectError(string="no way to reach it")


class _SingleUse(Factory):
    """Hands out the one protocol it was made for."""

    noisy = False

    def __init__(self, connection: StreamProtocol) -> None:
        self._connection = connection

    def buildProtocol(self, addr: IAddress | None) -> StreamProtocol:
        return self._connection


class _RequestConnection(StreamProtocol):
    """Sends `message` and reads the status line; without a message the connection is all."""

    def __init__(self, clock: IReactorTime, message: bytes) -> None:
        self.status: Deferred[int] = Deferred(lambda _: self._abort())
        self._clock = clock
        self._message = message
        self._head = b""
        self._closing: IDelayedCall | None = None

    def connectionMade(self) -> None:
        assert self.transport is not None
        if self._message:
            self.transport.write(self._message)
        else:
            self._succeed(CONNECTED)
            self.transport.loseConnection()

    def dataReceived(self, data: bytes) -> None:
        if self._closing is not None:
            return
        self._head += data
        line, end, rest = self._head.partition(b"\r\n")
        if not end:
            if len(self._head) > HEAD_BOUND:
                self._fail("the answer is not HTTP")
            return
        words = line.split(b" ", 2)
        if not words[0].startswith(b"HTTP/") or len(words) < 2 or not words[1].isdigit():
            self._fail("the answer is not HTTP")
            return
        status = int(words[1])
        if status < 200:  # an interim response: skip its head, the real one follows
            _, over, self._head = rest.partition(b"\r\n\r\n") if not rest.startswith(b"\r\n") else (b"", b"x", rest[2:])
            if over:
                self.dataReceived(b"")
            return
        self._closing = self._clock.callLater(READ_REST, self._abort)
        self._succeed(status)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._closing is not None and self._closing.active():
            self._closing.cancel()
        if not self.status.called:
            self.status.errback(ConnectError(string="the connection closed without an answer"))

    def _succeed(self, status: int) -> None:
        if not self.status.called:
            self.status.callback(status)

    def _fail(self, why: str) -> None:
        self._abort()
        if not self.status.called:
            self.status.errback(ConnectError(string=why))

    def _abort(self) -> None:
        cast(ITCPTransport, self.transport).abortConnection()


def _too_slow(result: int | Failure, limit: float) -> int | Failure:
    """The time limit of a request looks like any other timeout."""
    if isinstance(result, Failure) and result.check(CancelledError):
        raise TimeoutError(string=f"no answer within {durations.render(limit)}")
    return result
