"""The response on a client's connection, for requests of both kinds: framed, with back-pressure, or a tunnel."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from twisted.internet.interfaces import IPushProducer

from llamaswap.proxy.exchange import Headers, RequestHead
from llamaswap.proxy.fastpath.direct_write import unsent_bytes
from llamaswap.proxy.framing import LAST_CHUNK, as_chunk
from llamaswap.proxy.response_framer import ResponseFramer
from llamaswap.proxy.transport import Transport
from llamaswap.proxy.tunnel import ClientPipe
from llamaswap.wire.headers import ResponseHeaders

if TYPE_CHECKING:
    from llamaswap.proxy.client_connection import ClientConnection


class ConnectionSink:
    """What the two kinds of ResponseSink share. A subclass has these attributes, and `finish`, which calls `end_body`.

    `response_closed`: nothing more is written, because the response is complete or will never be. `keep_alive`: whether
    the connection may serve another request; not if the client still waits for 100 Continue, because it may never send
    its body, and where the next request begins is then unknown.
    """

    connection: ClientConnection
    keep_alive: bool
    waits_for_continue: bool
    response_closed: bool
    _request: RequestHead
    _framer: ResponseFramer | None
    _producing: bool
    _final_data_sent: bool  # the final bytes say why the response is incomplete
    _sent: int

    @property
    def consumer(self) -> Any:
        """Where the producer of the response is registered."""
        return self.connection.wire

    @property
    def started(self) -> bool:
        """Whether a head was sent."""
        return self._framer is not None

    def interim(self, status: int, reason: bytes, headers: Headers) -> None:
        """A 1xx head."""
        if not self.response_closed and self._framer is None:
            self.connection.send(ResponseFramer.interim(status, reason, headers))

    def head(self, status: int, reason: bytes, headers: ResponseHeaders, *, raw: bool, data: bytes = b"") -> None:
        """The head, with the first body bytes in the same write."""
        origins = self.connection.owner.origins()
        framer = self._framer = ResponseFramer(self._request, status, headers, raw=raw, origins=origins)
        self._sent += len(data)
        if self.waits_for_continue or not framer.delimited or self.connection.closing:
            self.keep_alive = False
        if not self.response_closed:
            self.connection.send(framer.head(reason, keep_alive=self.keep_alive, data=data))

    def write(self, data: bytes) -> None:
        """Some body bytes."""
        framer = self._framer
        assert framer is not None  # the head comes first
        self._sent += len(data)
        if framer.body and not self.response_closed:
            self.connection.send(as_chunk(data) if framer.chunking else data)

    def writer(self) -> Callable[[bytes], None]:
        """Straight to the connection, if nothing has to be framed."""
        framer = self._framer
        assert framer is not None  # the head comes first
        return self.connection.send if framer.body and not framer.chunking and not self.response_closed else self.write

    def write_final(self, words: bytes, last: bytes) -> None:
        """The last body bytes before an abort, if the framing allows them."""
        framed = self._framer.write_final(words, last) if self._framer is not None else None
        if framed and not self.response_closed:
            self._sent += len(words)
            self._final_data_sent = True
            self.connection.send(framed)

    def end_body(self) -> None:
        """End the response's body; nothing more of it is written."""
        framer = self._framer
        if framer is not None and framer.chunking:
            self.connection.send(LAST_CHUNK)
        if self._producing:
            self.unregister_producer()

    def abort(self) -> None:
        """Abort the connection; final bytes are delivered first, because a reset would discard them."""
        if not self.response_closed:
            self.response_closed = True
            self.unregister_producer()
            if self._final_data_sent:
                self.connection.close_lingering()
            else:
                self.connection.abort()

    def unsent(self) -> int:
        """Bytes that the kernel has not taken yet."""
        return unsent_bytes(self.connection.wire)

    def register_producer(self, producer: IPushProducer) -> None:
        """Back-pressure for the response."""
        if not self._producing and not self.response_closed:
            self._producing = True
            self.consumer.registerProducer(producer, True)

    def unregister_producer(self) -> None:
        """The producer is done."""
        if self._producing:
            self._producing = False
            self.consumer.unregisterProducer()

    def upgrade(self, status_line_and_head: bytes) -> Transport:
        """Hand the connection over for a tunnel."""
        self._framer = ResponseFramer(self._request, 101, ResponseHeaders([]), raw=True)
        self.response_closed = True
        self.unregister_producer()
        pipe = ClientPipe(self.connection.wire)
        self.connection.send(status_line_and_head)
        self.connection.start_tunnel(pipe)
        return cast(Transport, pipe)
