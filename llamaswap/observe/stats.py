"""Histograms and percentiles of speeds. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, log2

MIN_BINS, MAX_BINS = 5, 20


def percentile(ascending: Sequence[float], p: float) -> float:
    """Linear interpolation at rank p * (n - 1); `ascending` is sorted and not empty."""
    rank = p * (len(ascending) - 1)
    low = int(rank)
    high = min(low + 1, len(ascending) - 1)
    return ascending[low] + (ascending[high] - ascending[low]) * (rank - low)


def p95(values: Sequence[float]) -> float | None:
    """The 95th percentile of those that are known (not negative); None without any."""
    known = sorted(value for value in values if value >= 0)
    return percentile(known, 0.95) if known else None


def deciles(values: Sequence[float]) -> dict[str, float]:
    """The first, fifth and ninth decile; `values` is not empty."""
    ascending = sorted(values)
    return {f"p{p}": percentile(ascending, p / 100) for p in (10, 50, 90)}


def histogram(values: Sequence[float]) -> dict[str, object] | None:
    """Bins of equal width over the positive values, with percentiles; None without any."""
    speeds = sorted(value for value in values if value > 0)
    if not speeds:
        return None
    low, high = speeds[0], speeds[-1]
    if low == high:
        bins, width = [len(speeds)], 0.0
    else:
        count = max(MIN_BINS, min(MAX_BINS, ceil(log2(len(speeds))) + 1))
        width = (high - low) / count
        bins = [0] * count
        for speed in speeds:
            # The last bin is closed: rounding must not exceed it. If the width underflows to 0 all are in the first.
            index = int((speed - low) / width) if width > 0 else 0
            bins[min(count - 1, index)] += 1
    return {
        "bins": bins,
        "min": low,
        "max": high,
        "binSize": width,
        "p50": percentile(speeds, 0.50),
        "p95": percentile(speeds, 0.95),
        "p99": percentile(speeds, 0.99),
    }
