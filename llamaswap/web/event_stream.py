"""GET /api/events: what happens, as it happens, to every page that is open.

Fed by the bus, the in-flight list and the logs. Nothing is watched while nobody listens, and each event is
encoded once however many listen.
"""

from __future__ import annotations

import codecs
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from attrs import define, field
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from llamaswap.events import (
    ActivityStored,
    ConfigRejected,
    ConfigReloaded,
    EventBus,
    PeersChanged,
    ProfileChanged,
    SleepEnded,
    StateChanged,
    SwapBegan,
    SwapEnded,
)
from llamaswap.observe.activity import ActivityLog
from llamaswap.observe.inflight import InflightRequests
from llamaswap.observe.logs import LogMonitor, LogRegistry, Subscription
from llamaswap.observe.machine import MachineMonitor
from llamaswap.proxy.peers import PeerDirectory
from llamaswap.routing.router import Router
from llamaswap.web.admin_request import AdminRequest
from llamaswap.web.listing import capability_flags, every_alias
from llamaswap.web.route import QueryParameter, RouteTable
from llamaswap.web.sse_feed import Feed, FeedMessage, message
from llamaswap.web.streaming_response import StreamingResponses

HEARTBEAT = 15.0  # seconds; proxies cut connections that are silent for 60, pages notice a dead one in two beats
LOG_GATHER = 0.05  # seconds: a server that writes a line a millisecond makes twenty messages a second, not a thousand
LOG_BOUND = 256 * 1024  # bytes gathered meanwhile; beyond, the oldest go
REPLAY = 1024  # messages a client that was away for a moment can catch up with
REPLAY_BYTES = 1024 * 1024
GATHERED = 256 * 1024  # bytes of gathered events that are sent without waiting any longer
AT_ONCE = 16  # clients that get each event when it happens; of more, each waits for its share of the reactor:
SHARE = 0.0005  # seconds of gathering for each client, so that writing to all takes a twentieth of the time
SHARED = 0.25  # seconds: who connects within them gets the same rendered state, unless an event came between
LONGEST_NUMBER = 19  # digits of an event's number; more are none of ours
log = Logger()
STATES = frozenset(("starting", "ready", "stopping"))


@define(eq=False)
class _Tail:
    """One log that somebody watches: decodes, gathers, tells."""

    source: str
    _tell: Callable[[str, str], None]
    _clock: IReactorTime
    since: int
    """The number of the last event that came before it."""
    _decoder: codecs.IncrementalDecoder = field(
        factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"), init=False
    )
    _gathered: list[str] = field(factory=list, init=False)
    _size: int = field(default=0, init=False)
    _missing: int = field(default=0, init=False)
    _timer: IDelayedCall | None = field(default=None, init=False)
    subscription: Subscription | None = field(default=None, init=False)

    def wrote(self, data: bytes) -> None:
        """New bytes. A character cut in two by the writer is put together again."""
        text = self._decoder.decode(data)
        if self._size + len(text) > LOG_BOUND:
            self._missing += len(text)
        elif text:
            self._gathered.append(text)
            self._size += len(text)
        if self._timer is None:
            self._timer = self._clock.callLater(LOG_GATHER, self.flush)

    def flush(self) -> None:
        """Tell what was gathered."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        text = "".join(self._gathered)
        if self._missing:
            text += f"\n\N{EM DASH} {self._missing} characters dropped \N{EM DASH}\n"
        self._gathered.clear()
        self._size = self._missing = 0
        if text:
            self._tell(self.source, text)

    def close(self) -> None:
        """Nobody watches any more."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if self.subscription is not None:
            self.subscription.close()


@define
class _Rendered:
    """Messages rendered once for all who connect in the same moment. `number` is that of the last event before."""

    messages: list[FeedMessage] = field(factory=list)
    number: int = -1
    until: float = 0.0


route = RouteTable("events")
_TOPICS = (QueryParameter("topics", "Comma-separated: models, inflight, activity, swaps, performance, logs:NAME."),)


