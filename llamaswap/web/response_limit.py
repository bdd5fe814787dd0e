"""The bounds `maxDuration` and `maxTokens` on one response: how long it may take, and how much text it may have."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from llamaswap.errors import ResponseLimitReached
from llamaswap.proxy.transport import Transport
from llamaswap.web.proxy_request import ProxyRequest
from llamaswap.web.sink_wrapper import SinkWrapper
from llamaswap.wire.headers import ResponseHeaders
from llamaswap.wire.model_routes import generates_text
from llamaswap.wire.stream_end import StreamEnd

log = Logger()


@define(eq=False)
class ResponseLimit(SinkWrapper):
    """Bounds a response to `tokens` and `seconds` (0: no bound) until `remove`. `cancel` ends the server's request.

    A stream of text ends as if the model had reached its token limit. Any other response is an error, or is cut.
    """

    _request: ProxyRequest
    _tokens: int
    _seconds: float
    cancel: Callable[[Exception], None] = field(init=False)
    _stream: StreamEnd | None = field(default=None, init=False)
    _reached: bool = field(default=False, init=False)
    _timer: IDelayedCall | None = field(default=None, init=False)

    @classmethod
    def install(cls, request: ProxyRequest, clock: IReactorTime) -> ResponseLimit | None:
        """The bounds on the response to this request, None if there are none."""
        tokens, seconds = request.token_limit, request.time_limit
        if request.websocket or not (seconds or (tokens and request.streaming)):
            return None
        exchange = request.exchange
        limit = cls(exchange.sink, request, tokens, seconds)
        if exchange.sink.started:  # by a loading stream: the head of the response does not come
            limit._stream = StreamEnd(request.path, tokens)
        exchange.sink, exchange.translated = limit, True
        if seconds:
            limit._timer = clock.callLater(seconds, limit._reach, f"maxDuration ({seconds:g}s)")
        return limit

    def remove(self) -> None:
        """The response has ended, or another server is asked."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._request.exchange.sink = self.sink
        self._reached = True

    def end(self) -> bool:
        """End the stream cleanly, after `cancel`; False if the response is none."""
        if self._stream is None or not self._stream.clean:
            return False
        if last := self._stream.end():
            self._request.response_data(last)
            self.sink.write(last)
        self.sink.finish()
        return True

    def _reach(self, bound: str) -> None:
        self._reached = True
        log.info("{model}: the response has reached {bound}", model=self._request.model, bound=bound)
        self.cancel(ResponseLimitReached(self._request.model, bound))

    # -- what the forwarder calls --------------------------------------------------------------------------

    def head(self, status: int, reason: bytes, headers: ResponseHeaders, *, raw: bool, data: bytes = b"") -> None:
        """The head of the response, whose events are followed if it is a stream of text."""
        ollama = self._request.ollama
        path = self._request.path if ollama is None else ollama.request.target
        if status == 200 and headers.event_stream and not headers.content_encoding and generates_text(path):
            self._stream = StreamEnd(path, self._tokens)
            kept = [item for item in headers.items if item[0].lower() != b"content-length"]  # it may end earlier
            self.sink.head(status, reason, ResponseHeaders.of(kept), raw=raw)
            self.write(data)
        else:
            self.sink.head(status, reason, headers, raw=raw, data=data)

    def write(self, data: bytes) -> None:
        """Some bytes of the body."""
        if self._reached:
            return  # the server's request is cancelled
        stream = self._stream
        if stream is not None:
            data = stream.feed(data)
        if data:
            self.sink.write(data)
        if stream is not None and stream.full:
            self._reach(f"maxTokens ({self._tokens})")

    def upgrade(self, status_line_and_head: bytes) -> Transport:
        """A websocket of a server's own page is open. It has no bounds, because it is not a response."""
        if self._timer is not None:
            self._timer.cancel()
        return self.sink.upgrade(status_line_and_head)

    def finish(self) -> None:
        """The response is complete."""
        if self._stream is not None and (rest := self._stream.rest()):
            self.sink.write(rest)
        self.sink.finish()
