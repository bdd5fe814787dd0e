"""The wait for a model, as the client sees it: notices in a stream, and the bound that `Prefer: wait=N` sets."""

from __future__ import annotations

import json
from functools import partial
from math import ceil

from attrs import define, field
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from llamaswap.errors import WaitLimitReached
from llamaswap.proxy.exchange import ResponseSink
from llamaswap.routing.leases import PendingLease
from llamaswap.routing.router import Router
from llamaswap.web.errors import queue_position
from llamaswap.web.ollama_sink import NDJSON
from llamaswap.web.proxy_request import ProxyRequest
from llamaswap.web.sink_wrapper import SinkWrapper
from llamaswap.wire import headers as header_rules
from llamaswap.wire.headers import ResponseHeaders
from llamaswap.wire.model_routes import generates_text
from llamaswap.wire.ollama_response import error_line, error_message
from llamaswap.wire.openai import speaks_anthropic
from llamaswap.wire.sse import DONE, error_event
from llamaswap.wire.waiting import notice, preferred_wait

NOTICE_INTERVAL = 1.0  # seconds between two notices
UNCHANGED_INTERVAL = 5  # so many of these pass before the same facts are sent again
ERROR_LIMIT = 64 << 10  # bytes of an error response that are read for its message
_ONE_LINE = bytes.maketrans(b"\r\n", b"  ")  # white space in JSON, but the end of a field in a stream of events
UNKNOWN_RETRY = 5  # seconds after which to ask again if it is not known how long the model takes to load


@define(eq=False)
class NoticeSink(SinkWrapper):
    """A response that began with notices: the server's, or an error of ours, continues the stream.

    It has not `started` before the server's head comes, so another target or server may still be asked. A document
    becomes an event, and an error the last event in the form of the API of `path`.
    """

    path: str
    ollama: bool
    started: bool = field(default=False, init=False)
    _status: int = field(default=0, init=False)
    _error: bytearray | None = field(default=None, init=False)
    _is_event: bool = field(default=False, init=False)

    def head(self, status: int, reason: bytes, headers: ResponseHeaders, *, raw: bool, data: bytes = b"") -> None:
        """The head of the real response; the client has one already."""
        self.started = True
        self._status = status
        good = 200 <= status < 300
        self._is_event = good and not self.ollama and headers.plain_json
        if self._is_event:
            self.sink.write(b"data: ")
        elif not (good and (self.ollama or headers.event_stream)):
            self._error = bytearray()
        self.write(data)

    def write(self, data: bytes) -> None:
        """Some bytes of the body."""
        if self._error is not None:
            self._error += data[: ERROR_LIMIT - len(self._error)]
        elif data:
            self.sink.write(data.translate(_ONE_LINE) if self._is_event else data)

    def finish(self) -> None:
        """The response is complete."""
        if self._error or (self._error is not None and self._status >= 300):
            last = self._last(bytes(self._error))
            if not (self.ollama or last.endswith(DONE)):
                # These streams have no mark of their end, so one that fails must not end as if it were complete.
                self.sink.write_final(last, b"")
                self.sink.abort()
                return
            self.sink.write(last)
        elif self._is_event:
            self.sink.write(b"\n\n" + DONE)
        self.sink.finish()

    def _last(self, document: bytes) -> bytes:
        status, message = self._status, error_message(document)
        if self.ollama:
            return error_line(message)
        if status < 300:
            status, message = 502, f"the server did not send the stream that the request asked for: {message}"
        ending = b"" if speaks_anthropic(self.path) or "/responses" in self.path else DONE
        return error_event(self.path, status, message, code=_code(document)) + ending


