"""Responses that reach `maxDuration` or `maxTokens`."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.errors import UpstreamUnreachable
from tests.web.pipeline import Stage, config, model

CHAT = b"/v1/chat/completions"
STREAM = b"text/event-stream"
WEBSOCKET = ((b"Connection", b"Upgrade"), (b"Upgrade", b"websocket"))


def delta(text: str) -> bytes:
    return (
        b"data: " + json.dumps({"id": "c1", "choices": [{"index": 0, "delta": {"content": text}}]}).encode() + b"\n\n"
    )


class LimitTestCase(SynchronousTestCase):
    def setUp(self):
        models = [model("brief", max_duration=60.0), model("short", max_tokens=3)]
        self.stage = Stage(config=config(models=models))

    def ask(self, name, path=CHAT, *headers, **more):
        return self.stage.post({"model": name, "messages": [], **more}, path, *headers)

    @property
    def forwarding(self):
        return self.stage.forwarder.forwarded[-1]

    def sent(self):
        return json.loads(self.forwarding.sent)

    def reasons(self, asked):
        lines = [line[6:] for line in asked.sink.body.split(b"\n") if line.startswith(b"data: {")]
        return [json.loads(line)["choices"][0].get("finish_reason") for line in lines]


class DurationTests(LimitTestCase):
    def test_a_stream_ends_cleanly_and_the_servers_request_is_cancelled(self):
        asked = self.ask("brief", stream=True)
        lease, passed_on = self.stage.router.asked[0].lease, asked.exchange.sink
        self.forwarding.begin(delta("a"), kind=STREAM, raw=False)
        self.stage.clock.advance(59)
        self.forwarding.more(delta("b")[:20], raw=False)
        self.assertFalse(self.forwarding.stopped)
        self.stage.clock.advance(1)
        self.assertEqual(self.reasons(asked), [None, "length"])
        self.assertTrue(asked.sink.body.endswith(b"data: [DONE]\n\n"))
        self.assertEqual((asked.sink.ending, self.forwarding.stopped, lease.releases), ("finished", True, 1))
        witness = self.stage.witness
        self.assertEqual(witness.endings, [("complete", None)])
        self.assertIn(b'"finish_reason":"length"', witness.body)
        passed_on.write(b"late")  # the server may have sent it meanwhile
        self.assertNotIn(b"late", asked.sink.body)

    def test_a_response_without_a_stream_is_an_error(self):
        asked = self.ask("brief")
        self.stage.clock.advance(60)
        self.assertEqual((asked.sink.status, asked.sink.json["error"]["code"]), (504, "response_limit"))
        self.assertIn("maxDuration (60s)", asked.sink.json["error"]["message"])

    def test_a_document_that_has_begun_is_cut(self):
        asked = self.ask("brief")
        self.forwarding.begin(b'{"choices":', raw=False)
        self.stage.clock.advance(60)
        self.assertEqual((asked.sink.body, asked.sink.ending), (b'{"choices":', "aborted"))

    def test_a_response_in_time_leaves_no_timer(self):
        asked = self.ask("brief", stream=True)
        self.forwarding.begin(delta("a"), b"data: [DONE]", kind=STREAM, raw=False)
        self.forwarding.end()
        self.assertEqual(asked.sink.body, delta("a") + b"data: [DONE]")
        self.assertEqual(self.stage.clock.getDelayedCalls(), [])

    def test_a_stream_that_had_its_last_event_gets_no_second_one(self):
        asked = self.ask("brief", stream=True)
        self.forwarding.begin(delta("a"), b"data: [DONE]\n\n", kind=STREAM, raw=False)
        self.stage.clock.advance(60)
        self.assertEqual((asked.sink.body, asked.sink.ending), (delta("a") + b"data: [DONE]\n\n", "finished"))

    def test_a_websocket_of_a_servers_own_page_opens_and_is_not_bounded(self):
        asked = self.stage.upstream(b"GET", b"/upstream/brief/ws", b"", *WEBSOCKET)
        asked.exchange.sink.upgrade(b"HTTP/1.1 101 Switching Protocols")
        self.assertEqual(asked.sink.status, 101)
        self.stage.clock.advance(61)
        self.assertFalse(self.forwarding.stopped)

    def test_a_second_server_gets_the_whole_time(self):
        self.ask("brief", stream=True)
        self.stage.clock.advance(50)
        self.stage.router.asked[0].lease.process.lost = True
        self.forwarding.result.errback(UpstreamUnreachable("brief", "connection reset"))
        self.stage.clock.advance(50)
        self.assertFalse(self.forwarding.stopped)

    def test_a_stream_behind_a_loading_stream_ends_cleanly(self):
        models = [model("slow", max_duration=60.0, max_tokens=3, send_loading_state=True)]
        for seconds, deltas in ((60, 1), (0, 4)):
            self.stage = Stage(config=config(models=models), auto=False, ready=False)
            asked = self.ask("slow", stream=True)
            self.stage.router.asked[-1].grant()
            self.forwarding.begin(*[delta("a")] * deltas, kind=STREAM, raw=False)
            self.stage.clock.advance(seconds)
            self.assertEqual((self.reasons(asked)[-1], asked.sink.ending), ("length", "finished"))
            self.assertTrue(self.forwarding.stopped)

    def test_clients_of_ollama_get_done_reason_length(self):
        asked = self.stage.post({"model": "brief", "messages": [{"role": "user", "content": "hi"}]}, b"/api/chat")
        self.forwarding.begin(delta("a"), kind=STREAM, raw=False)
        self.stage.clock.advance(60)
        lines = [json.loads(line) for line in asked.sink.body.splitlines()]
        self.assertEqual((lines[-1]["done"], lines[-1]["done_reason"]), (True, "length"))
        self.assertEqual(asked.sink.ending, "finished")

    def test_a_model_without_bounds_keeps_its_framing(self):
        self.ask("alpha", stream=True)
        self.assertFalse(self.forwarding.exchange.translated)


class TokenTests(LimitTestCase):
    def test_the_server_is_asked_for_no_more(self):
        self.ask("short")
        self.assertEqual(self.sent()["max_tokens"], 3)
        self.ask("short", max_tokens=2)
        self.assertEqual(self.sent()["max_tokens"], 2)
        self.ask("short", max_completion_tokens=-1, max_tokens=None)
        self.assertEqual((self.sent()["max_completion_tokens"], self.sent()["max_tokens"]), (3, 3))
        self.ask("short", b"/v1/responses")
        self.assertEqual(self.sent()["max_output_tokens"], 3)
        self.ask("short", b"/v1/embeddings")
        self.assertNotIn("max_tokens", self.sent())

    def test_a_server_that_ignores_it_is_stopped(self):
        asked = self.ask("short", stream=True)
        self.forwarding.begin(kind=STREAM, raw=False)
        for text in "abcd":
            self.forwarding.more(delta(text), raw=False)
        self.assertEqual(self.reasons(asked), [None] * 3 + ["length"])
        self.assertTrue(self.forwarding.stopped)
        self.assertEqual(asked.sink.ending, "finished")

    def test_a_stream_that_comes_whole_and_is_too_long_has_one_end(self):
        asked = self.ask("short", stream=True)
        self.forwarding.begin(b"".join(map(delta, "abcd")) + b"data: [DONE]\n\n", kind=STREAM, raw=False)
        self.assertEqual(self.reasons(asked), [None] * 3 + ["length"])
        self.assertEqual(asked.sink.body.count(b"[DONE]"), 1)

    def test_a_stream_of_just_so_many_tokens_keeps_the_servers_own_end(self):
        asked = self.ask("short", stream=True)
        last = delta("").replace(b'"index": 0', b'"index": 0, "finish_reason": "stop"')
        sent = [delta(""), *map(delta, "abc"), last, b"data: [DONE]\n\n"]
        self.forwarding.begin(*sent, kind=STREAM, raw=False)
        self.forwarding.end()
        self.assertEqual(asked.sink.body, b"".join(sent))
        self.assertEqual(asked.sink.ending, "finished")
