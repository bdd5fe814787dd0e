"""Heads are judged, chunked bodies are walked to their exact end."""

from itertools import pairwise

import httptools
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.proxy.framing import (
    HEADER_COUNT,
    ChunkWalker,
    HeadTooLarge,
    MalformedMessage,
    as_chunk,
    find_head_end,
    parse_request,
    parse_response,
)


def request(*lines, host=(b"Host: x",)):
    return parse_request(b"\r\n".join([*lines, *host]) + b"\r\n\r\n")


def response(*lines, bodyless=False):
    return parse_response(b"\r\n".join(lines) + b"\r\n\r\n", bodyless=bodyless)


class RequestHeadTests(SynchronousTestCase):
    def test_headers_keep_order_case_and_repetition(self):
        head, framing = request(
            b"POST /a%2Fb?c=d HTTP/1.1", b"hOst: x", b"A: 1 \t", b"a: 2", b"Content-Length: 7", host=()
        )
        self.assertEqual(head.target, b"/a%2Fb?c=d")
        self.assertEqual(head.headers, [(b"hOst", b"x"), (b"A", b"1"), (b"a", b"2"), (b"Content-Length", b"7")])
        self.assertEqual((framing.length, framing.keep_alive, framing.expects), (7, True, False))

    def test_connection_header_and_version_decide_about_keeping_alive(self):
        for lines, kept in (
            ((b"GET / HTTP/1.1",), True),
            ((b"GET / HTTP/1.1", b"Connection: foo, Close"), False),
            ((b"GET / HTTP/1.0",), False),
            ((b"GET / HTTP/1.0", b"Connection: Keep-Alive"), True),
        ):
            self.assertIs(request(*lines)[1].keep_alive, kept, lines)

    def test_smuggling_shapes_are_refused(self):
        post = b"POST / HTTP/1.1"
        for lines in (
            (post, b"Content-Length: 3", b"Transfer-Encoding: chunked"),
            (post, b"Transfer-Encoding: chunked", b"Content-Length: 3"),
            (post, b"Content-Length: 3", b"Content-Length: 4"),
            (post, b"Content-Length: 3, 3"),
            (post, b"Content-Length: +3"),
            (post, b"Content-Length: "),
            (post, b"Transfer-Encoding: identity"),
            (post, b"Transfer-Encoding: xchunked"),
            (post, b"Transfer-Encoding: gzip, chunked"),
            (post, b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
            (b"POST / HTTP/1.0", b"Transfer-Encoding: chunked"),
            (post, b"A: b", b" folded"),
            (post, b"A : b"),
            (post, b"A: b\x00c"),
            (post, b"A: b\nB: c"),
            (post, b"Host: b"),
            (b"GET / HTTP/2.0",),
            (b"GET / HTTP/0.9",),
            (b"CONNECT a:1 HTTP/1.1",),
            (b"nonsense",),
        ):
            with self.assertRaises(MalformedMessage, msg=repr(lines)):
                request(*lines)

    def test_a_request_without_a_host_is_refused_unless_it_is_of_version_1_0(self):
        with self.assertRaises(MalformedMessage):
            request(b"GET / HTTP/1.1", b"A: b", host=())
        self.assertEqual(request(b"GET / HTTP/1.0", b"A: b", host=())[0].headers, [(b"A", b"b")])

    def test_absolute_targets_become_paths(self):
        for target, path in (
            (b"http://x/v1/a%2Fb?c", b"/v1/a%2Fb?c"),
            (b"HTTP://x", b"/"),
            (b"https://x?c=/", b"/?c=/"),
            (b"*", b"*"),
        ):
            self.assertEqual(request(b"OPTIONS " + target + b" HTTP/1.1")[0].target, path)

    def test_letters_of_other_alphabets_in_a_target_are_read_as_if_they_had_been_escaped(self):
        line = "GET /upstream/Ü/ä%20b?q=é HTTP/1.1"
        for encoded, target in (
            (line.encode(), b"/upstream/%C3%9C/%C3%A4%20b?q=%C3%A9"),
            (line.encode("latin-1"), b"/upstream/%DC/%E4%20b?q=%E9"),
        ):
            head, _ = request(encoded, b"X-Name: \xc3\xa4")
            self.assertEqual((head.target, head.headers[0]), (target, (b"X-Name", b"\xc3\xa4")))
        for malformed in ("GÉT / HTTP/1.1", "GET / HTTP/1.é"):
            with self.assertRaises(MalformedMessage):
                request(malformed.encode())

    def test_too_many_fields_are_too_large(self):
        request(b"GET / HTTP/1.1", *[b"A: b"] * (HEADER_COUNT - 1))
        with self.assertRaises(HeadTooLarge):
            request(b"GET / HTTP/1.1", *[b"A: b"] * HEADER_COUNT)

    def test_head_end_is_found_or_refused(self):
        self.assertEqual(find_head_end(b"GET / HTTP/1.1\r\nA: b\r\n\r\nrest"), 24)
        self.assertEqual(find_head_end(b"GET / HTTP/1.1\r\nA: b\r\n"), -1)
        with self.assertRaises(MalformedMessage):
            find_head_end(b"GET / HTTP/1.1\nA: b\n\n")
        with self.assertRaises(HeadTooLarge):
            find_head_end(b"GET / HTTP/1.1\r\nA: " + b"b" * 65536)


class ResponseHeadTests(SynchronousTestCase):
    def test_chunks_count_more_than_a_length_beside_them(self):
        head = response(b"HTTP/1.1 200 OK", b"Content-Length: 3", b"Transfer-Encoding: chunked")
        self.assertEqual((head.length, head.chunked), (None, True))
        self.assertEqual(head.headers, [(b"Transfer-Encoding", b"chunked")])

    def test_answer_without_either_ends_with_the_connection(self):
        self.assertTrue(response(b"HTTP/1.1 200 OK").until_close)
        self.assertTrue(response(b"HTTP/1.1 200 OK", b"Transfer-Encoding: gzip").until_close)

    def test_bodyless_answers_have_no_length(self):
        self.assertEqual(response(b"HTTP/1.1 204 No", b"Content-Length: 5").length, 0)
        self.assertEqual(response(b"HTTP/1.1 304 No", b"Content-Length: 5").length, 0)
        self.assertEqual(response(b"HTTP/1.1 200 OK", b"Content-Length: 5", bodyless=True).length, 0)

    def test_reason_may_be_missing(self):
        self.assertEqual(response(b"HTTP/1.1 200", b"Content-Length: 0").reason, b"")

    def test_old_server_closes(self):
        self.assertFalse(response(b"HTTP/1.0 200 OK", b"Content-Length: 0").keep_alive)

    def test_a_status_below_100_is_no_answer(self):
        for status in (b"099", b"000"):
            self.assertRaises(MalformedMessage, response, b"HTTP/1.1 " + status + b" Odd", b"Content-Length: 0")

    def test_switch_without_its_headers_is_still_a_head(self):
        self.assertEqual(response(b"HTTP/1.1 101 Switching").status, 101)


chunks = st.lists(st.binary(min_size=1, max_size=40), max_size=6)


def slices(data, cuts):
    points = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(points)]


