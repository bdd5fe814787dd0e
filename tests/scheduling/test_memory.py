"""Placement by memory: which models leave, on which GPUs a model is loaded, and why a model cannot be loaded."""

from __future__ import annotations

from itertools import combinations, permutations
from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.scheduling.memory import (
    Device,
    GpuShare,
    Ledger,
    MemoryNeed,
    Occupant,
    Placement,
    expected_use,
    in_words,
    need_in_words,
    place,
    room_in_words,
    sizes_in_words,
)

GIB = 1024


def on_any_gpu(*sizes: int, ram: int = 0, firm: bool = True) -> MemoryNeed:
    return MemoryNeed(ram, (tuple(GpuShare(size) for size in sizes),), firm=firm)


def machine(need: MemoryNeed | None, *gpus: int, ram: int = 64 * GIB, foreign: int = 0, reserve: int = 0) -> Ledger:
    """A machine with GPUs of these sizes for a model `x`; other programs use `foreign` of each."""
    devices = {f"gpu{number}": Device(size, reserve, foreign) for number, size in enumerate(gpus)}
    return Ledger({"ram": Device(ram), **devices}, {} if need is None else {"x": need})


class PlaceTests(SynchronousTestCase):
    def test_nothing_is_evicted_for_a_model_that_fits(self) -> None:
        placement = place(machine(on_any_gpu(4000), 24000), "x", [Occupant("a", {"gpu0": 20000}, 1.0)])
        self.assertEqual(placement, Placement((), {"gpu0": 4000}, ("gpu0",)))

    def test_cheapest_sufficient_set_leaves(self) -> None:
        there = [
            Occupant("slow", {"gpu0": 9000}, 50.0),
            Occupant("a", {"gpu0": 5000}, 4.0),
            Occupant("b", {"gpu0": 5000}, 4.0),
        ]
        self.assertEqual(place(machine(on_any_gpu(14000), 24000), "x", there).evicts, ("a", "b"))

    def test_one_dear_model_leaves_if_the_cheap_ones_are_not_enough(self) -> None:
        there = [Occupant("large", {"gpu0": 20000}, 9.0), Occupant("a", {"gpu0": 1000}, 1.0)]
        self.assertEqual(place(machine(on_any_gpu(10000), 24000), "x", there).evicts, ("large",))

    def test_of_equal_costs_the_smaller_number_of_models_leaves(self) -> None:
        there = [
            Occupant("a", {"gpu0": 6000}, 2.0),
            Occupant("b", {"gpu0": 6000}, 2.0),
            Occupant("c", {"gpu0": 12000}, 4.0),
        ]
        self.assertEqual(place(machine(on_any_gpu(12000), 24000), "x", there).evicts, ("c",))

    def test_model_of_unknown_need_is_loaded_alone_beside_those_that_stay(self) -> None:
        there = [Occupant("a", {"gpu0": 1}, 1.0), Occupant("kept", {"gpu0": 1}, inf), Occupant("b", None, 1e7)]
        self.assertEqual(place(machine(None, 24000), "x", there), Placement(("a", "b")))

    def test_model_whose_use_is_unknown_leaves_for_any_other(self) -> None:
        self.assertEqual(place(machine(on_any_gpu(1), 24000), "x", [Occupant("a", None, 1.0)]).evicts, ("a",))

    def test_need_beyond_the_machine_is_refused_if_it_is_certain(self) -> None:
        there = [Occupant("a", {"gpu0": 1000}, 1.0)]
        self.assertEqual(place(machine(on_any_gpu(30000), 24000, reserve=1000), "x", there).obstacle, "never")
        guess = place(machine(on_any_gpu(30000, firm=False), 24000), "x", there)
        self.assertEqual(guess, Placement(("a",)))

    def test_memory_of_other_programs_is_waited_for_and_evicts_nothing(self) -> None:
        placement = place(machine(on_any_gpu(20000), 24000, foreign=8000), "x", [Occupant("a", {"gpu0": 8000}, 1.0)])
        self.assertEqual(placement, Placement(obstacle="foreign"))

    def test_models_that_stay_may_leave_too_little(self) -> None:
        placement = place(machine(on_any_gpu(20000), 24000), "x", [Occupant("kept", {"gpu0": 8000}, inf)])
        self.assertEqual(placement.obstacle, "kept")

    def test_smallest_sufficient_gap_is_used(self) -> None:
        there = [Occupant("a", {"gpu1": 16000}, 1.0)]
        self.assertEqual(place(machine(on_any_gpu(7000), 24000, 24000), "x", there).gpus, ("gpu1",))

    def test_only_the_models_of_the_chosen_gpu_leave(self) -> None:
        there = [Occupant("a", {"gpu0": 20000}, 5.0), Occupant("b", {"gpu1": 20000}, 4.0)]
        self.assertEqual(
            place(machine(on_any_gpu(20000), 24000, 24000), "x", there), Placement(("b",), {"gpu1": 20000}, ("gpu1",))
        )

    def test_fixed_gpus_keep_the_order_in_which_they_are_named(self) -> None:
        need = MemoryNeed(0, ((GpuShare(8000, "gpu1"), GpuShare(4000, "gpu0")),))
        self.assertEqual(place(machine(need, 24000, 24000), "x", []).gpus, ("gpu1", "gpu0"))

    def test_second_way_to_spread_is_used_if_it_evicts_less(self) -> None:
        need = MemoryNeed(0, ((GpuShare(30000),), (GpuShare(15000), GpuShare(15000))))
        self.assertEqual(place(machine(need, 24000, 24000), "x", []).gpus, ("gpu0", "gpu1"))

    def test_ram_alone_decides_on_a_machine_without_gpus(self) -> None:
        there = [Occupant("a", {"ram": 900}, 1.0), Occupant("b", {"ram": 900}, 2.0)]
        placement = place(machine(MemoryNeed(900), ram=2 * GIB), "x", there)
        self.assertEqual(placement, Placement(("a",), {"ram": 900}))

    def test_gpu_that_cannot_be_read_makes_the_need_unknown(self) -> None:
        need = MemoryNeed(0, ((GpuShare(100, "gpu7"),),))
        self.assertEqual(place(machine(need, 24000), "x", [Occupant("a", {"gpu0": 1}, 1.0)]), Placement(("a",)))

    def test_many_models_are_searched_in_bounded_time_and_the_set_is_irreducible(self) -> None:
        there = [Occupant(f"m{number:02}", {"gpu0": 500 + number}, 1.0 + number % 7) for number in range(45)]
        used = sum(one.sizes["gpu0"] for one in there if one.sizes)
        ledger = machine(on_any_gpu(12000), used + 1000)
        evicts = place(ledger, "x", there).evicts
        left = [one for one in there if one.model not in evicts]
        for back in there:
            if back.model in evicts:
                total = sum(one.sizes["gpu0"] for one in [*left, back] if one.sizes)
                self.assertGreater(total + 12000, used + 1000, f"{back.model} need not have left")


