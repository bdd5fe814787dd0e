"""What the API keys have used is read from the activity when the service starts."""

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.app.observability import past_use, remember_use
from llamaswap.config import ApiKey, Secret
from llamaswap.config.schema.keys import Budget
from llamaswap.observe.activity_row import ActivityRow
from llamaswap.observe.key_usage import MINUTE, KeyUsage
from llamaswap.observe.store import ActivityStore
from llamaswap.wire.usage import Usage

NOW = 1_700_000_000.0


class PastUseTests(SynchronousTestCase):
    def test_requests_and_tokens_before_a_restart_are_counted_in_their_windows(self):
        store = ActivityStore()
        self.addCleanup(store.close)
        for ago, status in ((90_000, 200), (1000, 200), (70, 200), (30, 200), (10, 429)):
            tokens = Usage(input_tokens=0 if status == 429 else 10, output_tokens=0)
            store.insert([ActivityRow(int(NOW) - ago, "m", "/x", "", status, tokens, 1, key="child")])
        usage = KeyUsage(lambda: NOW)
        whole = usage.retune([ApiKey(Secret("a"), "child", rpm=5, budget=Budget(1000, 86_400.0))])
        windows = {"child": 86_400.0}
        remember_use(usage, past_use(store, {*windows.values(), MINUTE}, NOW), windows, whole)
        meter = usage.meter("child")
        counted = [counter.sum(NOW) for counter in (meter.spent, meter.tokens, meter.requests)]
        self.assertEqual(counted, [30, 10, 1])
