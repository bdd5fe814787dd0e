"""Recorded requests on virtual servers: what each policy makes of them."""

from random import Random

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config.policies.groups import Group, GroupEviction
from llamaswap.config.schema.routing import Selector
from llamaswap.scheduling.memory import Device, GpuShare, Ledger, MemoryNeed
from llamaswap.scheduling.simulation import EvictAll, RecordedRequest, ServerTimes, Simulation, WaitTimes
from llamaswap.scheduling.state import IDLE_LINGER_LOADS, ModelRules, Rules
from tests.scheduling.world import fifo

LOAD = 10.0
STOP = 1.0
NOTHING = Ledger({})


def rules(models="abc", evict=None, by_memory=False, **more):
    known = {model: more.pop(model, ModelRules()) for model in models}
    together = GroupEviction({"(default)": Group(swap=False, exclusive=False)})
    return Rules(known, evict or (together if by_memory else EvictAll()), fifo(**more), by_memory=by_memory)


def on_gpu(total, hold=0.0, **sizes):
    """One GPU with `total` GiB; the models use so many GiB of it."""
    needs = {model: MemoryNeed(0, ((GpuShare(size * 1024),),)) for model, size in sizes.items()}
    return Ledger({"ram": Device(65536), "gpu0": Device(total * 1024)}, needs, hold=hold)


def played(rules, *requests, ledger=NOTHING, load=lambda model: LOAD, replicas=None):
    """Each request is (time, model, duration)."""
    simulation = Simulation(rules, ledger, ServerTimes(load, STOP), replicas or {})
    return simulation.run(RecordedRequest(*request) for request in requests)


class SimulationTests(SynchronousTestCase):
    def test_first_request_waits_for_the_load_and_later_ones_do_not_wait(self):
        result = played(rules(), (0, "a", 5), (20, "a", 5))
        self.assertEqual((result.requests, result.loads["a"], result.load_seconds), (2, 1, LOAD))
        self.assertEqual((result.waits.longest, result.waits.total), (LOAD, LOAD))

    def test_swap_takes_the_stop_and_the_load(self):
        result = played(rules(), (0, "a", 5), (100, "b", 5))
        self.assertEqual((dict(result.loads), result.load_seconds), ({"a": 1, "b": 1}, 2 * LOAD))
        self.assertEqual(result.waits.longest, STOP + LOAD)

    def test_request_waits_until_the_other_model_has_finished(self):
        result = played(rules(), (0, "a", 30), (15, "b", 5))
        late = result.waits.longest - (LOAD + 30 - 15 + STOP + LOAD)
        self.assertTrue(0 <= late <= IDLE_LINGER_LOADS * LOAD, late)

    def test_models_that_fit_together_are_each_loaded_once(self):
        traffic = [(100 * turn, "ab"[turn % 2], 5) for turn in range(10)]
        swapping = played(rules(), *traffic)
        memory = played(rules(by_memory=True), *traffic, ledger=on_gpu(24, a=10, b=10))
        self.assertEqual((swapping.loads.total(), memory.loads.total()), (10, 2))

    def test_model_larger_than_the_machine_is_refused(self):
        result = played(rules(by_memory=True), (0, "a", 5), ledger=on_gpu(24, a=30))
        self.assertEqual((dict(result.refused), result.waits.count), ({"DoesNotFit": 1}, 0))

    def test_full_queue_refuses_requests(self):
        result = played(rules(max_queue=1), (0, "a", 50), (20, "b", 5), (21, "b", 5))
        self.assertEqual(dict(result.refused), {"QueueFull": 1})

    def test_idle_model_is_unloaded_after_its_ttl(self):
        limited = rules(a=ModelRules(ttl=60))
        self.assertEqual(played(limited, (0, "a", 5), (70, "a", 5)).loads["a"], 1)
        self.assertEqual(played(limited, (0, "a", 5), (80, "a", 5)).loads["a"], 2)

    def test_suspended_model_resumes_in_less_time_than_a_load(self):
        sleepy = rules(a=ModelRules(can_suspend=True))
        result = played(sleepy, (0, "a", 5), (100, "b", 5), (200, "a", 5))
        self.assertEqual((result.loads["a"], result.load_seconds), (2, 2 * LOAD + 1.0))

    def test_replicas_share_the_requests_of_their_model(self):
        servers = Selector("a", "spillover", ("a", "a-2"))
        together = rules(("a", "a-2"), GroupEviction({"(default)": Group(swap=False, exclusive=False)}))
        result = played(together, *((0, "a", 50) for _ in range(4)), replicas={"a": servers})
        self.assertEqual(dict(result.loads), {"a": 1, "a-2": 1})

    def test_every_request_is_granted_or_refused_and_two_runs_are_equal(self):
        traffic, load, sizes = mixed_traffic(seed=5, requests=1500)
        for chosen in (rules(sizes), rules(sizes, by_memory=True)):
            one, two = (played(chosen, *traffic, ledger=on_gpu(24, **sizes), load=load) for _ in range(2))
            self.assertEqual(one.waits.count + one.refused.total(), one.requests)
            self.assertEqual(one, two)


