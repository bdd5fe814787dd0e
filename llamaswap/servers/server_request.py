"""Requests to a model's own server beside the data path: readiness checks, suspend steps, probes, its capabilities.

For most of them only the status counts, and a connection without a response counts too. So this is not `http_client`: a
model that loads gets a request every 10 ms, and one through treq takes four times the CPU time of these. Every process
with a model makes such requests, and treq would take 12 MB of its memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar, cast

from attrs import frozen
from httptools import HttpParserError, HttpResponseParser
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.error import ConnectError, ConnectionDone, TimeoutError
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
from llamaswap.config.endpoints import TOKEN_HEADER, Endpoint
from llamaswap.config.steps import StepRequest
from llamaswap.http_client import BODY_LIMIT, HttpResponse

CONNECTED = 0  # the "status" of a request that only asked for a connection
READ_REST = 0.25  # seconds for the rest of a response: an abort at once would look like an error to the server

GET = StepRequest("GET", "/")

P = TypeVar("P", bound=StreamProtocol)
T = TypeVar("T")

GetResponse = Callable[[Endpoint, str, float, Mapping[str, str]], Deferred[HttpResponse]]


class ServerRequest(Protocol):
    """One request: GET `path` (None: only connect). Fires with the status, fails if none comes within `limit` seconds.

    `how` gives another method, and a body; its path is not used.
    """

    def __call__(self, endpoint: Endpoint, path: str | None, limit: float, how: StepRequest = GET) -> Deferred[int]: ...


class IReactorForRequests(IReactorTCP, IReactorTime):
    """A reactor that connects and has a clock."""


@frozen
class SocketRequest:
    """A ServerRequest over a new connection."""

    reactor: IReactorForRequests

    def __call__(self, endpoint: Endpoint, path: str | None, limit: float, how: StepRequest = GET) -> Deferred[int]:
        request = Deferred.fromCoroutine(self._request(endpoint, path, limit, how))
        return request.addTimeout(limit, self.reactor, onTimeoutCancel=_too_slow)

    def get(
        self, endpoint: Endpoint, path: str, limit: float, headers: Mapping[str, str], how: StepRequest = GET
    ) -> Deferred[HttpResponse]:
        """A whole response of at most BODY_LIMIT bytes; a longer or an incomplete one is a ConnectError."""
        message = _message(endpoint, path, how, headers)
        request = Deferred.fromCoroutine(self._whole(endpoint, message, limit))
        return request.addTimeout(limit, self.reactor, onTimeoutCancel=_too_slow)

    async def _whole(self, endpoint: Endpoint, message: bytes, limit: float) -> HttpResponse:
        response = await self._connected(endpoint, limit, lambda: _WholeResponse(self.reactor, message))
        return await response.whole

    async def _request(self, endpoint: Endpoint, path: str | None, limit: float, how: StepRequest) -> int:
        message = b"" if path is None else _message(endpoint, path, how)
        response = await self._connected(endpoint, limit, lambda: _ResponseStatus(self.reactor, message))
        return await response.status

    async def _connected(self, endpoint: Endpoint, limit: float, make: Callable[[], P]) -> P:
        """A new protocol of this kind, with a connection to the endpoint."""
        ways = self._ways(endpoint, limit)
        for way in ways[:-1]:
            protocol = make()
            try:
                await way.connect(_SingleUse(protocol))
            except ConnectError:
                continue
            return protocol
        protocol = make()
        await ways[-1].connect(_SingleUse(protocol))
        return protocol

    def _ways(self, endpoint: Endpoint, limit: float) -> list[IStreamClientEndpoint]:
        """The ways to reach an endpoint, the likeliest first. `localhost` is both families: servers bind either."""
        four = {"localhost": "127.0.0.1", "0.0.0.0": "127.0.0.1"}.get(endpoint.host, endpoint.host)
        found: list[IStreamClientEndpoint] = []
        if endpoint.host in ("::", "::1"):
            found.append(TCP6ClientEndpoint(self.reactor, "::1", endpoint.port, timeout=limit))
        elif four.replace(".", "").isdigit():
            found.append(TCP4ClientEndpoint(self.reactor, four, endpoint.port, timeout=limit))
            if endpoint.host == "localhost":
                found.append(TCP6ClientEndpoint(self.reactor, "::1", endpoint.port, timeout=limit))
        else:
            found.append(HostnameEndpoint(self.reactor, endpoint.host.encode(), endpoint.port, timeout=limit))
        if endpoint.scheme == "https":
            from twisted.internet.ssl import optionsForClientTLS  # an optional package: only https needs it

            options = optionsForClientTLS(endpoint.host)
            found = [wrapClientTLS(options, way) for way in found]
        return found


def _message(endpoint: Endpoint, path: str, how: StepRequest, headers: Mapping[str, str] = {}) -> bytes:
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
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if endpoint.token:
        lines.append(f"{TOKEN_HEADER}: {endpoint.token}")
    if body:
        lines.append("Content-Type: application/json")
    if how.method != "GET":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "\r\n"]).encode() + body


class _SingleUse(Factory):
    """Hands out one protocol. Twisted's `connectProtocol` makes a class each time, as slow as the request itself."""

    noisy = False

    def __init__(self, protocol: StreamProtocol) -> None:
        self._protocol = protocol

    def buildProtocol(self, addr: IAddress | None) -> StreamProtocol:
        return self._protocol


