"""Bodies still arriving: held, streamed, spooled, read again, let go."""

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.errors import BodyTooLarge, ClientGone
from llamaswap.relay.arriving import AHEAD, DISCARD, ArrivingBody


class Consumer:
    def __init__(self):
        self.data, self.ended, self.lost = b"", 0, 0
        self.producer = None

    def body_data(self, data):
        self.data += data

    def body_ended(self):
        self.ended += 1

    def body_lost(self):
        self.lost += 1


class Arriving(SynchronousTestCase):
    def body(self, length=10, **options):
        self.clock, self.changes, self.continues = Clock(), [], []
        return ArrivingBody(
            self.clock,
            length,
            changed=lambda: self.changes.append(1),
            continue_=lambda: self.continues.append(1),
            **options,
        )

    def test_held_body_comes_whole(self):
        body = self.body()
        held = body.hold(10)
        body.arrived(b"01234")
        self.assertNoResult(held)
        body.arrived(b"56789")
        body.finished()
        self.assertEqual(self.successResultOf(held), b"0123456789")
        self.assertEqual(self.successResultOf(body.hold(10)), b"0123456789")
        self.assertEqual((body.length, body.replayable), (10, True))

    def test_announced_length_beyond_the_limit_fails_at_once(self):
        self.failureResultOf(self.body(11).hold(10), BodyTooLarge)

    def test_chunked_body_beyond_the_limit_fails_and_can_still_be_streamed(self):
        body = self.body(None)
        held = body.hold(4)
        body.arrived(b"01234")
        self.failureResultOf(held, BodyTooLarge)
        consumer = Consumer()
        body.start(consumer)
        body.arrived(b"5")
        body.finished()
        self.assertEqual((consumer.data, consumer.ended, body.length), (b"012345", 1, 6))

    def test_client_leaving_fails_a_hold(self):
        body = self.body()
        held = body.hold(10)
        body.lost()
        self.failureResultOf(held, ClientGone)
        self.failureResultOf(body.hold(10), ClientGone)

    def test_complete_body_survives_its_client(self):
        body = self.body(2)
        body.arrived(b"ab")
        body.finished()
        body.lost()
        self.assertEqual(self.successResultOf(body.hold(10)), b"ab")

    def test_body_can_be_read_again(self):
        body = self.body()
        body.arrived(b"01234")
        first, second = Consumer(), Consumer()
        body.start(first).stopProducing()
        body.start(second)
        body.arrived(b"56789")
        body.finished()
        third = Consumer()
        body.start(third)
        self.assertEqual((first.data, second.data, third.data), (b"01234", b"0123456789", b"0123456789"))

    def test_paused_reader_waits(self):
        body = self.body(5_000_000)
        consumer = Consumer()
        producer = body.start(consumer, keep=False)
        producer.pauseProducing()
        self.assertFalse(body.wants)
        body.arrived(b"a")
        self.assertEqual(consumer.data, b"")
        producer.resumeProducing()
        self.assertTrue(body.wants)
        self.clock.advance(0)
        body.arrived(b"b")
        self.assertEqual(consumer.data, b"ab")

    def test_large_stream_is_forgotten_as_it_passes(self):
        body = self.body(5_000_000)
        consumer = Consumer()
        body.start(consumer, keep=False)
        self.assertFalse(body.replayable)
        for _ in range(5):
            body.arrived(b"x" * 1000)
        self.assertEqual((len(consumer.data), body._chunks), (5000, []))

    def test_small_stream_stays_readable(self):
        body = self.body()
        body.start(Consumer(), keep=False)
        self.assertTrue(body.replayable)

    def test_body_beyond_the_threshold_is_spooled_and_read_back(self):
        body = self.body(None, threshold=100)
        first = Consumer()
        body.start(first)
        data = b"".join(b"%05d" % number for number in range(100))
        for at in range(0, 500, 50):
            body.arrived(data[at : at + 50])
        body.finished()
        self.assertEqual(body._chunks, [])
        again = Consumer()
        body.start(again)
        self.assertEqual((first.data, again.data), (data, data))
        self.assertEqual(self.successResultOf(body.hold(500)), data)
        body.close()

    def test_spooled_reader_that_pauses_misses_nothing(self):
        body = self.body(None, threshold=100)
        consumer = Consumer()
        body.arrived(b"a" * 60)
        producer = body.start(consumer)
        producer.pauseProducing()
        body.arrived(b"b" * 60)
        body.arrived(b"c" * 60)
        producer.resumeProducing()
        self.clock.advance(0)
        body.arrived(b"d" * 60)
        body.finished()
        self.assertEqual(consumer.data, b"a" * 60 + b"b" * 60 + b"c" * 60 + b"d" * 60)
        self.assertEqual(consumer.ended, 1)
        body.close()

    def test_long_feeding_leaves_turns_to_others(self):
        body = self.body(4 << 20)
        body.arrived(b"x" * (3 << 20))
        body.arrived(b"y" * (1 << 20))
        body.finished()
        consumer = Consumer()
        body.start(consumer)
        self.assertEqual((len(consumer.data), consumer.ended), (3 << 20, 0))
        self.clock.advance(0)
        self.clock.advance(0)
        self.assertEqual((len(consumer.data), consumer.ended), (4 << 20, 1))

    def test_nobody_reading_bounds_what_is_read_ahead(self):
        body = self.body(None)
        body.arrived(b"x" * AHEAD)
        self.assertFalse(body.wants)
        body.start(Consumer())
        self.assertTrue(body.wants)

    def test_closed_body_discards_within_a_bound(self):
        body = self.body(None)
        body.arrived(b"x")
        body.close()
        self.assertTrue(body.wants)
        body.arrived(b"x" * DISCARD)
        self.assertFalse(body.wants)
        self.assertFalse(body.replayable)

    def test_continue_is_asked_for_once_and_only_before_the_first_byte(self):
        body = self.body()
        body.start(Consumer()).stopProducing()
        body.start(Consumer())
        self.assertEqual(self.continues, [1])
        body = self.body()
        body.arrived(b"x")
        body.start(Consumer())
        self.assertEqual(self.continues, [])

    def test_client_leaving_is_told_to_the_reader(self):
        body = self.body()
        consumer = Consumer()
        body.start(consumer)
        body.lost()
        self.assertEqual((consumer.lost, consumer.ended), (1, 0))

    def test_empty_body_ends_at_once(self):
        body = self.body(0)
        consumer = Consumer()
        body.start(consumer)
        self.assertEqual((consumer.ended, body.length), (1, 0))

    def test_stopping_a_forgetful_reader_lets_the_rest_go(self):
        body = self.body(5_000_000)
        body.start(Consumer(), keep=False).stopProducing()
        body.arrived(b"x")
        self.assertEqual(body._chunks, [])
        with self.assertRaises(RuntimeError):
            body.start(Consumer())
