"""The scheduler and a world that keeps its own account, driven by Hypothesis."""

from __future__ import annotations

from attrs import evolve
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config.schema.routing import FifoSettings
from llamaswap.errors import ShuttingDown, StartFailed
from llamaswap.scheduling.state import ModelRules, Phase, Rules
from tests.scheduling.world import Conflicts, World

MODELS = "abcde"
every_pair = [frozenset((one, other)) for one in MODELS for other in MODELS if one < other]
models = st.sampled_from(MODELS)
model_rules = st.builds(
    ModelRules,
    st.sampled_from((0, 0, 0, 1, 3)),
    st.sampled_from((0.0, 0.0, 3.0)),
    st.booleans(),
    st.sampled_from((0.0, 0.0, 4.0)),
)
picks = st.integers(0, 10_000)


class SchedulerMachine(RuleBasedStateMachine):
    world: World

    @initialize(
        conflicts=st.sets(st.sampled_from(every_pair), min_size=2),
        known=st.fixed_dictionaries(dict.fromkeys(MODELS, model_rules)),
        fairness_window=st.sampled_from((0.0, 2.0, 2.0, 10.0)),
        max_queue=st.sampled_from((2, 1000)),
        max_wait=st.sampled_from((0.0, 0.0, 8.0)),
        max_concurrent=st.sampled_from((0, 0, 1, 2)),
        max_asleep=st.sampled_from((0, 1, 2)),
        there=st.lists(models, max_size=2),
        asleep=st.lists(models, max_size=2),
    )
    def begin(self, conflicts, known, fairness_window, max_queue, max_wait, max_concurrent, max_asleep, there, asleep):
        relation = Conflicts(frozenset(conflicts))
        settings = FifoSettings(
            patience=fairness_window,
            max_queue=max_queue,
            max_wait=max_wait,
            max_concurrent=max_concurrent,
            max_asleep=max_asleep,
            stalled_reader=5.0,
        )
        rules = Rules(known, relation, settings)
        self.world = World(rules, relation)
        for model in there:
            self.world.adopt(model)
        for model in asleep:
            self.world.adopt_asleep(model)

    @rule(model=models, priority=st.sampled_from((0, 0, 0, 5, -3)), order=st.sampled_from((0.0, 0.0, 70.0, 2e6)))
    def a_request_comes(self, model, priority, order):
        self.world.request(model, priority, order)

    @precondition(lambda self: self.world.granted or self.world.cut)
    @rule(pick=picks)
    def a_request_ends(self, pick):
        tickets = [*self.world.granted.values(), *self.world.cut.values()]
        self.world.end(tickets[pick % len(tickets)])

    @precondition(lambda self: self.world.waiting)
    @rule(pick=picks)
    def a_waiting_client_leaves(self, pick):
        tickets = list(self.world.waiting.values())
        self.world.cancel(tickets[pick % len(tickets)])

    @precondition(lambda self: self.world.granted)
    @rule(pick=picks)
    def a_served_client_leaves(self, pick):
        tickets = list(self.world.granted.values())
        self.world.cancel(tickets[pick % len(tickets)])

    @precondition(lambda self: self.world.granted)
    @rule(pick=picks, moves=st.booleans())
    def a_served_client_stalls(self, pick, moves):
        tickets = list(self.world.granted.values())
        ticket = tickets[pick % len(tickets)]
        self.world.reader_stalled(ticket, self.world.now)
        if moves:
            self.world.scheduler.reader_moved(ticket)

    @precondition(lambda self: self.world.stopping)
    @rule(pick=picks, can_suspend=st.sampled_from((True, True, False)))
    def a_stop_ends(self, pick, can_suspend):
        stopping = sorted(self.world.stopping)
        self.world.stopped(stopping[pick % len(stopping)], can_suspend)

    @precondition(lambda self: self.world.startable())
    @rule(pick=picks)
    def a_start_succeeds(self, pick):
        startable = self.world.startable()
        self.world.started(startable[pick % len(startable)])

    @precondition(lambda self: self.world.late)
    @rule()
    def late_results_arrive(self):
        self.world.deliver_late()

    @rule(model=models)
    def another_request_comes(self, model):
        self.world.request(model)

    @precondition(lambda self: self.world.stopping or self.world.startable())
    @rule()
    def everything_under_way_ends_well(self):
        self.world.load_all()

    @rule(data=st.data(), what=st.sampled_from(("fail", "crash", "unload", "pin", "configure")))
    def something_rare_happens(self, data, what):
        """One rule for all of these, so that most steps of a run are not accidents."""
        getattr(self, what)(data)

    def fail(self, data):
        if startable := self.world.startable():
            generation = data.draw(st.sampled_from(startable))
            self.world.started(generation, StartFailed(self.world.loads[generation].swap.model, "exited", 1))

    def crash(self, data):
        if ready := sorted(self.world.ready - self.world.stopping):
            self.world.crash(data.draw(st.sampled_from(ready)))
        if sleepers := sorted(self.world.asleep | self.world.suspending):
            self.world.die_asleep(data.draw(st.sampled_from(sleepers)))

    def unload(self, data):
        self.world.unload(*sorted(data.draw(st.sets(models, min_size=1, max_size=2))))

    def pin(self, data):
        self.world.pin(*sorted(data.draw(st.sets(models, max_size=2))))

    def configure(self, data):
        stale, removed = data.draw(st.sets(models, max_size=2)), data.draw(st.sets(models, max_size=1))
        world = self.world
        known = data.draw(model_rules)
        if any(known.limit and state.unfinished > known.limit for state in world.scheduler.models.values()):
            known = evolve(known, limit=0)
        rules = {model: known for model in MODELS if model not in removed}
        world.retune(evolve(world.rules, models=rules, pinned=world.rules.pinned - removed), *sorted(stale - removed))

    @rule(seconds=st.sampled_from((0.5, 2.0, 7.0, 15.0)))
    def time_passes(self, seconds):
        self.world.advance(seconds)

    @invariant()
    def nothing_is_wrong(self):
        self.world.check()

    def teardown(self):
        """Whatever happened before: once everything that can end has ended, no request waits."""
        if not hasattr(self, "world"):
            return
        world = self.world
        world.pin()
        for _ in range(1000):
            if world.granted or world.cut:
                world.end(next(iter([*world.granted.values(), *world.cut.values()])))
            elif world.stopping:
                world.stopped(min(world.stopping))
            elif world.startable():
                world.started(world.startable()[0])
            elif world.late:
                world.deliver_late()
            elif world.lingering():
                world.advance(1.0)
            else:
                break
            world.check()
        assert not world.waiting, f"{list(world.waiting.values())} still wait"
        assert not world.scheduler.loads
        assert not world.outdated
        waiting = world.requests("a", "b") if {"a", "b"} <= world.rules.models.keys() else []
        world.perform(world.scheduler.shutdown(ShuttingDown()))
        world.check()
        assert not world.waiting
        late = world.request("c")
        assert isinstance(world.refused[late.number], ShuttingDown)
        for ticket in waiting:
            if ticket.number in world.granted or ticket.number in world.cut:
                world.end(ticket)
        for model in sorted(world.stopping):
            world.stopped(model)
        assert not world.alive and not world.asleep
        assert all(world.scheduler.phase(model) is Phase.STOPPED for model in MODELS)
        assert world.queue_deadline is None


class SchedulerMachineTests(SynchronousTestCase):
    def test_scheduler_keeps_its_rules_in_any_order_of_events(self) -> None:
        run_state_machine_as_test(
            SchedulerMachine,
            settings=settings(max_examples=400, stateful_step_count=50, suppress_health_check=list(HealthCheck)),
        )
