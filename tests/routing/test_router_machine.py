"""The router with fake servers, driven by Hypothesis: requests, operators, reloads, shutdown.

The scheduler's own machine shows that decisions are right, this one that each decision reaches the waiting request.
Every request and command is recorded here, and must have ended once when nothing more happens.
"""

from __future__ import annotations

from attrs import Factory, define, evolve
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import Config, FifoSettings, Model, Routing
from llamaswap.config.diff import diff
from llamaswap.config.schema import HookSettings, OnStartup
from llamaswap.config.schema.model import SuspendSettings
from llamaswap.config.schema.routing import QueueSettings, SchedulerSettings
from llamaswap.errors import RequestError, ShuttingDown, StartFailed, UnknownModel
from llamaswap.events import EventBus, StateChanged, SwapBegan, SwapEnded
from llamaswap.routing.leases import Lease, PendingLease
from llamaswap.routing.router import Router
from tests.doubles import FakeFleet, FakeSupervisor, NoMemoryReclaim

NAMES = "abcd"
names = st.sampled_from(NAMES)
picks = st.integers(0, 10_000)
WAKE = ("POST /sleep", "POST /wake")


@define(eq=False)
class Asked:
    """A request and what became of it; `lease` while it is served."""

    acquisition: PendingLease | None
    lease: Lease | None = None
    error: type[BaseException] | None = None
    answers: int = 0

    def told(self, result: Lease | Failure) -> None:
        self.answers += 1
        if isinstance(result, Lease):
            self.lease = result
        else:
            result.trap(RequestError, CancelledError)
            self.error = type(result.value)


@define(eq=False)
class Done:
    """Something an operator asked for."""

    what: str
    ended: int = 0

    def told(self, result: object) -> None:
        self.ended += 1
        if isinstance(result, Failure):
            result.trap(RequestError, CancelledError)


@define(eq=False)
class EveryFleet(FakeFleet):
    """Remembers also the servers of models that were taken out and came back."""

    every: list[FakeSupervisor] = Factory(list)
    load: float = 0.5
    exit: float = 0.3

    def __call__(self, model, listener):
        made = super().__call__(model, listener)
        made.load, made.exit = self.load, self.exit
        self.every.append(made)
        return made


