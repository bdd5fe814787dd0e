"""Which model was in which state from when to when, and how each swap went.

Built from the bus alone, in bounded memory. Must not know the router.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from attrs import define, field, frozen

from llamaswap.events import EventBus, StateChanged, SwapBegan, SwapEnded
from llamaswap.observe.log_format import local_time, rfc3339nano

INTERVALS = 4096  # ended intervals kept: a thousand swaps
SWAPS = 512  # swaps kept, with their log tails
TAIL = 4096  # bytes of a failed model's log kept with its swap


@frozen
class StateInterval:
    """A model was in `state` from `began` to `ended` (unix seconds; None: still is)."""

    model: str
    state: str
    began: float
    ended: float | None
    reason: str = ""
    swap: int | None = None


@define(eq=False)
class SwapRecord:
    """One load: who went for it, why, and how long each phase took."""

    number: int
    model: str
    evicted: tuple[str, ...]
    reason: str
    began: float
    ended: float | None = None
    origin: str = ""
    error: str | None = None
    exit_status: int | None = None
    phases: Mapping[str, float] = field(factory=dict)
    log_tail: str = ""


class SwapHistory:
    """`wall` gives unix seconds, `log_tail(model)` the end of a model's log (asked when a load failed)."""

    def __init__(
        self,
        *,
        wall: Callable[[], float],
        log_tail: Callable[[str], bytes] = lambda model: b"",
        local: Callable[[float], datetime] = local_time,
        intervals: int = INTERVALS,
        swaps: int = SWAPS,
    ) -> None:
        self._wall = wall
        self._log_tail = log_tail
        self._local = local
        self._ended: deque[StateInterval] = deque(maxlen=intervals)
        self._now: dict[str, StateInterval] = {}
        self._swaps: deque[SwapRecord] = deque(maxlen=swaps)
        # The swap each model is being loaded by, and the one it is being evicted for.
        self._loading: dict[str, SwapRecord] = {}
        self._leaving: dict[str, SwapRecord] = {}

    def listen(self, bus: EventBus) -> None:
        """Hear of states and swaps."""
        bus.subscribe(StateChanged, self.state_changed)
        bus.subscribe(SwapBegan, self.swap_began)
        bus.subscribe(SwapEnded, self.swap_ended)

    def state_changed(self, event: StateChanged) -> None:
        """One interval ends; another begins, unless the model is simply not there any more."""
        at = self._wall()
        before = self._now.pop(event.model, None)
        if before is not None:
            # The wall clock may be set back; an interval never ends before it began.
            self._ended.append(
                StateInterval(
                    before.model, before.state, before.began, max(at, before.began), before.reason, before.swap
                )
            )
        if event.new == "stopped":
            self._leaving.pop(event.model, None)
            return
        swap = self._leaving.get(event.model) if event.new == "stopping" else None
        reason = f"evicted for {swap.model}" if swap else event.why
        if swap is None and not reason:
            swap = self._loading.get(event.model)
            reason = swap.reason if swap else ""
        self._now[event.model] = StateInterval(event.model, event.new, at, None, reason, swap.number if swap else None)

    def swap_began(self, event: SwapBegan) -> None:
        """A load was decided."""
        swap = SwapRecord(event.swap, event.model, event.evicted, event.reason, self._wall(), origin=event.origin)
        self._swaps.append(swap)
        self._loading[event.model] = swap
        for model in event.evicted:
            self._leaving[model] = swap

    def swap_ended(self, event: SwapEnded) -> None:
        """A load came to its end."""
        loading = self._loading.get(event.model)
        if loading is not None and loading.number == event.swap:
            del self._loading[event.model]
        for swap in reversed(self._swaps):
            if swap.number == event.swap:
                swap.ended = max(self._wall(), swap.began)
                swap.error = event.error
                swap.exit_status = event.exit_status
                swap.phases = dict(event.phases)
                if event.error is not None:
                    swap.log_tail = self._log_tail(event.model)[-TAIL:].decode("utf-8", "replace")
                for model in [model for model, other in self._leaving.items() if other is swap]:
                    del self._leaving[model]
                return

    def residency(self, since: float | None = None, until: float | None = None) -> list[dict[str, Any]]:
        """Intervals that touch the span (unix seconds), by their beginning."""
        found = [
            interval
            for interval in (*self._ended, *self._now.values())
            if (until is None or interval.began <= until)
            and (since is None or interval.ended is None or interval.ended >= since)
        ]
        found.sort(key=lambda interval: interval.began)
        return [
            {
                "model": interval.model,
                "state": interval.state,
                "t0": self._time(interval.began),
                "t1": None if interval.ended is None else self._time(interval.ended),
                "reason": interval.reason,
                "swap_id": interval.swap,
            }
            for interval in found
        ]

    def swaps(self, limit: int = SWAPS) -> list[dict[str, Any]]:
        """The swaps, newest first, without their log tails."""
        newest = list(self._swaps)[: -limit - 1 : -1] if limit > 0 else []
        return [self._summary(swap) for swap in newest]

    def swap(self, number: int) -> dict[str, Any] | None:
        """One swap with everything known of it."""
        for swap in reversed(self._swaps):
            if swap.number == number:
                return {**self._summary(swap), "log_tail": swap.log_tail}
        return None

    def _summary(self, swap: SwapRecord) -> dict[str, Any]:
        phases: list[dict[str, Any]] = []
        # The wait for the decision to load lies before it.
        at = swap.began - swap.phases.get("queued", 0.0)
        for name, seconds in swap.phases.items():
            phases.append({"name": name, "start": self._time(at), "end": self._time(at + seconds), "seconds": seconds})
            at += seconds
        return {
            "id": swap.number,
            "model": swap.model,
            "evicted": list(swap.evicted),
            "reason": swap.reason,
            "trigger": _trigger(swap.origin),
            "exit_code": swap.exit_status,
            "began": self._time(swap.began),
            "ended": None if swap.ended is None else self._time(swap.ended),
            "error": swap.error,
            "phases": phases,
        }

    def _time(self, seconds: float) -> str:
        return rfc3339nano(self._local(seconds))


def _trigger(origin: str) -> dict[str, str]:
    """What asked for a swap, as a document: its kind, and a request's id."""
    kind, _, request = origin.partition(":")
    return {"kind": kind or "unknown", **({"id": request} if request else {})}
