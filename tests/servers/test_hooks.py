"""What is done when models come and go: commands and URLs, waited for or not, and never in the way."""

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import Config, Model
from llamaswap.config.schema import HookSettings
from llamaswap.errors import ModelUnloaded
from llamaswap.events import EventBus, StateChanged, SwapEnded
from llamaswap.http_client import HttpResponse, RequestFailed
from llamaswap.routing.router import Router
from llamaswap.servers.hooks import HookPreparation, HookRunner
from llamaswap.servers.prepared_supervisor import PreparedSupervisor
from tests.doubles import FakeFleet, NoMemoryReclaim, RecordingListener
from tests.servers.doubles import scene


class HookedTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.launcher = scene().supervisor.launcher
        self.posted = []
        self.answers, self.timeouts = [], []

    def runner(self, **hooks):
        def send(method, url, *, timeout, body):
            self.posted.append((url, body))
            self.timeouts.append(timeout)
            self.answers.append(Deferred())
            return self.answers[-1]

        return HookRunner(self.clock, lambda: HookSettings(**hooks), self.launcher, send)

    def supervisor(self, state="stopped"):
        """The supervisor inside."""
        made = FakeFleet(self.clock)(Model("owl"), RecordingListener())
        made.state = state
        return made

    def result(self, deferred):
        self.clock.pump([0.0] * 4)
        return self.successResultOf(deferred)

    def hooked(self, inner, **hooks):
        return PreparedSupervisor(inner, [HookPreparation("owl", self.runner(**hooks))])

    def test_supervisor_without_hooks_behaves_as_the_one_inside(self):
        inner = self.supervisor()
        hooked = self.hooked(inner)
        self.assertEqual(self.result(hooked.ensure_ready()), inner.endpoint)
        self.result(hooked.stop(3.0))
        self.assertEqual((inner.spawned, inner.graces), (1, [3.0]))

    def test_start_waits_for_before_load(self):
        inner = self.supervisor()
        starting = self.hooked(inner, before_load=("http://x/a",)).ensure_ready()
        self.assertEqual(inner.spawned, 0)
        self.assertEqual(self.posted, [("http://x/a", b'{"event": "before_load", "model": "owl", "error": ""}')])
        self.answers[0].callback(HttpResponse(200, b""))
        self.assertEqual(self.result(starting), inner.endpoint)

    def test_runner_is_busy_until_the_last_hook_ends(self):
        runner = self.runner(after_ready=("http://x/a", "http://x/b", "missing-command"), timeout=5.0)
        runner.run("after_ready", "owl")
        self.assertTrue(runner.busy)
        self.answers[0].callback(HttpResponse(200, b""))
        self.assertTrue(runner.busy)
        idle = runner.when_idle()
        self.assertNoResult(idle)
        self.answers[1].errback(RequestFailed("no response within 5 s"))
        self.assertFalse(runner.busy)
        self.successResultOf(idle)
        self.successResultOf(runner.when_idle())

    def test_hooks_run_on_if_the_wait_for_their_end_is_cancelled(self):
        """At the end of the time for a shutdown, or at a second signal, a hook was killed."""
        runner = self.runner(after_unload=("http://x/a",))
        runner.run("after_unload", "owl")
        idle = runner.when_idle()
        idle.cancel()
        self.assertFalse(self.answers[0].called)
        self.assertTrue(runner.busy)
        self.failureResultOf(idle, CancelledError)
        self.answers[0].callback(HttpResponse(200, b""))
        self.assertFalse(runner.busy)

    def test_start_waits_for_a_hook_request_no_longer_than_its_timeout(self):
        inner = self.supervisor()
        starting = self.hooked(inner, before_load=("http://x/a",), timeout=5.0).ensure_ready()
        self.assertEqual(self.timeouts, [5.0])
        self.answers[0].errback(RequestFailed("no response within 5 s"))
        self.assertEqual(self.result(starting), inner.endpoint)

    def test_failing_hook_does_not_fail_the_start(self):
        inner = self.supervisor()
        starting = self.hooked(inner, before_load=("http://x/a",)).ensure_ready()
        self.answers[0].errback(OSError("refused"))
        self.assertEqual(self.result(starting), inner.endpoint)

    def test_hook_request_that_is_redirected_or_refused_counts_as_failed(self):
        lines = []
        observer = lambda event: lines.append(formatEvent(event))
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        for status in (200, 204, 302, 404):
            self.runner(after_ready=("http://x/a",)).run("after_ready", "owl")
            self.answers[-1].callback(HttpResponse(status, b""))
        failed = [line for line in lines if "failed" in line]
        self.assertEqual(
            failed, [f"hook after_ready for owl failed: http://x/a answered {status}" for status in (302, 404)]
        )

    def test_unreadable_hook_does_not_prevent_a_stop(self):
        """The router would take it for gone, and load the next one beside it."""
        for entry in ("missing 'unclosed", "", "missing-program \0"):
            inner = self.supervisor("ready")
            self.result(self.hooked(inner, before_unload=(entry,)).stop(3.0))
            self.assertEqual(inner.graces, [3.0])

    def test_model_unloaded_while_its_hook_runs_is_not_started(self):
        inner = self.supervisor()
        hooked = self.hooked(inner, before_load=("http://x/a",))
        starting = hooked.ensure_ready()
        self.result(hooked.stop())
        self.answers[0].callback(HttpResponse(200, b""))
        self.failureResultOf(starting, ModelUnloaded)
        self.assertEqual(inner.spawned, 0)

    def test_ready_server_is_given_without_a_hook(self):
        inner = self.supervisor("ready")
        self.result(self.hooked(inner, before_load=("http://x/a",)).ensure_ready())
        self.assertEqual(self.posted, [])

    def test_stop_waits_for_before_unload_only_if_the_server_is_ready(self):
        for state, asked in (("ready", 1), ("starting", 1), ("stopped", 1)):
            inner = self.supervisor(state)
            stopping = self.hooked(inner, before_unload=("http://x/a",)).stop(2.0)
            if state == "ready":
                self.assertEqual(inner.graces, [])
                self.answers[0].callback(HttpResponse(200, b""))
            self.result(stopping)
            self.assertEqual((inner.graces, len(self.posted)), ([2.0], asked))

    def test_other_hooks_run_at_state_changes(self):
        bus = EventBus(lambda error: None)
        self.runner(after_ready=("http://x/r",), after_unload=("http://x/u",), on_failure=("http://x/f",)).listen(bus)
        bus.publish(StateChanged("owl", "stopped", "starting"))
        bus.publish(StateChanged("owl", "starting", "ready"))
        bus.publish(StateChanged("owl", "stopping", "stopped"))
        bus.publish(SwapEnded(1, "owl", None, 0.0))
        bus.publish(SwapEnded(2, "owl", "exited", 0.0))
        self.assertEqual([url for url, _ in self.posted], ["http://x/r", "http://x/u", "http://x/f"])
        self.assertIn(b'"error": "exited"', self.posted[-1][1])


