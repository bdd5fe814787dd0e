"""A request of twisted.web, and so of the Klein app, as an exchange.

twisted.web has read the request's body. The response goes past its header and chunk code, so that the server's bytes
reach the client unchanged here too.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any, cast

from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from twisted.web.http import Request

from llamaswap.proxy.connection_sink import ConnectionSink
from llamaswap.proxy.exchange import Exchange, Headers, RequestHead, ResponseSink
from llamaswap.proxy.incoming_body import SpooledBody
from llamaswap.proxy.transport import Transport
from llamaswap.wire.byte_budget import UNBOUNDED, ByteBudget
from llamaswap.wire.headers import ResponseHeaders

SITE_MEMORY = 100_000  # bytes of a body for the site that take nothing from the budgets, as in twisted.web


class SiteContent:
    """The body of a twisted.web request, file-like: in memory while it is small, then a SpooledBody.

    If both budgets are used up, NoRoom is raised. `length` is the announced size, None if it is unknown.
    """

    def __init__(
        self, clock: IReactorTime, length: int | None, memory: ByteBudget = UNBOUNDED, disk: ByteBudget = UNBOUNDED
    ) -> None:
        if length is not None and length > SITE_MEMORY and max(disk.left, memory.left) < length:
            raise disk.full()
        ignore = lambda: None
        self._body = SpooledBody(clock, None, ignore, ignore, SITE_MEMORY, memory=memory, disk=disk)
        self._small: BytesIO | None = BytesIO()

    def write(self, data: bytes) -> None:
        """Append some bytes."""
        if self._small is not None:
            if self._small.tell() + len(data) <= SITE_MEMORY:
                self._small.write(data)
                return
            self._leave_memory()
        self._body.arrived(data)
        if self._body.refusal is not None:
            raise self._body.refusal

    def body(self) -> SpooledBody:
        """The same bytes for the proxy, after the last `write`."""
        if self._small is not None:
            self._leave_memory()
        self._body.finished()
        return self._body

    def _leave_memory(self) -> None:
        small, self._small = self._small, None
        if small is not None and small.tell():
            self._body.arrived(small.getvalue())

    # -- what twisted.web and the pages call

    def read(self) -> bytes:
        """All of it."""
        return self._body.content() if self._small is None else self._small.getvalue()

    def seek(self, offset: int, whence: int = 0) -> None:
        """It is read as a whole only."""

    def tell(self) -> int:
        """Where a form parser would find its end; forms are not parsed here."""
        return 0

    def close(self) -> None:
        """Discard it. Idempotent."""
        self._body.close()


def exchange_from_request(request: Request, clock: IReactorTime) -> Exchange:
    """The exchange of a request that came over a ClientConnection; it becomes `gone` when that is lost."""
    version = (1, 1) if request.clientproto == b"HTTP/1.1" else (1, 0)
    headers: Headers = [(name, value) for name, values in request.requestHeaders.getAllRawHeaders() for value in values]
    head = RequestHead(request.method, request.uri, headers, version)
    sink = RequestSink(request, head)
    connection = sink.connection
    body = cast(SiteContent, request.content).body()
    exchange = Exchange(head, body, sink, connection.client_address, clock.seconds(), connection.secure)

    def left(_: Failure) -> None:
        sink.lost()
        exchange.client_left()

    request.notifyFinish().addErrback(left)
    return exchange


class RequestSink(ConnectionSink):
    """Writes the response of a twisted.web request to its connection."""

    waits_for_continue = False  # twisted.web has answered that

    def __init__(self, request: Any, head: RequestHead) -> None:
        self.connection = request.channel.transport.connection
        self._site_request = request
        self.keep_alive = bool(request.channel.persistent) and head.version >= (1, 1)
        self.response_closed = False
        self._request = head
        self._framer = None
        self._producing = False
        self._final_data_sent = False

    @property
    def consumer(self) -> Any:
        """The request, because the channel stays the producer of its connection."""
        return self._site_request

    @property
    def _sent(self) -> int:
        return int(self._site_request.sentLength)

    @_sent.setter
    def _sent(self, count: int) -> None:
        self._site_request.sentLength = count

    def lost(self) -> None:
        """The client has left."""
        self.response_closed = True
        self._producing = False

    def head(self, status: int, reason: bytes, headers: ResponseHeaders, *, raw: bool, data: bytes = b"") -> None:
        """The head, with the first body bytes."""
        super().head(status, reason, headers, raw=raw, data=data)
        self._response_began(status)

    def _response_began(self, status: int) -> None:
        self._site_request.code = status
        self._site_request.startedWriting = 1  # or twisted.web would write its own headers
        if not self.keep_alive and not self.response_closed:
            self._site_request.channel.persistent = 0

    def writer(self) -> Callable[[bytes], None]:
        """`write` itself, because it counts the bytes."""
        return self.write

    def finish(self) -> None:
        """The response is complete."""
        if not self.response_closed:
            self.response_closed = True
            self.end_body()
            self._site_request.finish()

    def upgrade(self, status_line_and_head: bytes) -> Transport:
        """Take the connection away from the channel."""
        self.keep_alive = False
        self._response_began(101)
        self.connection.wire.unregisterProducer()  # the channel
        return super().upgrade(status_line_and_head)


_check: type[ResponseSink] = RequestSink
