"""The router: leases, swaps performed with stand-in servers, unloading, reload and the end."""

from __future__ import annotations

from math import inf

from attrs import Factory, define, evolve
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import (
    Config,
    ConfigText,
    FifoSettings,
    Group,
    Matrix,
    Model,
    Profile,
    Routing,
    Selector,
    load,
)
from llamaswap.config.diff import diff
from llamaswap.config.matrix import compile_sets
from llamaswap.config.policies import RouterSettings
from llamaswap.config.schema import HookSettings, OnStartup
from llamaswap.config.schema.memory import MemorySettings
from llamaswap.config.schema.model import SuspendSettings
from llamaswap.config.schema.routing import EvictionSettings as RouterConfig
from llamaswap.config.schema.routing import QueueSettings, SchedulerSettings
from llamaswap.errors import (
    BeingUpgraded,
    FailureRecord,
    KeepsFailing,
    ModelUnloaded,
    NoTarget,
    NotReady,
    QueueFull,
    ServerVanished,
    ShuttingDown,
    StartFailed,
    Superseded,
    TooManyRequests,
    UnknownModel,
)
from llamaswap.events import (
    EventBus,
    LoadFailed,
    Preloaded,
    ProfileChanged,
    SleepEnded,
    StateChanged,
    SwapBegan,
    SwapEnded,
)
from llamaswap.routing.interfaces import WaitStatus
from llamaswap.routing.leases import Lease, PendingLease
from llamaswap.routing.router import Router
from llamaswap.scheduling.memory import Device, GpuShare, Ledger, MemoryNeed
from llamaswap.servers.server_snapshot import ServerSnapshot
from llamaswap.upgrade.state import UpgradeState, pack, unpack
from tests.doubles import FakeFleet, NoMemoryReclaim


def models(*names: str, **changes: object) -> dict[str, Model]:
    return {name: Model(name, cmd=f"serve {name}", **changes) for name in names}


def grouped(**groups: Group) -> Routing:
    return Routing(router=RouterConfig("group", RouterSettings(groups=groups)))


TOGETHER = grouped(all=Group(swap=False, members=("a", "b", "c")))


@define(eq=False)
class Scene:
    """A router over stand-in servers, on a clock."""

    config: Config
    clock: Clock = Factory(Clock)
    fleet: FakeFleet = Factory(lambda self: FakeFleet(self.clock), takes_self=True)
    published: list[object] = Factory(list)
    faults: list[Exception] = Factory(list)
    bus: EventBus = Factory(lambda self: EventBus(self.faults.append), takes_self=True)
    memory: object = Factory(NoMemoryReclaim)
    router: Router = Factory(lambda self: self.build(), takes_self=True)

    def build(self) -> Router:
        for kind in (StateChanged, SleepEnded, SwapBegan, SwapEnded, ProfileChanged, Preloaded, LoadFailed):
            self.bus.subscribe(kind, self.published.append)
        return Router(self.config, self.fleet, self.clock, self.bus, self.memory)

    def events(self, kind: type) -> list:
        return [event for event in self.published if type(event) is kind]

    def settle(self, turns: int = 12) -> None:
        self.clock.pump([0.0] * turns)

    def lease(self, model: str) -> Lease:
        leases: list[Lease] = []
        self.router.request(model).granted.addCallback(leases.append)
        self.settle()
        [lease] = leases
        return lease

    def loaded(self, *names: str) -> Scene:
        for name in names:
            self.lease(name).release()
        self.settle()
        return self


def scene(
    *names: str,
    routing: Routing | None = None,
    servers: dict | None = None,
    memory: object = None,
    **changes: object,
) -> Scene:
    clock = Clock()
    fleet = FakeFleet(clock, defaults=servers or {})
    config = Config(models=models(*(names or "abc"), **changes), routing=routing or Routing())
    return Scene(config, clock, fleet, memory=memory or NoMemoryReclaim())


def results(*acquisitions: PendingLease) -> list[object]:
    """What each was answered so far, in the order asked; failures by class."""
    found: list[object] = []
    for acquisition in acquisitions:
        acquisition.granted.addBoth(
            lambda result: found.append(result if isinstance(result, Lease) else type(result.value))
        )
    return found


class RequestTests(SynchronousTestCase):
    def test_stopped_model_is_loaded_once_for_a_hundred_requests(self) -> None:
        """core V13, and llama-swap issue 281"""
        here = scene(servers={"a": {"load": 5.0}})
        acquisitions = [here.router.request("a") for _ in range(100)]
        answers = results(*acquisitions)
        self.assertTrue(all(one.refusal is None and not one.ready for one in acquisitions))
        here.settle()
        self.assertEqual(answers, [])
        here.clock.advance(5.0)
        here.settle()
        self.assertEqual(len(answers), 100)
        self.assertEqual(here.fleet.spawned(), {"a": 1})
        self.assertEqual(
            [(one.old, one.new) for one in here.events(StateChanged)], [("stopped", "starting"), ("starting", "ready")]
        )

    def test_lease_has_the_endpoint_and_the_priority(self) -> None:
        routing = Routing(scheduler=QueueSettings("fifo", SchedulerSettings(FifoSettings(priority={"a": 7}))))
        here = scene(routing=routing)
        lease = here.lease("a")
        self.assertEqual(
            (lease.ticket.model, lease.endpoint, lease.ticket.priority), ("a", here.fleet["a"].endpoint, 7)
        )
        self.assertFalse(lease.lost)

    def test_a_ready_model_is_granted_at_once(self) -> None:
        here = scene().loaded("a")
        acquisition = here.router.request("a")
        self.assertTrue(acquisition.ready)
        self.assertIsInstance(self.successResultOf(acquisition.granted), Lease)

    def test_refusal_is_known_when_the_request_returns(self) -> None:
        """core V51"""
        here = scene(concurrency_limit=1)
        self.assertIsInstance(here.router.request("zebra").refusal, UnknownModel)
        first = here.router.request("a")
        second = here.router.request("a")
        self.assertIsNone(first.refusal)
        self.assertIsInstance(second.refusal, TooManyRequests)
        self.failureResultOf(second.granted, TooManyRequests)
        second.cancel()

    def test_the_queue_of_a_model_is_bounded(self) -> None:
        routing = Routing(scheduler=QueueSettings("fifo", SchedulerSettings(FifoSettings(max_queue=3))))
        here = scene(routing=routing)
        for _ in range(3):
            here.router.request("a")
        self.assertIsInstance(here.router.request("a").refusal, QueueFull)

    def test_positions_are_reported_when_they_change(self) -> None:
        """core V97"""
        here = scene("a", "b", "c", "d")
        lease = here.lease("a")
        places: dict[str, list[int]] = {"b": [], "c": []}
        first = here.router.request("b", on_position=places["b"].append)
        here.router.request("c", on_position=places["c"].append)
        self.assertEqual(places, {"b": [1], "c": [2]})
        self.assertEqual([(one.model, one.position) for one in here.router.queue()], [("b", 1), ("c", 2)])
        first.cancel()
        self.assertEqual(places["c"], [2, 1])
        lease.release()

    def test_lease_released_twice_counts_once(self) -> None:
        here = scene()
        first, second = here.lease("a"), here.lease("a")
        first.release()
        first.release()
        self.assertEqual(here.router.health().serving, 1)
        second.release()
        self.assertEqual(here.router.health().serving, 0)

    def test_request_made_while_another_is_granted_is_answered_in_order(self) -> None:
        here = scene()
        order: list[str] = []

        def granted(lease: Lease) -> None:
            order.append("first")
            lease.release()
            here.router.request("a").granted.addCallback(lambda lease: order.append("nested"))
            order.append("asked")

        here.router.request("a").granted.addCallback(granted)
        here.router.request("a").granted.addCallback(lambda lease: order.append("second"))
        here.settle()
        self.assertEqual(order, ["first", "asked", "second", "nested"])
        self.assertEqual(here.router.health().serving, 2)

    def test_fault_of_one_caller_does_not_delay_the_others(self) -> None:
        here = scene()
        here.lease("a")

        def broken(place: int) -> None:
            raise ZeroDivisionError

        here.router.request("b", on_position=broken)
        places: list[int] = []
        here.router.request("c", on_position=places.append)
        self.assertEqual(places, [2])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class CancelTests(SynchronousTestCase):
    def test_queued_request_can_be_cancelled(self) -> None:
        """core V53"""
        here = scene()
        here.lease("a")
        acquisition = here.router.request("b")
        granted = acquisition.granted
        acquisition.cancel()
        acquisition.cancel()
        self.failureResultOf(granted, CancelledError)
        self.assertEqual(here.router.queue(), [])

    def test_cancelling_the_deferred_cancels_the_request(self) -> None:
        here = scene()
        here.lease("a")
        granted = here.router.request("b").granted
        granted.cancel()
        self.failureResultOf(granted, CancelledError)
        self.assertEqual(here.router.queue(), [])

    def test_cancelling_a_granted_request_releases_its_lease(self) -> None:
        here = scene().loaded("a")
        acquisition = here.router.request("a")
        acquisition.cancel()
        self.assertEqual(here.router.health().serving, 0)

    def test_load_without_requests_yields_to_a_requested_model(self) -> None:
        """core V49 as we mend it"""
        here = scene(servers={"a": {"load": 60.0}})
        here.router.request("a").cancel()
        here.settle()
        wanted = results(here.router.request("b"))
        here.settle()
        self.assertIsInstance(wanted[0], Lease)
        self.assertEqual(here.fleet.up, ["b"])
        self.assertEqual([event.error for event in here.events(SwapEnded)], ["abandoned", None])

    def test_many_cancelled_requests_cause_one_report_and_shutdown_leaves_no_timer(self) -> None:
        here = scene()
        here.lease("a")
        places: list[int] = []
        waiting = [here.router.request("b", on_position=places.append) for _ in range(200)]
        places.clear()
        for one in waiting[:100]:
            one.cancel()
        here.clock.advance(0.1)
        self.assertEqual(places, list(range(1, 101)))
        waiting[100].cancel()
        here.router.shutdown(5.0)
        here.settle()
        here.clock.advance(5.0)
        self.assertEqual(here.clock.getDelayedCalls(), [])


class StalledReaderTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.here = scene()
        self.lease = self.here.lease("a")
        self.reasons: list[str] = []
        self.lease.interrupt = lambda reason: (self.reasons.append(str(reason)), self.lease.release())

    def test_a_stalled_response_is_interrupted_for_a_waiting_request_which_is_then_served(self) -> None:
        here = self.here
        self.lease.reader_stalled(here.clock.seconds())
        here.clock.advance(100.0)
        answers = results(here.router.request("b"))
        here.clock.advance(59.0)
        self.assertEqual((self.reasons, answers), ([], []))
        here.clock.advance(1.0)
        here.settle()
        self.assertEqual(self.reasons, ["the client has read nothing for 160 s while a request for b waits"])
        self.assertEqual([answer.ticket.model for answer in answers], ["b"])

    def test_reader_that_reads_again_keeps_its_response(self) -> None:
        here = self.here
        self.lease.reader_stalled(here.clock.seconds())
        here.router.request("b")
        here.clock.advance(30.0)
        self.lease.reader_stalled(None)
        here.clock.advance(300.0)
        self.assertEqual(self.reasons, [])

    def test_a_released_lease_reports_nothing(self) -> None:
        here = self.here
        self.lease.release()
        self.lease.reader_stalled(here.clock.seconds())
        results(here.router.request("b"))
        here.clock.advance(300.0)
        self.assertEqual(self.reasons, [])


class SupersedeTests(SynchronousTestCase):
    def test_newer_request_takes_the_place_of_a_waiting_one_and_no_other_moves(self) -> None:
        """reliability R33"""
        here = scene("a", "b", "c")
        lease = here.lease("a")
        places: list[int] = []
        older = here.router.request("b")
        other = here.router.request("c")
        gone = results(older)
        newer = here.router.supersede(older, on_position=places.append)
        assert newer is not None
        self.assertEqual(gone, [Superseded])
        self.assertEqual([(one.model, one.position) for one in here.router.queue()], [("b", 1), ("c", 2)])
        self.assertEqual(places, [1])
        older.cancel()  # its client leaves too, which has no effect any more
        self.assertEqual(len(here.router.queue()), 2)
        answers = results(newer, other)
        lease.release()
        here.settle()
        assert isinstance(answers[0], Lease)
        self.assertEqual([event.model for event in here.events(SwapBegan)], ["a", "b"])

    def test_superseding_requests_in_a_row_keep_one_place_and_cause_one_load(self) -> None:
        here = scene("a", "b", servers={"b": {"load": 2.0}})
        lease = here.lease("a")
        last = here.router.request("b")
        refused: list[object] = []
        for _ in range(200):
            last.granted.addErrback(lambda failure: refused.append(failure.type))
            newer = here.router.supersede(last)
            assert newer is not None
            last = newer
            here.clock.advance(0.1)
        self.assertEqual((len(here.router.queue()), refused), (1, [Superseded] * 200))
        self.assertGreater(here.router.queue()[0].age, 19.0, "the train is as old as its first")
        lease.release()
        here.settle()
        newer = here.router.supersede(last)
        assert newer is not None, "it waits for the load now"
        answers = results(newer)
        here.clock.advance(2.0)
        here.settle()
        assert isinstance(answers[0], Lease)
        self.assertEqual(here.fleet["b"].spawned, 1)

    def test_served_or_cancelled_request_cannot_be_superseded(self) -> None:
        here = scene("a", "b").loaded("a")
        served = here.router.request("a")
        self.assertIsNone(here.router.supersede(served))
        waiting = here.router.request("b")
        waiting.cancel()
        self.assertIsNone(here.router.supersede(waiting))
        self.assertIsInstance(results(served)[0], Lease)

    def test_cancelled_newer_request_frees_the_place(self) -> None:
        here = scene("a", "b")
        lease = here.lease("a")
        older = here.router.request("b")
        newer = here.router.supersede(older)
        assert newer is not None
        newer.cancel()
        self.assertEqual(here.router.queue(), [])
        lease.release()
        here.settle()
        self.assertEqual(here.fleet.up, ["a"], "no request for b is left")


class SwapTests(SynchronousTestCase):
    def test_victims_stop_in_parallel_each_with_its_own_grace(self) -> None:
        """core V23 as we mend it"""
        routing = grouped(quiet=Group(swap=False, exclusive=False, members=("a", "b")))
        here = scene(routing=routing, servers={"a": {"stubborn": True}, "b": {"stubborn": True}})
        config = evolve(
            here.config, models={**here.config.models, "a": evolve(here.config.models["a"], unload_timeout=3.0)}
        )
        here.router.apply(config, diff(here.config, config))
        here.loaded("a", "b")
        wanted = results(here.router.request("c"))
        here.settle()
        self.assertEqual(here.fleet["a"].graces[-1:] + here.fleet["b"].graces[-1:], [3.0, 10.0])
        here.clock.advance(3.0)
        self.assertEqual(here.fleet.up, ["b"])
        here.clock.advance(6.9)
        self.assertEqual(here.fleet.spawned(), {"a": 1, "b": 1})
        here.clock.advance(0.1)
        here.settle()
        self.assertIsInstance(wanted[0], Lease)
        self.assertEqual(here.fleet.up, ["c"])

    def test_swap_events_contain_the_phases(self) -> None:
        here = scene(servers={"a": {"exit": 2.0}, "b": {"load": 3.0}})
        lease = here.lease("a")
        here.published.clear()
        here.router.request("b")
        here.clock.advance(4.0)
        lease.release()
        here.clock.advance(2.0)
        here.settle()
        here.clock.advance(3.0)
        here.settle()
        [began], [ended] = here.events(SwapBegan), here.events(SwapEnded)
        self.assertEqual((began.model, began.evicted, began.at), ("b", ("a",), 4.0))
        self.assertIn("(default)", began.reason)
        self.assertEqual((ended.swap, ended.error, ended.at), (began.swap, None, 9.0))
        self.assertEqual(ended.phases, {"queued": 4.0, "stop": 2.0, "start": 3.0})

    def test_stream_is_not_interrupted_for_another_request(self) -> None:
        """llama.cpp issue 21678"""
        here = scene()
        lease = here.lease("a")
        here.router.request("b")
        here.clock.pump([1.0] * 9)
        self.assertFalse(lease.lost)
        self.assertEqual(here.fleet.up, ["a"])
        lease.release()
        here.settle()
        self.assertEqual(here.fleet.up, ["b"])

    def test_ready_exclusive_model_serves_while_a_neighbour_is_busy(self) -> None:
        """core V64 as we mend it: upstream makes the request wait, and then kills the neighbour; core V76"""
        routing = grouped(loud=Group(members=("a",)), shy=Group(exclusive=False, members=("c",)))
        here = scene(routing=routing).loaded("a")
        here.lease("c")
        acquisition = here.router.request("a")
        self.assertTrue(acquisition.ready)
        self.assertEqual(here.fleet.up, ["a", "c"])

    def test_starved_request_ends_overtaking(self) -> None:
        here = scene()
        first = here.lease("a")
        waiting = results(here.router.request("b"))
        here.clock.advance(9.0)
        second = here.lease("a")
        here.clock.advance(1.5)
        held = here.router.request("a")
        self.assertFalse(held.ready)
        first.release()
        second.release()
        here.settle()
        self.assertIsInstance(waiting[0], Lease)

    def test_failed_start_refuses_all_its_requests_and_the_evicted_model_is_restored(self) -> None:
        """core V39 as we mend it, core V40"""
        here = scene(servers={"b": {"failure": StartFailed("b", "upstream command exited prematurely", 1, "oops")}})
        here.loaded("a")
        answers = results(*(here.router.request("b") for _ in range(3)))
        here.settle(30)
        self.assertEqual(answers, [StartFailed] * 3)
        self.assertEqual(here.fleet.up, ["a"])
        self.assertEqual(here.fleet.spawned(), {"a": 2, "b": 1})

    def test_model_that_cannot_start_evicts_nothing(self) -> None:
        """core V39 as we mend it"""
        error = StartFailed("b", "no such executable file")
        here = scene(servers={"b": {"unstartable": error}}).loaded("a")
        acquisition = here.router.request("b")
        self.assertIs(acquisition.refusal, error)
        self.failureResultOf(acquisition.granted, StartFailed)
        acquisition.cancel()
        self.assertEqual(here.fleet.spawned(), {"a": 1})
        self.assertEqual(here.fleet.up, ["a"])

    def test_unexpected_error_of_a_supervisor_is_a_failed_start(self) -> None:
        here = scene(servers={"a": {"failure": ZeroDivisionError("odd")}})
        answers = results(here.router.request("a"))
        here.settle()
        self.assertEqual(answers, [StartFailed])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_server_that_exits_before_its_requests_are_granted_is_not_granted(self) -> None:
        """core V57"""
        here = scene(servers={"a": {"load": None}})
        answers = results(here.router.request("a"))
        here.settle()
        here.fleet["a"].become_ready()
        here.fleet["a"].crash()
        here.settle()
        self.assertEqual(answers, [ServerVanished])

    def test_restart_at_the_end_of_a_failed_start_starts_no_second_model(self) -> None:
        """What it had displaced is about to come back, and yields."""
        here = scene("a", "b").loaded("b")
        here.fleet["a"].failure = StartFailed("a", "exited", 1)
        most: list[int] = []
        here.bus.subscribe(StateChanged, lambda news: most.append(len(here.fleet.up)))

        def restart(failure: object) -> None:
            here.fleet["a"].failure, here.fleet["a"].load = None, 1.0
            here.router.unload(["a"]).addCallback(lambda _: here.router.load("a"))

        here.router.request("a").granted.addErrback(restart)
        here.settle()
        here.clock.advance(1.0)
        here.settle()
        self.assertLessEqual(max(most), 1)
        self.assertEqual(here.fleet.up, ["a"])

    def test_internal_error_in_a_swap_refuses_its_requests(self) -> None:
        memory = BrokenMemory()
        here = scene("a", "b", memory=memory).loaded("b")
        memory.broken = True
        answers = results(here.router.request("a"))
        here.settle()
        self.assertEqual(answers, [StartFailed])
        self.assertTrue(self.flushLoggedErrors(ZeroDivisionError))
        here.settle()
        self.assertEqual(here.router.health().loading, 0)
        memory.broken = False
        self.assertIsInstance(here.lease("a"), Lease)

    def test_matrix_policy_decides_by_costs(self) -> None:
        program = compile_sets([("one", "c & a"), ("two", "c & b")], {}, "abc", {"b": 5})
        settings = RouterSettings(matrix=Matrix(program=program))
        here = scene(routing=Routing(router=RouterConfig("matrix", settings)))
        here.loaded("b")
        plan = here.router.forecast("c")
        self.assertEqual((plan.action, plan.evicts), ("load", ()))
        self.assertIn("matrix set two", plan.reason)

    def test_hundred_swaps_leave_no_server_timer_or_lease(self) -> None:
        """llama-swap issue 119, lmp issue 11"""
        here = scene()
        for turn in range(100):
            here.lease("abc"[turn % 3]).release()
            here.settle()
        self.assertEqual(len(here.fleet.up), 1)
        self.assertEqual(here.router.health().serving, 0)
        self.assertEqual(here.router.health().loading, 0)
        self.assertEqual(here.clock.getDelayedCalls(), [])


