"""Leases of memory: they wait, evict and hold memory as models do, and end when they are not renewed."""

from itertools import count

from attrs import evolve
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import Config, Group, Routing
from llamaswap.config.diff import diff
from llamaswap.config.schema.memory import MemorySettings
from llamaswap.errors import DoesNotFit, LeaseRefused, ShuttingDown
from llamaswap.events import SwapBegan
from llamaswap.routing.memory_leases import MAX_LEASES, LeaseRequest, MemoryLeases
from llamaswap.scheduling.memory import Device, GpuShare, Ledger, MemoryNeed
from llamaswap.scheduling.memory_leases import HeldMemory, ledger_with
from tests.routing.test_router import grouped, models, results, scene

GIB = 1024
BY_MEMORY = Routing(memory=MemorySettings(mode="on"))


class Desk:
    """A router with two GPUs of 24 GiB, models that use 10 GiB each, and leases."""

    def __init__(self, gpus=2, **changes):
        self.here = scene("a", "b", "c", routing=BY_MEMORY, **changes)
        self.router, self.clock = self.here.router, self.here.clock
        numbers = count(1)
        self.leases = MemoryLeases(self.router, self.clock, lambda: str(next(numbers)))
        self.gpus = gpus
        self.measured()

    def measured(self, used=None, hold=0.0, known="abc", sizes=None, **foreign):
        devices = {"ram": Device(64 * GIB, 0, foreign.get("ram", 0))}
        devices |= {f"gpu{n}": Device(24 * GIB, 0, foreign.get(f"gpu{n}", 0)) for n in range(self.gpus)}
        needs = {model: MemoryNeed(0, ((GpuShare((sizes or {}).get(model, 10) * GIB),),)) for model in known}
        self.router.memory_changed(Ledger(devices, needs, used or {}, {}, hold))
        self.here.settle()

    def take(self, vram=0, ram=0, gpus=1, seconds=60.0, wait=None, pid=0, name="train"):
        """What came of a request so far: a list with the lease or the failure's value, empty while it waits."""
        found = []
        request = LeaseRequest(name, ram * GIB, vram * GIB, gpus if vram else 0, seconds, pid)
        taking = Deferred.fromCoroutine(self.leases.take(request, wait))
        taking.addCallbacks(found.append, lambda failure: found.append(failure.value))
        self.here.settle()
        self.taking = taking
        return found

    def held(self, *args, **options):
        [lease] = self.take(*args, **options)
        return lease


class GrantTests(SynchronousTestCase):
    def test_lease_is_granted_on_free_gpus(self):
        desk = Desk()
        lease = desk.held(vram=12)
        self.assertEqual((lease.gpus, dict(lease.sizes)), ((0,), {"gpu0": 12 * GIB}))
        both = desk.held(vram=20, ram=4, gpus=2)
        self.assertEqual((both.gpus, both.sizes), ((0, 1), {"ram": 4 * GIB, "gpu0": 10 * GIB, "gpu1": 10 * GIB}))

    def test_idle_model_is_evicted_for_a_lease(self):
        desk = Desk(gpus=1)
        desk.here.loaded("a", "b")
        lease = desk.held(vram=12)
        self.assertEqual(len(desk.here.fleet.up), 1)
        began = desk.here.events(SwapBegan)[-1]
        self.assertEqual((began.model, began.origin, len(began.evicted)), (lease.model, "lease", 1))
        self.assertIn("12.0 GiB of gpu0 (lease)", began.reason)

    def test_busy_model_is_waited_for(self):
        desk = Desk(gpus=1)
        serving = desk.here.lease("a")
        found = desk.take(vram=20)
        self.assertEqual(found, [])
        [waiting] = desk.leases.all()
        self.assertEqual(desk.router.wait_reason(waiting.model).reason, "waiting for a to finish")
        self.assertEqual([one.model for one in desk.router.queue()], [waiting.model])
        serving.release()
        desk.here.settle()
        self.assertEqual(found, [waiting])

    def test_model_that_does_not_fit_beside_a_lease_waits_until_it_ends(self):
        desk = Desk(gpus=1)
        lease = desk.held(vram=20)
        request = desk.router.request("a")
        answers = results(request)
        desk.here.settle()
        self.assertEqual(answers, [])
        self.assertEqual(desk.router.wait_reason("a").reason, f"waiting for {lease.model} to finish")
        desk.leases.end(lease)
        desk.here.settle()
        self.assertEqual(len(answers), 1)
        self.assertEqual(desk.here.fleet.up, ["a"])

    def test_model_that_fits_is_loaded_beside_a_lease(self):
        desk = Desk(gpus=1)
        desk.held(vram=12)
        desk.here.loaded("a")
        self.assertEqual((desk.here.fleet.up, len(desk.leases.all())), (["a"], 1))

    def test_model_of_unknown_need_is_loaded_beside_a_lease_and_evicts_all_models(self):
        """A program may run for hours, and what it uses is known."""
        desk = Desk(gpus=1)
        desk.measured(known="ab")
        lease = desk.held(vram=4)
        desk.here.loaded("a", "c")
        self.assertEqual((desk.here.fleet.up, desk.leases.find(lease.id)), (["c"], lease))

    def test_request_that_waits_for_a_lease_does_not_keep_other_models_from_loading(self):
        desk = Desk(gpus=1)
        desk.measured(sizes={"a": 20, "b": 8})
        desk.held(vram=12, seconds=3600.0)
        desk.router.request("a")
        desk.clock.advance(60.0)
        desk.here.loaded("b")

    def test_model_waits_for_a_busy_model_rather_than_for_a_lease(self):
        desk = Desk(gpus=1)
        lease = desk.held(vram=12)
        desk.here.lease("a")
        desk.router.request("b")
        desk.here.settle()
        self.assertEqual(desk.router.wait_reason("b").models, ("a",))
        self.assertIs(desk.leases.find(lease.id), lease)

    def test_groups_and_leases_do_not_evict_one_another(self):
        desk = Desk()
        desk.here.loaded("a")
        config = desk.router.config
        routing = evolve(grouped(all=Group(members=("a", "b"))), memory=BY_MEMORY.memory)
        swapping = evolve(config, routing=routing)
        desk.router.apply(swapping, diff(config, swapping))
        lease = desk.held(vram=4)
        desk.here.loaded("b")
        self.assertIs(desk.leases.find(lease.id), lease)
        self.assertEqual(desk.here.fleet.up, ["b"])

    def test_lease_is_not_one_of_the_requests_at_a_time(self):
        desk = Desk()
        fifo = evolve(BY_MEMORY.scheduler.settings.fifo, max_concurrent=1)
        settings = evolve(BY_MEMORY.scheduler.settings, fifo=fifo)
        routing = evolve(BY_MEMORY, scheduler=evolve(BY_MEMORY.scheduler, settings=settings))
        config = evolve(desk.router.config, routing=routing)
        desk.router.apply(config, diff(desk.router.config, config))
        desk.held(vram=4)
        desk.here.lease("a")


