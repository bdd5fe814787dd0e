"""Sends each event to the clients of the event stream, and keeps the last events for clients that return.

An event is encoded once, whatever the number of clients. If the clients are many, events are gathered, so that the
reactor is not busy with their sockets alone. This module must not know what events mean.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from attrs import define, field
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall

from llamaswap.web.sse_feed import Feed, FeedMessage, message

HEARTBEAT_INTERVAL = 15.0  # seconds; proxies close connections that are silent for 60
REPLAY_EVENTS = 1024  # the events that a client can catch up with when it connects again
REPLAY_BYTES = 1024 * 1024
MAX_GATHERED_BYTES = 256 * 1024  # gathered events of this size are sent at once
MAX_IMMEDIATE_CLIENTS = 16  # up to this number, each event is sent when it happens
GATHER_TIME_PER_CLIENT = 0.0005  # seconds of gathering for each client: writing to all takes a twentieth of that time


@define(eq=False)
class EventFanout:
    """The clients, and the events on their way to them. `number` is that of the last event; `encode` makes the message
    of a topic, a kind, data and a number."""

    clock: IReactorTime
    encode: Callable[[str, str, object, int], FeedMessage] = message
    unread: Callable[[], None] = field(default=lambda: None, init=False)
    """Called when no client reads any more."""
    number: int = field(default=0, init=False)
    _feeds: dict[Feed, None] = field(factory=dict, init=False)
    _current: dict[Feed, None] = field(factory=dict, init=False)
    """The feeds that get events: all but those that fell behind and have not read since."""
    _gathered: list[FeedMessage] = field(factory=list, init=False)
    _gathered_bytes: int = field(default=0, init=False)
    _timer: IDelayedCall | None = field(default=None, init=False)
    _recent: deque[FeedMessage] = field(factory=deque, init=False)
    _recent_bytes: int = field(default=0, init=False)
    _heartbeat: LoopingCall = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._heartbeat = LoopingCall(self.beat)
        self._heartbeat.clock = self.clock

    @property
    def reading(self) -> bool:
        """Whether there is a client that gets events. For clients that have fallen behind, none are made."""
        return bool(self._current)

    @property
    def feeds(self) -> tuple[Feed, ...]:
        """The connected clients."""
        return tuple(self._feeds)

    def join(self, feed: Feed) -> None:
        """Send events to this client from now on."""
        self._feeds[feed] = self._current[feed] = None
        feed.since = self.number
        if not self._heartbeat.running:
            self._heartbeat.start(HEARTBEAT_INTERVAL, now=False)

    def leave(self, feed: Feed) -> None:
        """Send no more events to this client."""
        self._feeds.pop(feed, None)
        self._fell_behind(feed)
        if not self._feeds and self._heartbeat.running:
            self._heartbeat.stop()

    def _fell_behind(self, feed: Feed) -> None:
        """After the last client that reads, nothing is kept for a replay: later events, which are not made, would be
        missing in it."""
        self._current.pop(feed, None)
        if not self._current:
            self._recent.clear()
            self._gathered.clear()
            self._recent_bytes = 0
            self.flush()
            self.unread()

    def caught_up(self, feed: Feed) -> None:
        """Send events again to a client that had fallen behind and now has the current state."""
        if feed in self._feeds:
            self._current[feed] = None
            feed.since = self.number

    def beat(self) -> None:
        """Send every client a keep-alive."""
        for feed in self.feeds:
            feed.beat()

    def publish(self, topic: str, kind: str, data: object) -> None:
        """Send an event to every client that wants its topic; unless a client reads, it is not even encoded."""
        self.number += 1
        if not self._current:
            return
        event = self.encode(topic, kind, data, self.number)
        self._recent.append(event)
        self._recent_bytes += len(event.wire)
        while len(self._recent) > REPLAY_EVENTS or self._recent_bytes > REPLAY_BYTES:
            self._recent_bytes -= len(self._recent.popleft().wire)
        self._gathered.append(event)
        self._gathered_bytes += len(event.wire)
        if len(self._current) <= MAX_IMMEDIATE_CLIENTS or self._gathered_bytes > MAX_GATHERED_BYTES:
            self.flush()
        elif self._timer is None:
            self._timer = self.clock.callLater(GATHER_TIME_PER_CLIENT * len(self._current), self.flush)

    def flush(self) -> None:
        """Send the gathered events, joined once for all clients that want the same ones."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        gathered, self._gathered, self._gathered_bytes = self._gathered, [], 0
        if not gathered:
            return
        joined: dict[tuple[frozenset[str] | None, int], FeedMessage] = {}
        for feed in tuple(self._current):
            since = max(feed.since, gathered[0].number - 1)
            events = joined.get((feed.topics, since))
            if events is None:
                wanted = [event for event in gathered if event.number > since and feed.wants(event.topic)]
                wire = b"".join([event.form(feed.topics is not None) for event in wanted])
                events = joined[feed.topics, since] = FeedMessage("always", wire)
            if events.wire:
                feed.send(events)
                if feed.stale:
                    self._fell_behind(feed)

    def events_since(self, number: int) -> list[FeedMessage] | None:
        """The events after this number; None if some of them are not kept any more."""
        if not self._recent or not self._recent[0].number - 1 <= number <= self.number:
            return None
        return [event for event in self._recent if event.number > number]
