"""Many hosts and models: a short day of the scale benchmark, and what one decision may cost."""

import sys
from random import Random

from twisted.trial.unittest import SynchronousTestCase

from benchmarks.scale import BOARD, GIB, EverythingTogether, Scale, report, simulation, traffic
from llamaswap.config.schema.routing import FifoSettings
from llamaswap.scheduling.effects import StartSwap, Ticket
from llamaswap.scheduling.hosts import HostFacts
from llamaswap.scheduling.memory import Device, GpuShare, Ledger, MemoryNeed
from llamaswap.scheduling.planner import forecast
from llamaswap.scheduling.scheduler import Scheduler
from llamaswap.scheduling.state import ModelRules, Rules

SMALL = Scale(hosts=10, boards=2, models=40, servers=60, requests=400)


class DayTests(SynchronousTestCase):
    def test_every_request_of_a_day_is_served_although_hosts_vanish(self) -> None:
        day, [scheduler], models = simulation(SMALL)
        result = day.run(traffic(SMALL, models, Random(2)))
        self.assertEqual((result.requests, result.waits.count, result.refused.total()), (400, 400, 0))
        self.assertGreater(result.moved, 0)
        self.assertGreater(scheduler.largest, 10)

    def test_report_has_the_figures(self) -> None:
        found = report(SMALL)
        for words in ("placement p50, p99, longest (ms)", "loads on another host", "decisions per second"):
            self.assertIn(words, found)


class DecisionTests(SynchronousTestCase):
    def full(self, hosts: int) -> Scheduler:
        """Five idle models on each host, which leave no room."""
        names = [f"m{number:04}" for number in range(5 * hosts + 1)]
        rules = Rules(
            {name: ModelRules() for name in names},
            EverythingTogether(),
            FifoSettings(),
            by_memory=True,
            several_hosts=True,
        )
        scheduler = Scheduler(rules)
        needs = {name: MemoryNeed(GIB, ((GpuShare(18 * GIB),),), "learned") for name in names}
        scheduler.memory_changed(Ledger({"ram": Device(0)}, needs), 0.0)
        boards = {f"gpu{number}": Device(BOARD) for number in range(4)}
        facts = {}
        for number in range(hosts):
            host = f"host{number:03}"
            used = {names[5 * number + at]: {f"gpu{at % 4}": 9 * GIB, "ram": GIB} for at in range(5)}
            facts[host] = HostFacts(host, Ledger({"ram": Device(64 * GIB), **boards}, used=used))
            for at, name in enumerate(used):
                scheduler.adopted(name, 0.0, float(number + at), 1000.0, host=host)
        scheduler.hosts_changed(facts, 1000.0)
        return scheduler

    def calls(self, hosts: int) -> int:
        """How many functions one decision calls if a model has to leave one of so many hosts."""
        scheduler = self.full(hosts)
        last = f"m{5 * hosts:04}"
        forecast(scheduler, last, 1000.0)  # what is left of each host is found once
        calls = 0

        def count(frame: object, event: str, argument: object) -> None:
            nonlocal calls
            calls += event == "call"

        sys.setprofile(count)
        try:
            effects = scheduler.requested(Ticket(1, last, 1000.0), 1000.0)
        finally:
            sys.setprofile(None)
        [swap] = [effect for effect in effects if isinstance(effect, StartSwap)]
        self.assertEqual(len(swap.evict), 1)
        return calls

    def test_decision_looks_closely_at_few_of_many_hosts(self) -> None:
        """A search on each of 200 hosts took 8 ms."""
        few, many = self.calls(20), self.calls(200)
        self.assertLess(many - few, 180 * 8, (few, many))
