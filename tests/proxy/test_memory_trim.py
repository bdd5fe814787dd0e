"""When memory is given back."""

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.proxy.fastpath.memory_trim import (
    CROWD,
    LARGE_BLOCK,
    MMAP_THRESHOLD,
    LowWaterTrimmer,
    keep_large_blocks_apart,
    trimmer,
)


class MemoryTrimTests(SynchronousTestCase):
    def setUp(self):
        self.lows = []
        self.now = 0
        self.ebb = LowWaterTrimmer(lambda: self.lows.append(self.now))

    def counts(self, *numbers):
        for self.now in numbers:
            self.ebb.count(self.now)

    def test_each_half_of_a_crowd_that_leaves_is_noticed_once(self):
        self.counts(*range(1, 8 * CROWD + 1), *range(8 * CROWD - 1, -1, -1))
        self.assertEqual(self.lows, [4 * CROWD, 2 * CROWD, CROWD, CROWD // 2])
        self.counts(*range(1, 2 * CROWD + 1), 0)
        self.assertEqual(self.lows[4:], [0])

    def test_a_few_that_come_and_go_are_no_crowd(self):
        self.counts(*[1, 2, 3, 2, 1, 0] * 10)
        self.assertEqual(self.lows, [])

    def test_giving_back_is_harmless_with_any_library(self):
        self.assertIsNone(trimmer()())
        self.assertIsNone(trimmer(object())())

    def test_large_blocks_are_kept_apart_if_the_library_can(self):
        class Library:
            options = []

            def mallopt(self, option, value):
                self.options.append((option, value))

        keep_large_blocks_apart(Library())
        keep_large_blocks_apart(object())
        self.assertEqual(Library.options, [(MMAP_THRESHOLD, LARGE_BLOCK)])
