"""The pauses a failing model is given."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.errors import FailureRecord
from llamaswap.scheduling.backoff import OUTLIVED, STEADY, Backoff, proved


class BackoffTests(SynchronousTestCase):
    def test_the_first_failure_costs_no_pause_and_the_next_ones_double_up_to_a_minute(self) -> None:
        pauses = [Backoff().pause(count) for count in range(1, 10)]
        self.assertEqual(pauses, [0, 1, 2, 4, 8, 16, 32, 60, 60])

    def test_a_first_pause_of_nothing_switches_it_off(self) -> None:
        self.assertEqual({Backoff(first=0.0).pause(count) for count in (1, 2, 10_000)}, {0.0})

    def test_failures_in_a_row_are_counted_and_the_last_cause_is_kept(self) -> None:
        backoff = Backoff()
        once = backoff.failed_again("m", None, "no model file", 5.0)
        self.assertEqual(once, FailureRecord("m", "", 1, 5.0, "no model file"))
        twice = backoff.failed_again("m", once, "out of memory", 7.0)
        self.assertEqual(twice, FailureRecord("m", "", 2, 8.0, "out of memory"))

    @given(st.integers(1, 10**9), st.floats(0, 100), st.floats(0, 1000))
    def test_no_number_of_failures_makes_a_pause_longer_than_the_longest(self, count, first, longest) -> None:
        self.assertLessEqual(Backoff(first, longest).pause(count), longest)


class ProofTests(SynchronousTestCase):
    def test_a_server_that_dies_of_its_first_request_proved_nothing(self) -> None:
        self.assertFalse(proved(0.0, None, 5.0))
        self.assertFalse(proved(0.0, 5.0, 5.0 + OUTLIVED / 2))

    def test_one_that_answered_and_lived_on_did(self) -> None:
        self.assertTrue(proved(0.0, 5.0, 5.0 + OUTLIVED))

    def test_one_that_stood_for_long_did(self) -> None:
        self.assertTrue(proved(0.0, None, STEADY))
