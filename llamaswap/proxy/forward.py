"""Forwards a request to a server: a connection, the head, the body with back-pressure. `response_forwarder` does the
way back.

Nothing is decided here about models, keys or the wording of errors. The outcome says how the request ended.
"""

from __future__ import annotations

from collections.abc import Callable, Container

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.python.failure import Failure

from llamaswap.errors import ClientGone, UpstreamUnreachable
from llamaswap.proxy.bodies import BytesBody
from llamaswap.proxy.exchange import BodySource, Exchange, RequestHead
from llamaswap.proxy.framing import LAST_CHUNK, ResponseHead, as_chunk, write_head
from llamaswap.proxy.pool import Pool
from llamaswap.proxy.reader import ReportStall
from llamaswap.proxy.response_forwarder import ForwardOutcome, ResponseForwarder, ResponseObserver
from llamaswap.proxy.task import Future
from llamaswap.proxy.upstream import UpstreamConnection, UpstreamTarget
from llamaswap.wire.headers import first

JOINED_WRITE_LIMIT = 64 * 1024  # bytes: up to here one copy is cheaper than a second system call
# A larger body, or one of unknown size, may be impossible to send twice. It gets a new connection, because the server
# might be closing an idle one just now; connecting costs little beside such a body.
REUSE_LIMIT = 1024 * 1024
BODY_METHODS = (b"POST", b"PUT", b"PATCH")


@define(eq=False)
class RequestForwarder:
    """Forwards requests over the pool's connections."""

    _clock: IReactorTime
    _pool: Pool

    def forward(
        self,
        exchange: Exchange,
        upstream: UpstreamTarget,
        *,
        head: RequestHead,
        body: BodySource,
        observer: ResponseObserver | None = None,
        decline: Container[int] = (),
        reader: ReportStall | None = None,
        passing: Callable[[bytes], None] | None = None,
    ) -> Future[ForwardOutcome]:
        """Forward one request, already rewritten for the server, and its response.

        `head` has no fields about the body's framing: those are added here. If the client has received a head
        before (a loading stream), the response's body follows it, a JSON document as an event. A response whose status
        is in `decline` is not passed on. `reader` receives the time since which the client has read nothing of its
        response, and None when it reads again; `passing` the bytes that pass through a tunnel (see `Tunnel`).

        The result is awaited in a Task. It fails with UpstreamUnreachable (no byte of a response came), BadUpstream (no
        head that could be passed on), UpstreamDeclined, UpstreamTruncated (after the head; the client's response is not
        ended) or ClientGone. Cancelling it closes the server's connection at once.
        """
        sink = exchange.sink
        response = ResponseForwarder(
            self._clock, exchange, sink, upstream, observer, decline, reader, passing, sink.started
        )
        response.sending = sending = RequestSender(self._clock, self._pool, exchange, upstream, head, body, response)
        sending.start()
        return sending.outcome


class SendState:
    """How far a request has got on its way to the server. Not an Enum, whose members Python 3.11 reads as slowly as it
    calls a function; so are the states of the response and of the client's connection."""

    CONNECTING = "connecting"
    SENDING = "sending"
    SENT = "sent"
    ENDED = "ended"


