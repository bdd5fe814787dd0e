"""Feeds a consumer from a body that may still be arriving."""

from __future__ import annotations

from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from zope.interface import implementer

from llamaswap.proxy.bodies import FEED_LIMIT
from llamaswap.proxy.exchange import BodyConsumer


class FedBody(Protocol):
    """The body that a feed reads."""

    @property
    def complete(self) -> bool: ...
    def next_piece(self, feed: BodyFeed, /) -> bytes: ...
    def feed_ended(self, feed: BodyFeed, /) -> None: ...
    def feed_stopped(self, feed: BodyFeed, /) -> None: ...
    def feed_paused(self) -> None: ...


@implementer(IPushProducer)
class BodyFeed:
    """One reading of the body. `at` counts chunks in memory, or bytes once there is a file."""

    __slots__ = (
        "_body",
        "_clock",
        "_later",
        "_pumping",
        "at",
        "consumer",
        "direct",
        "paused",
        "stopped",
    )

    def __init__(self, clock: IReactorTime, body: FedBody, consumer: BodyConsumer) -> None:
        self.consumer = consumer
        self.at = 0
        self.paused = False
        self.stopped = False
        self.direct = False  # it has had everything so far, so arriving bytes can be passed on without being kept
        self._clock = clock
        self._body = body
        self._pumping = False
        self._later: IDelayedCall | None = None

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
