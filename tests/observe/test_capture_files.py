"""Captures in files: found after a restart, bounded, and never in the way of serving."""

import os
import stat
from pathlib import Path

import zstandard
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import private_files
from llamaswap.observe import capture_files as module
from llamaswap.observe.capture_files import BLOCK, RETRY_DELAY, CaptureFiles
from llamaswap.observe.captures import Blob, Capture, pack


def capture(number, size=10):
    return Capture(f"/{number}", {"A": "b"}, os.urandom(size), None, b"answer")


def blob(*numbers, size=10):
    return pack([(number, capture(number, size)) for number in numbers], zstandard.ZstdCompressor())


class CaptureFileTests(SynchronousTestCase):
    def setUp(self):
        self.folder = Path(self.mktemp(), "captures").resolve()
        self.said, self.now = [], 0.0

    def files(self, limit=1 << 20, store="", early=True):
        made = CaptureFiles(str(self.folder), limit, store, self.said.append, lambda: self.now, early)
        made.open()
        return made

    def names(self):
        return sorted(os.listdir(self.folder))

    def test_captures_are_found_after_a_restart(self):
        self.files().write([blob(1, 2, 4), blob(5)])
        after = self.files()
        self.assertEqual([number for number in range(9) if after.has(number)], [1, 2, 4, 5])
        self.assertEqual([after.read(number).req_path for number in (1, 2, 4, 5)], ["/1", "/2", "/4", "/5"])
        self.assertIsNone(after.read(3))
        self.assertEqual((after.open(), self.said), (5, []))

    def test_only_their_user_may_read_files_and_folder(self):
        self.files().write([blob(1)])
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (self.folder, *self.folder.iterdir())]
        self.assertEqual(modes, [0o700, 0o600])

    def test_oldest_files_are_deleted_beyond_the_size_also_after_a_restart(self):
        files = self.files(limit=3 * BLOCK)
        for number in range(1, 6):
            files.write([blob(number)])
        self.assertEqual([number for number in range(9) if files.has(number)], [3, 4, 5])
        self.assertEqual(len(self.names()), 3)
        after = self.files(limit=BLOCK)
        self.assertEqual([number for number in range(9) if after.has(number)], [5])

    def test_number_of_files_is_bounded(self):
        self.patch(module, "MAX_FILES", 2)
        files = self.files()
        files.write([blob(1), blob(2), blob(3)])
        self.assertEqual((files.has(1), files.has(3), len(self.names())), (False, True, 2))

    def test_captures_of_another_store_are_not_those_of_equal_numbers(self):
        self.files(store="/a.db").write([blob(1, 2)])
        other = self.files(store="/b.db", limit=BLOCK)
        self.assertEqual((other.has(1), other.open()), (False, 0))
        other.write([blob(1)])
        self.assertEqual(other.read(1).req_path, "/1")
        self.assertEqual(len(self.names()), 1, "the other store's file counts, and was deleted first")

    def test_files_found_after_rows_were_numbered_in_memory_are_not_taken_for_theirs(self):
        self.files().write([blob(7)])
        late = self.files(early=False)
        self.assertEqual((late.has(7), late.open()), (False, 7))
        self.assertTrue(self.files(store="", early=True).has(7))

    def test_folder_that_refuses_is_reported_once_and_used_again_later(self):
        files = self.files()
        files.write([blob(1)])
        original = private_files.create

        def full(name, content, *rest, **more):
            original(name, content[:5], *rest, **more)
            raise OSError(28, "No space left on device")

        self.patch(private_files, "create", full)
        for number in (2, 3):
            self.now += RETRY_DELAY
            files.write([blob(number)])
        self.assertEqual(len(self.said), 1)
        self.assertIn(f"captures cannot be written to {self.folder}: No space left on device", self.said[0])
        self.assertEqual(len(self.names()), 1, "no part of a file is left")
        self.patch(private_files, "create", original)
        files.write([blob(4)])
        self.assertFalse(files.has(4), "it is too early for another try")
        self.now += RETRY_DELAY
        files.write([blob(5)])
        self.assertEqual([number for number in range(9) if files.has(number)], [1, 5])
        self.assertEqual(self.said[1:], [f"captures are written to {self.folder} again"])

    def test_folder_of_others_is_not_used(self):
        self.folder.mkdir(parents=True)
        self.folder.chmod(0o777)
        files = self.files()
        files.write([blob(1)])
        self.assertFalse(files.has(1))
        self.assertEqual((self.names(), len(self.said)), ([], 1))
        self.assertIn("can be written by other users", self.said[0])

    def test_unreadable_capture_is_reported_and_absent(self):
        files = self.files()
        files.write([blob(1), blob(2), blob(3)])
        first, second, third = (self.folder / name for name in self.names())
        first.write_bytes(b"not a capture")
        second.write_bytes(zstandard.compress(b"\0\0\0\4null"))
        third.unlink()
        self.assertEqual([files.read(number) for number in (1, 2, 3)], [None, None, None])
        self.assertEqual(len(self.said), 3)

    def test_other_files_are_left_alone_and_interrupted_writes_removed(self):
        self.folder.mkdir(parents=True)
        for name in ("notes.txt", "1-1-00000000.capture.77.new", "x-1-00000000.capture"):
            (self.folder / name).write_bytes(b"")
        self.files()
        self.assertEqual(self.names(), ["notes.txt", "x-1-00000000.capture"])

    def test_capture_larger_than_all_files_may_be_is_not_written(self):
        files = self.files(limit=2 * BLOCK)
        files.write([blob(1), blob(2, size=3 * BLOCK), Blob([3, 3 + module.MAX_SPAN], b"x")])
        self.assertEqual([number for number in range(9) if files.has(number)], [1])
