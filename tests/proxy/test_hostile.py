"""Bytes of every kind from clients: each connection gets a response or is closed, and no other one is affected."""

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.proxy.doubles import World

ANSWER = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
HEADS = (
    b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
    b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n",
    b"POST /v1/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"3\r\nabc\r\n",
    b"0\r\n\r\n",
    b"POST /v1/x HTTP/1.0\r\n\r\n",
    b"GET http://other/v1/x HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v1/x HTTP/1.1\r\nHost: x\r\nConnection: close, upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"POST /v1/x HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n",
    b"\r\n",
    b"\x00\xff\x16\x03",
    b"GET ",
    b" HTTP/1.1\r\n",
    b"A: b\r\n",
    b"Transfer-Encoding : chunked\r\n",
    b"Content-Length: +3\r\n",
    b"Content-Length: 3, 3\r\n",
    b"-1\r\n",
    b"ffffffffffffffff\r\n",
)


class HostileTests(SynchronousTestCase):
    @settings(max_examples=200, deadline=None)
    @given(
        st.lists(st.sampled_from(HEADS) | st.binary(max_size=12), max_size=8),
        st.lists(st.integers(1, 60), max_size=12),
        st.booleans(),
    )
    def test_whatever_a_client_sends_harms_only_itself(self, parts, cuts, leaves):
        world = World(idle_timeout=75, head_timeout=60, body_timeout=120)
        client = world.client()
        data, answered = b"".join(parts), 0
        for size in [*cuts, len(data) or 1]:
            if client.closing or client.half_closed or not data:
                break
            client.give(data[:size])
            data = data[size:]
            while answered < world.dials:
                server = world.server(answered)
                answered += 1
                if server.side is not None and not server.closing:
                    server.give(ANSWER)
        answer = client.took()
        self.assertTrue(not answer or answer.startswith(b"HTTP/1."), answer[:80])
        self.assertLessEqual(answer.count(b"HTTP/1.1 400"), 1, "one refusal ends a connection")
        if leaves:
            client.lose()
        else:
            world.clock.pump([5] * 40)
            self.assertTrue(client.closing or client.aborted or client.half_closed, "an idle client is not kept")
        other = world.client()
        other.give(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertIn(b"site:/health", other.took())
        self.assertEqual(self.flushLoggedErrors(), [])
