"""Bodies that are already here."""

from io import BytesIO

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.errors import BodyTooLarge
from llamaswap.relay.bodies import PIECE, TURN, BytesBody, FileBody

from .test_arriving import Consumer


class Bodies(SynchronousTestCase):
    def both(self, data):
        self.clock = Clock()
        return BytesBody(data), FileBody(self.clock, BytesIO(data), len(data))

    def test_they_are_read_any_number_of_times(self):
        for body in self.both(b"abc"):
            for _ in range(2):
                consumer = Consumer()
                body.start(consumer)
                self.assertEqual((consumer.data, consumer.ended), (b"abc", 1))
            self.assertEqual(self.successResultOf(body.hold(3)), b"abc")
            self.assertEqual((body.length, body.replayable), (3, True))
            self.failureResultOf(body.hold(2), BodyTooLarge)

    def test_empty_ones_end_at_once(self):
        for body in self.both(b""):
            consumer = Consumer()
            body.start(consumer, keep=False)
            self.assertEqual((consumer.data, consumer.ended, body.length), (b"", 1, 0))

    def test_file_is_fed_in_turns_and_pauses(self):
        data = b"x" * (2 * TURN + 5)
        _, body = self.both(data)
        consumer = Consumer()
        producer = body.start(consumer)
        self.assertEqual(len(consumer.data), TURN)
        producer.pauseProducing()
        self.clock.advance(0)
        self.assertEqual(len(consumer.data), TURN)
        producer.resumeProducing()
        self.clock.advance(0)
        self.clock.advance(0)
        self.assertEqual((len(consumer.data), consumer.ended), (len(data), 1))

    def test_stopped_feeding_is_silent(self):
        _, body = self.both(b"x" * (TURN + PIECE))
        consumer = Consumer()
        body.start(consumer)
        body.close()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(consumer.ended, 0)

    def test_file_shorter_than_announced_is_a_loss(self):
        consumer = Consumer()
        FileBody(Clock(), BytesIO(b"abc"), 5).start(consumer)
        self.assertEqual((consumer.ended, consumer.lost), (0, 1))
