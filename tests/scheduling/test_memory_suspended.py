"""Suspended models and memory: what they keep in RAM counts while they are suspended, stop, or resume."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.scheduling.effects import Effect, StartSwap, Ticket
from llamaswap.scheduling.memory import Device, GpuShare, Ledger, MemoryNeed, Sizes
from llamaswap.scheduling.scheduler import Scheduler
from llamaswap.scheduling.state import ModelRules, Rules
from tests.scheduling.world import Conflicts, fifo

NEEDS = {
    "large": MemoryNeed(10, ((GpuShare(60),),), "learned"),
    "other": MemoryNeed(10, ((GpuShare(60),),), "learned"),
    "wide": MemoryNeed(70, ((),), "learned"),
}


class SuspendedModelTests(SynchronousTestCase):
    def setUp(self) -> None:
        rules = {name: ModelRules(can_suspend=name == "large") for name in NEEDS}
        self.scheduler = Scheduler(Rules(rules, Conflicts(()), fifo(patience=10.0), by_memory=True))
        self.now, self.number = 100.0, 0

    def measure(self, **used: Sizes) -> list[Effect]:
        devices = {"ram": Device(100), "gpu0": Device(100)}
        return self.scheduler.memory_changed(Ledger(devices, NEEDS, used, {}, hold=0.0), self.now)

    def request(self, model: str) -> list[Effect]:
        self.number += 1
        return self.scheduler.requested(Ticket(self.number, model, self.now), self.now)

    def starts(self, effects: list[Effect]) -> list[tuple[str, tuple[str, ...], list[str]]]:
        return [(one.model, one.evict, sorted(one.suspend)) for one in effects if isinstance(one, StartSwap)]

    def suspend_large(self, ram: int = 60) -> None:
        """It is suspended, and its weights are in RAM."""
        self.scheduler.adopted("large", self.now, self.now, self.now, suspended=True)
        self.measure(large={"ram": ram})

    def test_memory_of_a_suspended_model_counts_until_it_has_stopped(self) -> None:
        self.suspend_large()
        self.scheduler.unload_requested(["large"], self.now)
        self.assertEqual(self.starts(self.request("wide")), [("wide", ("large",), [])])

    def test_model_that_resumes_counts_with_all_that_it_will_use(self) -> None:
        self.suspend_large()
        self.assertEqual(self.starts(self.request("large")), [("large", (), [])])
        self.assertEqual(self.starts(self.request("other")), [], "both would be on the GPU")

    def test_suspended_model_with_unequal_shares_resumes_on_the_gpus_where_its_process_is(self) -> None:
        needs = {"large": MemoryNeed(0, ((GpuShare(20), GpuShare(60)),))}
        devices = {"ram": Device(100), "gpu0": Device(100), "gpu1": Device(30)}
        self.scheduler.memory_changed(Ledger(devices, needs), self.now)
        self.assertEqual(self.starts(self.request("large")), [("large", (), [])])
        self.scheduler.swap_finished(1, None, self.now)
        self.scheduler.served(Ticket(1, "large", self.now), self.now)
        self.scheduler.ttl_changed("large", 5.0, self.now)
        self.scheduler.idle_expired("large", self.now + 5.0)
        self.scheduler.suspended("large", self.now + 5.0)
        [swap] = [one for one in self.request("large") if isinstance(one, StartSwap)]
        self.assertEqual(swap.gpus, ("gpu0", "gpu1"))

    def test_model_whose_memory_in_ram_is_needed_is_stopped_and_not_suspended(self) -> None:
        self.suspend_large()
        self.request("large")
        [generation] = self.scheduler.loads
        self.scheduler.swap_finished(generation, None, self.now)
        self.scheduler.served(Ticket(1, "large", self.now), self.now)
        self.measure(large={"ram": 40, "gpu0": 60})
        self.now += 60.0
        self.assertEqual(self.starts(self.request("wide")), [("wide", ("large",), [])])

    def test_model_whose_gpu_is_needed_is_suspended_if_ram_has_room_for_it(self) -> None:
        self.suspend_large()
        self.request("large")
        [generation] = self.scheduler.loads
        self.scheduler.swap_finished(generation, None, self.now)
        self.scheduler.served(Ticket(1, "large", self.now), self.now)
        self.measure(large={"ram": 10, "gpu0": 60})
        self.now += 60.0
        self.assertEqual(self.starts(self.request("other")), [("other", ("large",), ["large"])])
