"""Whatever bytes come, from clients or servers: nothing raises, nothing grows, nothing crosses that must not."""

import json
import math

from attrs import asdict
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.wire import headers as header_rules
from llamaswap.wire.form import MultipartScan
from llamaswap.wire.usage import LINE_BOUND, LINE_TAIL, StreamScanner, from_document, from_fragment, from_lines

few = settings(max_examples=150, deadline=None)

KNOWN = (
    *("usage", "timings", "metrics", "message", "response", "prompt_tokens", "completion_tokens", "total_tokens"),
    *("input_tokens", "output_tokens", "prompt_tokens_details", "cached_tokens", "prompt_n", "predicted_n"),
    *("prompt_ms", "predicted_ms", "cache_n", "draft_n", "draft_n_accepted", "prompt_per_second"),
    *("predicted_per_second", "cache_read_input_tokens"),
)
odd = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=4),
)
hostile = st.recursive(
    odd, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KNOWN), inner, max_size=6)
)
sizes = st.lists(st.integers(1, 40), max_size=30)


def sliced(data, cuts):
    """`data` in pieces of these sizes, the rest in one."""
    for size in cuts:
        if not data:
            return
        yield data[:size]
        data = data[size:]
    if data:
        yield data


class UsageTests(SynchronousTestCase):
    def sane(self, usage):
        if usage is not None:
            for name, value in asdict(usage).items():
                self.assertTrue(math.isfinite(value) and value >= -1, (name, value))
                self.assertTrue(isinstance(value, float) or value < 2**63, (name, value))

    @few
    @given(hostile, st.sampled_from(("", "/infill")))
    @example({"usage": {"prompt_tokens": 1e999}}, "")
    @example({"usage": {"prompt_tokens": 10**400}}, "")
    @example({"timings": {"prompt_n": -2, "cache_n": -5, "draft_n": -7, "draft_n_accepted": 1}}, "")
    @example({"metrics": {"time_to_first_token_ms": 5e-324, "mean_itl_ms": 5e-324}, "usage": {"prompt_tokens": 5}}, "")
    def test_no_answer_makes_nonsense_of_the_numbers(self, answer, path):
        document = json.dumps(answer).encode()
        for usage in (from_document(document, path), from_lines([b"data: " + document]), from_fragment(document)):
            self.sane(usage)

    @few
    @given(st.binary(max_size=300), sizes)
    @example(b"[" * 200_000, [])
    @example(b'data: {"usage":' * 50_000, [])
    def test_garbage_is_survived_and_bounded(self, noise, cuts):
        self.sane(from_document(noise))
        self.sane(from_fragment(noise))
        scanner = StreamScanner()
        for piece in sliced(noise, cuts):
            scanner.feed(piece)
            self.assertLessEqual(len(scanner.carry), LINE_BOUND + LINE_TAIL + len(piece))
        self.sane(from_lines(scanner.lines()))


class MultipartTests(SynchronousTestCase):
    part = st.tuples(
        st.sampled_from(("model", "stream", "file", "language", 'mo"del', "")),
        st.sampled_from(("", '; filename="a.wav"', "; filename=model")),
        st.binary(max_size=80).filter(lambda data: b"--XX" not in data),
    )

    @few
    @given(st.lists(part, max_size=6), sizes, st.binary(max_size=20))
    def test_values_stand_where_they_are_said_to_stand(self, parts, cuts, behind):
        data = b""
        for name, more, content in parts:
            quoted = name.replace('"', "%22")
            data += b'--XX\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n' % (quoted.encode(), more.encode())
            data += content + b"\r\n"
        data += b"--XX--\r\n" + behind
        scan = MultipartScan.of(b"multipart/form-data; boundary=XX")
        for piece in sliced(data, cuts):
            scan.feed(piece)
        if parts:
            self.assertFalse(scan.broken)
            self.assertTrue(scan.ended)
        wanted = [content for name, more, content in parts if name in ("model", "stream") and not more]
        self.assertEqual([data[place.start : place.end] for place in scan.places], wanted)

    shards = st.lists(st.sampled_from((b"--XX", b"\r\n", b"--", b"name=", b'"', b"model", b":", b"\x00")), max_size=40)

    @few
    @given(shards, sizes)
    def test_garbage_is_survived(self, parts, cuts):
        scan = MultipartScan.of(b"multipart/form-data; boundary=XX")
        for piece in sliced(b"".join(parts), cuts):
            scan.feed(piece)
        for place in scan.places:
            self.assertLessEqual(place.start, place.end)


class HeaderTests(SynchronousTestCase):
    names = st.sampled_from(
        (
            *(b"Connection", b"CONNECTION", b"Keep-Alive", b"Proxy-Authorization", b"TE", b"Trailer", b"Upgrade"),
            *(b"Transfer-Encoding", b"Content-Length", b"Proxy-Connection", b"X-A", b"x-b", b"Host", b"Authorization"),
            *(b"X-Forwarded-For", b"Accept-Encoding", b"x-api-key", b"Content-Type"),
        )
    )
    values = st.sampled_from(
        (b"", b"close", b"x-a, X-B", b"keep-alive, upgrade", b"websocket", b"host", b"chunked", b"7", b"gzip, br", b"k")
    )
    lists = st.lists(st.tuples(names, values), max_size=12)
    never = frozenset((b"keep-alive", b"proxy-connection", b"proxy-authorization"))

    def check(self, given_headers, crossed):
        lower = [name.lower() for name, _ in crossed]
        self.assertEqual([name for name in lower if name in self.never], [])
        self.assertEqual(lower.count(b"transfer-encoding") + lower.count(b"content-length"), 0, "the client's framing")
        named = set(header_rules.tokens(given_headers, b"connection"))
        self.assertFalse({b"x-a", b"x-b"} & named & set(lower), "named by Connection, and crossed")

    @few
    @given(lists, st.booleans())
    def test_towards_a_server(self, headers, metered):
        options = {"metered": metered, "key_headers": frozenset([b"x-api-key"])}
        crossed = header_rules.to_local(headers, socket_address="10.0.0.1", **options)
        self.check(headers, crossed)
        self.assertNotIn(b"x-api-key", [name.lower() for name, _ in crossed])
        crossed = header_rules.to_peer(headers, authority=b"peer", api_key=b"mine", **options)
        self.check(headers, crossed)
        lower = [name.lower() for name, _ in crossed]
        self.assertEqual([value for name, value in crossed if name.lower() == b"host"], [b"peer"])
        self.assertEqual((lower.count(b"authorization"), lower.count(b"x-api-key")), (1, 1))

    @few
    @given(lists)
    def test_towards_a_client(self, headers):
        crossed = header_rules.to_client(headers).items
        lower = [name.lower() for name, _ in crossed]
        self.assertEqual([name for name in lower if name in self.never], [])
        named = set(header_rules.tokens(headers, b"connection"))
        self.assertFalse({b"x-a", b"x-b"} & named & set(lower))
