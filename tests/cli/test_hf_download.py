"""Resumed downloads."""

import fcntl
import hashlib
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.cli.hf_download import complete

CONTENT = b"0123456789"
ETAG = hashlib.sha256(CONTENT).hexdigest()


class CompleteTests(SynchronousTestCase):
    def setUp(self):
        self.part = Path(self.mktemp())
        self.starts = []

    def download(self, sink):
        self.starts.append(sink.tell())
        sink.write(CONTENT[sink.tell() :])

    def complete(self):
        return complete(self.part, len(CONTENT), ETAG, self.download)

    def test_partial_file_is_resumed(self):
        self.part.write_bytes(CONTENT[:4])
        self.assertTrue(self.complete())
        self.assertEqual((self.starts, self.part.read_bytes()), ([4], CONTENT))

    def test_complete_file_is_only_checked(self):
        self.part.write_bytes(CONTENT)
        self.assertTrue(self.complete())
        self.assertEqual(self.starts, [])

    def test_file_that_does_not_match_is_emptied_and_downloaded_again(self):
        for spoiled in (b"xxxx", CONTENT + b"more"):
            self.part.write_bytes(spoiled)
            while not self.complete():
                self.assertEqual(self.part.read_bytes(), b"")
            self.assertEqual(self.part.read_bytes(), CONTENT)

    def test_file_that_another_process_writes_is_left_alone(self):
        with self.part.open("ab") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            self.assertFalse(self.complete())
        self.assertEqual(self.starts, [])

    def test_broken_download_is_resumed_at_once(self):
        def broken(sink):
            self.starts.append(sink.tell())
            sink.write(CONTENT[sink.tell() :][:6])
            raise ConnectionError("broken off")

        self.assertTrue(complete(self.part, len(CONTENT), ETAG, broken))
        self.assertEqual((self.starts, self.part.read_bytes()), ([0, 6], CONTENT))

    def test_download_without_progress_fails_and_keeps_what_it_got(self):
        self.part.write_bytes(CONTENT[:6])
        for download in (lambda sink: None, self.unreachable):
            self.assertRaises(OSError, complete, self.part, len(CONTENT), ETAG, download)
            self.assertEqual(self.part.read_bytes(), CONTENT[:6])

    def unreachable(self, sink):
        raise ConnectionRefusedError("refused")
