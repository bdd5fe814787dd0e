"""Sending at once, and only when nothing waits before it."""

import socket

from twisted.internet.error import ConnectionDone
from twisted.internet.tcp import Connection
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.proxy.fastpath.direct_write import close_when_sent, forget_unsent, unsent, unsent_bytes, write_through


class Turns:
    """A reactor that only notes who wants to write."""

    def __init__(self):
        self.writers = set()

    def addWriter(self, writer):
        self.writers.add(writer)

    def removeWriter(self, writer):
        self.writers.discard(writer)

    addReader = removeReader = lambda self, reader: None


class Ends:
    """A protocol that only notes its end."""

    def __init__(self):
        self.reasons = []

    def connectionLost(self, reason):
        self.reasons.append(reason.type)


class CloseTests(SynchronousTestCase):
    def setUp(self):
        near, self.far = socket.socketpair()
        self.addCleanup(self.far.close)
        self.far.settimeout(5)
        self.turns, self.ends = Turns(), Ends()
        self.wire = Connection(near, self.ends, self.turns)
        self.wire.connected = 1
        self.write = write_through(self.wire)

    def test_a_connection_whose_bytes_are_sent_closes_at_once(self):
        self.write(b"all")
        close_when_sent(self.wire)
        self.assertEqual(self.ends.reasons, [ConnectionDone])
        self.assertEqual((self.far.recv(10), self.far.recv(10), self.turns.writers), (b"all", b"", set()))

    def test_queued_bytes_are_sent_before_the_end(self):
        self.wire.write(b"last words")
        close_when_sent(self.wire)
        self.assertEqual(self.ends.reasons, [])
        self.assertIs(self.wire.doWrite().__class__, ConnectionDone)
        self.assertEqual(self.far.recv(20), b"last words")
        self.wire.connectionLost(Failure(ConnectionDone()))

    def test_the_end_waits_for_a_producer(self):
        self.wire.registerProducer(self, True)
        close_when_sent(self.wire)
        self.assertEqual(self.ends.reasons, [])
        self.wire.unregisterProducer()
        self.assertIs(self.wire.doWrite().__class__, ConnectionDone)
        self.wire.connectionLost(Failure(ConnectionDone()))

    def test_closing_twice_reports_one_end(self):
        close_when_sent(self.wire)
        close_when_sent(self.wire)
        self.assertEqual(len(self.ends.reasons), 1)

    def test_another_transport_is_closed_in_its_own_way(self):
        wire = StringTransport()
        close_when_sent(wire)
        self.assertTrue(wire.disconnecting)


class WriteThroughTests(SynchronousTestCase):
    def setUp(self):
        near, self.far = socket.socketpair()
        self.addCleanup(near.close)
        self.addCleanup(self.far.close)
        self.turns = Turns()
        self.wire = Connection(near, None, self.turns)
        self.wire.connected = 1
        self.write = write_through(self.wire)

    def test_plain_connection_is_not_written_to_as_usual(self):
        self.assertNotEqual(self.write, self.wire.write)

    def test_unsent_bytes_are_known(self):
        self.assertFalse(unsent(self.wire))
        self.wire.write(b"x")
        self.assertTrue(unsent(self.wire))
        self.wire.doWrite()
        self.assertFalse(unsent(self.wire))

    def test_a_lost_connection_keeps_no_unsent_bytes(self):
        """2,000 clients that left kept 600 MB until a full garbage collection."""
        data = b"x" * 1000000
        self.wire.write(data)
        self.wire.doWrite()
        self.wire.write(data)
        self.assertGreater(unsent_bytes(self.wire), len(data))
        forget_unsent(self.wire)
        self.assertEqual((unsent_bytes(self.wire), unsent(self.wire)), (0, False))

    def test_bytes_leave_at_once(self):
        self.write(b"hello")
        self.assertEqual(self.far.recv(10), b"hello")
        self.assertEqual(self.turns.writers, set())

    def test_bytes_wait_behind_queued_ones(self):
        self.wire.write(b"one")
        self.write(b"two")
        self.far.setblocking(False)
        with self.assertRaises(BlockingIOError):
            self.far.recv(10)
        self.wire.doWrite()
        self.assertEqual(self.far.recv(10), b"onetwo")

    def test_bytes_that_the_kernel_does_not_take_are_queued_in_order(self):
        data = bytes(range(256)) * 3000
        self.write(data)
        self.write(b"end")
        self.assertEqual(self.turns.writers, {self.wire})
        got = b""
        while len(got) < len(data) + 3:
            got += self.far.recv(1 << 20)
            if self.wire in self.turns.writers:
                self.wire.doWrite()
        self.assertEqual(got, data + b"end")

    def test_full_queue_pauses_the_producer(self):
        paused = []

        class Producer:
            def pauseProducing(self):
                paused.append(1)

        self.wire.producer, self.wire.streamingProducer = Producer(), True
        self.write(b"x" * 1000000)
        self.assertEqual(paused, [1])

    def test_nothing_is_sent_on_a_lost_connection(self):
        self.wire.connected = 0
        self.write(b"x")
        self.assertEqual(self.turns.writers, set())

    def test_bytes_before_a_close_still_go_out(self):
        self.wire.write(b"a")
        self.wire.loseConnection()
        self.write(b"b")
        self.wire.doWrite()
        self.assertEqual(self.far.recv(10), b"ab")

    def test_broken_connection_is_left_to_the_reactor(self):
        self.far.close()
        self.write(b"x")
        self.assertEqual(self.turns.writers, {self.wire})

    def test_other_transports_write_for_themselves(self):
        transport = StringTransport()
        write_through(transport)(b"x")
        self.assertEqual(transport.value(), b"x")