@define(eq=False)
class RequestSender:
    """One request being sent: the consumer of its body and the owner of the server's connection."""

    _clock: IReactorTime
    _pool: Pool
    _exchange: Exchange
    _upstream: UpstreamTarget
    _head: RequestHead
    _body: BodySource
    _response: ResponseForwarder | None
    outcome: Future[ForwardOutcome] = field(init=False)
    _state: str = field(default=SendState.CONNECTING, init=False)
    _connecting: Deferred[UpstreamConnection] | None = field(default=None, init=False)
    _connection: UpstreamConnection | None = field(default=None, init=False)
    _reused: bool = field(default=False, init=False)
    _retried: bool = field(default=False, init=False)
    _unsent_head: bytes | None = field(default=None, init=False)  # until it goes out with the body's first bytes
    _chunked: bool = field(default=False, init=False)
    _producer: IPushProducer | None = field(default=None, init=False)  # of the body, while the connection has it
    _timeout: IDelayedCall | None = field(default=None, init=False)

    # -- a connection --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Send the request on an idle connection, or connect."""
        self.outcome = Future(self.fail)
        if self._exchange.gone:
            self.fail(ClientGone())
            return
        self._exchange.on_gone(self._client_gone)
        length = self._body.length
        connection = self._pool.acquire(self._upstream) if length is not None and length <= REUSE_LIMIT else None
        if connection is not None:
            self._reused = True
            self._send(connection)
        else:
            self._connect()

    def _connect(self) -> None:
        self._reused = False
        connection = self._pool.connect_now(self._upstream)
        if connection is not None:
            self._send(connection)
            return
        self._connecting = connecting = self._pool.connect(self._upstream)
        connecting.addCallbacks(self._connected, self._not_connected)

    def _connected(self, connection: UpstreamConnection) -> None:
        self._connecting = None
        if self._state is SendState.ENDED:
            connection.abort()
        else:
            self._send(connection)

    def _not_connected(self, failure: Failure) -> None:
        self._connecting = None
        assert failure.value is not None  # a Connector fails with an exception
        self.fail(failure.value)

    def retry(self, silent: bool) -> bool:
        """Try once more after a connection broke that was idle before, and so perhaps closing; False if not possible.

        `silent`: not a byte of a response came, so the server has not seen the request.
        """
        repeatable = self._body.length == 0 or self._body.replayable
        if not silent or not self._reused or self._retried or not repeatable:
            return False
        self._retried = True
        self._drop_connection()
        self._state = SendState.CONNECTING
        self._unsent_head = None
        self._connect()
        return True

    # -- the head and the body -----------------------------------------------------------------------------

    def _send(self, connection: UpstreamConnection) -> None:
        response = self._response
        assert response is not None  # until it has ended
        head = self._head
        self._connection = connection
        self._state = SendState.SENDING
        connection.begin(response, bodyless=head.method == b"HEAD", payload=response.needs_payload)
        length = self._body.length
        lines = head.written
        if not lines:
            headers = head.headers
            if head.version < (1, 1) and first(headers, b"host") is None:  # only HTTP/1.0 allows that, but 1.1 is sent
                headers = [(b"Host", self._upstream.endpoint.authority.encode("latin-1")), *headers]
            lines = head.written = write_head(b"%b %b HTTP/1.1" % (head.method, head.target), headers)[:-2]
        self._chunked = length is None
        if length is None:
            raw_head = lines + b"Transfer-Encoding: chunked\r\n\r\n"
        elif length or head.method in BODY_METHODS:
            raw_head = b"%bContent-Length: %d\r\n\r\n" % (lines, length)
        else:
            raw_head = lines + b"\r\n"
        body = self._body
        if not length and length is not None:
            connection.send(raw_head)
            self._sent()
            return
        if isinstance(body, BytesBody) and len(body.data) <= JOINED_WRITE_LIMIT:
            connection.send(raw_head + body.data)
            self._sent()
            return
        self._unsent_head = raw_head
        producer = self._body.start(self, keep=False)
        if self._connection is not connection:  # it ended or was replaced meanwhile
            producer.stopProducing()
            return
        if self._unsent_head is not None:
            # The head need not wait for a body that is still arriving.
            self._unsent_head = None
            connection.send(raw_head)
        if self._state is SendState.SENDING:
            self._producer = producer
            connection.wire.registerProducer(producer, True)

    def body_data(self, data: bytes) -> None:
        connection = self._connection
        if connection is None:
            return
        if self._chunked:
            data = as_chunk(data)
        head, self._unsent_head = self._unsent_head, None
        if head is not None:
            if len(data) <= JOINED_WRITE_LIMIT:
                connection.send(head + data)
                return
            connection.send(head)
        connection.send(data)

    def body_ended(self) -> None:
        connection = self._connection
        if connection is None:
            return
        if self._chunked:
            head, self._unsent_head = self._unsent_head, None
            connection.send(head + LAST_CHUNK if head is not None else LAST_CHUNK)
        self.stop_body()
        self._sent()

    def body_failed(self, error: Exception) -> None:
        self.fail(error)

    def _sent(self) -> None:
        if self._state is not SendState.SENDING:
            return
        self._state = SendState.SENT
        limit = self._upstream.timeouts.response_header
        if limit and self._response is not None and not self._response.begun:
            self._timeout = self._clock.callLater(limit, self._timed_out, limit)

    def _timed_out(self, limit: float) -> None:
        self._timeout = None
        self.fail(UpstreamUnreachable(self._upstream.where, f"no answer within {limit:g} s"))

    def head_received(self) -> None:
        """The response has begun."""
        timeout, self._timeout = self._timeout, None
        if timeout is not None:
            timeout.cancel()

    def stop_body(self) -> IPushProducer | None:
        """Send no more of the body; returns its producer if it was still producing."""
        producer, self._producer = self._producer, None
        if producer is not None and self._connection is not None and not self._connection.closed:
            self._connection.wire.unregisterProducer()
        return producer

    @property
    def requested_upgrade(self) -> bytes:
        """The protocols that the client offered to switch to."""
        return b",".join(value for name, value in self._head.headers if name.lower() == b"upgrade")

    def pause(self) -> None:
        """Read no more of the response until `resume`."""
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        """Read on."""
        if self._connection is not None:
            self._connection.resume()

    # -- ends ----------------------------------------------------------------------------------------------

    def detach_connection(self) -> UpstreamConnection:
        """The connection becomes a tunnel; it is not ours from now on."""
        connection, self._connection = self._connection, None
        assert connection is not None  # a response has come over it
        self._exchange.forget(self._client_gone)
        return connection

    def release_connection(self, head: ResponseHead) -> int:
        """The response is complete: keep the connection for other requests if possible. Returns the body's bytes."""
        connection = self._connection
        assert connection is not None  # a response has come over it
        if self._state is SendState.SENT:
            self._connection = None
            self._pool.release(self._upstream, connection, head)
        else:
            # The server responded before it had read the request: the rest would be taken for the next one.
            self._drop_connection()
        return connection.received

    def succeed(self, outcome: ForwardOutcome) -> None:
        """The response is complete."""
        if self._end():
            self.outcome.settle(outcome)

    def fail(self, error: BaseException | None = None) -> None:
        """End it now and close the server's connection; without an error it is cancelled."""
        response = self._response
        if response is not None and self._connection is not None and response.begun:
            # What a last event of ours may follow, should the response be cut.
            self._exchange.last = b"\r\n" if self._connection.between_chunks else b"..."
        if self._end():
            self._drop_connection()
            self.outcome.fail(error or CancelledError())

    def _end(self) -> bool:
        if self._state is SendState.ENDED:
            return False
        self._state = SendState.ENDED
        self._exchange.forget(self._client_gone)
        if self._timeout is not None:
            self.head_received()
        response, self._response = self._response, None  # they know each other: untied, they need no garbage collector
        if response is not None:
            response.stop()
        return True

    def _client_gone(self) -> None:
        self.fail(ClientGone())

    def _drop_connection(self) -> None:
        self.head_received()
        producer = self.stop_body()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()
        if producer is not None:
            producer.stopProducing()
        connecting, self._connecting = self._connecting, None
        if connecting is not None:
            connecting.cancel()
