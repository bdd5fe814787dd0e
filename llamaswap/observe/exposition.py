"""Metric families and how they are written as Prometheus text, version 0.0.4.

Requests pay for each number counted here, so a family is a dictionary: prometheus-client's Counter and Histogram take
eight times as long per request. That library also writes whole numbers as floats, large ones with an exponent, and
adds a `_created` family to each counter; dashboards and scripts that read this endpoint expect whole bytes.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence


class MetricFamily:
    """A counter or a gauge: `kind` says which. `values` has a number for each tuple of label values.

    A tuple may be shorter than the names of the `labels`: its sample then lacks the last of them.
    """

    def __init__(self, kind: str, name: str, help_text: str, *labels: str) -> None:
        self.values: dict[tuple[str, ...], float] = {}
        self.kind, self.help_text, self.labels = kind, help_text, labels
        self.name = f"llamaswap_{name}_total" if kind == "counter" else f"llamaswap_{name}"

    def add(self, amount: float, *labels: str) -> None:
        """Increase the number of these label values."""
        self.values[labels] = self.values.get(labels, 0) + amount

    def samples(self) -> Iterator[str]:
        """The lines below HELP and TYPE."""
        for values, number in self.values.items():
            yield _sample(self.name, self.labels, values, number)


class HistogramFamily:
    """Durations of each model, counted by the upper bounds in `bounds` that they stay within."""

    kind = "histogram"

    def __init__(self, name: str, help_text: str, bounds: Sequence[float]) -> None:
        self.name, self.help_text = f"llamaswap_{name}", help_text
        self._bounds = bounds
        self._counts: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}

    def observe(self, model: str, seconds: float) -> None:
        """Count one duration."""
        counts = self._counts.get(model)
        if counts is None:
            counts = self._counts[model] = [0] * (len(self._bounds) + 1)
            self._sums[model] = 0.0
        counts[bisect_left(self._bounds, seconds)] += 1
        self._sums[model] += seconds

    def samples(self) -> Iterator[str]:
        """The lines below HELP and TYPE. The count of each bucket contains those of the smaller ones."""
        bounds = [str(float(bound)) for bound in self._bounds] + ["+Inf"]
        for model, counts in self._counts.items():
            total = 0
            for bound, count in zip(bounds, counts, strict=True):
                total += count
                yield _sample(f"{self.name}_bucket", ("model", "le"), (model, bound), total)
            yield _sample(f"{self.name}_count", ("model",), (model,), total)
            yield _sample(f"{self.name}_sum", ("model",), (model,), self._sums[model])


def render(families: Iterable[MetricFamily | HistogramFamily]) -> bytes:
    """HELP, TYPE and samples of each family that has samples."""
    lines: list[str] = []
    for family in families:
        samples = list(family.samples())
        if samples:
            help_text = family.help_text.replace("\\", "\\\\").replace("\n", "\\n")
            lines += (f"# HELP {family.name} {help_text}\n", f"# TYPE {family.name} {family.kind}\n", *samples)
    return "".join(lines).encode()


def _sample(name: str, labels: Sequence[str], values: Sequence[str], number: float) -> str:
    shown = ",".join(f'{label}="{_escaped(value)}"' for label, value in zip(labels, values, strict=False))
    return f"{name}{'{' + shown + '}' if shown else ''} {_number(number)}\n"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    # A float beyond 2**53 is not an exact whole number any more.
    if math.isfinite(value) and abs(value) < 2**53 and int(value) == value:
        return str(int(value))
    return {math.inf: "+Inf", -math.inf: "-Inf"}.get(value) or ("NaN" if math.isnan(value) else repr(float(value)))
