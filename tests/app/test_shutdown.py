"""The phases of a shutdown, and what ends each of them."""

from types import SimpleNamespace

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.app.ollama_listener import OllamaListener
from llamaswap.app.shutdown import CLOSE_TIMEOUT, SERVERS_TIMEOUT, Shutdown, ShutdownPhase
from llamaswap.config import Config
from tests.doubles import FakeRouter


class Part:
    """Any part of a service: records its calls, and returns the given results."""

    def __init__(self, calls, **results):
        self._calls, self._results = calls, results

    def __getattr__(self, name):
        def call(*arguments):
            self._calls.append((name, *arguments))
            return self._results.get(name)

        return call


def fake_parts(clock, calls, requests, hooks, disk):
    """A service whose requests, hooks and disk end with these Deferreds."""
    part, idle = Part(calls), succeed(None)
    proxy = Part(calls, when_idle=requests)
    proxy.active = 1
    thread = Part([], close=idle)
    return SimpleNamespace(
        context=SimpleNamespace(reactor=clock),
        reloader=part,
        watchdog=part,
        observability=SimpleNamespace(inflight=part, close=lambda: disk),
        models=SimpleNamespace(
            hosts=None,
            router=FakeRouter(Config(drain_timeout=30.0), calls=calls),
            slots=part,
            leases=part,
            peers=part,
            pool=part,
            launcher=part,
            record_file=part,
            guardian=part,
            hooks=Part(calls, when_idle=hooks),
            driver_thread=thread,
            disk_thread=thread,
        ),
        web=SimpleNamespace(proxy=proxy, streams=part, load_tests=part, downloads=part, factory=part, agent=None),
    )


class ShutdownTests(SynchronousTestCase):
    def begin(self, requests=None, hooks=None, disk=None, agent=None):
        self.clock, self.calls = Clock(), []
        ends = [succeed(None) if end is None else end for end in (requests, hooks, disk)]
        parts, ollama = fake_parts(self.clock, self.calls, *ends), OllamaListener(self.clock, None)
        parts.web.agent = agent
        self.shutdown = Shutdown(parts, lambda: Part(self.calls), ollama)
        self.done = Deferred.fromCoroutine(self.shutdown.run())

    @property
    def stop_time(self):
        """The seconds that the servers got to stop."""
        return next(arguments[0] for name, *arguments in self.calls if name == "shutdown")

    def test_idle_service_ends_at_once(self):
        self.begin()
        self.successResultOf(self.done)
        names = [name for name, *_ in self.calls]
        order = [names.index(name) for name in ("drain", "stopListening", "end_all", "shutdown", "abort")]
        self.assertEqual(order, sorted(order))
        self.assertEqual(self.stop_time, 30.0 + SERVERS_TIMEOUT)
        self.assertIs(self.shutdown.phase, ShutdownPhase.DONE)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_agent_that_ends_refuses_no_connection_before_its_servers_have_stopped(self):
        """The front would take a refused connection for the end of them."""
        self.begin(agent=Part([]))
        names = [name for name, *_ in self.calls]
        self.assertIn("stopReading", names)
        self.assertNotIn("stopListening", names)

    def test_servers_stop_with_the_end_of_the_last_request(self):
        requests = Deferred()
        self.begin(requests=requests)
        self.clock.advance(10.0)
        self.assertIs(self.shutdown.phase, ShutdownPhase.DRAINING)
        requests.callback(None)
        self.successResultOf(self.done)
        self.assertEqual(self.stop_time, 20.0 + SERVERS_TIMEOUT)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_request_that_does_not_end_gets_the_drain_timeout(self):
        requests = Deferred()
        self.begin(requests=requests)
        self.clock.advance(29.9)
        self.assertNoResult(self.done)
        self.clock.advance(0.1)
        self.successResultOf(self.done)
        self.assertEqual(self.stop_time, SERVERS_TIMEOUT)
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
