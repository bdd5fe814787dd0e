"""How an answer's head says where it ends, and what comes after it on the connection."""

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.proxy.exchange import RequestHead
from llamaswap.proxy.response_framer import ResponseFramer
from llamaswap.wire.headers import EVENT_STREAM, ResponseHeaders


class ConnectionHeaders(SynchronousTestCase):
    def said(self, version, keep_alive):
        framer = ResponseFramer(
            RequestHead(b"POST", b"/", [], version), 200, ResponseHeaders.of(list(EVENT_STREAM)), raw=False
        )
        lines = framer.head(b"OK", keep_alive=keep_alive).split(b"\r\n")
        return [line for line in lines if line.lower().startswith(b"connection:")]

    def test_a_loading_stream_does_not_promise_to_stay_on_a_connection_that_will_close(self):
        self.assertEqual(self.said((1, 1), True), [b"Connection: keep-alive"])
        self.assertEqual(self.said((1, 1), False), [b"Connection: close"])
        self.assertEqual(self.said((1, 0), False), [b"Connection: close"])

    def test_response_without_content_has_no_content_length(self):
        for version in ((1, 1), (1, 0)):
            for status, said in ((204, 0), (304, 1), (200, 1)):
                headers = ResponseHeaders.of([(b"content-length", b"0"), (b"A", b"b")])
                framer = ResponseFramer(RequestHead(b"GET", b"/", [], version), status, headers, raw=True)
                head = framer.head(b"", keep_alive=True).lower()
                self.assertEqual((head.count(b"content-length"), head.count(b"a: b")), (said, 1))


class CrossOriginHeaders(SynchronousTestCase):
    def allowed(self, *sent, request=((b"Origin", b"http://a.b"),), origins=("*",)):
        """The origins that a response allows, whose server sent these."""
        headers = ResponseHeaders.of([(b"Access-Control-Allow-Origin", origin) for origin in sent])
        head = RequestHead(b"POST", b"/", [*request])
        framer = ResponseFramer(head, 200, headers, raw=True, origins=origins)
        lines = framer.head(b"OK", keep_alive=True).split(b"\r\n")
        return [line.partition(b": ")[2] for line in lines if line.startswith(b"Access-Control-Allow-Origin")]

    def test_a_page_of_another_site_may_read_a_response_whatever_the_server_sent(self):
        self.assertEqual(self.allowed(), [b"*"])
        self.assertEqual(self.allowed(b"http://a.b"), [b"http://a.b"])
        self.assertEqual(self.allowed(b"http://a.b", b"*"), [b"http://a.b"])

    def test_only_a_page_of_a_listed_origin_may_read_a_response_if_origins_are_listed(self):
        self.assertEqual(self.allowed(origins=("http://a.b",)), [b"http://a.b"])
        self.assertEqual(self.allowed(b"*", b"http://x", origins=("http://a.b",)), [b"http://a.b"])
        self.assertEqual(self.allowed(b"*", origins=("http://c.d",)), [])
        self.assertEqual(self.allowed(origins=()), [])
        self.assertEqual(self.allowed(b"*", request=(), origins=("http://a.b",)), [])

    def test_a_response_to_a_request_without_an_origin_stays_as_the_server_sent_it(self):
        self.assertEqual(self.allowed(request=()), [])
        self.assertEqual(self.allowed(b"*", b"*", request=()), [b"*", b"*"])
