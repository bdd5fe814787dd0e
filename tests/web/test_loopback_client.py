from twisted.internet.defer import CancelledError, succeed
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from twisted.web.client import ResponseDone, ResponseFailed
from twisted.web.iweb import IAgent
from zope.interface import implementer

from llamaswap.web.loopback_client import LoopbackClient


class Response:
    code = 200

    def deliverBody(self, protocol):
        self.protocol = protocol
        self.transport = StringTransport()
        protocol.makeConnection(self.transport)


@implementer(IAgent)
class FakeAgent:
    def __init__(self):
        self.response = Response()

    def request(self, method, uri, headers=None, bodyProducer=None):
        self.asked = (method, uri, headers)
        return succeed(self.response)


class SelfSenderTests(TestCase):
    def setUp(self):
        self.agent = FakeAgent()
        self.pieces = []
        sender = LoopbackClient(self.agent, lambda: b"http://127.0.0.1:9", lambda: b"k")
        self.done = sender("/v1/chat/completions", b"{}", self.pieces.append)

    def test_pieces_are_passed_on_and_the_status_comes_at_the_end(self):
        method, uri, headers = self.agent.asked
        self.assertEqual((method, uri), (b"POST", b"http://127.0.0.1:9/v1/chat/completions"))
        self.assertEqual(headers.getRawHeaders(b"x-api-key"), [b"k"])
        self.agent.response.protocol.dataReceived(b"data: 1")
        self.assertNoResult(self.done)
        self.agent.response.protocol.connectionLost(Failure(ResponseDone()))
        self.assertEqual((self.successResultOf(self.done), self.pieces), (200, [b"data: 1"]))

    def test_a_broken_answer_is_a_failure(self):
        self.agent.response.protocol.connectionLost(Failure(ResponseFailed([])))
        self.failureResultOf(self.done, ResponseFailed)

    def test_cancelling_closes_the_connection(self):
        self.done.cancel()
        self.failureResultOf(self.done, CancelledError)
        self.assertEqual(self.agent.response.transport.producerState, "stopped")
