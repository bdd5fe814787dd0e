"""What is being served right now: one entry per request, with its progress and a way to end it.

Entries come and go with the scopes of requests; counts always balance with them. Must not know how the list
is shown or sent; a listener gets plain JSON-ready objects, synchronously, in each request's own order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any, Literal, Protocol

from attrs import define, field
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from llamaswap.observe.activity_recorder import session
from llamaswap.observe.log_format import local_time, rfc3339nano
from llamaswap.observe.redact import shown
from llamaswap.wire.headers import is_event_stream
from llamaswap.wire.request_info import RequestInfo, RequestOutcome

COALESCE = 0.25  # seconds: a byte count that changes faster is not read by anyone

# queued: waits for its turn · loading: its model is being made ready · prefill: sent, nothing came back yet ·
# streaming: bytes are coming.
Phase = Literal["queued", "loading", "prefill", "streaming"]

_NO_HOST = frozenset({b"host"})
log = Logger()


class WaitReasonLike(Protocol):
    """What keeps requests for a model waiting; `loading`: the model is on its way."""

    @property
    def reason(self) -> str: ...
    @property
    def models(self) -> Sequence[str]: ...
    @property
    def loading(self) -> bool: ...


Why = Callable[[str], "WaitReasonLike | None"]


@define  # made for every request: freezing doubles what that costs
class FinishedRequest:
    """What a request was when it ended; times in seconds since its arrival.

    `first_byte` is None when no byte ever came, `waited` (for its turn and its model) when it was never granted.
    """

    facts: RequestInfo
    ending: RequestOutcome
    error: Exception | None
    status: int
    sent: int
    duration: float
    first_byte: float | None
    waited: float | None


@define(eq=False)
class InflightRequest:
    """One request under way: a Scope."""

    facts: RequestInfo
    _registry: InflightRequests
    status: int = field(default=0, init=False)
    sent: int = field(default=0, init=False)
    tokens: int = field(default=0, init=False)
    phase: Phase = field(default="queued", init=False)
    queue_position: int = field(default=0, init=False)
    first_byte: float | None = field(default=None, init=False)
    granted: float | None = field(default=None, init=False)
    _headers: Sequence[tuple[bytes, bytes]] = field(default=(), init=False)
    _events: bool = field(default=False, init=False)
    _open: bool = field(default=True, init=False)

    @property
    def streams(self) -> bool:
        """Whether its answer is an event stream."""
        return self._events

    @property
    def waits(self) -> bool:
        """Whether it waits for its turn or its model."""
        return self.granted is None and self.phase in ("queued", "loading")

    def metadata_changed(self) -> None:
        """Show it. A local grant notes its priority, so that entry also tells that the waiting is over."""
        if not self._open:
            return
        if self.granted is None and "fifo_priority" in self.facts.metadata:
            self.granted = self._registry.now()
            if self.phase != "streaming":
                self.phase, self.queue_position = "prefill", 0
        self._registry.changed(self)

    def head(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """The client sees an answer's head."""
        if not self._open:
            return
        self.status = status
        self._headers = headers
        self._events = is_event_stream(headers)
        self._registry.changed(self)

    def data(self, data: bytes) -> None:
        """Count; telling it waits for the next coalesced update."""
        if not self._open:
            return
        self.sent += len(data)
        if self.facts.loading:
            self._registry.progressed(self)
            return  # our own words: the first token is still to come
        if self._events:
            # An event a token is what servers do; an estimate until the row brings the server's own number.
            self.tokens += data.count(b"data:")
        if self.first_byte is None:
            self.first_byte = self._registry.now()
            self.phase = "streaming"
        self._registry.progressed(self)

    def closed(self, ending: RequestOutcome, error: Exception | None) -> None:
        """The request is over; only the first call counts."""
        if self._open:
            self._open = False
            self._registry.ended(self, ending, error)

    def moved(self, phase: Phase, queue_position: int) -> None:
        """The request reached another phase, or another place in the queue."""
        if self._open and (phase, queue_position) != (self.phase, self.queue_position):
            self.phase = phase
            self.queue_position = queue_position
            if phase == "prefill" and self.granted is None:
                self.granted = self._registry.now()
            self._registry.changed(self)

    def document(
        self, now: float, sessions: Sequence[bytes], local: Callable[[float], datetime], why: Why
    ) -> dict[str, Any]:
        """The entry as its listeners see it; built only when somebody listens."""
        facts = self.facts
        shown_entry: dict[str, Any] = {
            "id": facts.id,
            "timestamp": rfc3339nano(local(facts.timestamp)),
            "model": facts.model,
            "req_path": facts.path,
            "method": facts.method,
            "req_headers": shown(facts.headers, without=_NO_HOST),
            "remote_ip": facts.remote_ip,
            "resp_headers": shown(self._headers),
            "resp_bytes": self.sent,
            "elapsed_ms": max(0, int((now - facts.started) * 1000)),
            "phase": self.phase,
        }
        if facts.metadata:
            shown_entry["metadata"] = dict(facts.metadata)
        if self.waits:
            hold = why(facts.model)
            if hold is not None:
                shown_entry["reason"] = hold.reason
                if hold.models:
                    shown_entry["waits_for"] = list(hold.models)
                if hold.loading:
                    shown_entry["phase"] = "loading"
            if shown_entry["phase"] == "queued" and self.queue_position:
                shown_entry["queue_pos"] = self.queue_position
        if self.first_byte is not None:
            shown_entry["ttft_ms"] = max(0, int((self.first_byte - facts.started) * 1000))
            if self._events:
                shown_entry["tokens_out"] = self.tokens
                if now > self.first_byte:
                    shown_entry["tps"] = round(self.tokens / (now - self.first_byte), 2)
        name = session(facts.headers, sessions)
        if name:
            shown_entry["session"] = name
        return shown_entry