class BrokenMemory(NoMemoryReclaim):
    """An observation of memory that fails while `broken` is set."""

    broken = False

    def wait_for_reclaim(self, model: str) -> None:
        if self.broken:
            raise ZeroDivisionError

    stopped = wait_for_reclaim


@define(eq=False)
class SlowMemory:
    """Memory that comes back when the test says so."""

    told: list[str] = Factory(list)
    waits: Deferred[None] | None = None

    def wait_for_reclaim(self, model: str) -> Deferred[None] | None:
        self.told.append(f"back for {model}")
        return self.waits

    def loading(self, model: str) -> None:
        self.told.append(f"loading {model}")

    def loaded(self, model: str) -> None:
        self.told.append(f"loaded {model}")

    def stopped(self, model: str) -> None:
        self.told.append(f"gone {model}")


SLEEP = SuspendSettings(("POST /sleep",), ("POST /wake_up",))


class SuspendTests(SynchronousTestCase):
    def test_swap_suspends_and_resumes(self) -> None:
        here = scene(sleep=SLEEP).loaded("a", "b", "a")
        self.assertEqual(here.fleet.spawned(), {"a": 1, "b": 1})
        self.assertEqual((here.fleet["a"].wakes, here.fleet["b"].wakes), (1, 0))
        self.assertEqual([status.model for status in here.router.running()], ["a"])
        self.assertEqual([status.model for status in here.router.suspended()], ["b"])
        self.assertEqual(here.router.state("b"), "stopped")

    def test_suspended_model_is_not_named_as_in_the_way(self) -> None:
        pair = grouped(pair=Group(swap=False, members=("a", "b")))
        here = scene(routing=pair, servers={"b": {"exit": 5.0}}, sleep=SLEEP).loaded("a", "b")
        here.router.request("c")
        here.settle()
        self.assertEqual(here.router.wait_reason("c").models, ("b",))

    def test_lease_from_before_the_suspension_is_lost_and_the_next_is_not(self) -> None:
        here = scene(sleep=SLEEP)
        old = here.lease("a")
        old.release()
        here.loaded("b")
        self.assertTrue(old.lost)
        self.assertFalse(here.lease("a").lost)

    def test_model_that_cannot_be_suspended_is_stopped_and_started_again(self) -> None:
        here = scene(servers={"a": {"sleepless": True}}, sleep=SLEEP).loaded("a", "b", "a")
        self.assertEqual(here.fleet.spawned(), {"a": 2, "b": 1})

    def test_unload_stops_suspended_models(self) -> None:
        here = scene(servers={"a": {"exit": 1.0}}, sleep=SLEEP).loaded("a")
        here.router.load("b")
        here.clock.advance(1.0)
        here.settle()
        gone = here.router.unload(["a"])
        here.settle()
        self.assertNoResult(gone)
        here.clock.advance(1.0)
        here.settle()
        self.successResultOf(gone)
        self.assertEqual(here.router.suspended(), [])
        self.assertEqual(here.events(SleepEnded), [SleepEnded("a")])

    def test_idle_model_is_suspended_and_later_stopped(self) -> None:
        here = scene(ttl=10, sleep=evolve(SLEEP, ttl=100.0)).loaded("a")
        here.clock.advance(10.0)
        here.settle()
        self.assertEqual([status.model for status in here.router.suspended()], ["a"])
        self.assertEqual(here.router.seconds_until_idle("a"), 100.0)
        here.clock.advance(100.0)
        here.settle()
        self.assertEqual(here.router.suspended(), [])

    def test_shutdown_stops_suspended_models(self) -> None:
        here = scene(sleep=SLEEP).loaded("a", "b")
        down = here.router.shutdown(10.0)
        here.settle()
        self.successResultOf(down)
        self.assertEqual((here.router.suspended(), here.router.running()), ([], []))

    def test_suspended_model_is_handed_over_suspended(self) -> None:
        here = scene(sleep=SLEEP).loaded("a", "b")
        self.assertTrue(here.router.settled)
        servers = here.router.snapshots()
        self.assertEqual([(one.model, one.asleep) for one in servers], [("a", True), ("b", False)])
        after = scene(sleep=SLEEP)
        self.assertEqual(after.router.swaps.adopt(servers), [])
        after.settle()
        after.loaded("a")
        self.assertEqual((after.fleet.spawned(), after.fleet["a"].wakes), ({}, 1))
        self.assertEqual([status.model for status in after.router.suspended()], ["b"])


