"""The counters of API keys: sums over a sliding window, limits, and what a request is charged."""

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import ApiKey, Secret
from llamaswap.config.schema.keys import Budget
from llamaswap.observe.key_usage import BudgetUsedUp, KeyLimitReached, KeyUsage, SlidingSum
from llamaswap.wire.headers import ResponseHeaders
from llamaswap.wire.request_info import RequestInfo

CHILD = ApiKey(Secret("sk-child"), "child", scopes=("infer",))
STREAM = ResponseHeaders.of([(b"Content-Type", b"text/event-stream")])
JSON = ResponseHeaders.of([(b"Content-Type", b"application/json")])


class SlidingSumTests(SynchronousTestCase):
    def test_amounts_leave_after_the_window(self):
        counted = SlidingSum(60.0)
        counted.add(1000.5, 3)
        counted.add(1030.0, 4)
        self.assertEqual([counted.sum(at) for at in (1030.0, 1060.5, 1061.5, 1090.9, 1091.1)], [7, 7, 4, 4, 0])

    def test_sum_says_when_there_is_room_again(self):
        counted = SlidingSum(60.0)
        counted.add(1000.0, 3)
        counted.add(1030.0, 4)
        for most, seconds in ((7, 0.0), (4, 31.0), (3, 61.0), (0, 61.0)):
            self.assertEqual(counted.seconds_until(1030.0, most), seconds)

    def test_a_clock_that_is_set_back_does_not_keep_the_sum_for_ever(self):
        counted = SlidingSum(60.0)
        counted.add(9000.0, 5)
        self.assertEqual(counted.sum(1000.0), 0)

    @given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 50)), max_size=200))
    def test_sum_is_never_less_than_the_exact_one_and_hardly_more(self, steps):
        counted, now, exact = SlidingSum(60.0), 1000.0, []
        for pause, amount in steps:
            now += pause
            counted.add(now, amount)
            exact.append((now, amount))
            self.assertGreaterEqual(counted.sum(now), sum(n for at, n in exact if at > now - 60))
            self.assertLessEqual(counted.sum(now), sum(n for at, n in exact if at > now - 62))


