"""Responses without a known end: their heads are sent at once, and one object can end all of them.

A stream ends when its client leaves, when the service stops, or when a reload ends it. A handler that waits in
`until_end` then returns and releases what it holds.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer

from llamaswap.proxy.transport import kernel_socket

if TYPE_CHECKING:
    from twisted.web.http import Request

    from llamaswap.web.admin_request import AdminRequest

SEND_BUFFER = 64 * 1024  # bytes in the kernel for a client of a feed that does not read; the default is megabytes


@define(eq=False)
class StreamingResponse:
    """One client's open response."""

    request: Request
    _producer: IPushProducer | None = None
    _done: Deferred[None] | None = None
    ended: bool = False
    gone: bool = False

    def write(self, data: bytes) -> None:
        """Send, unless the stream has ended."""
        if data and not self.ended:
            self.request.write(data)

    def register(self, producer: IPushProducer) -> None:
        """Let the client's socket pause and resume `producer`, which is stopped at the end."""
        self._producer = producer
        if not self.ended:
            self.request.registerProducer(producer, True)

    async def until_end(self) -> None:
        """Wait for the end, then stop the producer."""
        producer, self._producer = self._producer, None
        assert producer is not None, "a stream has a producer before its end is waited for"
        try:
            if not self.ended:
                self._done = Deferred()
                await self._done
        finally:
            self.ended = True
            producer.stopProducing()
            if not self.gone:
                self.request.unregisterProducer()

    def end(self) -> None:
        """Complete the response. Idempotent."""
        self.ended = True
        done, self._done = self._done, None
        if done is not None:
            done.callback(None)


@define(eq=False)
class StreamingResponses:
    """All open streams."""

    _open: set[StreamingResponse] = field(factory=set, init=False)
    _closed: bool = field(default=False, init=False)

    def open(
        self, call: AdminRequest, content_type: bytes, headers: Iterable[tuple[bytes, bytes]] = (), *, feed: bool = True
    ) -> StreamingResponse:
        """Send the head now, before any body bytes. The stream of a HEAD request ends with it. `feed` is False for a
        download: it needs the kernel's buffer to be fast, and its reader takes all."""
        request = call.request
        request.setResponseCode(200)
        for name, value in (
            (b"Content-Type", content_type),
            (b"X-Content-Type-Options", b"nosniff"),
            (b"X-Accel-Buffering", b"no"),
            *headers,
        ):
            request.responseHeaders.setRawHeaders(name, [value])
        request.write(b"")
        stream = StreamingResponse(request)
        if call.method == b"HEAD" or self._closed:
            stream.ended = True
            return stream
        self._open.add(stream)
        handle = kernel_socket(getattr(request.channel, "transport", None))
        if feed and handle is not None:
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        # Registered before the first wait, so that it is called before Klein cancels the waiting handler.
        request.notifyFinish().addCallbacks(lambda _: self._open.discard(stream), lambda _: self._left(stream))
        return stream

    def _left(self, stream: StreamingResponse) -> None:
        stream.ended = stream.gone = True
        self._open.discard(stream)

    def __len__(self) -> int:
        return len(self._open)

    def resume(self) -> None:
        """Open streams again, because the service goes on after all."""
        self._closed = False

    def end_all(self) -> None:
        """End every stream, and later ones at once, because the service stops."""
        self._closed = True
        for stream in tuple(self._open):
            stream.end()
