"""Bodies that are already here."""

import tempfile

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.errors import BodyTooLarge, NoRoom
from llamaswap.proxy.bodies import FEED_LIMIT, PIECE_SIZE, BytesBody, PiecesBody
from llamaswap.proxy.incoming_body import DISK_STEP
from llamaswap.proxy.twisted_web_adapter import SiteContent
from llamaswap.wire.byte_budget import ByteBudget
from tests.proxy.test_incoming_body import Consumer


class BytesBodyTests(SynchronousTestCase):
    def both(self, data):
        self.clock = Clock()
        content = SiteContent(self.clock, len(data))
        for at in range(0, len(data), PIECE_SIZE):
            content.write(data[at : at + PIECE_SIZE])
        return BytesBody(data), content.body()

    def test_body_in_memory_can_be_read_repeatedly(self):
        for body in self.both(b"abc"):
            for _ in range(2):
                consumer = Consumer()
                body.start(consumer)
                self.assertEqual((consumer.data, consumer.ended), (b"abc", 1))
            self.assertEqual(self.successResultOf(body.read_all(3)), b"abc")
            self.assertEqual((body.length, body.replayable), (3, True))
            self.failureResultOf(body.read_all(2), BodyTooLarge)

    def test_pieces_are_fed_in_order_and_in_small_parts(self):
        self.clock = Clock()
        texts = [b"a" * (PIECE_SIZE + 1), b"", memoryview(b"xbcx")[1:3], b"d" * PIECE_SIZE]
        body = PiecesBody(self.clock, texts)
        whole = b"".join(texts)
        consumer = Consumer()
        sizes = []
        consumer.body_data = lambda data: (sizes.append(len(data)), setattr(consumer, "data", consumer.data + data))
        for _ in range(2):
            consumer.data = b""
            body.start(consumer)
            self.assertEqual(consumer.data, whole)
        self.assertLessEqual(max(sizes), PIECE_SIZE)
        self.assertEqual(self.successResultOf(body.read_all(len(whole))), whole)
        self.assertEqual(body.length, len(whole))

    def test_empty_ones_end_at_once(self):
        for body in self.both(b""):
            consumer = Consumer()
            body.start(consumer, keep=False)
            self.assertEqual((consumer.data, consumer.ended, body.length), (b"", 1, 0))

    def test_a_site_s_body_is_fed_in_turns_and_pauses(self):
        data = b"x" * (2 * FEED_LIMIT + 5)
        _, body = self.both(data)
        consumer = Consumer()
        producer = body.start(consumer)
        self.assertEqual(len(consumer.data), FEED_LIMIT)
        producer.pauseProducing()
        self.clock.advance(0)
        self.assertEqual(len(consumer.data), FEED_LIMIT)
        producer.resumeProducing()
        self.clock.advance(0)
        self.clock.advance(0)
        self.assertEqual((len(consumer.data), consumer.ended), (len(data), 1))

    def test_stopped_feeding_is_silent(self):
        _, body = self.both(b"x" * (FEED_LIMIT + PIECE_SIZE))
        consumer = Consumer()
        body.start(consumer)
        body.close()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(consumer.ended, 0)


def budget(bound, name):
    return ByteBudget(name, lambda used: bound)


class SiteContentTests(SynchronousTestCase):
    """What a request's body for the twisted.web site is kept in."""

    def content(self, memory, disk, length=None):
        self.memory, self.disk = budget(memory, "memory"), budget(disk, "disk")
        return SiteContent(Clock(), length, self.memory, self.disk)

    def filled(self, content, pieces):
        for _ in range(pieces):
            content.write(b"x" * 50_000)
        content.seek(0)
        return len(content.read())

    def test_a_large_body_is_in_a_file(self):
        content = self.content(0, DISK_STEP)
        self.assertEqual(self.filled(content, 4), 200_000)
        self.assertEqual((self.memory.used, self.disk.used), (0, DISK_STEP))
        content.close()
        content.close()
        self.assertEqual(self.disk.used, 0)

    def test_content_is_in_memory_if_the_disk_is_full(self):
        content = self.content(10**6, 0)
        self.assertEqual(self.filled(content, 4), 200_000)
        self.assertEqual((self.memory.used, self.disk.used), (200_000, 0))
        content.close()
        self.assertEqual(self.memory.used, 0)

    def test_a_disk_that_fills_up_moves_it_to_memory(self):
        content = self.content(10**7, DISK_STEP)
        self.assertEqual(self.filled(content, 100), 5_000_000)
        self.assertEqual((self.memory.used, self.disk.used), (5_000_000, 0))

    def test_a_folder_that_cannot_be_written_to_is_like_a_full_disk(self):
        self.patch(tempfile, "tempdir", "/nonexistent")
        self.assertEqual(self.filled(self.content(10**6, DISK_STEP), 4), 200_000)
        self.assertEqual(self.memory.used, 200_000)

    def test_copies_of_a_body_that_is_held_whole_take_memory_until_it_is_closed(self):
        content = self.content(250_000, 10**6)
        content.write(b"x" * 80_000)
        self.assertEqual(len(self.successResultOf(content.body().read_all(10**6))), 80_000)
        self.assertEqual(self.memory.used, 240_000)
        other = SiteContent(Clock(), None, self.memory, self.disk)
        other.write(b"x" * 80_000)
        self.failureResultOf(other.body().read_all(10**6), NoRoom)
        content.close()
        self.assertEqual(self.memory.used, 0)

    def test_without_room_it_is_refused_and_a_small_one_is_not(self):
        self.assertEqual(self.filled(self.content(0, 0), 2), 100_000)
        with self.assertRaises(NoRoom):
            self.filled(self.content(10_000, 0), 3)
        with self.assertRaises(NoRoom):
            self.content(10_000, 10_000, length=200_000)
