"""Websockets of the model routes: which model they are for, and how long they keep it loaded.

A client of /v1/realtime may name its model in its first event only. Then the websocket is accepted here, and joined to
the model's server when that is known.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import cast

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from llamaswap.errors import BadRequest, ClientGone
from llamaswap.proxy.exchange import Exchange, Headers, RequestHead, ResponseSink
from llamaswap.proxy.transport import Transport
from llamaswap.proxy.tunnel import ClientPipe
from llamaswap.routing.interfaces import Standing
from llamaswap.routing.leases import Lease
from llamaswap.routing.router import Router
from llamaswap.web.errors import HttpError
from llamaswap.wire.byte_budget import ByteBudget
from llamaswap.wire.credentials import WEBSOCKET_PROTOCOL, offered_protocols
from llamaswap.wire.headers import ResponseHeaders, is_websocket
from llamaswap.wire.openai import encode
from llamaswap.wire.websocket import (
    CLOSE,
    PING,
    PONG,
    TEXT,
    BadFrame,
    MessageReader,
    accept_key,
    close_frame,
    frame,
    is_control,
)

RESPONSES, REALTIME = b"/v1/responses", b"/v1/realtime"
PATHS = frozenset((RESPONSES, REALTIME))
# A 426 has to say what to upgrade to (RFC 9110, 15.5.22), and that this is of the connection (7.8).
UPGRADE_REQUIRED = ((b"Upgrade", b"websocket"), (b"Connection", b"Upgrade"))
NAMING_TIME = 30.0  # seconds from the handshake in which a client names its model
EARLY_LIMIT = 1 << 20  # bytes of a client's events that are kept until the model's server is connected
EARLY_TOGETHER = 64 << 20  # bytes of them of all clients
ERROR_LIMIT = 1 << 16  # bytes of a server's answer that is not a websocket
IDLE_TIME = 10.0  # seconds without a message after which a websocket does not keep its model loaded


def is_websocket_route(head: RequestHead) -> bool:
    """Whether a request opens a websocket to a model."""
    return head.method == b"GET" and head.path in PATHS and is_websocket(head.headers)


def no_websocket(why: str) -> HttpError:
    """The error for a client that uses POST if it gets no websocket."""
    text = f"no websocket for this request: {why}; send POST /v1/responses instead"
    return HttpError(426, text, "no_websocket", UPGRADE_REQUIRED)


@define(eq=False)
class WebsocketLease:
    """Keeps a websocket's model loaded while messages pass, and for a short time after: pings are not messages.

    Without a lease the server may be stopped for another model, which closes the websocket.
    """

    router: Router
    clock: IReactorTime
    model: str
    standing: Standing
    _lease: Lease | None
    _last: float = field(default=0.0, init=False)
    _timer: IDelayedCall | None = field(default=None, init=False)
    _ended: bool = field(default=False, init=False)

    def passed(self, data: bytes) -> None:
        """Some bytes passed, in either direction; none: the websocket is open."""
        if self._ended or is_control(data):
            return
        self._last = self.clock.seconds()
        if self._lease is None:
            self._lease = self.router.lease(self.model, self.standing)  # None: no matter, the bytes pass anyway
        if self._timer is None:
            self._timer = self.clock.callLater(IDLE_TIME, self._check)

    def _check(self) -> None:
        self._timer = None
        left = self._last + IDLE_TIME - self.clock.seconds()
        if left > 0:
            self._timer = self.clock.callLater(left, self._check)
        else:
            self._release()

    def _release(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.release()

    def end(self) -> None:
        """The websocket is closed."""
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        self._release()


class AcceptedWebsocket(Protocol):
    """A client's websocket until it is joined to a server: its first events, and the sink of what the server answers.

    A response that is not a websocket becomes an event of the kind `error`, and the end.
    """

    started = False  # as a sink: the server's handshake is still awaited

    def __init__(self, exchange: Exchange, clock: IReactorTime, budget: ByteBudget) -> None:
        head = exchange.head
        key = head.first(b"sec-websocket-key")
        if not key:
            raise BadRequest("the websocket's handshake has no Sec-WebSocket-Key")
        if exchange.body.length != 0:  # it would be read as events
            raise BadRequest("the websocket's handshake has a body")
        self._exchange = exchange
        self._budget = budget
        self._reader = MessageReader(EARLY_LIMIT)
        self._messages: list[tuple[int, bytes]] = []
        self._size = 0
        self._naming = -1  # the place of the event that named the model
        self._closed = False  # nothing more is read of the client
        self._named: Deferred[str] = Deferred()
        self._status, self._answer = 0, b""
        lines = [
            b"HTTP/1.1 101 Switching Protocols",
            b"Upgrade: websocket",
            b"Connection: Upgrade",
            b"Sec-WebSocket-Accept: " + accept_key(key),
        ]
        offered = offered_protocols(head.first(WEBSOCKET_PROTOCOL) or b"")
        if offered:  # browsers end a connection on which none is chosen
            lines.append(b"Sec-WebSocket-Protocol: " + (b"realtime" if b"realtime" in offered else offered[0]))
        pipe = exchange.sink.upgrade(b"\r\n".join(lines) + b"\r\n\r\n")
        self.wire = pipe
        self._timer = clock.callLater(NAMING_TIME, self._fail, "no event named a model in time", 1008)
        exchange.sink, exchange.translated = self, True
        # The server must not choose an extension that the client was not offered.
        kept = [item for item in head.headers if item[0].lower() != b"sec-websocket-extensions"]
        exchange.head = RequestHead(head.method, head.target, kept, head.version)
        pipe.protocol = self
        self._send({"type": "session.created", "session": {"object": "realtime.session"}})

    async def model(self) -> str:
        """The model that the first `session.update` names, "" if it names none; raises ClientGone."""
        return await self._named

    def rename(self, name: str) -> None:
        """Let the event that named the model name it as its server does."""
        opcode, payload = self._messages[self._naming]
        event = json.loads(payload)
        session = event.get("session")
        (session if isinstance(session, dict) and "model" not in event else event)["model"] = name
        self._messages[self._naming] = opcode, encode(event)

    def _send(self, event: object) -> None:
        self.wire.write(frame(TEXT, encode(event)))

    # -- the client's events -------------------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        if self._closed:
            return
        try:
            if self._size + len(data) > EARLY_LIMIT:
                raise BadFrame("too much was sent before the model was ready", 1009)
            if not self._budget.take(len(data)):
                raise BadFrame("too much was sent by all clients before their models were ready", 1013)
            self._size += len(data)
            for opcode, payload in self._reader.feed(data):
                if not self._closed:
                    self._message(opcode, payload)
        except BadFrame as error:
            self._fail(str(error), error.code)

    def _message(self, opcode: int, payload: bytes) -> None:
        if opcode == PING:
            self.wire.write(frame(PONG, payload))
        elif opcode == CLOSE:
            self._fail("the client closed it", 1000)
        elif opcode != PONG:
            self._messages.append((opcode, payload))
            if self._naming < 0 and (name := _named_model(payload)) is not None:
                self._naming = len(self._messages) - 1
                self._timer.cancel()
                self._named.callback(name)

    def _fail(self, reason: str, code: int) -> None:
        self._closed = True
        self.wire.write(close_frame(code, reason))
        self.wire.loseConnection()
        self.connectionLost()

    def _give_back(self) -> None:
        self._budget.give_back(self._size)
        self._size = 0

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._give_back()
        if self._timer.active():
            self._timer.cancel()
        self._exchange.client_left()
        if not self._named.called:
            self._named.errback(ClientGone())

    # -- what the server answers ---------------------------------------------------------------------------

    def upgrade(self, status_line_and_head: bytes) -> Transport:
        """The server is there: it gets what the client has sent, and its handshake is not sent a second time."""
        pipe = cast(ClientPipe, self.wire)
        pipe.protocol = None
        sent = [frame(opcode, payload, masked=True) for opcode, payload in self._messages]
        pipe.received(b"".join(sent) + self._reader.unread)
        self._messages.clear()
        self._give_back()
        return self.wire

    def head(self, status: int, reason: bytes, headers: ResponseHeaders, *, raw: bool, data: bytes = b"") -> None:
        """The server refused, or we did."""
        self._status, self._answer = status, data[:ERROR_LIMIT]

    def write(self, data: bytes) -> None:
        """Some of the reason."""
        self._answer += data[: ERROR_LIMIT - len(self._answer)]

    def writer(self) -> Callable[[bytes], None]:
        """`write`."""
        return self.write

    def finish(self) -> None:
        """Tell the client why there is no session."""
        error = _error_of(self._answer, self._status)
        self._send({"type": "error", "error": error})
        code = 1013 if self._status in (429, 503) else 1008 if self._status < 500 else 1011
        self.wire.write(close_frame(code, str(error.get("message", ""))))
        self.wire.loseConnection()

    def abort(self) -> None:
        """Abort the connection."""
        self.wire.abortConnection()

    def interim(self, status: int, reason: bytes, headers: Headers) -> None:
        """A 1xx head has no place here."""

    def write_final(self, words: bytes, last: bytes) -> None:
        """An abort says nothing."""

    def unsent(self) -> int:
        """An answer is short."""
        return 0

    def register_producer(self, producer: IPushProducer) -> None:
        """An answer is short."""

    def unregister_producer(self) -> None:
        """An answer is short."""


_check: type[ResponseSink] = AcceptedWebsocket


def _named_model(payload: bytes) -> str | None:
    """The model that an event names; None if it is no `session.update`."""
    try:
        event = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or event.get("type") != "session.update":
        return None
    session = event.get("session")
    name = event.get("model") or (session.get("model") if isinstance(session, dict) else None)
    return name if isinstance(name, str) else ""


def _error_of(answer: bytes, status: int) -> dict[str, object]:
    """The error of an answer's document, or the answer as a text."""
    try:
        error = json.loads(answer)["error"]
    except (ValueError, RecursionError, TypeError, KeyError):
        error = None
    if isinstance(error, dict):
        return error
    text = error if isinstance(error, str) else answer.decode("utf-8", "replace") or f"no websocket, but {status}"
    return {"type": "server_error", "code": None, "message": text, "param": None}
