"""Connections to servers: how they are made, and which error an attempt that fails becomes."""

import gc

from attrs import evolve
from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectError, ConnectionRefusedError, TimeoutError
from twisted.internet.protocol import connectionDone
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config.endpoints import Endpoint
from llamaswap.errors import UpstreamUnreachable
from llamaswap.proxy.connector import ConnectAttempt, Connector
from llamaswap.proxy.upstream import NO_TIMEOUTS, UpstreamConnection, UpstreamTarget
from tests.proxy.doubles import Wire


class ConnectorTests(SynchronousTestCase):
    def connect(self, host="127.0.0.1", **limits):
        self.clock = MemoryReactorClock()
        self.connector = Connector(self.clock)
        self.upstream = UpstreamTarget(Endpoint("http", host, 9000), evolve(NO_TIMEOUTS, **limits), name="owl")
        return self.connector.connect(self.upstream)

    def fail(self, reason):
        _, _, factory, _, _ = self.clock.tcpClients[-1]
        factory.clientConnectionFailed(self.clock.connectors[-1], Failure(reason))

    def succeed(self):
        wire = Wire()
        wire.side = self.clock.tcpClients[-1][2].buildProtocol(None)
        wire.side.makeConnection(wire)
        return wire

    def test_connection_is_made_without_delay_and_watched_when_asked(self):
        result = self.connect(keepalive=30, connect=5)
        self.assertEqual(self.clock.tcpClients[0][:2] + self.clock.tcpClients[0][3:4], ("127.0.0.1", 9000, 5))
        wire = self.succeed()
        self.assertIsInstance(self.successResultOf(result), UpstreamConnection)
        self.assertTrue(wire.no_delay and wire.keep_alive)

    def test_no_limit_is_no_limit(self):
        self.connect()
        self.assertIsNone(self.clock.tcpClients[0][3])

    def test_an_encrypted_server_that_refuses_the_connection_is_unreachable(self):
        """It was an AttributeError, and so an internal error that no failover handles."""
        clock = MemoryReactorClock()
        result = Connector(clock).connect(UpstreamTarget(Endpoint("https", "127.0.0.1", 9000), name="owl"))
        clock.advance(1)
        _, _, factory, _, _ = clock.tcpClients[-1]
        factory.clientConnectionFailed(clock.connectors[-1], Failure(ConnectionRefusedError()))
        error = self.failureResultOf(result, UpstreamUnreachable).value
        self.assertEqual((error.cause, error.sent), ("connection refused", False))

    def test_failures_are_unreachable_and_nothing_was_sent(self):
        for reason, words in (
            (ConnectionRefusedError(), "connection refused"),
            (TimeoutError(), "no connection within 5 s"),
            (ConnectError(string="odd"), "odd"),
        ):
            result = self.connect(connect=5)
            self.fail(reason)
            error = self.failureResultOf(result, UpstreamUnreachable).value
            self.assertFalse(error.sent)
            self.assertIn(words, error.cause)

    def test_cancelling_stops_the_attempt(self):
        result, stopped = self.connect(), []
        self.clock.connectors[0].disconnect = lambda: stopped.append(True)
        result.cancel()
        self.failureResultOf(result, CancelledError)
        self.assertEqual(stopped, [True])

    def test_localhost_needs_no_resolver(self):
        result = self.connect("localhost")
        self.assertEqual(self.clock.tcpClients[0][0], "127.0.0.1")
        self.succeed()
        self.successResultOf(result)

    def test_localhost_that_listens_on_ipv6_only_is_found_and_remembered(self):
        result = self.connect("localhost")
        self.fail(ConnectionRefusedError())
        self.assertEqual(self.clock.tcpClients[1][0], "::1")
        self.succeed()
        self.successResultOf(result)
        self.connector.connect(self.upstream)
        self.assertEqual(self.clock.tcpClients[2][0], "::1")

    def test_localhost_that_listens_nowhere_is_refused(self):
        result = self.connect("localhost")
        self.fail(ConnectionRefusedError())
        self.fail(ConnectionRefusedError())
        self.assertIn("refused", self.failureResultOf(result, UpstreamUnreachable).value.cause)


class ConnectionEndTests(SynchronousTestCase):
    def test_connections_that_end_leave_nothing_to_the_garbage_collector(self):
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        connection = UpstreamConnection()
        connection.makeConnection(StringTransport())
        attempt = ConnectAttempt(connection, lambda reason: None)
        self.assertIs(attempt.buildProtocol(None), connection)
        connection.connectionLost(connectionDone)
        del connection, attempt
        self.assertEqual(gc.collect(), 0)
