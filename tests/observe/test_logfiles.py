"""Logs in files: rotation, full disks, and a reactor that never waits."""

import os
import threading
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.observe.logfiles import RETRY_DELAY, LogFileLimits, LogFiles, file_name
from llamaswap.observe.logs import LogRegistry

LINE = b"0123456789\n"


class FileTests(SynchronousTestCase):
    def make(self, size=100, keep=2, **more):
        self.folder = Path(self.mktemp())
        self.problems, self.now = [], 0.0
        return LogFiles(
            LogFileLimits(str(self.folder), size, keep),
            self.problems.append,
            start=lambda loop: None,
            clock=lambda: self.now,
            **more,
        )

    def content(self, name="one.log"):
        return (self.folder / name).read_bytes()

    def test_each_log_has_its_file_and_the_folder_is_made(self):
        files = self.make()
        files.write("one", b"a\n")
        files.write("two", b"b\n")
        files.write("one", b"c\n")
        self.assertFalse(files.idle)
        files.flush()
        self.assertTrue(files.idle)
        self.assertEqual((self.content(), self.content("two.log")), (b"a\nc\n", b"b\n"))
        self.assertEqual(os.stat(self.folder / "one.log").st_mode & 0o777, 0o640 & ~_umask())

    def test_full_file_is_rotated_between_two_lines_and_the_oldest_is_deleted(self):
        files = self.make(size=25, keep=2)
        for number in range(10):
            files.write("one", b"line %d....\n" % number)
        files.flush()
        self.assertEqual(sorted(os.listdir(self.folder)), ["one.log", "one.log.1", "one.log.2"])
        self.assertEqual(self.content(), b"line 8....\nline 9....\n")
        self.assertEqual(self.content("one.log.1"), b"line 6....\nline 7....\n")
        self.assertEqual(self.content("one.log.2"), b"line 4....\nline 5....\n")

    def test_line_longer_than_a_file_is_cut(self):
        files = self.make(size=10, keep=9)
        files.write("one", b"x" * 25 + b"\n")
        files.flush()
        self.assertEqual([len(self.content(name)) for name in ("one.log.2", "one.log.1", "one.log")], [10, 10, 6])

    def test_rotated_file_is_deleted_if_none_are_kept(self):
        files = self.make(size=15, keep=0)
        for _ in range(3):
            files.write("one", LINE)
            files.flush()
        self.assertEqual(os.listdir(self.folder), ["one.log"])
        self.assertEqual(self.content(), LINE)

    def test_file_may_be_deleted_at_any_time(self):
        files = self.make()
        files.write("one", LINE)
        files.flush()
        (self.folder / "one.log").unlink()
        files.write("one", LINE)
        files.flush()
        self.assertEqual(self.content(), LINE)

    def test_refusing_disk_is_reported_once_and_tried_again_later(self):
        files = self.make()
        self.folder.write_text("a file where a folder should be")
        for _ in range(3):
            files.write("one", LINE)
            files.flush()
            self.now += 1.0
        self.assertEqual(len(self.problems), 1)
        self.assertIn(str(self.folder), self.problems[0])
        self.assertTrue(files.idle)
        self.folder.unlink()
        files.write("one", LINE)
        files.flush()
        self.assertFalse(self.folder.exists(), "left alone")
        self.now += RETRY_DELAY
        files.write("one", b"back\n")
        files.flush()
        self.assertEqual(self.content(), "\n\u2014 44 bytes dropped \u2014\n".encode() + b"back\n")

    def test_full_disk_is_reported_and_does_not_stop_the_writer(self):
        def full(descriptor, data):
            raise OSError(28, "No space left on device")

        files = self.make()
        patched = self.patch(os, "write", full)
        files.write("one", LINE)
        files.write("two", LINE)
        files.flush()
        patched.restore()
        self.assertIn("No space left", self.problems[0])

    def test_link_in_place_of_a_log_file_is_not_followed(self):
        files = self.make()
        elsewhere = self.folder.with_name("elsewhere")
        elsewhere.parent.mkdir(parents=True, exist_ok=True)
        elsewhere.write_bytes(b"precious")
        self.folder.mkdir()
        os.symlink(elsewhere.resolve(), self.folder / "one.log")
        files.write("one", LINE)
        files.flush()
        self.assertEqual(elsewhere.read_bytes(), b"precious")
        self.assertIn("log files cannot be written", self.problems[0])

    def test_bytes_beyond_the_bound_are_dropped_and_counted(self):
        files = self.make(bound=20)
        for _ in range(3):
            files.write("one", LINE)
        files.flush()
        files.write("one", b"last\n")
        files.flush()
        self.assertEqual(self.content(), LINE + "\n\u2014 22 bytes dropped \u2014\n".encode() + b"last\n")

    def test_files_are_written_after_a_reload_names_a_folder(self):
        files = self.make()
        files.retune(None)
        files.write("one", LINE)
        files.flush()
        self.assertFalse(self.folder.exists())
        files.retune(LogFileLimits(str(self.folder), 100, 1))
        files.write("one", LINE)
        files.flush()
        self.assertEqual(self.content(), LINE)

    def test_waiting_close_writes_the_last_bytes(self):
        folder = Path(self.mktemp())
        files = LogFiles(LogFileLimits(str(folder), 100, 1), self.fail)
        files.write("one", LINE)
        files.close(5.0)
        self.assertEqual((folder / "one.log").read_bytes(), LINE)
        files.write("one", LINE)
        self.assertFalse([one for one in threading.enumerate() if one.name == "logfiles" and one.is_alive()][1:])

    def test_file_names_stay_in_the_folder(self):
        self.assertEqual(file_name("model-org/x:7b"), "model-org%2Fx:7b.log")
        self.assertEqual(file_name("../../etc/passwd"), "%2E%2E%2F%2E%2E%2Fetc%2Fpasswd.log")
        self.assertNotEqual(file_name("model-org/x"), file_name("model-org_x"))
        self.assertLess(len(file_name("x" * 999)), 200)


def _umask():
    mask = os.umask(0o22)
    os.umask(mask)
    return mask


class RegistryTests(SynchronousTestCase):
    def test_registry_writes_its_lines_and_those_of_each_model(self):
        written = []
        registry = LogRegistry(to_file=lambda name, data: written.append((name, data)))
        registry.proxy.write(b"ours\n")
        registry.model("a").write(b"its\n")
        self.assertEqual(written, [("llamaswap", b"ours\n"), ("model-a", b"its\n")])
