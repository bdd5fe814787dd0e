"""The thread between the log and a pipe nobody empties."""

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.observe.stdout import StdoutWriter


class TestStdoutWriter(SynchronousTestCase):
    def make(self, bound=10, write=None):
        self.out = []
        self.threads = []
        return StdoutWriter(write or self.out.append, start=self.threads.append, bound=bound)

    def test_nothing_is_started_before_the_first_byte(self):
        self.make()
        self.assertEqual(self.threads, [])

    def test_what_came_together_comes_out_in_one_write_and_in_order(self):
        writer = self.make()
        writer(b"a")
        writer(b"b")
        writer.close()
        writer.close()
        self.threads[0]()
        self.assertEqual((self.out, len(self.threads)), ([b"ab"], 1))

    def test_a_full_queue_drops_and_says_so_when_there_is_room(self):
        writer = self.make(bound=10)
        writer(b"12345678")
        writer(b"lost")
        self.assertEqual(writer.dropped, 4)
        writer.flush()
        writer(b"back")
        writer.flush()
        self.assertEqual(self.out, [b"12345678", "\n\u2014 4 bytes dropped \u2014\nback".encode()])

    def test_a_lost_stdout_is_survived(self):
        def broken(data):
            raise BrokenPipeError

        writer = self.make(write=broken)
        writer(b"a")
        writer.close()
        self.threads[0]()
        self.assertTrue(writer.idle)

    def test_nothing_is_taken_after_close(self):
        writer = self.make()
        writer.close()
        writer(b"a")
        self.assertEqual(self.threads, [])

    def test_the_last_lines_are_out_when_a_waiting_close_returns(self):
        out = []
        writer = StdoutWriter(out.append)
        writer(b"last words")
        writer.close(10.0)
        self.assertEqual(out, [b"last words"])

    def test_a_waiting_close_of_an_unused_writer_returns_at_once(self):
        self.make().close(3600.0)
