"""The router with several hosts: where servers are started, and what happens to leases when a host vanishes."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import Config, Routing
from llamaswap.config.schema.hosts import Hosts, Place
from llamaswap.config.schema.memory import GpuChoice, MemorySettings
from llamaswap.errors import StartFailed
from llamaswap.events import SwapBegan
from llamaswap.routing.leases import Lease
from llamaswap.scheduling.hosts import HostFacts
from llamaswap.scheduling.memory import Device, GpuShare, Ledger, MemoryNeed
from tests.doubles import NoMemoryReclaim
from tests.routing.test_router import Scene, models, results


class NoLocalMemory(NoMemoryReclaim):
    """Fails a test in which the memory of this machine is waited for."""

    def loading(self, model: str) -> None:
        raise AssertionError(f"{model} is not loaded on this machine")

    wait_for_reclaim = loaded = loading


def scene(memory: str = "on", **others: HostFacts) -> Scene:
    """A machine with 10 MiB of RAM; models need 30 MiB of a GPU."""
    placed = {"gpus": GpuChoice(count=1), "place": Place()}
    config = Config(models=models(*"ab", **placed), routing=Routing(memory=MemorySettings(memory)), hosts=Hosts())
    here = Scene(config, memory=NoLocalMemory())
    need = MemoryNeed(0, ((GpuShare(30),),), "learned")
    here.router.memory_changed(Ledger({"ram": Device(10)}, dict.fromkeys("ab", need), hold=0.0))
    here.router.hosts_changed(others)
    return here


def box(name: str, *gpus: int, **more: object) -> HostFacts:
    sizes = {f"gpu{number}": Device(size) for number, size in enumerate(gpus)}
    return HostFacts(name, Ledger({"ram": Device(100), **sizes}), **more)


class HostTests(SynchronousTestCase):
    def test_supervisor_learns_the_host_the_gpus_and_the_generation_before_the_start(self) -> None:
        here = scene(nas=box("nas", 10, 40)).loaded("a")
        self.assertEqual(here.fleet["a"].places, [("nas", ("gpu1",), 1)])
        self.assertEqual(here.fleet["a"].spawned, 1)
        self.assertEqual(here.events(SwapBegan)[0].host, "nas")
        self.assertIn("on nas; ", here.events(SwapBegan)[0].reason)
        self.assertEqual((here.router.host_of("a"), here.router.host_of("b")), ("nas", ""))
        self.assertEqual([*here.router.hosts], ["", "nas"])

    def test_plan_names_the_host_and_the_wait_says_which_hosts_are_missing(self) -> None:
        here = scene(nas=box("nas", 40))
        self.assertEqual(here.router.forecast("a").host, "nas")
        here.router.hosts_changed({"nas": box("nas", 40, online=False)})
        here.router.request("a")
        self.assertIn("nas is offline", here.router.wait_reason("a").reason)

    def test_wait_for_a_busy_model_names_the_host(self) -> None:
        here = scene(nas=box("nas", 40))
        here.lease("a")
        self.assertEqual(here.router.shown_host("a"), "nas")
        self.assertIsNone(here.router.shown_host("b"))
        self.assertEqual(here.router.shown_host("b", here.router.forecast("b")), "nas")
        here.router.request("b")
        self.assertEqual(here.router.wait_reason("b").reason, "waiting for a to finish on nas")

    def test_lease_of_an_unreachable_host_may_have_ended_until_it_answers_or_is_offline(self) -> None:
        here = scene(nas=box("nas", 40))
        lease = here.lease("a")
        here.router.hosts_changed({"nas": box("nas", 40, unreachable=True)})
        self.assertEqual((lease.may_have_ended, lease.lost), (True, False))
        here.router.hosts_changed({"nas": box("nas", 40)})
        self.assertEqual((lease.may_have_ended, lease.lost), (False, False))
        here.router.hosts_changed({"nas": box("nas", 40, unreachable=True)})
        here.router.hosts_changed({"nas": box("nas", 40, online=False)})
        self.assertEqual((lease.may_have_ended, lease.lost), (False, True))

    def test_program_that_is_missing_here_does_not_keep_a_model_from_other_hosts(self) -> None:
        here = scene(nas=box("nas", 40))
        here.fleet["a"].unstartable = StartFailed("a", "serve: not found", None)
        waiting = here.router.request("a")
        here.settle()
        self.assertIsInstance(results(waiting)[0], Lease)

    def test_leases_of_a_vanished_host_are_lost_and_the_next_one_is_elsewhere(self) -> None:
        here = scene(nas=box("nas", 40), gpu=box("gpu", 40))
        lease = here.lease("a")
        self.assertEqual(here.router.host_of("a"), "gpu")
        here.router.hosts_changed({"nas": box("nas", 40)})
        self.assertTrue(lease.lost)
        again = here.lease("a")
        self.assertFalse(again.lost)
        self.assertEqual(here.router.host_of("a"), "nas")
        lease.release()

    def test_responses_of_a_vanished_host_are_cut_with_the_reason(self) -> None:
        here = scene(nas=box("nas", 40))
        here.fleet["a"].token = "t"
        lease, cut = here.lease("a"), []
        lease.interrupt = cut.append
        here.router.hosts_changed({})
        self.assertEqual([str(error) for error in cut], ["a: nas is offline"])
        lease.release()

    def test_request_whose_load_was_on_a_vanished_host_is_granted_elsewhere(self) -> None:
        here = scene(nas=box("nas", 40), gpu=box("gpu", 40))
        here.fleet["a"].load = 5.0
        waiting = here.router.request("a")
        here.settle()
        here.router.hosts_changed({"nas": box("nas", 40)})
        here.settle()
        here.clock.advance(5.0)
        here.settle()
        self.assertIsInstance(results(waiting)[0], Lease)
        self.assertEqual([place[0] for place in here.fleet["a"].places], ["gpu", "nas"])

    def test_lost_models_are_loaded_elsewhere_on_demand_of_the_operator(self) -> None:
        here = scene(nas=box("nas", 40), gpu=box("gpu", 40), old=box("old", 40)).loaded("a")
        here.router.hosts_changed({"old": box("old", 40, online=True)})
        here.router.hosts_changed({})
        self.assertEqual(sorted(here.router.missed_hosts), ["gpu", "nas", "old"])
        here.router.hosts_changed({"new": box("new", 40)})
        found = results(here.router.request("a"))
        here.settle()
        self.assertEqual(found, [])
        here.router.load_lost_elsewhere()
        here.settle()
        self.assertIsInstance(found[0], Lease)
