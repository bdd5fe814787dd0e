"""Answers without an end: heads that go out at once, and one place that can end all of them.

A stream ends when its client leaves, when the service stops, or when a reload ends it; whoever waits in
`until_end` then returns and gives back what it borrowed.
"""

from __future__ import annotations

from collections.abc import Iterable

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.web.http import Request

from llamaswap.web.admin_request import AdminRequest


@define(eq=False)
class StreamingResponse:
    """One client's open answer."""

    request: Request
    _done: Deferred[None] | None = None
    ended: bool = False
    gone: bool = False

    def write(self, data: bytes) -> None:
        """Send, unless the stream has ended."""
        if data and not self.ended:
            self.request.write(data)

    async def until_end(self, producer: IPushProducer) -> None:
        """Let the client's socket pause and resume `producer`, and wait; at the end it is told to stop."""
        if self.ended:
            producer.stopProducing()
            return
        self.request.registerProducer(producer, True)
        self._done = Deferred()
        try:
            await self._done
        finally:
            self.ended = True
            producer.stopProducing()
            if not self.gone:
                self.request.unregisterProducer()

    def end(self) -> None:
        """Finish the answer in good order. Idempotent."""
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
        self, call: AdminRequest, content_type: bytes, headers: Iterable[tuple[bytes, bytes]] = ()
    ) -> StreamingResponse:
        """Send the head now, whatever is written later and whenever. To a HEAD that is all; the stream has ended."""
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
        # Asked for before the first wait, so that it is told before the waiting handler is cancelled.
        request.notifyFinish().addCallbacks(lambda _: self._open.discard(stream), lambda _: self._left(stream))
        return stream

    def _left(self, stream: StreamingResponse) -> None:
        stream.ended = stream.gone = True
        self._open.discard(stream)

    def __len__(self) -> int:
        return len(self._open)

    def resume(self) -> None:
        """The service goes on after all: streams may be opened again."""
        self._closed = False

    def end_all(self) -> None:
        """The service stops: end every stream, and those that are still to come at once."""
        self._closed = True
        for stream in tuple(self._open):
            stream.end()
