"""Sends errors to clients of the proxy: the one place where a failed request gets its response or its last event."""

from __future__ import annotations

from collections.abc import Callable
from http.client import responses

from attrs import frozen

from llamaswap.proxy.exchange import Exchange
from llamaswap.web.errors import Headers, queue_position
from llamaswap.web.proxy_request import ProxyRequest
from llamaswap.wire.headers import ResponseHeaders
from llamaswap.wire.sse import DONE, error_event, event

# error, Accept, path -> status, headers, body
Render = Callable[[BaseException, str, str], "tuple[int, Headers, bytes]"]


@frozen(eq=False)
class ErrorSender:
    """Sends an error in the form that the client accepts and in the dialect of the path it asked for."""

    render: Render

    def send(self, exchange: Exchange, error: BaseException, path: str, response: ProxyRequest | None = None) -> None:
        """Respond with an error. Behind our own loading stream it becomes the stream's last event."""
        if exchange.gone:
            return
        sink = exchange.sink
        error = error if response is None else response.shown_error(error)
        if not sink.started:
            accept = b", ".join(value for name, value in exchange.head.headers if name.lower() == b"accept")
            status, headers, body = self.render(error, accept.decode("latin-1"), path)
            headers += queue_position(response.queue_position if response is not None else None)
            send_response(exchange, status, headers, body, response)
        elif response is not None and response.event_stream:
            _, _, body = self.render(error, "application/json", path)
            last = event(body) + DONE
            response.loading = True  # also this event is our own, and no first token
            response.response_data(last)
            sink.write(last)
            sink.finish()
        else:
            sink.abort()

    def cut(self, exchange: Exchange, error: Exception, path: str, response: ProxyRequest) -> None:
        """Cut a response that is incomplete; an event stream says why first, if its framing allows one more event.

        If the client has got nothing of it, because it was to be translated as a whole, the error is the response.
        """
        if exchange.gone:
            return
        if not exchange.sink.started:
            self.send(exchange, error, path, response)
            return
        if response.event_stream:
            last = error_event(path, 502, str(response.shown_error(error)), clean=response.between_events)
            exchange.sink.write_final(last, exchange.last)
        exchange.sink.abort()


def send_response(
    exchange: Exchange, status: int, headers: Headers, body: bytes, response: ProxyRequest | None = None
) -> None:
    """Send a complete response of our own, if the client is there."""
    if exchange.gone:
        return
    sent = ResponseHeaders.of([*headers, (b"Content-Length", b"%d" % len(body))])
    if response is not None:
        response.response_head(status, sent)
        if body:
            response.response_data(body)
    exchange.sink.head(status, responses.get(status, "").encode(), sent, raw=True, data=body)
    exchange.sink.finish()
