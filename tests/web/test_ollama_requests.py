"""Inference requests of Ollama's clients, through the same pipeline as all others."""

from __future__ import annotations

import gzip
import json
import re
from math import inf

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import Config
from llamaswap.config.schema import OllamaSettings
from llamaswap.errors import ServerVanished, StartFailed, UpstreamTruncated
from llamaswap.web.head_facts import Authenticated
from llamaswap.web.key_access import KeyAccess
from llamaswap.web.ollama_sink import DOCUMENT_LIMIT
from tests.web.pipeline import Stage, config

CHAT, GENERATE, EMBED = b"/api/chat", b"/api/generate", b"/api/embed"
HELLO = [{"role": "user", "content": "hello"}]
STREAM = b"text/event-stream"


def delta(text: str, reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def lines(sink):
    return [json.loads(line) for line in sink.body.splitlines()]


class OllamaTestCase(SynchronousTestCase):
    def setUp(self):
        self.stage = Stage()

    def chat(self, *headers, **more):
        return self.stage.post({"model": "alpha", "messages": HELLO, **more}, CHAT, *headers)


class StreamTests(OllamaTestCase):
    def test_a_chat_is_forwarded_as_a_chat_of_the_openai_api(self):
        self.chat((b"Accept-Encoding", b"gzip"), options={"num_ctx": 4096, "temperature": 0})
        forwarding = self.stage.forwarding
        self.assertEqual(forwarding.head.target, b"/v1/chat/completions")
        self.assertIsNone(forwarding.header(b"accept-encoding"))
        sent = json.loads(forwarding.sent)
        self.assertEqual((sent["model"], sent["messages"], sent["temperature"]), ("alpha", HELLO, 0))
        self.assertTrue(self.stage.witness.facts.streaming)
        self.assertEqual(self.stage.witness.facts.path, "/api/chat")

    def test_the_servers_events_become_lines_as_they_pass(self):
        asked, forwarding = self.chat(), self.stage.forwarding
        self.assertTrue(asked.exchange.translated)
        forwarding.begin(delta("Hel"), kind=STREAM, raw=False)
        self.assertEqual(asked.sink.header(b"content-type"), b"application/x-ndjson")
        self.assertEqual([line["message"]["content"] for line in lines(asked.sink)], ["Hel"])
        forwarding.more(delta("lo", "stop")[:20], raw=False)
        self.assertEqual(len(lines(asked.sink)), 1)
        forwarding.more(delta("lo", "stop")[20:] + b"data: [DONE]\n\n", raw=False)
        self.stage.clock.advance(2)
        forwarding.end()
        first, second, last = lines(asked.sink)
        self.assertEqual(first["created_at"], "1970-01-12T13:46:40.000000+00:00")
        self.assertEqual((second["message"]["content"], second["done"]), ("lo", False))
        self.assertEqual((last["done"], last["done_reason"], last["total_duration"]), (True, "stop", 2_500_000_000))
        self.assertEqual((asked.sink.ending, asked.done), ("finished", [None]))

    def test_response_says_how_much_the_key_has_left(self):
        left = (b"x-ratelimit-remaining-tokens", b"7")
        for streams in (True, False):
            asked = self.chat(stream=streams)
            asked.exchange.added_headers = (left,)
            forwarding = self.stage.forwarder.forwarded[-1]
            if streams:
                forwarding.begin(delta("a"), kind=STREAM, raw=False)
            else:
                forwarding.begin(b"{}", raw=False)
            forwarding.end()
            self.assertEqual((asked.sink.status, asked.sink.header(left[0])), (200, left[1]))

    def test_the_recorded_response_is_the_servers(self):
        """Its tokens are counted as those of every other request."""
        self.chat()
        self.stage.forwarding.begin(delta("Hel"), kind=STREAM, raw=False)
        self.stage.forwarding.end()
        witness = self.stage.witness
        self.assertEqual((witness.body, witness.endings[0][0]), (delta("Hel"), "complete"))

    def test_a_stream_that_breaks_off_ends_with_an_error_line(self):
        asked, forwarding = self.chat(), self.stage.forwarding
        forwarding.begin(delta("Hel"), kind=STREAM, raw=False)
        forwarding.result.errback(UpstreamTruncated("alpha", "connection lost"))
        self.assertIn("connection lost", lines(asked.sink)[-1]["error"])
        self.assertEqual(asked.sink.ending, "aborted")

    def test_a_tool_call_that_is_nested_too_deeply_cuts_the_response(self):
        """At each depth around the limit of the interpreter, which depends on the caller's."""
        for depth in range(900, 1010):
            self.setUp()
            asked, forwarding = self.chat(), self.stage.forwarding
            arguments = '{"x":' + "[" * depth + "]" * depth + "}"
            call = {"index": 0, "function": {"name": "f", "arguments": arguments}}
            event = json.dumps({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}).encode()
            forwarding.begin(b"data: " + event + b"\n\n", kind=STREAM, raw=False)
            asked.exchange.sink.finish()
            self.assertIn(asked.sink.ending, ("finished", "aborted"))

    def test_the_clients_back_pressure_reaches_the_server(self):
        asked, producer = self.chat(), object()
        asked.exchange.sink.register_producer(producer)
        self.assertIs(asked.sink.producer, producer)

    def test_a_client_that_leaves_ends_the_servers_work(self):
        asked = self.chat()
        asked.leave()
        self.assertTrue(self.stage.forwarding.stopped)


class DocumentTests(OllamaTestCase):
    ANSWER = json.dumps({"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}).encode()

    def test_a_document_is_translated_when_it_is_complete(self):
        asked, forwarding = self.chat(stream=False), self.stage.forwarding
        self.assertNotIn("stream", json.loads(forwarding.sent))
        forwarding.begin(self.ANSWER[:9], self.ANSWER[9:], raw=False)
        self.assertFalse(asked.sink.started)
        forwarding.end()
        self.assertEqual((asked.sink.status, asked.sink.ending), (200, "finished"))
        self.assertEqual(asked.sink.header(b"content-length"), b"%d" % len(asked.sink.body))
        self.assertEqual(asked.sink.json["message"], {"role": "assistant", "content": "hi"})

    def test_a_servers_error_keeps_its_status_and_its_text(self):
        asked = self.chat()
        self.stage.forwarding.begin(b'{"error":{"message":"context is full"}}', status=400, raw=False)
        self.stage.forwarding.end()
        self.assertEqual((asked.sink.status, asked.sink.json), (400, {"error": "context is full"}))

    def test_a_document_that_breaks_off_is_an_error_response(self):
        asked = self.chat(stream=False)
        self.stage.forwarding.begin(self.ANSWER[:9], raw=False)
        self.stage.forwarding.result.errback(UpstreamTruncated("alpha", "connection lost"))
        self.assertEqual((asked.sink.status, asked.sink.ending), (502, "finished"))
        self.assertIn("connection lost", asked.sink.json["error"])

    def test_an_endless_document_is_refused(self):
        asked, forwarding = self.chat(stream=False), self.stage.forwarding
        forwarding.begin(raw=False)
        for _ in range(DOCUMENT_LIMIT // (8 << 20) + 1):
            asked.exchange.sink.write(b"x" * (8 << 20))
        self.assertEqual(asked.sink.ending, "aborted")

    def test_embeddings_come_from_the_openai_api(self):
        asked = self.stage.post({"model": "alpha", "input": ["a", "b"]}, EMBED)
        self.assertEqual(self.stage.forwarding.head.target, b"/v1/embeddings")
        rows = [{"index": index, "embedding": [index / 2]} for index in range(2)]
        self.stage.forwarding.begin(json.dumps({"data": rows}).encode(), raw=False)
        self.stage.forwarding.end()
        self.assertEqual(asked.sink.json["embeddings"], [[0.0], [0.5]])


class NameTests(OllamaTestCase):
    def test_the_default_tag_is_optional(self):
        for name in ("alpha:latest", "al:latest", "al"):
            self.stage = Stage()
            self.stage.post({"model": name, "messages": HELLO}, CHAT)
            self.assertEqual(self.stage.forwarding.upstream.name, "alpha")

    def test_another_tag_is_part_of_the_name(self):
        self.stage.post({"model": "beta:hot", "messages": HELLO}, CHAT)
        self.assertEqual(json.loads(self.stage.forwarding.sent)["top_k"], 9)

    def test_a_selector_fails_over(self):
        self.stage.post({"model": "safe", "messages": HELLO}, CHAT)
        self.stage.forwarding.begin(status=503, raw=False)
        first, second = self.stage.forwarder.forwarded
        self.assertEqual((first.upstream.endpoint.port, second.upstream.name), (7000, "beta"))
        self.assertEqual(second.head.target, b"/v1/chat/completions")

    def test_an_older_client_calls_the_model_name(self):
        self.stage.post({"name": "alpha", "prompt": "x"}, GENERATE)
        self.assertEqual(json.loads(self.stage.forwarding.sent)["model"], "alpha")


class ErrorTests(OllamaTestCase):
    def refused(self, asked, status, text):
        self.assertEqual(asked.sink.status, status)
        self.assertEqual(list(asked.sink.json), ["error"])
        self.assertIn(text, asked.sink.json["error"])
        self.assertEqual(self.stage.forwarder.forwarded, [])

    def test_an_unknown_model_is_not_found(self):
        self.refused(self.stage.post({"model": "ghost", "messages": HELLO}, CHAT), 404, "no router")

    def test_a_key_is_needed_as_for_every_model_route(self):
        self.stage.keys[b"authorization"] = b"Bearer mine"
        self.refused(self.chat(), 401, "unauthorized")

    def test_a_body_that_is_no_object_is_refused(self):
        self.refused(self.stage.post(b"[1]", CHAT), 400, "JSON object")
        self.refused(self.stage.post(b"", CHAT), 400, "JSON object")
        self.refused(self.chat(keep_alive="soon"), 400, "keep_alive")

    def test_a_load_that_fails_is_an_error_whatever_the_client_accepts(self):
        self.stage.router.refusal = StartFailed("alpha", "no such file")
        self.refused(self.chat((b"Accept", b"text/html")), 500, "no such file")

    def test_a_body_without_a_content_type_and_with_a_coding_is_read(self):
        body = gzip.compress(json.dumps({"model": "alpha", "messages": HELLO}).encode())
        self.stage.ask(b"POST", CHAT, body, (b"Content-Encoding", b"gzip"))
        self.assertEqual(json.loads(self.stage.forwarding.sent)["messages"], HELLO)
        self.assertIsNone(self.stage.forwarding.header(b"content-encoding"))


class KeepAliveTests(OllamaTestCase):
    @property
    def kept(self):
        return [call[1:] for call in self.stage.router.calls if call[0] == "keep_for"]

    def test_a_model_is_kept_as_long_as_the_request_says(self):
        self.chat(keep_alive="10m")
        self.chat(keep_alive=-1)
        self.chat()
        self.assertEqual(self.kept, [("alpha", 600), ("alpha", inf)])

    def test_an_empty_prompt_loads_the_model(self):
        asked = self.stage.post({"model": "alpha"}, GENERATE)
        self.assertEqual([one.model for one in self.stage.router.asked], ["alpha"])
        self.assertEqual((asked.sink.json["done_reason"], asked.sink.json["response"]), ("load", ""))
        self.assertEqual((self.stage.forwarder.forwarded, asked.done), ([], [None]))
        self.assertEqual(self.stage.witness.endings, [("complete", None)])

    def test_an_empty_prompt_with_a_keep_alive_of_0_unloads_and_does_not_load(self):
        asked = self.stage.post({"model": "alpha:latest", "prompt": "", "keep_alive": 0}, GENERATE)
        self.assertEqual(self.stage.router.asked, [])
        self.assertEqual((self.kept, asked.sink.json["done_reason"]), ([("alpha", 0.0)], "unload"))

    def test_an_unknown_model_is_not_unloaded(self):
        asked = self.stage.post({"model": "ghost", "keep_alive": 0}, GENERATE)
        self.assertEqual(asked.sink.status, 404)

    def test_a_key_unloads_only_what_it_may_use(self):
        beta = Authenticated(frozenset(), KeyAccess("child", models=re.compile("beta")))
        self.stage.inference.authenticate = lambda head: beta
        for name, status in (("alpha", 403), ("pick", 403), ("ghost", 403), ("beta", 200)):
            asked = self.stage.post({"model": name, "keep_alive": 0}, GENERATE)
            self.assertEqual(asked.sink.status, status, name)
        self.assertEqual(self.kept, [("beta", 0.0)])

    def test_a_load_that_loses_its_server_is_an_error(self):
        self.stage.router.refusal = ServerVanished("alpha")
        asked = self.stage.post({"model": "alpha"}, GENERATE)
        self.assertEqual(asked.sink.status, 503)


class DisabledTests(SynchronousTestCase):
    def test_the_requests_are_forwarded_as_they_are(self):
        """To a server that has this API itself."""
        off: Config = evolve(config(), ollama=OllamaSettings(enabled=False))
        stage = Stage(config=off)
        stage.post({"model": "alpha", "messages": HELLO}, CHAT)
        self.assertEqual(stage.forwarding.head.target, CHAT)
        self.assertFalse(stage.forwarding.exchange.translated)
