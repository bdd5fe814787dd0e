"""What was measured, for Prometheus: requests, errors, tokens, times and states of each model, and the machine.

Names follow its conventions (base units, `_total`). Label values are bounded: models by the configuration,
kinds of errors and reasons by tables here. Must not know HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from attrs import Factory, define
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric

from llamaswap.bus import Bus, StateChanged, SwapBegan, SwapEnded
from llamaswap.errors import UnknownModel
from llamaswap.observe.exposition import render
from llamaswap.observe.inflight import Finished
from llamaswap.observe.record import Row

# Inference is slower than the web: a first token may take minutes, a whole answer ten.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
LOADS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
STATES = ("stopped", "starting", "ready", "stopping", "shutdown")
MOST_REASONS = 24  # distinct swap reasons told apart; a bug that writes ids into them must not flood a database


def error_kind(finished: Finished) -> str | None:
    """A short name for what went wrong, None when nothing did."""
    if finished.ending == "gone":
        return "client_gone"
    if finished.ending in ("cancelled", "truncated"):
        return finished.ending
    if finished.error is not None:
        return re.sub(r"(?<!^)(?=[A-Z])", "_", type(finished.error).__name__).lower()
    if finished.ending == "refused":
        return "refused"
    if finished.status >= 500:
        return "upstream_5xx"
    return "upstream_4xx" if finished.status >= 400 else None


@define(eq=False)
class _ModelMeters:
    """One model's children at hand: looking each up by its labels costs more than counting."""

    requests: Callable[[str], Counter]
    bytes: Counter
    duration: Histogram
    first: Histogram
    waited: Histogram
    _codes: dict[int, Counter] = Factory(dict)

    def code(self, status: int) -> Counter:
        """The counter of a status."""
        known = self._codes.get(status)
        if known is None:
            known = self._codes[status] = self.requests(str(status))
        return known


class Meters:
    """Every meter. `in_flight` counts requests by model, `machine` gives the machine's families, when asked."""

    def __init__(
        self,
        *,
        in_flight: Callable[[], Mapping[str, int]] = dict,
        machine: Callable[[], Iterable[Metric]] = tuple,
    ) -> None:
        self._in_flight = in_flight
        self._machine = machine
        self._reasons: set[str] = set()
        self._models: dict[str, _ModelMeters] = {}
        registry = self._registry = CollectorRegistry(auto_describe=False)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"llamaswap_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
            return Histogram(f"llamaswap_{name}", text, ["model"], registry=registry, buckets=buckets)

        self._requests = counter("requests", "Requests that ended, by the status sent to the client.", "model", "code")
        self._errors = counter("request_errors", "Requests that went wrong, by what went wrong.", "model", "kind")
        self._input = counter("input_tokens", "Prompt tokens the servers reported.", "model")
        self._output = counter("output_tokens", "Generated tokens the servers reported.", "model")
        self._cached = counter("cached_tokens", "Prompt tokens served from a server's cache.", "model")
        self._bytes = counter("response_bytes", "Body bytes sent to clients.", "model")
        self._first = histogram("time_to_first_byte_seconds", "From a request's arrival to the first body byte.")
        self._duration = histogram("request_duration_seconds", "From a request's arrival to the end of its answer.")
        self._waited = histogram("queue_wait_seconds", "From a request's arrival to its grant, model load included.")
        self._load = histogram("model_load_seconds", "From the start of a model's server to its readiness.", LOADS)
        self._swaps = counter("swaps", "Loads the router began, by what made it.", "reason")
        self._swap_errors = counter("swap_errors", "Loads that ended without a ready model.", "model")
        self._evictions = counter("evictions", "Models stopped to make room for another.", "model")
        self._state = Gauge(
            "llamaswap_model_state", "1 for the state a model's server is in.", ["model", "state"], registry=registry
        )
        self._running = Gauge("llamaswap_requests_in_flight", "Requests under way now.", ["model"], registry=registry)

    def listen(self, bus: Bus) -> None:
        """Hear of states and swaps."""
        bus.subscribe(StateChanged, self.state_changed)
        bus.subscribe(SwapBegan, self.swap_began)
        bus.subscribe(SwapEnded, self.swap_ended)

    def finished(self, request: Finished) -> None:
        """A request ended."""
        # A name nobody configured comes from a client: it must not become a time series.
        model = "" if isinstance(request.error, UnknownModel) else request.facts.model
        meters = self._models.get(model)
        if meters is None:
            meters = self._models[model] = self._of_model(model)
        meters.code(request.status).inc()
        kind = error_kind(request)
        if kind is not None:
            self._errors.labels(model, kind).inc()
        if request.sent:
            meters.bytes.inc(request.sent)
        meters.duration.observe(request.duration)
        if request.first_byte is not None:
            meters.first.observe(max(0.0, request.first_byte))
        if request.waited is not None:
            meters.waited.observe(request.waited)

    def _of_model(self, model: str) -> _ModelMeters:
        return _ModelMeters(
            requests=lambda code: self._requests.labels(model, code),
            bytes=self._bytes.labels(model),
            duration=self._duration.labels(model),
            first=self._first.labels(model),
            waited=self._waited.labels(model),
        )

    def stored(self, row: Row) -> None:
        """A row's tokens are known; unknown counts add nothing."""
        for meter, count in (
            (self._input, row.usage.input_tokens),
            (self._output, row.usage.output_tokens),
            (self._cached, row.usage.cache_tokens),
        ):
            if count > 0:
                meter.labels(row.model).inc(count)

    def state_changed(self, event: StateChanged) -> None:
        """A model's server moved."""
        for state in {*STATES, event.new}:
            self._state.labels(event.model, state).set(1 if state == event.new else 0)

    def swap_began(self, event: SwapBegan) -> None:
        """The router loads a model, and others go for it."""
        reason = event.reason
        if reason not in self._reasons:
            if len(self._reasons) < MOST_REASONS:
                self._reasons.add(reason)
            else:
                reason = "other"
        self._swaps.labels(reason).inc()
        for model in event.evicted:
            self._evictions.labels(model).inc()

    def swap_ended(self, event: SwapEnded) -> None:
        """A load came to its end."""
        if event.error is not None:
            self._swap_errors.labels(event.model).inc()
            return
        load = event.phases.get("start")
        if load is not None:
            self._load.labels(event.model).observe(load)

    def render(self) -> bytes:
        """The whole page."""
        self._running.clear()
        for model, count in self._in_flight().items():
            self._running.labels(model).set(count)
        return render([*self._machine(), *self._registry.collect()])