class EvictionByMemoryTests(SynchronousTestCase):
    """`routing.memory: on`"""

    def scene(self, *names: str, **changes: object) -> Scene:
        """A machine with two GPUs of 24 GiB; models need 16 GiB of one."""
        here = scene(*names, routing=Routing(memory=MemorySettings("on")), **changes)
        gpus = {f"gpu{number}": Device(24 * 1024) for number in range(2)}
        need = MemoryNeed(0, ((GpuShare(16 * 1024),),), "learned")
        here.router.memory_changed(Ledger({"ram": Device(64 * 1024), **gpus}, dict.fromkeys(names, need), hold=0.0))
        return here

    def test_models_that_fit_stay_and_the_cheapest_leaves_for_one_that_does_not(self) -> None:
        here = self.scene(*"abc").loaded("a", "b")
        here.clock.advance(5.0)
        here.loaded("a", "c")
        self.assertEqual(
            [(event.model, event.evicted) for event in here.events(SwapBegan)], [("a", ()), ("b", ()), ("c", ("b",))]
        )
        self.assertIn("it needs 16.0 GiB of gpu1 (learned); it replaces b (16.0 GiB", here.events(SwapBegan)[-1].reason)

    def test_default_group_swaps_while_memory_does_not_decide(self) -> None:
        here = scene(*"ab")
        here.router.memory_changed(Ledger({"ram": Device(100)}, dict.fromkeys("ab", MemoryNeed(10))))
        here.loaded("a", "b")
        self.assertEqual([event.evicted for event in here.events(SwapBegan)], [(), ("a",)])

    def test_load_that_runs_out_of_memory_is_repeated_alone_for_the_same_request(self) -> None:
        here = self.scene(*"ab").loaded("a")
        last_words = "load_model: CUDA out of memory"
        here.fleet["b"].failure = StartFailed("b", "upstream command exited prematurely", 1, last_words)
        here.bus.subscribe(SwapEnded, lambda _: setattr(here.fleet["b"], "failure", None))
        waiting = here.router.request("b")
        here.settle()
        [error] = [event.error for event in here.events(SwapEnded) if event.error]
        self.assertIn("b ran out of memory; it had all that could be made free", error)
        self.assertIsInstance(results(waiting)[0], Lease)
        self.assertEqual(here.fleet.up, ["b"])

    def test_wait_for_memory_of_other_programs_is_explained(self) -> None:
        here = self.scene("a")
        gpu = Device(24 * 1024, foreign=20 * 1024, foreign_by="firefox")
        need = MemoryNeed(0, ((GpuShare(16 * 1024),),), "learned")
        here.router.memory_changed(Ledger({"ram": Device(64 * 1024), "gpu0": gpu}, {"a": need}))
        here.router.request("a")
        here.settle()
        reason = here.router.wait_reason("a")
        self.assertIn("a needs 16.0 GiB", reason.reason)
        self.assertIn("firefox", reason.reason)

    def test_server_starts_with_the_gpus_that_were_chosen_for_it(self) -> None:
        text = """
routing: {memory: {mode: on, hold: 0s}}
models:
  a: {cmd: "serve --port ${PORT} --gpus ${GPUS}", gpus: auto}
  b: {cmd: "serve --port ${PORT}", gpus: 2}
  c: {cmd: "serve --port ${PORT}", gpus: [1]}
"""
        config = load([ConfigText("config.yaml", text)], {}).config
        clock = Clock()
        here = Scene(config, clock, FakeFleet(clock))
        devices = {"ram": Device(1000), "gpu0": Device(100), "gpu1": Device(200)}
        needs = {
            "a": MemoryNeed(0, ((GpuShare(150),), (GpuShare(75), GpuShare(75)))),
            "b": MemoryNeed(0, ((GpuShare(20), GpuShare(20)),)),
            "c": MemoryNeed(0, ((GpuShare(20, "gpu1"),),)),
        }
        here.router.memory_changed(Ledger(devices, needs))
        here.loaded("a", "b", "c")
        started = {name: here.fleet[name].model for name in "abc"}
        self.assertIn("--gpus 1", started["a"].cmd)
        self.assertEqual([started[name].gpu_ids for name in "abc"], [(1,), (0, 1), (1,)])


class MemoryTests(SynchronousTestCase):
    def test_a_start_after_an_eviction_waits_for_the_memory(self) -> None:
        """reliability R17, core W30"""
        memory = SlowMemory()
        here = scene(memory=memory)
        here.loaded("a")
        memory.told.clear()
        memory.waits = Deferred()
        waiting = here.router.request("b")
        here.settle()
        self.assertEqual(here.fleet.up, [])
        self.assertEqual(memory.told, ["gone a", "back for b"])
        memory.waits.callback(None)
        here.settle()
        self.assertIsInstance(self.successResultOf(waiting.granted), Lease)
        self.assertEqual(memory.told[2:], ["loading b", "loaded b"])

    def test_start_that_is_abandoned_while_it_waits_for_memory_never_begins(self) -> None:
        memory = SlowMemory()
        here = scene(memory=memory)
        memory.waits = Deferred()
        answers = results(here.router.request("b"))
        here.settle()
        here.router.unload(["b"])
        memory.waits.callback(None)
        here.settle()
        self.assertEqual((answers, here.fleet.spawned()), ([ModelUnloaded], {}))


class LeftoverTests(SynchronousTestCase):
    """Servers of an earlier run that still end when this one begins."""

    def test_model_is_not_started_beside_its_server_of_an_earlier_run(self) -> None:
        here, gone = scene(), Deferred()
        here.router.swaps.delay_starts_until(gone)
        answers = results(here.router.request("a"))
        here.settle()
        self.assertEqual((answers, here.fleet.spawned()), ([], {}))
        self.assertIn("earlier run", here.router.wait_reason("a").reason)
        gone.callback(["what was swept"])
        here.settle()
        self.assertEqual(here.fleet.spawned(), {"a": 1})
        self.assertEqual(len(answers), 1)
        self.assertEqual(self.successResultOf(gone), ["what was swept"])

    def test_start_waits_for_each_earlier_server_even_if_stopping_it_fails(self) -> None:
        here, first, second = scene(), Deferred(), Deferred()
        here.router.swaps.delay_starts_until(first)
        here.router.swaps.delay_starts_until(second)
        here.router.request("a")
        here.settle()
        first.errback(RuntimeError("out of luck"))
        self.failureResultOf(first, RuntimeError)
        here.settle()
        self.assertEqual(here.fleet.spawned(), {})
        second.callback(None)
        here.settle()
        self.assertEqual(here.fleet.spawned(), {"a": 1})

    def test_cancelled_request_starts_nothing_when_the_earlier_servers_have_stopped(self) -> None:
        here, gone = scene(), Deferred()
        here.router.swaps.delay_starts_until(gone)
        answers = results(here.router.request("a"))
        here.settle()
        unloaded = here.router.unload(["a"])
        here.settle()
        gone.callback(None)
        here.settle()
        self.assertEqual((answers, here.fleet.spawned()), ([ModelUnloaded], {}))
        self.successResultOf(unloaded)

    def test_port_of_an_earlier_server_refuses_no_request(self) -> None:
        here, gone = scene(), Deferred()
        here.router.swaps.delay_starts_until(gone)
        here.router.request("a")
        self.assertIn(9000, here.fleet["a"].asked_beside[-1])

    def test_model_that_still_runs_on_another_host_is_not_started_and_delays_no_other_model(self) -> None:
        here, gone = scene(), Deferred()
        here.router.swaps.delay_starts_until(gone, "a")
        here.router.request("a")
        here.settle()
        self.assertEqual(here.fleet.spawned(), {})
        self.assertNotIn(9000, here.fleet["a"].asked_beside[-1])
        gone.callback(None)
        here.settle()
        self.assertEqual(here.fleet.spawned(), {"a": 1})
        other = scene()
        other.router.swaps.delay_starts_until(Deferred(), "a")
        other.router.request("b")
        other.settle()
        self.assertEqual(other.fleet.spawned(), {"b": 1})

    def test_earlier_server_that_has_stopped_delays_no_start(self) -> None:
        here, gone = scene(), Deferred()
        gone.callback([])
        here.router.swaps.delay_starts_until(gone)
        self.assertIsInstance(here.lease("a"), Lease)


class CrashTests(SynchronousTestCase):
    def test_leases_of_a_crashed_server_are_lost_and_the_next_request_gets_a_new_process(self) -> None:
        """core V36"""
        here = scene()
        lease = here.lease("a")
        here.fleet["a"].crash()
        self.assertTrue(lease.lost)
        fresh = here.lease("a")
        self.assertFalse(fresh.lost)
        self.assertNotEqual(fresh.endpoint, lease.endpoint)
        lease.release()
        fresh.release()
        self.assertEqual(here.fleet.spawned(), {"a": 2})
        self.assertEqual(here.router.health().serving, 0)

    def test_request_in_the_same_turn_as_the_crash_does_not_get_the_crashed_server(self) -> None:
        here = scene().loaded("a")
        here.fleet["a"].crash()
        acquisition = here.router.request("a")
        self.assertFalse(acquisition.ready)
        answers = results(acquisition)
        here.settle()
        self.assertIsInstance(answers[0], Lease)

    def test_model_that_crashes_repeatedly_is_refused_with_its_log_tail_and_listed_as_failing(self) -> None:
        """core W17: no healthy model is evicted for another failing start"""
        here = scene(servers={"b": {"said": "loading\nout of memory"}})
        for _ in range(2):
            here.lease("b").release()
            here.fleet["b"].crash()
            here.settle()
        here.loaded("a")
        acquisition = here.router.request("b")
        refusal = acquisition.refusal
        assert isinstance(refusal, KeepsFailing)
        self.assertEqual(
            (refusal.failure.count, refusal.retry_after, refusal.log_tail), (2, 1, "loading\nout of memory")
        )
        self.assertEqual(here.fleet.up, ["a"])
        [(failure, retry_in)] = here.router.failing()
        self.assertEqual((failure.model, failure.count, retry_in), ("b", 2, 1.0))
        self.assertEqual(failure.tail, "loading\nout of memory")
        here.clock.advance(1.0)
        self.assertIsNone(here.router.request("b").refusal)

    def test_load_by_an_operator_ignores_backoff(self) -> None:
        here = scene()
        for _ in range(2):
            here.lease("b").release()
            here.fleet["b"].crash()
            here.settle()
        self.assertIsInstance(here.router.request("b").refusal, KeepsFailing)
        loaded = here.router.load("b")
        here.settle()
        self.successResultOf(loaded)
        self.assertEqual(here.router.failing(), [])

    def failed_and_replaced(self, **changes: object) -> Scene:
        """b failed twice; then another program takes over, with b's definition changed so."""
        here = scene(servers={"b": {"said": "out of memory"}})
        for _ in range(2):
            here.lease("b").release()
            here.fleet["b"].crash()
            here.settle()
        ailing = here.router.failures()
        later = scene(**changes)
        later.clock.advance(here.clock.seconds())
        later.router.swaps.restore_failures(ailing)
        return later

    def test_backoff_continues_in_the_next_program(self) -> None:
        here = self.failed_and_replaced()
        refusal = here.router.request("b").refusal
        assert isinstance(refusal, KeepsFailing)
        self.assertEqual((refusal.failure.count, refusal.retry_after, refusal.log_tail), (2, 1, "out of memory"))
        [(failure, _)] = here.router.failing()
        self.assertEqual((failure.model, failure.count, failure.tail), ("b", 2, "out of memory"))
        self.assertEqual(here.fleet["b"].spawned, 0)
        here.clock.advance(1.0)
        lease = here.lease("b")
        here.fleet["b"].crash()
        lease.release()
        here.settle()
        refusal = here.router.request("b").refusal
        assert isinstance(refusal, KeepsFailing)
        self.assertEqual((refusal.failure.count, refusal.retry_after), (3, 2), "and it goes on counting")
        self.assertEqual(refusal.log_tail, "", "its own words count, once it was started")

    def test_load_by_an_operator_ends_the_backoff_of_the_earlier_program(self) -> None:
        here = self.failed_and_replaced()
        loaded = here.router.load("b")
        here.settle()
        self.successResultOf(loaded)
        self.assertEqual((here.router.failing(), here.router.failures()), ([], []))

    def test_changed_definition_ends_the_backoff_of_the_earlier_program(self) -> None:
        here = self.failed_and_replaced(env=("A=1",))
        self.assertIsNone(here.router.request("b").refusal)
        here = self.failed_and_replaced()
        here.router.swaps.restore_failures([FailureRecord("stranger", "", 3, 1e9, "it ended")])
        self.assertEqual([failure.model for failure, _ in here.router.failing()], ["b"])

    def test_ports_of_other_servers_are_no_obstacle_before_an_eviction(self) -> None:
        here = scene().loaded("a")
        here.router.request("b")
        self.assertEqual(here.fleet["b"].asked_beside, [{here.fleet["a"].endpoint.port}])


