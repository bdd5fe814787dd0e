"""The scheduler's decisions, one by one."""

from __future__ import annotations

import time

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import Group
from llamaswap.config.policies.groups import GroupEviction
from llamaswap.errors import (
    KeepsFailing,
    ModelUnloaded,
    NotReady,
    QueueFull,
    ShuttingDown,
    StartFailed,
    TooManyRequests,
    UnknownModel,
    WaitedTooLong,
)
from llamaswap.scheduling.effects import Grant, SetIdleTimer, Stop, Ticket
from llamaswap.scheduling.planner import forecast
from llamaswap.scheduling.scheduler import LONG_QUEUE, RECONSIDER_DELAY
from llamaswap.scheduling.state import ModelRules, Phase
from tests.scheduling.world import World, retuned, swapping, world


def loaded(here: World, *models: str) -> World:
    """The world after these have been loaded, one after the other; none is in use."""
    for model in models:
        ticket = here.request(model)
        here.load_all()
        here.end(ticket)
    here.swaps.clear()
    here.stops.clear()
    here.served.clear()
    return here


def evictions(here: World) -> list[tuple[str, tuple[str, ...]]]:
    return [(swap.model, swap.evict) for swap in here.swaps]


class LoadingTests(SynchronousTestCase):
    def test_hundred_requests_for_a_stopped_model_cause_one_load(self) -> None:
        """core V13, core V76"""
        here = world()
        tickets = here.requests(*"a" * 100)
        here.load_all()
        self.assertEqual(evictions(here), [("a", ())])
        self.assertEqual(len(here.granted), 100)
        self.assertEqual(here.spawns, {"a": 1})
        self.assertEqual(set(here.granted), {ticket.number for ticket in tickets})

    def test_idle_model_is_evicted_for_another(self) -> None:
        """core V43"""
        here = loaded(swapping(), "a")
        here.request("b")
        here.load_all()
        self.assertEqual(evictions(here), [("b", ("a",))])
        self.assertEqual(here.ready, {"b"})

    def test_an_unknown_model_is_refused(self) -> None:
        here = world()
        ticket = here.request("zebra")
        self.assertEqual(repr(here.refused[ticket.number]), repr(UnknownModel("zebra")))

    def test_compatible_models_load_at_the_same_time(self) -> None:
        """core V79"""
        here = world("ac", "bc")
        here.requests("a", "b")
        self.assertEqual(len(here.startable()), 2)
        ticket = here.request("c")
        self.assertEqual(here.positions[ticket.number], 1)
        here.load_all()
        self.assertEqual(here.served, ["a", "b"])
        for served in list(here.granted.values()):
            here.end(served)
        here.load_all()
        self.assertEqual(evictions(here)[-1], ("c", ("a", "b")))
        self.assertEqual(here.served, ["a", "b", "c"])

    def test_swaps_that_share_a_victim_wait_until_it_has_stopped(self) -> None:
        """core V55; upstream waits for the whole of the other swap, which is more than the victim asks for"""
        here = loaded(world("ca", "cb"), "c")
        here.requests("a", "b")
        self.assertEqual(evictions(here), [("a", ("c",))])
        here.stopped("c")
        self.assertEqual(evictions(here), [("a", ("c",)), ("b", ())])

    def test_a_request_for_a_model_that_stops_waits_for_its_next_process(self) -> None:
        """core V20, V33"""
        here = loaded(world(a=ModelRules(ttl=3.0)), "a")
        here.advance(3.0)
        self.assertEqual(here.stopping, {"a"})
        here.request("a")
        self.assertEqual(here.spawns, {"a": 1})
        here.load_all()
        self.assertEqual(here.spawns, {"a": 2})
        self.assertEqual(here.served, ["a"])

    def test_two_stopped_models_requested_at_once_are_both_served(self) -> None:
        """Not one of them queued for ever (llama.cpp issue 28443); the first is not evicted before it was used."""
        here = swapping()
        first = here.request("a")
        here.request("b")
        here.load_all()
        self.assertEqual(here.served, ["a"])
        self.assertEqual(evictions(here), [("a", ())])
        here.end(first)
        here.load_all()
        self.assertEqual(here.served, ["a", "b"])


