"""One client of the event stream: what it wants to hear, and a bounded queue while its socket is full.

A message is encoded once and shared by all clients; a client that falls behind loses its queue and gets a
fresh picture when it is back. Must not know what the messages mean.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection

from attrs import define, field, frozen
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from llamaswap.web.admin_request import json_bytes
from llamaswap.web.streaming_response import StreamingResponse

MESSAGES = 1024  # messages kept for one paused client
BYTES = 1024 * 1024  # and their bytes: log messages can be large


@frozen
class FeedMessage:
    """An encoded event. `topic` is what clients subscribe to, `number` its id; 0 if made for one client."""

    topic: str
    wire: bytes = field(repr=False)
    number: int = 0

    def form(self, with_id: bool) -> bytes:
        """As sent; only clients that named topics know ids."""
        return b"id:%d\n%s" % (self.number, self.wire) if with_id and self.number else self.wire


def message(topic: str, kind: str, data: object, number: int = 0) -> FeedMessage:
    """The wire form: the payload is JSON inside a JSON string, as clients of this stream have always parsed it."""
    inner = json_bytes(data).decode()
    return FeedMessage(topic, b"event:message\ndata:" + json_bytes({"type": kind, "data": inner}) + b"\n\n", number)


@implementer(IPushProducer)
@define(eq=False)
class Feed:
    """A push producer over one stream. `topics` None is a client of the old vocabulary: everything, no ids.

    `fresh` makes the messages that bring a client up to date after its queue was dropped. A paused client keeps
    references to the shared messages, so a thousand clients that read nothing hold each message once.
    """

    stream: StreamingResponse
    topics: frozenset[str] | None
    _fresh: Callable[[Feed], Collection[FeedMessage]]
    _queue: deque[FeedMessage] = field(factory=deque, init=False)
    _queued: int = field(default=0, init=False)
    _paused: bool = field(default=False, init=False)
    _stopped: bool = field(default=False, init=False)
    since: int = field(default=0, init=False)
    """The number of the last event whose effect the client knows from the state that it was sent."""
    stale: bool = field(default=False, init=False)
    """Whether the client fell behind: it gets nothing until it reads again, and then the `fresh` messages."""

    def wants(self, topic: str) -> bool:
        """Whether messages of this topic are for this client. `always` is for everyone, `legacy` for old clients."""
        if self.topics is None:
            return topic in LEGACY_TOPICS
        return topic == "always" or topic in self.topics

    def send(self, told: FeedMessage) -> None:
        """Send now, keep while the socket is full, or fall behind. After the client left: nothing."""
        if self.stale or self._stopped:
            return
        if not self._paused:
            self.stream.write(told.form(self.topics is not None))
        elif len(self._queue) >= MESSAGES or self._queued + len(told.wire) > BYTES:
            self._drop()
            self.stale = True
        else:
            self._queue.append(told)
            self._queued += len(told.wire)

    def _drop(self) -> None:
        self._queue.clear()
        self._queued = 0

    def beat(self) -> None:
        """A sign of life; a full socket needs none."""
        if not self._paused:
            self.stream.write(b": ping\n\n")

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        if self.stale:
            self.stale = False
            for told in self._fresh(self):
                self.send(told)
            return
        held = b"".join([told.form(self.topics is not None) for told in self._queue])
        self._drop()
        self.stream.write(held)

    def stopProducing(self) -> None:
        self._stopped = True
        self._drop()


LEGACY_TOPICS = frozenset(("always", "legacy", "models", "inflight", "activity", "logs:proxy", "logs:upstream"))