class WaitTimesTests(SynchronousTestCase):
    def test_quantiles_are_exact_to_one_percent(self):
        waits = WaitTimes()
        for hundredths in range(1, 1001):
            waits.add(hundredths / 100)
        for share in (0.05, 0.5, 0.95, 1.0):
            self.assertLess(abs(waits.quantile(share) - share * 10), share * 0.1)

    def test_without_waits_every_quantile_is_zero(self):
        waits = WaitTimes()
        self.assertEqual(waits.quantile(0.95), 0.0)
        waits.add(0.0)
        self.assertEqual(waits.quantile(0.95), 0.0)


MIX = {  # GiB on the card, and seconds for a load
    "embed": (1, 2), "rerank": (1, 2), "whisper": (3, 3), "tiny": (3, 3), "small": (5, 4), "vision": (7, 6),
    "coder": (9, 8), "chat": (10, 8), "long": (14, 10), "large": (19, 15), "vllm": (20, 50), "huge": (21, 18),
}  # fmt: skip
POPULARITY = (20, 6, 5, 8, 8, 4, 14, 14, 4, 4, 6, 2)


def mixed_traffic(seed, requests):
    """Sessions of one to twelve requests for one model, some of which ask the embedding model too; returns the
    traffic, the load times and the sizes."""
    chance, found, at = Random(seed), [], 0.0
    while len(found) < requests:
        at += chance.expovariate(1 / 80)
        [model] = chance.choices(list(MIX), POPULARITY)
        moment = at
        for _ in range(chance.randint(1, 12)):
            duration = chance.uniform(0.1, 0.5) if model in ("embed", "rerank") else chance.uniform(1, 12)
            if chance.random() < 0.3:
                found.append((moment, "embed", 0.2))
            found.append((moment, model, duration))
            moment += duration + chance.expovariate(1 / 8)
    found.sort()
    return found[:requests], lambda model: MIX[model][1], {model: size for model, (size, _) in MIX.items()}


class MemoryPolicyTests(SynchronousTestCase):
    def test_memory_saves_forty_percent_of_the_load_seconds_of_one_model_at_a_time(self):
        for seed in range(3):
            traffic, load, sizes = mixed_traffic(seed, 3000)
            ledger = evolve(on_gpu(24, hold=10.0, **sizes), load_seconds={model: load(model) for model in sizes})
            swapping = played(rules(sizes), *traffic, load=load)
            memory = played(rules(sizes, by_memory=True), *traffic, ledger=ledger, load=load)
            self.assertEqual((swapping.refused.total(), memory.refused.total()), (0, 0))
            self.assertLess(memory.load_seconds, 0.6 * swapping.load_seconds)
            self.assertLess(memory.waits.total, swapping.waits.total)
