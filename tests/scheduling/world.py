"""A world for the scheduler to act upon: it keeps its own account of processes and requests, and checks each effect.

The running models and the waiting and granted requests are recorded from effects and events alone; the scheduler is
only read to compare the two accounts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from attrs import Factory, define, evolve

from llamaswap.config.schema.routing import FifoSettings
from llamaswap.errors import LlamaswapError, ModelUnloaded, QueueFull, StartFailed
from llamaswap.scheduling.effects import (
    AbandonSwap,
    Admit,
    Effect,
    Grant,
    Interrupt,
    QueuePosition,
    Refuse,
    SetIdleTimer,
    SetQueueTimer,
    StartSwap,
    Stop,
    Suspend,
    Ticket,
)
from llamaswap.scheduling.scheduler import Scheduler
from llamaswap.scheduling.state import IDLE_LINGER_LOADS, MINIMUM_STAY_LOADS, ModelRules, ModelState, Phase, Rules


def pairs(*conflicts: str) -> frozenset[frozenset[str]]:
    """Pairs from two-letter words: "ab" says that a and b cannot be up together."""
    return frozenset(frozenset(conflict) for conflict in conflicts)


@define(eq=False)
class Conflicts:
    """A policy that is a plain relation: whatever conflicts with the target goes."""

    pairs: Collection[frozenset[str]]

    def __call__(self, target: str, running: Sequence[str], /) -> tuple[str, ...]:
        assert target not in running and list(running) == sorted(running)
        return tuple(model for model in running if frozenset((target, model)) in self.pairs)

    def protects(self, model: str, target: str, /) -> bool:
        return False

    def explain(self, target: str, running: Sequence[str], /) -> str:
        return "relation"


@define(eq=False)
class Load:
    swap: StartSwap
    awaited: set[str]
    began: float
    abandoned: bool = False
    started: bool = False


@define(eq=False)
class World:
    """See the module."""

    rules: Rules
    conflicts: Conflicts
    now: float = 100.0
    scheduler: Scheduler = Factory(lambda self: Scheduler(self.rules), takes_self=True)
    alive: set[str] = Factory(set)
    ready: set[str] = Factory(set)
    stopping: set[str] = Factory(set)
    suspending: set[str] = Factory(set)
    asleep: set[str] = Factory(set)
    woken: set[str] = Factory(set)
    wakes: dict[str, int] = Factory(dict)
    loads: dict[int, Load] = Factory(dict)
    waiting: dict[int, Ticket] = Factory(dict)
    granted: dict[int, Ticket] = Factory(dict)
    cut: dict[int, Ticket] = Factory(dict)
    refused: dict[int, LlamaswapError] = Factory(dict)
    admitted: set[int] = Factory(set)
    positions: dict[int, int] = Factory(dict)
    idle: dict[str, float] = Factory(dict)
    queue_deadline: float | None = None
    interrupted: list[tuple[int, float, str]] = Factory(list)
    placed: int = 0
    late: list[tuple[int, LlamaswapError | None]] = Factory(list)
    load_seconds: dict[str, float] = Factory(dict)
    stay_end: dict[str, float] = Factory(dict)
    unused_since: dict[str, float] = Factory(dict)
    swaps: list[StartSwap] = Factory(list)
    stops: list[Stop] = Factory(list)
    suspensions: list[Suspend] = Factory(list)
    served: list[str] = Factory(list)
    spawns: dict[str, int] = Factory(dict)
    outdated: set[str] = Factory(set)
    last_number: int = 0

    # -- what happens --------------------------------------------------------------------------------------

    def adopt(self, model: str, idle: float = 1.0) -> None:
        """The model was up before the scheduler was created, unless that would conflict with a running one."""
        if model not in self.alive and not self.conflicts(model, sorted(self.alive)):
            self.alive.add(model)
            self.ready.add(model)
            self.perform(self.scheduler.adopted(model, self.now - 10.0, self.now - idle, self.now))

    def adopt_asleep(self, model: str, idle: float = 1.0) -> None:
        """The model was suspended before the scheduler was created."""
        if model not in self.alive | self.asleep and self.rules.models[model].can_suspend:
            self.asleep.add(model)
            self.perform(self.scheduler.adopted(model, self.now - 10.0, self.now - idle, self.now, suspended=True))

    def request(self, model: str, priority: int = 0, order: float = 0.0) -> Ticket:
        self.last_number += 1
        ticket = Ticket(self.last_number, model, self.now, priority, order=order)
        self.waiting[ticket.number] = ticket
        at_once = self.scheduler.can_grant(model)
        effects = self.scheduler.requested(ticket, self.now)
        assert (effects[-1:] == [Grant(ticket)]) is at_once, "can_grant and requested disagree"
        self.perform(effects)
        if ticket.number in self.waiting:
            assert ticket.number in self.admitted, "waits without having been admitted"
        return ticket

    def requests(self, *models: str) -> list[Ticket]:
        return [self.request(model) for model in models]

    def cancel(self, ticket: Ticket) -> None:
        self.waiting.pop(ticket.number, None)
        self.granted.pop(ticket.number, None)
        self.cut.pop(ticket.number, None)
        self.unused_since[ticket.model] = self.now
        self.perform(self.scheduler.cancelled(ticket, self.now))

    def end(self, ticket: Ticket) -> None:
        if not self.granted.pop(ticket.number, None):
            self.cut.pop(ticket.number)
        self.unused_since[ticket.model] = self.now
        self.perform(self.scheduler.served(ticket, self.now))

    def reader_stalled(self, ticket: Ticket, since: float) -> None:
        self.perform(self.scheduler.reader_stalled(ticket, since, self.now))

    def stopped(self, model: str, can_suspend: bool = True) -> None:
        """A stopping model has no process left, or is suspended now if that was wanted and succeeds."""
        self.stopping.remove(model)
        sleeps = can_suspend and model in self.suspending and model in self.ready | self.woken | self.asleep
        self.suspending.discard(model)
        self.woken.discard(model)
        self.asleep.discard(model)
        if model in self.alive:
            self.lose(model)
        for generation, load in list(self.loads.items()):
            load.awaited.discard(model)
            if load.swap.model == model and load.started:
                # The start was aborted; its result comes late, and not always before other news.
                self.late.append((generation, ModelUnloaded(model)))
                del self.loads[generation]
        if sleeps:
            self.asleep.add(model)
            self.perform(self.scheduler.suspended(model, self.now))
        else:
            self.perform(self.scheduler.stopped(model, self.now))
        self.begin_starts()

    def started(self, generation: int, error: LlamaswapError | None = None) -> None:
        load = self.loads.pop(generation)
        assert load.started
        if error is None:
            self.woken.discard(load.swap.model)
            model, seconds = load.swap.model, self.now - load.began
            self.ready.add(model)
            self.load_seconds[model] = seconds
            self.stay_end[model] = self.now + MINIMUM_STAY_LOADS * seconds
            self.unused_since[model] = self.now
        # A failed start may leave something behind: it takes up room until it has been stopped.
        self.perform(self.scheduler.swap_finished(generation, error, self.now))

    def load_all(self) -> None:
        """Everything that is stopping stops and everything that starts becomes ready, until all is quiet."""
        while self.stopping or self.startable():
            for model in sorted(self.stopping):
                self.stopped(model)
            for generation in self.startable():
                self.started(generation)

    def load_until_starting(self, model: str) -> None:
        """Everything in the way of a model's start stops; the start itself is left to be told how it ends."""
        while model not in self.alive or model in self.stopping:
            self.stopped(min(self.stopping))

    def startable(self) -> list[int]:
        return [generation for generation, load in self.loads.items() if load.started and self.up(load.swap.model)]

    def up(self, model: str) -> bool:
        return model in self.alive and model not in self.stopping

    def fail(self, model: str) -> None:
        [generation] = [each for each in self.startable() if self.loads[each].swap.model == model]
        self.started(generation, StartFailed(model, "upstream command exited prematurely", 7))

    def crash(self, model: str) -> None:
        assert model in self.ready
        self.lose(model)
        self.alive.add(model)  # its leftovers, until they are cleared up
        self.perform(self.scheduler.exited(model, self.now))

    def die_asleep(self, model: str) -> None:
        """A suspended process ends, or one that is being suspended."""
        if self.begun(model):
            # It was requested again meanwhile: it starts as a new process, and no `suspended` follows.
            self.asleep.discard(model)
            self.suspending.discard(model)
            self.perform(self.scheduler.exited(model, self.now))
        elif model in self.suspending and model in self.ready:
            self.perform(self.scheduler.exited(model, self.now))
            assert model not in self.suspending
        elif model in self.asleep:
            self.perform(self.scheduler.exited(model, self.now))
            assert model in self.stopping

    def deliver_late(self) -> None:
        late, self.late = self.late, []
        for generation, error in late:
            self.perform(self.scheduler.swap_finished(generation, error, self.now))

    def unload(self, *models: str) -> None:
        self.perform(self.scheduler.unload_requested(models, self.now))
        assert not [ticket for ticket in self.waiting.values() if ticket.model in models]
        assert not [model for model in models if self.up(model)]
        assert not set(models) & (self.suspending | self.asleep - self.stopping)

    def retune(self, rules: Rules, *stale: str) -> None:
        self.rules = rules
        old = {*stale, *(model for model in self.alive | self.asleep if model not in rules.models)}
        loading = [load for load in self.loads.values() if load.swap.model in old]
        self.outdated |= old & self.ready - self.stopping
        self.perform(self.scheduler.rules_changed(rules, stale, self.now))
        assert all(load.abandoned for load in loading), "an outdated load goes on"
        old.update(stale)
        assert not old & (self.suspending | self.asleep - self.stopping), "an outdated model stays suspended"
        assert not [ticket for ticket in self.waiting.values() if ticket.model not in rules.models]

    def pin(self, *models: str) -> None:
        self.retune(evolve(self.rules, pinned=frozenset(models)))

    def advance(self, seconds: float) -> None:
        """Let time pass; timers go off in their order."""
        until = self.now + seconds
        for _ in range(1000):
            timers: list[tuple[float, str, Callable[[], None]]] = [
                (at, model, self._idle_fires(model)) for model, at in self.idle.items()
            ]
            if self.queue_deadline is not None:
                timers.append((self.queue_deadline, "", self._queue_timer_fires))
            due = [timer for timer in timers if timer[0] <= until]
            if not due:
                self.now = until
                return
            at, _, fire = min(due, key=lambda timer: timer[:2])
            self.now = max(self.now, at)
            fire()
        raise AssertionError("the timers go off without end")

    def _idle_fires(self, model: str) -> Callable[[], None]:
        def fire() -> None:
            del self.idle[model]
            self.perform(self.scheduler.idle_expired(model, self.now))

        return fire

    def _queue_timer_fires(self) -> None:
        self.queue_deadline = None
        self.perform(self.scheduler.queue_timer_expired(self.now))

    # -- processes -----------------------------------------------------------------------------------------

    def lose(self, model: str) -> None:
        self.alive.discard(model)
        self.outdated.discard(model)
        self.ready.discard(model)
        for number, ticket in list(self.granted.items()):
            if ticket.model == model:
                self.cut[number] = self.granted.pop(number)

    def begin_starts(self) -> None:
        """A supervisor starts a model once all it waits for has gone, its own former process included."""
        for generation, load in list(self.loads.items()):
            if load.awaited or load.started:
                continue
            if load.abandoned:
                del self.loads[generation]
            elif load.swap.model not in self.stopping:
                model = load.swap.model
                rivals = [other for other in self.alive if frozenset((model, other)) in self.conflicts.pairs]
                assert not rivals, f"{model} starts while {rivals} are up"
                assert model not in self.alive, f"a second process of {model}"
                self.alive.add(model)
                if model in self.asleep:
                    self.asleep.discard(model)
                    self.woken.add(model)
                    self.wakes[model] = self.wakes.get(model, 0) + 1
                else:
                    self.spawns[model] = self.spawns.get(model, 0) + 1
                load.started = True

    def queued(self) -> list[Ticket]:
        return [entry.ticket for entry in self.scheduler.queue]

    def lingering(self) -> set[str]:
        """The unused models that may be kept for a moment: they were loaded, or used, only just now."""
        return {
            model
            for model in self.ready
            if self.now < self.unused_since.get(model, self.now) + IDLE_LINGER_LOADS * self.load_seconds.get(model, 0.0)
        }

    def serving(self, model: str) -> list[int]:
        return [number for number, ticket in self.granted.items() if ticket.model == model]

    # -- effects -------------------------------------------------------------------------------------------

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Admit):
                assert effect.ticket.number in self.waiting
                self.admitted.add(effect.ticket.number)
            elif isinstance(effect, Grant):
                self.check_grant(effect.ticket)
            elif isinstance(effect, Refuse):
                assert self.waiting.pop(effect.ticket.number, None), "refused, but was not waiting"
                self.positions.pop(effect.ticket.number, None)
                self.refused[effect.ticket.number] = effect.error
                if isinstance(effect.error, QueueFull):
                    rivals = [one for one in self.waiting.values() if one.model == effect.ticket.model]
                    # More than the bound may wait already: a reload can lower it, or take an explicit limit away.
                    assert len(rivals) >= self.rules.fifo.max_queue, "the queue is not full"
            elif isinstance(effect, QueuePosition):
                assert effect.ticket.number in self.waiting
                self.positions[effect.ticket.number] = effect.position
                self.placed += 1
            elif isinstance(effect, StartSwap):
                self.check_swap(effect)
            elif isinstance(effect, AbandonSwap):
                load = self.loads.get(effect.generation)
                if load is not None:
                    load.abandoned = True
            elif isinstance(effect, Stop):
                self.check_stop(effect)
            elif isinstance(effect, Suspend):
                self.check_suspend(effect)
            elif isinstance(effect, Interrupt):
                assert effect.ticket.number in self.granted, "interrupted, but not served"
                rivals = [one for one in self.waiting.values() if one.model == effect.waiting]
                assert rivals, "interrupted, but no other request waits"
                assert effect.seconds >= self.rules.fifo.stalled_reader > 0, "interrupted too early"
                self.interrupted.append((effect.ticket.number, effect.seconds, effect.waiting))
            elif isinstance(effect, SetIdleTimer) and effect.seconds is not None:
                assert effect.model in self.ready | self.asleep and not self.serving(effect.model)
                self.idle[effect.model] = self.now + effect.seconds
            elif isinstance(effect, SetIdleTimer):
                self.idle.pop(effect.model, None)
            elif isinstance(effect, SetQueueTimer):
                self.queue_deadline = None if effect.seconds is None else self.now + effect.seconds
        self.begin_starts()

    def check_grant(self, ticket: Ticket) -> None:
        assert self.waiting.pop(ticket.number, None), "granted, but was not waiting"
        self.positions.pop(ticket.number, None)
        assert ticket.model in self.ready and self.up(ticket.model), f"granted {ticket.model}, which is not ready"
        assert ticket.model not in self.outdated, "granted on an outdated process"
        assert ticket.model not in self.idle, "granted with the idle timer running"
        most = self.rules.fifo.max_concurrent
        assert not most or len(self.granted) + len(self.cut) < most, f"{ticket} is one too many"
        for other in self.waiting.values():
            impatient = other.since + self.rules.fairness_window_of(other)
            needs_a_place_only = most and other.model in self.ready - self.outdated - self.scheduler.closed_models
            assert not (needs_a_place_only and self.up(other.model) and impatient < ticket.since), (
                f"{ticket} takes the place of {other}, which has waited long enough"
            )
            rivals = frozenset((other.model, ticket.model)) in self.conflicts.pairs
            stays = self.now <= self.stay_end.get(ticket.model, 0.0)
            assert stays or not (rivals and impatient < ticket.since), (
                f"{ticket} overtakes {other}, which has waited long enough"
            )
        self.granted[ticket.number] = ticket
        self.served.append(ticket.model)

    def check_swap(self, swap: StartSwap) -> None:
        assert swap.model not in swap.evict
        for victim in swap.evict:
            assert not self.serving(victim) or victim in self.stopping, f"busy {victim} evicted for {swap.model}"
            assert victim not in self.rules.pinned or not self.up(victim), f"pinned {victim} evicted"
            # A suspended model that stops and was requested again meanwhile uses memory until it has stopped.
            rests = victim in self.asleep and victim not in self.stopping and not self.begun(victim)
            assert not rests, f"{victim}, which takes up no room, evicted"
            if self.up(victim) and victim in self.ready and self.can_suspend(victim):
                assert victim in swap.suspend, f"{victim} is stopped, but can be suspended"
        assert all(victim in self.stopping or self.can_suspend(victim) for victim in swap.suspend)
        assert not any(load.swap.model == swap.model and not load.abandoned for load in self.loads.values()), (
            f"two loads of {swap.model} at once"
        )
        self.swaps.append(swap)
        self.loads[swap.generation] = Load(swap, set(swap.evict), self.now)
        self.suspending = self.suspending - (set(swap.evict) - swap.suspend) | swap.suspend - self.stopping
        self.stopping.update(swap.evict)

    def begun(self, model: str) -> bool:
        """Whether a load of it is under way, or was until just now."""
        return any(load.swap.model == model for load in self.loads.values())

    def can_suspend(self, model: str) -> bool:
        return model in self.rules.models and self.rules.models[model].can_suspend and model not in self.outdated

    def check_suspend(self, sleep: Suspend) -> None:
        self.suspensions.append(sleep)
        for model in sleep.models:
            assert model not in self.idle, f"{model} is suspended with its idle timer running"
            assert model not in self.rules.pinned
            if model in self.stopping:
                continue  # it stops as before: the process to suspend was its next one, which never began
            assert (self.up(model) or self.begun(model)) and self.can_suspend(model) and not self.serving(model)
            self.stopping.add(model)
            self.suspending.add(model)

    def check_stop(self, stop: Stop) -> None:
        self.stops.append(stop)
        for model in stop.models:
            if stop.why == "idle":
                assert not self.serving(model), f"{model} stopped as idle while it serves"
                assert model not in self.rules.pinned
                assert model in self.asleep or not self.can_suspend(model), f"{model} stopped, but can be suspended"
            if stop.why == "asleep":
                assert model in self.asleep and model not in self.rules.pinned
            if stop.why == "reload":
                assert not self.serving(model), f"{model} restarted while it serves"
            assert model not in self.idle, f"{model} stops with its idle timer running"
            self.stopping.add(model)
            self.suspending.discard(model)

    # -- invariants ----------------------------------------------------------------------------------------

    def check(self) -> None:
        """What holds between any two events."""
        for pair in self.conflicts.pairs:
            assert not pair <= self.alive, f"{sorted(pair)} are up together"
        settled = self.asleep - self.stopping
        for model in settled:
            phase = self.scheduler.phase(model)
            loading = any(load.swap.model == model and not load.abandoned for load in self.loads.values())
            assert phase is (Phase.LOADING if loading else Phase.SUSPENDED), (
                f"{model} is suspended and its phase is {phase}"
            )
        if self.rules.fifo.max_asleep:
            settled -= {load.swap.model for load in self.loads.values()}
            kept = len(settled & self.rules.pinned)
            assert len(settled) <= max(self.rules.fifo.max_asleep, kept), f"{sorted(settled)} are suspended"
        if self.waiting:
            assert not [one for one in self.waiting.values() if self.scheduler.can_grant(one.model)], (
                "waits for nothing"
            )
            moving = self.stopping or self.granted or self.cut or self.loads or self.late or self.lingering()
            assert moving, f"{sorted(self.waiting)} wait and nothing moves"
        for model in set("abcde"):
            books = [*self.waiting.values(), *self.granted.values(), *self.cut.values()]
            held = sum(ticket.model == model for ticket in books)
            state = self.scheduler.models.get(model, ModelState(model))
            assert state.unfinished == held, f"{model}: {state.held} held, not {held}"
            assert state.waiting == sum(ticket.model == model for ticket in self.waiting.values())
            assert len(state.serving) in (0, len(self.serving(model)))
            limit = self.rules.models[model].limit if model in self.rules.models else 0
            assert not limit or held <= limit
        queued = [ticket.number for ticket in self.queued()]
        assert [self.positions[number] for number in queued] == list(range(1, len(queued) + 1))


def fifo(**settings: float) -> FifoSettings:
    """Settings without bounds on waits and on stalled readers, unless given."""
    return FifoSettings(**{"max_wait": 0.0, "stalled_reader": 0.0, **settings})


def retuned(rules: Rules, **settings: float) -> Rules:
    """These rules with other settings."""
    return evolve(rules, fifo=evolve(rules.fifo, **settings))


def world(*conflicts: str, models: str = "abcde", fairness_window: float = 10.0, **rules: ModelRules) -> World:
    """A world of one-letter models, all quick and unlimited unless told otherwise."""
    relation = Conflicts(pairs(*conflicts))
    known = {model: rules.get(model, ModelRules()) for model in models}
    return World(Rules(known, relation, fifo(patience=fairness_window)), relation)


def swapping(models: str = "abcde", fairness_window: float = 10.0, **rules: ModelRules) -> World:
    """A world in which only one model may be up at a time."""
    conflicts = [one + other for one in models for other in models if one < other]
    return world(*conflicts, models=models, fairness_window=fairness_window, **rules)
