"""Eviction by memory in any order of events: a world with its own account of who uses how much of which device."""

from __future__ import annotations

import sys
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

from llamaswap.errors import DoesNotFit, MemoryInUse, NotReady, OutOfMemory, StartFailed
from llamaswap.scheduling.effects import StartSwap, Ticket
from llamaswap.scheduling.memory import Device, GpuShare, Ledger, MemoryNeed
from llamaswap.scheduling.planner import forecast
from llamaswap.scheduling.scheduler import Scheduler
from llamaswap.scheduling.state import FOREIGN_MEMORY_WAIT, ModelRules, Rules
from tests.scheduling.world import Conflicts, World, fifo, pairs

MODELS = "abcde"


@define(eq=False)
class MemoryWorld(World):
    """A world whose models use memory.

    `needs` are the sizes per GPU of each model and its RAM, `unknown` the models whose need nothing but a run can tell,
    `ran_out` those that need more than their need said. `total` is what each device has, `foreign` what other programs
    use of it, `planned` and `taken` what loads were given and what models that are up use.
    """

    needs: dict[str, tuple[tuple[int, ...], int]] = Factory(dict)
    total: dict[str, int] = Factory(dict)
    unknown: set[str] = Factory(set)
    foreign: dict[str, int] = Factory(dict)
    ran_out: set[str] = Factory(set)
    hold: float = 0.0
    planned: dict[str, dict[str, int]] = Factory(dict)
    taken: dict[str, dict[str, int]] = Factory(dict)

    def send_ledger(self) -> None:
        devices = {name: Device(size, 0, self.foreign.get(name, 0), "train") for name, size in self.total.items()}
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

    def room(self) -> dict[str, int]:
        """What is left of each device beside all models that are up."""
        left = dict(self.total)
        for sizes in self.taken.values():
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
        starting = {load.swap.model for load in self.loads.values() if not load.abandoned and not load.started}
        guessed = self.unknown | self.ran_out
        for victim in swap.evict:
            in_conflict = frozenset((victim, swap.model)) in self.conflicts.pairs
            if victim not in self.ready or not self.up(victim) or in_conflict:
                continue
            held = self.now < self.unused_since[victim] + self.hold
            assert not held or swap.model in guessed or swap.waited >= self.rules.fifo.patience, (
                f"{victim} is evicted, but was used just now"
            )
            beside = {name for name in self.alive if self.up(name)} | starting
            if guessed.isdisjoint({swap.model, victim, *(beside - set(swap.evict))}):
                room = self.room_beside(swap, {victim}, starting)
                assert not self.fits(swap.model, room), f"{victim} is evicted for nothing"
        sizes = dict(zip(swap.gpus, self.needs[swap.model][0], strict=False))
        self.planned[swap.model] = {**sizes, "ram": self.needs[swap.model][1]}
        super().check_swap(swap)

    def room_beside(self, swap: StartSwap, kept: set[str], starting: set[str]) -> dict[str, int]:
        """What a swap would have if the models in `kept` were not evicted for it."""
        leaving = set(swap.evict) - kept
        planned = {name: self.planned[name] for name in starting}
        left = {name: size - self.foreign.get(name, 0) for name, size in self.total.items()}
        for model, sizes in {**self.taken, **planned}.items():
            if model != swap.model and model not in leaving:
                for device, size in sizes.items():
                    left[device] -= size
        return left

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
                room = self.room()
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
            over = {device: left for device, left in self.room().items() if left < 0}
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
        error = here.refused[ticket.number]
        self.assertIsInstance(error, MemoryInUse)
        self.assertIn("a needs 60 MiB of RAM (learned), but other programs use 60 MiB of RAM (train)", str(error))

    def test_request_is_served_when_the_other_program_has_ended(self) -> None:
        here = memory_world(needs={"a": ram(60)})
        here.change_foreign("ram", 60)
        ticket = here.request("a")
        here.advance(20.0)
        here.change_foreign("ram", 0)
        here.load_all()
        self.assertIn(ticket.number, here.granted)

    def test_starved_request_that_waits_for_another_program_does_not_delay_other_loads(self) -> None:
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

    def test_model_of_unknown_need_does_not_wait_for_a_hold(self) -> None:
        """It is loaded alone, so waiting would only make its first load slower than a swap without memory is."""
        here = memory_world(needs={"a": ram(10), "b": ram(10)})
        here.hold, here.unknown = 10.0, {"b"}
        here.send_ledger()
        used_once(here, "a")
        here.advance(0.1)
        here.request("b")
        self.assertEqual(here.swaps[0].evict, ("a",))

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
        here.advance(1.0)
        here.request("b")
        self.assertEqual(here.swaps[0].evict, ("a",))


class ManyModelsTests(SynchronousTestCase):
    def test_many_starved_requests_for_different_models_do_not_stall_the_program(self) -> None:
        """Each decision about the queue looked at all reservations with a search for room: seconds, with 100 models."""
        names = [f"m{number:03}" for number in range(140)]
        rules = Rules({name: ModelRules() for name in names}, Conflicts(()), fifo(patience=10.0), by_memory=True)
        scheduler = Scheduler(rules)
        needs = {name: MemoryNeed(0, ((GpuShare(90 + at % 40),),), "learned") for at, name in enumerate(names)}
        used = {name: {f"gpu{at % 2}": 90 + at % 40} for at, name in enumerate(names[:40])}
        devices = {"ram": Device(1000), "gpu0": Device(2300), "gpu1": Device(2300)}
        ledger = Ledger(devices, needs, used, hold=0.0)
        scheduler.memory_changed(ledger, 0.0)
        for name in names[:40]:
            scheduler.adopted(name, 0.0, 0.0, 0.0)
        for number, name in enumerate(names):
            scheduler.requested(Ticket(number, name, 1.0), 1.0)
        scheduler.queue_timer_expired(20.0)
        self.assertGreater(len(scheduler.reservations), 90)
        calls = 0

        def count(frame: object, event: str, argument: object) -> None:
            nonlocal calls
            calls += 1

        sys.setprofile(count)
        try:
            scheduler.memory_changed(ledger, 21.0)
        finally:
            sys.setprofile(None)
        self.assertLess(calls, 900_000)


