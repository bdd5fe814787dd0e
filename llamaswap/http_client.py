"""The HTTP client for requests beside the data path: hooks, slots, the model lists of peers, wake-up probes.

Each request has a timeout over everything and a bound on the response body, uses a new connection and follows no
redirect. treq and the web client are imported with the first request, because the import takes long.
"""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Protocol

from attrs import define, field, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Protocol as BodyProtocol
from twisted.internet.protocol import connectionDone
from twisted.internet.task import Cooperator
from twisted.python.failure import Failure

if TYPE_CHECKING:
    from twisted.web.iweb import IAgent

CONNECT_TIMEOUT = 10.0  # seconds
BODY_LIMIT = 1 << 20  # bytes of a response


class RequestFailed(Exception):
    """A request got no complete response; `str()` says why in one line."""


@frozen
class HttpResponse:
    """A complete response; the names of its headers are in lower case."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(factory=dict)


class SendRequest(Protocol):
    """Sends one request. Fires with the response, fails with RequestFailed; cancelling closes the connection."""

    def __call__(
        self, method: str, url: str, *, timeout: float, body: bytes | None = None, headers: Mapping[str, str] = ...
    ) -> Deferred[HttpResponse]: ...


@define(eq=False)
class HttpClient:
    """A SendRequest. A body is sent as JSON; `agent` is Twisted's, made with the first request."""

    _reactor: IReactorTime
    _agent: IAgent | None = None

    def __call__(
        self, method: str, url: str, *, timeout: float, body: bytes | None = None, headers: Mapping[str, str] = {}
    ) -> Deferred[HttpResponse]:
        if body is not None:
            headers = {"Content-Type": "application/json", **headers}
        exchange = Deferred.fromCoroutine(self._exchange(method, url, body, headers))
        exchange.addTimeout(timeout, self._reactor, onTimeoutCancel=_timed_out)
        return exchange.addErrback(_explain)

    async def _exchange(self, method: str, url: str, body: bytes | None, headers: Mapping[str, str]) -> HttpResponse:
        from treq.client import HTTPClient
        from twisted.web.client import Agent, FileBodyProducer, HTTPConnectionPool
        from twisted.web.http_headers import Headers

        if self._agent is None:
            pool = HTTPConnectionPool(self._reactor, persistent=False)
            self._agent = Agent(self._reactor, connectTimeout=CONNECT_TIMEOUT, pool=pool)
        client = HTTPClient(self._agent)  # a new one keeps no cookies
        fields = Headers({name: [value] for name, value in headers.items()})
        cooperator = Cooperator(scheduler=lambda work: self._reactor.callLater(0, work))
        data = None if body is None else FileBodyProducer(BytesIO(body), cooperator)
        response = await client.request(method, url, data=data, headers=fields, allow_redirects=False, unbuffered=True)
        receiver = _BodyReceiver()
        response.deliverBody(receiver)
        found = {
            name.decode("latin-1").lower(): values[0].decode("latin-1")
            for name, values in response.headers.getAllRawHeaders()
        }
        return HttpResponse(response.code, await receiver.whole, found)


class _BodyReceiver(BodyProtocol):
    """Collects a response body. A body that is too long, or cancelling `whole`, closes the connection."""

    def __init__(self) -> None:
        self.whole: Deferred[bytes] = Deferred(lambda _: self._close())
        self._pieces: list[bytes] = []
        self._size = 0

    def _close(self) -> None:
        if self.transport is not None:
            self.transport.loseConnection()

    def dataReceived(self, data: bytes) -> None:
        self._size += len(data)
        self._pieces.append(data)
        if self._size > BODY_LIMIT and not self.whole.called:
            self._close()
            self.whole.errback(RequestFailed(f"the response is longer than {BODY_LIMIT} bytes"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        from twisted.web.client import ResponseDone
        from twisted.web.http import PotentialDataLoss

        if self.whole.called:
            return
        if reason.check(ResponseDone, PotentialDataLoss):
            self.whole.callback(b"".join(self._pieces))
        else:
            self.whole.errback(reason)


def _timed_out(result: HttpResponse | Failure, timeout: float) -> HttpResponse | Failure:
    if isinstance(result, Failure):
        raise RequestFailed(f"no response within {timeout:g} s")
    return result


def _explain(failure: Failure) -> HttpResponse:
    """Each failure of the network becomes a RequestFailed; a cancelled request stays cancelled."""
    if failure.check(RequestFailed, CancelledError):
        failure.raiseException()
    raise RequestFailed(reason_of(failure.value))


def reason_of(error: BaseException | None) -> str:
    """A network failure as one line; Twisted wraps some in lists of reasons."""
    for reason in getattr(error, "reasons", None) or ():
        if isinstance(reason, Failure):
            return reason_of(reason.value)
    return str(error).strip().rstrip(".") or type(error).__name__
