"""The requests in flight: an entry for each, with its progress and a way to cancel it.

Listeners get objects ready for JSON, synchronously, in each request's order. This module must not know how the list is
shown or sent.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Literal

from attrs import define, field, frozen
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from llamaswap.observe.activity_recorder import session, session_headers
from llamaswap.observe.log_format import timestamp
from llamaswap.observe.redact import shown
from llamaswap.scheduling.state import WaitReason
from llamaswap.wire.headers import ResponseHeaders
from llamaswap.wire.request_info import RequestInfo, RequestOutcome

BURST = 16  # changes in UPDATE_DELAY that are sent at once; of more than that, only the latest of each request is sent
UPDATE_DELAY = 0.25  # seconds; updates of a byte count are sent at most this often

# queued: waits for its model · loading: its model is being loaded · prefill: sent, without a response yet · streaming:
# the response has begun.
Phase = Literal["queued", "loading", "prefill", "streaming"]
Document = dict[str, object]
Listener = Callable[[Document], None]
Why = Callable[[str], WaitReason | None]

_HOST = frozenset({b"host"})
log = Logger()


@frozen
class OpenStream:
    """One stream: `sent` bytes went to its client; `granted` says that the model's server has the request."""

    request: str
    model: str
    sent: int
    granted: bool


@define(eq=False)
class InflightRequest:
    """An entry, and the `RequestObserver` of its request. Times are in the clock's seconds.

    `first_byte` is None until a byte was sent, `granted_at` until the request has its model. After the end `outcome`,
    `error` and `duration` are set.
    """

    request: RequestInfo
    _registry: InflightRequests
    status: int = field(default=0, init=False)
    sent: int = field(default=0, init=False)
    tokens: int = field(default=0, init=False)
    phase: Phase = field(default="queued", init=False)
    queue_position: int = field(default=0, init=False)
    first_byte: float | None = field(default=None, init=False)
    granted_at: float | None = field(default=None, init=False)
    streams: bool = field(default=False, init=False)  # whether the response is an event stream
    outcome: RequestOutcome | None = field(default=None, init=False)
    error: Exception | None = field(default=None, init=False)
    duration: float = field(default=0.0, init=False)
    shown: bool = field(default=False, init=False)  # to a listener
    _headers: Sequence[tuple[bytes, bytes]] = field(default=(), init=False)

    @property
    def waits(self) -> bool:
        """Whether it waits for its model."""
        return self.granted_at is None and self.phase in ("queued", "loading")

    def granted(self) -> None:
        """A server is reserved for the request: it waits no longer."""
        if self.outcome is not None:
            return
        if self.granted_at is None:
            self.granted_at = self._registry.clock.seconds()
            if self.phase != "streaming":
                self.phase, self.queue_position = "prefill", 0
        if self._registry.listeners:
            self._registry.changed(self)

    def retargeted(self) -> None:
        """The request waits again, for another model."""
        if self.outcome is None:
            self.granted_at = None
            self.phase, self.queue_position = "queued", 0
            self._registry.changed(self)

    def head(self, status: int, headers: ResponseHeaders) -> None:
        """The response's head was sent."""
        if self.outcome is not None:
            return
        self.status = status
        self._headers = headers.items
        self.streams = headers.event_stream
        if self._registry.listeners:
            self._registry.changed(self)

    def data(self, data: bytes) -> None:
        """Count bytes and tokens; listeners get the counts with the next delayed update."""
        if self.outcome is not None:
            return
        self.sent += len(data)
        if self.request.loading:
            self._registry.progressed(self)
            return  # our text about the load: the first token is still to come
        if self.streams:
            # Servers send an event per token: an estimate until the row has the server's number.
            self.tokens += data.count(b"data:")
        if self.first_byte is None:
            self.first_byte = self._registry.clock.seconds()
            self.phase = "streaming"
        if self._registry.listeners:
            self._registry.progressed(self)

    def ended(self, outcome: RequestOutcome, error: Exception | None) -> None:
        """The request is over; only the first call counts."""
        if self.outcome is None:
            self.outcome, self.error = outcome, error
            self.duration = max(0.0, self._registry.clock.seconds() - self.request.started)
            self._registry.ended(self)

    def moved(self, phase: Phase, queue_position: int) -> None:
        """The request has another phase, or another position in the queue."""
        if self.outcome is None and (phase, queue_position) != (self.phase, self.queue_position):
            self.phase = phase
            self.queue_position = queue_position
            if phase == "prefill" and self.granted_at is None:
                self.granted_at = self._registry.clock.seconds()
            self._registry.changed(self)

    def document(self, now: float, sessions: Sequence[bytes], why: Why) -> Document:
        """The entry as listeners see it; only made if there are listeners."""
        request = self.request
        document: Document = {
            "id": request.id,
            "timestamp": timestamp(request.timestamp),
            "model": request.model,
            "req_path": request.path,
            "method": request.method,
            "req_headers": shown(request.headers, without=_HOST),
            "remote_ip": request.remote_ip,
            "resp_headers": shown(self._headers),
            "resp_bytes": self.sent,
            "elapsed_ms": max(0, int((now - request.started) * 1000)),
            "phase": self.phase,
        }
        if request.server != request.model:
            document["server"] = request.server
        if request.key_name:
            document["key"] = request.key_name
        if request.metadata:
            document["metadata"] = dict(request.metadata)
        if self.waits:
            wait = why(request.server)
            if wait is not None:
                document["reason"] = wait.reason
                if wait.models:
                    document["waits_for"] = list(wait.models)
                if wait.loading:
                    document["phase"] = "loading"
            if document["phase"] == "queued" and self.queue_position:
                document["queue_pos"] = self.queue_position
        if self.first_byte is not None:
            document["ttft_ms"] = max(0, int((self.first_byte - request.started) * 1000))
            if self.streams:
                document["tokens_out"] = self.tokens
                if now > self.first_byte:
                    document["tps"] = round(self.tokens / (now - self.first_byte), 2)
        name = session(request.headers, sessions)
        if name:
            document["session"] = name
        return document


