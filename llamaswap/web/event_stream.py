"""GET /api/events: the current state and every change, for each open page.

The events come from the bus, the in-flight requests, the machine's samples and the logs. Requests and samples are only
watched while a client is connected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from operator import attrgetter

from attrs import asdict, define, field
from twisted.logger import Logger

from llamaswap.config import Capabilities, Model
from llamaswap.events import (
    CapabilitiesFound,
    ConfigRejected,
    ConfigReloaded,
    EventBus,
    LoadFailed,
    PeersChanged,
    ProfileChanged,
    SleepEnded,
    StateChanged,
    SwapBegan,
    SwapEnded,
)
from llamaswap.observe.activity import ActivityLog
from llamaswap.observe.activity_row import ActivityRow, ActivityStored
from llamaswap.observe.inflight import InflightRequests
from llamaswap.observe.logs import LogRegistry
from llamaswap.observe.machine import MachineMonitor
from llamaswap.proxy.peers import PeerDirectory
from llamaswap.routing.router import Router
from llamaswap.web.admin_request import AdminRequest, JsonObject
from llamaswap.web.event_fanout import EventFanout
from llamaswap.web.listing import status_rows
from llamaswap.web.log_topics import PREFIX, LogTopics
from llamaswap.web.route import QueryParameter, Route, RouteTable
from llamaswap.web.secret_masking import known_secrets, masked_text
from llamaswap.web.sse_feed import Feed, FeedMessage, message
from llamaswap.web.streaming_response import StreamingResponses

RENDERING_LIFETIME = 0.25  # seconds: clients that connect within them share a rendering, unless an event comes between
MAX_EVENT_ID_LENGTH = 18  # digits; a longer number is not one of this server
log = Logger()

Publish = Callable[[JsonObject], None]


@define(eq=False)
class LegacyRows:
    """The finished requests for clients of the old vocabulary: one read from the store serves all that wait for it."""

    activity: ActivityLog
    fanout: EventFanout
    _waiting: dict[Feed, None] = field(factory=dict, init=False)
    _reading: bool = field(default=False, init=False)
    _outdated: bool = field(default=False, init=False)
    """Whether a request was stored during the read: its rows serve the clients that wait, and no later ones."""
    _rendered: FeedMessage | None = field(default=None, init=False)
    _valid_until: float = field(default=0.0, init=False)

    def send(self, feed: Feed) -> None:
        """Send all rows to a client, now or when they have been read."""
        if self._rendered is not None and self._valid_until > self.fanout.clock.seconds():
            feed.send(self._rendered)
            return
        self._waiting[feed] = None
        if not self._reading:
            self._reading, self._outdated = True, False
            self.activity.legacy().addCallback(self._read).addErrback(
                lambda failure: log.failure(
                    "the finished requests could not be read; older dashboards show none", failure=failure
                )
            ).addBoth(lambda _: self._end())

    def forget(self, feed: Feed) -> None:
        """A client left."""
        self._waiting.pop(feed, None)

    def stored(self, row: ActivityRow) -> None:
        """A request was stored: clients of the old vocabulary get its row if it succeeded."""
        self.outdate()
        if self.fanout.reading and row.resp_status_code == 200:
            self.fanout.publish("legacy", "metrics", [self.activity.flat(row)])

    def outdate(self) -> None:
        """Forget the list of rows, so that it is read again for the next client."""
        self._rendered, self._outdated = None, True

    def _read(self, rows: list[JsonObject]) -> None:
        if not self._waiting:
            return
        rendered = message("legacy", "metrics", rows)
        if not self._outdated:
            self._rendered, self._valid_until = rendered, self.fanout.clock.seconds() + RENDERING_LIFETIME
        for feed in self._waiting:
            feed.send(rendered)

    def _end(self) -> None:
        self._reading = False
        self._waiting.clear()


route = RouteTable("events", Route)
_TOPICS = (QueryParameter("topics", "Comma-separated: models, inflight, activity, swaps, performance, logs:NAME."),)


@define(eq=False)
class EventEndpoints:
    """/api/events. It subscribes to the bus when it is made. `capabilities` are those of a model that are known."""

    router: Router
    bus: EventBus
    registry: LogRegistry
    inflight: InflightRequests
    activity: ActivityLog
    streams: StreamingResponses
    peers: PeerDirectory
    machine: MachineMonitor
    fanout: EventFanout
    capabilities: Callable[[Model], Capabilities] = attrgetter("capabilities")
    legacy_rows: LegacyRows = field(init=False)
    _logs: LogTopics = field(init=False)
    _state: list[FeedMessage] = field(factory=list, init=False)
    """The state as rendered last, after the event `_state_number`."""
    _state_number: int = field(default=-1, init=False)
    _state_until: float = field(default=0.0, init=False)
    _watched: dict[str, Callable[[], None]] = field(factory=dict, init=False)
    """The topics whose sources are subscribed to, with their unsubscribers."""
    _sampled: int = field(default=0, init=False)
    """The number of clients that asked for the machine's samples."""

    def __attrs_post_init__(self) -> None:
        self.legacy_rows = LegacyRows(self.activity, self.fanout)
        self._logs = LogTopics(self.registry, lambda: self.router.config, self.fanout)
        self.fanout.unread = self._subscribe
        for event in (StateChanged, SleepEnded, PeersChanged, CapabilitiesFound):
            self.bus.subscribe(event, lambda _: self._models_changed())
        self.bus.subscribe(ProfileChanged, self._profile_changed)
        self.bus.subscribe(ActivityStored, self._activity_stored)
        self.bus.subscribe(SwapBegan, self._swap_began)
        self.bus.subscribe(SwapEnded, self._swap_ended)
        self.bus.subscribe(LoadFailed, self._load_failed)
        self.bus.subscribe(ConfigReloaded, self._reloaded)
        self.bus.subscribe(ConfigRejected, self._rejected)

    # -- one client ----------------------------------------------------------------------------------------

    @route("GET", "/api/events", content="text/event-stream", query=_TOPICS)
    async def stream(self, call: AdminRequest) -> None:
        """The current state, then every change, as server-sent events."""
        topics = _topics(call)
        headers = ((b"Cache-Control", b"no-cache"), (b"Connection", b"keep-alive"))
        stream = self.streams.open(call, b"text/event-stream", headers)
        if stream.ended:
            return
        feed = Feed(self.fanout.clock, stream, topics, self._state_for)
        stream.register(feed)
        # Written text that is not an event yet is part of the history below; it must not come twice.
        self._logs.flush()
        _send(feed, self._missed(call, feed))
        _send(feed, self._current_state(feed))
        self._join(feed)
        if topics is None:
            self.legacy_rows.send(feed)
        try:
            await stream.until_end()
        finally:
            self._leave(feed)

    def _missed(self, call: AdminRequest, feed: Feed) -> Iterable[FeedMessage]:
        """The events that a returning client has not seen; the whole of a log if some of them are not known."""
        last = call.first(b"last-event-id") or b""
        known = feed.topics is not None and last.isdigit() and len(last) <= MAX_EVENT_ID_LENGTH
        number = int(last) if known else -1
        events = self.fanout.events_since(number)
        if events is None:
            yield from self._logs.history(_log_topics(feed), legacy=feed.topics is None)
            return
        unfollowed = _log_topics(feed) - self._logs.followed_since(number)
        yield from (event for event in events if feed.wants(event.topic) and event.topic not in unfollowed)
        yield from self._logs.history(unfollowed, legacy=feed.topics is None)

    def _state_for(self, feed: Feed) -> list[FeedMessage]:
        """The state for a client that had fallen behind and reads again."""
        self.fanout.caught_up(feed)
        self._subscribe()
        return self._current_state(feed)

    def _current_state(self, feed: Feed) -> list[FeedMessage]:
        """The whole state, as far as the client asked for it."""
        number, now = self.fanout.number, self.fanout.clock.seconds()
        if not self.fanout.reading or self._state_number != number or now >= self._state_until:
            ui = {"activity": {"session_id": list(self.router.config.ui.activity.session_id)}}
            self._state = [
                message("models", "modelStatus", status_rows(self.router, self.peers, self.capabilities), number),
                message("always", "uiConfig", ui, number),
                message("always", "profileChanged", {"active": self.router.profile}, number),
                message("inflight", "inflight", self.inflight.snapshot(), number),
            ]
            self._state_number, self._state_until = number, now + RENDERING_LIFETIME
        return [one for one in self._state if feed.wants(one.topic)]

    def _join(self, feed: Feed) -> None:
        self.fanout.join(feed)
        self._logs.follow(_log_topics(feed))
        self._sampled += feed.wants("performance")
        self._subscribe()

    def _leave(self, feed: Feed) -> None:
        self._logs.unfollow(_log_topics(feed))
        self.fanout.leave(feed)
        self.legacy_rows.forget(feed)
        self._sampled -= feed.wants("performance")
        self._subscribe()

    def _subscribe(self) -> None:
        """Watch the requests while a client reads, and the machine, whose GPUs may sleep otherwise, while a
        client asked for its samples."""
        self._watch("inflight", self.inflight.subscribe, wanted=self.fanout.reading)
        self._watch("performance", self.machine.subscribe, wanted=self._sampled > 0)
        if not self.fanout.reading:
            self._state = []
            self.legacy_rows.outdate()

    def _watch(self, topic: str, subscribe: Callable[[Publish], Callable[[], None]], *, wanted: bool) -> None:
        if wanted and topic not in self._watched:
            self._watched[topic] = subscribe(partial(self.fanout.publish, topic, topic))
        elif not wanted and topic in self._watched:
            self._watched.pop(topic)()

    # -- events --------------------------------------------------------------------------------------------

    def _models_changed(self) -> None:
        if self.fanout.reading:
            self.fanout.publish("models", "modelStatus", status_rows(self.router, self.peers, self.capabilities))

    def _profile_changed(self, event: ProfileChanged) -> None:
        self.fanout.publish("always", "profileChanged", {"active": event.active})
        self._models_changed()

    def _activity_stored(self, event: ActivityStored) -> None:
        for row in event.rows:
            self.fanout.publish("activity", "activity", {"id": row.id})
            self.legacy_rows.stored(row)

    def _swap_began(self, event: SwapBegan) -> None:
        data = {"id": event.swap, "model": event.model, "evicted": list(event.evicted), "reason": event.reason}
        self.fanout.publish("swaps", "swap", {**data, "trigger": event.origin, "ended": False, "error": None})

    def _swap_ended(self, event: SwapEnded) -> None:
        error = None if event.error is None else self._masked(event.error)
        data = {"id": event.swap, "model": event.model, "ended": True, "error": error}
        self.fanout.publish("swaps", "swap", data)

    def _load_failed(self, event: LoadFailed) -> None:
        self._models_changed()
        self.fanout.publish("swaps", "loadFailed", {"model": event.model, "error": self._masked(event.error)})

    def _masked(self, error: str) -> str:
        return masked_text(error, known_secrets(self.router.config))

    def _reloaded(self, event: ConfigReloaded) -> None:
        """End the streams of legacy clients, which learn new profiles only by connecting again; inform the others."""
        self.fanout.flush()
        for feed in self.fanout.feeds:
            if feed.topics is None:
                feed.stream.end()
        self.fanout.publish("always", "configReloaded", asdict(event))
        self.fanout.flush()
        self._logs.models_changed()
        for feed in self.fanout.feeds:
            if not feed.stale:
                _send(feed, self._current_state(feed))

    def _rejected(self, event: ConfigRejected) -> None:
        self.fanout.publish("always", "configRejected", {"message": event.message})


def _send(feed: Feed, messages: Iterable[FeedMessage]) -> None:
    for one in messages:
        feed.send(one)


def _topics(call: AdminRequest) -> frozenset[str] | None:
    """The requested topics; None without the parameter."""
    given = call.query.get("topics")
    if given is None:
        return None
    return frozenset(topic.strip() for value in given for topic in value.split(",") if topic.strip())


def _log_topics(feed: Feed) -> frozenset[str]:
    if feed.topics is None:
        return frozenset(("logs:proxy", "logs:upstream"))
    return frozenset(topic for topic in feed.topics if topic.startswith(PREFIX))
