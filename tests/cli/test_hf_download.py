"""Downloads that are taken up."""

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
        self.asked = []

    def more(self, sink, there):
        self.asked.append(there)
        sink.write(CONTENT[there:])

    def complete(self):
        return complete(self.part, len(CONTENT), ETAG, self.more)

    def test_what_is_there_is_not_fetched_again(self):
        self.part.write_bytes(CONTENT[:4])
        self.assertTrue(self.complete())
        self.assertEqual((self.asked, self.part.read_bytes()), ([4], CONTENT))

    def test_a_whole_file_is_only_looked_at(self):
        self.part.write_bytes(CONTENT)
        self.assertTrue(self.complete())
        self.assertEqual(self.asked, [])

    def test_what_does_not_fit_is_thrown_away(self):
        for spoiled in (b"xxxx", CONTENT + b"more"):
            self.part.write_bytes(spoiled)
            while not self.complete():
                self.assertEqual(self.part.read_bytes(), b"")
            self.assertEqual(self.part.read_bytes(), CONTENT)

    def test_two_processes_do_not_write_to_one_file(self):
        with self.part.open("ab") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            self.assertFalse(self.complete())
        self.assertEqual(self.asked, [])

    def test_a_break_leaves_what_came(self):
        def broken(sink, there):
            sink.write(CONTENT[:6])
            raise ConnectionError("broken off")

        self.assertRaises(ConnectionError, complete, self.part, len(CONTENT), ETAG, broken)
        self.assertTrue(self.complete())
        self.assertEqual(self.asked, [6])
