"""Durations as text."""

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import durations


class RenderTests(SynchronousTestCase):
    def test_unit_of_a_duration_follows_its_size(self):
        cases = {
            0: "0s",
            0.000001: "1µs",
            0.00123: "1.23ms",
            0.25: "250ms",
            1: "1s",
            1.05: "1.05s",
            15: "15s",
            60: "1m0s",
            60.000001: "1m0.000001s",
            62.5: "1m2.5s",
            3600: "1h0m0s",
            3661: "1h1m1s",
            -0.002: "-2ms",
        }
        self.assertEqual({seconds: durations.render(seconds) for seconds in cases}, cases)

    def test_rendered_duration_is_parsed_again(self):
        for seconds in (0.0, 0.000001, 0.5, 62.5, 3661.0, 86400.0):
            self.assertAlmostEqual(durations.parse(durations.render(seconds)), seconds)
