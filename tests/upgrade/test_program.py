"""The check of the new program, and the exec."""

import contextlib
import os
import signal
import socket
import sys
from pathlib import Path

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ProcessTerminated
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.upgrade import program
from llamaswap.upgrade.state import IdleConnection, UpgradeState


class ExecTests(SynchronousTestCase):
    def test_program_that_cannot_be_executed_changes_nothing(self):
        here, there = socket.socketpair()
        self.addCleanup(here.close)
        self.addCleanup(there.close)
        state = UpgradeState(connections=(IdleConnection(there.fileno(), 1),))
        before = len(os.listdir("/proc/self/fd"))
        self.assertRaises(OSError, program.exec_new_process, ["/no/such/python"], {}, ":80", here.fileno(), state)
        self.assertFalse(os.get_inheritable(here.fileno()) or os.get_inheritable(there.fileno()))
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)

    def become(self, during):
        """Exec another program, with `during` called just before; returns what was executed."""
        executed, ended = [], []
        here, there = socket.socketpair()
        self.addCleanup(here.close)
        self.addCleanup(there.close)

        def execve(word, words, environ):
            executed.append(word)
            self.dispositions = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
            self.blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
            os.kill(os.getpid(), signal.SIGHUP)
            self.pending = signal.sigpending()
            raise OSError("not really")

        def pack(state):
            during()
            return b"{}"

        self.reloads = []
        for number, handler in (
            (signal.SIGTERM, lambda *_: ended.append(True)),
            (signal.SIGHUP, lambda *_: self.reloads.append(True)),
        ):
            self.addCleanup(signal.signal, number, signal.signal(number, handler))
        self.patch(program, "pack", pack)
        self.patch(os, "execve", execve)
        with contextlib.suppress(OSError):
            program.exec_new_process(["python"], {}, ":80", here.fileno(), UpgradeState(), lambda: bool(ended))
        return executed

    def test_end_signal_just_before_the_exec_prevents_it(self):
        self.assertEqual(self.become(lambda: os.kill(os.getpid(), signal.SIGTERM)), [])

    def test_end_signal_has_its_default_action_until_the_new_program_handles_it(self):
        self.assertEqual(self.become(lambda: None), ["python"])
        self.assertEqual(self.dispositions, [signal.SIG_DFL, signal.SIG_DFL])
        self.assertNotIn(signal.getsignal(signal.SIGTERM), (signal.SIG_DFL, signal.SIG_IGN))

    def test_reload_signal_during_the_exec_is_kept_for_the_new_program(self):
        self.become(lambda: None)
        self.assertIn(signal.SIGHUP, self.blocked)
        self.assertIn(signal.SIGUSR2, self.blocked)
        self.assertIn(signal.SIGHUP, self.pending)

    def test_reload_signal_during_a_failed_exec_is_handled_afterwards(self):
        self.become(lambda: None)
        self.assertEqual(self.reloads, [True])
        self.assertNotIn(signal.SIGHUP, signal.pthread_sigmask(signal.SIG_BLOCK, ()))


class FingerprintTests(SynchronousTestCase):
    def setUp(self):
        self.folder = Path(self.mktemp())
        self.package = self.folder / "llamaswap"
        self.package.mkdir(parents=True)
        (self.package / "__init__.py").write_text("")
        self.patch(sys, "path", [str(self.folder)])

    def test_fingerprint_of_unchanged_code_is_equal(self):
        before = program.code_fingerprint()
        (self.package / "__pycache__").mkdir()
        self.assertEqual(program.code_fingerprint(), before)

    def test_fingerprint_differs_with_changed_code(self):
        before = program.code_fingerprint()
        (self.package / "new.py").write_text("")
        added = program.code_fingerprint()
        (self.package / "new.py").write_text("raise ImportError")
        self.assertEqual(len({before, added, program.code_fingerprint()}), 3)

    def test_fingerprint_differs_with_another_distribution(self):
        before = program.code_fingerprint()
        (self.folder / "Twisted-99.dist-info").mkdir()
        self.assertNotEqual(program.code_fingerprint(), before)

    def test_fingerprint_differs_with_a_package_earlier_in_the_path(self):
        before = program.code_fingerprint()
        earlier = Path(self.mktemp())
        (earlier / "llamaswap").mkdir(parents=True)
        (earlier / "llamaswap" / "__init__.py").write_text("")
        sys.path.insert(0, str(earlier))
        self.assertNotEqual(program.code_fingerprint(), before)


class CheckReactor(Clock):
    """A reactor that starts the child of a check, and records its signals."""

    def spawnProcess(self, protocol, *args, **options):
        self.protocol, self.signals = protocol, []
        return self

    def signalProcess(self, name):
        self.signals.append(name)


class CheckTests(SynchronousTestCase):
    def test_cancelled_check_kills_its_child(self):
        reactor = CheckReactor()
        checking = Deferred.fromCoroutine(program.check(reactor, reactor, ["python"], {}))
        checking.cancel()
        self.failureResultOf(checking, CancelledError)
        self.assertEqual(reactor.signals, ["KILL"])
        self.assertEqual(reactor.getDelayedCalls(), [])
        reactor.protocol.processEnded(Failure(ProcessTerminated(signal=9)))

    def test_child_that_does_not_start_in_time_is_killed(self):
        reactor = CheckReactor()
        checking = Deferred.fromCoroutine(program.check(reactor, reactor, ["python"], {}))
        reactor.advance(program.CHECK_TIMEOUT)
        self.assertEqual(reactor.signals, ["KILL"])
        reactor.protocol.processEnded(Failure(ProcessTerminated(signal=9)))
        self.assertIn("within", self.successResultOf(checking))
