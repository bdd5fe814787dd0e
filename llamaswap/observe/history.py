"""The states of each model over time, and the outcome of each swap.

Built from the bus alone, in bounded memory. This module must not know the router.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime

from attrs import define, evolve, field, frozen

from llamaswap.events import EventBus, StateChanged, SwapBegan, SwapEnded
from llamaswap.observe.log_format import local_time, rfc3339nano

MAX_INTERVALS = 4096  # ended intervals kept: those of a thousand swaps
MAX_SWAPS = 512  # swaps kept, with their log tails
LOG_TAIL = 4096  # bytes of a failed model's log kept with its swap

Document = dict[str, object]


@frozen
class StateInterval:
    """A model was in `state` from `began` to `ended` (unix seconds; None: it still is)."""

    model: str
    state: str
    began: float
    ended: float | None
    reason: str = ""
    swap: int | None = None


@define(eq=False)
class SwapRecord:
    """One load: the models evicted for it, its reason, and the seconds of each phase."""

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
    """`wall` gives unix seconds, `log_tail(model)` the end of a model's log (for a load that failed)."""

    def __init__(
        self,
        *,
        wall: Callable[[], float],
        log_tail: Callable[[str], bytes] = lambda model: b"",
        local: Callable[[float], datetime] = local_time,
        intervals: int = MAX_INTERVALS,
        swaps: int = MAX_SWAPS,
    ) -> None:
        self._wall = wall
        self._log_tail = log_tail
        self._local = local
        self._ended: deque[StateInterval] = deque(maxlen=intervals)
        self._current: dict[str, StateInterval] = {}
        self._swaps: deque[SwapRecord] = deque(maxlen=swaps)
        # By model: the swap that loads it, and the swap that it is evicted for.
        self._loading: dict[str, SwapRecord] = {}
        self._evicting: dict[str, SwapRecord] = {}

    def listen(self, bus: EventBus) -> None:
        """Subscribe to changes of state and to swaps."""
        bus.subscribe(StateChanged, self.state_changed)
        bus.subscribe(SwapBegan, self.swap_began)
        bus.subscribe(SwapEnded, self.swap_ended)

    def state_changed(self, event: StateChanged) -> None:
        """End the model's interval, and begin another unless it stopped."""
        at = self._wall()
        before = self._current.pop(event.model, None)
        if before is not None:
            # The wall clock may be set back; an interval never ends before it began.
            self._ended.append(evolve(before, ended=max(at, before.began)))
        if event.new == "stopped":
            self._evicting.pop(event.model, None)
            return
        swap = self._evicting.get(event.model) if event.new == "stopping" else None
        reason = f"evicted for {swap.model}" if swap else event.why
        if swap is None and not reason:
            swap = self._loading.get(event.model)
            reason = swap.reason if swap else ""
        self._current[event.model] = StateInterval(
            event.model, event.new, at, None, reason, swap.number if swap else None
        )

    def swap_began(self, event: SwapBegan) -> None:
        """A load began."""
        swap = SwapRecord(event.swap, event.model, event.evicted, event.reason, self._wall(), origin=event.origin)
        self._swaps.append(swap)
        self._loading[event.model] = swap
        for model in event.evicted:
            self._evicting[model] = swap

    def swap_ended(self, event: SwapEnded) -> None:
        """A load ended."""
        loading = self._loading.get(event.model)
        if loading is not None and loading.number == event.swap:
            del self._loading[event.model]
        swap = self._find(event.swap)
        if swap is None:
            return
        swap.ended = max(self._wall(), swap.began)
        swap.error = event.error
        swap.exit_status = event.exit_status
        swap.phases = dict(event.phases)
        if event.error is not None:
            swap.log_tail = self._log_tail(event.model)[-LOG_TAIL:].decode("utf-8", "replace")
        self._evicting = {model: other for model, other in self._evicting.items() if other is not swap}

    def _find(self, number: int) -> SwapRecord | None:
        return next((swap for swap in reversed(self._swaps) if swap.number == number), None)

    def residency(self, since: float | None = None, until: float | None = None) -> list[Document]:
        """Intervals that overlap the span (unix seconds), ordered by their beginning."""
        found = [
            interval
            for interval in (*self._ended, *self._current.values())
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

    def swaps(self, limit: int = MAX_SWAPS) -> list[Document]:
        """The swaps, newest first, without their log tails."""
        newest = list(self._swaps)[: -limit - 1 : -1] if limit > 0 else []
        return [self._summary(swap) for swap in newest]

    def swap(self, number: int) -> Document | None:
        """One swap with its log tail."""
        swap = self._find(number)
        return None if swap is None else {**self._summary(swap), "log_tail": swap.log_tail}

    def _summary(self, swap: SwapRecord) -> Document:
        phases: list[Document] = []
        # The first phase, the wait in the queue, was before the swap began.
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
    """The origin of a swap as a document: its kind, and the id of a request."""
    kind, _, request = origin.partition(":")
    return {"kind": kind or "unknown", **({"id": request} if request else {})}
