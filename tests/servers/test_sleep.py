"""A server that is put to sleep instead of stopped, in a world of doubles."""

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config.schema.model import SuspendSettings
from llamaswap.errors import ModelUnloaded, ShuttingDown
from tests.servers.doubles import KILL, REFUSED, TERM, scene

ENTER, WAKE = "POST /sleep?level=1", "POST /wake_up"
SLEEP = SuspendSettings((ENTER,), (WAKE,), timeout=4.0)


def up(**fields):
    """A scene whose server is ready."""
    made = scene(**{"sleep": SLEEP, **fields})
    made.supervisor.ensure_ready()
    made.wait(0.03)
    del made.heard.states[:]
    return made


def asleep(**fields):
    made = up(**fields)
    made.supervisor.suspend()
    made.wait(0.03)
    del made.heard.states[:]
    return made


class FallingAsleepTests(SynchronousTestCase):
    def test_suspend_runs_its_steps_once_and_keeps_the_process(self):
        made = up()
        told = made.supervisor.suspend()
        made.wait(0.03)
        self.assertIs(self.successResultOf(told), True)
        self.assertEqual(made.asked.requests, [ENTER])
        self.assertEqual(made.heard.states, [("ready", "stopping"), ("stopping", "stopped")])
        status = made.supervisor.status()
        self.assertEqual((status.state, status.pid), ("stopped", made.servers()[0].pid))
        self.assertIsNotNone(status.asleep_since)
        self.assertEqual(made.servers()[0].signals, [])

    def test_every_caller_learns_that_the_server_is_suspended(self):
        made = up()
        told = [made.supervisor.suspend(), made.supervisor.suspend()]
        made.wait(0.03)
        told.append(made.supervisor.suspend())
        made.wait(0.03)
        self.assertEqual([self.successResultOf(one) for one in told], [True] * 3)
        self.assertEqual(made.asked.requests, [ENTER])

    def test_server_that_refuses_to_suspend_is_stopped(self):
        for answer in (500, REFUSED):
            made = up()
            made.asked.steps[ENTER] = answer
            told = made.supervisor.suspend()
            made.wait(0.1)
            self.assertIs(self.successResultOf(told), False)
            self.assertEqual(made.servers()[0].signals, [TERM])
            self.assertEqual(made.supervisor.state, "stopped")
            self.assertIsNone(made.supervisor.status().asleep_since)
            self.assertIn("could not be put to sleep", made.supervisor.status().last_error)

    def test_server_that_does_not_suspend_in_time_is_stopped_and_killed_after_the_grace(self):
        made = up()
        made.asked.steps[ENTER] = Deferred(lambda _: None)
        made.servers()[0].term_after = None
        told = made.supervisor.suspend(2.0)
        made.wait(3.9)
        self.assertEqual(made.servers()[0].signals, [])
        made.wait(2.3)
        self.assertIs(self.successResultOf(told), False)
        self.assertEqual(made.servers()[0].signals, [TERM, TERM, KILL])

    def test_request_while_the_server_suspends_resumes_it(self):
        made = up()
        answer = made.asked.steps[ENTER] = Deferred()
        made.supervisor.suspend()
        made.wait(0.5)
        ready = made.supervisor.ensure_ready()
        made.wait(0.5)
        self.assertNoResult(ready)
        answer.callback(200)
        made.wait(0.05)
        self.successResultOf(ready)
        self.assertEqual(made.asked.requests, [ENTER, WAKE])
        self.assertEqual(len(made.servers()), 1)

    def test_request_while_suspending_fails_is_served_by_a_new_process(self):
        made = up()
        answer = made.asked.steps[ENTER] = Deferred()
        made.supervisor.suspend()
        made.wait(0.5)
        ready = made.supervisor.ensure_ready()
        answer.callback(503)
        made.wait(0.1)
        self.successResultOf(ready)
        self.assertEqual(len(made.servers()), 2)

    def test_stop_while_the_server_suspends_stops_it(self):
        made = up()
        cut = []
        made.asked.steps[ENTER] = Deferred(lambda _: cut.append(1))
        slept = made.supervisor.suspend()
        made.wait(0.1)
        stopped = made.supervisor.stop()
        made.wait(0.1)
        self.successResultOf(stopped)
        self.assertIs(self.successResultOf(slept), False)
        self.assertEqual(cut, [1])

    def test_exit_while_the_server_suspends_is_a_stop(self):
        made = up()
        made.asked.steps[ENTER] = Deferred()
        slept = made.supervisor.suspend()
        made.wait(0.1)
        made.servers()[0].die(3)
        made.wait(0.3)
        self.assertIs(self.successResultOf(slept), False)
        self.assertEqual(made.heard.exits, [(3, False)])
        self.assertEqual(made.supervisor.state, "stopped")

    def test_starting_server_is_stopped_instead_of_suspended(self):
        made = scene(answer=503, sleep=SLEEP)
        ready = made.supervisor.ensure_ready()
        made.wait(0.1)
        slept = made.supervisor.suspend()
        made.wait(0.1)
        self.assertIs(self.successResultOf(slept), False)
        self.failureResultOf(ready, ModelUnloaded)
        self.assertEqual(made.asked.requests, [])

    def test_server_without_suspend_steps_is_stopped(self):
        made = up(sleep=SuspendSettings())
        self.assertNoResult(slept := made.supervisor.suspend())
        made.wait(0.1)
        self.assertIs(self.successResultOf(slept), False)

    def test_suspend_command_gets_the_pid(self):
        made = up(sleep=SuspendSettings(("nap ${PID}", ENTER), (WAKE,)))
        made.world.on_become = lambda process: made.clock.callLater(0.2, process.die, 0)
        slept = made.supervisor.suspend()
        made.wait(0.3)
        self.assertIs(self.successResultOf(slept), True)
        command = made.world.commands()[-1]
        self.assertEqual(command.argv, ("nap", str(made.servers()[0].pid)))
        self.assertEqual(made.asked.requests, [ENTER])

    def test_stop_during_a_suspend_command_runs_no_further_step(self):
        made = up(sleep=SuspendSettings(("nap 1", "nap 2"), (WAKE,), timeout=4.0))
        made.supervisor.suspend()
        made.wait(0.01)
        made.supervisor.stop()
        made.wait(1.0)
        self.assertEqual([one.argv for one in made.world.commands() if one.argv[0] == "nap"], [("nap", "1")])

    def test_suspend_command_that_fails_is_missing_or_hangs_stops_the_server(self):
        for step, ending in (("nap", 1), ("missing", None), ("nap", None), ('nap "', None)):
            made = up(sleep=SuspendSettings((step,), (WAKE,), timeout=1.0))
            made.world.on_become = lambda process, e=ending, m=made: e and m.clock.callLater(0.2, process.die, e)
            slept = made.supervisor.suspend()
            made.wait(1.3)
            self.assertIs(self.successResultOf(slept), False)
            self.assertFalse([one for one in made.world.commands() if one.alive])


