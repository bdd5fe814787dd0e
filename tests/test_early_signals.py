"""Signals that arrive before the service handles them."""

import os
import signal

from twisted.trial.unittest import SynchronousTestCase

from llamaswap import early_signals


class EarlySignalTests(SynchronousTestCase):
    def setUp(self):
        self.before = {number: signal.signal(number, signal.SIG_DFL) for number in early_signals.SIGNALS}
        early_signals.release()
        self.addCleanup(self.restore)

    def restore(self):
        early_signals.release()
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def test_reload_signal_is_remembered_once(self):
        early_signals.catch()
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGUSR2)
        self.assertTrue(early_signals.reload_requested())
        self.assertFalse(early_signals.reload_requested())

    def test_upgrade_signal_is_ignored(self):
        early_signals.catch()
        os.kill(os.getpid(), signal.SIGUSR2)
        self.assertFalse(early_signals.reload_requested())

    def test_reload_signal_that_was_blocked_during_an_upgrade_is_remembered(self):
        signal.pthread_sigmask(signal.SIG_BLOCK, early_signals.SIGNALS)
        os.kill(os.getpid(), signal.SIGHUP)
        early_signals.catch()
        self.assertTrue(early_signals.reload_requested())
        self.assertFalse(signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(early_signals.SIGNALS))

    def test_released_signals_have_their_earlier_handlers(self):
        early_signals.catch()
        early_signals.release()
        self.assertEqual([signal.getsignal(number) for number in early_signals.SIGNALS], [signal.SIG_DFL] * 2)
