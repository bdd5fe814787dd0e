"""The client for requests beside the data path, against a web server in memory."""

from treq.testing import RequestTraversalAgent
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from llamaswap.http_client import BODY_LIMIT, HttpClient, RequestFailed


class EchoPage(Resource):
    """Answers with what it got; other paths misbehave."""

    isLeaf = True
    last = None

    def render(self, request):
        self.last = request
        request.received = request.content.read()
        path = request.path
        if path == b"/moved":
            request.redirect(b"http://elsewhere.test/")
            return b"gone there"
        if path == b"/cookie":
            request.addCookie(b"session", b"1")
        if path in (b"/stalls", b"/silent"):
            if path == b"/stalls":
                request.write(b"half")
            return NOT_DONE_YET
        request.setResponseCode(404 if path == b"/missing" else 200)
        return request.received or b"empty"

    render_GET = render_POST = render


class HttpClientTests(SynchronousTestCase):
    def setUp(self):
        self.clock, self.page = Clock(), EchoPage()
        self.agent = RequestTraversalAgent(self.page)
        self.client = HttpClient(self.clock, self.agent)

    def send(self, path, method="GET", **more):
        response = self.client(method, f"http://server.test{path}", timeout=10.0, **more)
        self.agent.flush()
        self.clock.advance(0)  # a body is sent on the reactor's next turn
        self.agent.flush()
        return response

    def test_response_has_status_and_body(self):
        response = self.successResultOf(self.send("/"))
        self.assertEqual((response.status, response.body), (200, b"empty"))
        self.assertEqual(self.successResultOf(self.send("/missing")).status, 404)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_body_is_sent_as_json_with_the_given_headers(self):
        response = self.send("/", "POST", body=b'{"a": 1}', headers={"Authorization": "Bearer k"})
        self.assertEqual(self.successResultOf(response).body, b'{"a": 1}')
        sent = self.page.last.requestHeaders
        self.assertEqual(sent.getRawHeaders("content-type"), ["application/json"])
        self.assertEqual(sent.getRawHeaders("authorization"), ["Bearer k"])

    def test_redirect_is_not_followed(self):
        response = self.successResultOf(self.send("/moved"))
        self.assertEqual((response.status, response.body), (302, b"gone there"))

    def test_cookies_are_not_kept(self):
        self.successResultOf(self.send("/cookie"))
        self.successResultOf(self.send("/"))
        self.assertIsNone(self.page.last.requestHeaders.getRawHeaders("cookie"))

    def test_silent_server_fails_the_request_at_the_timeout(self):
        response = self.send("/silent")
        self.clock.advance(9.9)
        self.assertNoResult(response)
        self.clock.advance(0.2)
        self.assertEqual(str(self.failureResultOf(response, RequestFailed).value), "no response within 10 s")

    def test_response_that_stalls_in_its_body_fails_and_its_connection_is_closed(self):
        response, ended = self.send("/stalls"), self.page.last.notifyFinish()
        self.clock.advance(10.0)
        self.agent.flush()
        self.failureResultOf(response, RequestFailed)
        self.failureResultOf(ended)

    def test_body_over_the_limit_fails_and_its_connection_is_closed(self):
        response, ended = self.send("/stalls"), self.page.last.notifyFinish()
        self.page.last.write(b" " * BODY_LIMIT)
        self.agent.flush()
        self.assertIn(str(BODY_LIMIT), str(self.failureResultOf(response, RequestFailed).value))
        self.failureResultOf(ended)

    def test_cancelled_request_closes_its_connection_and_stays_cancelled(self):
        response, ended = self.send("/stalls"), self.page.last.notifyFinish()
        response.cancel()
        self.agent.flush()
        self.failureResultOf(response, CancelledError)
        self.failureResultOf(ended)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_refused_connection_is_explained_in_one_line(self):
        answer = Deferred()
        self.client = HttpClient(self.clock, type("Agent", (), {"request": lambda *_, **__: answer})())
        response = self.client("GET", "http://server.test/", timeout=1.0)
        answer.errback(ConnectionRefusedError("111: refused"))
        reason = str(self.failureResultOf(response, RequestFailed).value)
        self.assertEqual(reason, "Connection was refused by other side: 111: refused")
