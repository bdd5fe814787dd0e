"""Heads that were read before, against the parser that reads every head."""

import re

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.proxy import framing, response_framer
from llamaswap.proxy.exchange import RequestHead
from llamaswap.proxy.fastpath.known_heads import HEADS_KEPT, parse_response, request_parser, to_client
from llamaswap.proxy.framing import LAST_CHUNK, MalformedMessage
from llamaswap.proxy.response_framer import ResponseFramer
from llamaswap.wire import headers as header_rules
from tests.proxy.doubles import OK, POST, STREAM, World

LINES = [
    b"Host: a",
    b"Host: b",
    b"Authorization: Bearer one",
    b"Authorization: Bearer two",
    b"Content-Length: 5",
    b"Content-Length: 0",
    b"Content-Length: 1234",
    b"content-length:17",
    b"Content-Length: 007",
    b"Content-Length:  8",
    b"X-Content-Length: 9",
    b"X-Note: Content-Length: 3",
    b"Transfer-Encoding: chunked",
    b"Connection: close",
    b"Connection: keep-alive",
    b"Connection: date",
    b"Content-Type: text/event-stream",
    b"Content-Type: application/json",
    b"Date: Sat, 28 Nov 2026 20:00:00 GMT",
    b"Server: uvicorn",
    b"Expect: 100-continue",
    b"Origin: http://page",
    b"Access-Control-Allow-Origin: *",
]
some_lines = st.lists(st.sampled_from(LINES), max_size=7)


def request(lines, first=b"POST /v1/chat/completions?a=b HTTP/1.1"):
    return b"\r\n".join([first, *lines, b"", b""])


def outcome(parse, raw):
    """What parsing gives, comparable."""
    try:
        return parse(raw)
    except MalformedMessage as error:
        return type(error), str(error)


class KnownRequestHeadTests(SynchronousTestCase):
    @given(st.lists(st.tuples(st.sampled_from([b"1.0", b"1.1"]), some_lines), max_size=12))
    def test_heads_are_read_as_the_parser_reads_them_in_any_order(self, heads):
        parse = request_parser()
        for version, lines in [*heads, *heads]:
            raw = request([b"Host: x", *lines], b"POST /v1/x HTTP/" + version)
            self.assertEqual(outcome(parse, raw), outcome(framing.parse_request, raw))

    def test_request_with_another_length_shares_what_is_known_of_its_head(self):
        parse = request_parser()
        lines = [b"Host: x", b"Authorization: Bearer k", b"Content-Length: %d"]
        short, long = (parse(request(lines) % length)[0] for length in (5, 70))
        self.assertIs(short.known, long.known)
        self.assertEqual(long.headers[2], (b"Content-Length", b"70"))
        self.assertEqual(short.headers[2], (b"Content-Length", b"5"))

    def test_request_with_another_key_shares_nothing(self):
        parse = request_parser()
        lines = [b"Host: x", b"Authorization: Bearer %b", b"Content-Length: 5"]
        mine, yours = (parse(request(lines) % key)[0] for key in (b"mine", b"yours"))
        self.assertIsNot(mine.known, yours.known)
        self.assertEqual(
            (mine.first(b"authorization"), yours.first(b"authorization")), (b"Bearer mine", b"Bearer yours")
        )

    def test_few_heads_are_kept(self):
        parse = request_parser()
        raw = [request([b"Host: x", b"X-Id: %d" % number, b"Content-Length: 5"]) for number in range(HEADS_KEPT + 1)]
        first = parse(raw[0])[0].known
        self.assertIs(parse(raw[0])[0].known, first)
        for other in raw:
            parse(other)
        self.assertIsNot(parse(raw[0])[0].known, first)


class KnownResponseHeadTests(SynchronousTestCase):
    def setUp(self):
        self.patch(response_framer, "date_line", lambda: b"Sat, 28 Nov 2026 20:00:00 GMT")

    @given(
        st.lists(st.tuples(st.sampled_from([200, 204, 304, 404]), some_lines), max_size=6),
        st.lists(
            st.tuples(
                st.sampled_from([None, b"http://page"]), st.booleans(), st.sampled_from([("*",), ("http://page",)])
            ),
            min_size=1,
            max_size=3,
        ),
        st.sampled_from([(1, 0), (1, 1)]),
    )
    def test_clients_get_the_same_heads_as_without_memory(self, heads, clients, version):
        for status, lines in [*heads, *heads]:
            raw = request(lines, b"HTTP/1.1 %d Fine" % status)
            expected = outcome(lambda head: framing.parse_response(head, bodyless=False), raw)
            head = outcome(lambda head: parse_response(head, bodyless=False), raw)
            self.assertEqual(head, expected)
            if isinstance(head, tuple):
                continue
            chunked = head.chunked and version >= (1, 1)
            headers = to_client(head, chunked=chunked)
            self.assertEqual(headers, header_rules.to_client(expected.headers, chunked=chunked))
            for origin, keep_alive, origins in clients:
                request_head = RequestHead(b"POST", b"/", [(b"Origin", origin)] if origin else [], version)
                written = [
                    ResponseFramer(request_head, status, some, raw=chunked, origins=origins).head(
                        head.reason, keep_alive=keep_alive
                    )
                    for some in (headers, header_rules.to_client(expected.headers, chunked=chunked))
                ]
                self.assertEqual(*written)

    @given(st.lists(st.sampled_from([b"", b"1", b"2"]), max_size=6), st.sampled_from([STREAM + LAST_CHUNK, OK]))
    def test_fields_added_for_one_client_do_not_reach_another(self, limits, answer):
        """Responses with the same head share what was made of it, and each key has its own limits."""
        world = World()

        def handler(exchange):
            exchange.added_headers = ((b"X-Limit", limit),) if limit else ()
            return world.forward(exchange)

        world.handler = handler
        dials = 0
        for limit in limits:
            client = world.client()
            client.give(POST)
            if world.dials > dials:  # else the pool kept the connection
                dials, server = world.dials, world.server()
            server.give(answer)
            found = re.findall(b"X-Limit: (.*)\r\n", client.took())
            self.assertEqual(found, [limit] if limit else [])

    def test_response_without_a_body_has_none_whatever_its_length_says(self):
        """A 304 and a 204 may name the length of a body that is not sent: the client would wait for it."""
        for status in (204, 304):
            for length in (0, 5, 5):
                raw = request([b"Server: x", b"Content-Length: %d" % length], b"HTTP/1.1 %d Fine" % status)
                self.assertEqual(parse_response(raw, bodyless=False).length, 0)
