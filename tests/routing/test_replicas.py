"""A model with replicas: the choice among its servers, and commands that act on all of them."""

from __future__ import annotations

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import FifoSettings, Model, Routing
from llamaswap.config.diff import diff
from llamaswap.config.schema.memory import MemorySettings
from llamaswap.config.schema.routing import QueueSettings, SchedulerSettings
from llamaswap.errors import RequestError, StartFailed
from llamaswap.scheduling.memory import Device, GpuShare, Ledger, MemoryNeed
from tests.routing.test_router import Scene, scene


def pair(**more: object) -> Scene:
    """`a` with a replica `a.r2`, and `b`, in the default group."""
    here = scene("a", "b", **more)
    copy = Model("a.r2", cmd="serve a", replica_of="a", unlisted=True)
    new = evolve(here.config, models={**here.config.models, copy.id: copy})
    here.router.apply(new, diff(here.router.config, new))
    return here


class ReplicaTests(SynchronousTestCase):
    def test_next_server_is_loaded_when_all_loaded_ones_are_busy_and_the_fewest_requests_win(self) -> None:
        here = pair()
        first = here.router.choose_replica("a")
        self.assertEqual(first.target, "a")
        here.loaded("a")
        second = here.router.choose_replica("a")
        self.assertEqual(second.target, "a.r2")
        here.loaded("a.r2")
        self.assertEqual(sorted(here.fleet.up), ["a", "a.r2"])
        first.release()
        self.assertEqual(here.router.choose_replica("a").target, "a")

    def test_idle_model_has_one_server(self) -> None:
        here = pair()
        for _ in range(5):
            choice = here.router.choose_replica("a")
            here.loaded(choice.target)
            choice.release()
        self.assertEqual(sorted(here.fleet.up), ["a"])

    def test_server_that_stops_counts_as_stopped_and_is_no_error(self) -> None:
        here = pair(servers={"a": {"exit": 5.0}})
        here.loaded("a")
        here.router.unload(["a"])
        here.settle()
        self.assertEqual(here.router.state("a"), "stopping")
        self.assertIn(here.router.choose_replica("a").target, ("a", "a.r2"))

    def test_request_that_may_not_load_gets_a_ready_server(self) -> None:
        here = pair().loaded("a")
        here.router.choose_replica("a")
        self.assertEqual(here.router.choose_replica("a", loaded=True).target, "a")

    def test_server_for_which_there_is_no_room_is_not_chosen_while_another_is_loaded(self) -> None:
        here = pair(routing=Routing(memory=MemorySettings("on")))
        need = MemoryNeed(0, ((GpuShare(16),),), "learned")
        devices = {"ram": Device(64), "gpu0": Device(24)}
        here.router.memory_changed(Ledger(devices, dict.fromkeys(("a", "a.r2", "b"), need), hold=0.0))
        lease = here.lease("a")
        first = here.router.choose_replica("a")
        self.assertEqual([first.target, here.router.choose_replica("a").target], ["a", "a"])
        self.assertEqual(here.router.forecast("a.r2").evicts, ())
        lease.release()

    def test_server_that_keeps_failing_is_not_chosen_while_another_is_loaded(self) -> None:
        here = pair(servers={"a.r2": {"failure": StartFailed("a.r2", "no memory")}}).loaded("a")
        here.router.choose_replica("a")
        for _ in range(3):
            waiting = here.router.request("a.r2")
            here.settle()
            self.failureResultOf(waiting.granted, RequestError)
        self.assertEqual(here.router.choose_replica("a").target, "a")

    def test_load_pin_and_unload_act_on_all_servers(self) -> None:
        here = pair()
        done: list[None] = []
        here.router.load("a").addCallback(done.append)
        here.settle()
        self.assertEqual((done, sorted(here.fleet.up)), ([None], ["a", "a.r2"]))
        here.router.pin("a")
        self.assertEqual(here.router.pinned, {"a", "a.r2"})
        here.router.unpin("a")
        self.assertEqual(here.router.pinned, frozenset())
        here.router.unload(["a"])
        here.settle()
        self.assertEqual(sorted(here.fleet.up), [])

    def test_load_fails_if_one_server_does_not_start(self) -> None:
        here = pair(servers={"a.r2": {"failure": StartFailed("a.r2", "no memory")}})
        loading = here.router.load("a")
        here.settle()
        self.failureResultOf(loading, StartFailed)
        self.assertEqual(sorted(here.fleet.up), ["a"])

    def test_one_server_can_be_unloaded_by_its_own_name(self) -> None:
        here = pair().loaded("a", "a.r2")
        here.router.unload(["a.r2"])
        here.settle()
        self.assertEqual(sorted(here.fleet.up), ["a"])

    def test_another_model_evicts_both_servers(self) -> None:
        here = pair().loaded("a", "a.r2")
        self.assertEqual(here.router.forecast("b").evicts, ("a", "a.r2"))
        here.loaded("b")
        self.assertEqual(sorted(here.fleet.up), ["b"])

    def test_priority_of_the_model_is_that_of_its_servers(self) -> None:
        fifo = SchedulerSettings(FifoSettings(priority={"a": 7}))
        here = pair(routing=Routing(scheduler=QueueSettings("fifo", fifo)))
        self.assertEqual(here.lease("a.r2").ticket.priority, 7)
