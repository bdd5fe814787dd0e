"""The thread that may block."""

import gc
import threading

from twisted.internet.defer import CancelledError
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.observe.worker import WorkerThread


class TestWorker(SynchronousTestCase):
    def make(self):
        self.loops = []
        return WorkerThread("test", lambda call: call(), self.loops.append)

    def test_work_is_done_in_order_and_answers_come_back(self):
        worker = self.make()
        done = []
        first = worker(lambda: done.append(1))
        second = worker(lambda: done.append(2) or "two")
        worker.close()
        self.loops[0]()
        self.assertEqual((done, self.successResultOf(second), len(self.loops)), ([1, 2], "two", 1))
        self.successResultOf(first)

    def test_a_failure_goes_to_whoever_asked(self):
        worker = self.make()
        failed, fine = worker(lambda: 1 / 0), worker(lambda: "fine")
        closed = worker.close()
        self.loops[0]()
        self.failureResultOf(failed, ZeroDivisionError)
        self.assertEqual(self.successResultOf(fine), "fine")
        self.successResultOf(closed)

    def test_garbage_collection_is_paused_during_the_work_if_asked(self):
        self.assertTrue(gc.isenabled())
        for collect in (True, False):
            loops = []
            worker = WorkerThread("test", lambda call: call(), loops.append, collect=collect)
            fine, failed = worker(gc.isenabled), worker(lambda: 1 / 0)
            worker.close()
            loops[0]()
            self.assertEqual(self.successResultOf(fine), collect)
            self.failureResultOf(failed, ZeroDivisionError)
            self.assertTrue(gc.isenabled())

    def test_an_answer_nobody_waits_for_is_dropped(self):
        worker = self.make()
        asked = worker(lambda: "late")
        asked.cancel()
        self.failureResultOf(asked, CancelledError)
        worker.close()
        self.loops[0]()

    def test_nothing_is_taken_after_close(self):
        worker = self.make()
        self.successResultOf(worker.close())
        self.successResultOf(worker.close())
        self.assertRaises(RuntimeError, worker, lambda: None)

    def test_a_real_thread_ends_with_close(self):
        answered = threading.Event()
        names = []
        worker = WorkerThread("store", lambda call: (call(), answered.set()))
        worker(lambda: names.append(threading.current_thread()))
        self.assertTrue(answered.wait(10))
        worker.close()
        names[0].join(10)
        self.assertEqual((names[0].name, names[0].is_alive()), ("store", False))
