"""When memory is given back."""

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.proxy.fastpath.memory_trim import (
    ARENA_MAX,
    CROWD,
    LARGE_BLOCK,
    MMAP_THRESHOLD,
    TRIM_DELAY,
    LowWaterTrimmer,
    configure_malloc,
    trimmer,
)


class MemoryTrimTests(SynchronousTestCase):
    def setUp(self):
        self.lows = []
        self.now = 0
        self.clock = Clock()
        self.trimmer = LowWaterTrimmer(self.clock, lambda: self.lows.append(self.now))

    def counts(self, *numbers, wait=TRIM_DELAY):
        for self.now in numbers:
            self.trimmer.count(self.now)
            self.clock.advance(wait)

    def test_each_half_of_a_crowd_that_leaves_slowly_is_noticed_once(self):
        self.counts(*range(1, 8 * CROWD + 1), *range(8 * CROWD - 1, -1, -1))
        self.assertEqual(self.lows, [4 * CROWD, 2 * CROWD, CROWD, CROWD // 2])
        self.counts(*range(1, 2 * CROWD + 1), 0)
        self.assertEqual(self.lows[4:], [0])

    def test_a_crowd_that_leaves_at_once_is_noticed_once(self):
        """Five full collections among 500 clients that left together took 50 ms."""
        self.counts(32 * CROWD, *range(32 * CROWD, -1, -1), wait=0)
        self.clock.advance(TRIM_DELAY)
        self.counts(*[0] * 3)
        self.assertEqual(self.lows, [0])

    def test_a_few_that_come_and_go_are_no_crowd(self):
        self.counts(*[1, 2, 3, 2, 1, 0] * 10)
        self.assertEqual(self.lows, [])

    def test_giving_back_is_harmless_with_any_library(self):
        self.assertIsNone(trimmer()())
        self.assertIsNone(trimmer(object())())

    def test_large_blocks_are_kept_apart_in_one_heap_if_the_library_can(self):
        class Library:
            options = []

            def mallopt(self, option, value):
                self.options.append((option, value))

        configure_malloc(Library())
        configure_malloc(object())
        self.assertEqual(Library.options, [(MMAP_THRESHOLD, LARGE_BLOCK), (ARENA_MAX, 1)])