class HangTests(SynchronousTestCase):
    def test_hung_server_is_stopped_and_its_leases_are_lost(self) -> None:
        here = scene()
        lease = here.lease("a")
        here.router.mark_hung("a", "it hung")
        self.assertTrue(lease.lost)
        here.settle()
        self.assertEqual((here.fleet.up, here.fleet["a"].graces), ([], [0.0]))
        self.assertEqual([failure.cause for failure, _ in here.router.failing()], ["it hung"])
        fresh = here.lease("a")
        self.assertFalse(fresh.lost)
        lease.release()
        fresh.release()
        self.assertEqual(here.router.health().serving, 0)

    def test_server_that_is_not_ready_cannot_be_marked_hung(self) -> None:
        here = scene()
        here.router.mark_hung("a", "it hung")
        self.assertEqual((here.router.failing(), here.fleet["a"].graces), ([], []))


class IdleTests(SynchronousTestCase):
    def test_idle_model_is_unloaded_after_its_ttl_counted_from_the_last_response(self) -> None:
        """core V15, V16"""
        here = scene(ttl=3)
        lease = here.lease("a")
        here.clock.advance(20.0)
        self.assertIsNone(here.router.seconds_until_idle("a"))
        lease.release()
        here.clock.advance(2.0)
        self.assertEqual(here.router.seconds_until_idle("a"), 1.0)
        self.assertEqual(here.fleet.up, ["a"])
        here.lease("a").release()
        here.clock.advance(2.0)
        self.assertEqual(here.fleet.up, ["a"])
        here.clock.advance(1.0)
        here.settle()
        self.assertEqual(here.fleet.up, [])

    def test_ttl_of_a_model_without_requests_counts_from_ready(self) -> None:
        """core V17 as we mend it"""
        here = scene(ttl=30, servers={"a": {"load": 1.0}})
        here.router.request("a").cancel()
        here.clock.advance(1.0)
        here.settle()
        here.clock.advance(29.0)
        self.assertEqual(here.fleet.up, ["a"])
        here.clock.advance(1.0)
        here.settle()
        self.assertEqual(here.fleet.up, [])

    def test_a_request_during_the_stop_waits_for_the_next_process(self) -> None:
        """core V20, V33"""
        here = scene(ttl=3, servers={"a": {"exit": 2.0}}).loaded("a")
        here.clock.advance(3.0)
        answers = results(here.router.request("a"))
        here.settle()
        self.assertEqual(here.fleet["a"].spawned, 1)
        here.clock.advance(2.0)
        here.settle()
        self.assertIsInstance(answers[0], Lease)
        self.assertEqual(here.fleet["a"].spawned, 2)

    def test_many_short_requests_use_one_timer(self) -> None:
        here = scene(ttl=30).loaded("a")
        for _ in range(50):
            self.successResultOf(here.router.request("a").granted).release()
        self.assertEqual(len(here.clock.getDelayedCalls()), 1)


class UnloadTests(SynchronousTestCase):
    def test_unloaded_models_stop_in_parallel_and_others_serve_on(self) -> None:
        """core V99 as we mend it; upstream stalls everything"""
        here = scene(routing=TOGETHER, servers={"a": {"stubborn": True}, "b": {"stubborn": True}})
        here.loaded("a", "b", "c")
        gone = here.router.unload(["a", "b"])
        self.assertTrue(here.router.request("c").ready)
        here.clock.advance(9.9)
        self.assertNoResult(gone)
        here.clock.advance(0.1)
        here.settle()
        self.successResultOf(gone)
        self.assertEqual(here.fleet.up, ["c"])

    def test_unload_without_names_stops_every_model(self) -> None:
        here = scene(routing=TOGETHER).loaded("a", "b")
        gone = here.router.unload()
        here.settle()
        self.successResultOf(gone)
        self.assertEqual(here.router.running(), [])
        self.successResultOf(here.router.unload())

    def test_unload_ends_a_load(self) -> None:
        """core V31; llama-swap issue 125"""
        here = scene(servers={"a": {"load": None}})
        answers = results(here.router.request("a"))
        here.settle()
        gone = here.router.unload(["a"])
        self.assertEqual(answers, [ModelUnloaded])
        here.settle()
        self.successResultOf(gone)
        self.assertEqual(here.fleet.up, [])

    def test_request_right_after_an_unload_is_served(self) -> None:
        """core V59 as we mend it; upstream delivers the old load's end to the new request"""
        here = scene(servers={"a": {"load": 2.0, "exit": 1.0}})
        results(here.router.request("a"))
        here.settle()
        here.router.unload(["a"])
        answers = results(here.router.request("a"))
        here.clock.advance(1.0)
        here.settle()
        here.clock.advance(2.0)
        here.settle()
        self.assertIsInstance(answers[0], Lease)

    def test_unload_of_a_model_whose_victims_still_stop_prevents_its_start(self) -> None:
        """core V100 as we mend it"""
        here = scene(servers={"a": {"exit": 3.0}}).loaded("a")
        answers = results(here.router.request("b"))
        here.settle()
        gone = here.router.unload(["b"])
        self.assertEqual(answers, [ModelUnloaded])
        here.settle()
        self.successResultOf(gone)
        here.clock.advance(3.0)
        here.settle()
        self.assertEqual(here.fleet.spawned(), {"a": 1})

    def test_unload_of_a_stopping_model_waits_until_it_has_stopped(self) -> None:
        here = scene(ttl=3, servers={"a": {"exit": 2.0}}).loaded("a")
        here.clock.advance(3.0)
        gone = here.router.unload(["a"])
        self.assertNoResult(gone)
        here.clock.advance(2.0)
        here.settle()
        self.successResultOf(gone)

    def test_lease_distinguishes_an_unload_from_a_crash(self) -> None:
        here = scene()
        lease = here.lease("a")
        here.fleet["a"].crash()
        here.settle()
        self.assertEqual((lease.lost, lease.unloaded), (True, False))
        lease.release()
        lease = here.lease("a")
        here.router.unload(["a"])
        self.assertTrue(lease.unloaded)
        here.settle()
        self.assertTrue(lease.lost)
        lease.release()
        again = here.lease("a")
        self.assertEqual((again.lost, again.unloaded), (False, False))

    def test_unload_of_all_models_ends_requests_and_loads_and_starts_nothing(self) -> None:
        here = scene(servers={"b": {"load": None}, "a": {"exit": 1.0}})
        lease = here.lease("a")
        waiting = results(here.router.request("b"), here.router.request("c"))
        here.settle()
        gone = here.router.unload()
        self.assertEqual((waiting, lease.unloaded), ([ModelUnloaded, ModelUnloaded], True))
        here.clock.advance(1.0)
        here.settle()
        lease.release()
        here.settle()
        self.successResultOf(gone)
        self.assertEqual((here.fleet.up, here.fleet.spawned()), ([], {"a": 1}))

    def test_unload_of_all_models_during_a_swap_leaves_no_server(self) -> None:
        here = scene(servers={"a": {"exit": 1.0}}).loaded("a")
        waiting = results(here.router.request("b"))
        here.settle()
        gone = here.router.unload()
        self.assertEqual(waiting, [ModelUnloaded])
        here.clock.advance(1.0)
        here.settle()
        self.successResultOf(gone)
        self.assertEqual((here.fleet.up, here.fleet.spawned()), ([], {"a": 1}))

    def test_unload_of_a_stopped_model_runs_its_stop_command_and_blocks_its_memory_meanwhile(self) -> None:
        here = scene(cmd_stop="podman stop a")
        gone = here.router.unload(["a"])
        self.assertEqual(len(here.fleet["a"].cleanings), 1)
        waiting = results(here.router.request("b"), here.router.request("a"))
        here.settle()
        self.assertEqual((waiting, here.fleet.up), ([], []))
        self.assertNoResult(gone)
        here.fleet["a"].cleanings[0].callback(None)
        here.settle()
        self.successResultOf(gone)
        self.assertIsInstance(waiting[0], Lease)

    def test_unload_without_names_runs_no_stop_command_for_stopped_models(self) -> None:
        here = scene(cmd_stop="podman stop a")
        self.successResultOf(here.router.unload())
        self.assertEqual(here.fleet["a"].cleanings, [])

    def test_unload_marks_leases_as_lost(self) -> None:
        here = scene()
        lease = here.lease("a")
        here.router.unload(["a"])
        here.settle()
        self.assertTrue(lease.lost)
        lease.release()

    def test_pinned_model_stays_loaded_until_an_operator_unloads_it(self) -> None:
        here = scene(ttl=3).loaded("a")
        here.router.pin("a")
        here.clock.advance(100.0)
        self.assertIsInstance(here.router.request("b").refusal, NotReady)
        self.assertEqual(here.fleet.up, ["a"])
        here.router.unload(["a"])
        here.settle()
        self.assertEqual(here.fleet.up, [])
        here.loaded("a")
        here.router.unpin("a")
        here.clock.advance(3.0)
        here.settle()
        self.assertEqual(here.fleet.up, [])
        self.assertRaises(UnknownModel, here.router.pin, "zebra")


