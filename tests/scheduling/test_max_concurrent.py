"""`maxConcurrent`: how many requests all models together are served or loaded for at a time."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.errors import QueueFull
from llamaswap.scheduling.planner import forecast
from llamaswap.scheduling.state import ModelRules, Rules
from tests.scheduling.world import Conflicts, World, fifo, pairs, retuned


def world(limit: int, *conflicts: str, **more: float) -> World:
    """Models a to e; a and b are ready."""
    relation = Conflicts(pairs(*conflicts))
    rules = Rules({name: ModelRules() for name in "abcde"}, relation, fifo(max_concurrent=limit, **more))
    made = World(rules, relation)
    made.adopt("a")
    made.adopt("b")
    return made


class MaxConcurrentTests(SynchronousTestCase):
    def test_request_beyond_the_limit_waits_for_the_end_of_another_models_request(self) -> None:
        here = world(2)
        one, other, third, fourth = here.requests("a", "b", "a", "b")
        self.assertEqual(sorted(here.granted), [one.number, other.number])
        self.assertEqual(here.positions, {third.number: 1, fourth.number: 2})
        here.end(other)
        self.assertEqual(sorted(here.granted), [one.number, third.number])
        here.cancel(one)
        self.assertEqual(sorted(here.granted), [third.number, fourth.number])

    def test_request_with_the_highest_priority_is_served_next(self) -> None:
        here = world(1)
        first, _ = here.requests("a", "a")
        urgent = here.request("b", priority=5)
        here.end(first)
        self.assertEqual(list(here.granted), [urgent.number])

    def test_no_model_is_loaded_for_a_request_that_could_not_be_served(self) -> None:
        here = world(1, "ac")
        first, second = here.requests("b", "c")
        self.assertEqual(here.swaps, [])
        expected = forecast(here.scheduler, "c", here.now)
        self.assertEqual((expected.action, expected.evicts, expected.waits_for), ("queue", ("a",), ("b",)))
        here.end(first)
        self.assertEqual([swap.model for swap in here.swaps], ["c"])
        [third] = here.requests("b")
        self.assertIn(third.number, here.waiting)
        here.load_all()
        self.assertEqual(list(here.granted), [second.number])

    def test_forecast_names_the_limit_that_a_request_waits_for(self) -> None:
        here = world(1)
        here.requests("a")
        for name in "abc":
            self.assertEqual(forecast(here.scheduler, name, here.now).reason, "maxConcurrent (1) is reached")

    def test_client_that_leaves_during_a_load_makes_room_for_another(self) -> None:
        here = world(1)
        loading, waiting = here.requests("c", "a")
        here.cancel(loading)
        self.assertEqual(list(here.granted), [waiting.number])

    def test_more_requests_than_the_queue_takes_are_refused(self) -> None:
        here = world(1, max_queue=1)
        _, _, refused = here.requests("a", "a", "a")
        self.assertIsInstance(here.refused[refused.number], QueueFull)

    def test_client_that_reads_nothing_makes_room_for_a_waiting_one(self) -> None:
        here = world(1, stalled_reader=5.0)
        first, _ = here.requests("a", "b")
        here.reader_stalled(first, here.now)
        here.advance(6.0)
        self.assertEqual([number for number, _, _ in here.interrupted], [first.number])

    def test_reload_with_a_higher_limit_serves_the_waiting_requests(self) -> None:
        here = world(1)
        here.requests("a", "b", "a")
        here.retune(retuned(here.rules, max_concurrent=3))
        self.assertEqual(len(here.granted), 3)