def _code(document: bytes) -> str | None:
    try:
        code = json.loads(document)["error"]["code"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return None
    return code if isinstance(code, str) else None


@define(eq=False)
class Wait:
    """One wait of a request for its model, from `start` to `stop`.

    After `delay` seconds (0: never) the client of a stream gets notices. `limit_reached` is set when the client's own
    bound ended the wait.
    """

    _router: Router
    _clock: IReactorTime
    _request: ProxyRequest
    _pending: PendingLease
    limit_reached: WaitLimitReached | None = field(default=None, init=False)
    _notices: IDelayedCall | None = field(default=None, init=False)
    _limit: IDelayedCall | None = field(default=None, init=False)
    _sent: dict[str, object] = field(factory=dict, init=False)
    _unchanged: int = field(default=0, init=False)

    def start(self, delay: float) -> None:
        """The request has to wait."""
        request = self._request
        limit = preferred_wait(request.exchange.head.first(b"prefer"))
        if limit is not None:
            left = max(0.0, request.exchange.arrived + limit - self._clock.seconds())
            self._limit = self._clock.callLater(left, self._limit_reached, limit)
        if isinstance(_own_sink(request), NoticeSink):
            self._notices = self._clock.callLater(0, self._notify)
        elif delay and self._streams() and not request.exchange.sink.started:
            self._notices = self._clock.callLater(delay, self._notify)

    def stop(self) -> None:
        """The wait has ended. Idempotent."""
        for timer in (self._notices, self._limit):
            if timer is not None and timer.active():
                timer.cancel()

    def _streams(self) -> bool:
        """Whether the client reads a stream that may begin with notices.

        A server that passes requests on to this one as its peer needs the real status to ask another one instead.
        """
        request = self._request
        if not request.streaming or request.websocket or header_rules.hops(request.exchange.head.headers):
            return False
        return request.ollama is not None or generates_text(request.path)

    def _limit_reached(self, limit: float) -> None:
        model = self._pending.model
        eta = self._router.wait_status(model).eta
        retry_after = UNKNOWN_RETRY if eta is None else max(1, ceil(eta))
        outlook = "how long it loads is not known" if eta is None else f"it should be ready in about {retry_after}s"
        self.limit_reached = WaitLimitReached(model, limit, outlook, retry_after)
        self._pending.cancel()

    def _notify(self) -> None:
        self._notices = self._clock.callLater(NOTICE_INTERVAL, self._notify)
        sink = _own_sink(self._request)
        facts = self._facts()
        self._unchanged += 1
        steady = {**facts, "eta": None} == {**self._sent, "eta": None}
        if sink.unsent() or (steady and self._unchanged < UNCHANGED_INTERVAL):
            return  # a client that does not read gets nothing more
        self._sent, self._unchanged = facts, 0
        if not isinstance(sink, NoticeSink):
            sink = self._begin(sink)
        ollama = self._request.ollama
        sink.sink.write(notice(self._request.path, facts) if ollama is None else ollama.notice(facts))

    def _begin(self, sink: ResponseSink) -> NoticeSink:
        """Send the head of a stream, and keep it before the response."""
        exchange, ollama = self._request.exchange, self._request.ollama
        began = NoticeSink(sink, self._request.path, ollama is not None)
        if ollama is None:
            exchange.sink, exchange.translated = began, True
        else:
            ollama.sink = began
        kind = header_rules.EVENT_STREAM if ollama is None else (NDJSON, *header_rules.EVENT_STREAM[1:])
        position = queue_position(self._request.queue_position)
        sink.head(200, b"OK", ResponseHeaders.of([*kind, *exchange.added_headers, *position]), raw=False)
        return began

    def _facts(self) -> dict[str, object]:
        model, request = self._pending.model, self._request
        may_know = partial(request.facts.access.may_know, config=request.config)
        status = self._router.wait_status(model)
        facts: dict[str, object] = {"waiting_for": model}
        if not status.own and request.queue_position is not None:
            facts["queue_position"] = request.queue_position
        if loading := [name for name in status.loading if name == model or may_know(name)]:
            facts["loading"] = loading
        if status.eta is not None:
            facts["eta"] = ceil(status.eta)
        return facts


def _own_sink(request: ProxyRequest) -> ResponseSink:
    """The sink that notices are written to: behind it, the response is one of the client's API already."""
    return request.exchange.sink if request.ollama is None else request.ollama.sink
