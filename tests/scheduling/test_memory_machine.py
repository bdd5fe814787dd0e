"""Eviction by memory in any order of events: a world with its own account of who uses how much of which device."""

from __future__ import annotations

from itertools import permutations

from attrs import Factory, define, evolve
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

from llamaswap.errors import DoesNotFit, MemoryInUse, NotReady, StartFailed
from llamaswap.scheduling.effects import StartSwap
from llamaswap.scheduling.memory import Device, GpuShare, Ledger, MemoryNeed
from llamaswap.scheduling.planner import forecast
from llamaswap.scheduling.state import FOREIGN_MEMORY_WAIT, ModelRules, Rules
from tests.scheduling.world import Conflicts, World, fifo, pairs

MODELS = "abcde"


@define(eq=False)
class MemoryWorld(World):
    """A world whose models use memory. `needs` are the sizes per GPU of each model and its RAM, `unknown` the models
    whose need nothing but a run can tell. `total` is what each device has, `foreign` what other programs use of it."""

    needs: dict[str, tuple[tuple[int, ...], int]] = Factory(dict)
    total: dict[str, int] = Factory(dict)
    unknown: set[str] = Factory(set)
    foreign: dict[str, int] = Factory(dict)
    hold: float = 0.0
    taken: dict[str, dict[str, int]] = Factory(dict)

    def send_ledger(self) -> None:
        devices = {name: Device(size, 0, self.foreign.get(name, 0)) for name, size in self.total.items()}
        needs = {
            model: MemoryNeed(ram, (tuple(GpuShare(size) for size in gpus),), "learned")
            for model, (gpus, ram) in self.needs.items()
            if model not in self.unknown
        }
        used = {model: self.taken[model] for model in self.ready if model not in self.unknown}
        self.perform(self.scheduler.memory_changed(Ledger(devices, needs, used, {}, self.hold), self.now))

    def change_foreign(self, device: str, size: int) -> None:
        self.foreign[device] = size
        self.send_ledger()

    def measure(self, model: str) -> None:
        """A ready model is measured, so its need is known from then on."""
        self.unknown.discard(model)
        self.send_ledger()

    def room(self, without: set[str]) -> dict[str, int]:
        """What is left of each device beside all models that are up, but those."""
        left = dict(self.total)
        for model, sizes in self.taken.items():
            if model not in without:
                for device, size in sizes.items():
                    left[device] -= size
        return left

    def fits(self, model: str, room: dict[str, int]) -> bool:
        gpus, ram = self.needs[model]
        names = [name for name in room if name != "ram"]
        return room["ram"] >= ram and any(
            all(room[name] >= size for name, size in zip(chosen, gpus, strict=True))
            for chosen in permutations(names, len(gpus))
        )

    def check_swap(self, swap: StartSwap) -> None:
        running = {model for model in self.alive if self.up(model)}
        starting = {load.swap.model for load in self.loads.values() if not load.abandoned and not load.started}
        if swap.model not in self.unknown:
            usable = {name: size - self.foreign.get(name, 0) for name, size in self.total.items()}
            planned = {name: self.planned[name] for name in starting if name in self.planned}
            for victim in swap.evict:
                conflicts = frozenset((victim, swap.model)) in self.conflicts.pairs
                if victim in self.ready and self.up(victim) and victim not in self.unknown and not conflicts:
                    others = [
                        sizes
                        for name, sizes in {**self.taken, **planned}.items()
                        if name != swap.model and (name not in swap.evict or name == victim)
                    ]
                    left = dict(usable)
                    for sizes in others:
                        for device, size in sizes.items():
                            left[device] -= size
                    unknown_beside = (running | starting) & self.unknown - set(swap.evict)
                    assert unknown_beside or not self.fits(swap.model, left), f"{victim} is evicted for nothing"
        for victim in swap.evict:
            conflicts = frozenset((victim, swap.model)) in self.conflicts.pairs
            idle = victim in self.ready and self.up(victim) and not conflicts
            if idle and self.now < self.unused_since[victim] + self.hold:
                window = self.rules.fifo.patience
                assert swap.waited >= window, f"{victim} is evicted, but was used just now"
        sizes = dict(zip(swap.gpus, sorted(self.needs[swap.model][0], reverse=True), strict=False))
        self.planned[swap.model] = {**sizes, "ram": self.needs[swap.model][1]}
        super().check_swap(swap)

    planned: dict[str, dict[str, int]] = Factory(dict)

    def begin_starts(self) -> None:
        before = set(self.alive)
        super().begin_starts()
        for model in self.alive - before:
            if model in self.taken:
                continue
            gpus, ram = self.needs[model]
            if model in self.unknown or (self.planned[model].keys() == {"ram"} and gpus):
                others = before - self.rules.pinned
                assert not others, f"{model}, whose need is unknown, starts beside {sorted(others)}"
                self.taken[model] = {}
                room = self.room(set())
                chosen = next(
                    (
                        order
                        for order in permutations([name for name in room if name != "ram"], len(gpus))
                        if all(room[name] >= size for name, size in zip(order, gpus, strict=True))
                    ),
                    (),
                )
                self.taken[model] = {**dict(zip(chosen, gpus, strict=False)), "ram": ram}
            else:
                self.taken[model] = self.planned[model]
                beside = before & self.unknown - self.rules.pinned
                assert not beside, f"{model} starts beside {beside}, whose use is unknown"
        if not self.alive & self.unknown:
            over = {device: left for device, left in self.room(set()).items() if left < 0}
            assert not over, f"{sorted(self.alive)} use more than there is: {over}"

    def lose(self, model: str) -> None:
        super().lose(model)
        self.taken.pop(model, None)

    def lingering(self) -> set[str]:
        held = {model for model in self.ready if self.now < self.unused_since.get(model, self.now) + self.hold}
        blocked = {model for model in self.rules.models if any(self.foreign.values())}
        return super().lingering() | held | blocked


