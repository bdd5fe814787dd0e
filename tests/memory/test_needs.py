"""What a model is expected to use."""

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config.schema.memory import MemorySettings
from llamaswap.config.schema.model import Model
from llamaswap.config.urls import parse
from llamaswap.memory.footprints import Footprint
from llamaswap.memory.ledger import differs, limited
from llamaswap.memory.measure import DeviceUse
from llamaswap.memory.needs import anonymous, learned_need, need_elsewhere
from llamaswap.scheduling.memory import Device, GpuShare, Ledger, MemoryNeed


class LearnedTests(SynchronousTestCase):
    def test_learned_sizes_are_firm_and_carried_ones_are_not(self):
        known = Footprint("k", "owl", {"ram": 5, "gpu1": 9})
        self.assertEqual(learned_need(known), MemoryNeed(5, ((GpuShare(9, "gpu1"),),), "learned", True))
        carried = learned_need(Footprint("k", "owl", {"ram": 5}, carried=True))
        self.assertEqual(carried, MemoryNeed(5, ((),), "carried", False))
        self.assertIsNone(learned_need(Footprint("k", "owl", squeezed=True)))

    def test_chosen_gpus_are_any(self):
        sizes = anonymous({"gpu7": 3, "gpu1": 9, "ram": 5})
        self.assertEqual(sizes, {"ram": 5, "any0": 9, "any1": 3})
        self.assertEqual(learned_need(Footprint("k", "owl", sizes)).options, ((GpuShare(9), GpuShare(3)),))


class ElsewhereTests(SynchronousTestCase):
    def test_server_on_another_machine_uses_nothing_here(self):
        there = Model("owl", cmd="ssh nas serve", endpoint=parse("http://nas:8000"))
        here = Model("owl", cmd="serve", endpoint=parse("http://127.0.0.1:8000"))
        self.assertEqual(need_elsewhere(there), MemoryNeed())
        self.assertIsNone(need_elsewhere(here))


class DeviceTests(SynchronousTestCase):
    def limit(self, foreign, name="ram", **settings):
        device = limited(name, DeviceUse(20000, 0, foreign, "blender (pid 9)"), foreign, MemorySettings(**settings))
        return device.total, device.reserve, device.foreign

    def test_device_without_settings_is_the_machines(self):
        self.assertEqual(self.limit(500), (20000, 0, 500))

    def test_reserve_of_one_device_comes_before_that_of_its_kind(self):
        reserve = {"gpu": 100, "gpu1": 200, "ram": 300}
        found = [self.limit(0, name, reserve=reserve)[1] for name in ("ram", "gpu0", "gpu1")]
        self.assertEqual(found, [300, 100, 200])

    def test_foreign_use_beside_a_budget_does_not_count(self):
        """2 GiB of RAM for models on a machine with 20: what else is used only matters if less than 2 are left."""
        budget = {"ram": 2000}
        self.assertEqual(self.limit(15000, budget=budget), (2000, 0, 0))
        self.assertEqual(self.limit(18500, budget=budget), (2000, 0, 500))
        self.assertEqual(self.limit(500, "gpu0", budget=budget), (20000, 0, 500))

    def test_reserve_beside_a_budget_does_not_count(self):
        options = {"budget": {"ram": 2000}, "reserve": {"ram": 1000}}
        self.assertEqual(self.limit(5000, **options), (2000, 0, 0))
        self.assertEqual(self.limit(17500, **options), (2000, 500, 0))
        self.assertEqual(self.limit(19000, **options), (2000, 1000, 1000))

    def test_budget_larger_than_the_device_changes_nothing(self):
        self.assertEqual(self.limit(500, budget={"ram": 30000}), (20000, 0, 500))


class DifferenceTests(SynchronousTestCase):
    def test_small_changes_of_sizes_are_no_difference(self):
        def ledger(foreign=5000, used=3000, need=3000, seconds=10.0, source="learned", **more):
            return Ledger(
                {"ram": Device(20000, 0, foreign)},
                {"owl": MemoryNeed(need, source=source)},
                {"owl": {"ram": used}},
                {"owl": seconds},
                **more,
            )

        same = [ledger(foreign=5049), ledger(used=3029), ledger(need=2971), ledger(seconds=10.5)]
        other = [
            *(ledger(foreign=5100), ledger(used=3040), ledger(need=2900), ledger(seconds=12.0)),
            *(ledger(source="carried"), ledger(hold=5.0), Ledger({}), Ledger({"ram": Device(20001)})),
        ]
        self.assertEqual([differs(ledger(), one) for one in same], [False] * 4)
        self.assertEqual([differs(ledger(), one) for one in other], [True] * 8)