@define(eq=False)
class InflightRequests:
    """The entries of all requests, and their `RequestObserverFactory`.

    `finished` is called at each request's end (the metrics count then); `why` says what requests for a model wait for.
    """

    clock: IReactorTime
    finished: Callable[[InflightRequest], None] = lambda entry: None
    why: Why = lambda model: None
    _sessions: tuple[bytes, ...] = field(default=(), init=False)
    _entries: dict[str, InflightRequest] = field(factory=dict, init=False)
    listeners: tuple[Listener, ...] = field(default=(), init=False)
    _progressed: dict[str, InflightRequest] = field(factory=dict, init=False)
    _timer: IDelayedCall | None = field(default=None, init=False)
    _burst_end: float = field(default=-math.inf, init=False)
    _burst_left: int = field(default=0, init=False)

    def retune(self, sessions: Sequence[str]) -> None:
        """Take the session from these headers, in order of preference."""
        self._sessions = session_headers(sessions)

    # -- called for requests -------------------------------------------------------------------------------

    def open(self, request: RequestInfo) -> InflightRequest | None:
        """A new entry; None for a request that is not listed."""
        if not request.tracked:
            return None
        entry = self._entries[request.id] = InflightRequest(request, self)
        if self.listeners:
            request.followed = True
            self.changed(entry)
            self.progressed(entry)  # a moment later it is known whether it waits, and for what
        return entry

    def model(self, request_id: str) -> str | None:
        """The model, or its replica, that serves this request; None if it is not listed."""
        entry = self._entries.get(request_id)
        return None if entry is None else entry.request.server

    def phase(self, request_id: str, phase: Phase, queue_position: int = 0) -> None:
        """The request with this id has another phase; an id that is not listed is ignored."""
        entry = self._entries.get(request_id)
        if entry is not None:
            entry.moved(phase, queue_position)

    def wait_reasons_changed(self) -> None:
        """Send listeners the waiting requests again, with the next delayed update."""
        if self.listeners:
            for entry in self._entries.values():
                if entry.waits:
                    self.progressed(entry)

    def changed(self, entry: InflightRequest) -> None:
        """Send this entry to the listeners, at once unless there are many changes."""
        if not self.listeners:
            return
        now = self.clock.seconds()
        if now >= self._burst_end:
            self._burst_end, self._burst_left = now + UPDATE_DELAY, BURST
        if not self._burst_left:
            self.progressed(entry)
            return
        self._burst_left -= 1
        self._progressed.pop(entry.request.id, None)
        self._send_entry(entry, self.why)

    def progressed(self, entry: InflightRequest) -> None:
        """Send this entry with the next delayed update; costs nothing without listeners."""
        if not self.listeners:
            return
        self._progressed[entry.request.id] = entry
        if self._timer is None:
            self._timer = self.clock.callLater(UPDATE_DELAY, self._send_progress)

    def ended(self, entry: InflightRequest) -> None:
        """Remove the entry."""
        request = entry.request
        # Ids are unique; if a fault repeats one, the other request's entry stays.
        if self._entries.get(request.id) is entry:
            del self._entries[request.id]
        self._progressed.pop(request.id, None)
        try:
            self.finished(entry)
        except Exception:  # a fault in the metrics must not keep a request from ending
            log.failure("a finished request could not be counted in the metrics")
        if self.listeners and entry.shown:
            self._send({"operation": "remove", "id": request.id})

    # -- called by those that show the list ----------------------------------------------------------------

    def by_model(self) -> dict[str, int]:
        """The number of requests in flight of each model."""
        return Counter(entry.request.model for entry in self._entries.values())

    def by_server(self) -> dict[str, int]:
        """The number of requests in flight of each model, where replicas count as models of their own."""
        return Counter(entry.request.server for entry in self._entries.values())

    def busy(self) -> dict[str, int]:
        """The number of requests being served, of each model or replica that serves any."""
        return Counter(entry.request.server for entry in self._entries.values() if not entry.waits)

    def streams(self) -> Iterator[OpenStream]:
        """The event streams in flight."""
        for entry in self._entries.values():
            if entry.streams:
                entry.request.flush()
                yield OpenStream(entry.request.id, entry.request.server, entry.sent, entry.granted_at is not None)

    def snapshot(self) -> Document:
        """All entries as one event, oldest first; without `requests` if there are none."""
        ordered = sorted(self._entries.values(), key=lambda entry: (entry.request.timestamp, int(entry.request.id)))
        event: Document = {"operation": "snapshot"}
        if ordered:
            why = self._cached_why()
            event["requests"] = [self._document(entry, why) for entry in ordered]
            for entry in ordered:
                entry.shown = True
        return event

    def cancel(self, request_id: str) -> bool:
        """Cancel the request with this id; False if it is not listed."""
        entry = self._entries.get(request_id)
        if entry is None:
            return False
        entry.request.cancel()
        return True

    def cancel_all(self) -> None:
        """Cancel every request."""
        for entry in list(self._entries.values()):
            entry.request.cancel()

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with every later change; returns the unsubscriber (idempotent)."""
        self.listeners = (*self.listeners, listener)
        self._follow(True)

        def leave() -> None:
            self.listeners = tuple(other for other in self.listeners if other is not listener)
            if not self.listeners:
                self._follow(False)
                self._progressed.clear()
                if self._timer is not None:
                    self._timer.cancel()
                    self._timer = None

        return leave

    def _follow(self, followed: bool) -> None:
        for entry in self._entries.values():
            entry.request.followed = followed
            entry.request.flush()

    def _document(self, entry: InflightRequest, why: Why) -> Document:
        entry.request.flush()
        return entry.document(self.clock.seconds(), self._sessions, why)

    def _cached_why(self) -> Why:
        """Asks once for all requests of a model, because a queue may be long."""
        return lru_cache(maxsize=None)(self.why)

    def _send_progress(self) -> None:
        self._timer = None
        progressed, self._progressed = self._progressed, {}
        why = self._cached_why()
        for entry in progressed.values():
            if self._entries.get(entry.request.id) is entry:
                self._send_entry(entry, why)

    def _send_entry(self, entry: InflightRequest, why: Why) -> None:
        entry.shown = True
        self._send({"operation": "upsert", "request": self._document(entry, why)})

    def _send(self, event: Document) -> None:
        for listener in self.listeners:
            try:
                listener(event)
            except Exception:  # a fault in a listener must not reach the request
                log.failure("a listener to requests in flight failed")
