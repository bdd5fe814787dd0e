"""How an upgrade comes to the moment in which it replaces the program."""

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.app.upgrade_coordinator import (
    CLOSE_TIMEOUT,
    FLUSH_TIMEOUT,
    HOLD_TIME,
    LAST_HOLD_TIME,
    RETRY_INTERVAL,
    WAIT_TIMEOUT,
    Upgrade,
)
from llamaswap.upgrade.state import UpgradeState

DRAIN = 30.0


@define(eq=False)
class FakeHost:
    """A service that is idle when a test says so; `calls` are what was done with it."""

    clock: Clock
    idle_at: float = 0.0
    sent_at: float = 0.0
    closing_helps: bool = True
    closing_takes: float = 0.0
    disk_hangs: bool = False
    configuration: str = "original"
    drain_timeout: float = DRAIN
    calls: list = field(factory=list)
    held: float = 0.0
    _since: float | None = None

    def idle(self):
        return self.clock.seconds() >= self.idle_at

    def responses_sent(self):
        return self.idle() and self.clock.seconds() >= self.sent_at

    def busy_with(self):
        return "1 requests in progress"

    def hold(self):
        self.calls.append("hold")
        self._since = self.clock.seconds()

    def release(self):
        self.calls.append("release")
        if self._since is not None:
            self.held += self.clock.seconds() - self._since
            self._since = None

    def end_feeds(self):
        self.calls.append("end feeds")

    async def close_requests(self):
        self.calls.append("close")
        if self.closing_helps:
            self.idle_at = self.sent_at = self.clock.seconds() + self.closing_takes

    async def flush(self):
        self.calls.append("flush")
        if self.disk_hangs:
            await Deferred()

    def fingerprint(self):
        return self.configuration

    def collect(self):
        return 5, UpgradeState()


class UpgradeCase(SynchronousTestCase):
    def begin(self, problem="", fault=None, **host):
        self.clock = Clock()
        self.host = FakeHost(self.clock, **host)
        self.replaced = []

        def exec_new(listening, state):
            self.replaced.append(self.clock.seconds())
            self.host.calls.append("exec")
            if fault is not None:
                raise fault

        self.problem, self.checks = problem, 0

        async def check():
            self.checks += 1
            self.host.calls.append("check")
            return self.problem

        self.upgrade = Upgrade(self.clock, self.host, check, exec_new)
        self.upgrade.request()

    def wait(self, seconds):
        for _ in range(round(seconds / 0.01)):
            self.clock.advance(0.01)

    @property
    def error(self):
        return self.upgrade.document()["error"]


class WayTests(UpgradeCase):
    def test_idle_service_is_held_flushed_and_replaced(self):
        self.begin()
        self.assertEqual(self.host.calls[:6], ["check", "hold", "end feeds", "flush", "exec", "release"])

    def test_new_code_that_does_not_start_holds_no_request(self):
        self.begin(problem="the new code does not come up: ImportError")
        self.assertEqual(self.host.calls, ["check"])
        document = self.upgrade.document()
        self.assertEqual((document["phase"], document["attempts"], document["count"]), ("idle", 1, 0))
        self.assertIn("ImportError", document["error"])

    def test_check_that_raises_fails_the_upgrade(self):
        self.clock = Clock()
        check = lambda: Deferred.fromCoroutine(self.fails())
        self.upgrade = Upgrade(self.clock, FakeHost(self.clock), check, lambda *_: None)
        self.upgrade.request()
        self.assertEqual(self.error, "out of luck")
        self.flushLoggedErrors(RuntimeError)

    async def fails(self):
        raise RuntimeError("out of luck")

    def test_requests_are_held_only_in_short_tries_while_one_lasts(self):
        self.begin(idle_at=30.0)
        self.wait(29.9)
        self.assertEqual(self.replaced, [])
        self.host.release()
        self.assertLess(self.host.held, 30.0 * HOLD_TIME / RETRY_INTERVAL + HOLD_TIME)
        self.wait(0.2)
        self.assertEqual(len(self.replaced), 1)
        self.assertNotIn("close", self.host.calls)

    def test_disk_that_hangs_holds_requests_for_a_bounded_time(self):
        self.begin(disk_hangs=True)
        self.wait(FLUSH_TIMEOUT + 0.1)
        self.assertEqual(self.host.calls, ["check", "hold", "end feeds", "flush", "release"])
        self.assertIn("a disk or a driver", self.error)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_program_that_cannot_be_executed_leaves_the_service_running(self):
        self.begin(fault=OSError(2, "No such file or directory"))
        self.assertEqual(self.host.calls[-1], "release")
        self.assertIn("No such file", self.error)
        self.assertEqual(self.upgrade.document()["phase"], "idle")

    def test_end_of_the_service_cancels_the_upgrade(self):
        self.begin(idle_at=1e9)
        self.wait(0.5)
        self.upgrade.cancel()
        self.assertEqual(self.host.calls[-1], "release")
        self.assertEqual(self.error, "")
        self.wait(WAIT_TIMEOUT)
        self.assertEqual(self.replaced, [])
        self.assertEqual(self.clock.getDelayedCalls(), [])


