"""What the service's parts have to do with an upgrade, beyond what the live tests show."""

from attrs import Factory, define, field
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.app import handover
from llamaswap.app.handover import ServiceHandover, take_over
from llamaswap.observe.logs import LogRegistry
from llamaswap.upgrade.coordinator import IdleConnection, UpgradeState
from tests.upgrade.test_coordinator import SERVED


class Refuses:
    """Every part that fails at everything."""

    def adopt(self, *args):
        raise RuntimeError("out of luck")


@define(eq=False)
class FakeRouter:
    config: object
    active: object = None
    handover: object = field(default=Factory(lambda self: self, takes_self=True))
    pinned: list = field(factory=list)
    adopted: object = None
    remembered: object = None
    homeless: tuple = ()
    waited: list = field(factory=list)

    def select_profile(self, name):
        self.active = name

    def pin(self, model):
        self.pinned.append(model)

    def restore_failures(self, ailing):
        self.remembered = ailing

    def adopt(self, servers):
        self.adopted = servers
        return list(self.homeless)

    def delay_starts_until(self, gone):
        self.waited.append(gone)

    def running(self):
        return []


@define
class FakeConfig:
    profiles: dict
    models: dict


@define(eq=False)
class FakeService:
    router: FakeRouter
    guardian: object = field(factory=Refuses)
    front: object = field(factory=Refuses)
    reactor: object = None
    launcher: object = None
    book: object = field(factory=LogRegistry)


@define(eq=False)
class Quiet:
    """Every part that has nothing to write and nothing under way."""

    idle: bool = True
    enabled: bool = False
    busy: bool = False

    def rest(self):
        return None

    def flush(self):
        return succeed(None)


@define(eq=False)
class Flushing:
    """What a service has that is waited for before it is replaced."""

    reactor: Clock = field(factory=Clock)
    machine: Quiet = field(factory=Quiet)
    launcher: Quiet = field(factory=Quiet)
    activity: Quiet = field(factory=Quiet)
    stdout: Quiet = field(factory=Quiet)
    log_files: Quiet = field(factory=Quiet)
    hooks: Quiet = field(factory=Quiet)


class FlushTests(SynchronousTestCase):
    def test_a_hook_that_runs_beside_keeps_its_pipes_and_somebody_who_fetches_it(self):
        service = Flushing(hooks=Quiet(busy=True))
        flushed = Deferred.fromCoroutine(ServiceHandover(service).flush())
        service.reactor.advance(1.0)
        self.assertNoResult(flushed)
        service.hooks.busy = False
        service.reactor.advance(0.1)
        self.successResultOf(flushed)

    def test_one_that_takes_long_holds_nobody_back_for_long(self):
        service = Flushing(hooks=Quiet(busy=True))
        flushed = Deferred.fromCoroutine(ServiceHandover(service).flush())
        service.reactor.pump([0.1] * 21)
        self.successResultOf(flushed)


class TakeOverTests(SynchronousTestCase):
    def test_what_cannot_be_taken_over_costs_nothing_else(self):
        service = FakeService(FakeRouter(FakeConfig({"quiet": 1}, {"a": 1})))
        take_over(
            service,
            UpgradeState(connections=(IdleConnection(7, 2),), keeper=(9, 8), profile="quiet", pinned=("a", "gone")),
        )
        self.assertEqual((service.router.active, service.router.pinned), ("quiet", ["a"]))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 2)

    def test_nothing_is_loaded_beside_a_server_that_has_no_place_any_more(self):
        ended = Deferred()
        self.patch(handover, "end_unwanted", lambda *_: ended)
        service = FakeService(FakeRouter(FakeConfig({}, {}), homeless=(SERVED,)))
        take_over(service, UpgradeState(servers=(SERVED,)))
        self.assertEqual(service.router.waited, [ended])

    def test_a_profile_that_is_gone_is_not_chosen(self):
        service = FakeService(FakeRouter(FakeConfig({}, {})))
        take_over(service, UpgradeState(profile="quiet"))
        self.assertIsNone(service.router.active)
