"""Durations as text: 1h30m, 1.5m, 250ms. A number without a unit is not a duration."""

from __future__ import annotations

import math
import re

UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_WHOLE = re.compile(rf"[-+]?(?:{_PART.pattern})+")
MAX_SECONDS = float(2**63) * UNITS["ns"]  # the Go program has 64-bit nanoseconds


def parse(text: str) -> float | None:
    """Seconds; None if the text is not a duration."""
    if text in ("0", "+0", "-0"):
        return 0.0
    if len(text) > 200 or not _WHOLE.fullmatch(text):
        return None
    seconds = math.fsum(float(amount) * UNITS[unit] for amount, unit in _PART.findall(text))
    if seconds >= MAX_SECONDS:
        return None
    return -seconds if text[0] == "-" else seconds


def render(seconds: float) -> str:
    """Seconds as `1.23ms`, `4.5s`, `1m2s`, `1h0m0s`, exact to a microsecond."""
    micros = round(seconds * 1_000_000)
    sign = "-" if micros < 0 else ""
    micros = abs(micros)
    if micros == 0:
        return "0s"
    if micros < 1_000:
        return f"{sign}{micros}µs"
    if micros < 1_000_000:
        return f"{sign}{micros / 1_000:.6g}ms"
    minutes, rest = divmod(micros, 60_000_000)
    hours, minutes = divmod(minutes, 60)
    lead = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    shown = f"{rest / 1_000_000:.6f}".rstrip("0").rstrip(".")
    return f"{sign}{lead}{shown}s"
