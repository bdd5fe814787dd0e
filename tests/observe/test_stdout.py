"""The thread between the log and a pipe that no program reads."""

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.observe.batch_writer import StdoutWriter


class StdoutWriterTests(SynchronousTestCase):
    def make(self, bound=10, write=None):
        self.out = []
        self.threads = []
        return StdoutWriter(write or self.out.append, start=self.threads.append, bound=bound)

    def test_collected_bytes_are_written_at_once_and_in_order(self):
        writer = self.make()
        writer(b"a")
        writer(b"b")
        writer.close()
        self.threads[0]()
        self.assertEqual((self.out, len(self.threads)), ([b"ab"], 1))

    def test_full_queue_drops_bytes_and_marks_the_gap(self):
        writer = self.make(bound=10)
        writer(b"12345678")
        writer(b"lost")
        writer.flush()
        writer(b"back")
        writer.flush()
        self.assertEqual(self.out, [b"12345678", "\n\u2014 4 bytes dropped \u2014\nback".encode()])

    def test_closed_stdout_is_survived(self):
        def broken(data):
            raise BrokenPipeError

        writer = self.make(write=broken)
        writer(b"a")
        writer.close()
        self.threads[0]()
        self.assertTrue(writer.idle)