def memory_world(
    gpus: str = "", ram: int = 100, needs: dict[str, tuple[tuple[int, ...], int]] | None = None
) -> MemoryWorld:
    """A world with GPUs of these one-digit sizes (tens); models need nothing unless told otherwise."""
    relation = Conflicts(frozenset())
    rules = Rules({model: ModelRules() for model in MODELS}, relation, fifo(patience=10.0), by_memory=True)
    total = {f"gpu{number}": int(size) * 10 for number, size in enumerate(gpus)}
    here = MemoryWorld(
        rules, relation, needs=dict.fromkeys(MODELS, ((), 0)) | (needs or {}), total={"ram": ram, **total}
    )
    here.send_ledger()
    return here


def used_once(here: MemoryWorld, *models: str) -> MemoryWorld:
    for model in models:
        ticket = here.request(model)
        here.load_all()
        here.end(ticket)
    here.swaps.clear()
    return here


def ram(size: int) -> tuple[tuple[int, ...], int]:
    return (), size


def gpu(*sizes: int) -> tuple[tuple[int, ...], int]:
    return sizes, 0


class MemoryDecisionTests(SynchronousTestCase):
    def test_models_that_fit_together_stay_loaded(self) -> None:
        here = used_once(memory_world(needs={"a": ram(40), "b": ram(60)}), "a", "b")
        self.assertEqual(here.ready, {"a", "b"})

    def test_only_what_has_to_go_leaves_and_the_log_says_why(self) -> None:
        here = used_once(memory_world(needs={"a": ram(40), "b": ram(50), "c": ram(50)}), "a", "b")
        here.advance(30.0)
        here.request("c")
        [swap] = here.swaps
        self.assertEqual(swap.evict, ("b",))
        self.assertIn("memory: it needs 50 MiB of RAM (learned); it replaces b (50 MiB, idle for 30 s", swap.reason)

    def test_model_that_is_used_again_and_again_is_not_the_one_to_leave(self) -> None:
        here = used_once(memory_world(needs={"a": ram(50), "b": ram(50), "c": ram(50)}), "a", "b")
        here.advance(30.0)
        here.end(here.request("a"))
        here.request("c")
        self.assertEqual(here.swaps[0].evict, ("b",))

    def test_request_waits_for_a_busy_model_whose_memory_it_needs(self) -> None:
        here = memory_world(needs={"a": ram(60), "b": ram(60)})
        first = here.request("a")
        here.load_all()
        here.request("b")
        self.assertEqual(forecast(here.scheduler, "b", here.now).waits_for, ("a",))
        here.end(first)
        here.advance(1.0)
        self.assertEqual(here.swaps[-1].evict, ("a",))

    def test_model_that_cannot_fit_is_refused_at_once_with_the_numbers(self) -> None:
        here = used_once(memory_world(needs={"a": ram(40), "b": ram(120)}), "a")
        ticket = here.request("b")
        error = here.refused[ticket.number]
        self.assertIsInstance(error, DoesNotFit)
        self.assertIn("b needs 120 MiB of RAM (learned)", str(error))
        self.assertIn("RAM has 100 MiB", str(error))
        self.assertEqual(here.ready, {"a"})

    def test_pinned_model_makes_a_refusal_that_names_it(self) -> None:
        here = used_once(memory_world(needs={"a": ram(60), "b": ram(60)}), "a")
        here.pin("a")
        error = here.refused[here.request("b").number]
        self.assertIsInstance(error, NotReady)
        self.assertIn("a cannot be evicted", str(error))

    def test_request_waits_for_memory_of_another_program_and_is_then_refused_by_name(self) -> None:
        here = memory_world(needs={"a": ram(60)})
        here.foreign["ram"] = 60
        here.send_ledger()
        ticket = here.request("a")
        self.assertIn("other programs", forecast(here.scheduler, "a", here.now).reason)
        here.advance(FOREIGN_MEMORY_WAIT - 1)
        self.assertEqual(here.refused, {})
        here.advance(2.0)
        self.assertIsInstance(here.refused[ticket.number], MemoryInUse)

    def test_request_is_served_when_the_other_program_has_ended(self) -> None:
        here = memory_world(needs={"a": ram(60)})
        here.change_foreign("ram", 60)
        ticket = here.request("a")
        here.advance(20.0)
        here.change_foreign("ram", 0)
        here.load_all()
        self.assertIn(ticket.number, here.granted)

    def test_starved_request_that_waits_for_another_program_holds_no_one_up(self) -> None:
        here = memory_world(needs={"a": ram(60), "b": ram(30)})
        here.change_foreign("ram", 60)
        here.request("a")
        here.advance(30.0)
        ticket = here.request("b")
        here.load_all()
        self.assertIn(ticket.number, here.granted)

    def test_unknown_model_runs_alone_once_and_beside_others_when_it_is_measured(self) -> None:
        here = memory_world(needs={"a": ram(40), "b": ram(40)})
        here.unknown = {"b"}
        here.send_ledger()
        used_once(here, "a")
        here.advance(1.0)
        ticket = here.request("b")
        self.assertEqual(here.swaps[-1].evict, ("a",))
        here.load_all()
        here.request("a")
        self.assertEqual(here.ready, {"b"})
        here.measure("b")
        here.load_all()
        self.assertEqual(here.ready, {"a", "b"})
        self.assertIn(ticket.number, here.granted)

    def test_model_is_held_for_a_moment_after_its_last_response(self) -> None:
        """An agent calls a tool between two requests; another model's request waits for so long, but not for ever."""
        here = memory_world(needs={"a": ram(60), "b": ram(60)})
        here.hold = 8.0
        here.send_ledger()
        used_once(here, "a")
        here.request("b")
        self.assertEqual(here.swaps, [])
        here.advance(4.0)
        here.end(here.request("a"))
        here.advance(5.5)
        self.assertEqual(here.swaps, [])
        here.advance(1.0)
        self.assertEqual(here.swaps[0].evict, ("a",))

    def test_models_load_at_the_same_time_on_two_gpus(self) -> None:
        here = memory_world("22", needs={"a": gpu(15), "b": gpu(15), "c": gpu(15)})
        here.requests("a", "b", "c")
        self.assertEqual([(swap.model, swap.gpus) for swap in here.swaps], [("a", ("gpu0",)), ("b", ("gpu1",))])

    def test_starved_request_for_a_large_model_is_not_overtaken_by_small_ones(self) -> None:
        here = memory_world(needs={"a": ram(80), "b": ram(30), "c": ram(30)})
        first = here.request("b")
        here.load_all()
        large = here.request("a")
        here.advance(11.0)
        here.request("c")
        here.end(first)
        here.load_all()
        self.assertIn(large.number, here.granted)

    def test_idle_model_leaves_if_another_program_takes_the_reserve(self) -> None:
        here = used_once(memory_world(needs={"a": ram(30), "b": ram(30)}), "a")
        here.advance(60.0)
        used_once(here, "b")
        here.stops.clear()
        ledger = evolve(here.scheduler.ledger, pressed=frozenset({"ram"}))
        here.perform(here.scheduler.memory_changed(ledger, here.now))
        self.assertEqual([(stop.models, stop.why) for stop in here.stops], [(("a",), "memory")])

    def test_without_readings_of_the_machine_one_model_runs_at_a_time(self) -> None:
        here = memory_world(needs={"a": ram(1), "b": ram(1)})
        here.unknown = {"a", "b"}
        here.perform(here.scheduler.memory_changed(Ledger({}), here.now))
        used_once(here, "a")
        here.advance(11.0)
        here.request("b")
        self.assertEqual(here.swaps[0].evict, ("a",))