class RefusalTests(SynchronousTestCase):
    def test_lease_larger_than_the_machine_is_refused(self):
        [error] = Desk().take(vram=30)
        self.assertIsInstance(error, DoesNotFit)

    def test_lease_on_more_gpus_than_there_are_evicts_nothing(self):
        desk = Desk(gpus=0)
        desk.here.loaded("a")
        [error] = desk.take(vram=4)
        self.assertIsInstance(error, DoesNotFit)
        self.assertEqual((desk.here.fleet.up, desk.leases.all()), (["a"], []))

    def test_lease_without_a_wait_is_refused_with_the_reason(self):
        desk = Desk(gpus=1)
        desk.here.lease("a")
        [error] = desk.take(vram=20, wait=0)
        self.assertEqual(str(error), "lease:train-1 was not granted: waiting for a to finish")
        self.assertEqual(desk.leases.all(), [])

    def test_lease_without_a_wait_evicts_an_idle_model(self):
        desk = Desk(gpus=1)
        desk.here.loaded("a")
        self.assertEqual(desk.held(vram=20, wait=0).gpus, (0,))

    def test_wait_ends_with_what_was_in_the_way(self):
        desk = Desk(gpus=1)
        desk.here.lease("a")
        found = desk.take(vram=20, wait=5.0)
        desk.clock.advance(5.0)
        self.assertIsInstance(found[0], LeaseRefused)
        self.assertEqual((found[0].reason, desk.leases.all()), ("waiting for a to finish", []))
        self.assertEqual(desk.router.queue(), [])

    def test_client_that_leaves_gives_up_its_place(self):
        desk = Desk(gpus=1)
        serving = desk.here.lease("a")
        found = desk.take(vram=20)
        desk.taking.cancel()
        self.assertIsInstance(found[0], CancelledError)
        self.assertEqual((desk.leases.all(), desk.router.queue()), ([], []))
        serving.release()
        desk.here.settle()
        self.assertEqual(desk.here.fleet.up, ["a"])

    def test_seventeenth_lease_is_refused(self):
        desk = Desk()
        for _ in range(MAX_LEASES):
            desk.held(ram=1)
        [error] = desk.take(ram=1)
        self.assertIn("16 leases", str(error))

    def test_waiting_lease_is_refused_if_memory_does_not_decide_any_more(self):
        desk = Desk(gpus=1)
        desk.here.lease("a")
        found = desk.take(vram=20)
        config = evolve(desk.router.config, routing=Routing())
        desk.router.apply(config, diff(desk.router.config, config))
        desk.here.settle()
        self.assertIsInstance(found[0], LeaseRefused)
        self.assertEqual(desk.leases.all(), [])

    def test_unmeasured_machine_refuses_leases(self):
        desk = Desk()
        desk.router.memory_changed(Ledger({}))
        self.assertIsInstance(desk.take(ram=1)[0], LeaseRefused)


