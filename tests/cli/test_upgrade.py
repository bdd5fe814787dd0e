"""`upgrade`: whom it signals, and how it follows what comes of it."""

import os
import signal
import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.cli.client import ApiClient, ClientError
from llamaswap.cli.upgrade import PATIENT, follow, told
from tests.cli.doubles import Server, invoke

IDLE = {"pid": 1, "count": 2, "attempts": 1, "phase": "idle", "error": ""}


class FollowTests(SynchronousTestCase):
    def follow(self, *states):
        states = list(states)
        server = Server().on("GET /api/upgrade", lambda _: states.pop(0) if len(states) > 1 else states[0])
        self.slept = 0.0

        def sleep(seconds):
            self.slept += seconds

        return follow(ApiClient("http://here", server.send), IDLE, sleep=sleep, now=lambda: self.slept)

    def test_a_higher_count_is_the_end(self):
        checking = {**IDLE, "attempts": 2, "phase": "checking"}
        after = {**IDLE, "count": 3, "attempts": 0}
        self.assertEqual(self.follow(IDLE, checking, after), after)

    def test_a_failure_is_told_with_its_reason(self):
        failed = {**IDLE, "attempts": 2, "error": "the new code does not come up: ImportError"}
        trouble = self.assertRaises(ClientError, self.follow, IDLE, failed)
        self.assertIn("ImportError", str(trouble))

    def test_an_earlier_failure_is_not_taken_for_this_one(self):
        after = {**IDLE, "count": 3}
        self.assertEqual(self.follow({**IDLE, "error": "an old story"}, after), after)

    def test_it_does_not_wait_for_ever(self):
        self.assertRaises(ClientError, self.follow, {**IDLE, "attempts": 2, "phase": "waiting"})
        self.assertGreaterEqual(self.slept, PATIENT)


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

    def test_a_server_of_ours_gets_the_signal(self):
        child = self.child("llamaswap")
        told(child.pid)
        self.assertEqual(child.wait(10), -signal.SIGUSR2)

    def test_a_stranger_does_not(self):
        """A server in a container tells a pid that is somebody else's out here."""
        child = self.child("something-else")
        self.assertRaises(ClientError, told, child.pid)
        self.assertIsNone(child.poll())

    def test_nobody_is_no_llamaswap_either(self):
        child = self.child()
        child.kill()
        child.wait()
        self.assertRaises(ClientError, told, child.pid)


class CommandTests(SynchronousTestCase):
    def test_a_pid_that_is_not_the_servers_is_refused(self):
        server = Server().on("GET /api/upgrade", IDLE)
        result = invoke(["upgrade", "--pid", "3"], server)
        self.assertEqual(result.exit_code, 1)
        self.assertIn("is process 1, not 3", result.stderr)

    def test_without_a_server_it_says_where_it_looked(self):
        result = invoke(["upgrade"], Server().on("GET /api/upgrade", OSError(111, "Connection refused")))
        self.assertEqual(result.exit_code, 1)
        self.assertIn("--url", result.stderr)

    def test_a_process_can_be_asked_without_a_url(self):
        child = SignalTests.child(self, "llamaswap")
        result = invoke(["upgrade", "--no-wait", "--pid", str(child.pid)])
        self.assertEqual(result.exit_code, 0, result.output)
        self.assertEqual(child.wait(10), -signal.SIGUSR2)
        self.assertNotEqual(child.pid, os.getpid())
