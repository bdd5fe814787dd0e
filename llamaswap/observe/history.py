"""The states of each model over time, and the outcome of each swap.

Built from the bus alone, in bounded memory. This module must not know the router.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from attrs import define, evolve, field, frozen

from llamaswap.events import EventBus, StateChanged, SwapBegan, SwapEnded
from llamaswap.observe.log_format import Timestamp, timestamp
from llamaswap.observe.logs import LogMonitor

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
    """One load: the events of its beginning and its end, and their times in unix seconds.

    `log_start` is the number of bytes in the model's log before it began: what follows is the output of this load.
    """

    start: SwapBegan
    began: float
    end: SwapEnded | None = None
    ended: float | None = None
    log_start: int = 0
    log_tail: str = ""


@frozen
class SwapPhase:
    """A part of a swap."""

    name: str
    start: Timestamp
    end: Timestamp
    seconds: float


@frozen
class SwapOrigin:
    """What a swap was done for."""

    kind: str
    id: str = ""


@frozen
class SwapDocument:
    """One swap. `start` and `end` are `began` and `ended` with the names that the phases use.

    `log_tail` is the end of the model's log, if the swap failed; None in a list of swaps.
    """

    id: int
    model: str
    evicted: list[str]
    reason: str
    trigger: SwapOrigin
    exit_code: int | None
    began: Timestamp
    ended: Timestamp | None
    error: str | None
    phases: list[SwapPhase]
    outcome: str
    start: Timestamp
    end: Timestamp | None
    log_tail: str | None = None


@define(eq=False)
class SwapHistory:
    """`wall` gives unix seconds, `log` the log of a model (its end is kept for a load that failed)."""

    wall: Callable[[], float]
    log: Callable[[str], LogMonitor]
    _ended: deque[StateInterval] = field(factory=lambda: deque(maxlen=MAX_INTERVALS), init=False)
    _current: dict[str, StateInterval] = field(factory=dict, init=False)
    _swaps: dict[int, SwapRecord] = field(factory=dict, init=False)
    # By model: the swap that loads it, and the swap that it is evicted for.
    _loading: dict[str, SwapRecord] = field(factory=dict, init=False)
    _evicting: dict[str, SwapRecord] = field(factory=dict, init=False)

    def listen(self, bus: EventBus) -> None:
        """Subscribe to changes of state and to swaps."""
        bus.subscribe(StateChanged, self.state_changed)
        bus.subscribe(SwapBegan, self.swap_began)
        bus.subscribe(SwapEnded, self.swap_ended)

    def state_changed(self, event: StateChanged) -> None:
        """End the model's interval, and begin another unless it stopped."""
        at = self.wall()
        before = self._current.pop(event.model, None)
        if before is not None:
            # The wall clock may be set back; an interval never ends before it began.
            self._ended.append(evolve(before, ended=max(at, before.began)))
        if event.new == "stopped":
            self._evicting.pop(event.model, None)
            return
        swap = self._evicting.get(event.model) if event.new == "stopping" else None
        reason = f"evicted for {swap.start.model}" if swap else event.why
        if swap is None and not reason:
            swap = self._loading.get(event.model)
            reason = swap.start.reason if swap else ""
        number = swap.start.swap if swap else None
        self._current[event.model] = StateInterval(event.model, event.new, at, None, reason, number)

    def swap_began(self, event: SwapBegan) -> None:
        """A load began."""
        swap = self._swaps[event.swap] = SwapRecord(event, self.wall(), log_start=self.log(event.model).written)
        if len(self._swaps) > MAX_SWAPS:
            del self._swaps[next(iter(self._swaps))]
        self._loading[event.model] = swap
        for model in event.evicted:
            self._evicting[model] = swap

    def swap_ended(self, event: SwapEnded) -> None:
        """A load ended."""
        loading = self._loading.get(event.model)
        if loading is not None and loading.start.swap == event.swap:
            del self._loading[event.model]
        swap = self._swaps.get(event.swap)
        if swap is None:
            return
        swap.end, swap.ended = event, max(self.wall(), swap.began)
        if event.error is not None:
            log = self.log(event.model)
            length = min(log.written - swap.log_start, LOG_TAIL)
            swap.log_tail = log.history()[-length:].decode("utf-8", "replace") if length else ""
        self._evicting = {model: other for model, other in self._evicting.items() if other is not swap}

    def residency(self, since: float | None = None, until: float | None = None) -> list[Document]:
        """When models were loaded: the intervals that overlap the span (unix seconds), ordered by their beginning."""
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
                "t0": timestamp(interval.began),
                "t1": None if interval.ended is None else timestamp(interval.ended),
                "reason": interval.reason,
                "swap_id": interval.swap,
            }
            for interval in found
        ]

    def swaps(self, limit: int = MAX_SWAPS) -> list[SwapDocument]:
        """The swaps, newest first, without their log tails."""
        return [_document(swap) for swap in list(reversed(self._swaps.values()))[: max(0, limit)]]

    def swap(self, number: int) -> SwapDocument | None:
        """One swap with its log tail."""
        swap = self._swaps.get(number)
        return None if swap is None else _document(swap, swap.log_tail)


def _document(swap: SwapRecord, log_tail: str | None = None) -> SwapDocument:
    start, end = swap.start, swap.end
    phases: list[SwapPhase] = []
    # The first phase, the wait in the queue, was before the swap began.
    durations = end.phases if end else {}
    at = swap.began - durations.get("queued", 0.0)
    for name, seconds in durations.items():
        phases.append(SwapPhase(name, timestamp(at), timestamp(at + seconds), seconds))
        at += seconds
    began, ended = timestamp(swap.began), None if swap.ended is None else timestamp(swap.ended)
    outcome = "loading" if end is None else "ready" if end.error is None else "failed"
    kind, _, request = start.origin.partition(":")
    return SwapDocument(
        id=start.swap,
        model=start.model,
        evicted=list(start.evicted),
        reason=start.reason,
        trigger=SwapOrigin(kind or "unknown", request),
        exit_code=end.exit_status if end else None,
        began=began,
        ended=ended,
        error=end.error if end else None,
        phases=phases,
        outcome=outcome,
        start=began,
        end=ended,
        log_tail=log_tail,
    )
