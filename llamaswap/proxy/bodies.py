"""What all request bodies have in common, how a consumer is fed from one, and the body that is complete in memory."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from attrs import define
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from zope.interface import implementer

from llamaswap.errors import BodyTooLarge
from llamaswap.proxy.exchange import BodyConsumer, BodySource

if TYPE_CHECKING:
    from llamaswap.proxy.incoming_body import SpooledBody

BODY_COPIES = 3  # copies of a body that was read whole: as received, as edited, and in the connection's buffer
PIECE_SIZE = 64 * 1024  # bytes of a large body that are fed to a connection at once
FEED_LIMIT = 1024 * 1024  # bytes fed at once; then other connections are served


@implementer(IPushProducer)
class _Done:
    """The producer of a body that has been fed completely."""

    def pauseProducing(self) -> None:
        """There is no more to come."""

    def resumeProducing(self) -> None:
        """There is no more to come."""

    def stopProducing(self) -> None:
        """There is no more to come."""


FED = _Done()


@implementer(IPushProducer)
@define(eq=False)
class BodyFeed:
    """One reading of the body. `at` counts chunks in memory, or bytes once there is a file.

    `direct`: it has had everything so far, so arriving bytes can be passed on without being kept.
    """

    _clock: IReactorTime
    _body: SpooledBody | PiecesBody
    consumer: BodyConsumer
    at: int = 0
    paused: bool = False
    stopped: bool = False
    direct: bool = False
    _pumping: bool = False
    _later: IDelayedCall | None = None

    def pump(self) -> None:
        """Feed what is here as far as the consumer takes it, up to FEED_LIMIT bytes at once."""
        if self._pumping or self._later is not None:
            return
        body = self._body
        budget = FEED_LIMIT
        self._pumping = True
        self.direct = False
        while not self.paused and not self.stopped:
            if budget <= 0:
                self._later = self._clock.callLater(0, self._again)
                break
            data = body.next_piece(self)
            if not data:
                if body.complete:
                    self.stopped = True
                    body.feed_ended(self)
                    self.consumer.body_ended()
                else:
                    self.direct = True
                break
            budget -= len(data)
            self.consumer.body_data(data)
        self._pumping = False

    def _again(self) -> None:
        self._later = None
        self.pump()

    def pauseProducing(self) -> None:
        self.paused = True
        self.direct = False
        self._body.feed_paused()

    def resumeProducing(self) -> None:
        self.paused = False
        if self.stopped:
            return
        # Later, because a transport resumes us from within its own write.
        if self._later is None:
            self._later = self._clock.callLater(0, self._again)
        self._body.feed_paused()

    def stopProducing(self) -> None:
        self.stopped = True
        later, self._later = self._later, None
        if later is not None:
            later.cancel()
        self._body.feed_stopped(self)


@define(eq=False)
class BytesBody:
    """A body in memory, as received or edited. Its size was checked before."""

    data: bytes
    replayable: bool = True

    @property
    def length(self) -> int | None:
        """Its size in bytes."""
        return len(self.data)

    def read_all(self, limit: int) -> Deferred[bytes]:
        """The body itself."""
        if len(self.data) > limit:
            return fail(BodyTooLarge(limit))
        return succeed(self.data)

    def start(self, consumer: BodyConsumer, *, keep: bool = True) -> IPushProducer:
        """Feed everything at once: it is in memory already, so a pause would save nothing."""
        if self.data:
            consumer.body_data(self.data)
        consumer.body_ended()
        return FED

    def close(self) -> None:
        """There is nothing to close."""


class PiecesBody:
    """A body in memory that was never joined. It is fed in small parts as a connection takes them."""

    replayable = True
    complete = True

    def __init__(self, clock: IReactorTime, pieces: Sequence[bytes | memoryview]) -> None:
        self._clock = clock
        self._pieces = [memoryview(piece) for piece in pieces if piece]
        self._starts = list(accumulate((len(piece) for piece in self._pieces), initial=0))
        self._size = self._starts.pop()
        self._feed: BodyFeed | None = None

    @property
    def length(self) -> int | None:
        """Its size in bytes."""
        return self._size

    def read_all(self, limit: int) -> Deferred[bytes]:
        """The whole body, joined."""
        return fail(BodyTooLarge(limit)) if self._size > limit else succeed(b"".join(self._pieces))

    def start(self, consumer: BodyConsumer, *, keep: bool = True) -> IPushProducer:
        """Feed it part by part, as the consumer's back-pressure allows."""
        self._stop_feed()
        feed = self._feed = BodyFeed(self._clock, self, consumer)
        feed.pump()
        return feed

    def close(self) -> None:
        """Stop feeding, and discard the pieces."""
        self._stop_feed()
        self._pieces, self._starts, self._size = [], [], 0

    def _stop_feed(self) -> None:
        if self._feed is not None:
            self._feed.stopProducing()

    def next_piece(self, feed: BodyFeed) -> bytes:
        """The feed's next bytes, of one piece; empty at the end."""
        if feed.at >= self._size:
            return b""
        number = bisect_right(self._starts, feed.at) - 1
        begin = feed.at - self._starts[number]
        data = bytes(self._pieces[number][begin : begin + PIECE_SIZE])
        feed.at += len(data)
        return data

    def feed_ended(self, feed: BodyFeed) -> None:
        """This feed is not the running one any more."""
        if self._feed is feed:
            self._feed = None

    feed_stopped = feed_ended

    def feed_paused(self) -> None:
        """Nothing arrives that would have to wait."""


_check: tuple[type[BodySource], type[BodySource]] = (BytesBody, PiecesBody)
