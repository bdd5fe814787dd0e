"""`upgrade` and `reload`: which process it signals, and how it waits for the result."""

import os
import signal
import subprocess
import sys
import time

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.cli.client import ApiClient, ClientError
from llamaswap.cli.upgrade import WAIT_TIMEOUT, follow, send_signal
from tests.cli.doubles import Server, invoke

IDLE = {"pid": 1, "count": 2, "attempts": 1, "phase": "idle", "error": ""}


class FollowTests(SynchronousTestCase):
    def follow(self, *states, insist=None):
        states = list(states)
        server = Server().on("GET /api/upgrade", lambda _: states.pop(0) if len(states) > 1 else states[0])
        self.slept = 0.0

        def sleep(seconds):
            self.slept += seconds

        return follow(ApiClient("http://here", server.send), IDLE, insist=insist, sleep=sleep, now=lambda: self.slept)

    def test_higher_count_ends_the_wait(self):
        checking = {**IDLE, "attempts": 2, "phase": "checking"}
        after = {**IDLE, "count": 3, "attempts": 0}
        self.assertEqual(self.follow(IDLE, checking, after), after)

    def test_failed_upgrade_is_reported_with_its_reason(self):
        failed = {**IDLE, "attempts": 2, "error": "the new code does not come up: ImportError"}
        trouble = self.assertRaises(ClientError, self.follow, IDLE, failed)
        self.assertIn("ImportError", str(trouble))

    def test_error_of_an_earlier_attempt_does_not_end_the_wait(self):
        after = {**IDLE, "count": 3}
        self.assertEqual(self.follow({**IDLE, "error": "an old story"}, after), after)

    def test_forced_upgrade_is_requested_again_once_the_server_waits(self):
        checking, waiting = ({**IDLE, "attempts": 2, "phase": phase} for phase in ("checking", "waiting"))
        insisted = []
        self.follow(checking, waiting, waiting, {**IDLE, "count": 3}, insist=lambda: insisted.append(self.slept))
        self.assertEqual(insisted, [0.2])

    def test_wait_is_bounded(self):
        self.assertRaises(ClientError, self.follow, {**IDLE, "attempts": 2, "phase": "waiting"})
        self.assertGreaterEqual(self.slept, WAIT_TIMEOUT)


class SignalTests(SynchronousTestCase):
    def child(self, *words):
        child = subprocess.Popen(
            [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)", *words], stdout=-1
        )
        child.stdout.readline()
        self.addCleanup(child.stdout.close)
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        return child

    def test_llamaswap_process_gets_the_signal(self):
        child = self.child("llamaswap")
        send_signal(child.pid)
        self.assertEqual(child.wait(10), -signal.SIGUSR2)

    def test_other_process_does_not_get_the_signal(self):
        """The pid that a server in a container reports belongs to another process outside."""
        child = self.child("something-else")
        self.assertRaises(ClientError, send_signal, child.pid)
        self.assertIsNone(child.poll())

    def test_ended_process_is_reported(self):
        child = self.child()
        child.kill()
        child.wait()
        self.assertRaises(ClientError, send_signal, child.pid)


class CommandTests(SynchronousTestCase):
    def test_pid_of_another_process_is_refused(self):
        server = Server().on("GET /api/upgrade", IDLE)
        result = invoke(["upgrade", "--pid", "3"], server)
        self.assertEqual(result.exit_code, 1)
        self.assertIn("is process 1, not 3", result.stderr)

    def test_unreachable_server_is_reported_with_the_url_option(self):
        result = invoke(["upgrade"], Server().on("GET /api/upgrade", OSError(111, "Connection refused")))
        self.assertEqual(result.exit_code, 1)
        self.assertIn("--url", result.stderr)

    def test_process_can_be_signalled_without_a_url(self):
        child = SignalTests.child(self, "llamaswap")
        result = invoke(["upgrade", "--no-wait", "--pid", str(child.pid)])
        self.assertEqual(result.exit_code, 0, result.output)
        self.assertEqual(child.wait(10), -signal.SIGUSR2)
        self.assertNotEqual(child.pid, os.getpid())


class ReloadTests(SynchronousTestCase):
    def reload(self, *statuses):
        child = SignalTests.child(self, "llamaswap")
        statuses = list(statuses)
        server = Server().on("GET /api/upgrade", {**IDLE, "pid": child.pid})
        server.on("GET /api/config/status", lambda _: statuses.pop(0) if len(statuses) > 1 else statuses[0])
        self.patch(time, "sleep", lambda _: None)
        done = invoke(["reload"], server)
        self.assertEqual(child.wait(10), -signal.SIGHUP)
        return done

    def status(self, result, at, message="", **touched):
        return {"result": result, "at": at, "message": message, "touched": touched}

    def test_reload_names_the_changed_models(self):
        before, after = self.status("started", "1"), self.status("reloaded", "2", added=["owl"], removed=[])
        self.assertEqual(self.reload(before, before, after).stdout, "the configuration is reloaded\nadded: owl\n")

    def test_keys_that_are_in_force_from_the_reload_on_are_no_failure_of_it(self):
        refused = (401, {"error": {"message": "unauthorized"}})
        done = self.reload(self.status("started", "1"), refused)
        self.assertEqual(done.exit_code, 0, done.stderr)
        self.assertIn("the configuration is reloaded; its keys apply: --key, or LLAMASWAP_API_KEY", done.stdout)

    def test_rejected_configuration_is_an_error_with_its_reason(self):
        done = self.reload(self.status("started", "1"), self.status("rejected", "2", "models must be a mapping"))
        self.assertEqual(done.exit_code, 1)
        self.assertIn("the previous one stays: models must be a mapping", done.stderr)
