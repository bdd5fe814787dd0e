"""A coroutine run without Deferreds of its own."""

import gc
import weakref

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.proxy.task import Future, Task, forget_frames


class TaskTests(SynchronousTestCase):
    def run_task(self, coroutine):
        self.results = []
        flow = Task(coroutine)
        flow.addBoth(self.results.append)
        return flow

    def test_task_that_waits_for_nothing_ends_at_once(self):
        async def serve():
            return None

        self.run_task(serve())
        self.assertEqual(self.results, [None])

    def test_task_continues_with_each_result_and_reports_its_end_once(self):
        first, second, seen = Deferred(), Deferred(), []

        async def serve():
            seen.append(await first)
            seen.append(await succeed(2))
            seen.append(await second)

        self.run_task(serve())
        first.callback(1)
        self.assertEqual((seen, self.results), ([1, 2], []))
        second.callback(3)
        self.assertEqual((seen, self.results), ([1, 2, 3], [None]))

    def test_failures_are_raised_where_they_were_awaited(self):
        later, seen = Deferred(), []

        async def serve():
            for waiting in (later, fail(KeyError("k"))):
                try:
                    await waiting
                except (ValueError, KeyError) as error:
                    seen.append(type(error))

        self.run_task(serve())
        later.errback(ValueError("v"))
        self.assertEqual((seen, self.results), ([ValueError, KeyError], [None]))

    def test_uncaught_error_of_a_task_goes_to_its_listener(self):
        waiting = Deferred()

        async def serve():
            await waiting

        self.run_task(serve())
        waiting.cancel()
        (failure,) = self.results
        self.assertIs(failure.type, CancelledError)
        at_once = []
        Task(serve()).addBoth(at_once.append)
        self.assertEqual(at_once, [None])  # the failure was taken by who awaited it first


class ForgetFramesTests(SynchronousTestCase):
    def raised(self, error, cause=None):
        try:
            raise error from cause
        except ValueError as caught:
            return caught

    def test_frames_of_an_error_and_of_its_causes_are_released(self):
        cause = self.raised(ValueError("cause"))
        cause.__failure__ = object()
        error = self.raised(ValueError("effect"), cause)
        forget_frames(error)
        self.assertEqual((error.__traceback__, cause.__traceback__, vars(cause)), (None, None, {}))

    def test_errors_that_are_each_others_context_are_each_released_once(self):
        first, second = self.raised(ValueError("first")), self.raised(ValueError("second"))
        first.__context__, second.__context__ = second, first
        forget_frames(first)
        self.assertEqual((first.__traceback__, second.__traceback__), (None, None))


class FutureTests(SynchronousTestCase):
    def setUp(self):
        self.cancelled, self.got = [], []

    def wait_for(self, result):
        async def serve():
            try:
                self.got.append(await result)
            except ValueError as error:
                self.got.append(error)

        Task(serve())

    def make(self):
        return Future(lambda error: self.cancelled.append(1))

    def test_future_may_be_settled_before_or_after_it_is_awaited(self):
        early, late = self.make(), self.make()
        early.settle(1)
        self.wait_for(early)
        self.wait_for(late)
        self.assertEqual(self.got, [1])
        late.settle(2)
        self.assertEqual(self.got, [1, 2])

    def test_a_failure_is_raised_where_it_is_awaited(self):
        early, late = self.make(), self.make()
        early.fail(ValueError("early"))
        self.wait_for(early)
        self.wait_for(late)
        late.fail(ValueError("late"))
        self.assertEqual([str(error) for error in self.got], ["early", "late"])

    def test_cancelling_is_the_makers_business_and_too_late_afterwards(self):
        result = self.make()
        self.wait_for(result)
        result.cancel()
        self.assertEqual((self.cancelled, self.got), ([1], []))
        result.fail(ValueError("cancelled"))
        result.cancel()
        self.assertEqual((len(self.cancelled), len(self.got)), (1, 1))

    def test_a_handled_failure_leaves_nothing_to_the_garbage_collector(self):
        class Body:
            """Something large that a coroutine has in a variable."""

        async def serve(future, body):
            try:
                await future
            except ValueError:
                pass

        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        future, body = Future(lambda error: None), Body()
        alive = weakref.ref(body)
        Task(serve(future, body))
        del body
        future.fail(ValueError())
        self.assertIsNone(alive())