class KeyUsageTests(SynchronousTestCase):
    def setUp(self):
        self.now = 100_000.0
        self.usage = KeyUsage(lambda: self.now)

    def limit(self, **limits):
        self.usage.retune([evolve(CHILD, **limits)])

    def ask(self, name="child", body=b"x" * 400, metered=True):
        info = RequestInfo(
            "1", "POST", "/v1/chat/completions", "", "m", "m", [], "", 0.0, 0.0, True, True, metered, key_name=name
        )
        info.captured_body = body
        return self.usage.open(info)

    def served(self, tokens, name="child", headers=JSON):
        counted = self.ask(name)
        counted.granted()
        counted.head(200, headers)
        counted.ended("complete", None)
        counted.settle(tokens)
        return counted

    def used(self, name="child"):
        return self.usage.meter(name).spent.sum(self.now)

    def test_nothing_is_counted_as_long_as_no_key_has_a_name(self):
        self.usage.retune([ApiKey(Secret("plain"))])
        self.assertIsNone(self.ask(""))

    def test_requests_at_the_same_time(self):
        self.limit(max_parallel=2)
        first, _ = self.ask(), self.ask()
        refused = self.ask()
        self.assertIn("2 requests at the same time", str(refused.refusal))
        refused.ended("refused", refused.refusal)
        self.assertIsNotNone(self.ask().refusal)
        first.ended("gone", None)
        self.assertIsNone(self.ask().refusal)

    def test_requests_in_a_minute(self):
        self.limit(rpm=2)
        self.served(1)
        self.now += 20
        counted = self.served(1)
        self.assertEqual(
            dict(counted.headers),
            {
                b"x-ratelimit-limit-requests": b"2",
                b"x-ratelimit-remaining-requests": b"0",
                b"x-ratelimit-reset-requests": b"61s",
            },
        )
        error = self.ask().refusal
        self.assertEqual((type(error), error.retry_after, error.limit), (KeyLimitReached, 41, "2 requests in a minute"))
        self.now += error.retry_after
        self.assertIsNone(self.ask().refusal)

    def test_a_budget_is_reserved_at_the_start_and_corrected_at_the_end(self):
        self.limit(budget=Budget(1000, 3600.0))
        counted = self.ask()
        self.assertEqual(self.used(), 100)
        counted.granted()
        counted.head(200, JSON)
        counted.ended("complete", None)
        counted.settle(940)
        self.assertEqual(self.used(), 940)
        error = self.ask().refusal
        self.assertEqual((type(error), error.limit), (BudgetUsedUp, "1000 tokens in one hour"))
        self.assertEqual(dict(error.headers)[b"x-ratelimit-remaining-tokens"], b"60")
        self.now += error.retry_after
        self.assertIsNone(self.ask().refusal)
        self.assertEqual(self.usage.meter("child").refused, 1)

    def test_reservations_of_requests_in_progress_refuse_others_for_a_moment_only(self):
        for limits in ({"budget": Budget(150, 86400.0)}, {"tpm": 150}):
            self.limit(**limits)
            first = self.ask()
            error = self.ask().refusal
            self.assertEqual((type(error), error.retry_after), (KeyLimitReached, 1))
            first.ended("complete", None)
            first.settle(8)
            self.assertIsNone(self.ask().refusal)
            self.usage.retune([])

    def test_a_request_that_outlasts_the_window_is_charged_at_its_end(self):
        self.limit(tpm=1000)
        counted = self.ask()
        counted.granted()
        counted.head(200, JSON)
        self.now += 300
        counted.ended("complete", None)
        counted.settle(700)
        self.assertEqual(self.usage.meter("child").tokens.sum(self.now), 700)

    def test_a_request_larger_than_the_limit_is_served_alone(self):
        self.limit(tpm=50)
        first = self.ask()
        self.assertIsNone(first.refusal)
        self.assertIsNotNone(self.ask().refusal)

    def test_a_stream_without_usage_is_charged_for_what_was_seen_of_it(self):
        self.limit(tpm=100_000)
        counted = self.ask()
        counted.granted()
        counted.head(200, STREAM)
        counted.data(b"data: {}\n\n" * 40)
        counted.ended("gone", None)
        counted.settle(-1)
        self.assertEqual(self.used(), 140)

    def test_a_failed_request_costs_nothing(self):
        self.limit(tpm=100_000)
        for status in (0, 500):
            counted = self.ask()
            if status:
                counted.head(status, JSON)
            counted.ended("refused", None)
            counted.settle(-1)
        self.assertEqual(self.used(), 0)

    def test_a_request_that_leaves_no_row_is_settled_at_its_end(self):
        self.limit(rpm=100)
        self.ask(metered=False).ended("complete", None)
        self.assertEqual((self.used(), self.usage.meter("child").running), (0, 0))

    def test_the_key_that_has_used_less_goes_first(self):
        self.usage.retune([evolve(CHILD, priority=-3), ApiKey(Secret("b"), "other")])
        self.served(500)
        self.assertEqual(self.ask().standing, (-3, 500.0))
        self.assertEqual(self.ask("other").standing, (0, 0.0))
        self.served(50, "")
        self.assertEqual(self.ask("").standing, (0, 50.0))

    def test_a_reload_keeps_what_was_used_and_asks_for_the_past_of_new_keys(self):
        self.assertEqual(self.usage.retune([CHILD]), {"child": True, "": True})
        self.served(500)
        self.assertEqual(self.usage.retune([evolve(CHILD, rpm=1), ApiKey(Secret("b"), "new")]), {"new": True})
        self.assertEqual(self.used(), 500)
        self.usage.remember("new", self.now - 3600, 70)
        self.usage.remember("new", self.now - 90_000, 999)
        self.usage.remember("gone", self.now, 1)
        self.assertEqual(self.used("new"), 70)
        self.usage.retune([ApiKey(Secret("b"), "new")])
        self.assertIsNone(self.usage.meter("child"))

    def test_reload_that_changes_a_window_keeps_the_requests_in_progress(self):
        day, week = Budget(1000, 86_400.0), Budget(1000, 604_800.0)
        self.limit(max_parallel=1, rpm=9, budget=day)
        counted = self.ask()
        self.assertEqual(self.usage.retune([evolve(CHILD, max_parallel=1, rpm=9, budget=week)]), {"child": False})
        self.assertIn("limit of 1 request at the same time", str(self.ask().refusal))
        self.usage.remember("child", self.now - 100_000, 30)
        self.assertEqual(self.used(), 30)
        counted.ended("complete", None)
        counted.settle(500)
        self.assertEqual((self.used(), self.usage.meter("child").tokens.sum(self.now)), (530, 500))
        self.assertEqual(self.usage.meter("child").requests.sum(self.now), 1)
        self.assertIsNone(self.ask().refusal)

    def test_the_last_minute_before_a_restart_counts_for_the_limits_on_a_minute(self):
        self.limit(rpm=3, tpm=1000)
        self.usage.remember_minute("child", self.now - 20, 400, 2)
        self.usage.remember_minute("child", self.now - 70, 400, 2)
        self.usage.remember_minute("gone", self.now, 1, 1)
        self.assertEqual(self.used(), 0)
        counted = dict(self.ask().headers)
        self.assertEqual(counted[b"x-ratelimit-remaining-requests"], b"0")
        self.assertEqual(counted[b"x-ratelimit-remaining-tokens"], b"500")
        self.assertIsNotNone(self.ask().refusal)

    def test_use_in_a_long_window_is_not_taken_for_that_of_the_last_minute(self):
        self.limit(tpm=1000, budget=Budget(10_000, 86_400.0))
        self.usage.remember("child", self.now + 700, 5000)  # of a span that is not over
        self.assertEqual((self.used(), self.ask().refusal), (5000, None))
