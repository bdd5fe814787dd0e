"""Histograms and percentiles of speeds. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, log2
from typing import Any

LEAST_BINS, MOST_BINS = 5, 20


def percentile(ascending: Sequence[float], p: float) -> float:
    """Linear interpolation at rank p * (n - 1); `ascending` is sorted and not empty."""
    rank = p * (len(ascending) - 1)
    low = int(rank)
    high = min(low + 1, len(ascending) - 1)
    return ascending[low] + (ascending[high] - ascending[low]) * (rank - low)


def histogram(values: Sequence[float]) -> dict[str, Any] | None:
    """Bins of equal width over the positive values, with percentiles; None when there is none."""
    speeds = sorted(value for value in values if value > 0)
    if not speeds:
        return None
    low, high = speeds[0], speeds[-1]
    if low == high:
        bins, width = [len(speeds)], 0.0
    else:
        count = max(LEAST_BINS, min(MOST_BINS, ceil(log2(len(speeds))) + 1))
        width = (high - low) / count
        bins = [0] * count
        for speed in speeds:
            # The last bin is closed, and rounding must not open one behind it. A span too small to be divided
            # (subnormal width) falls into the first bin.
            place = int((speed - low) / width) if width > 0 else 0
            bins[min(count - 1, place)] += 1
    return {
        "bins": bins,
        "min": low,
        "max": high,
        "binSize": width,
        "p50": percentile(speeds, 0.50),
        "p95": percentile(speeds, 0.95),
        "p99": percentile(speeds, 0.99),
    }