class EndTests(SynchronousTestCase):
    def test_lease_that_is_not_renewed_ends(self):
        desk = Desk(gpus=1)
        lease = desk.held(vram=20, seconds=30.0)
        desk.clock.advance(20.0)
        desk.leases.renew(lease, 30.0)
        desk.clock.advance(20.0)
        self.assertIs(desk.leases.find(lease.id), lease)
        desk.clock.advance(10.0)
        self.assertIsNone(desk.leases.find(lease.id))
        desk.here.loaded("a")

    def test_ended_lease_leaves_nothing_in_the_router(self):
        desk = Desk()
        before = desk.router.ledger
        lease = desk.held(vram=4)
        desk.leases.end(lease)
        desk.here.settle()
        self.assertEqual((desk.router.ledger, desk.router.state(lease.model)), (before, "stopped"))
        self.assertRaises(LookupError, desk.here.fleet.__getitem__, lease.model)
        self.assertEqual([call.func for call in desk.clock.getDelayedCalls()], [])

    def test_reload_keeps_leases(self):
        desk = Desk(gpus=1)
        lease = desk.held(vram=20)
        config = Config(models=models("a", "b", "d"), routing=BY_MEMORY)
        desk.router.apply(config, diff(desk.router.config, config))
        desk.here.settle()
        self.assertIs(desk.leases.find(lease.id), lease)
        self.assertFalse(lease.held.lost)

    def test_unload_of_all_models_keeps_leases(self):
        desk = Desk()
        lease = desk.held(vram=4)
        desk.here.loaded("a")
        desk.router.unload()
        desk.here.settle()
        self.assertEqual((desk.here.fleet.up, lease.held.lost), ([], False))

    def test_shutdown_ends_leases_and_refuses_waiting_ones(self):
        desk = Desk(gpus=1)
        lease = desk.held(vram=20)
        found = desk.take(vram=20)
        ended = []
        desk.router.shutdown(10.0).addCallback(ended.append)
        desk.here.settle()
        self.assertEqual(ended, [None])
        self.assertIsInstance(found[0], ShuttingDown)
        self.assertTrue(lease.held.lost)
        desk.leases.close()
        self.assertEqual(desk.leases.all(), [])

    def test_held_lease_does_not_keep_the_router_from_an_upgrade(self):
        desk = Desk()
        desk.held(vram=4)
        self.assertTrue(desk.router.settled)

    def test_next_program_of_an_upgrade_keeps_the_lease_and_its_memory(self):
        old = Desk(gpus=1)
        lease = old.held(vram=20, seconds=30.0)
        old.clock.advance(10.0)
        [handed] = old.leases.hand_over()
        new = Desk(gpus=1)
        new.measured(gpu0=5 * GIB)
        new.leases.adopt(handed)
        self.assertEqual(new.router.ledger.devices["gpu0"].foreign, 0, "the program's use")
        new.here.settle()
        self.assertEqual(new.leases.find(lease.id).gpus, (0,))
        request = new.router.request("a")
        new.here.settle()
        self.assertEqual(new.router.wait_reason("a").models, (lease.model,))
        new.clock.advance(20.0)
        new.here.settle()
        self.assertEqual(len(results(request)), 1)


class LedgerTests(SynchronousTestCase):
    NEED = {"lease:x": MemoryNeed(0, ((GpuShare(8000),),), "lease")}

    def counted(self, foreign, measured=0, before=0):
        used = {"lease:x": {"gpu0": measured}} if measured else {}
        ledger = Ledger({"ram": Device(64000), "gpu0": Device(24000, 0, foreign)}, {}, used)
        found = ledger_with(ledger, self.NEED, {"lease:x": HeldMemory({"gpu0": 8000}, {"gpu0": before})})
        return found.devices["gpu0"].foreign, found.used["lease:x"]["gpu0"]

    def test_use_of_an_unknown_program_is_counted_as_that_of_the_lease(self):
        self.assertEqual(self.counted(foreign=5000), (0, 8000))
        self.assertEqual(self.counted(foreign=9000), (1000, 8000))

    def test_use_from_before_the_lease_stays_foreign(self):
        self.assertEqual(self.counted(foreign=3000, before=3000), (3000, 8000))
        self.assertEqual(self.counted(foreign=9000, before=3000), (3000, 8000))

    def test_measured_use_is_not_taken_from_foreign_use_too(self):
        self.assertEqual(self.counted(foreign=5000, measured=8000), (5000, 8000))
        self.assertEqual(self.counted(foreign=5000, measured=6000), (3000, 8000))

    def test_lease_that_uses_more_than_it_was_given_counts_as_measured(self):
        self.assertEqual(self.counted(foreign=0, measured=9000), (0, 9000))
