"""Captures, what they keep, and what they hold meanwhile."""

import os

import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.observe.activity_recorder import HeadTailBuffer
from llamaswap.observe.captures import (
    ENTRY_BYTES,
    WITHOUT_REQUEST_BODY,
    WITHOUT_RESPONSE_BODY,
    Blob,
    Capture,
    Captures,
    bundles,
    pack,
    unpack,
)
from llamaswap.observe.redact import canonical, shown
from tests.observe.doubles import traced_memory

BODIES = st.none() | st.binary(max_size=50)


class PackingTests(SynchronousTestCase):
    @settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no fault
    @given(BODIES, BODIES, st.none() | st.dictionaries(st.text(max_size=5), st.text(max_size=5)))
    def test_packed_captures_are_unpacked_unchanged(self, asked, answered, headers):
        capture = Capture("/é", headers, asked, headers, answered)
        other = Capture("/other", None, b"1", {"A": "é"}, b"2")
        blob = pack([(7, other), (8, capture), (9, other)], zstandard.ZstdCompressor())
        self.assertEqual([unpack(blob, number) for number in (7, 8, 9)], [other, capture, other])
        self.assertRaises(ValueError, unpack, blob, 10)

    def test_neighbours_are_packed_together_up_to_a_size(self):
        small, large = Capture("/s", None, b"1", None, b"2"), Capture("/l", None, bytes(200_000), None, None)
        self.assertEqual([len(some) for some in bundles([(n, small) for n in range(130)])], [64, 64, 2])
        mixed = [(1, small), (2, large), (3, small), (4, small)]
        self.assertEqual([[n for n, _ in some] for some in bundles(mixed)], [[1], [2], [3, 4]])
        self.assertEqual(list(bundles([])), [])

    def test_document_of_a_capture_shows_missing_parts_as_null(self):
        self.assertEqual(
            Capture("/p", {"A": "1"}, b"", None, None).document(7),
            {
                "id": 7,
                "req_path": "/p",
                "req_headers": {"A": "1"},
                "req_body": "",
                "resp_headers": None,
                "resp_body": None,
            },
        )
        self.assertEqual(Capture("/p", None, b"a?", None, b"\xff").document(1)["req_body"], "YT8=")


class CaptureStoreTests(SynchronousTestCase):
    def test_blob_larger_than_the_budget_is_not_kept_and_evicts_none(self):
        captures = Captures(1)
        captures.put(Blob([1], b"x"))
        captures.put(Blob([2], os.urandom(1024 * 1024 + 1)))
        self.assertEqual((captures.has(1), captures.has(2), captures.used), (True, False, 1 + ENTRY_BYTES))
        self.assertIsNone(captures.get(2))

    def test_smaller_budget_evicts_the_oldest_captures(self):
        captures = Captures(2)
        for number in (1, 2, 3):
            captures.put(Blob([number, -number], bytes(600 * 1024)))
        captures.resize(1)
        self.assertEqual([captures.has(number) for number in (1, 2, 3)], [False, False, True])
        self.assertEqual([captures.has(-number) for number in (1, 2, 3)], [False, False, True])
        captures.resize(-3)
        self.assertEqual((captures.used, captures.enabled), (0, False))

    def test_number_of_small_captures_is_bounded(self):
        captures = Captures(1)
        for number in range(20_000):
            captures.put(Blob([number], b"x"))
        kept = [number for number in range(20_000) if captures.has(number)]
        self.assertLess(len(kept), 1024 * 1024 // ENTRY_BYTES)
        self.assertEqual(kept[-1], 19_999)

    def test_blob_takes_no_more_memory_than_its_bytes(self):
        capture = Capture("/p", None, b"w " * 50_000, None, b"")
        blob = pack([(1, capture)], zstandard.ZstdCompressor())
        before = traced_memory(lambda: pack([(1, capture)], zstandard.ZstdCompressor()))
        self.assertLess(before, len(blob.data) + 5_000)

    def test_clear_drops_all_captures(self):
        captures = Captures(1)
        captures.put(Blob([1], b"x"))
        captures.clear()
        self.assertEqual((captures.has(1), captures.used), (False, 0))

    def test_audio_images_and_uploads_are_left_out(self):
        for path, kept in (
            ("/v1/audio/speech", (True, False)),
            ("/v1/audio/voices", (False, True)),
            ("/v1/audio/transcriptions", (False, True)),
            ("/v1/images/generations", (True, False)),
            ("/v1/images/edits", (False, False)),
            ("/sdapi/v1/txt2img", (True, False)),
            ("/sdapi/v1/img2img", (False, False)),
            ("/v1/chat/completions", (True, True)),
            ("/elsewhere", (True, True)),
        ):
            found = (path not in WITHOUT_REQUEST_BODY, path not in WITHOUT_RESPONSE_BODY)
            self.assertEqual(found, kept, path)


class RedactionTests(SynchronousTestCase):
    def test_secrets_in_any_case_are_replaced_and_first_values_win(self):
        names = (b"AUTHORIZATION", b"Proxy-authorization", b"cookie", b"Set-Cookie", b"x-API-key")
        self.assertEqual(set(shown((name, b"secret") for name in names).values()), {"[REDACTED]"})

    def test_key_inside_a_header_is_redacted(self):
        headers = [
            (b"Sec-WebSocket-Protocol", b"realtime, openai-insecure-api-key.sk-1, openai-beta.realtime-v1"),
            (b"Referer", b"https://chat.example/page?key=sk-1&x=2"),
        ]
        expected = {
            "Sec-Websocket-Protocol": "realtime, openai-insecure-api-key.[REDACTED], openai-beta.realtime-v1",
            "Referer": "https://chat.example/page?[REDACTED]",
        }
        self.assertEqual(shown(headers), expected)
        self.assertEqual(shown([(b"a-b", b"1"), (b"A-B", b"2")]), {"A-B": "1"})

    def test_header_names_are_canonical(self):
        self.assertEqual(canonical(b"x-REQUEST-id"), "X-Request-Id")


class HeadTailBufferTests(SynchronousTestCase):
    @given(st.lists(st.binary(max_size=40), max_size=30), st.integers(2, 60))
    def test_small_bodies_are_whole_and_large_ones_keep_their_ends(self, parts, bound):
        tape = HeadTailBuffer(bound)
        for part in parts:
            tape.add(part)
        whole = b"".join(parts)
        self.assertLessEqual(len(tape.content()), 2 * bound)
        if len(whole) <= bound:
            self.assertEqual((tape.content(), tape.complete), (whole, True))
        else:
            self.assertFalse(tape.complete)
            self.assertTrue(whole.startswith(tape.content()[: bound // 2]))
            self.assertTrue(whole.endswith(tape.content()[-(bound // 2) :]))

    @given(
        st.lists(st.binary(max_size=40), max_size=20), st.lists(st.binary(max_size=40), max_size=9), st.integers(2, 60)
    )
    def test_buffer_taken_over_is_like_added_bytes(self, held, later, bound):
        tape, other = HeadTailBuffer(bound), HeadTailBuffer(bound)
        tape.take_over(bytearray(b"".join(held)))
        other.add(b"".join(held))
        for part in later:
            tape.add(part)
            other.add(part)
        self.assertEqual((tape.content(), tape.complete), (other.content(), other.complete))