class QueueTests(SynchronousTestCase):
    def test_queued_requests_for_one_model_join_its_load_together(self) -> None:
        """core V47"""
        here = swapping()
        here.requests(*"abcabc")
        for _ in range(3):
            here.load_all()
            for ticket in list(here.granted.values()):
                here.end(ticket)
        self.assertEqual("".join(here.served), "aabbcc")
        self.assertEqual([swap.model for swap in here.swaps], ["a", "b", "c"])

    def test_queue_is_ordered_by_priority_and_then_by_arrival(self) -> None:
        """core V48"""
        here = swapping()
        busy = here.request("a")
        here.load_all()
        for model, priority in (("b", 0), ("c", 5), ("d", 5), ("e", 9)):
            here.request(model, priority)
        self.assertEqual([ticket.model for ticket in here.queued()], ["e", "c", "d", "b"])
        here.end(busy)
        for _ in range(4):
            here.load_all()
            here.end(next(iter(here.granted.values())))
        self.assertEqual(here.served, ["a", "e", "c", "d", "b"])

    def test_of_equal_priority_the_key_that_used_least_goes_first_until_another_is_starved(self) -> None:
        here = swapping()
        here.request("a")
        here.load_all()
        for model, priority, used in (("b", 0, 900.0), ("c", 0, 5.0), ("d", 1, 1e6), ("e", 0, 5.0)):
            here.request(model, priority, used)
        self.assertEqual([ticket.model for ticket in here.queued()], ["d", "c", "e", "b"])
        here.advance(11.0)
        self.assertEqual([ticket.model for ticket in here.queued()], ["d", "b", "c", "e"])

    def test_each_changed_position_is_reported(self) -> None:
        """core V97"""
        here = swapping()
        here.request("a")
        here.load_all()
        first, second, third = here.requests("b", "c", "d")
        self.assertEqual([here.positions[one.number] for one in (first, second, third)], [1, 2, 3])
        here.cancel(first)
        self.assertEqual([here.positions[one.number] for one in (second, third)], [1, 2])
        urgent = here.request("e", 1)
        self.assertEqual([here.positions[one.number] for one in (urgent, second, third)], [1, 2, 3])

    def test_blocked_request_does_not_block_requests_behind_it(self) -> None:
        here = world("ab")
        here.request("a")
        here.load_all()
        here.requests("b", "c")
        here.load_all()
        self.assertEqual(here.served, ["a", "c"])

    def test_a_failed_load_lets_the_queue_move(self) -> None:
        """core V40, V56"""
        here = swapping()
        tickets = here.requests("a", "a", "a", "b")
        here.fail("a")
        errors = [here.refused[ticket.number] for ticket in tickets[:3]]
        self.assertEqual(len(set(map(id, errors))), 1)
        self.assertIsInstance(errors[0], StartFailed)
        here.load_all()
        self.assertEqual(here.served, ["b"])
        self.assertEqual(here.spawns, {"a": 1, "b": 1})

    def test_client_that_leaves_the_queue_frees_its_slot(self) -> None:
        """core V53"""
        here = swapping(b=ModelRules(limit=1))
        here.request("a")
        here.load_all()
        first = here.request("b")
        here.cancel(first)
        second = here.request("b")
        self.assertNotIn(second.number, here.refused)

    def test_load_without_requests_yields_to_a_request(self) -> None:
        """core V49 as we mend it"""
        here = swapping()
        only = here.request("a")
        here.cancel(only)
        self.assertEqual(len(here.scheduler.loads), 1, "nothing else wants the room")
        here.request("b")
        here.load_all()
        self.assertEqual(here.served, ["b"])
        self.assertNotIn("a", here.ready)

    def test_load_yields_when_its_last_client_leaves_while_another_request_is_queued(self) -> None:
        here = swapping()
        only = here.request("a")
        here.request("b")
        here.cancel(only)
        self.assertEqual([swap.model for swap in here.swaps], ["a", "b"])
        here.load_all()
        self.assertEqual(here.served, ["b"])

    def test_load_that_is_abandoned_during_its_evictions_never_starts(self) -> None:
        here = loaded(swapping(), "a")
        here.cancel(here.request("b"))
        here.request("c")
        here.load_all()
        self.assertEqual(here.spawns, {"a": 1, "c": 1})

    def test_load_without_requests_continues_if_no_request_needs_its_memory(self) -> None:
        """core V17 as we mend it"""
        here = world(a=ModelRules(ttl=30.0))
        here.cancel(here.request("a"))
        here.load_all()
        self.assertEqual(here.ready, {"a"})
        here.advance(29.0)
        self.assertEqual(here.stops, [])
        here.advance(1.0)
        self.assertEqual(here.stops, [Stop(("a",), "idle")])