class RouterMachine(RuleBasedStateMachine):
    router: Router

    @initialize(
        ttls=st.lists(st.sampled_from((0, 0, 3)), min_size=4, max_size=4),
        sleepers=st.sets(names, max_size=2),
        stubborn=st.sets(names, max_size=1),
        fifo=st.builds(
            FifoSettings,
            patience=st.sampled_from((0.0, 2.0, 10.0)),
            max_queue=st.sampled_from((2, 1000)),
            max_wait=st.sampled_from((0.0, 8.0)),
            backoff=st.sampled_from((0.0, 1.0)),
            max_asleep=st.sampled_from((0, 1)),
        ),
        load=st.sampled_from((0.0, 0.5)),
    )
    def begin(self, ttls, sleepers, stubborn, fifo, load):
        self.clock, self.faults, self.failures = Clock(), [], []
        self.fleet = EveryFleet(self.clock, defaults={name: {"stubborn": True} for name in stubborn}, load=load)
        sleep = SuspendSettings(sleep=WAKE[:1], wake=WAKE[1:])
        models = {
            name: Model(
                name,
                cmd=f"serve {name}",
                ttl=ttl,
                unload_timeout=1.0,
                sleep=sleep if name in sleepers else SuspendSettings(),
            )
            for name, ttl in zip(NAMES, ttls, strict=True)
        }
        self.models = models
        routing = Routing(scheduler=QueueSettings("fifo", SchedulerSettings(fifo)))
        self.bus = EventBus(self.faults.append)
        self.swaps = {}
        self.bus.subscribe(SwapBegan, lambda news: self.swaps.update({news.swap: "began"}))
        self.bus.subscribe(SwapEnded, lambda news: self.swaps.update({news.swap: "ended"}))
        self.words = {}  # the stop of a suspended server changes no state: it uses no memory
        self.bus.subscribe(StateChanged, lambda news: self.words.update({news.model: news.new}))
        globalLogPublisher.addObserver(self.heard)
        self.router = Router(
            Config(models=dict(models), routing=routing), self.fleet, self.clock, self.bus, NoMemoryReclaim()
        )
        self.asked, self.done, self.closed = [], [], False

    def heard(self, event):
        if event.get("log_failure") is not None:
            self.failures.append(event["log_failure"].getTraceback())

    # -- requests --

    @rule(model=names, quick=st.booleans())
    def a_request_comes(self, model, quick):
        lease = self.router.lease(model) if quick else None
        asked = Asked(None, lease, None, 1) if lease is not None else Asked(self.router.request(model))
        if asked.acquisition is not None:
            asked.acquisition.granted.addBoth(asked.told)
        self.asked.append(asked)

    def waiting(self):
        return [asked for asked in self.asked if not asked.answers]

    def served(self):
        return [asked for asked in self.asked if asked.lease is not None]

    @precondition(lambda self: self.waiting())
    @rule(pick=picks)
    def a_newer_one_takes_its_place(self, pick):
        older = self.waiting()[pick % len(self.waiting())]
        newer = self.router.supersede(older.acquisition)
        assert newer is not None and older.answers == 1, "it waits, and cannot be succeeded"
        asked = Asked(newer)
        newer.granted.addBoth(asked.told)
        self.asked.append(asked)

    @precondition(lambda self: self.waiting())
    @rule(pick=picks)
    def a_waiting_client_leaves(self, pick):
        asked = self.waiting()[pick % len(self.waiting())]
        asked.acquisition.cancel()
        assert asked.answers == 1

    @precondition(lambda self: self.served())
    @rule(pick=picks, twice=st.booleans())
    def a_request_ends(self, pick, twice):
        asked = self.served()[pick % len(self.served())]
        lease, asked.lease = asked.lease, None
        lease.release()
        if twice:
            lease.release()

    # -- operators --

    def note(self, what: str, deferred: Deferred[None]) -> None:
        done = Done(what)
        deferred.addBoth(done.told)
        self.done.append(done)

    @rule(models=st.sets(names, max_size=2))
    def operator_unloads(self, models):
        self.note(f"unload {sorted(models)}", self.router.unload(sorted(models) or None))

    @rule(model=names)
    def operator_loads(self, model):
        self.note(f"load {model}", self.router.load(model))

    @rule(model=names)
    def operator_restarts(self, model):
        """In the very moment in which it is gone."""
        self.note(f"restart {model}", self.router.unload([model]).addCallback(lambda _: self.router.load(model)))

    @rule(models=st.lists(names, max_size=3))
    def operator_preloads(self, models):
        self.note(f"preload {models}", self.router.preload(models))

    @rule(model=names, keep=st.booleans())
    def operator_pins(self, model, keep):
        try:
            (self.router.pin if keep else self.router.unpin)(model)
        except UnknownModel:
            assert model not in self.router.config.models

    @rule(removed=st.sets(names, max_size=2), changed=st.sets(names, max_size=2), preload=st.lists(names, max_size=2))
    def a_new_configuration_comes(self, removed, changed, preload):
        for name in changed:
            self.models[name] = evolve(self.models[name], env=(*self.models[name].env, "X=1")[-5:])
            self.models[name] = evolve(self.models[name], env=(f"N={len(self.asked)}.{self.clock.seconds()}",))
        models = {name: model for name, model in self.models.items() if name not in removed}
        hooks = HookSettings(on_startup=OnStartup(preload=tuple(name for name in preload if name in models)))
        old = self.router.config
        new = evolve(old, models=models, hooks=hooks)
        self.router.apply(new, diff(old, new))

    # -- servers --

    def in_state(self, *states):
        return [name for name, one in sorted(self.fleet.made.items()) if one.state in states]

    @precondition(lambda self: self.in_state("ready", "starting"))
    @rule(pick=picks)
    def a_server_crashes(self, pick):
        there = self.in_state("ready", "starting")
        server = self.fleet[there[pick % len(there)]]
        server.crash()
        server.failure = None

    @precondition(lambda self: self.in_state("ready"))
    @rule(pick=picks)
    def a_server_hangs(self, pick):
        there = self.in_state("ready")
        self.router.mark_hung(there[pick % len(there)], "it hung")

    @rule(model=names, broken=st.booleans())
    def its_starts_fail_from_now_on(self, model, broken):
        if model in self.fleet.made:
            self.fleet[model].failure = StartFailed(model, "exited", 1) if broken else None

    # -- time --

    @rule(seconds=st.sampled_from((0.0, 0.0, 0.2, 0.5, 3.0, 15.0)))
    def time_passes(self, seconds):
        self.clock.pump([0.0] * 3 + [seconds])

    @rule()
    def everything_settles(self):
        self.clock.pump([0.0] * 10 + [0.3] * 5)

    @invariant()
    def nothing_is_wrong(self):
        if not hasattr(self, "router"):
            return
        assert not self.faults and not self.failures, (self.faults, self.failures)
        up = [name for name, word in self.words.items() if word != "stopped"]
        assert len(up) <= 1, f"{up} are up together"
        for asked in self.asked:
            assert asked.answers <= 1
            if asked.lease is not None and not asked.lease.lost:
                assert self.fleet[asked.lease.ticket.model].state in ("ready", "stopping"), "a lease on nothing"
        vitals = self.router.health()
        assert vitals.waiting >= len(self.waiting())
        assert vitals.serving == len(self.served()), (vitals, len(self.served()))
        for name in NAMES:
            self.router.forecast(name)
        self.router.queue(), self.router.failing(), self.router.running(), self.router.failures()

    def teardown(self):
        """Whatever happened before: every request is answered, then everything ends, even during a load."""
        if not hasattr(self, "router"):
            return
        try:
            self.end()
        finally:
            globalLogPublisher.removeObserver(self.heard)

    def end(self):
        for name in NAMES:
            self.router.unpin(name)
        for server in self.fleet.every:
            server.failure = None
        for _ in range(300):
            for asked in self.served():
                lease, asked.lease = asked.lease, None
                lease.release()
            self.clock.pump([0.0] * 3 + [0.4])
            if not self.waiting() and not self.served() and all(done.ended for done in self.done):
                break
        assert not self.waiting(), f"{[asked.acquisition for asked in self.waiting()]} wait for ever"
        assert all(done.ended == 1 for done in self.done), [done for done in self.done if done.ended != 1]
        self.clock.pump([0.0] * 3 + [0.4] * 20)
        vitals = self.router.health()
        assert (vitals.waiting, vitals.serving, vitals.loading) == (0, 0, 0), vitals
        assert self.router.settled and not self.router.queue()
        assert set(self.swaps.values()) <= {"ended"}, self.swaps
        supervised = sorted(one.model.id for one in self.fleet.every if not one.closed)
        assert supervised == sorted(self.router.config.models)
        last = [Asked(self.router.request(name)) for name in NAMES for _ in range(2)]
        for asked in last:
            asked.acquisition.granted.addBoth(asked.told)
        ended = []
        self.router.shutdown(10.0).addBoth(ended.append)
        self.clock.pump([0.0] * 3 + [0.4] * 30)
        assert ended == [None], ended
        assert all(asked.answers == 1 for asked in last)
        late = self.router.request(sorted(self.router.config.models)[0]) if self.router.config.models else None
        assert late is None or isinstance(late.refusal, ShuttingDown)
        assert all(one.state == "stopped" and one.asleep_since is None for one in self.fleet.every)
        assert all(one.closed for one in self.fleet.every), "a server could still be started"
        assert not self.faults and not self.failures, (self.faults, self.failures)
        assert self.clock.getDelayedCalls() == []


class RouterMachineTests(SynchronousTestCase):
    def test_router_answers_every_request_once_in_any_order_of_events(self) -> None:
        run(
            RouterMachine,
            settings=settings(max_examples=150, stateful_step_count=40, suppress_health_check=list(HealthCheck)),
        )