models = st.sampled_from(MODELS)
picks = st.integers(0, 10_000)
shares = st.tuples(st.integers(1, 24), st.integers(0, 2)).map(
    lambda drawn: (drawn[0],) * drawn[1]
)  # as large on each GPU
a_need = st.tuples(shares, st.integers(0, 60))


class MemoryMachine(RuleBasedStateMachine):
    world: MemoryWorld

    @initialize(
        needs=st.fixed_dictionaries(dict.fromkeys(MODELS, a_need)),
        gpus=st.lists(st.integers(5, 30), max_size=2),
        unknown=st.sets(models, max_size=2),
        hold=st.sampled_from((0.0, 0.0, 3.0)),
        window=st.sampled_from((0.0, 2.0, 10.0)),
        conflicts=st.sets(st.sampled_from(("ab", "cd", "ae")), max_size=2),
        pinned=st.sets(models, max_size=1),
    )
    def begin(self, needs, gpus, unknown, hold, window, conflicts, pinned):
        relation = Conflicts(pairs(*conflicts))
        rules = Rules({model: ModelRules() for model in MODELS}, relation, fifo(patience=window), by_memory=True)
        total = {"ram": 100} | {f"gpu{number}": size for number, size in enumerate(gpus)}
        # A model that fits on no machine is refused, or loaded alone; here only the first is of interest.
        self.unfit = set()
        self.world = MemoryWorld(rules, relation, needs=needs, total=total, hold=hold)
        for model in MODELS:
            if not self.world.fits(model, total):
                needs[model] = ((), 200) if len(gpus) >= len(needs[model][0]) else ((), 10)
        self.unfit = {model for model in MODELS if not self.world.fits(model, total)}
        # What is unknown cannot be kept from overfilling the memory beside a model that may not leave.
        self.world.unknown = set() if pinned else unknown - self.unfit
        self.world.send_ledger()
        self.world.pin(*pinned)

    @rule(model=models)
    def a_request_comes(self, model):
        ticket = self.world.request(model)
        assert model not in self.unfit or isinstance(self.world.refused.get(ticket.number), (DoesNotFit, NotReady))

    @rule(model=models)
    def another_request_comes(self, model):
        self.world.request(model)

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

    @precondition(lambda self: self.world.stopping)
    @rule(pick=picks)
    def a_stop_ends(self, pick):
        stopping = sorted(self.world.stopping)
        self.world.stopped(stopping[pick % len(stopping)])

    @precondition(lambda self: self.world.startable())
    @rule(pick=picks, fails=st.sampled_from((False, False, False, True)))
    def a_start_ends(self, pick, fails):
        generation = self.world.startable()[pick % len(self.world.startable())]
        error = StartFailed(self.world.loads[generation].swap.model, "exited", 1) if fails else None
        self.world.started(generation, error)

    @precondition(lambda self: self.world.ready & self.world.unknown)
    @rule()
    def a_model_is_measured(self):
        self.world.measure(min(self.world.ready & self.world.unknown))

    @rule(pick=picks, size=st.sampled_from((0, 0, 5, 30)))
    def other_programs_use_memory(self, pick, size):
        devices = sorted(self.world.total)
        self.world.change_foreign(devices[pick % len(devices)], size)

    @rule(seconds=st.sampled_from((0.5, 3.0, 12.0)))
    def time_passes(self, seconds):
        self.world.advance(seconds)

    @invariant()
    def nothing_is_wrong(self):
        self.world.check()

    def teardown(self):
        """Once the other programs and all requests that are served have ended, whatever fits alone has run."""
        if not hasattr(self, "world"):
            return
        world = self.world
        world.pin()
        world.foreign.clear()
        world.send_ledger()
        waiting = set(world.waiting)
        for _ in range(300):
            if world.granted or world.cut:
                world.end(next(iter([*world.granted.values(), *world.cut.values()])))
            elif world.stopping:
                world.stopped(min(world.stopping))
            elif world.startable():
                world.started(world.startable()[0])
            elif world.late:
                world.deliver_late()
            elif world.ready & world.unknown:
                world.measure(min(world.ready & world.unknown))
            elif world.waiting:
                world.advance(1.0)
            else:
                break
            world.check()
        assert not world.waiting, f"{list(world.waiting.values())} still wait"
        assert not waiting & world.refused.keys(), "refused although it fits"


class MemoryMachineTests(SynchronousTestCase):
    def test_memory_is_never_overcommitted_and_whatever_fits_alone_runs_in_the_end(self) -> None:
        run_state_machine_as_test(
            MemoryMachine,
            settings=settings(max_examples=300, stateful_step_count=40, suppress_health_check=list(HealthCheck)),
        )
