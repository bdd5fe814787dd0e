"""The logs as topics of the event stream: their history for a client that connects, then what is written to them.

A log is followed only while a client wants it.
"""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from attrs import define, field
from twisted.internet.interfaces import IDelayedCall

from llamaswap.config import Config
from llamaswap.observe.logs import LogMonitor, LogRegistry, Subscription
from llamaswap.web.admin_request import JsonObject
from llamaswap.web.event_fanout import EventFanout
from llamaswap.web.sse_feed import FeedMessage, message

GATHER_TIME = 0.05  # seconds: a server that writes a line each millisecond makes twenty messages a second, not 1000
MAX_GATHERED = 256 * 1024  # characters gathered meanwhile; those beyond are dropped
PREFIX = "logs:"


@define(eq=False)
class LogTail:
    """Publishes what is written to one log, decoded and gathered. `since` is the number of the last event before it."""

    source: str
    monitor: LogMonitor
    fanout: EventFanout
    since: int
    _decoder: codecs.IncrementalDecoder = field(
        factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"), init=False
    )
    _gathered: list[str] = field(factory=list, init=False)
    _size: int = field(default=0, init=False)
    _dropped: int = field(default=0, init=False)
    _timer: IDelayedCall | None = field(default=None, init=False)
    _subscription: Subscription = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._subscription = self.monitor.subscribe(self._write)

    def _write(self, data: bytes) -> None:
        # The decoder joins a character that the writer cut in two.
        text = self._decoder.decode(data)
        if self._size + len(text) > MAX_GATHERED:
            self._dropped += len(text)
        elif text:
            self._gathered.append(text)
            self._size += len(text)
        if self._timer is None:
            self._timer = self.fanout.clock.callLater(GATHER_TIME, self.flush)

    def flush(self) -> None:
        """Publish what was gathered."""
        self._cancel_timer()
        text = "".join(self._gathered)
        if self._dropped:
            text += f"\n\N{EM DASH} {self._dropped} characters dropped \N{EM DASH}\n"
        self._gathered.clear()
        self._size = self._dropped = 0
        if text:
            self.fanout.publish(PREFIX + self.source, "logData", {"source": self.source, "data": text})

    def close(self) -> None:
        """End, because no client follows the log any more."""
        self._cancel_timer()
        self._subscription.close()

    def _cancel_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None


@define(eq=False)
class LogTopics:
    """The followed logs, by topic, with the number of their followers."""

    registry: LogRegistry
    config: Callable[[], Config]
    fanout: EventFanout
    _tails: dict[str, LogTail] = field(factory=dict, init=False)
    _followers: Counter[str] = field(factory=Counter, init=False)
    _histories: dict[tuple[str, bool], FeedMessage] = field(factory=dict, init=False)

    def follow(self, topics: Iterable[str]) -> None:
        """Follow these logs for one more client."""
        for topic in topics:
            self._followers[topic] += 1
            self._open(topic)

    def unfollow(self, topics: Iterable[str]) -> None:
        """One client does not follow these logs any more."""
        for topic in topics:
            self._followers[topic] -= 1
            if self._followers[topic]:
                continue
            del self._followers[topic]
            for legacy in (True, False):
                self._histories.pop((topic, legacy), None)
            tail = self._tails.pop(topic, None)
            if tail is not None:
                tail.close()
                self.fanout.number += 1  # this client has seen more than one that left before

    def models_changed(self) -> None:
        """Follow the logs of new models that clients already ask for."""
        for topic in sorted(self._followers):
            self._open(topic)

    def flush(self) -> None:
        """Publish everything written until now."""
        for tail in self._tails.values():
            tail.flush()

    def followed_since(self, number: int) -> set[str]:
        """The topics that were followed all the time since the event `number`: each of their writes was an event."""
        return {topic for topic, tail in self._tails.items() if tail.since <= number}

    def history(self, topics: Iterable[str], *, legacy: bool) -> Iterator[FeedMessage]:
        """The whole text of these logs, rendered once for clients that connect before the next event. `legacy` clients
        get it without the members that they do not know."""
        for topic in sorted(topics):
            monitor = self._monitor(topic)
            if monitor is None:
                continue
            known = self._histories.get((topic, legacy))
            # A followed log cannot have grown without an event; one that is not followed can.
            if known is None or known.number != self.fanout.number or topic not in self._tails:
                known = self._histories[topic, legacy] = self._rendered(topic, monitor, legacy)
            yield known

    def _rendered(self, topic: str, monitor: LogMonitor, legacy: bool) -> FeedMessage:
        data: JsonObject = {
            "source": topic.removeprefix(PREFIX),
            "data": monitor.history().decode("utf-8", "replace"),
        }
        if not legacy:
            data["reset"] = True
            data["times"] = [[line, round(when * 1000)] for line, when in monitor.times()]
        return message(topic, "logData", data, self.fanout.number)

    def _open(self, topic: str) -> None:
        monitor = None if topic in self._tails else self._monitor(topic)
        if monitor is not None:
            self._tails[topic] = LogTail(topic.removeprefix(PREFIX), monitor, self.fanout, self.fanout.number)

    def _monitor(self, topic: str) -> LogMonitor | None:
        """The log of a topic; None if its name is neither built in nor that of a configured model."""
        if not topic.startswith(PREFIX):
            return None
        name = topic.removeprefix(PREFIX)
        if name in self.registry.built_in:
            return self.registry.built_in[name]
        model = self.config().real(name)
        return None if model is None else self.registry.model(model)
