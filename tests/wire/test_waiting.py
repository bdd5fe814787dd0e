"""Notices in the form of each API, and the Prefer header."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.wire.model_routes import generates_text
from llamaswap.wire.waiting import notice, preferred_wait


class NoticeTests(SynchronousTestCase):
    def test_readers_of_events_skip_a_comment(self):
        self.assertEqual(notice("/v1/chat/completions", {"eta": 3}), b': llamaswap {"eta":3}\n\n')

    def test_anthropics_clients_get_a_ping(self):
        ping = b'event: ping\ndata: {"type":"ping","llamaswap":{"eta":3}}\n\n'
        self.assertEqual(notice("/v1/messages", {"eta": 3}), ping)

    def test_only_text_is_streamed_as_events(self):
        for path in ("/v1/chat/completions", "/v/completions", "/v1/responses", "/api/v0/chat/completions", "/infill"):
            self.assertTrue(generates_text(path), path)
        for path in ("/v1/audio/speech", "/v1/audio/transcriptions", "/v1/embeddings", "/v1/chat/completions/batch"):
            self.assertFalse(generates_text(path), path)


class PreferTests(SynchronousTestCase):
    def test_wait_is_found_among_other_preferences(self):
        for header in (b"wait=7", b"respond-async, wait=7", b'foo; bar=1, Wait = "7"', b"wait=7; x=y, return=minimal"):
            self.assertEqual(preferred_wait(header), 7.0, header)

    def test_other_headers_set_no_bound(self):
        for header in (None, b"", b"respond-async", b"wait", b"wait=-1", b"wait=soon", b"await=7", b"wait=1234567890"):
            self.assertIsNone(preferred_wait(header), header)
