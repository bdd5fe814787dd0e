"""What an upgrade does with the service's parts, beyond what the live tests show."""

from types import SimpleNamespace

from attrs import define
from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactor
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.app import handover
from llamaswap.app.handover import ServiceHandover, take_over
from llamaswap.app.ollama_listener import OllamaListener
from llamaswap.config import Config, Model, Profile
from llamaswap.observe.logs import LogRegistry
from llamaswap.routing.memory_leases import HandedLease, LeaseRequest
from llamaswap.scheduling.memory import Device, Ledger, MemoryNeed
from llamaswap.scheduling.memory_leases import HeldMemory
from llamaswap.upgrade.state import HandedJob, IdleConnection, UpgradeState
from tests.doubles import FakeRouter, FakeSwaps
from tests.upgrade.test_state import SERVED


class Refuses:
    """A part that fails at everything."""

    def adopt(self, *args):
        raise RuntimeError("out of luck")


@define(eq=False)
class Takes:
    """A part that keeps what it is given."""

    adopted: tuple = ()

    def adopt(self, given):
        self.adopted = given


def parts_of(router):
    """The parts of a service with this router, all of whose other parts fail."""
    return SimpleNamespace(
        context=SimpleNamespace(reactor=None),
        logs=SimpleNamespace(registry=LogRegistry()),
        models=SimpleNamespace(router=router, leases=Refuses(), guardian=Refuses(), launcher=None, ask=None),
        web=SimpleNamespace(factory=Refuses(), inference=SimpleNamespace(jobs=Takes())),
    )


@define(eq=False)
class Quiet:
    """A part that has nothing to write and nothing in progress."""

    idle: bool = True
    enabled: bool = False
    busy: bool = False

    def stop_spare(self):
        return None

    def flush(self):
        return succeed(None)


class FlushTests(SynchronousTestCase):
    def setUp(self):
        self.clock, self.hooks = Clock(), Quiet(busy=True)
        parts = SimpleNamespace(
            context=SimpleNamespace(reactor=self.clock),
            logs=Quiet(),
            models=SimpleNamespace(launcher=Quiet(), hooks=self.hooks, hosts=None),
            observability=SimpleNamespace(machine=Quiet(), activity=Quiet()),
            memory=Quiet(),
        )
        host = ServiceHandover(parts, lambda: None, OllamaListener(self.clock, None), 1)
        self.flushed = Deferred.fromCoroutine(host.flush())

    def test_upgrade_waits_for_a_running_hook(self):
        self.clock.advance(1.0)
        self.assertNoResult(self.flushed)
        self.hooks.busy = False
        self.clock.advance(0.1)
        self.successResultOf(self.flushed)

    def test_hook_that_runs_long_delays_the_upgrade_for_two_seconds_only(self):
        self.clock.pump([0.1] * 21)
        self.successResultOf(self.flushed)


class Ray:
    """The process that talks to Ray. `calls` is what it was told."""

    def __init__(self):
        self.calls, self.ended = [], Deferred()

    def close(self):
        self.calls.append("close")
        return self.ended

    def open(self):
        self.calls.append("open")


class HostsTests(SynchronousTestCase):
    def test_upgrade_waits_for_the_end_of_the_process_that_talks_to_ray_and_starts_it_again_if_it_fails(self):
        ray = Ray()
        quiet = SimpleNamespace(
            hold=lambda: None, release=lambda: None, resume=lambda: None, warm=lambda: None, stop_spare=lambda: None,
            busy=False,
        )  # fmt: skip
        port = FileDescriptor(MemoryReactor())
        parts = SimpleNamespace(
            context=SimpleNamespace(reactor=Clock()),
            logs=Quiet(),
            models=SimpleNamespace(
                launcher=quiet, hooks=quiet, hosts=SimpleNamespace(manager=SimpleNamespace(ray=ray))
            ),
            web=SimpleNamespace(factory=quiet, streams=quiet),
            observability=SimpleNamespace(machine=Quiet(), activity=Quiet()),
            memory=Quiet(),
        )
        host = ServiceHandover(parts, lambda: port, OllamaListener(Clock(), None), 1)
        host.hold()
        flushed = Deferred.fromCoroutine(host.flush())
        self.assertNoResult(flushed)
        ray.ended.callback(None)
        self.successResultOf(flushed)
        host.release()
        self.assertEqual(ray.calls, ["close", "open"])


class IdleTests(SynchronousTestCase):
    def test_running_job_delays_no_upgrade_and_keeps_its_lease_as_long_as_requests_wait(self):
        released = []
        jobs = SimpleNamespace(release_leases=lambda: released.append(True))
        proxy, router = SimpleNamespace(active=1), SimpleNamespace(settled=True)
        web = SimpleNamespace(proxy=proxy, inference=SimpleNamespace(jobs=jobs))
        parts = SimpleNamespace(web=web, models=SimpleNamespace(router=router))
        host = ServiceHandover(parts, lambda: None, OllamaListener(Clock(), None), 1)
        self.assertEqual((host.idle(), released), (False, []))
        proxy.active = 0
        self.assertEqual((host.idle(), released), (True, [True]))


class TakeOverTests(SynchronousTestCase):
    def test_part_that_cannot_be_taken_over_costs_nothing_else(self):
        router = FakeRouter(Config(profiles={"quiet": Profile()}, models={"a": Model("a")}))
        connections, leases = (
            (IdleConnection(7, 2),),
            (HandedLease("x", LeaseRequest("x", 1, 0, 0, 60.0), HeldMemory(), 5.0),),
        )
        take_over(
            parts_of(router),
            UpgradeState(connections=connections, leases=leases, keeper=(9, 8), profile="quiet", pinned=("a", "gone")),
        )
        self.assertEqual((router.profile, router.pinned), ("quiet", {"a"}))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 3)

    def test_starts_wait_for_the_end_of_a_server_that_is_no_longer_configured(self):
        ended = Deferred()
        self.patch(handover, "end_unwanted", lambda *_: ended)
        router = FakeRouter(swaps=FakeSwaps((SERVED,)))
        take_over(parts_of(router), UpgradeState(servers=(SERVED,)))
        self.assertEqual(router.swaps.delays, [ended])

    def test_jobs_are_known_before_the_first_request(self):
        jobs = (HandedJob("anna", "videos", "video_1", "a", "alias", 2.5),)
        parts = parts_of(FakeRouter())
        take_over(parts, UpgradeState(jobs=jobs))
        self.assertEqual(parts.web.inference.jobs.adopted, jobs)

    def test_profile_stays_as_it_was_chosen(self):
        for chosen, active in ("quiet", "quiet"), ("", ""), (None, "of the start"):
            router = FakeRouter(Config(profiles={"quiet": Profile()}), profile="of the start")
            take_over(parts_of(router), UpgradeState(profile=chosen))
            self.assertEqual(router.profile, active)

    def test_removed_profile_is_not_selected(self):
        router = FakeRouter()
        take_over(parts_of(router), UpgradeState(profile="quiet"))
        self.assertIsNone(router.profile)

    def test_memory_is_known_before_the_first_request(self):
        """Otherwise the first model to load would be loaded alone, and all servers that were taken over evicted."""
        ledger = Ledger({"ram": Device(100)}, {"a": MemoryNeed(10)})
        router = FakeRouter()
        take_over(parts_of(router), UpgradeState(memory=ledger))
        self.assertEqual(router.ledger, ledger)