class BoundTests(UpgradeCase):
    """What an upgrade closes, and when."""

    def test_request_that_never_ends_fails_the_upgrade_instead_of_being_closed(self):
        self.begin(idle_at=1e9)
        self.wait(WAIT_TIMEOUT + RETRY_INTERVAL + HOLD_TIME + DRAIN)
        self.assertEqual((self.replaced, self.upgrade.phase), ([], "idle"))
        self.assertNotIn("close", self.host.calls)
        self.assertEqual(self.host.calls[-1], "release")
        self.assertIn("1 requests in progress", self.error)
        self.assertIn("--force", self.error)

    def test_long_drain_timeout_does_not_hold_requests_for_longer_than_thirty_seconds(self):
        self.begin(idle_at=1e9, drain_timeout=3600.0)
        self.wait(WAIT_TIMEOUT + RETRY_INTERVAL + HOLD_TIME + LAST_HOLD_TIME)
        self.assertEqual(self.host.calls[-1], "release")
        self.assertIn("1 requests in progress", self.error)

    def test_upgrade_requested_again_closes_requests_only_after_the_drain_timeout(self):
        self.begin(idle_at=1e9)
        self.wait(2.0)
        for _ in range(5):
            self.upgrade.request()
            self.wait(DRAIN / 5 - 0.1)
        self.assertNotIn("close", self.host.calls)
        self.wait(1.0)
        self.assertEqual(self.host.calls[-5:], ["close", "end feeds", "flush", "exec", "release"])
        self.assertEqual(self.upgrade.attempts, 1)

    def test_upgrade_requested_again_during_its_last_hold_still_waits_for_the_drain_timeout(self):
        self.begin(idle_at=1e9, drain_timeout=100.0)
        self.wait(WAIT_TIMEOUT + RETRY_INTERVAL + HOLD_TIME + 15.0)
        self.upgrade.request()
        self.wait(100.0)
        self.assertNotIn("close", self.host.calls)
        self.wait(LAST_HOLD_TIME)
        self.assertIn("close", self.host.calls)
        self.assertEqual(len(self.replaced), 1)

    def test_upgrade_requested_again_goes_on_as_soon_as_the_requests_end(self):
        self.begin(idle_at=20.0)
        self.wait(2.0)
        self.upgrade.request()
        self.wait(18.1)
        self.assertEqual(len(self.replaced), 1)
        self.assertNotIn("close", self.host.calls)

    def test_request_during_the_check_does_not_force_the_upgrade(self):
        self.clock, checking = Clock(), Deferred()
        self.host = FakeHost(self.clock, idle_at=1e9)
        self.upgrade = Upgrade(self.clock, self.host, lambda: checking, lambda *_: None)
        self.upgrade.request()
        self.upgrade.request()
        checking.callback("")
        self.wait(WAIT_TIMEOUT)
        self.assertNotIn("close", self.host.calls)

    def test_closed_requests_get_time_to_end(self):
        self.begin(idle_at=1e9, closing_takes=3.0)
        self.wait(2.0)
        self.upgrade.request()
        self.wait(DRAIN + 4.0)
        self.assertEqual((len(self.replaced), self.upgrade.attempts), (1, 1))

    def test_connection_that_does_not_take_a_complete_response_is_closed_at_the_end_of_the_wait(self):
        self.begin(sent_at=1e9)
        self.wait(WAIT_TIMEOUT)
        self.assertNotIn("close", self.host.calls)
        self.wait(RETRY_INTERVAL + 3 * HOLD_TIME + LAST_HOLD_TIME)
        self.assertIn("close", self.host.calls)
        self.assertEqual(len(self.replaced), 1)

    def test_client_that_reads_a_complete_response_slowly_gets_the_drain_timeout(self):
        self.begin(sent_at=1e9)
        self.wait(2.0)
        self.upgrade.request()
        self.wait(DRAIN - 1.0)
        self.assertNotIn("close", self.host.calls)
        self.wait(3 * HOLD_TIME)
        self.assertIn("close", self.host.calls)

    def test_servers_that_do_not_come_to_rest_leave_the_service_running(self):
        self.begin(idle_at=1e9, closing_helps=False)
        self.wait(2.0)
        self.upgrade.request()
        self.wait(DRAIN + 3 * CLOSE_TIMEOUT)
        self.assertEqual(self.replaced, [])
        self.assertEqual(self.host.calls[-1], "release")
        self.assertIn("rest", self.error)


class ConfigurationTests(UpgradeCase):
    """The files that the new program reads are those that were checked."""

    def test_configuration_that_broke_during_the_wait_fails_the_upgrade(self):
        self.begin(idle_at=30.0)
        self.wait(10.0)
        self.host.configuration = "half written"
        self.problem = "the new code does not come up: not a mapping"
        self.wait(30.0)
        self.assertEqual(self.replaced, [])
        self.assertEqual(self.host.calls[-2:], ["release", "check"])
        self.assertIn("not a mapping", self.error)

    def test_configuration_that_changed_during_the_wait_is_checked_again(self):
        self.begin(idle_at=30.0)
        self.wait(10.0)
        self.host.configuration = "another one"
        self.wait(30.0)
        self.assertEqual((self.checks, len(self.replaced), self.upgrade.attempts), (2, 1, 1))

    def test_configuration_is_compared_before_any_request_is_closed(self):
        self.begin(idle_at=1e9)
        self.wait(2.0)
        self.upgrade.request()
        self.host.configuration = "half written"
        self.problem = "the new code does not come up: not a mapping"
        self.wait(DRAIN + 2.0)
        self.assertNotIn("close", self.host.calls)
        self.assertIn("not a mapping", self.error)

    def test_configuration_that_changed_after_requests_were_closed_is_checked_while_others_are_held(self):
        self.begin(idle_at=1e9, closing_takes=3.0)
        self.wait(2.0)
        self.upgrade.request()
        self.wait(DRAIN + 1.0)
        self.assertIn("close", self.host.calls)
        self.host.configuration = "another one"
        self.wait(3.0)
        self.assertEqual(self.host.calls[-4:], ["flush", "check", "exec", "release"])
        self.assertEqual(self.host.calls.count("close"), 1)