class LongQueueTests(SynchronousTestCase):
    """Many wait, and many of them go at once: a proxy in front of us ends, a load test is stopped."""

    def crowd(self, count: int = 400, fairness_window: float = 10.0) -> tuple[World, list[Ticket]]:
        here = swapping(fairness_window=fairness_window)
        here.request("a")
        here.load_all()
        tickets = [here.request(model) for _ in range(count // 2) for model in "bc"]
        return here, tickets

    def placed_while(self, here: World, leaving: list[Ticket]) -> int:
        before = here.placed
        for ticket in leaving:
            here.cancel(ticket)
        here.advance(RECONSIDER_DELAY)
        return here.placed - before

    def test_positions_are_not_reported_for_each_of_hundreds_of_clients_that_leave_at_once(self) -> None:
        here, tickets = self.crowd()
        self.assertLess(self.placed_while(here, tickets), 4 * len(tickets))
        self.assertEqual(here.queued(), [])

    def test_positions_are_not_reported_for_each_of_hundreds_of_starved_clients_that_leave_at_once(self) -> None:
        here, tickets = self.crowd()
        here.advance(60.0)
        self.assertLess(self.placed_while(here, tickets), 4 * len(tickets))
        self.assertEqual(here.queued(), [])

    def test_remaining_request_gets_its_position_a_moment_after_a_crowd_left(self) -> None:
        here, tickets = self.crowd()
        self.placed_while(here, tickets[::2])
        queued = here.queued()
        self.assertEqual([ticket.number for ticket in queued], [ticket.number for ticket in tickets[1::2]])
        self.assertEqual([here.positions[ticket.number] for ticket in queued], list(range(1, len(queued) + 1)))

    def test_reservations_of_a_crowd_that_left_end_a_moment_later(self) -> None:
        here, tickets = self.crowd(fairness_window=1.0)
        here.advance(2.0)
        late = here.request("a")
        self.assertNotIn(late.number, here.granted, "b and c have waited for long")
        for ticket in tickets[: -LONG_QUEUE // 2]:
            here.cancel(ticket)
        here.advance(RECONSIDER_DELAY)
        for ticket in tickets[-LONG_QUEUE // 2 :]:
            here.cancel(ticket)
        here.advance(RECONSIDER_DELAY)
        self.assertIn(late.number, here.granted)

    def test_model_reserved_by_a_crowd_is_free_when_the_whole_crowd_left_at_once(self) -> None:
        here, tickets = self.crowd(fairness_window=1.0)
        here.advance(2.0)
        for ticket in tickets:
            here.cancel(ticket)
        here.advance(RECONSIDER_DELAY)
        self.assertIn(here.request("a").number, here.granted)


class OneSidedConflictTests(SynchronousTestCase):
    def test_victim_is_not_loaded_while_the_swap_that_evicted_it_runs(self) -> None:
        """c would not evict a (groups are one-sided), but a's load has just sent c away."""
        here = world()
        here.rules = evolve(
            here.rules, evict=GroupEviction({"g": Group(members=("a",)), "h": Group(exclusive=False, members=("c",))})
        )
        here.retune(here.rules)
        loaded(here, "c")
        here.request("a")
        here.request("c")
        self.assertEqual(evictions(here), [("a", ("c",))])
        here.load_all()
        self.assertEqual(evictions(here), [("a", ("c",)), ("c", ())])
        self.assertEqual(here.ready, {"a", "c"})


class FairnessTests(SynchronousTestCase):
    def test_ready_model_serves_on_while_a_request_for_another_waits(self) -> None:
        """core V44"""
        here = swapping()
        first = here.request("a")
        here.load_all()
        here.advance(1.0)
        here.request("b")
        here.advance(1.0)
        second = here.request("a")
        self.assertIn(second.number, here.granted)
        here.advance(2.0)
        here.end(first)
        here.advance(1.0)
        self.assertEqual([swap.model for swap in here.swaps], ["a"])
        here.end(second)
        self.assertEqual([swap.model for swap in here.swaps], ["a", "b"])

    def test_moderate_priority_leaves_a_fairness_window_of_a_second(self) -> None:
        """core V45"""
        here = swapping()
        first = here.request("a")
        here.load_all()
        here.advance(1.0)
        here.request("b", 50)
        here.advance(1.0)
        self.assertIn(here.request("a").number, here.granted)
        here.end(first)

    def test_two_overlapping_clients_cannot_starve_a_third(self) -> None:
        """Upstream starves the third for ever."""
        here = swapping()
        streams = here.requests("a")
        here.load_all()
        waiting = here.request("b")
        served_at = None
        for _ in range(40):
            here.advance(1.0)
            streams.append(here.request("a"))
            old = streams.pop(0)
            if old.number in here.granted:
                here.end(old)
            here.load_all()
            if waiting.number in here.granted:
                served_at = here.now
                break
        assert served_at is not None
        self.assertLessEqual(served_at - waiting.since, 12.0)

    def test_model_drains_after_the_fairness_window_and_the_queue_moves(self) -> None:
        here = swapping()
        stream = here.request("a")
        here.load_all()
        here.request("b")
        here.advance(9.9)
        overtaker = here.request("a")
        self.assertIn(overtaker.number, here.granted)
        here.advance(0.1)
        held = here.request("a")
        self.assertEqual(here.positions[held.number], 2)
        here.end(overtaker)
        here.end(stream)
        here.load_all()
        self.assertEqual(here.served, ["a", "a", "b"])
        here.end(next(iter(here.granted.values())))
        here.load_all()
        self.assertIn(held.number, here.granted)

    def test_priority_shortens_the_fairness_window(self) -> None:
        here = swapping()
        here.request("a")
        here.load_all()
        here.request("b", 10)
        here.advance(4.9)
        self.assertIn(here.request("a").number, here.granted)
        here.advance(0.2)
        self.assertIn(here.request("a").number, here.waiting)

    def test_priorities_do_not_starve_a_request(self) -> None:
        """A stream of urgent requests for others does not keep a patient one waiting beyond its bound."""
        here = swapping(fairness_window=10.0)
        busy = here.request("a")
        here.load_all()
        patient = here.request("b")
        here.end(busy)
        here.cancel(patient)
        busy = here.request("a")
        here.load_all()
        patient = here.request("b")
        here.advance(6.0)
        here.request("c", 9)
        here.advance(8.0)
        self.assertEqual([ticket.model for ticket in here.queued()], ["b", "c"])
        here.end(busy)
        here.load_all()
        self.assertIn(patient.number, here.granted)

    def test_load_that_would_conflict_with_a_reservation_waits(self) -> None:
        """c and a both stand in b's way; a is cold when b's fairness window ends, and stays so until b was served."""
        here = world("ab", "cb")
        busy = here.request("c")
        here.load_all()
        waiting = here.request("b")
        here.advance(10.0)
        late = here.request("a")
        self.assertIn(late.number, here.waiting)
        self.assertNotIn("a", here.alive)
        here.end(busy)
        here.load_all()
        self.assertIn(waiting.number, here.granted)

    def test_requests_join_a_load_although_a_starved_request_waits_for_its_model(self) -> None:
        here = swapping()
        here.request("a")
        waiting = here.request("b")
        here.advance(10.0)
        joined = here.request("a")
        here.load_all()
        self.assertIn(joined.number, here.granted)
        overtaker = here.request("a")
        self.assertIn(overtaker.number, here.granted)
        self.assertIn(waiting.number, here.waiting)

    def test_starved_request_closes_a_model_at_the_end_of_its_minimum_stay(self) -> None:
        here = swapping()
        stream = here.request("a")
        here.advance(2.0)
        here.load_all()
        here.request("b")
        here.advance(9.9)
        self.assertIn(here.request("a").number, here.granted)
        here.advance(0.1)
        closed = here.request("a")
        self.assertIn(closed.number, here.waiting)
        for number in here.serving("a"):
            here.end(here.granted[number])
        here.load_all()
        self.assertEqual(here.served[-1], "b")
        self.assertNotIn(stream.number, here.granted)

    def test_unused_model_lingers_for_a_moment_in_its_minimum_stay_and_then_yields(self) -> None:
        here = swapping()
        stream = here.request("a")
        here.advance(10.0)
        here.load_all()
        here.request("b")
        here.end(stream)
        self.assertEqual(len(here.swaps), 1)
        here.advance(0.4)
        again = here.request("a")
        self.assertIn(again.number, here.granted, "its client found the model still loaded")
        here.end(again)
        here.advance(0.5)
        here.load_all()
        self.assertEqual(here.served, ["a", "a", "b"])

    def test_model_that_is_unused_for_long_enough_yields_at_once(self) -> None:
        here = swapping()
        stream = here.request("a")
        here.advance(10.0)
        here.load_all()
        here.end(stream)
        here.advance(0.5)
        here.request("b")
        self.assertEqual([swap.evict for swap in here.swaps], [(), ("a",)])

    def test_reservation_ends_when_its_client_leaves(self) -> None:
        here = swapping()
        here.request("a")
        here.load_all()
        waiting = here.request("b")
        here.advance(10.0)
        held = here.request("a")
        self.assertIn(held.number, here.waiting)
        here.cancel(waiting)
        self.assertIn(held.number, here.granted)

    def test_reservations_are_served_in_the_order_in_which_they_were_made(self) -> None:
        here = swapping()
        busy = here.request("a")
        here.load_all()
        here.request("b")
        here.advance(1.0)
        here.request("c")
        here.advance(20.0)
        here.end(busy)
        here.load_all()
        self.assertEqual(here.served, ["a", "b"])

    def test_each_starved_request_has_its_own_fairness_window(self) -> None:
        """c waits for a alone; its fairness window ends long after b's."""
        here = world("ab", "ac", "bd")
        here.requests("a", "d")
        here.load_all()
        here.request("b")
        here.advance(6.0)
        here.request("c")
        here.advance(5.0)
        here.cancel(next(ticket for ticket in here.waiting.values() if ticket.model == "b"))
        self.assertIn(here.request("a").number, here.granted)
        here.advance(5.0)
        self.assertIn(here.request("a").number, here.waiting)

    def test_fairness_window_is_configurable(self) -> None:
        here = swapping(fairness_window=0.0)
        here.request("a")
        here.load_all()
        here.request("b")
        self.assertIn(here.request("a").number, here.waiting)


class LimitTests(SynchronousTestCase):
    def test_explicit_limit_counts_joined_queued_and_served_requests(self) -> None:
        """core V51"""
        here = world(a=ModelRules(limit=2))
        tickets = here.requests("a", "a", "a")
        self.assertEqual(list(here.refused), [tickets[2].number])
        self.assertIsInstance(here.refused[tickets[2].number], TooManyRequests)
        self.assertEqual(here.refused[tickets[2].number].retry_after, 1)
        here.load_all()
        here.end(tickets[0])
        self.assertIn(here.request("a").number, here.granted)
        self.assertIn(here.request("a").number, here.refused)

    def test_ready_model_without_a_limit_gets_every_request(self) -> None:
        """core V52; upstream refuses the eleventh; http T101"""
        here = world()
        here.requests(*"a" * 11)
        here.load_all()
        here.requests(*"a" * 2000)
        self.assertEqual(here.refused, {})
        self.assertEqual(len(here.granted), 2011)

    def test_waiting_requests_are_bounded_per_model(self) -> None:
        here = world()
        here.requests(*"a" * 1000)
        extra = here.request("a")
        self.assertEqual(list(here.refused), [extra.number])
        self.assertIsInstance(here.refused[extra.number], QueueFull)
        self.assertNotIn(here.request("b").number, here.refused)

    def test_queued_request_is_refused_after_the_longest_wait(self) -> None:
        here = swapping()
        here.retune(retuned(here.rules, max_wait=60.0))
        busy = here.request("a")
        here.load_all()
        early, late = here.request("b"), None
        here.advance(30.0)
        late = here.request("c")
        here.advance(29.9)
        self.assertEqual(here.refused, {})
        here.advance(0.1)
        error = here.refused[early.number]
        assert isinstance(error, WaitedTooLong)
        self.assertEqual(str(error), "b could not be served within 60s: other requests for a are still being served")
        self.assertIn(late.number, here.waiting)
        here.advance(30.0)
        self.assertIn(late.number, here.refused)
        here.end(busy)
        self.assertEqual(here.ready, {"a"})

    def stalled(self) -> tuple[World, Ticket]:
        """Model a serves a client that stands still."""
        here = swapping()
        here.retune(retuned(here.rules, stalled_reader=60.0))
        busy = here.request("a")
        here.load_all()
        here.reader_stalled(busy, here.now)
        return here, busy

    def test_stalled_reader_is_interrupted_when_another_request_has_waited_for_its_model(self) -> None:
        here, busy = self.stalled()
        here.advance(1000.0)
        self.assertEqual(here.interrupted, [])
        waiting = here.request("b")
        here.advance(59.9)
        self.assertEqual(here.interrupted, [])
        here.advance(0.1)
        self.assertEqual(here.interrupted, [(busy.number, 1060.0, "b")])
        here.advance(100.0)
        self.assertEqual(len(here.interrupted), 1)
        here.end(busy)
        here.load_all()
        self.assertIn(waiting.number, here.granted)

    def test_reader_that_stalls_while_another_request_waits_has_the_whole_time(self) -> None:
        here = swapping()
        here.retune(retuned(here.rules, stalled_reader=60.0))
        busy = here.request("a")
        here.load_all()
        here.request("b")
        here.advance(500.0)
        here.reader_stalled(busy, here.now - 5.0)
        here.advance(54.9)
        self.assertEqual(here.interrupted, [])
        here.advance(0.1)
        self.assertEqual(here.interrupted, [(busy.number, 60.0, "b")])

    def test_reader_that_reads_again_is_not_interrupted(self) -> None:
        here, busy = self.stalled()
        here.request("b")
        here.advance(59.0)
        here.scheduler.reader_moved(busy)
        here.advance(1000.0)
        self.assertEqual(here.interrupted, [])

    def test_request_that_waits_for_another_model_interrupts_no_stalled_reader(self) -> None:
        here = world("bc")
        here.retune(retuned(here.rules, stalled_reader=60.0))
        stalled, busy = here.requests("a", "b")
        here.load_all()
        here.reader_stalled(stalled, here.now)
        here.request("c")
        here.advance(1000.0)
        self.assertEqual(here.interrupted, [])
        here.end(busy)

    def test_stalled_reader_is_never_interrupted_without_a_bound(self) -> None:
        here, _ = self.stalled()
        here.retune(retuned(here.rules, stalled_reader=0.0))
        here.request("b")
        here.advance(1000.0)
        self.assertEqual(here.interrupted, [])

    def test_request_that_only_a_reservation_keeps_waiting_is_refused_after_the_longest_wait(self) -> None:
        here = world("ab", "cb", "cd", fairness_window=120.0)
        here.rules = here.scheduler.rules = retuned(here.rules, max_wait=130.0)
        here.request("a")
        busy = here.request("d")
        here.load_all()
        waiting = here.request("c")
        here.advance(95.0)
        urgent = here.request("b", 50)
        here.advance(29.0)
        here.end(busy)
        self.assertIn(waiting.number, here.waiting, "b's reservation comes first")
        here.advance(10.0)
        error = here.refused[waiting.number]
        assert isinstance(error, WaitedTooLong)
        self.assertEqual(error.behind, ("b",))
        self.assertIn(urgent.number, here.waiting)

    def test_time_of_the_load_does_not_count_as_wait(self) -> None:
        here = swapping()
        here.retune(retuned(here.rules, max_wait=60.0))
        here.request("a")
        here.advance(3600.0)
        self.assertEqual(here.refused, {})
        here.load_all()
        self.assertEqual(here.served, ["a"])

    def test_bound_on_waiting_requests_counts_queued_and_joined_ones(self) -> None:
        here = swapping()
        here.rules = retuned(here.rules, max_queue=2)
        here.retune(here.rules)
        here.request("a")
        here.load_all()
        tickets = here.requests("b", "b", "b")
        self.assertEqual(list(here.refused), [tickets[2].number])
        here.cancel(tickets[0])
        self.assertIn(here.request("b").number, here.waiting)

    def test_decisions_stay_fast_with_a_thousand_waiting_requests(self) -> None:
        here = swapping()
        busy = here.request("a")
        here.load_all()
        began = time.perf_counter()
        for number in range(999):
            here.scheduler.requested(evolve(busy, number=10_000 + number, model="bcde"[number % 4]), here.now)
        here.scheduler.served(busy, here.now)
        self.assertLess(time.perf_counter() - began, 2.0)


class IdleTests(SynchronousTestCase):
    def test_idle_time_begins_at_the_end_of_the_last_request(self) -> None:
        """core V15, V16"""
        here = world(a=ModelRules(ttl=3.0))
        first, second = here.requests("a", "a")
        here.load_all()
        here.advance(20.0)
        here.end(first)
        here.advance(20.0)
        here.end(second)
        here.advance(2.9)
        self.assertEqual(here.stops, [])
        here.advance(0.1)
        self.assertEqual(here.stops, [Stop(("a",), "idle")])

    def test_request_cancels_the_idle_timer(self) -> None:
        """core V21"""
        here = world(a=ModelRules(ttl=3.0))
        loaded(here, "a")
        for _ in range(10):
            here.advance(2.0)
            here.end(here.request("a"))
        self.assertEqual(here.stops, [])

    def test_request_and_idle_expiry_cannot_race(self) -> None:
        """An expiry that was under way when a request came is void (llama-swap issue 946)."""
        here = world(a=ModelRules(ttl=3.0))
        loaded(here, "a")
        here.advance(2.9)
        here.request("a")
        self.assertEqual(here.scheduler.idle_expired("a", here.now), [])

    def test_requests_around_the_idle_expiry_are_all_served(self) -> None:
        for offset in range(-5, 6):
            here = world(a=ModelRules(ttl=3.0))
            loaded(here, "a")
            here.advance(3.0 + offset / 1000)
            ticket = here.request("a")
            here.load_all()
            self.assertIn(ticket.number, here.granted)

    def test_a_model_without_a_ttl_stays(self) -> None:
        here = loaded(world(), "a")
        here.advance(1e9)
        self.assertEqual(here.ready, {"a"})

    def test_model_that_is_never_idle_has_no_timer(self) -> None:
        here = world(a=ModelRules(ttl=3.0))
        ticket = here.request("a")
        here.load_all()
        self.assertEqual(here.idle, {})
        effects = here.scheduler.served(ticket, here.now)
        self.assertEqual(effects, [SetIdleTimer("a", 3.0)])
        again = evolve(ticket, number=99)
        self.assertEqual(here.scheduler.requested(again, here.now), [SetIdleTimer("a", None), Grant(again)])


CAN_SUSPEND = ModelRules(can_suspend=True)


class SuspendTests(SynchronousTestCase):
    def test_model_that_can_suspend_is_suspended_for_another_and_resumed_for_the_next_request(self) -> None:
        here = loaded(swapping(a=CAN_SUSPEND), "a")
        here.end(here.request("a"))
        ticket = here.request("b")
        self.assertEqual([(swap.evict, swap.suspend) for swap in here.swaps], [(("a",), {"a"})])
        here.load_all()
        self.assertEqual((here.ready, here.asleep), ({"b"}, {"a"}))
        here.end(ticket)
        here.request("a")
        here.load_all()
        self.assertEqual(evictions(here)[-1], ("a", ("b",)))
        self.assertEqual((here.spawns["a"], here.wakes["a"]), (1, 1))

    def test_suspended_model_uses_no_memory_while_it_stops(self) -> None:
        here = loaded(swapping(a=CAN_SUSPEND), "a", "b")
        here.unload("a")
        self.assertEqual(here.stopping, {"a"})
        here.unload("b")
        here.stopped("b")
        here.request("c")
        self.assertEqual(len(here.startable()), 1)
        self.assertEqual(evictions(here), [("c", ())])

    def test_idle_model_is_suspended_first_and_stopped_later(self) -> None:
        here = loaded(swapping(a=ModelRules(ttl=5.0, can_suspend=True, suspended_ttl=60.0)), "a")
        here.advance(5.0)
        self.assertEqual([(effect.models, effect.why) for effect in here.suspensions], [(("a",), "idle")])
        here.stopped("a")
        here.advance(59.0)
        self.assertEqual(here.stops, [])
        here.advance(1.0)
        self.assertEqual([(stop.models, stop.why) for stop in here.stops], [(("a",), "idle")])

    def test_suspended_model_without_a_limit_stays_suspended(self) -> None:
        here = loaded(swapping(a=ModelRules(ttl=5.0, can_suspend=True)), "a")
        here.advance(5.0)
        here.stopped("a")
        here.advance(1e6)
        self.assertEqual((here.asleep, here.stops), ({"a"}, []))

    def test_request_cancels_the_timer_of_a_suspended_model(self) -> None:
        here = loaded(swapping(a=ModelRules(ttl=5.0, can_suspend=True, suspended_ttl=60.0)), "a")
        here.advance(5.0)
        here.stopped("a")
        here.request("a")
        self.assertEqual(here.idle, {})

    def test_model_that_cannot_be_suspended_counts_as_stopped(self) -> None:
        here = loaded(swapping(a=CAN_SUSPEND), "a")
        here.request("b")
        here.stopped("a", can_suspend=False)
        self.assertIs(here.scheduler.phase("a"), Phase.STOPPED)
        here.load_all()
        self.assertEqual(here.ready, {"b"})

    def test_suspended_model_that_exits_is_loaded_at_once_for_the_next_request(self) -> None:
        here = loaded(swapping(a=CAN_SUSPEND), "a", "b")
        for _ in range(5):
            here.die_asleep("a")
        self.assertEqual([(stop.models, stop.why) for stop in here.stops], [(("a",), "crash")])
        here.stopped("a")
        self.assertEqual(here.scheduler.failures, {})
        self.assertEqual(forecast(here.scheduler, "a", here.now).action, "load")

    def test_longest_suspended_model_is_stopped_if_too_many_are_suspended(self) -> None:
        here = swapping(**dict.fromkeys("abcd", CAN_SUSPEND))
        here.rules = here.scheduler.rules = retuned(here.rules, max_asleep=2)
        for model in "abc":
            loaded(here, model)
            here.advance(1.0)
        self.assertEqual(here.asleep, {"a", "b"})
        loaded(here, "d")
        self.assertEqual(here.asleep, {"b", "c"})
        here.retune(retuned(here.rules, max_asleep=1))
        self.assertEqual([(stop.models, stop.why) for stop in here.stops], [(("b",), "asleep")])

    def test_pinned_model_is_resumed_and_never_stopped_for_being_suspended(self) -> None:
        here = swapping(**dict.fromkeys("abc", ModelRules(can_suspend=True, suspended_ttl=5.0)))
        here.rules = here.scheduler.rules = retuned(here.rules, max_asleep=1)
        loaded(here, "a", "b")
        here.pin("a")
        self.assertEqual(here.idle, {})
        loaded(here, "c")
        self.assertEqual(here.asleep, {"a"})

    def test_restarted_or_removed_model_does_not_stay_suspended(self) -> None:
        here = loaded(swapping(**dict.fromkeys("abc", CAN_SUSPEND)), "a", "b", "c")
        self.assertEqual(here.asleep, {"a", "b"})
        here.retune(evolve(here.rules, models=dict.fromkeys("bcde", CAN_SUSPEND)), "b")
        self.assertEqual(here.stopping, {"a", "b"})
        here.retune(evolve(here.rules, models={model: ModelRules() for model in "bcde"}))
        here.request("d")
        self.assertEqual(here.swaps[-1].suspend, frozenset())

    def test_model_that_is_being_suspended_is_stopped_if_its_definition_changes(self) -> None:
        here = loaded(swapping(a=CAN_SUSPEND), "a")
        here.request("b")
        here.retune(here.rules, "a")
        self.assertEqual([(stop.models, stop.why) for stop in here.stops], [(("a",), "reload")])

    def test_resumed_model_without_requests_is_suspended_again(self) -> None:
        here = loaded(swapping(a=CAN_SUSPEND), "a", "b")
        here.cancel(here.request("a"))
        here.load_until_starting("a")
        here.request("b")
        self.assertEqual([(effect.models, effect.why) for effect in here.suspensions], [(("a",), "abandoned")])
        here.load_all()
        self.assertEqual((here.ready, here.asleep), ({"b"}, {"a"}))

    def test_scheduler_begins_with_models_that_were_suspended_before(self) -> None:
        here = swapping(a=ModelRules(can_suspend=True, suspended_ttl=60.0))
        here.adopt_asleep("a", idle=50.0)
        self.assertTrue(here.scheduler.settled)
        self.assertEqual(here.scheduler.state_of("a").idle_since, here.now - 50.0)
        here.advance(10.0)
        self.assertEqual([(stop.models, stop.why) for stop in here.stops], [(("a",), "idle")])


class UnloadTests(SynchronousTestCase):
    def test_unload_during_a_load_refuses_the_waiting_requests(self) -> None:
        """core V31, V59"""
        here = world()
        first = here.request("a")
        here.unload("a")
        self.assertEqual(repr(here.refused[first.number]), repr(ModelUnloaded("a")))
        second = here.request("a")
        here.stopped("a")
        here.deliver_late()
        here.load_all()
        self.assertIn(second.number, here.granted)
        self.assertEqual(here.spawns, {"a": 2})

    def test_model_that_is_unloaded_while_its_victims_stop_does_not_start(self) -> None:
        """core V100 as we mend it"""
        here = loaded(swapping(), "a")
        ticket = here.request("b")
        here.unload("b")
        self.assertEqual(repr(here.refused[ticket.number]), repr(ModelUnloaded("b")))
        here.load_all()
        self.assertEqual(here.alive, set())
        self.assertEqual(here.spawns, {"a": 1})

    def test_unload_refuses_queued_requests_of_the_model(self) -> None:
        here = swapping()
        here.request("a")
        here.load_all()
        ticket = here.request("b")
        here.unload("b")
        self.assertEqual(repr(here.refused[ticket.number]), repr(ModelUnloaded("b")))
        self.assertEqual(here.ready, {"a"})

    def test_several_models_stop_in_parallel_while_others_serve(self) -> None:
        """core V99 as we mend it"""
        here = loaded(world(), "a", "b", "c")
        here.unload("a", "b")
        self.assertEqual(here.stops, [Stop(("a", "b"), "unload")])
        self.assertIn(here.request("c").number, here.granted)

    def test_unload_does_not_wait_for_requests_in_flight(self) -> None:
        """core V101"""
        here = world()
        ticket = here.request("a")
        here.load_all()
        here.unload("a")
        self.assertEqual(here.stopping, {"a"})
        here.stopped("a")
        self.assertEqual(here.scheduler.models["a"].unfinished, 1)
        here.end(ticket)
        self.assertEqual(here.scheduler.models["a"].unfinished, 0)

    def test_unload_of_a_stopping_model_stops_it_again(self) -> None:
        here = loaded(swapping(), "a")
        here.request("b")
        here.unload("a")
        self.assertEqual(here.stops, [Stop(("a",), "unload")])
        here.load_all()
        self.assertEqual(here.served, ["b"])


class FailureTests(SynchronousTestCase):
    def test_crashed_model_is_started_again(self) -> None:
        """core V36"""
        here = loaded(world(), "a")
        here.crash("a")
        self.assertEqual(here.stops, [Stop(("a",), "crash")])
        here.request("a")
        here.load_all()
        self.assertEqual(here.served, ["a"])

    def test_requests_on_a_crashed_server_delay_no_other_request(self) -> None:
        here = swapping()
        lost = here.request("a")
        here.load_all()
        here.request("b")
        here.crash("a")
        here.load_all()
        self.assertEqual(here.served, ["a", "b"])
        here.end(lost)

    def test_late_results_of_abandoned_loads_are_ignored(self) -> None:
        here = world()
        here.request("a")
        here.unload("a")
        here.request("a")
        self.assertEqual(here.scheduler.swap_finished(here.swaps[0].generation, None, here.now), [])
        self.assertEqual(here.granted, {})

    def test_evicted_model_is_restored_after_a_failed_start(self) -> None:
        """core V39 as we mend it"""
        here = loaded(swapping(), "a")
        ticket = here.request("b")
        here.stopped("a")
        here.fail("b")
        self.assertIsInstance(here.refused[ticket.number], StartFailed)
        here.load_all()
        self.assertEqual(here.ready, {"a"})

    def test_evicted_model_that_was_removed_meanwhile_is_not_restored(self) -> None:
        here = loaded(swapping(), "a")
        here.request("b")
        models = {name: rules for name, rules in here.rules.models.items() if name != "a"}
        here.retune(evolve(here.rules, models=models))
        here.stopped("a")
        here.fail("b")
        here.load_all()
        self.assertEqual((here.ready, [swap.model for swap in here.swaps]), (set(), ["b"]))

    def test_evicted_model_is_not_restored_while_another_request_waits(self) -> None:
        here = loaded(swapping(), "a")
        here.requests("b", "c")
        here.stopped("a")
        here.fail("b")
        here.load_all()
        self.assertEqual(here.ready, {"c"})
        self.assertEqual(here.spawns, {"a": 1, "b": 1, "c": 1})

    def test_restored_model_yields_to_a_request(self) -> None:
        here = loaded(swapping(), "a")
        here.request("b")
        here.stopped("a")
        here.fail("b")
        here.stopped("b")
        self.assertEqual(here.swaps[-1].model, "a")
        here.request("c")
        here.load_all()
        self.assertEqual(here.served, ["c"])

    def test_default_model_returns_when_what_evicted_it_is_unloaded(self) -> None:
        here = loaded(swapping(b=ModelRules(ttl=60)), "a")
        here.retune(evolve(here.rules, returning=frozenset("a")))
        ticket = here.request("b")
        here.load_all()
        here.end(ticket)
        here.advance(59.0)
        self.assertEqual(here.ready, {"b"})
        here.advance(1.0)
        here.load_all()
        self.assertEqual(here.ready, {"a"})

    def test_default_model_does_not_return_while_a_request_waits_or_after_its_own_unload(self) -> None:
        here = loaded(swapping(b=ModelRules(ttl=60)), "a")
        here.retune(evolve(here.rules, returning=frozenset("a")))
        here.request("c")
        here.load_all()
        self.assertEqual(here.ready, {"c"})
        here.unload("a")
        here.unload("c")
        here.load_all()
        self.assertEqual(here.ready, set())

    def test_model_that_fails_repeatedly_is_not_started_and_evicts_nothing(self) -> None:
        """core W17: a start that would fail evicts no model"""
        here = loaded(swapping(), "a")
        for _ in range(2):
            here.request("b")
            here.load_until_starting("b")
            here.fail("b")
            here.load_all()
        self.assertEqual((here.ready, here.spawns), ({"a"}, {"a": 3, "b": 2}))
        early = here.request("b")
        refusal = here.refused[early.number]
        assert isinstance(refusal, KeepsFailing)
        self.assertEqual((refusal.failure.count, refusal.retry_after), (2, 1))
        self.assertIn("upstream command exited prematurely; b failed 2 times in a row", str(refusal))
        self.assertEqual((here.ready, here.stopping), ({"a"}, set()))
        here.advance(1.0)
        here.request("b")
        self.assertEqual(here.stopping, {"a"})

    def test_pauses_double_and_an_operator_ends_them(self) -> None:
        here = world()
        for pause in (0.0, 1.0, 2.0, 4.0):
            here.request("a")
            here.fail("a")
            here.load_all()
            if pause:
                here.advance(pause - 0.1)
                self.assertIn(here.request("a").number, here.refused)
                here.advance(0.1)
        here.request("a")
        here.fail("a")
        here.load_all()
        self.assertEqual(here.scheduler.failures["a"].count, 5)
        here.unload("a")
        here.request("a")
        self.assertEqual(here.spawns, {"a": 6}, "an operator's unload makes a new start")
        here.fail("a")
        here.load_all()
        here.request("a")
        here.fail("a")
        here.load_all()
        here.scheduler.clear_backoff(["a"])
        here.request("a")
        self.assertEqual(here.spawns, {"a": 8})

    def test_queued_request_is_refused_if_its_model_is_in_backoff_when_it_could_be_loaded(self) -> None:
        here = swapping()
        lost = here.request("b")
        here.load_all()
        here.crash("b")
        here.end(lost)
        here.load_all()
        lost = here.request("b")
        here.load_all()
        other = here.request("c")
        here.advance(10.0)
        queued = here.request("b")
        here.crash("b")
        here.end(lost)
        here.load_all()
        self.assertIn(other.number, here.granted)
        here.end(other)
        self.assertIsInstance(here.refused[queued.number], KeepsFailing)

    def test_model_that_crashes_on_each_first_request_gets_backoff(self) -> None:
        """an image server without its text encoder does that"""
        here = world()
        for _ in range(2):
            ticket = here.request("a")
            here.load_all()
            here.crash("a")
            here.end(ticket)
            here.load_all()
        refused = here.request("a")
        self.assertIsInstance(here.refused[refused.number], KeepsFailing)

    def test_model_that_worked_between_two_crashes_gets_no_backoff(self) -> None:
        here = world()
        for _ in range(5):
            ticket = here.request("a")
            here.load_all()
            here.end(ticket)
            here.advance(2.0)
            here.crash("a")
            here.load_all()
        self.assertNotIn(here.request("a").number, here.refused)

    def test_successful_work_ends_a_series_of_failures(self) -> None:
        here = world()
        here.request("a")
        here.fail("a")
        here.load_all()
        loaded(here, "a")
        here.advance(2.0)
        here.crash("a")
        here.load_all()
        self.assertEqual(here.scheduler.failures["a"].count, 1)
        here.request("a")
        self.assertEqual(here.spawns, {"a": 3})

    def test_orderly_stop_ends_a_series_of_failures(self) -> None:
        here = loaded(swapping(), "a")
        here.crash("a")
        here.load_all()
        loaded(here, "a", "b")
        self.assertEqual(dict(here.scheduler.failures), {})


class PinTests(SynchronousTestCase):
    def test_a_pinned_model_is_neither_idle_nor_evicted(self) -> None:
        here = swapping(a=ModelRules(ttl=3.0))
        loaded(here, "a")
        here.pin("a")
        self.assertEqual(here.idle, {})
        here.advance(100.0)
        ticket = here.request("b")
        error = here.refused[ticket.number]
        self.assertIsInstance(error, NotReady)
        self.assertIn("a is pinned", str(error))
        self.assertEqual(here.ready, {"a"})

    def test_several_pinned_models_are_named_in_the_plural(self) -> None:
        here = loaded(world("ac", "bc"), "a", "b")
        here.pin("a", "b")
        self.assertEqual(str(here.refused[here.request("c").number]), "cannot load c: a, b are pinned")

    def test_pin_refuses_requests_that_wait_for_the_pinned_model_to_leave(self) -> None:
        here = swapping()
        here.request("a")
        here.load_all()
        ticket = here.request("b")
        here.pin("a")
        self.assertIsInstance(here.refused[ticket.number], NotReady)

    def test_an_operator_may_unload_a_pinned_model(self) -> None:
        here = loaded(swapping(), "a")
        here.pin("a")
        here.unload("a")
        here.request("b")
        here.load_all()
        self.assertEqual(here.served, ["b"])

    def test_idle_time_of_an_unpinned_model_begins_at_its_last_use(self) -> None:
        here = world(a=ModelRules(ttl=30.0))
        loaded(here, "a")
        here.pin("a")
        here.advance(20.0)
        here.pin()
        self.assertAlmostEqual(here.idle["a"] - here.now, 10.0)


class ReloadTests(SynchronousTestCase):
    def test_an_unchanged_model_is_not_touched(self) -> None:
        here = world(a=ModelRules(ttl=30.0))
        loaded(here, "a", "b")
        due = here.idle["a"]
        here.advance(5.0)
        here.retune(here.rules, "b")
        self.assertEqual(here.idle["a"], due)
        self.assertEqual(here.stopping, {"b"})

    def test_changed_model_finishes_its_requests_before_it_is_stopped(self) -> None:
        here = world()
        stream = here.request("a")
        here.load_all()
        here.retune(here.rules, "a")
        self.assertEqual(here.stops, [])
        late = here.request("a")
        self.assertIn(late.number, here.waiting)
        here.end(stream)
        self.assertEqual(here.stops, [Stop(("a",), "reload")])
        here.load_all()
        self.assertIn(late.number, here.granted)
        self.assertEqual(here.spawns, {"a": 2})

    def test_load_of_a_changed_model_restarts_and_keeps_its_requests(self) -> None:
        here = world()
        ticket = here.request("a")
        here.retune(here.rules, "a")
        here.load_all()
        self.assertIn(ticket.number, here.granted)
        self.assertEqual(here.spawns, {"a": 2})

    def test_removed_model_drains_and_its_waiting_requests_are_refused(self) -> None:
        here = swapping()
        stream = here.request("a")
        here.load_all()
        waiting = here.request("b")
        models = {name: rules for name, rules in here.rules.models.items() if name not in "ab"}
        here.retune(evolve(here.rules, models=models))
        self.assertEqual(repr(here.refused[waiting.number]), repr(UnknownModel("b")))
        self.assertEqual(repr(here.refused[here.request("a").number]), repr(UnknownModel("a")))
        here.end(stream)
        here.load_all()
        self.assertEqual(here.alive, set())
        self.assertIs(here.scheduler.phase("a"), Phase.STOPPED)

    def test_changed_ttl_counts_from_the_same_moment(self) -> None:
        here = world(a=ModelRules(ttl=30.0))
        loaded(here, "a")
        here.advance(5.0)
        here.retune(evolve(here.rules, models={**here.rules.models, "a": ModelRules(ttl=8.0)}))
        self.assertAlmostEqual(here.idle["a"] - here.now, 3.0)
        here.retune(evolve(here.rules, models={**here.rules.models, "a": ModelRules()}))
        self.assertEqual(here.idle, {})


class ShutdownTests(SynchronousTestCase):
    def test_shutdown_refuses_waiting_requests_and_stops_every_model(self) -> None:
        here = swapping()
        stream = here.request("a")
        here.load_all()
        queued = here.request("b")
        here.perform(here.scheduler.shutdown(ShuttingDown()))
        self.assertEqual(repr(here.refused[queued.number]), repr(ShuttingDown()))
        self.assertEqual(here.stops, [Stop(("a",), "shutdown")])
        self.assertEqual(repr(here.refused[here.request("a").number]), repr(ShuttingDown()))
        here.end(stream)
        here.load_all()
        self.assertEqual(here.alive, set())


class ForecastTests(SynchronousTestCase):
    def test_forecast_says_what_a_request_would_cause_and_changes_nothing(self) -> None:
        here = swapping()
        self.assertEqual(forecast(here.scheduler, "a", here.now).action, "load")
        ticket = here.request("a")
        self.assertEqual(forecast(here.scheduler, "a", here.now).action, "join")
        here.load_all()
        self.assertEqual(forecast(here.scheduler, "a", here.now).action, "serve")
        queue = forecast(here.scheduler, "b", here.now)
        self.assertEqual((queue.action, queue.evicts, queue.waits_for), ("queue", ("a",), ("a",)))
        here.end(ticket)
        load = forecast(here.scheduler, "b", here.now)
        self.assertEqual((load.action, load.evicts, load.reason), ("load", ("a",), "relation"))
        here.pin("a")
        refuse = forecast(here.scheduler, "b", here.now)
        self.assertEqual(refuse.action, "refuse")
        self.assertIn("pinned", refuse.reason)
        self.assertEqual(forecast(here.scheduler, "zebra", here.now).action, "refuse")
        self.assertEqual(len(here.swaps), 1)
