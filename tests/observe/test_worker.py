"""The thread that may block."""

import gc
import threading
import weakref
from collections import deque

from twisted.internet.defer import CancelledError
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.observe.worker import WorkerThread


class QueuePool:
    """A thread pool without threads: `run` does what is queued."""

    def __init__(self):
        self.queue, self.calls = deque(), []

    def start(self):
        self.calls.append("start")

    def stop(self):
        self.calls.append("stop")

    def callInThreadWithCallback(self, on_result, work, *args):
        self.queue.append((on_result, work, args))

    def run(self):
        while self.queue:
            on_result, work, args = self.queue.popleft()
            try:
                outcome = True, work(*args)
            except BaseException:
                outcome = False, Failure()  # in a variable of a frame of the traceback, as in Twisted's pool
            on_result(*outcome)


class DirectReactor:
    """Calls from a thread what would be called on the reactor's."""

    def callFromThread(self, function, *args):
        function(*args)


class WorkerTests(SynchronousTestCase):
    def make(self, **options):
        self.pool = QueuePool()
        return WorkerThread("test", DirectReactor(), self.pool, **options)

    def test_work_is_done_in_order_and_results_come_back(self):
        worker = self.make()
        done = []
        first = worker(lambda: done.append(1))
        second = worker(lambda: done.append(2) or "two")
        worker.close()
        self.pool.run()
        self.assertEqual((done, self.successResultOf(second)), ([1, 2], "two"))
        self.assertEqual(self.pool.calls, ["start", "stop"])
        self.successResultOf(first)

    def test_failed_work_fails_its_own_deferred_only(self):
        worker = self.make()
        failed, fine = worker(lambda: 1 / 0), worker(lambda: "fine")
        closed = worker.close()
        self.pool.run()
        self.failureResultOf(failed, ZeroDivisionError)
        self.assertEqual(self.successResultOf(fine), "fine")
        self.successResultOf(closed)

    def test_memory_of_failed_work_is_released_without_a_garbage_collection(self):
        class Body:
            def edit(self):
                raise ValueError("malformed")

        body = Body()
        released = weakref.ref(body)
        for options in ({"collect": True}, {"collect": False}):
            failed = self.make(**options)(body.edit)
            gc.disable()
            self.addCleanup(gc.enable)
            self.pool.run()
            self.failureResultOf(failed, ValueError)
        del body, failed
        self.assertIsNone(released())

    def test_garbage_collection_is_paused_during_the_work_on_request(self):
        self.assertTrue(gc.isenabled())
        for collect in (True, False):
            worker = self.make(collect=collect)
            fine, failed = worker(gc.isenabled), worker(lambda: 1 / 0)
            self.pool.run()
            self.assertEqual(self.successResultOf(fine), collect)
            self.failureResultOf(failed, ZeroDivisionError)
            self.assertTrue(gc.isenabled())

    def test_result_of_cancelled_work_is_dropped(self):
        worker = self.make()
        asked = worker(lambda: "late")
        asked.cancel()
        self.failureResultOf(asked, CancelledError)
        self.pool.run()

    def test_closed_worker_refuses_work(self):
        worker = self.make()
        self.successResultOf(worker.close())
        self.successResultOf(worker.close())
        self.assertRaises(RuntimeError, worker, lambda: None)

    def test_real_thread_is_a_daemon_and_ends_with_close(self):
        worker = WorkerThread("store", reactor := CollectingReactor())
        threads = []
        worker(lambda: threads.append(threading.current_thread()))
        reactor.run_next()
        closed = worker.close()
        reactor.run_next()
        self.successResultOf(closed)
        threads[0].join(10)
        self.assertEqual((threads[0].daemon, threads[0].is_alive()), (True, False))


class CollectingReactor:
    """Keeps what threads want to have called; `run_next` waits for one call and makes it."""

    def __init__(self):
        self.calls, self.arrived = deque(), threading.Semaphore(0)

    def callFromThread(self, function, *args):
        self.calls.append((function, args))
        self.arrived.release()

    def run_next(self):
        assert self.arrived.acquire(timeout=10)
        function, args = self.calls.popleft()
        function(*args)
