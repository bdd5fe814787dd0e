"""Recorded requests played again, on virtual servers: what another policy or another configuration would have done.

The scheduler is the real one. Loads and stops take as long as they are said to, requests as long as they took; each
arrives when it was recorded to, however long the ones before it have to wait. No two runs differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from heapq import heappop, heappush
from itertools import count
from math import exp, inf, log1p

from attrs import Factory, define, field, frozen

from llamaswap.config.schema.routing import Selector
from llamaswap.scheduling.effects import (
    AbandonSwap,
    Effect,
    Grant,
    Refuse,
    SetIdleTimer,
    SetQueueTimer,
    StartSwap,
    Stop,
    Suspend,
    Ticket,
)
from llamaswap.scheduling.hosts import HostFacts
from llamaswap.scheduling.memory import Ledger
from llamaswap.scheduling.scheduler import Scheduler
from llamaswap.scheduling.selectors import READY, STARTING, Chooser
from llamaswap.scheduling.state import Phase, Rules

SMALLEST_WAIT = 0.001  # seconds; shorter waits are counted as none
WAIT_STEPS = 100  # of the logarithm of a wait: they are counted to within one percent


@frozen
class RecordedRequest:
    """A request that arrived at `time` and kept its server busy for `duration` seconds."""

    time: float
    model: str
    duration: float


@frozen
class ServerTimes:
    """How many seconds the loads of each model take, and every stop, suspension and resume."""

    load: Callable[[str], float]
    stop: float = 1.0
    resume: float = 1.0


@define
class WaitTimes:
    """How long requests waited, counted in classes, so that a long record needs no more memory than a short one."""

    count: int = 0
    total: float = 0.0
    longest: float = 0.0
    _classes: Counter[int] = Factory(Counter)

    def add(self, wait: float) -> None:
        """Count the wait of one request, in seconds."""
        self.count += 1
        self.total += wait
        self.longest = max(self.longest, wait)
        self._classes[int(log1p(wait / SMALLEST_WAIT) * WAIT_STEPS)] += 1

    def quantile(self, share: float) -> float:
        """The wait that this share of all requests did not exceed."""
        left = share * self.count
        for step, number in sorted(self._classes.items()):
            left -= number
            if left <= 0:
                return min(self.longest, (exp(step / WAIT_STEPS) - 1) * SMALLEST_WAIT)
        return self.longest


@define
class SimulationResult:
    """What happened. `loads` are by model, with the resumes of suspended models; `refused` is by the kind of error.

    `moved` counts the loads on another host than the one before.
    """

    requests: int = 0
    waits: WaitTimes = Factory(WaitTimes)
    loads: Counter[str] = Factory(Counter)
    load_seconds: float = 0.0
    refused: Counter[str] = Factory(Counter)
    moved: int = 0


class EvictAll:
    """The policy with which every other tool is compared: one model at a time."""

    def __call__(self, target: str, running: Sequence[str], /) -> tuple[str, ...]:
        return tuple(running)

    def protects(self, model: str, target: str, /) -> bool:
        return False

    def explain(self, target: str, running: Sequence[str], /) -> str:
        return "one model at a time"

    def conflict(self, models: Sequence[str], /) -> str:
        return "" if len(models) < 2 else "only one model runs at a time"


@define
class _VirtualServer:
    """One server. The latest of its stops ends at `stopped_at`; `loading` is the generation of its load."""

    stopped_at: float = 0.0
    stops: int = 0
    suspends: bool = False
    suspended: bool = False
    loading: int = 0
    load_begins: float = inf
    host: str | None = None


@define(eq=False)
class Simulation:
    """Performs the scheduler's effects on virtual servers. `replicas` are the servers of models that have several.

    `hosts` are those that are known from a time on. `make` makes the scheduler, or one that measures.
    """

    rules: Rules
    ledger: Ledger
    times: ServerTimes
    replicas: Mapping[str, Selector] = Factory(dict)
    hosts: Sequence[tuple[float, Mapping[str, HostFacts]]] = ()
    make: Callable[[Rules], Scheduler] = Scheduler
    result: SimulationResult = field(factory=SimulationResult, init=False)
    _scheduler: Scheduler = field(init=False)
    _chooser: Chooser = field(factory=Chooser, init=False)
    _servers: dict[str, _VirtualServer] = field(factory=dict, init=False)
    _durations: dict[int, tuple[float, Callable[[], None]]] = field(factory=dict, init=False)
    _idle_timers: dict[str, int] = field(factory=dict, init=False)
    _queue_timer: int = field(default=0, init=False)
    _events: list[tuple[float, int, Callable[[], Iterable[Effect]]]] = field(factory=list, init=False)
    _numbers: count[int] = field(factory=lambda: count(1), init=False)
    _now: float = field(default=0.0, init=False)

    def __attrs_post_init__(self) -> None:
        self._scheduler = self.make(self.rules)
        self._scheduler.memory_changed(self.ledger, self._now)
        for at, known in self.hosts:
            self._after(at, partial(self._know, known))

    def _know(self, hosts: Mapping[str, HostFacts]) -> Iterable[Effect]:
        return self._scheduler.hosts_changed(hosts, self._now)

    def run(self, requests: Iterable[RecordedRequest]) -> SimulationResult:
        """Play the requests, which are in the order of their times, until all of them have ended."""
        for request in requests:
            self._advance(request.time)
            self._now = max(self._now, request.time)
            self._arrive(request)
        self._advance(inf)
        return self.result

    def _advance(self, until: float) -> None:
        while self._events and self._events[0][0] <= until:
            self._now, _, happen = heappop(self._events)
            self._perform(happen())

    def _after(self, at: float, happen: Callable[[], Iterable[Effect]]) -> int:
        """Let something happen at a time; returns its number."""
        number = next(self._numbers)
        heappush(self._events, (at, number, happen))
        return number

    # -- requests ------------------------------------------------------------------------------------------

    def _arrive(self, request: RecordedRequest) -> None:
        self.result.requests += 1
        model, release = request.model, lambda: None
        if model in self.replicas:
            choice = self._chooser.choose(self.replicas[model], self._state)
            model, release = choice.target, choice.release
        number = next(self._numbers)
        priority = self.rules.fifo.priority.get(request.model, 0)
        self._durations[number] = max(0.0, request.duration), release
        self._perform(self._scheduler.requested(Ticket(number, model, self._now, priority), self._now))

    def _state(self, model: str) -> str:
        return {Phase.READY: READY, Phase.LOADING: STARTING}.get(self._scheduler.phase(model), "stopped")

    def _grant(self, ticket: Ticket) -> None:
        self.result.waits.add(self._now - ticket.since)
        duration, release = self._durations.pop(ticket.number)

        def ended() -> Iterable[Effect]:
            release()
            return self._scheduler.served(ticket, self._now)

        self._after(self._now + duration, ended)

    # -- effects -------------------------------------------------------------------------------------------

    def _perform(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Grant(ticket):
                    self._grant(ticket)
                case SetIdleTimer(model, seconds):
                    self._set_idle_timer(model, seconds)
                case SetQueueTimer(seconds):
                    self._set_queue_timer(seconds)
                case Refuse(ticket, error):
                    self.result.refused[type(error).__name__] += 1
                    self._durations.pop(ticket.number)[1]()
                case StartSwap():
                    self._start(effect)
                case AbandonSwap(generation):
                    self._abandon(generation)
                case Stop(models):
                    for model in models:
                        self._stop(model)
                case Suspend(models):
                    for model in models:
                        self._stop(model, suspends=True)
                case _:
                    pass  # positions in the queue, which have no effect on the servers

    def _server(self, model: str) -> _VirtualServer:
        return self._servers.get(model) or self._servers.setdefault(model, _VirtualServer())

    def _start(self, effect: StartSwap) -> None:
        """Begin a load, which waits for the stops of what it evicts and of the model's earlier process."""
        for victim in effect.evict:
            if self._server(victim).stopped_at <= self._now or victim in effect.suspend:
                self._stop(victim, suspends=victim in effect.suspend)
        model, server = effect.model, self._server(effect.model)
        awaited = [server.stopped_at, *(self._server(victim).stopped_at for victim in effect.evict)]
        resumes = server.suspended or (server.suspends and server.stopped_at > self._now)
        server.stops += 1  # a stop that has not ended is followed by this load
        server.suspended = server.suspends = False
        server.loading = effect.generation
        server.load_begins = max(self._now, *awaited)
        seconds = self.times.resume if resumes else self.times.load(model)

        def ready() -> Iterable[Effect]:
            if server.loading != effect.generation:
                return ()  # it was abandoned
            server.loading = 0
            self.result.load_seconds += seconds
            return self._scheduler.swap_finished(effect.generation, None, self._now)

        self.result.loads[model] += 1
        self.result.moved += server.host not in (None, effect.host)
        server.host = effect.host
        self._after(server.load_begins + seconds, ready)

    def _abandon(self, generation: int) -> None:
        for server in self._servers.values():
            if server.loading == generation:
                server.loading = 0
                self.result.load_seconds += max(0.0, self._now - server.load_begins)

    def _stop(self, model: str, suspends: bool = False) -> None:
        """Stop or suspend a server. Only the last one of several stops counts."""
        server = self._server(model)
        server.stops += 1
        server.suspended, server.suspends = False, suspends
        server.stopped_at = self._now + self.times.stop
        number = server.stops

        def stopped() -> Iterable[Effect]:
            if server.stops != number:
                return ()
            if not suspends:
                return self._scheduler.stopped(model, self._now)
            server.suspended = True
            return self._scheduler.suspended(model, self._now)

        self._after(server.stopped_at, stopped)

    # -- timers --------------------------------------------------------------------------------------------

    def _set_idle_timer(self, model: str, seconds: float | None) -> None:
        self._idle_timers.pop(model, None)
        if seconds is None:
            return

        def expired() -> Iterable[Effect]:
            if self._idle_timers.get(model) != number:
                return ()
            del self._idle_timers[model]
            return self._scheduler.idle_expired(model, self._now)

        number = self._idle_timers[model] = self._after(self._now + seconds, expired)

    def _set_queue_timer(self, seconds: float | None) -> None:
        self._queue_timer = 0
        if seconds is None:
            return

        def expired() -> Iterable[Effect]:
            return self._scheduler.queue_timer_expired(self._now) if self._queue_timer == number else ()

        number = self._queue_timer = self._after(self._now + seconds, expired)