class OperatorTests(SynchronousTestCase):
    def test_load_by_an_operator_holds_no_lease(self) -> None:
        here = scene()
        done = here.router.load("a")
        here.settle()
        self.successResultOf(done)
        self.assertEqual(here.router.state("a"), "ready")
        self.assertEqual(here.router.health().serving, 0)
        self.failureResultOf(here.router.load("zebra"), UnknownModel)

    def test_failure_of_a_load_that_was_accepted_is_published(self) -> None:
        here = scene(servers={"b": {"failure": StartFailed("b", "no weights")}})
        loading = here.router.load("b")
        here.settle()
        self.failureResultOf(loading, StartFailed)
        self.assertEqual(here.events(LoadFailed), [LoadFailed("b", "unspecific error: no weights")])

    def test_load_that_a_later_pin_blocks_is_published_as_failed(self) -> None:
        here = scene()
        lease = here.lease("a")
        loading = here.router.load("b")
        here.router.pin("a")
        lease.release()
        here.settle()
        self.failureResultOf(loading, NotReady)
        self.assertEqual(here.events(LoadFailed), [LoadFailed("b", "cannot load b: a is pinned")])

    def test_load_that_is_refused_at_once_is_not_published_because_its_answer_has_the_error(self) -> None:
        here = scene().loaded("a")
        here.router.pin("a")
        self.failureResultOf(here.router.load("b"), NotReady)
        self.assertEqual(here.events(LoadFailed), [])

    def test_model_that_cannot_be_started_is_published_once_and_keeps_its_failure(self) -> None:
        here = scene(servers={"b": {"unstartable": StartFailed("b", "no such command")}})
        for _ in range(2):
            self.failureResultOf(here.router.request("b").granted, StartFailed)
        self.assertEqual(here.events(LoadFailed), [LoadFailed("b", "unspecific error: no such command")])
        self.assertEqual([here.router.failure(name) for name in ("b", "a", "zebra")], ["no such command", "", ""])

    def test_running_lists_models_that_are_not_stopped_in_order(self) -> None:
        here = scene(routing=TOGETHER).loaded("c", "a")
        self.assertEqual([one.model for one in here.router.running()], ["a", "c"])
        self.assertEqual(here.router.status("a").state, "ready")
        self.assertRaises(UnknownModel, here.router.status, "zebra")
        self.assertEqual(here.router.state("zebra"), "stopped")

    def test_profile_change_is_published_once(self) -> None:
        """core V88, http T067"""
        here = scene()
        config = evolve(here.config, profiles={"work": Profile(pins={"gpt": "a"})})
        here.router.apply(config, diff(here.config, config))
        here.router.select_profile("work")
        here.router.select_profile("work")
        self.assertEqual(here.router.profile, "work")
        self.assertRaises(KeyError, here.router.select_profile, "zz")
        here.router.select_profile(None)
        self.assertEqual(here.events(ProfileChanged), [ProfileChanged("work"), ProfileChanged(None)])

    def test_selector_chooses_by_the_states_of_servers(self) -> None:
        """core V80"""
        here = scene(routing=TOGETHER)
        config = evolve(here.config, selectors={"pub": Selector("pub", "warm", ("a", "b"))})
        here.router.apply(config, diff(here.config, config))
        here.loaded("b")
        self.assertEqual(here.router.choose("pub").target, "b")
        self.assertRaises(NoTarget, here.router.choose, "nope")

    def test_health_shows_a_stuck_request(self) -> None:
        """llama.cpp issue 28829: health says nothing of a dead scheduler"""
        here = scene()
        here.lease("a")
        here.router.request("b")
        here.clock.advance(5.0)
        vitals = here.router.health()
        self.assertEqual((vitals.oldest_waiter, vitals.waiting, vitals.serving), (5.0, 1, 1))
        self.assertEqual(vitals.last_decision, 5.0)


class PreloadTests(SynchronousTestCase):
    def preloading(self, *names: str, routing: Routing | None = None, **servers: dict) -> Scene:
        here = scene(routing=routing, servers=servers)
        here.router.config = evolve(here.config, hooks=HookSettings(OnStartup(preload=names)))
        return here

    def test_preload_loads_compatible_models_in_parallel(self) -> None:
        """core V108 as we mend it"""
        here = self.preloading("a", "b", routing=TOGETHER, a={"load": 5.0}, b={"load": 5.0})
        done = here.router.preload()
        here.settle()
        here.clock.advance(5.0)
        here.settle()
        self.successResultOf(done)
        self.assertEqual(here.fleet.up, ["a", "b"])
        self.assertEqual(here.events(Preloaded), [Preloaded("a", True), Preloaded("b", True)])

    def test_preload_loads_conflicting_models_one_after_the_other(self) -> None:
        """core V108"""
        here = self.preloading("a", "b")
        done = here.router.preload()
        here.settle(30)
        self.successResultOf(done)
        self.assertEqual(here.fleet.up, ["b"])
        self.assertEqual([swap.model for swap in here.events(SwapBegan)], ["a", "b"])

    def test_preload_continues_after_a_failure(self) -> None:
        here = self.preloading("a", "b", a={"failure": StartFailed("a", "no")})
        done = here.router.preload()
        here.settle(30)
        self.successResultOf(done)
        self.assertEqual(here.events(Preloaded), [Preloaded("a", False), Preloaded("b", True)])

    def test_failed_preload_is_logged_once(self) -> None:
        here = self.preloading("a", a={"failure": StartFailed("a", "no such command")})
        with capturedLogs() as events:
            here.router.preload()
            here.settle(30)
        self.assertEqual(["no such command" in formatEvent(event) for event in events].count(True), 1)