@define(eq=False)
class EventEndpoints:
    """The hub and its endpoint. `listen` once, when the service starts."""

    router: Router
    bus: EventBus
    book: LogRegistry
    inflight: InflightRequests
    activity: ActivityLog
    streams: StreamingResponses
    clock: IReactorTime
    peers: PeerDirectory | None = None
    machine: MachineMonitor | None = None
    _feeds: dict[Feed, None] = field(factory=dict, init=False)
    _reading: dict[Feed, None] = field(factory=dict, init=False)
    """The feeds that get events; not those that fell behind and have not read since."""
    _pending: list[FeedMessage] = field(factory=list, init=False)
    """Events that were not sent yet, because so many clients listen that they are gathered."""
    _pending_bytes: int = field(default=0, init=False)
    _gathering: IDelayedCall | None = field(default=None, init=False)
    _state: _Rendered = field(factory=lambda: _Rendered(), init=False)
    _logs: dict[tuple[str, bool], _Rendered] = field(factory=dict, init=False)
    _rows: _Rendered = field(factory=lambda: _Rendered(), init=False)
    _rows_wanted: dict[Feed, None] = field(factory=dict, init=False)
    """The clients of the old vocabulary that wait for the finished requests: one reading serves all of them."""
    _rows_asked: bool = field(default=False, init=False)
    _rows_outdated: bool = field(default=False, init=False)
    """A request was stored while the rows were being read: they serve the clients that wait, and none later."""
    _tails: dict[str, _Tail] = field(factory=dict, init=False)
    _followers: Counter[str] = field(factory=Counter, init=False)
    """How many feeds want each log."""
    _sampled: int = field(default=0, init=False)
    """How many feeds want samples of the machine."""
    _number: int = field(default=0, init=False)
    _recent: deque[FeedMessage] = field(factory=deque, init=False)
    _recent_bytes: int = field(default=0, init=False)
    _heart: IDelayedCall | None = field(default=None, init=False)
    _leave_inflight: Callable[[], None] | None = field(default=None, init=False)
    _leave_machine: Callable[[], None] | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self.bus.subscribe(StateChanged, lambda event: self._models_changed())
        self.bus.subscribe(SleepEnded, lambda event: self._models_changed())
        self.bus.subscribe(PeersChanged, lambda event: self._models_changed())
        self.bus.subscribe(ProfileChanged, self._profile_changed)
        self.bus.subscribe(ActivityStored, self._activity_stored)
        self.bus.subscribe(SwapBegan, self._swap_began)
        self.bus.subscribe(SwapEnded, self._swap_ended)
        self.bus.subscribe(ConfigReloaded, self._reloaded)
        self.bus.subscribe(ConfigRejected, self._rejected)

    # -- the endpoint --------------------------------------------------------------------------------------

    @route("GET", "/api/events", content="text/event-stream", query=_TOPICS)
    async def stream(self, call: AdminRequest) -> None:
        """The current state, then every change, as server-sent events."""
        topics = _topics(call)
        stream = self.streams.open(
            call,
            b"text/event-stream",
            ((b"Cache-Control", b"no-cache"), (b"Connection", b"keep-alive")),
        )
        if stream.ended:
            return
        feed = Feed(stream, topics, self._caught_up)
        # What was written but not told yet is part of the history that follows; it must not come twice.
        for tail in self._tails.values():
            tail.flush()
        for told in self._missed(call, feed):
            feed.send(told)
        for told in self._fresh(feed):
            feed.send(told)
        self._join(feed)
        if topics is None:
            self._send_rows(feed)
        try:
            await stream.until_end(feed)
        finally:
            self._part(feed)

    def _send_rows(self, feed: Feed) -> None:
        """The finished requests, for a client of the old vocabulary; read and rendered once for all who wait."""
        if self._rows.until > self.clock.seconds():
            feed.send(self._rows.messages[0])
            return
        self._rows_wanted[feed] = None
        if not self._rows_asked:
            self._rows_asked, self._rows_outdated = True, False
            self.activity.legacy().addCallback(self._rows_read).addErrback(
                lambda failure: log.failure(
                    "the finished requests could not be read for older dashboards", failure=failure
                )
            ).addBoth(lambda _: self._rows_over())

    def _rows_read(self, rows: list[dict[str, Any]]) -> None:
        if not self._rows_wanted:
            return
        told = message("legacy", "metrics", rows)
        if not self._rows_outdated:
            self._rows = _Rendered([told], until=self.clock.seconds() + SHARED)
        for feed in self._rows_wanted:
            feed.send(told)

    def _rows_over(self) -> None:
        self._rows_asked = False
        self._rows_wanted.clear()

    def _missed(self, call: AdminRequest, feed: Feed) -> Iterator[FeedMessage]:
        """What a returning client has not seen yet; the whole log where that is not known any more."""
        last = call.first(b"last-event-id") or b""
        number = int(last) if feed.topics is not None and last.isdigit() and len(last) < LONGEST_NUMBER else -1
        if not self._recent or not self._recent[0].number - 1 <= number <= self._number:
            yield from self._history(feed, _log_topics(feed))
            return
        # A log is followed only while somebody watches it: what nobody heard of is not among the events.
        followed = {topic for topic, tail in self._tails.items() if tail.since <= number}
        gaps = _log_topics(feed) - followed
        for told in self._recent:
            if told.number > number and feed.wants(told.topic) and told.topic not in gaps:
                yield told
        yield from self._history(feed, gaps)

    def _history(self, feed: Feed, topics: Iterable[str]) -> Iterator[FeedMessage]:
        for topic in sorted(topics):
            monitor = self._monitor(topic)
            if monitor is None:
                continue
            old = feed.topics is None
            kept = self._logs.get((topic, old))
            # A log that is followed cannot have grown without an event; of another the last rendering may be short.
            if kept is None or kept.number != self._number or topic not in self._tails:
                kept = _Rendered([self._log_so_far(topic, monitor, old)], self._number)
                self._logs[topic, old] = kept
            yield from kept.messages

    def _log_so_far(self, topic: str, monitor: LogMonitor, old: bool) -> FeedMessage:
        data: dict[str, Any] = {
            "source": topic.removeprefix("logs:"),
            "data": monitor.history().decode("utf-8", "replace"),
        }
        if not old:
            data["reset"] = True
            data["times"] = [[line, round(when * 1000)] for line, when in monitor.times()]
        return message(topic, "logData", data, self._number)

    def _fresh(self, feed: Feed) -> list[FeedMessage]:
        """The state of things: all a client needs that knows nothing."""
        number, now = self._number, self.clock.seconds()
        if not self._feeds or self._state.number != number or now >= self._state.until:
            told = [
                message("models", "modelStatus", self._models(), number),
                message("always", "uiConfig", self._ui_config(), number),
                message("always", "profileChanged", {"active": self.router.profile}, number),
                message("inflight", "inflight", self.inflight.snapshot(), number),
            ]
            self._state = _Rendered(told, number, now + SHARED)
        return [one for one in self._state.messages if feed.wants(one.topic)]

    def _caught_up(self, feed: Feed) -> list[FeedMessage]:
        """A client that had fallen behind reads again: it gets the state of things, and events from now on."""
        if feed in self._feeds:
            self._reading[feed] = None
            feed.since = self._number
        return self._fresh(feed)

    # -- who listens ---------------------------------------------------------------------------------------

    def _join(self, feed: Feed) -> None:
        self._feeds[feed] = self._reading[feed] = None
        feed.since = self._number
        if self._leave_inflight is None:
            self._leave_inflight = self.inflight.subscribe(self._inflight_changed)
        if self._heart is None:
            self._heart = self.clock.callLater(HEARTBEAT, self._beat)
        for topic in _log_topics(feed):
            self._followers[topic] += 1
            self._follow(topic)
        self._sampled += feed.wants("performance")
        self._retune_samples()

    def _part(self, feed: Feed) -> None:
        self._feeds.pop(feed, None)
        self._reading.pop(feed, None)
        self._rows_wanted.pop(feed, None)
        for topic in _log_topics(feed):
            self._followers[topic] -= 1
            if not self._followers[topic]:
                del self._followers[topic]
                self._unfollow(topic)
        self._sampled -= feed.wants("performance")
        self._retune_samples()
        if self._feeds:
            return
        if self._leave_inflight is not None:
            self._leave_inflight()
            self._leave_inflight = None
        if self._heart is not None:
            self._heart.cancel()
            self._heart = None
        # What happens from now on is not seen, so nobody can catch up with it either.
        self._recent.clear()
        self._recent_bytes = 0
        self._pending.clear()
        self._send_pending()
        self._state, self._rows = _Rendered(), _Rendered()
        self._logs.clear()

    def _follow(self, topic: str) -> None:
        monitor = None if topic in self._tails else self._monitor(topic)
        if monitor is not None:
            name = topic.removeprefix("logs:")
            tail = self._tails[topic] = _Tail(name, self._log_written, self.clock, self._number)
            tail.subscription = monitor.subscribe(tail.wrote)

    def _unfollow(self, topic: str) -> None:
        tail = self._tails.pop(topic, None)
        if tail is not None:
            tail.close()
            self._number += 1  # a client that was there until now is told apart from one before the next event

    def _retune_samples(self) -> None:
        """The machine is watched only for those who asked for it: GPUs may sleep otherwise."""
        wanted = self._sampled > 0
        if wanted and self._leave_machine is None and self.machine is not None:
            self._leave_machine = self.machine.subscribe(lambda sample: self.tell("performance", "performance", sample))
        elif not wanted and self._leave_machine is not None:
            self._leave_machine()
            self._leave_machine = None

    def _monitor(self, topic: str) -> LogMonitor | None:
        """The log of a topic. A client's word makes no log: only configured models have one."""
        if not topic.startswith("logs:"):
            return None
        name = topic.removeprefix("logs:")
        builtin = {"proxy": self.book.proxy, "upstream": self.book.upstream, "combined": self.book.combined}
        if name in builtin:
            return builtin[name]
        real = self.router.config.real(name)
        return None if real is None else self.book.model(real)

    def _beat(self) -> None:
        self._heart = self.clock.callLater(HEARTBEAT, self._beat)
        for feed in tuple(self._feeds):
            feed.beat()

    # -- what happened -------------------------------------------------------------------------------------

    def tell(self, topic: str, kind: str, data: object) -> None:
        """One event for everyone who wants its topic; nothing is encoded when nobody listens."""
        if not self._feeds:
            return
        self._number += 1
        told = message(topic, kind, data, self._number)
        self._recent.append(told)
        self._recent_bytes += len(told.wire)
        while len(self._recent) > REPLAY or self._recent_bytes > REPLAY_BYTES:
            self._recent_bytes -= len(self._recent.popleft().wire)
        self._pending.append(told)
        self._pending_bytes += len(told.wire)
        if len(self._reading) <= AT_ONCE or self._pending_bytes > GATHERED:
            self._send_pending()
        elif self._gathering is None:
            self._gathering = self.clock.callLater(SHARE * len(self._reading), self._send_pending)

    def _send_pending(self) -> None:
        """Send the gathered events: joined once for all clients that want the same."""
        if self._gathering is not None and self._gathering.active():
            self._gathering.cancel()
        self._gathering = None
        pending, self._pending, self._pending_bytes = self._pending, [], 0
        if not pending:
            return
        joined: dict[tuple[frozenset[str] | None, int], FeedMessage] = {}
        for feed in tuple(self._reading):
            since = max(feed.since, pending[0].number - 1)
            told = joined.get((feed.topics, since))
            if told is None:
                wanted = [one for one in pending if one.number > since and feed.wants(one.topic)]
                wire = b"".join([one.form(feed.topics is not None) for one in wanted])
                told = joined[feed.topics, since] = FeedMessage("always", wire)
            if told.wire:
                feed.send(told)
                if feed.stale:
                    del self._reading[feed]

    def _models_changed(self) -> None:
        if self._feeds:
            self.tell("models", "modelStatus", self._models())

    def _profile_changed(self, event: ProfileChanged) -> None:
        self.tell("always", "profileChanged", {"active": event.active})
        self._models_changed()

    def _inflight_changed(self, event: dict[str, Any]) -> None:
        self.tell("inflight", "inflight", event)

    def _activity_stored(self, event: ActivityStored) -> None:
        self._rows.until = 0.0
        self._rows_outdated = True
        self.tell("activity", "activity", {"id": event.row})
        row = self.activity.recent(event.row)
        if row is not None and row.resp_status_code == 200:
            self.tell("legacy", "metrics", [self.activity.flat(row)])

    def _swap_began(self, event: SwapBegan) -> None:
        data = {"id": event.swap, "model": event.model, "evicted": list(event.evicted), "reason": event.reason}
        self.tell("swaps", "swap", {**data, "trigger": event.origin, "ended": False, "error": None})

    def _swap_ended(self, event: SwapEnded) -> None:
        self.tell("swaps", "swap", {"id": event.swap, "model": event.model, "ended": True, "error": event.error})

    def _reloaded(self, event: ConfigReloaded) -> None:
        """Older clients only learn of new profiles and headers by connecting anew; the others are told."""
        touched = {
            "added": list(event.added),
            "removed": list(event.removed),
            "restarted": list(event.restarted),
            "retuned": list(event.retuned),
        }
        self._send_pending()
        for feed in tuple(self._feeds):
            if feed.topics is None:
                feed.stream.end()
        self.tell("always", "configReloaded", touched)
        self._send_pending()
        for topic in sorted(self._followers):  # the log of a model that is new
            self._follow(topic)
        for feed in tuple(self._feeds):
            for told in self._fresh(feed):
                feed.send(told)

    def _rejected(self, event: ConfigRejected) -> None:
        self.tell("always", "configRejected", {"message": event.message})

    def _log_written(self, source: str, text: str) -> None:
        self.tell(f"logs:{source}", "logData", {"source": source, "data": text})

    # -- pictures ------------------------------------------------------------------------------------------

    def _models(self) -> list[dict[str, Any]]:
        config = self.router.config
        rows: list[dict[str, Any]] = []
        sleeping = {status.model for status in self.router.suspended()}
        for model in config.models.values():
            state = self.router.state(model.id)
            row: dict[str, Any] = {
                "id": model.id,
                "name": model.name or "",
                "description": model.description or "",
                "state": state if state in STATES else "stopped",
                "unlisted": model.unlisted,
                "peerID": "",
            }
            for key, value in (
                ("aliases", every_alias(model)),
                ("capabilities", capability_flags(model)),
                ("context_length", model.capabilities.context),
                ("asleep", model.id in sleeping),
            ):
                if value:
                    row[key] = value
            rows.append(row)
        rows.sort(key=lambda row: str(row["id"]))
        for peer in config.peers.values():
            health = {} if self.peers is None else {"peerHealth": self.peers.health(peer.id).state}
            for name in peer.models:
                nothing = {"name": "", "description": "", "state": "", "unlisted": False}
                rows.append({"id": f"{peer.id}/{name}", **nothing, "peerID": peer.id, **health})
        return rows

    def _ui_config(self) -> dict[str, Any]:
        return {"activity": {"session_id": list(self.router.config.ui.activity.session_id)}}


def _topics(call: AdminRequest) -> frozenset[str] | None:
    """The topics asked for; None when the parameter is not there at all."""
    given = call.query.get("topics")
    if given is None:
        return None
    return frozenset(topic.strip() for value in given for topic in value.split(",") if topic.strip())


def _log_topics(feed: Feed) -> frozenset[str]:
    if feed.topics is None:
        return frozenset(("logs:proxy", "logs:upstream"))
    return frozenset(topic for topic in feed.topics if topic.startswith("logs:"))
