"""Errors have the form that the client accepts."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.wire.openai import envelope, kind


class EnvelopeTests(SynchronousTestCase):
    def test_json_is_the_default_form(self):
        """http T036"""
        content_type, body = envelope(404, "no model id could be identified")
        self.assertEqual(content_type, b"application/json")
        self.assertEqual(
            json.loads(body),
            {
                "src": "llama-swap",
                "error": {
                    "message": "no model id could be identified",
                    "type": "invalid_request_error",
                    "param": None,
                    "code": "not_found",
                },
            },
        )

    def test_text_wins_over_html_and_html_over_json(self):
        """http T032, T039"""
        self.assertEqual(envelope(401, "x <y>", "text/html, text/plain"), (b"text/plain", b"llama-swap: x <y>"))
        self.assertEqual(
            envelope(404, "x <y>", "text/html,*/*"),
            (b"text/html", b"<html><body><h1>llama-swap</h1><p>x &lt;y&gt;</p></body></html>"),
        )
        self.assertEqual(envelope(404, "x", "*/*")[0], b"application/json")

    def test_each_status_has_its_type_and_code(self):
        self.assertEqual(kind(409), ("invalid_request_error", "conflict"))
        self.assertEqual(kind(418), ("invalid_request_error", "invalid_request"))
        self.assertEqual(kind(500), ("server_error", "internal_error"))
        self.assertEqual(
            json.loads(envelope(429, "m", code="concurrency_limit")[1])["error"]["code"], "concurrency_limit"
        )

    def test_callers_of_the_messages_api_find_their_type(self):
        """Anthropic's clients read the top-level type (llama-swap issue 1038)."""
        for path in ("/v1/messages", "/v1/messages/count_tokens", "/v/messages"):
            self.assertEqual(json.loads(envelope(404, "x", path=path)[1])["type"], "error", path)
        self.assertNotIn("type", json.loads(envelope(404, "x", path="/v1/completions")[1]))

    def test_a_lone_surrogate_is_survived(self):
        for accept in ("", "text/plain", "text/html"):
            self.assertNotEqual(envelope(404, "\ud800", accept)[1].decode(), "")
