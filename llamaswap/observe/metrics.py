"""What was measured, for Prometheus: requests, errors, tokens, times and states of each model, and the machine.

Names follow its conventions (base units, `_total`). Label values are bounded: models by the configuration,
kinds of errors and reasons by tables here. Must not know HTTP.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from llamaswap.errors import UnknownModel
from llamaswap.events import EventBus, StateChanged, SwapBegan, SwapEnded
from llamaswap.observe.activity_row import ActivityRow
from llamaswap.observe.inflight import FinishedRequest

if TYPE_CHECKING:  # half a megabyte and ten milliseconds, for whoever reads the page
    from prometheus_client import Metric

# Inference is slower than the web: a first token may take minutes, a whole answer ten.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
LOADS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
STATES = ("stopped", "starting", "ready", "stopping", "shutdown")
MOST_REASONS = 24  # distinct swap reasons told apart; a bug that writes ids into them must not flood a database


def error_kind(finished: FinishedRequest) -> str | None:
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


class _Family:
    """A counter or a gauge: a number for each tuple of label values. Plain, since requests pay for it."""

    def __init__(self, kind: str, name: str, text: str, *labels: str) -> None:
        self.values: dict[tuple[str, ...], float] = {}
        self._kind, self._name, self._text, self._labels = kind, f"llamaswap_{name}", text, labels

    def add(self, amount: float, *labels: str) -> None:
        """Count on."""
        self.values[labels] = self.values.get(labels, 0) + amount

    def metric(self) -> Metric:
        """As it is exposed."""
        from prometheus_client import Metric

        metric = Metric(self._name, self._text, self._kind)
        suffix = "_total" if self._kind == "counter" else ""
        for labels, value in self.values.items():
            metric.add_sample(self._name + suffix, dict(zip(self._labels, labels, strict=True)), value)
        return metric


class _Histogram:
    """Times of each model, counted by the bounds they stay within."""

    def __init__(self, name: str, text: str, bounds: tuple[float, ...] = SECONDS) -> None:
        self._name, self._text, self._bounds = f"llamaswap_{name}", text, bounds
        self._counts: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}

    def observe(self, model: str, seconds: float) -> None:
        """One more."""
        counts = self._counts.get(model)
        if counts is None:
            counts = self._counts[model] = [0] * (len(self._bounds) + 1)
            self._sums[model] = 0.0
        counts[bisect_left(self._bounds, seconds)] += 1
        self._sums[model] += seconds

    def metric(self) -> Metric:
        """As it is exposed: each bucket holds those below it too."""
        from prometheus_client import Metric
        from prometheus_client.utils import floatToGoString

        metric = Metric(self._name, self._text, "histogram")
        names = [floatToGoString(float(bound)) for bound in (*self._bounds, float("inf"))]
        for model, counts in self._counts.items():
            total = 0
            for bound, count in zip(names, counts, strict=True):
                total += count
                metric.add_sample(f"{self._name}_bucket", {"model": model, "le": bound}, total)
            metric.add_sample(f"{self._name}_count", {"model": model}, total)
            metric.add_sample(f"{self._name}_sum", {"model": model}, self._sums[model])
        return metric


class Metrics:
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
        self._families: list[_Family | _Histogram] = []

        def counter(name: str, text: str, *labels: str) -> _Family:
            family = _Family("counter", name, text, *labels)
            self._families.append(family)
            return family

        def gauge(name: str, text: str, *labels: str) -> _Family:
            family = _Family("gauge", name, text, *labels)
            self._families.append(family)
            return family

        def histogram(name: str, text: str, bounds: tuple[float, ...] = SECONDS) -> _Histogram:
            family = _Histogram(name, text, bounds)
            self._families.append(family)
            return family

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
        self._state = gauge("model_state", "1 for the state a model's server is in.", "model", "state")
        self._running = gauge("requests_in_flight", "Requests under way now.", "model")

    def listen(self, bus: EventBus) -> None:
        """Hear of states and swaps."""
        bus.subscribe(StateChanged, self.state_changed)
        bus.subscribe(SwapBegan, self.swap_began)
        bus.subscribe(SwapEnded, self.swap_ended)

    def finished(self, request: FinishedRequest) -> None:
        """A request ended."""
        # A name nobody configured comes from a client: it must not become a time series.
        model = "" if isinstance(request.error, UnknownModel) else request.facts.model
        self._requests.add(1, model, str(request.status))
        kind = error_kind(request)
        if kind is not None:
            self._errors.add(1, model, kind)
        if request.sent:
            self._bytes.add(request.sent, model)
        self._duration.observe(model, request.duration)
        if request.first_byte is not None:
            self._first.observe(model, max(0.0, request.first_byte))
        if request.waited is not None:
            self._waited.observe(model, request.waited)

    def stored(self, row: ActivityRow) -> None:
        """A row's tokens are known; unknown counts add nothing."""
        for meter, count in (
            (self._input, row.usage.input_tokens),
            (self._output, row.usage.output_tokens),
            (self._cached, row.usage.cache_tokens),
        ):
            if count > 0:
                meter.add(count, row.model)

    def state_changed(self, event: StateChanged) -> None:
        """A model's server moved."""
        for state in (*STATES, event.new):
            self._state.values[event.model, state] = state == event.new

    def swap_began(self, event: SwapBegan) -> None:
        """The router loads a model, and others go for it."""
        reason = event.reason
        if reason not in self._reasons:
            if len(self._reasons) < MOST_REASONS:
                self._reasons.add(reason)
            else:
                reason = "other"
        self._swaps.add(1, reason)
        for model in event.evicted:
            self._evictions.add(1, model)

    def swap_ended(self, event: SwapEnded) -> None:
        """A load came to its end."""
        if event.error is not None:
            self._swap_errors.add(1, event.model)
            return
        load = event.phases.get("start")
        if load is not None:
            self._load.observe(event.model, load)

    def render(self) -> bytes:
        """The whole page."""
        from llamaswap.observe.exposition import render

        self._running.values = {(model,): count for model, count in self._in_flight().items()}
        return render([*self._machine(), *(family.metric() for family in self._families)])