class AsleepTests(SynchronousTestCase):
    def test_request_resumes_the_server_and_the_resume_does_not_count_as_a_load(self):
        made = asleep()
        ready = made.supervisor.ensure_ready()
        made.wait(0.03)
        self.successResultOf(ready)
        self.assertEqual(made.asked.requests, [ENTER, WAKE])
        self.assertEqual(made.heard.states, [("stopped", "starting"), ("starting", "ready")])
        self.assertEqual(len(made.servers()), 1)
        status = made.supervisor.status()
        self.assertIsNone(status.asleep_since)
        self.assertEqual((len(status.load_seconds), len(status.wake_seconds)), (1, 1))

    def test_resumed_server_is_ready_when_its_health_check_passes(self):
        made = asleep()
        made.asked.answer = 503
        ready = made.supervisor.ensure_ready()
        made.wait(1.0)
        self.assertNoResult(ready)
        made.asked.answer = 200
        made.wait(0.1)
        self.successResultOf(ready)

    def test_server_that_does_not_resume_is_restarted_for_the_same_request(self):
        for answer in (500, REFUSED, Deferred(lambda _: None)):
            made = asleep()
            made.asked.steps[WAKE] = answer
            ready = made.supervisor.ensure_ready()
            made.wait(4.5)
            self.successResultOf(ready)
            self.assertEqual(len(made.servers()), 2)
            self.assertEqual(made.servers()[0].signals, [TERM])
            self.assertEqual(made.heard.states[-1], ("starting", "ready"))

    def test_resumed_server_that_is_never_ready_is_restarted(self):
        made = asleep()
        made.asked.answer = lambda _: 200 if len(made.servers()) == 2 else 503
        ready = made.supervisor.ensure_ready()
        made.wait(4.5)
        self.successResultOf(ready)

    def test_server_that_exits_while_it_resumes_is_restarted(self):
        made = asleep()
        made.asked.steps[WAKE] = Deferred(lambda _: None)
        ready = made.supervisor.ensure_ready()
        made.wait(0.1)
        made.servers()[0].die(1)
        made.wait(0.5)
        self.successResultOf(ready)
        self.assertEqual(len(made.servers()), 2)

    def test_suspended_server_that_exits_is_started_by_the_next_request(self):
        made = asleep()
        made.servers()[0].die(-9)
        made.wait(0.3)
        self.assertEqual(made.heard.exits, [(-9, False)])
        self.assertIsNone(made.supervisor.status().asleep_since)
        self.assertIsNone(made.supervisor.status().pid)
        ready = made.supervisor.ensure_ready()
        made.wait(0.1)
        self.successResultOf(ready)

    def test_stop_ends_a_suspended_server(self):
        made = asleep()
        stopped = made.supervisor.stop()
        made.wait(0.1)
        self.successResultOf(stopped)
        self.assertEqual(made.servers()[0].signals, [TERM])
        self.assertIsNone(made.supervisor.status().asleep_since)
        self.assertEqual(made.heard.states, [], "it was shown as stopped already")

    def test_resuming_server_is_suspended_again(self):
        made = asleep()
        made.asked.steps[WAKE] = Deferred(lambda _: None)
        ready = made.supervisor.ensure_ready()
        made.wait(0.1)
        slept = made.supervisor.suspend()
        made.wait(0.1)
        self.assertIs(self.successResultOf(slept), True)
        self.failureResultOf(ready, ModelUnloaded)
        self.assertEqual(made.asked.requests, [ENTER, WAKE, ENTER])

    def test_close_ends_the_server_in_every_suspend_state(self):
        for phase in ("dozing", "stirring", "asleep", "waking"):
            made = up()
            made.asked.steps[WAKE] = Deferred(lambda _: None)
            if phase in ("dozing", "stirring"):
                made.asked.steps[ENTER] = Deferred(lambda _: None)
            made.supervisor.suspend()
            made.wait(0.1)
            waiting = made.supervisor.ensure_ready() if phase in ("stirring", "waking") else None
            made.wait(0.1)
            closed = made.supervisor.close()
            made.wait(0.1)
            self.successResultOf(closed)
            if waiting is not None:
                self.failureResultOf(waiting, ShuttingDown)
            self.assertFalse(made.servers()[0].alive)
            left = [call for call in made.clock.getDelayedCalls() if "Launcher" not in str(call)]
            self.assertEqual(left, [])

    def test_resume_steps_are_those_of_the_time_of_suspending(self):
        made = asleep()
        made.supervisor.set_definition(type(made.supervisor.model)("kiwi", cmd="server"))
        ready = made.supervisor.ensure_ready()
        made.wait(0.1)
        self.successResultOf(ready)
        self.assertEqual(made.asked.requests, [ENTER, WAKE])


class HandoverTests(SynchronousTestCase):
    def test_suspended_server_has_a_suspended_snapshot(self):
        made = asleep()
        served = made.supervisor.snapshot()
        self.assertTrue(served.asleep)
        made.supervisor.stop()
        self.assertIsNone(made.supervisor.snapshot())

    def test_suspending_or_resuming_server_has_no_snapshot(self):
        made = up()
        made.asked.steps[ENTER] = Deferred()
        made.supervisor.suspend()
        made.wait(0.1)
        self.assertIsNone(made.supervisor.snapshot())
        made.asked.steps[ENTER].callback(200)
        made.asked.steps[WAKE] = Deferred(lambda _: None)
        made.wait(0.1)
        made.supervisor.ensure_ready()
        self.assertIsNone(made.supervisor.snapshot())
