"""The plain poll loop on the reactor it was written for."""

import socket
import sys

from twisted.internet.task import Clock
from twisted.internet.tcp import Connection
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.relay.polling import use_plain_poll


class Received:
    def __init__(self):
        self.data, self.reasons = b"", []

    def dataReceived(self, data):
        self.data += data
        if data == b"raise":
            raise RuntimeError("a protocol's fault")

    def connectionLost(self, reason):
        self.reasons.append(reason.type.__name__)


class PlainPoll(SynchronousTestCase):
    if not sys.platform.startswith("linux"):
        skip = "epoll is Linux's"

    def setUp(self):
        from twisted.internet.epollreactor import EPollReactor

        self.reactor = EPollReactor()
        self.addCleanup(self.reactor._poller.close)
        self.assertTrue(use_plain_poll(self.reactor))
        near, self.far = socket.socketpair()
        self.addCleanup(self.far.close)
        self.received = Received()
        self.wire = Connection(near, self.received, self.reactor)
        self.wire.connected = 1
        self.wire.startReading()

    def test_bytes_are_delivered_and_sent(self):
        self.far.send(b"hello")
        self.wire.write(b"back")
        self.reactor.doIteration(0.5)
        self.reactor.doIteration(0)
        self.assertEqual((self.received.data, self.far.recv(10)), (b"hello", b"back"))

    def test_end_of_a_connection_is_told(self):
        self.far.close()
        self.reactor.doIteration(0.5)
        self.assertEqual(len(self.received.reasons), 1)

    def test_fault_of_a_protocol_costs_its_own_connection(self):
        self.far.send(b"raise")
        self.reactor.doIteration(0.5)
        self.assertEqual(len(self.received.reasons), 1)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_quiet_poll_returns(self):
        self.reactor.doIteration(0)
        self.assertEqual(self.received.data, b"")

    def test_other_reactors_are_left_alone(self):
        self.assertFalse(use_plain_poll(Clock()))