def fits(need: tuple[int, ...], room: dict[str, int]) -> bool:
    """Whether these shares have room on different GPUs, in any order."""
    gpus = [name for name in room if name != "ram"]
    return any(
        all(room[gpu] >= share for gpu, share in zip(chosen, need, strict=True))
        for chosen in permutations(gpus, len(need))
    )


class PlacePropertyTests(SynchronousTestCase):
    @settings(max_examples=300, deadline=None)
    @given(
        gpus=st.lists(st.integers(0, 20), min_size=1, max_size=3),
        need=st.lists(st.integers(1, 20), min_size=1, max_size=2),
        there=st.lists(
            st.tuples(
                st.dictionaries(st.sampled_from(("gpu0", "gpu1", "gpu2")), st.integers(1, 12)), st.integers(0, 9)
            ),
            max_size=6,
        ),
    )
    def test_set_is_sufficient_and_as_cheap_as_the_best_of_all_sets(self, gpus, need, there) -> None:
        names = [f"gpu{number}" for number in range(len(gpus))]
        occupants = [
            Occupant(f"m{number}", {name: size for name, size in sizes.items() if name in names}, float(cost))
            for number, (sizes, cost) in enumerate(there)
        ]
        placement = place(machine(on_any_gpu(*need, firm=True), *gpus), "x", occupants)
        if len(need) > len(gpus):
            self.assertEqual(len(placement.evicts), len(occupants))
            return

        def room(evicted: set[str]) -> dict[str, int]:
            used = dict.fromkeys(names, 0)
            for one in occupants:
                if one.model not in evicted:
                    for name, size in (one.sizes or {}).items():
                        used[name] += size
            return {name: total - used[name] for name, total in zip(names, gpus, strict=True)}

        costs = [
            sum(one.cost for one in chosen)
            for count in range(len(occupants) + 1)
            for chosen in combinations(occupants, count)
            if fits(tuple(need), room({one.model for one in chosen}))
        ]
        if not costs:
            self.assertEqual(placement.obstacle, "never")
            return
        left = room(set(placement.evicts))
        assert placement.sizes is not None
        self.assertTrue(all(left[name] >= size for name, size in placement.sizes.items()))
        self.assertEqual(sorted(placement.sizes.values()), sorted(need))
        cost = sum(one.cost for one in occupants if one.model in placement.evicts)
        self.assertEqual(cost, min(costs))


class ExpectedUseTests(SynchronousTestCase):
    def ledger(self, source: str) -> Ledger:
        need = MemoryNeed(500, ((GpuShare(9000),),), source)
        return Ledger({}, {"x": need}, {"x": {"ram": 100, "gpu1": 8000}})

    def test_learned_need_counts_where_the_server_runs(self) -> None:
        self.assertEqual(expected_use(self.ledger("learned"), "x", None), {"ram": 500, "gpu1": 9000})

    def test_measured_use_replaces_an_estimate(self) -> None:
        self.assertEqual(expected_use(self.ledger("gguf"), "x", {"gpu1": 20000}), {"ram": 100, "gpu1": 8000})

    def test_plan_counts_until_the_server_is_measured(self) -> None:
        self.assertEqual(expected_use(Ledger({}), "x", {"gpu0": 5}), {"gpu0": 5})
        self.assertIsNone(expected_use(Ledger({}), "x", None))


class WordsTests(SynchronousTestCase):
    def test_sizes_needs_and_devices_are_said_in_words(self) -> None:
        self.assertEqual([in_words(900), in_words(4300)], ["900 MiB", "4.2 GiB"])
        self.assertEqual(sizes_in_words({"ram": 900, "gpu0": 4300}), "4.2 GiB of gpu0 and 900 MiB of RAM")
        self.assertEqual(need_in_words(on_any_gpu(8192, ram=900)), "8.0 GiB on one GPU and 900 MiB of RAM (declared)")
        self.assertEqual(need_in_words(MemoryNeed(900, source="learned")), "900 MiB of RAM (learned)")
        self.assertEqual(
            room_in_words(machine(None, 24 * GIB, reserve=GIB)),
            "gpu0 has 24.0 GiB, of which 1.0 GiB are reserved; RAM has 64.0 GiB",
        )
