"""The thread that writes what the reactor gathers."""

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.observe.batch_writer import BatchWriter, daemon


class TestGathering(SynchronousTestCase):
    def make(self, write=None):
        self.out, self.threads = [], []
        return BatchWriter(write or self.out.append, self.threads.append, bound=10, gather=3600.0)

    def test_the_thread_starts_with_the_first_question_and_once(self):
        pieces = self.make()
        self.assertEqual(self.threads, [])
        pieces.has_room(1)
        pieces.has_room(1)
        self.assertEqual(len(self.threads), 1)

    def test_what_came_together_is_written_together_and_in_order(self):
        pieces = self.make()
        for piece in ("a", "b"):
            pieces.put(piece, 1)
        pieces.flush()
        pieces.flush()
        self.assertEqual(self.out, [["a", "b"]])

    def test_there_is_room_again_for_what_was_written(self):
        pieces = self.make()
        pieces.put("a", 8)
        self.assertEqual((pieces.has_room(2), pieces.has_room(3)), (True, False))
        pieces.flush()
        self.assertTrue(pieces.has_room(10))

    def test_a_piece_counts_until_its_write_is_done(self):
        seen = []
        pieces = self.make(lambda _: seen.append((pieces.idle, pieces.has_room(3))))
        pieces.put("a", 8)
        pieces.flush()
        self.assertEqual((seen, pieces.idle), ([(False, False)], True))

    def test_the_end_waits_for_nobody_behind_the_last_piece(self):
        pieces = self.make()
        pieces.has_room(1)
        pieces.put("a", 1)
        pieces.close()
        pieces.close()
        self.threads[0]()  # with an hour to gather, it must come back at once
        self.assertEqual((self.out, pieces.closed), ([["a"]], True))

    def test_the_last_pieces_are_out_when_a_waiting_close_returns(self):
        out = []
        pieces = BatchWriter(out.append, daemon("a test"), bound=10, gather=3600.0)
        pieces.has_room(1)
        pieces.put("last words", 10)
        pieces.close(10.0)
        self.assertEqual(out, [["last words"]])

    def test_a_waiting_close_of_what_never_began_returns_at_once(self):
        self.make().close(3600.0)
