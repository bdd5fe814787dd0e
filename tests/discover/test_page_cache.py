"""Whether weights are in the page cache."""

import os
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from llamaswap.discover.page_cache import PIECE, cached_share, mostly_cached


class PageCacheTests(SynchronousTestCase):
    def file(self, size):
        path = Path(self.mktemp())
        path.write_bytes(os.urandom(size))
        return path

    def drop(self, path):
        """Drop the file from the page cache; not every file system has one."""
        with path.open("rb+") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if cached_share(path):
            raise SkipTest("the pages of this file system cannot be dropped")

    def test_file_that_was_written_is_cached_and_one_that_was_dropped_is_not(self):
        path = self.file(3 * PIECE + 5)
        self.assertEqual(cached_share(path), 1.0)
        self.drop(path)
        self.assertFalse(mostly_cached([path]))
        path.read_bytes()
        self.assertTrue(mostly_cached([path]))

    def test_large_file_counts_more_than_a_small_one(self):
        large, small = self.file(8 * PIECE), self.file(PIECE)
        self.drop(small)
        self.assertTrue(mostly_cached([large, small]))
        self.drop(large)
        small.read_bytes()
        self.assertFalse(mostly_cached([large, small]))

    def test_files_that_are_empty_or_gone_are_not_cached(self):
        self.assertFalse(mostly_cached([]))
        self.assertFalse(mostly_cached([self.file(0)]))
        self.assertFalse(mostly_cached([Path(self.mktemp())]))
