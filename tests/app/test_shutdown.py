"""The phases of a shutdown, and what ends each of them."""

from attrs import define, field
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.app.shutdown import CLOSE_TIMEOUT, SERVERS_TIMEOUT, Shutdown, ShutdownPhase


@define(eq=False)
class FakeHost:
    """A service whose requests, hooks and disk end when a test says so; `calls` are what was done with it."""

    drain_timeout: float = 30.0
    requests: Deferred = field(factory=lambda: succeed(None))
    hooks: Deferred = field(factory=lambda: succeed(None))
    disk: Deferred = field(factory=lambda: succeed(None))
    calls: list = field(factory=list)

    async def stop_accepting(self):
        self.calls.append("stop accepting")

    def requests_done(self):
        return self.requests

    async def stop_servers(self, seconds):
        self.calls.append(("stop servers", seconds))

    def hooks_done(self):
        return self.hooks

    async def close(self):
        self.calls.append("close")
        await self.disk


class ShutdownTests(SynchronousTestCase):
    def begin(self, **host):
        self.clock, self.host = Clock(), FakeHost(**host)
        self.shutdown = Shutdown(self.clock, self.host)
        self.done = Deferred.fromCoroutine(self.shutdown.run())

    def test_idle_service_ends_at_once(self):
        self.begin()
        self.successResultOf(self.done)
        self.assertEqual(self.host.calls, ["stop accepting", ("stop servers", 42.0), "close"])
        self.assertIs(self.shutdown.phase, ShutdownPhase.DONE)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_servers_stop_with_the_end_of_the_last_request(self):
        requests = Deferred()
        self.begin(requests=requests)
        self.clock.advance(10.0)
        self.assertEqual((self.host.calls, self.shutdown.phase), (["stop accepting"], ShutdownPhase.DRAINING))
        requests.callback(None)
        self.successResultOf(self.done)
        self.assertEqual(self.host.calls[1], ("stop servers", 32.0))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_request_that_does_not_end_gets_the_drain_timeout(self):
        requests = Deferred()
        self.begin(requests=requests)
        self.clock.advance(29.9)
        self.assertNoResult(self.done)
        self.clock.advance(0.1)
        self.successResultOf(self.done)
        self.assertEqual(self.host.calls[1], ("stop servers", SERVERS_TIMEOUT))
        requests.callback(None)  # its end comes too late, and harms nothing

    def test_second_signal_ends_the_draining(self):
        self.begin(requests=Deferred())
        self.shutdown.hurry()
        self.successResultOf(self.done)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_second_signal_ends_the_wait_for_a_hook(self):
        self.begin(hooks=Deferred())
        self.assertIs(self.shutdown.phase, ShutdownPhase.STOPPING_SERVERS)
        self.shutdown.hurry()
        self.successResultOf(self.done)

    def test_hook_that_does_not_end_is_waited_for_until_the_deadline(self):
        self.begin(hooks=Deferred())
        self.clock.advance(30.0 + SERVERS_TIMEOUT)
        self.successResultOf(self.done)

    def test_disk_that_hangs_does_not_keep_the_process(self):
        self.begin(requests=Deferred(), hooks=Deferred(), disk=Deferred())
        self.clock.advance(30.0)
        self.clock.advance(SERVERS_TIMEOUT)
        self.assertIs(self.shutdown.phase, ShutdownPhase.CLOSING)
        self.clock.advance(CLOSE_TIMEOUT)
        self.successResultOf(self.done)
