"""The question to a server that may hang."""

import json

from twisted.internet.defer import fail
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactor, StringTransport
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config.endpoints import Endpoint
from llamaswap.liveness.probe import SocketProbe, page, token

HERE = Endpoint("http", "127.0.0.1", 5800, "/base")


class CanaryTests(SynchronousTestCase):
    def setUp(self):
        self.reactor, self.clock = MemoryReactor(), Clock()
        ways = lambda endpoint, limit: [TCP4ClientEndpoint(self.reactor, endpoint.host, endpoint.port, timeout=limit)]
        self.asked = SocketProbe(self.clock, ways)(HERE, token(HERE, "kiwi"), 30.0)

    def connect(self):
        protocol = self.reactor.tcpClients[0][2].buildProtocol(None)
        self.wire = StringTransport()
        protocol.makeConnection(self.wire)
        return protocol

    def test_it_asks_for_one_token(self):
        self.connect()
        head, _, body = self.wire.value().partition(b"\r\n\r\n")
        self.assertTrue(head.startswith(b"POST /base/v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:5800"))
        self.assertIn(b"Content-Length: %d" % len(body), head)
        asked = json.loads(body)
        self.assertEqual((asked["model"], asked["max_tokens"]), ("kiwi", 1))

    def test_it_may_ask_for_a_page(self):
        self.assertEqual(
            page(HERE, "health"),
            b"GET /base/health HTTP/1.1\r\nHost: 127.0.0.1:5800\r\nUser-Agent: llamaswap\r\nConnection: close\r\n\r\n",
        )

    def test_any_answer_is_a_sign_of_life(self):
        self.connect().dataReceived(b"HTTP/1.1 404 Not Found\r\n")
        self.assertTrue(self.successResultOf(self.asked))
        self.assertTrue(self.wire.disconnecting or self.wire.disconnected)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_silence_is_none(self):
        self.connect()
        self.clock.advance(29.9)
        self.assertNoResult(self.asked)
        self.clock.advance(0.2)
        self.assertFalse(self.successResultOf(self.asked))

    def test_a_connection_that_is_not_taken_is_none_either(self):
        way = type("Way", (), {"connect": lambda self, factory: fail(ConnectionRefusedError())})()
        asked = SocketProbe(self.clock, lambda endpoint, limit: [way])(HERE, token(HERE, "kiwi"), 30.0)
        self.assertFalse(self.successResultOf(asked))
