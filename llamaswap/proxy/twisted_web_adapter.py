"""A request of twisted.web, and so of the Klein app, as an exchange.

twisted.web has read the request's body. The response goes past its header and chunk code, so that the server's bytes
reach the client unchanged here too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.python.failure import Failure
from twisted.web.http import Request

from llamaswap.proxy.bodies import FileBody
from llamaswap.proxy.exchange import Exchange, Headers, RequestHead, ResponseSink
from llamaswap.proxy.fastpath.direct_write import unsent_bytes, write_through
from llamaswap.proxy.framing import LAST_CHUNK, as_chunk
from llamaswap.proxy.response_framer import ResponseFramer
from llamaswap.proxy.transport import Transport
from llamaswap.proxy.tunnel import ClientPipe
from llamaswap.wire.headers import ResponseHeaders, address_host


def exchange_from_request(request: Request, clock: IReactorTime) -> Exchange:
    """The exchange of a request; it becomes `gone` when the request's connection is lost."""
    version = (1, 1) if request.clientproto == b"HTTP/1.1" else (1, 0)
    headers: Headers = [(name, value) for name, values in request.requestHeaders.getAllRawHeaders() for value in values]
    head = RequestHead(request.method, request.uri, headers, version)
    content: Any = request.content
    content.seek(0, 2)
    size = content.tell()
    content.seek(0)
    body = FileBody(clock, content, size, getattr(content, "reserve", None))
    sink = RequestSink(request, head)
    peer = address_host(request.getClientAddress())
    exchange = Exchange(head, body, sink, peer, clock.seconds(), request.isSecure())

    def left(_: Failure) -> None:
        exchange.client_left()

    request.notifyFinish().addErrback(left)
    sink.on_lost = exchange.client_left
    return exchange


class RequestSink:
    """Writes a response to a twisted.web request's channel."""

    def __init__(self, request: Any, head: RequestHead) -> None:
        self._request = request
        self._head = head
        self._framer: ResponseFramer | None = None
        self._write: Any = None
        self._producing = False
        self._final_data_sent = False  # the final bytes say why the response is incomplete
        self.on_lost: Any = None

    @property
    def started(self) -> bool:
        """Whether a head was sent."""
        return self._framer is not None

    def _wire(self) -> Any:
        """The channel's transport; None if the client has left or the response is complete."""
        channel = getattr(self._request, "channel", None)
        return None if channel is None else channel.transport

    def interim(self, status: int, reason: bytes, headers: Headers) -> None:
        """A 1xx head."""
        wire = self._wire()
        if wire is not None and self._framer is None:
            wire.write(ResponseFramer.interim(status, reason, headers))

    def head(self, status: int, reason: bytes, headers: ResponseHeaders, *, raw: bool, data: bytes = b"") -> None:
        """The head, with the first body bytes."""
        wire = self._wire()
        request = self._request
        framer = self._framer = ResponseFramer(self._head, status, headers, raw=raw)
        request.code = status
        request.startedWriting = 1  # or twisted.web would write its own headers
        if wire is None:
            return
        keep_alive = bool(request.channel.persistent) and self._head.version >= (1, 1)
        if not framer.delimited or not keep_alive:
            request.channel.persistent = 0
            keep_alive = False
        self._write = write_through(wire)
        self._write(framer.head(reason, keep_alive=keep_alive, data=data))
        request.sentLength += len(data)

    def write(self, data: bytes) -> None:
        """Some body bytes."""
        framer = self._framer
        assert framer is not None  # the head comes first
        if self._wire() is None or not framer.body:
            return
        self._request.sentLength += len(data)
        self._write(as_chunk(data) if framer.chunking else data)

    def writer(self) -> Callable[[bytes], None]:
        """`write` itself, because it counts the bytes."""
        return self.write

    def write_final(self, words: bytes, last: bytes) -> None:
        """The last body bytes before an abort, if the framing allows them."""
        framed = self._framer.write_final(words, last) if self._framer is not None else None
        if framed and self._wire() is not None:
            self._request.sentLength += len(words)
            self._final_data_sent = True
            self._write(framed)

    def finish(self) -> None:
        """The response is complete."""
        framer = self._framer
        if self._wire() is None or self._request.finished:
            return
        if framer is not None and framer.chunking:
            self._write(LAST_CHUNK)
        self.unregister_producer()
        self._request.finish()

    def abort(self) -> None:
        """Abort the connection; final bytes are delivered first, because a reset would discard them."""
        wire = self._wire()
        if wire is not None:
            self.unregister_producer()
            if self._final_data_sent:
                wire.loseConnection()
            else:
                wire.abortConnection()

    def unsent(self) -> int:
        """Bytes that the kernel has not taken yet."""
        wire = self._wire()
        return 0 if wire is None else unsent_bytes(wire)

    def register_producer(self, producer: IPushProducer) -> None:
        """Back-pressure for the response."""
        if self._wire() is not None and not self._producing:
            self._producing = True
            self._request.registerProducer(producer, True)

    def unregister_producer(self) -> None:
        """The producer is done."""
        if self._producing:
            self._producing = False
            if self._wire() is not None:
                self._request.unregisterProducer()

    def upgrade(self, status_line_and_head: bytes) -> Transport:
        """Take the connection away from the channel."""
        request = self._request
        channel = request.channel
        wire = channel.transport
        request.code = 101
        request.startedWriting = 1
        self._framer = ResponseFramer(self._head, 101, ResponseHeaders([]), raw=True)
        channel.persistent = 0
        channel.setTimeout(None)
        kept, channel._dataBuffer = b"".join(channel._dataBuffer), []
        start_tunnel = getattr(wire, "start_tunnel", None)
        if start_tunnel is not None:
            # Here the channel does not own the connection: a ClientConnection passes its bytes on.
            client: Transport = start_tunnel(kept, status_line_and_head)
            return client
        wire.unregisterProducer()
        pipe = ClientPipe(wire, kept)
        forget = channel.connectionLost

        def lost(reason: Failure) -> None:
            pipe.lost(reason)
            forget(reason)

        channel.dataReceived = pipe.received
        channel.connectionLost = lost
        wire.resumeProducing()
        pipe.write(status_line_and_head)
        return pipe


_check: type[ResponseSink] = RequestSink