class ApplyTests(SynchronousTestCase):
    def change(self, here: Scene, **changes: Model | None) -> None:
        after = {**here.router.config.models, **changes}
        config = evolve(here.router.config, models={name: model for name, model in after.items() if model})
        here.router.apply(config, diff(here.router.config, config))

    def test_an_unchanged_model_keeps_its_process_its_requests_and_its_clock(self) -> None:
        here = scene(routing=TOGETHER, ttl=30).loaded("a")
        lease = here.lease("b")
        here.clock.advance(20.0)
        self.change(here, c=Model("c", cmd="other"))
        here.settle()
        self.assertFalse(lease.lost)
        self.assertEqual(here.fleet.spawned(), {"a": 1, "b": 1})
        here.clock.advance(10.0)
        here.settle()
        self.assertEqual(here.fleet.up, ["b"])

    def test_a_changed_command_takes_effect_after_the_requests_in_flight(self) -> None:
        here = scene()
        lease = here.lease("a")
        self.change(here, a=Model("a", cmd="other"))
        answers = results(here.router.request("a"))
        here.settle()
        self.assertFalse(lease.lost)
        self.assertEqual(answers, [])
        lease.release()
        here.settle()
        self.assertIsInstance(answers[0], Lease)
        self.assertEqual(here.fleet["a"].model.cmd, "other")
        self.assertEqual(here.fleet["a"].spawned, 2)

    def test_removed_model_is_unknown_drains_and_is_forgotten(self) -> None:
        here = scene()
        lease = here.lease("a")
        self.change(here, a=None)
        self.assertIsInstance(here.router.request("a").refusal, UnknownModel)
        self.assertFalse(lease.lost)
        lease.release()
        here.settle()
        self.assertTrue(here.fleet["a"].closed)
        self.assertRaises(UnknownModel, here.router.status, "a")

    def test_removed_model_that_is_added_while_it_drains_is_restarted(self) -> None:
        here = scene()
        old = here.config.models["a"]
        lease = here.lease("a")
        self.change(here, a=None)
        self.change(here, a=old)
        answers = results(here.router.request("a"))
        lease.release()
        here.settle()
        self.assertIsInstance(answers[0], Lease)
        self.assertEqual(here.fleet["a"].spawned, 2)

    def test_model_that_is_added_again_before_an_earlier_stop_ends_can_be_used(self) -> None:
        """Each reload stops the server; the second stop ends after the model was added again."""
        here = scene(servers={"a": {"exit": 0.3}})
        old = here.config.models["a"]
        here.router.request("a").granted.addErrback(lambda failure: None)
        here.fleet["a"].crash()
        here.fleet["a"].failure = None
        self.change(here, a=evolve(old, env=("N=1",)))
        self.change(here, a=None)
        here.settle(4)
        self.change(here, a=old)
        here.clock.pump([0.1] * 5)
        self.assertIsInstance(here.lease("a"), Lease)

    def test_no_model_starts_when_only_the_first_of_two_stops_has_ended(self) -> None:
        """The first stop ends at once, for the server has crashed; the second one stops its next process."""
        here = scene(servers={"a": {"exit": 0.3}})
        here.router.request("a").granted.addErrback(lambda failure: None)
        here.fleet["a"].crash()
        here.fleet["a"].failure = None
        self.change(here, a=evolve(here.config.models["a"], env=("N=1",)))
        self.change(here, a=None)
        here.settle()
        answers = results(here.router.request("b"))
        here.settle()
        self.assertEqual((here.fleet["a"].state, here.fleet["b"].spawned), ("stopping", 0))
        here.clock.advance(0.3)
        here.settle()
        self.assertIsInstance(answers[0], Lease)

    def test_an_added_model_can_be_used(self) -> None:
        here = scene()
        self.change(here, d=Model("d", cmd="serve d"))
        self.assertIsInstance(here.lease("d"), Lease)

    def test_change_that_needs_no_new_process_is_applied_in_place(self) -> None:
        here = scene().loaded("a")
        self.change(here, a=evolve(here.config.models["a"], ttl=5))
        self.assertEqual(here.fleet["a"].retuned, 1)
        here.clock.advance(5.0)
        here.settle()
        self.assertEqual((here.fleet.up, here.fleet.spawned()), ([], {"a": 1}))

    def profiles(self, here: Scene, at_start: str = "", names: tuple[str, ...] = ("work", "play")) -> None:
        """Reload with these profiles."""
        config = evolve(
            here.router.config,
            profiles={name: Profile(pins={"gpt": "a"}) for name in names},
            hooks=HookSettings(OnStartup(profile=at_start)),
        )
        here.router.apply(config, diff(here.router.config, config))

    def test_reload_keeps_the_profile_that_was_chosen(self) -> None:
        """core V87"""
        here = scene()
        self.profiles(here)
        here.router.select_profile("work")
        self.profiles(here, at_start="play")
        self.assertEqual(here.router.profile, "work")
        here.router.select_profile(None)
        self.profiles(here, at_start="play")
        self.assertIsNone(here.router.profile)

    def test_profile_of_the_start_is_active_until_another_one_is_chosen(self) -> None:
        here = scene()
        self.profiles(here, at_start="play")
        self.assertEqual((here.router.profile, here.router.chosen_profile), ("play", None))
        self.profiles(here, at_start="work")
        self.assertEqual(here.router.profile, "work")
        self.profiles(here)
        self.assertIsNone(here.router.profile)
        self.assertEqual(here.events(ProfileChanged), [ProfileChanged(name) for name in ("play", "work", None)])

    def test_chosen_profile_that_left_the_configuration_gives_way_to_the_one_of_the_start(self) -> None:
        here = scene()
        self.profiles(here)
        here.router.select_profile("work")
        self.profiles(here, at_start="play", names=("play",))
        self.assertEqual(here.router.profile, "play")
        self.profiles(here)
        self.assertIsNone(here.router.profile)

    def test_reload_preloads_only_new_models(self) -> None:
        here = scene(routing=TOGETHER)
        config = evolve(here.config, hooks=HookSettings(OnStartup(preload=("a", "b"))))
        here.router.config = config
        self.change(here, b=Model("b", cmd="other"))
        here.settle()
        self.assertEqual(here.events(Preloaded), [Preloaded("b", True)])

    def test_hundred_reloads_under_load_lose_no_request_and_start_no_model_twice(self) -> None:
        here = scene(routing=TOGETHER)
        lease = here.lease("b")
        for turn in range(100):
            answers = results(here.router.request("a"))
            self.change(here, a=Model("a", cmd=f"serve {turn}"))
            here.settle()
            [answer] = answers
            answer.release()
            here.settle()
        self.assertFalse(lease.lost)
        self.assertEqual(here.fleet["b"].spawned, 1)


class ShutdownTests(SynchronousTestCase):
    def test_shutdown_refuses_waiting_requests_and_leaves_no_server(self) -> None:
        here = scene(routing=TOGETHER).loaded("a", "b")
        here.fleet["c"].load = None
        waiting = results(here.router.request("c"))
        here.settle()
        done = here.router.shutdown(10.0)
        self.assertEqual(waiting, [ShuttingDown])
        here.settle()
        self.successResultOf(done)
        self.assertEqual(here.fleet.up, [])
        self.assertTrue(all(one.closed for one in here.fleet.made.values()))
        self.assertIsInstance(here.router.request("a").refusal, ShuttingDown)
        self.assertEqual(here.clock.getDelayedCalls(), [])

    def test_draining_refuses_waiting_requests_while_ready_models_serve_on(self) -> None:
        here = scene(routing=TOGETHER).loaded("a")
        lease = here.lease("a")
        here.fleet["c"].load = None
        waiting = results(here.router.request("c"))
        here.settle()
        here.router.drain()
        self.assertEqual(waiting, [ShuttingDown])
        self.assertIsInstance(here.router.request("b").refusal, ShuttingDown)
        here.lease("a").release()  # a request whose body was still on its way
        here.settle()
        self.assertEqual((here.fleet.up, lease.lost), (["a"], False))
        lease.release()

    def test_router_that_resumes_after_draining_loads_models_again(self) -> None:
        here = scene(routing=TOGETHER)
        here.router.drain(BeingUpgraded())
        self.assertIsInstance(here.router.request("b").refusal, BeingUpgraded)
        here.router.resume()
        here.lease("b").release()
        self.assertEqual(here.fleet.up, ["b"])

    def test_shutdown_stops_all_models_in_parallel_within_the_deadline(self) -> None:
        servers = {name: {"stubborn": True} for name in "abc"}
        here = scene(routing=TOGETHER, servers=servers, unload_timeout=60.0).loaded("a", "b", "c")
        done = here.router.shutdown(5.0)
        here.clock.advance(4.0)
        here.settle()
        self.successResultOf(done)
        self.assertEqual(here.fleet["a"].graces, [4.0])

    def test_shutdown_ends_at_the_deadline_if_a_server_does_not_stop(self) -> None:
        here = scene(servers={"a": {"exit": None}}).loaded("a")
        done = here.router.shutdown(5.0)
        here.clock.advance(4.9)
        self.assertNoResult(done)
        here.clock.advance(0.1)
        self.successResultOf(done)

    def test_second_shutdown_may_have_a_shorter_deadline(self) -> None:
        here = scene(servers={"a": {"stubborn": True}}).loaded("a")
        first, second = here.router.shutdown(30.0), here.router.shutdown(1.0)
        here.clock.advance(1.0)
        here.settle()
        self.successResultOf(second)
        self.successResultOf(first)


