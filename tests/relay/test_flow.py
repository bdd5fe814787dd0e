"""A coroutine run without Deferreds of its own."""

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.relay.flow import Flow


class TestFlow(SynchronousTestCase):
    def run_flow(self, coroutine):
        self.results = []
        flow = Flow(coroutine)
        flow.addBoth(self.results.append)
        return flow

    def test_one_that_waits_for_nothing_is_over_at_once(self):
        async def serve():
            return None

        self.run_flow(serve())
        self.assertEqual(self.results, [None])

    def test_it_goes_on_with_each_result_and_is_told_of_once(self):
        first, second, seen = Deferred(), Deferred(), []

        async def serve():
            seen.append(await first)
            seen.append(await succeed(2))
            seen.append(await second)

        self.run_flow(serve())
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

        self.run_flow(serve())
        later.errback(ValueError("v"))
        self.assertEqual((seen, self.results), ([ValueError, KeyError], [None]))

    def test_what_is_not_caught_is_the_listeners(self):
        waiting = Deferred()

        async def serve():
            await waiting

        self.run_flow(serve())
        waiting.cancel()
        (failure,) = self.results
        self.assertIs(failure.type, CancelledError)
        at_once = []
        Flow(serve()).addBoth(at_once.append)
        self.assertEqual(at_once, [None])  # the failure was taken by who awaited it first