class OutOfMemoryTests(SynchronousTestCase):
    def out_of_memory(self, here: MemoryWorld, model: str) -> None:
        here.load_until_starting(model)
        [generation] = [each for each in here.startable() if here.loads[each].swap.model == model]
        here.ran_out.add(model)
        here.started(generation, OutOfMemory(model, "upstream command exited prematurely", 1))

    def test_load_that_runs_out_of_memory_is_repeated_once_without_other_models(self) -> None:
        here = used_once(memory_world(needs={"a": ram(40), "b": ram(40)}), "a")
        ticket = here.request("b")
        self.out_of_memory(here, "b")
        self.assertEqual(here.refused, {})
        here.load_all()
        self.assertEqual([(swap.model, swap.evict) for swap in here.swaps], [("b", ()), ("b", ("a",))])
        self.assertIn("it ran out of memory, so it is loaded alone", here.swaps[-1].reason)
        self.assertIn(ticket.number, here.granted)

    def test_starved_request_for_a_model_that_ran_out_of_memory_is_not_overtaken_by_other_loads(self) -> None:
        here = memory_world(needs={"a": ram(40), "b": ram(20), "c": ram(20)})
        busy = here.request("a")
        here.load_all()
        ticket = here.request("b")
        self.out_of_memory(here, "b")
        here.stopped("b")
        here.advance(11.0)
        here.request("c")
        self.assertEqual([swap.model for swap in here.swaps], ["a", "b"], "c would have to leave again")
        here.end(busy)
        here.load_all()
        self.assertIn(ticket.number, here.granted)

    def test_second_failure_is_an_error_with_the_numbers(self) -> None:
        here = used_once(memory_world(needs={"a": ram(40), "b": ram(40)}), "a")
        ticket = here.request("b")
        self.out_of_memory(here, "b")
        here.stopped("b")
        self.out_of_memory(here, "b")
        self.assertIn("b ran out of memory; it had up to 100 MiB of RAM", str(here.refused[ticket.number]))

    def test_models_that_were_evicted_for_both_loads_return_after_the_second_failure(self) -> None:
        here = used_once(memory_world(needs={"a": ram(60), "b": ram(50), "c": ram(30)}), "a", "c")
        here.request("b")
        self.out_of_memory(here, "b")
        here.stopped("b")
        self.out_of_memory(here, "b")
        self.assertEqual([swap.evict for swap in here.swaps], [("a",), ("c",)])
        here.load_all()
        self.assertEqual(here.ready, {"a", "c"})

    def test_model_that_was_alone_is_not_loaded_twice(self) -> None:
        here = memory_world(needs={"b": ram(40)})
        ticket = here.request("b")
        self.out_of_memory(here, "b")
        self.assertIn("b ran out of memory; it had 40 MiB of RAM", str(here.refused[ticket.number]))
        self.assertEqual(len(here.swaps), 1)

    def test_model_that_runs_out_of_memory_again_and_again_gets_twice_its_need_at_most(self) -> None:
        """Else a server that a signal ends now and then would be loaded alone at last."""
        here = memory_world(needs={"a": ram(45), "b": ram(25)})
        for _ in range(10):
            used_once(here, "b")
            here.lose("b")
            here.alive.add("b")
            here.perform(here.scheduler.exited("b", here.now, "exited", True))
            here.load_all()
            here.advance(600.0)
        used_once(here, "a", "b")
        self.assertEqual(here.ready, {"a", "b"})

    def test_changed_model_gets_no_more_than_its_need(self) -> None:
        here = used_once(memory_world(needs={"a": ram(58), "b": ram(40)}), "b")
        here.lose("b")
        here.alive.add("b")
        here.perform(here.scheduler.exited("b", here.now, "exited", True))
        here.load_all()
        here.retune(here.rules, "b")
        used_once(here, "a", "b")
        self.assertEqual(here.ready, {"a", "b"})

    def test_changed_model_is_not_loaded_alone_because_its_earlier_definition_ran_out_of_memory(self) -> None:
        here = used_once(memory_world(needs={"a": ram(40), "b": ram(40)}), "a")
        ticket = here.request("b")
        self.out_of_memory(here, "b")
        here.cancel(ticket)
        here.retune(here.rules, "b")
        here.load_all()
        used_once(here, "a", "b")
        self.assertEqual(here.ready, {"a", "b"})

    def test_model_that_ran_out_of_memory_in_service_gets_more_at_its_next_load(self) -> None:
        here = used_once(memory_world(needs={"a": ram(58), "b": ram(40)}), "b")
        here.lose("b")
        here.alive.add("b")
        here.perform(here.scheduler.exited("b", here.now, "exited", True))
        here.load_all()
        here.request("a")
        here.load_all()
        here.request("b")
        self.assertEqual(forecast(here.scheduler, "b", here.now).waits_for, ("a",))


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
    @rule(pick=picks, fault=st.sampled_from((None, None, None, StartFailed, OutOfMemory)))
    def a_start_ends(self, pick, fault):
        generation = self.world.startable()[pick % len(self.world.startable())]
        model = self.world.loads[generation].swap.model
        if fault is OutOfMemory:
            self.world.ran_out.add(model)
        self.world.started(generation, fault(model, "exited", 1) if fault else None)

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
            settings=settings(
                max_examples=300, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
            ),
        )
