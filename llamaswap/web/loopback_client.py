"""Requests of load tests to this server itself."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

from attrs import define
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import FileBodyProducer, ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IResponse


@define(eq=False)
class LoopbackClient:
    """A loadtest.Generator. `agent` connects to this server, `base` gives its address (http://127.0.0.1:8080), and
    `key` a valid key.

    `base` and `key` are called for each request, because the port is known late and a reload may change the keys.
    """

    agent: IAgent
    base: Callable[[], bytes]
    key: Callable[[], bytes | None]

    def __call__(self, path: str, body: bytes, chunk: Callable[[bytes], None], /) -> Deferred[int]:
        """Send; see loadtest.Generator."""
        headers = Headers({b"Content-Type": [b"application/json"], b"X-Session-ID": [b"loadtest"]})
        key = self.key()
        if key is not None:
            headers.setRawHeaders(b"x-api-key", [key])
        return Deferred.fromCoroutine(self._send(self.base() + path.encode(), headers, body, chunk))

    async def _send(self, uri: bytes, headers: Headers, body: bytes, chunk: Callable[[bytes], None]) -> int:
        producer = FileBodyProducer(BytesIO(body))
        response: IResponse = await self.agent.request(b"POST", uri, headers, producer)
        status = int(response.code)
        receiver = _Receiver(chunk)
        response.deliverBody(receiver)
        await receiver.done
        return status


class _Receiver(Protocol):
    """Passes a body's pieces to `chunk`. Cancelling `done` closes the connection, which cancels the request."""

    def __init__(self, chunk: Callable[[bytes], None]) -> None:
        self._chunk = chunk
        self.done: Deferred[None] = Deferred(self._cut)

    def dataReceived(self, data: bytes) -> None:
        self._chunk(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.done.called:
            return
        if reason.check(ResponseDone, PotentialDataLoss):
            self.done.callback(None)
        else:
            self.done.errback(reason)

    def _cut(self, _: Deferred[None]) -> None:
        if self.transport is not None:
            stop = getattr(self.transport, "stopProducing", None) or self.transport.loseConnection
            stop()
