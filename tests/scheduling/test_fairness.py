"""Fairness under steady load: a simulation of competing models, whose clients send their next request at once."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from random import Random

from attrs import Factory, define, field
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.scheduling.effects import Effect, Grant, SetQueueTimer, StartSwap, Ticket
from llamaswap.scheduling.scheduler import Scheduler
from llamaswap.scheduling.state import MINIMUM_STAY_LOADS, ModelRules, Rules
from tests.scheduling.world import Conflicts, fifo, pairs

LOAD = 5.0
STAY = MINIMUM_STAY_LOADS * LOAD


@define(eq=False)
class Simulation:
    """Models that exclude each other, each with clients that send a request, read the response and send the next.

    `service(random)` is how long a response takes. Time is simulated, every run is the same.
    """

    models: str
    patience: float
    clients: int = 4
    service: Callable[[Random], float] = lambda random: random.uniform(0.3, 0.9)
    pause: float = 0.02
    random: Random = Factory(lambda: Random(7))
    now: float = 0.0
    waits: list[float] = Factory(list)
    stays: list[float] = Factory(list)
    ready_at: float | None = None
    served: dict[str, int] = Factory(dict)
    scheduler: Scheduler = field(init=False)
    events: list[tuple[float, int, Callable[[], list[Effect]]]] = Factory(list)
    numbers: count = Factory(count)
    timer: int = -1

    def __attrs_post_init__(self) -> None:
        conflicts = [one + other for one in self.models for other in self.models if one < other]
        rules = Rules(
            {model: ModelRules() for model in self.models}, Conflicts(pairs(*conflicts)), fifo(patience=self.patience)
        )
        self.scheduler = Scheduler(rules)

    def after(self, seconds: float, event: Callable[[], list[Effect]]) -> int:
        number = next(self.numbers)
        heappush(self.events, (self.now + seconds, number, event))
        return number

    def run(self, seconds: float) -> Simulation:
        for index in range(self.clients):
            for model in self.models:
                self.after(0.1 * index, lambda model=model: self.ask(model))
        while self.events[0][0] <= seconds:
            self.now, _, event = heappop(self.events)
            for effect in event():
                self.perform(effect)
        self.waits += [self.now - entry.ticket.since for entry in self.scheduler.queue]
        return self

    def ask(self, model: str) -> list[Effect]:
        return self.scheduler.requested(Ticket(next(self.numbers), model, self.now), self.now)

    def finish(self, ticket: Ticket) -> list[Effect]:
        self.served[ticket.model] = self.served.get(ticket.model, 0) + 1
        self.after(self.pause, lambda: self.ask(ticket.model))
        return self.scheduler.served(ticket, self.now)

    def loaded(self, generation: int) -> list[Effect]:
        self.ready_at = self.now
        return self.scheduler.swap_finished(generation, None, self.now)

    def timer_due(self, number: int) -> list[Effect]:
        return self.scheduler.queue_timer_expired(self.now) if number == self.timer else []

    def perform(self, effect: Effect) -> None:
        if isinstance(effect, Grant):
            self.waits.append(self.now - effect.ticket.since)
            self.after(self.service(self.random), lambda: self.finish(effect.ticket))
        elif isinstance(effect, StartSwap):
            if self.ready_at is not None:
                self.stays.append(self.now - self.ready_at)
            for victim in effect.evict:
                self.after(0.0, lambda victim=victim: self.scheduler.stopped(victim, self.now))
            self.after(LOAD, lambda: self.loaded(effect.generation))
        elif isinstance(effect, SetQueueTimer):
            self.timer = number = next(self.numbers)
            if effect.seconds is not None:
                heappush(self.events, (self.now + effect.seconds, number, lambda: self.timer_due(number)))

    @property
    def throughput(self) -> int:
        return sum(self.served.values())


class SteadyLoadTests(SynchronousTestCase):
    def test_short_patience_keeps_four_fifths_of_the_throughput_of_long_patience(self) -> None:
        long = Simulation("ab", patience=1e6).run(1200.0).throughput
        for patience in (0.0, 1.0, 10.0):
            short = Simulation("ab", patience).run(1200.0).throughput
            self.assertGreaterEqual(short, 0.8 * long, f"with {patience} s of patience")

    def test_no_request_waits_longer_than_all_competing_models_load_and_stay(self) -> None:
        for models in ("ab", "abc", "abcdef"):
            run = Simulation(models, patience=1.0).run(3000.0)
            self.assertLessEqual(max(run.waits), len(models) * (LOAD + STAY), models)

    def test_competing_models_are_served_alike(self) -> None:
        served = Simulation("abc", patience=1.0).run(3000.0).served
        self.assertGreaterEqual(min(served.values()), 0.8 * max(served.values()), served)

    def test_patience_longer_than_the_minimum_stay_bounds_the_wait_instead(self) -> None:
        run = Simulation("ab", patience=60.0).run(3000.0)
        self.assertLessEqual(max(run.waits), 2 * (LOAD + 60.0))
        self.assertGreater(max(run.waits), 60.0)

    def test_model_that_is_unused_between_two_requests_keeps_its_minimum_stay(self) -> None:
        for clients in (1, 4):
            run = Simulation("ab", 1.0, clients, service=lambda random: 0.5).run(1200.0)
            self.assertGreaterEqual(min(run.stays), STAY, f"with {clients} clients")