class ChunkWalkerTests(SynchronousTestCase):
    @settings(max_examples=150, deadline=None)
    @given(chunks, st.lists(st.integers(0, 500), max_size=8), st.binary(max_size=20), st.booleans())
    def test_end_is_exact_for_any_slicing(self, bodies, cuts, behind, trailer):
        data = b"".join(as_chunk(body) for body in bodies) + b"0\r\n" + (b"Sum: 1\r\n" if trailer else b"") + b"\r\n"
        walker, pieces, walked = ChunkWalker(), [], 0
        for piece in slices(data + behind, cuts):
            used = walker.feed(piece, pieces)
            walked += used
            if walker.done:
                break
            self.assertEqual(used, len(piece))
        self.assertTrue(walker.done)
        self.assertEqual(walked, len(data))
        self.assertEqual(b"".join(pieces), b"".join(bodies))
        self.assertEqual(walker.payload, sum(map(len, bodies)))

    @settings(max_examples=200, deadline=None)
    @given(
        st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"0", b"1", b"a", b";", b" ", b"\r\n\r\n", b"x"]), max_size=14)
    )
    def test_accepted_chunks_are_accepted_by_llhttp_too(self, parts):
        data = b"".join(parts)
        walker = ChunkWalker()
        try:
            used = walker.feed(data, None)
        except MalformedMessage:
            return
        parser = httptools.HttpRequestParser(object())
        parser.feed_data(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        if walker.done and b";" not in data and b"x" not in data:
            parser.feed_data(data[:used])

    def test_a_trailer_that_speaks_of_framing_is_refused(self):
        for trailer in (b"Content-Length: 5", b"transfer-encoding: chunked", b"Content-length:"):
            with self.assertRaises(MalformedMessage):
                ChunkWalker().feed(b"0\r\n" + trailer + b"\r\n\r\n", None)
        walker = ChunkWalker()
        walker.feed(b"0\r\nContent-Length-Was: 5\r\n\r\n", None)
        self.assertTrue(walker.done)

    def test_odd_chunks_are_refused(self):
        for data in (
            b"g\r\n",
            b"-1\r\n",
            b"+1\r\n",
            b"0x1\r\n",
            b"1\n",
            b"\r\n",
            b"1\r\nab\r\n",
            b"1 \r\n",
            b"f" * 16 + b"\r\n",
        ):
            with self.assertRaises(MalformedMessage, msg=repr(data)):
                ChunkWalker().feed(data, None)

    def test_endless_lines_are_refused(self):
        for data in (b"1;" + b"a" * 5000, b"0\r\n" + b"A: b\r\n" * 4000, b"0\r\nno field\r\n"):
            with self.assertRaises(MalformedMessage):
                ChunkWalker().feed(data, None)