class HandoverTests(SynchronousTestCase):
    """What another program in the place of this one gets, and how it begins."""

    def handed(self, **fields: object) -> list[ServerSnapshot]:
        here = scene(routing=TOGETHER, **fields).loaded("a", "b")
        here.clock.advance(3.0)
        return here.router.snapshots()

    def test_ready_and_unused_servers_are_handed_over_with_their_idle_clock(self) -> None:
        here = scene(routing=TOGETHER).loaded("a", "b", "c")
        lease = here.lease("b")
        here.clock.advance(2.0)
        self.assertFalse(here.router.settled)
        self.assertEqual([one.model for one in here.router.snapshots()], ["a", "c"])
        lease.release()
        self.assertTrue(here.router.settled)
        self.assertEqual(
            [one.idle_since for one in here.router.snapshots()],
            [here.clock.seconds() - 2.0, here.clock.seconds(), here.clock.seconds() - 2.0],
        )

    def test_router_that_loads_or_stops_a_model_is_not_settled(self) -> None:
        here = scene(routing=TOGETHER)
        here.fleet["a"].load = None
        here.router.load("a").addErrback(lambda _: None)
        here.settle()
        self.assertFalse(here.router.settled)
        here.fleet["a"].become_ready()
        here.settle()
        self.assertTrue(here.router.settled)
        here.fleet["a"].exit = None
        here.router.unload(["a"])
        self.assertFalse(here.router.settled)

    def test_adopted_servers_serve_at_once_without_a_start(self) -> None:
        there = self.handed()
        here = scene(routing=TOGETHER)
        self.assertEqual(here.router.swaps.adopt(there), [])
        self.assertEqual([status.model for status in here.router.running()], ["a", "b"])
        acquisition = here.router.request("a")
        self.assertTrue(acquisition.ready)
        self.assertEqual(self.successResultOf(acquisition.granted).endpoint, there[0].endpoint)
        self.assertEqual(here.fleet["a"].spawned, 0)

    def test_idle_time_of_an_adopted_server_continues(self) -> None:
        there = [evolve(one, idle_since=-7.0) for one in self.handed()]
        here = scene(routing=TOGETHER, ttl=10)
        here.router.swaps.adopt(there)
        here.clock.advance(2.9)
        self.assertEqual(len(here.router.running()), 2)
        here.clock.advance(0.2)
        here.settle()
        self.assertEqual(here.router.running(), [])

    def test_time_that_a_client_asked_for_goes_with_its_server(self) -> None:
        here = scene(routing=TOGETHER).loaded("a", "b", "c")
        here.router.keep_for("a", inf)
        here.router.keep_for("b", 30.0)
        here.clock.advance(3.0)
        state = unpack(pack(UpgradeState(servers=tuple(here.router.snapshots()))))
        there = scene(routing=TOGETHER, ttl=5)
        there.clock.advance(here.clock.seconds() - there.clock.seconds())
        there.router.swaps.adopt(state.servers)
        self.assertEqual([there.router.seconds_until_idle(name) for name in "abc"], [None, 27.0, 2.0])

    def test_adopted_server_with_a_changed_definition_is_stopped(self) -> None:
        there = self.handed()
        here = scene(routing=TOGETHER)
        here.router.swaps.adopt([evolve(there[0], argv=("another",)), there[1]])
        here.settle()
        self.assertEqual([status.model for status in here.router.running()], ["b"])

    def test_missing_server_is_not_adopted_and_others_are(self) -> None:
        there = self.handed()
        here = scene(routing=TOGETHER)
        lost = evolve(there[0], pid=-1)
        stranger = evolve(there[0], model="zebra")
        self.assertEqual(here.router.swaps.adopt([lost, stranger, there[1]]), [lost, stranger])
        self.assertEqual(len(self.flushLoggedErrors(ChildProcessError)), 1)
        here.settle()
        self.assertEqual([status.model for status in here.router.running()], ["b"])
        self.assertTrue(here.router.settled)
        self.assertEqual(here.lease("a").ticket.model, "a")

    def test_server_that_exited_during_the_upgrade_counts_as_crashed(self) -> None:
        there = self.handed()
        here = scene(routing=TOGETHER)
        self.assertEqual(here.router.swaps.adopt([evolve(there[0], pid=1)]), [])
        here.settle()
        self.assertEqual(here.router.running(), [])
        self.assertEqual(here.lease("a").ticket.model, "a")
        self.assertEqual(here.fleet["a"].spawned, 1)


class WaitReasonTests(SynchronousTestCase):
    def test_wait_reason_names_what_a_request_waits_for(self) -> None:
        here = scene(servers={"a": {"exit": 2.0}, "b": {"load": 5.0}})
        lease = here.lease("a")
        here.router.request("b", origin="request:7")
        here.settle()
        self.assertEqual(here.router.wait_reason("b").models, ("a",))
        self.assertFalse(here.router.wait_reason("b").loading)
        self.assertIsNone(here.router.wait_reason("a"))
        lease.release()
        here.settle()
        stopping = here.router.wait_reason("b")
        self.assertEqual((stopping.models, stopping.loading), (("a",), True))
        self.assertIn("unload", stopping.reason)
        here.clock.advance(2.0)
        here.settle()
        self.assertEqual(here.router.wait_reason("b").reason, "the model is being loaded")
        here.clock.advance(5.0)
        here.settle()
        self.assertIsNone(here.router.wait_reason("b"))
        self.assertEqual([event.origin for event in here.events(SwapBegan)], ["", "request:7"])

    def test_unknown_model_has_no_wait_reason(self) -> None:
        self.assertIsNone(scene().router.wait_reason("lab/x"))


class WaitStatusTests(SynchronousTestCase):
    def test_eta_is_what_is_left_of_a_load_like_the_last_one(self) -> None:
        here = scene(servers={"b": {"load": 8.0}})
        self.assertEqual(here.router.wait_status("a"), WaitStatus((), False, None))
        here.router.memory_changed(Ledger({"ram": Device(100)}, load_seconds={"a": 5.0, "b": 8.0}))
        here.router.request("b")
        here.settle()
        here.clock.advance(3.0)
        self.assertEqual(here.router.wait_status("b"), WaitStatus(("b",), True, 5.0))
        self.assertEqual(here.router.wait_status("a"), WaitStatus(("b",), False, 10.0))
        self.assertIsNone(here.router.wait_status("c").eta)
        here.clock.advance(4.9)
        self.assertAlmostEqual(here.router.wait_status("b").eta, 0.1)


class OriginTests(SynchronousTestCase):
    def test_swap_event_names_its_origin(self) -> None:
        here = scene(routing=TOGETHER)
        here.router.load("a")
        here.router.preload(["b"])
        here.settle()
        self.assertEqual([event.origin for event in here.events(SwapBegan)], ["manual", "preload"])

    def test_state_change_of_a_stop_contains_the_reason(self) -> None:
        here = scene(ttl=5).loaded("a")
        here.clock.advance(5.0)
        here.settle()
        stopping = [event.why for event in here.events(StateChanged) if event.new == "stopping"]
        self.assertEqual(stopping, ["idle"])
        here.loaded("b")
        here.router.unload(["b"])
        here.settle()
        stopping = [event.why for event in here.events(StateChanged) if event.new == "stopping"]
        self.assertEqual(stopping, ["idle", "unload"])

    def test_state_change_of_a_failure_contains_that_it_is_one(self) -> None:
        here = scene(servers={"b": {"load": 5.0}}, routing=TOGETHER).loaded("a")
        here.router.request("b").granted.addErrback(lambda _: None)
        here.settle()
        here.fleet["a"].crash()
        here.fleet["b"].crash()
        here.settle()
        ends = [(event.model, event.why) for event in here.events(StateChanged) if event.new == "stopped"]
        self.assertEqual(ends, [("a", "crash"), ("b", "failed")])
        here.loaded("a")
        here.router.unload(["a"])
        here.settle()
        self.assertEqual(here.events(StateChanged)[-1].why, "unload")

    def test_swap_event_of_a_failed_start_contains_the_exit_status(self) -> None:
        here = scene(servers={"a": {"load": 5.0}})
        here.router.request("a").granted.addErrback(lambda _: None)
        here.settle()
        here.fleet["a"].crash(3)
        here.settle()
        self.assertEqual([event.exit_status for event in here.events(SwapEnded)], [3])


class KeepAliveTests(SynchronousTestCase):
    """A client says how long its model is kept."""

    def test_an_idle_model_is_unloaded_after_the_time_that_a_client_asks_for(self) -> None:
        here = scene().loaded("a")
        here.router.keep_for("a", 30.0)
        self.assertEqual(here.router.seconds_until_idle("a"), 30.0)
        here.clock.advance(29.0)
        here.settle()
        self.assertEqual(here.router.state("a"), "ready")
        here.clock.advance(2.0)
        here.settle()
        self.assertEqual(here.router.state("a"), "stopped")

    def test_the_time_begins_again_after_each_request(self) -> None:
        here = scene().loaded("a")
        here.router.keep_for("a", 30.0)
        here.clock.advance(29.0)
        here.loaded("a")
        self.assertEqual(here.router.seconds_until_idle("a"), 30.0)

    def test_for_ever_is_longer_than_the_configured_time(self) -> None:
        here = scene(ttl=5).loaded("a")
        here.router.keep_for("a", inf)
        here.clock.advance(1000.0)
        here.settle()
        self.assertEqual(here.router.state("a"), "ready")
        self.assertIsNone(here.router.seconds_until_idle("a"))

    def test_no_time_unloads_at_the_end_of_the_requests(self) -> None:
        here = scene()
        lease = here.lease("a")
        here.router.keep_for("a", 0.0)
        here.clock.advance(10.0)
        here.settle()
        self.assertEqual(here.router.state("a"), "ready")
        lease.release()
        here.settle()
        self.assertEqual(here.router.state("a"), "stopped")

    def test_the_next_server_is_kept_as_configured(self) -> None:
        here = scene(ttl=5).loaded("a")
        here.router.keep_for("a", inf)
        here.router.unload(["a"])
        here.settle()
        here.loaded("a")
        self.assertEqual(here.router.seconds_until_idle("a"), 5.0)

    def test_a_pinned_model_and_an_unknown_one_stay_as_they_are(self) -> None:
        here = scene().loaded("a")
        here.router.pin("a")
        for name in ("a", "b", "ghost"):
            here.router.keep_for(name, 0.0)
        here.clock.advance(10.0)
        here.settle()
        self.assertEqual([here.router.state(name) for name in "ab"], ["ready", "stopped"])
