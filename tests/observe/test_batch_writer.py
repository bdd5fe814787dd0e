"""The thread that writes what the reactor collects."""

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.observe.batch_writer import BatchWriter


class SlowWriter(BatchWriter):
    """Has `write` called an hour after the first piece."""

    thread_name = "test"
    delay = 3600.0

    def __init__(self, write, **options):
        super().__init__(bound=10, **options)
        self.write = write

    def write_pieces(self, pieces):
        self.write(pieces)


class BatchWriterTests(SynchronousTestCase):
    def make(self, write=None):
        self.out, self.threads = [], []
        return SlowWriter(write or self.out.append, start=self.threads.append)

    def test_thread_starts_once_with_the_first_piece(self):
        writer = self.make()
        self.assertEqual(self.threads, [])
        writer.put("log", b"a")
        writer.put("log", b"b")
        self.assertEqual(len(self.threads), 1)

    def test_collected_pieces_are_written_together_and_in_order(self):
        writer = self.make()
        writer.put("one", b"a")
        writer.put("two", b"b")
        writer.flush()
        writer.flush()
        self.assertEqual(self.out, [[("one", b"a"), ("two", b"b")]])

    def test_bytes_beyond_the_bound_are_dropped_and_the_gap_is_marked_in_its_log(self):
        writer = self.make()
        writer.put("one", b"12345678")
        writer.put("one", b"lost")
        writer.flush()
        writer.put("two", b"other")
        writer.put("one", b"back")
        writer.flush()
        marked = "\n\u2014 4 bytes dropped \u2014\nback".encode()
        self.assertEqual(self.out[1:], [[("two", b"other"), ("one", marked)]])

    def test_piece_counts_until_its_write_is_done(self):
        seen = []

        def write(pieces):
            seen.append((writer.idle, pieces))
            writer.put("log", b"123")

        writer = self.make(write)
        writer.put("log", b"12345678")
        writer.flush()
        self.assertEqual((seen, writer.idle), ([(False, [("log", b"12345678")])], True))
        writer.put("log", b"4")
        writer.flush()
        self.assertIn(b"3 bytes dropped", seen[1][1][0][1])

    def test_closed_writer_writes_the_last_piece_without_delay_and_takes_no_more(self):
        writer = self.make()
        writer.put("log", b"a")
        writer.close()
        writer.close()
        writer.put("log", b"b")
        self.threads[0]()  # with a delay of an hour it must return at once
        self.assertEqual(self.out, [[("log", b"a")]])

    def test_waiting_close_returns_after_the_last_piece_is_written(self):
        out = []
        writer = SlowWriter(out.append)
        writer.put("log", b"last words")
        writer.close(10.0)
        self.assertEqual(out, [[("log", b"last words")]])

    def test_waiting_close_of_an_unused_writer_returns_at_once(self):
        self.make().close(3600.0)
