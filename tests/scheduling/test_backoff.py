"""The pauses a failing model is given."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config.schema.routing import FifoSettings
from llamaswap.errors import FailureRecord
from llamaswap.scheduling.backoff import STABLE_SECONDS, WORKED_SECONDS, failed_again, has_worked, pause


class BackoffTests(SynchronousTestCase):
    def test_first_failure_costs_no_pause_and_later_pauses_double_up_to_a_minute(self) -> None:
        pauses = [pause(FifoSettings(), count) for count in range(1, 10)]
        self.assertEqual(pauses, [0, 1, 2, 4, 8, 16, 32, 60, 60])

    def test_first_pause_of_zero_disables_backoff(self) -> None:
        self.assertEqual({pause(FifoSettings(backoff=0.0), count) for count in (1, 2, 10_000)}, {0.0})

    def test_failures_in_a_row_are_counted_and_the_last_cause_is_kept(self) -> None:
        once = failed_again(FifoSettings(), "m", None, "no model file", 5.0)
        self.assertEqual(once, FailureRecord("m", "", 1, 5.0, "no model file"))
        twice = failed_again(FifoSettings(), "m", once, "out of memory", 7.0)
        self.assertEqual(twice, FailureRecord("m", "", 2, 8.0, "out of memory"))

    @given(st.integers(1, 10**9), st.floats(0, 100), st.floats(0, 1000))
    def test_pause_never_exceeds_the_longest_pause(self, count, first, longest) -> None:
        self.assertLessEqual(pause(FifoSettings(backoff=first, backoff_max=longest), count), longest)


class ProofTests(SynchronousTestCase):
    def test_server_that_exits_during_its_first_request_has_not_worked(self) -> None:
        self.assertFalse(has_worked(0.0, None, 5.0))
        self.assertFalse(has_worked(0.0, 5.0, 5.0 + WORKED_SECONDS / 2))

    def test_server_that_lives_on_after_its_first_response_has_worked(self) -> None:
        self.assertTrue(has_worked(0.0, 5.0, 5.0 + WORKED_SECONDS))

    def test_server_that_was_ready_for_long_has_worked(self) -> None:
        self.assertTrue(has_worked(0.0, None, STABLE_SECONDS))
