"""One client of the event stream: the topics it wants, and a bounded queue while its socket is full.

A message is encoded once and shared by all clients. A client that falls behind loses its queue, and gets the current
state when it reads again. This module must not know what messages mean.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection

from attrs import define, field, frozen
from twisted.internet.interfaces import IPushProducer, IReactorTime
from zope.interface import implementer

from llamaswap.web.admin_request import json_bytes
from llamaswap.web.streaming_response import StreamingResponse

MAX_QUEUED_MESSAGES = 1024  # for one paused client
MAX_QUEUED_BYTES = 1024 * 1024  # of them, because log messages can be large
PIECE = 16 * 1024  # bytes of a message that are written at once
LONGEST_PAUSE = 2.0  # seconds; a client that reads nothing for longer gets the current state when it reads again


@frozen
class FeedMessage:
    """An encoded event. Clients subscribe to its `topic`; `number` is its id, 0 if it was made for one client."""

    topic: str
    wire: bytes = field(repr=False)
    number: int = 0

    def form(self, with_id: bool) -> bytes:
        """The bytes to send; only clients that named topics know ids."""
        return b"id:%d\n%s" % (self.number, self.wire) if with_id and self.number else self.wire


def message(topic: str, kind: str, data: object, number: int = 0) -> FeedMessage:
    """The encoded event: the payload is JSON inside a JSON string, because the clients of this stream expect that."""
    inner = json_bytes(data).decode()
    return FeedMessage(topic, b"event:message\ndata:" + json_bytes({"type": kind, "data": inner}) + b"\n\n", number)


@implementer(IPushProducer)
@define(eq=False)
class Feed:
    """A push producer over one stream. `topics` None: a client of the old vocabulary gets everything, without ids.

    `current_state` gives the messages for a client whose queue was dropped. A paused client keeps references to the
    shared messages, so a thousand clients that read nothing hold each message once.
    """

    clock: IReactorTime
    stream: StreamingResponse
    topics: frozenset[str] | None
    _current_state: Callable[[Feed], Collection[FeedMessage]]
    _queue: deque[FeedMessage] = field(factory=deque, init=False)
    _queued: int = field(default=0, init=False)
    _rest: memoryview = field(default=memoryview(b""), init=False)
    """What the socket has not taken of the message before those in the queue."""
    _paused_at: float | None = field(default=None, init=False)
    _stopped: bool = field(default=False, init=False)
    since: int = field(default=0, init=False)
    """The number of the last event before the state that the client got."""
    stale: bool = field(default=False, init=False)
    """Whether the client fell behind: it gets nothing until it reads again, and then the current state."""

    def wants(self, topic: str) -> bool:
        """Whether the client gets messages of this topic: `always` is for all, `legacy` for the old vocabulary."""
        if self.topics is None:
            return topic in LEGACY_TOPICS
        return topic == "always" or topic in self.topics

    def send(self, event: FeedMessage) -> None:
        """Send now, queue while the socket is full, or fall behind. Does nothing after the client has left."""
        if self.stale or self._stopped:
            return
        if self._paused_at is None:
            self._write(event)
        elif (
            len(self._queue) >= MAX_QUEUED_MESSAGES
            or self._queued + len(event.wire) > MAX_QUEUED_BYTES
            or self.clock.seconds() - self._paused_at > LONGEST_PAUSE
        ):
            self._drop()
            self.stale = True
        else:
            self._queue.append(event)
            self._queued += len(event.wire)

    def _write(self, event: FeedMessage) -> None:
        """Write a message in pieces, so that a socket that is full holds back the rest of a large one."""
        self._rest = memoryview(event.form(self.topics is not None))
        self._write_rest()

    def _write_rest(self) -> None:
        while self._rest and self._paused_at is None:
            piece, self._rest = self._rest[:PIECE], self._rest[PIECE:]
            self.stream.write(bytes(piece))

    def _drop(self) -> None:
        self._queue.clear()
        self._queued = 0

    def beat(self) -> None:
        """Send a keep-alive; a full socket needs none."""
        if self._paused_at is None:
            self.stream.write(b": ping\n\n")

    def pauseProducing(self) -> None:
        if self._paused_at is None:
            self._paused_at = self.clock.seconds()

    def resumeProducing(self) -> None:
        self._paused_at = None
        self._write_rest()
        while self._queue and self._paused_at is None:
            event = self._queue.popleft()
            self._queued -= len(event.wire)
            self._write(event)
        if self.stale and self._paused_at is None:
            self.stale = False
            for event in self._current_state(self):
                self.send(event)

    def stopProducing(self) -> None:
        self._stopped = True
        self._rest = memoryview(b"")
        self._drop()


LEGACY_TOPICS = frozenset(("always", "legacy", "models", "inflight", "activity", "logs:proxy", "logs:upstream"))
