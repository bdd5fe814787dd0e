"""Multipart bodies: read only up to the model's name, which is replaced while they are sent.

Files are not held in memory: the body keeps what passed (a large one on disk) and is read again from its start.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import Factory, define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer

from llamaswap.proxy.exchange import BodyConsumer, BodySource
from llamaswap.wire.form import MultipartScan, ValueSpan, with_places


@define(eq=False)
class _Reader:
    """Feeds a scan until it has found a value of the field `wanted` (None: until the end of the body)."""

    scan: MultipartScan
    wanted: str | None
    done: Deferred[None] = field(default=Factory(lambda self: Deferred(lambda _: self.stop()), takes_self=True))
    producer: IPushProducer | None = None
    over: bool = False

    def body_data(self, data: bytes) -> None:
        if self.over:
            return
        self.scan.feed(data)
        found = self.wanted is not None and self.scan.value(self.wanted) is not None
        if found or self.scan.broken:
            self.body_ended()

    def body_ended(self) -> None:
        if self.stop():
            self.done.callback(None)

    def body_failed(self, error: Exception) -> None:
        if self.stop():
            self.done.errback(error)

    def stop(self) -> bool:
        """Read no further; returns whether that is new."""
        new, self.over = not self.over, True
        if new and self.producer is not None:
            self.producer.stopProducing()
        return new


def read(body: BodySource, scan: MultipartScan, wanted: str | None) -> Deferred[None]:
    """Scan the body from its first byte up to the first value of the field `wanted` (None: to its end).

    The body can be read again from its start. Fails with ClientGone if the client leaves before.
    """
    reader = _Reader(scan, wanted)
    reader.producer = body.start(reader, keep=True)
    if reader.over:
        reader.producer.stopProducing()
    return reader.done


@define(eq=False)
class KeptBody:
    """A body that can be read again after each reader, because it may have to be sent to another server."""

    source: BodySource

    @property
    def length(self) -> int | None:
        """Like the original body."""
        return self.source.length

    @property
    def replayable(self) -> bool:
        """Like the original body."""
        return self.source.replayable

    def read_all(self, limit: int) -> Deferred[bytes]:
        """Like the original body."""
        return self.source.read_all(limit)

    def start(self, consumer: BodyConsumer, *, keep: bool = True) -> IPushProducer:
        """Feed the consumer; every byte is kept."""
        return self.source.start(consumer, keep=True)

    def close(self) -> None:
        """Close the original body."""
        self.source.close()


@define(eq=False)
class SplicedBody(KeptBody):
    """A body with some field values replaced while it is sent; its other bytes stay where they are.

    `places` are in ascending order.
    """

    places: Sequence[ValueSpan]
    value: bytes

    @property
    def length(self) -> int | None:
        """The exact length after the replacement."""
        length = self.source.length
        if length is None:
            return None
        return length + sum(len(self.value) - (place.end - place.start) for place in self.places)

    def read_all(self, limit: int) -> Deferred[bytes]:
        """The whole body after the replacement."""
        replaced = self.value.decode("utf-8", "replace")
        return self.source.read_all(limit).addCallback(lambda data: with_places(data, self.places, "model", replaced))

    def start(self, consumer: BodyConsumer, *, keep: bool = True) -> IPushProducer:
        """Feed the consumer the edited body."""
        return self.source.start(_Splicer(consumer, list(self.places), self.value), keep=keep)


_check: tuple[type[BodySource], type[BodySource]] = (SplicedBody, KeptBody)


@define(eq=False)
class _Splicer:
    """Passes bytes on, with the replaced values."""

    consumer: BodyConsumer
    places: list[ValueSpan]
    value: bytes
    offset: int = 0
    out: list[bytes] = field(factory=list)

    def body_data(self, data: bytes) -> None:
        position, end = self.offset, self.offset + len(data)
        view: Any = data
        while self.places and self.places[0].start < end:
            place = self.places[0]
            if position <= place.start:
                self.out += (view[position - self.offset : place.start - self.offset], self.value)
                position = place.start
            if place.end > end:
                position = end  # the rest of the old value comes with the next bytes
                break
            position = place.end
            self.places.pop(0)
        if position < end:
            self.out.append(view[position - self.offset :])
        self.offset = end
        joined, self.out = b"".join(self.out), []
        if joined:
            self.consumer.body_data(joined)

    def body_ended(self) -> None:
        self.consumer.body_ended()

    def body_failed(self, error: Exception) -> None:
        self.consumer.body_failed(error)