class _ResponseStatus(StreamProtocol):
    """Sends `message` and reads the status of the response; without a message the connection is all."""

    def __init__(self, clock: IReactorTime, message: bytes) -> None:
        self.status: Deferred[int] = Deferred(lambda _: self._abort())
        self._clock = clock
        self._message = message
        self._parser = HttpResponseParser(self)
        self._closing: IDelayedCall | None = None

    def connectionMade(self) -> None:
        assert self.transport is not None
        if self._message:
            self.transport.write(self._message)
        else:
            self.status.callback(CONNECTED)
            self.transport.loseConnection()

    def dataReceived(self, data: bytes) -> None:
        if self._closing is not None:
            return
        try:
            self._parser.feed_data(data)
        except HttpParserError:
            self._abort()
            self._fail("the answer is not HTTP")

    def on_headers_complete(self) -> None:
        """Called by the parser, also for interim responses."""
        status = self._parser.get_status_code()
        if status >= 200 and self._closing is None:
            self._closing = self._clock.callLater(READ_REST, self._abort)
            if not self.status.called:
                self.status.callback(status)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._closing is not None and self._closing.active():
            self._closing.cancel()
        self._fail("the connection closed without an answer")

    def _fail(self, reason: str) -> None:
        if not self.status.called:
            self.status.errback(ConnectError(string=reason))

    def _abort(self) -> None:
        cast(ITCPTransport, self.transport).abortConnection()


class _WholeResponse(_ResponseStatus):
    """Reads the whole response to `message`."""

    def __init__(self, clock: IReactorTime, message: bytes) -> None:
        super().__init__(clock, message)
        self.whole: Deferred[HttpResponse] = Deferred(lambda _: self._abort())
        self._body = bytearray()
        self._status = 0
        self._sized = False  # whether the response says where it ends

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        self._sized = self._sized or name.lower() in (b"content-length", b"transfer-encoding")

    def on_headers_complete(self) -> None:
        """Called by the parser, also for interim responses."""
        self._status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        """Called by the parser."""
        self._body += data
        if len(self._body) > BODY_LIMIT and not self.whole.called:
            self._fail(f"the response is longer than {BODY_LIMIT} bytes")
            self._abort()

    def on_message_complete(self) -> None:
        """Called by the parser, also for interim responses."""
        if self._status >= 200 and not self.whole.called:
            self.whole.callback(HttpResponse(self._status, bytes(self._body)))
            self._abort()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._status >= 200 and not self._sized and reason.check(ConnectionDone):
            self.on_message_complete()
        self._fail("the connection closed without a complete answer")

    def _fail(self, reason: str) -> None:
        if not self.whole.called:
            self.whole.errback(ConnectError(string=reason))


def _too_slow(result: T | Failure, limit: float) -> T | Failure:
    """The time limit of a request looks like any other timeout."""
    if isinstance(result, Failure) and result.check(CancelledError):
        raise TimeoutError(string=f"no answer within {durations.render(limit)}")
    return result
