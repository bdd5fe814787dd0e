"""The end of an event stream is recognised, and a broken stream reports its failure."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.wire.sse import Tail, error_event


class EndOfStreamTests(SynchronousTestCase):
    def test_a_tail_knows_whether_an_event_is_open(self):
        tail = Tail()
        self.assertTrue(tail.clean)
        for piece, clean in ((b"data: 1\n", False), (b"\n", True), (b"data", False), (b": 1\r\n\r\n", True)):
            tail.feed(piece)
            self.assertIs(tail.clean, clean, piece)


class ErrorEventTests(SynchronousTestCase):
    def data(self, event: bytes):
        (line,) = [line for line in event.splitlines() if line.startswith(b"data: ")]
        return json.loads(line[6:])

    def test_chat_and_completions_get_an_error_member(self):
        for path in ("/v1/chat/completions", "/v1/completions", "/completion"):
            event = error_event(path, 502, "cut short")
            self.assertTrue(event.startswith(b"data: ") and event.endswith(b"\n\n"))
            self.assertEqual(self.data(event)["error"]["message"], "cut short")
            self.assertEqual(self.data(event)["src"], "llama-swap")

    def test_responses_get_their_flat_error_event(self):
        event = error_event("/v1/responses", 502, "cut short")
        self.assertTrue(event.startswith(b"event: error\n"))
        data = self.data(event)
        self.assertEqual((data["type"], data["message"], data["code"]), ("error", "cut short", "bad_gateway"))
        self.assertEqual(data["error"]["message"], "cut short")

    def test_messages_get_anthropics_error_event(self):
        event = error_event("/v1/messages", 502, "cut short")
        self.assertTrue(event.startswith(b"event: error\n"))
        self.assertEqual(self.data(event)["error"], {"type": "api_error", "message": "cut short"})

    def test_an_open_event_is_ended_first(self):
        self.assertTrue(error_event("/v1/completions", 502, "x", clean=False).startswith(b"\n\ndata: "))
