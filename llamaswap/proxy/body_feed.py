"""Feeds a consumer from a body that may still be arriving."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from zope.interface import implementer

from llamaswap.proxy.bodies import FEED_LIMIT
from llamaswap.proxy.exchange import BodyConsumer

if TYPE_CHECKING:
    from llamaswap.proxy.incoming_body import SpooledBody


@implementer(IPushProducer)
@define(eq=False)
class BodyFeed:
    """One reading of the body. `at` counts chunks in memory, or bytes once there is a file.

    `direct`: it has had everything so far, so arriving bytes can be passed on without being kept.
    """

    _clock: IReactorTime
    _body: SpooledBody
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