class MeanwhileTests(SynchronousTestCase):
    """Between the wish that a server goes and its going there is the hook."""

    def setUp(self):
        self.clock = Clock()
        self.launcher = scene().supervisor.launcher
        self.fleet = FakeFleet(self.clock)
        self.asked = []

    def send(self, method, url, *, timeout, body):
        self.asked.append((url, Deferred()))
        return self.asked[-1][1]

    def answer(self, url):
        [(told, answer)] = self.asked
        self.assertEqual(told, url)
        self.asked.clear()
        answer.callback(HttpResponse(200, b""))
        self.settle()

    def settle(self):
        self.clock.pump([0.0] * 12)

    def router(self, **hooks):
        runner = HookRunner(self.clock, lambda: HookSettings(**hooks), self.launcher, self.send)
        config = Config(models={"owl": Model("owl", cmd="serve owl")})
        supervise = lambda model, listener: PreparedSupervisor(
            self.fleet(model, listener), [HookPreparation(model.id, runner)]
        )
        router = Router(config, supervise, self.clock, EventBus(lambda error: None), NoMemoryReclaim())
        router.load("owl")
        self.settle()
        if "before_load" in hooks:
            self.answer(*hooks["before_load"])
        return router

    def test_request_during_before_unload_gets_the_next_server(self):
        router = self.router(before_unload=("http://x/u",))
        router.unload()
        acquisition = router.request("owl")
        self.settle()
        self.assertNoResult(acquisition.granted)
        self.answer("http://x/u")
        lease = self.successResultOf(acquisition.granted)
        self.assertEqual((lease.lost, self.fleet["owl"].state, self.fleet["owl"].spawned), (False, "ready", 2))
        lease.release()
        self.assertIsNotNone(router.lease("owl"))

    def test_suspended_server_is_resumed_after_before_unload(self):
        self.router(before_unload=("http://x/u",))
        runner = HookRunner(self.clock, lambda: HookSettings(before_unload=("http://x/u",)), self.launcher, self.send)
        hooked = PreparedSupervisor(self.fleet["owl"], [HookPreparation("owl", runner)])
        asleep, ready = hooked.suspend(3.0), hooked.ensure_ready()
        self.settle()
        self.assertNoResult(ready)
        self.answer("http://x/u")
        self.successResultOf(asleep)
        self.successResultOf(ready)
        self.assertEqual((self.fleet["owl"].wakes, self.fleet["owl"].spawned), (1, 1))

    def test_next_server_waits_for_before_load_too(self):
        router = self.router(before_unload=("http://x/u",), before_load=("http://x/l",))
        router.unload()
        acquisition = router.request("owl")
        self.settle()
        self.answer("http://x/u")
        self.assertNoResult(acquisition.granted)
        self.answer("http://x/l")
        self.assertFalse(self.successResultOf(acquisition.granted).lost)

    def test_server_unloaded_twice_runs_its_hook_once(self):
        router = self.router(before_unload=("http://x/u",))
        gone = [router.unload(), router.unload()]
        self.settle()
        self.answer("http://x/u")
        for one in gone:
            self.successResultOf(one)
        self.assertEqual(self.fleet["owl"].state, "stopped")

    def test_request_during_before_unload_fails_at_a_second_unload(self):
        router = self.router(before_unload=("http://x/u",))
        router.unload()
        acquisition = router.request("owl")
        self.settle()
        gone = router.unload()
        self.failureResultOf(acquisition.granted, ModelUnloaded)
        self.answer("http://x/u")
        self.successResultOf(gone)
        self.assertEqual((self.fleet["owl"].state, self.fleet["owl"].spawned), ("stopped", 1))
