"""The events of llama.cpp's router: the changes of the models' states, for its web UI and its other clients.

The rest of its API is under the same paths elsewhere: the listing in `listing`, /models/load in `models`,
/models/unload in `processes`, and /props without a model in `inference`.
"""

from __future__ import annotations

from attrs import define, field, frozen

from llamaswap.events import ConfigReloaded, EventBus, LoadFailed, SleepEnded, StateChanged
from llamaswap.routing.router import Router
from llamaswap.web.admin_request import AdminRequest, JsonObject, json_bytes
from llamaswap.web.event_fanout import EventFanout
from llamaswap.web.key_access import KeyAccess
from llamaswap.web.route import Route, RouteTable
from llamaswap.web.sse_feed import Feed, FeedMessage
from llamaswap.web.streaming_response import StreamingResponses

STATUSES = {"starting": "loading", "ready": "loaded"}  # of a state of ours; every other one is unloaded
FAILED = ("failed", "crash")
CHANGE, RELOAD = "status_change", "models_reload"


@frozen
class RouterEvent:
    """An event: `data` has the model's `status`, and an `exit_code` other than 0 if it failed."""

    model: str
    event: str
    data: JsonObject = field(factory=dict)


def encoded(topic: str, kind: str, data: object, number: int) -> FeedMessage:
    """The message of an event about the model `topic`, or about all of them."""
    model = "" if topic == "always" else topic
    return FeedMessage(topic, b"data: " + json_bytes({"model": model, "event": kind, "data": data}) + b"\n\n", number)


route = RouteTable("models", Route)


@define(eq=False)
class LlamaRouterEndpoints:
    """/models/sse. It subscribes to the bus when it is made."""

    router: Router
    bus: EventBus
    streams: StreamingResponses
    fanout: EventFanout
    _access: dict[Feed, KeyAccess] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self.bus.subscribe(StateChanged, lambda event: self._changed(event.model, event.new, event.why in FAILED))
        self.bus.subscribe(SleepEnded, lambda event: self._changed(event.model, "stopped", failed=False))
        self.bus.subscribe(LoadFailed, lambda event: self._changed(event.model, "stopped", failed=True))
        self.bus.subscribe(ConfigReloaded, lambda event: self._reloaded())

    @route("GET", "/models/sse", cross_origin=True, scope="any", content="text/event-stream", answer=RouterEvent)
    async def events(self, call: AdminRequest) -> None:
        """The changes of the models' states, as llama.cpp's router sends them."""
        stream = self.streams.open(call, b"text/event-stream", ((b"Cache-Control", b"no-cache"),))
        if stream.ended:
            return
        feed = Feed(self.fanout.clock, stream, self._names(call.access), self._missed)
        stream.register(feed)
        self._access[feed] = call.access
        self.fanout.join(feed)
        try:
            await stream.until_end()
        finally:
            self.fanout.leave(feed)
            del self._access[feed]

    def _names(self, access: KeyAccess) -> frozenset[str]:
        config = self.router.config
        listed = (model.id for model in config.models.values() if not model.unlisted)
        return frozenset(name for name in listed if access.may_know(name, config))

    def _missed(self, feed: Feed) -> list[FeedMessage]:
        """A client that fell behind reads the list again."""
        self.fanout.caught_up(feed)
        return [encoded("always", RELOAD, {}, 0)]

    def _changed(self, name: str, state: str, failed: bool) -> None:
        """Tell the status of a model, of which `name` may be a replica."""
        model = self.router.config.models.get(name)
        if model is None or state == "stopping":
            return
        base = model.replica_of or name
        others = [self.router.state(copy) for copy in self.router.config.copies(base) if copy != name]
        states = {STATUSES.get(one, "unloaded") for one in (state, *others)}
        status = next(one for one in ("loaded", "loading", "unloaded") if one in states)
        code = {"exit_code": 1} if failed and status == "unloaded" else {}
        self.fanout.publish(base, CHANGE, {"status": status, **code})

    def _reloaded(self) -> None:
        for feed, access in self._access.items():
            feed.topics = self._names(access)
        self.fanout.publish("always", RELOAD, {})
