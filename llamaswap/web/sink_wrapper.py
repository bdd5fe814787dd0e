"""What the sinks have in common that send a server's response to the client in another form."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define
from twisted.internet.interfaces import IPushProducer

from llamaswap.errors import BadUpstream
from llamaswap.proxy.exchange import Headers, ResponseSink
from llamaswap.proxy.transport import Transport


@define(eq=False)
class SinkWrapper:
    """Writes to the client's own `sink`. A subclass has `head`, `write` and `finish`; the exchange is `translated`."""

    sink: ResponseSink

    @property
    def started(self) -> bool:
        """Whether a head was sent."""
        return self.sink.started

    def write(self, data: bytes) -> None:
        """Some bytes of the body."""
        self.sink.write(data)

    def writer(self) -> Callable[[bytes], None]:
        """`write`: no byte passes by it."""
        return self.write

    def write_final(self, words: bytes, last: bytes) -> None:
        """The last bytes before an abort."""
        self.sink.write_final(words, last)

    def interim(self, status: int, reason: bytes, headers: Headers) -> None:
        """A 1xx head means nothing to these clients."""

    def abort(self) -> None:
        """Abort the connection."""
        self.sink.abort()

    def unsent(self) -> int:
        """Bytes that the kernel has not taken yet."""
        return self.sink.unsent()

    def register_producer(self, producer: IPushProducer) -> None:
        """Pause and resume the server's response as the client's socket fills and drains."""
        self.sink.register_producer(producer)

    def unregister_producer(self) -> None:
        """The producer is done."""
        self.sink.unregister_producer()

    def upgrade(self, status_line_and_head: bytes) -> Transport:
        """These requests never ask for another protocol."""
        raise BadUpstream("the model's server", "switched to a protocol that the client did not ask for")