Listener = Callable[[dict[str, Any]], None]


class InflightRequests:
    """The registry, and a scope factory.

    `finished` hears of each request's end (the meters do); `why` tells what requests for a model wait for.
    """

    def __init__(
        self,
        *,
        clock: IReactorTime,
        sessions: Sequence[str] = (),
        finished: Callable[[FinishedRequest], None] = lambda finished: None,
        local: Callable[[float], datetime] = local_time,
        why: Why = lambda model: None,
    ) -> None:
        self._clock = clock
        self._why = why
        self._finished = finished
        self._local = local
        self._entries: dict[str, InflightRequest] = {}
        self._listeners: tuple[Listener, ...] = ()
        self._progressed: dict[str, InflightRequest] = {}
        self._timer: IDelayedCall | None = None
        self.opened = 0
        self.closed = 0
        self.retune(sessions)

    def retune(self, sessions: Sequence[str]) -> None:
        """A reload changed the session headers."""
        self._sessions = tuple(name.lower().encode("latin-1", "replace") for name in sessions)

    # -- the requests' side --------------------------------------------------------------------------------

    def open(self, facts: RequestInfo) -> InflightRequest | None:
        """List this request, if it belongs into the list."""
        if not facts.tracked:
            return None
        facts.followed = bool(self._listeners)
        entry = InflightRequest(facts, self)
        self._entries[facts.id] = entry
        self.opened += 1
        self.changed(entry)
        self.progressed(entry)  # whether it waits, and for what, is known in a moment
        return entry

    def model(self, request: str) -> str | None:
        """The model that this request wants; None when it is not listed."""
        entry = self._entries.get(request)
        return None if entry is None else entry.facts.model

    def phase(self, request: str, phase: Phase, queue_position: int = 0) -> None:
        """The request with this id reached another phase; one that is not listed is no fault."""
        entry = self._entries.get(request)
        if entry is not None:
            entry.moved(phase, queue_position)

    def held(self) -> None:
        """What requests wait for may have changed: those that wait are told anew, soon."""
        if self._listeners:
            for entry in self._entries.values():
                if entry.waits:
                    self.progressed(entry)

    def now(self) -> float:
        """The clock's seconds."""
        return self._clock.seconds()

    def changed(self, entry: InflightRequest) -> None:
        """Tell this entry at once."""
        if self._listeners:
            self._progressed.pop(entry.facts.id, None)
            self._tell({"operation": "upsert", "request": self._document(entry)})

    def progressed(self, entry: InflightRequest) -> None:
        """Tell this entry's count with the next coalesced update; costs nothing when nobody listens."""
        if not self._listeners:
            return
        self._progressed[entry.facts.id] = entry
        if self._timer is None:
            self._timer = self._clock.callLater(COALESCE, self._tell_progress)

    def ended(self, entry: InflightRequest, ending: RequestOutcome, error: Exception | None) -> None:
        """The entry leaves the list."""
        facts = entry.facts
        # Two requests never share an id, but a mistake there must not make this one's removal another's.
        if self._entries.get(facts.id) is entry:
            del self._entries[facts.id]
        self.closed += 1
        self._progressed.pop(facts.id, None)
        now = self._clock.seconds()
        first_byte = None if entry.first_byte is None else entry.first_byte - facts.started
        waited = None if entry.granted is None else max(0.0, entry.granted - facts.started)
        duration = max(0.0, now - facts.started)
        try:
            self._finished(
                FinishedRequest(facts, ending, error, entry.status, entry.sent, duration, first_byte, waited)
            )
        except Exception:  # a meter's fault must not keep a request from ending
            log.failure("a finished request could not be counted in the metrics")
        if self._listeners:
            self._tell({"operation": "remove", "id": facts.id})

    # -- the watchers' side --------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """How many requests are under way."""
        return len(self._entries)

    def by_model(self) -> dict[str, int]:
        """How many for each model."""
        counts: dict[str, int] = {}
        for entry in self._entries.values():
            counts[entry.facts.model] = counts.get(entry.facts.model, 0) + 1
        return counts

    def busy(self) -> dict[str, int]:
        """How many of them are served now, for each model that serves any."""
        counts: dict[str, int] = {}
        for entry in self._entries.values():
            if not entry.waits:
                counts[entry.facts.model] = counts.get(entry.facts.model, 0) + 1
        return counts

    def streams(self) -> Iterator[tuple[str, str, int, bool]]:
        """The event streams under way: (request, model, bytes sent, whether it was granted its model's server)."""
        for entry in self._entries.values():
            if entry.streams:
                entry.facts.flush()
                yield entry.facts.id, entry.facts.model, entry.sent, entry.granted is not None

    def snapshot(self) -> dict[str, Any]:
        """The whole list as one event: oldest first; without `requests` when there is none."""
        ordered = sorted(self._entries.values(), key=lambda entry: (entry.facts.timestamp, int(entry.facts.id)))
        event: dict[str, Any] = {"operation": "snapshot"}
        if ordered:
            why = self._remembered()
            event["requests"] = [self._document(entry, why) for entry in ordered]
        return event

    def cancel(self, request: str) -> bool:
        """Ask the request to end; False when no such request is under way."""
        entry = self._entries.get(request)
        if entry is None:
            return False
        entry.facts.cancel()
        return True

    def cancel_all(self) -> None:
        """Ask every request to end."""
        for entry in list(self._entries.values()):
            entry.facts.cancel()

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Hear of every later change; returns the unsubscriber (idempotent)."""
        self._listeners = (*self._listeners, listener)
        self._follow(True)

        def leave() -> None:
            self._listeners = tuple(other for other in self._listeners if other is not listener)
            if not self._listeners:
                self._follow(False)
                self._progressed.clear()
                if self._timer is not None:
                    self._timer.cancel()
                    self._timer = None

        return leave

    def _follow(self, followed: bool) -> None:
        for entry in self._entries.values():
            entry.facts.followed = followed
            entry.facts.flush()

    def _document(self, entry: InflightRequest, why: Why | None = None) -> dict[str, Any]:
        entry.facts.flush()
        return entry.document(self._clock.seconds(), self._sessions, self._local, why or self._why)

    def _remembered(self) -> Why:
        """The same answer for all requests of a model: a long queue asks once."""
        known: dict[str, WaitReasonLike | None] = {}

        def why(model: str) -> WaitReasonLike | None:
            if model not in known:
                known[model] = self._why(model)
            return known[model]

        return why

    def _tell_progress(self) -> None:
        self._timer = None
        told, self._progressed = self._progressed, {}
        why = self._remembered()
        for entry in told.values():
            if self._entries.get(entry.facts.id) is entry:
                self._tell({"operation": "upsert", "request": self._document(entry, why)})

    def _tell(self, event: dict[str, Any]) -> None:
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:  # a listener's fault must not reach the request it hears of
                log.failure("a listener to requests in flight failed")
