"""What Prometheus reads of the requests: their number, errors, tokens and durations, and the states of the models.

Names follow Prometheus' conventions (base units, `_total`). Label values are bounded: models by the configuration,
kinds of errors and reasons by tables here. This module must not know HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from llamaswap.errors import UnknownModel
from llamaswap.events import EventBus, StateChanged, SwapBegan, SwapEnded
from llamaswap.observe.activity_row import ActivityRow
from llamaswap.observe.exposition import HistogramFamily, MetricFamily, render
from llamaswap.observe.inflight import InflightRequest
from llamaswap.scheduling.memory_leases import LEASE

# Inference takes longer than a web page: a first token may take minutes, a whole response ten.
REQUEST_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
LOAD_BOUNDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
STATES = ("stopped", "starting", "ready", "stopping", "shutdown")
MAX_REASONS = 24  # distinct swap reasons; a fault that writes ids into them must not flood a database


def error_kind(finished: InflightRequest) -> str | None:
    """A short name for the error that ended a request, None if it succeeded."""
    if finished.outcome == "gone":
        return "client_gone"
    if finished.outcome in ("cancelled", "truncated"):
        return finished.outcome
    if finished.error is not None:
        return re.sub(r"(?<!^)(?=[A-Z])", "_", type(finished.error).__name__).lower()
    if finished.outcome == "refused":
        return "refused"
    if finished.status >= 500:
        return "upstream_5xx"
    return "upstream_4xx" if finished.status >= 400 else None


class Metrics:
    """All families. `in_flight` returns the requests in flight by model, `machine` the machine's families."""

    def __init__(
        self,
        *,
        in_flight: Callable[[], Mapping[str, int]] = dict,
        machine: Callable[[], Iterable[MetricFamily]] = tuple,
    ) -> None:
        self._in_flight = in_flight
        self._machine = machine
        self._reasons: set[str] = set()
        self.families: list[MetricFamily | HistogramFamily] = []

        def family(kind: str, name: str, help_text: str, *labels: str) -> MetricFamily:
            made = MetricFamily(kind, name, help_text, *labels)
            self.families.append(made)
            return made

        def durations(name: str, help_text: str, bounds: Sequence[float] = REQUEST_BOUNDS) -> HistogramFamily:
            made = HistogramFamily(f"{name}_seconds", help_text, bounds)
            self.families.append(made)
            return made

        self._requests = family(
            "counter", "requests", "Requests that ended, by the status sent to the client.", "model", "code"
        )
        self._errors = family("counter", "request_errors", "Requests that failed, by kind of failure.", "model", "kind")
        self._input = family("counter", "input_tokens", "Prompt tokens the servers reported.", "model")
        self._output = family("counter", "output_tokens", "Generated tokens the servers reported.", "model")
        self._cached = family("counter", "cached_tokens", "Prompt tokens served from a server's cache.", "model")
        self._bytes = family("counter", "response_bytes", "Body bytes sent to clients.", "model")
        self._key_requests = family("counter", "key_requests", "Requests that ended, by API key.", "key", "code")
        self._key_tokens = family("counter", "key_tokens", "Prompt and generated tokens, by API key.", "key", "model")
        self._first = durations("time_to_first_byte", "From a request's arrival to the first body byte.")
        self._duration = durations("request_duration", "From a request's arrival to the end of its answer.")
        self._waited = durations("queue_wait", "From a request's arrival to its grant, model load included.")
        self._load = durations("model_load", "From the start of a model's server to its readiness.", LOAD_BOUNDS)
        self._swaps = family("counter", "swaps", "Loads that were begun, by reason.", "reason")
        self._swap_errors = family("counter", "swap_errors", "Loads that ended without a ready model.", "model")
        self._evictions = family(
            "counter", "evictions", "Models that were stopped so that another could be loaded.", "model"
        )
        self._state = family("gauge", "model_state", "1 for the state a model's server is in.", "model", "state")
        self._running = family("gauge", "requests_in_flight", "Requests in progress.", "model")

    def listen(self, bus: EventBus) -> None:
        """Subscribe to changes of state and to swaps."""
        bus.subscribe(StateChanged, self.state_changed)
        bus.subscribe(SwapBegan, self.swap_began)
        bus.subscribe(SwapEnded, self.swap_ended)

    def finished(self, request: InflightRequest) -> None:
        """Count a request that ended."""
        # An unknown model's name comes from a client: it must not become a time series.
        model = "" if isinstance(request.error, UnknownModel) else request.request.model
        self._requests.add(1, model, str(request.status))
        if request.request.key_name:  # the configuration bounds these names
            self._key_requests.add(1, request.request.key_name, str(request.status))
        kind = error_kind(request)
        if kind is not None:
            self._errors.add(1, model, kind)
        if request.sent:
            self._bytes.add(request.sent, model)
        self._duration.observe(model, request.duration)
        for family, at in ((self._first, request.first_byte), (self._waited, request.granted_at)):
            if at is not None:
                family.observe(model, max(0.0, at - request.request.started))

    def stored(self, rows: Sequence[ActivityRow]) -> None:
        """Count the tokens of activity rows; unknown counts add nothing."""
        for row in rows:
            for family, count in (
                (self._input, row.usage.input_tokens),
                (self._output, row.usage.output_tokens),
                (self._cached, row.usage.cache_tokens),
            ):
                if count > 0:
                    family.add(count, row.model)
            if row.key and row.tokens > 0:
                self._key_tokens.add(row.tokens, row.key, row.model)

    def state_changed(self, event: StateChanged) -> None:
        """Set the state of a model's server to 1 and its other states to 0."""
        for state in (*STATES, event.new):
            self._state.values[event.model, state] = state == event.new

    def swap_began(self, event: SwapBegan) -> None:
        """Count a load and the models evicted for it."""
        reason = event.reason
        if reason not in self._reasons:
            if len(self._reasons) < MAX_REASONS:
                self._reasons.add(reason)
            else:
                reason = "other"
        self._swaps.add(1, reason)
        for model in event.evicted:
            self._evictions.add(1, model)

    def swap_ended(self, event: SwapEnded) -> None:
        """Count a failed load, or the duration of a successful one."""
        model = "lease" if event.model.startswith(LEASE) else event.model  # each lease has a name of its own
        if event.error is not None:
            self._swap_errors.add(1, model)
            return
        load = event.phases.get("start")
        if load is not None:
            self._load.observe(model, load)

    def render(self) -> bytes:
        """The page for GET /metrics."""
        self._running.values = {(model,): count for model, count in self._in_flight().items()}
        return render([*self._machine(), *self.families])
