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
