"""Responses of OpenAI-compatible servers, as Ollama's clients read them."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.wire.ollama import CHAT, EMBED, EMBEDDINGS, GENERATE, translate
from llamaswap.wire.ollama_response import KEPT_LIMIT, ResponseTooLong, ResponseTranslator, error_message

SECOND = 1_000_000_000


def translator(path=CHAT, granted=102.0, **asked):
    given = {"messages": [{"role": "user", "content": "x"}]} if path == CHAT else {"prompt": "x", "input": "x"}
    request = translate(path, json.dumps({"model": "owl", **given, **asked}).encode())
    return ResponseTranslator(request, 100.0, lambda now: f"at {now:g}", granted)


def event(document) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def delta(reason=None, **members) -> bytes:
    return event({"choices": [{"index": 0, "delta": members, "finish_reason": reason}]})


def lines(data: bytes):
    return [json.loads(line) for line in data.splitlines()]


USAGE = event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})
DONE = b"data: [DONE]\n\n"


class StreamTests(SynchronousTestCase):
    def test_each_piece_is_a_line_and_the_last_has_the_counts(self):
        stream = translator()
        first = stream.feed(delta(role="assistant", content=None) + delta(content="Hel"), 103.0)
        self.assertEqual(
            lines(first),
            [
                {
                    "model": "owl",
                    "created_at": "at 103",
                    "done": False,
                    "message": {"role": "assistant", "content": "Hel"},
                }
            ],
        )
        stream.feed(delta("length", content="lo") + USAGE + DONE, 105.0)
        (last,) = lines(stream.finish(106.0))
        self.assertEqual((last["done"], last["done_reason"]), (True, "length"))
        self.assertEqual(last["message"], {"role": "assistant", "content": ""})
        self.assertEqual((last["prompt_eval_count"], last["eval_count"]), (7, 3))
        self.assertEqual((last["total_duration"], last["load_duration"]), (6 * SECOND, 2 * SECOND))
        self.assertEqual((last["prompt_eval_duration"], last["eval_duration"]), (1 * SECOND, 3 * SECOND))

    def test_a_stream_split_anywhere_gives_the_same_lines(self):
        whole = delta(content="ä1") + delta(reasoning_content="b") + delta("stop") + USAGE + DONE
        stream = translator()
        expected = stream.feed(whole, 103.0) + stream.finish(104.0)
        for size in (1, 2, 3, 7, 50):
            stream = translator()
            pieces = [stream.feed(whole[at : at + size], 103.0) for at in range(0, len(whole), size)]
            self.assertEqual(b"".join(pieces) + stream.finish(104.0), expected)

    def test_measured_durations_come_from_the_servers_timings(self):
        stream = translator()
        timings = {"cache_n": 6, "prompt_n": 4, "prompt_ms": 20.0, "predicted_n": 9, "predicted_ms": 300.0}
        stream.feed(event({"choices": [{"delta": {}, "finish_reason": "stop"}], "timings": timings}), 103.0)
        (last,) = lines(stream.finish(104.0))
        self.assertEqual((last["prompt_eval_duration"], last["eval_duration"]), (20_000_000, 300_000_000))
        self.assertEqual((last["prompt_eval_count"], last["eval_count"]), (10, 9))

    def test_thinking_is_apart_from_the_content(self):
        stream = translator()
        thought, said = lines(stream.feed(delta(reasoning_content="hm") + delta(content="yes"), 103.0))
        self.assertEqual(thought["message"], {"role": "assistant", "content": "", "thinking": "hm"})
        self.assertEqual(said["message"], {"role": "assistant", "content": "yes"})

    def test_thinking_is_left_out_if_the_client_wants_none(self):
        stream = translator(think=False)
        self.assertEqual(stream.feed(delta(reasoning_content="hm"), 103.0), b"")

    def test_the_pieces_of_tool_calls_become_whole_calls_with_objects(self):
        def piece(index, **function):
            return delta(tool_calls=[{"index": index, "function": function}])

        stream = translator()
        found = stream.feed(piece(0, name="weather", arguments='{"ci') + piece(0, arguments='ty":"Ulm"}'), 103.0)
        self.assertEqual(found, b"")
        found = stream.feed(piece(1, name="time", arguments=""), 103.0)
        call = lines(found)[0]["message"]["tool_calls"]
        self.assertEqual(call, [{"function": {"name": "weather", "arguments": {"city": "Ulm"}}}])
        stream.feed(delta("tool_calls"), 104.0)
        second, last = lines(stream.finish(104.0))
        self.assertEqual(second["message"]["tool_calls"], [{"function": {"name": "time", "arguments": {}}}])
        self.assertEqual(last["done_reason"], "stop")

    def test_arguments_that_are_no_json_stay_readable(self):
        stream = translator()
        stream.feed(delta(tool_calls=[{"index": 0, "function": {"name": "f", "arguments": "oops"}}]), 103.0)
        call, _ = lines(stream.finish(104.0))
        self.assertEqual(call["message"]["tool_calls"][0]["function"]["arguments"], {"arguments": "oops"})

    def test_an_error_in_the_stream_is_its_last_line(self):
        stream = translator()
        found = stream.feed(delta(content="a") + event({"error": {"code": 500, "message": "out of memory"}}), 103.0)
        self.assertEqual(lines(found)[1], {"error": "out of memory"})
        self.assertEqual(stream.finish(104.0), b"")

    def test_completions_and_infill_are_responses(self):
        stream = translator(GENERATE, raw=True)
        self.assertEqual(lines(stream.feed(event({"choices": [{"text": "ab"}]}), 103.0))[0]["response"], "ab")
        stream = translator(GENERATE, suffix="y")
        found = stream.feed(event({"content": "ab", "stop": False}), 103.0)
        found += stream.feed(event({"content": "", "stop": True, "stop_type": "limit"}), 103.0)
        self.assertEqual([line["response"] for line in lines(found)], ["ab"])
        self.assertEqual(lines(stream.finish(104.0))[0]["done_reason"], "length")

    def test_an_endless_event_is_refused(self):
        stream = translator()
        with self.assertRaises(ResponseTooLong):
            for _ in range(KEPT_LIMIT // (1 << 20) + 2):
                stream.feed(b"x" * (1 << 20), 103.0)

    def test_an_endless_tool_call_is_refused(self):
        stream = translator()
        piece = delta(tool_calls=[{"index": 0, "function": {"name": "f", "arguments": "x" * (1 << 20)}}])
        with self.assertRaises(ResponseTooLong):
            for _ in range(KEPT_LIMIT // (1 << 20) + 2):
                stream.feed(piece, 103.0)


class DocumentTests(SynchronousTestCase):
    CALLS = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}]
    MESSAGE = {"role": "assistant", "content": "yes", "reasoning_content": "hm", "tool_calls": CALLS}
    CHAT = {
        "choices": [{"message": MESSAGE, "finish_reason": "tool_calls"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3},
    }

    def test_a_chat_is_one_document(self):
        found = json.loads(translator(stream=False).document(json.dumps(self.CHAT).encode(), 104.0))
        self.assertEqual((found["done"], found["done_reason"], found["eval_count"]), (True, "stop", 3))
        message = found["message"]
        self.assertEqual((message["content"], message["thinking"]), ("yes", "hm"))
        self.assertEqual(message["tool_calls"][0]["function"]["arguments"], {"a": 1})

    def test_a_document_for_a_client_that_streams_becomes_lines(self):
        first, last = lines(translator().document(json.dumps(self.CHAT).encode(), 104.0))
        self.assertEqual((first["done"], first["message"]["content"]), (False, "yes"))
        self.assertEqual((last["done"], last["message"]["content"]), (True, ""))

    def test_embeddings_are_in_the_order_of_their_texts(self):
        rows = [{"index": 1, "embedding": [2.0]}, {"index": 0, "embedding": [1.0]}]
        data = json.dumps({"data": rows, "usage": {"prompt_tokens": 7, "total_tokens": 7}}).encode()
        found = json.loads(translator(EMBED).document(data, 104.0))
        self.assertEqual((found["embeddings"], found["prompt_eval_count"]), ([[1.0], [2.0]], 7))
        self.assertEqual(json.loads(translator(EMBEDDINGS).document(data, 104.0)), {"embedding": [1.0]})

    def test_embeddings_have_the_servers_bytes_and_no_other_member(self):
        data = b' {"x": [1], "data" : [ {"embedding" : [1.50, -2e-3], "object":"embedding"} , {"index":0} ] } '
        found = translator(EMBED).document(data, 104.0)
        self.assertIn(b'"embeddings":[[1.50, -2e-3]],', found)
        self.assertEqual(json.loads(found)["prompt_eval_count"], 0)
        for data in (b"", b"[1]", b'{"data":7}', b'{"data":[{"embedding":[1]}', b'{"data":[7,[]]}'):
            self.assertEqual(json.loads(translator(EMBED).document(data, 104.0))["embeddings"], [], data)
            self.assertEqual(json.loads(translator(EMBEDDINGS).document(data, 104.0)), {"embedding": []}, data)

    def test_a_load_is_done_at_once(self):
        found = json.loads(translator(GENERATE, prompt="").without_generation(104.0))
        self.assertEqual((found["done"], found["done_reason"], found["response"]), (True, "load", ""))
        found = json.loads(translator(CHAT, messages=[], keep_alive=0).without_generation(104.0))
        self.assertEqual((found["done_reason"], found["message"]["content"]), ("unload", ""))

    def test_the_text_of_a_servers_error_is_found(self):
        for body, text in (
            (b'{"error":{"message":"too long","code":400}}', "too long"),
            (b'{"error":"gone"}', "gone"),
            (b'{"object":"error","message":"no"}', "no"),
            (b'{"detail":"Not Found"}', "Not Found"),
            (b"plain\n", "plain"),
            (b"", "the model's server sent an error without a text"),
        ):
            self.assertEqual(error_message(body), text)
