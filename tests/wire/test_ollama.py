"""Requests in the shapes that each client of Ollama sends, in the terms of the OpenAI API."""

from __future__ import annotations

import json
from base64 import b64encode
from math import inf

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.errors import BadRequest
from llamaswap.wire.ollama import CHAT, EMBED, EMBEDDINGS, GENERATE, keep_alive_of, translate

PNG = b64encode(b"\x89PNG\r\n\x1a\n12345678").decode()
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


def request(path, **asked):
    return translate(path, json.dumps(asked).encode())


class ClientTests(SynchronousTestCase):
    """What each client sends."""

    def test_home_assistants_chat_has_floats_a_schema_and_an_endless_keep_alive(self):
        schema = {"type": "object", "properties": {"name": {"type": "string"}}}
        found = request(
            CHAT,
            model="llama3.2",
            stream=True,
            messages=[{"role": "system", "content": "You are a voice."}, {"role": "user", "content": "Lights?"}],
            tools=[WEATHER],
            options={"num_ctx": 8192.0, "top_k": 40.0},
            think=False,
            format=schema,
            keep_alive=-1,
        )
        self.assertEqual((found.target, found.streaming, found.context), ("/v1/chat/completions", True, 8192))
        self.assertEqual((found.keep_alive, found.think), (inf, False))
        self.assertEqual(found.body["tools"], [WEATHER])
        self.assertEqual(found.body["top_k"], 40)
        self.assertNotIn("num_ctx", found.body)
        self.assertEqual(found.body["chat_template_kwargs"], {"enable_thinking": False})
        self.assertEqual(found.body["response_format"]["json_schema"]["schema"], schema)
        self.assertEqual(found.body["stream_options"], {"include_usage": True})

    def test_continues_chat_with_tools_does_not_stream(self):
        found = request(
            CHAT,
            model="qwen",
            messages=[{"role": "user", "content": "hi"}],
            options={"num_predict": 2048, "stop": ["<|end|>"], "temperature": 0.2},
            keep_alive=1800,
            stream=False,
            tools=[WEATHER],
        )
        self.assertEqual((found.streaming, found.keep_alive), (False, 1800))
        self.assertNotIn("stream", found.body)
        self.assertEqual((found.body["max_tokens"], found.body["stop"]), (2048, ["<|end|>"]))

    def test_continues_completion_has_a_suffix(self):
        found = request(
            GENERATE, model="qwen", prompt="def f(", suffix="return x", raw=False, options={"num_predict": 64}
        )
        self.assertEqual(found.target, "/infill")
        self.assertEqual((found.body["input_prefix"], found.body["input_suffix"]), ("def f(", "return x"))
        self.assertEqual(found.body["n_predict"], 64)

    def test_continues_raw_completion_keeps_its_template(self):
        found = request(GENERATE, model="qwen", prompt="<|fim|>x", raw=True)
        self.assertEqual((found.target, found.body["prompt"]), ("/v1/completions", "<|fim|>x"))

    def test_open_webui_unloads_a_model_with_an_empty_prompt(self):
        found = request(GENERATE, model="a", prompt="", keep_alive=0)
        self.assertTrue(found.empty and found.unloads)

    def test_an_empty_chat_loads_its_model(self):
        found = request(CHAT, model="a")
        self.assertTrue(found.empty)
        self.assertFalse(found.unloads)

    def test_raycasts_generate_has_an_image_and_a_system_prompt(self):
        found = request(
            GENERATE, model="llava", prompt="what?", system="Be brief.", images=[PNG], keep_alive="5m", context=[1, 2]
        )
        system, user = found.body["messages"]
        self.assertEqual(system, {"role": "system", "content": "Be brief."})
        self.assertEqual(user["content"][0], {"type": "text", "text": "what?"})
        self.assertEqual(user["content"][1]["image_url"]["url"], f"data:image/png;base64,{PNG}")
        self.assertEqual(found.keep_alive, 300)

    def test_the_python_clients_embed_takes_one_text_or_several(self):
        for given in ("one", ["one", "two"]):
            found = request(EMBED, model="nomic", input=given, truncate=True, dimensions=64)
            self.assertEqual(found.target, "/v1/embeddings")
            self.assertEqual(found.body["input"], given)
            self.assertEqual((found.body["dimensions"], found.body["encoding_format"]), (64, "float"))

    def test_raycasts_embeddings_have_a_prompt(self):
        found = request(EMBEDDINGS, model="nomic", prompt="one")
        self.assertEqual((found.body["input"], found.empty), ("one", False))


class MessageTests(SynchronousTestCase):
    def test_results_of_tools_get_the_ids_of_their_calls(self):
        def call(name):
            return {"function": {"name": name, "arguments": {"city": "Ulm"}}}

        found = request(
            CHAT,
            model="a",
            messages=[
                {"role": "user", "content": "weather and time?"},
                {"role": "assistant", "thinking": "hm", "tool_calls": [call("weather"), call("time")]},
                {"role": "tool", "content": "12:00", "tool_name": "time"},
                {"role": "tool", "content": "rain", "tool_name": "weather"},
                {"role": "assistant", "content": "", "tool_calls": [call("time")]},
                {"role": "tool", "content": "12:01"},
            ],
        ).body["messages"]
        first, second = found[1]["tool_calls"]
        self.assertEqual(json.loads(first["function"]["arguments"]), {"city": "Ulm"})
        self.assertEqual(found[1]["reasoning_content"], "hm")
        self.assertEqual([found[2]["tool_call_id"], found[3]["tool_call_id"]], [second["id"], first["id"]])
        self.assertEqual(found[5]["tool_call_id"], found[4]["tool_calls"][0]["id"])
        self.assertEqual(len({first["id"], second["id"], found[4]["tool_calls"][0]["id"]}), 3)

    def test_levels_of_thinking_are_reasoning_efforts(self):
        found = request(CHAT, model="a", messages=[{"role": "user", "content": "x"}], think="high").body
        self.assertEqual(found["reasoning_effort"], "high")
        self.assertIs(found["chat_template_kwargs"]["enable_thinking"], True)

    def test_a_repeat_penalty_has_the_names_of_both_kinds_of_servers(self):
        found = request(GENERATE, model="a", prompt="x", options={"repeat_penalty": 1.1, "num_predict": -1}).body
        self.assertEqual((found["repeat_penalty"], found["repetition_penalty"]), (1.1, 1.1))
        self.assertNotIn("max_tokens", found)

    def test_bodies_of_the_wrong_kind_are_refused(self):
        for path, text in (
            (CHAT, "[]"),
            (CHAT, "{"),
            (CHAT, '{"messages": 1}'),
            (CHAT, '{"messages": [1]}'),
            (CHAT, '{"messages": [{"role": "user", "images": [1]}]}'),
            (CHAT, '{"messages": [{"role": "assistant", "tool_calls": [{}]}]}'),
            (GENERATE, '{"prompt": 1}'),
            (EMBED, '{"input": [1]}'),
            (CHAT, "[" * 100_000),
        ):
            with self.assertRaises(BadRequest, msg=text[:40]):
                translate(path, text.encode())


class KeepAliveTests(SynchronousTestCase):
    def test_a_keep_alive_is_seconds_or_a_duration(self):
        for value, seconds in (
            (None, None),
            (0, 0),
            ("0", 0),
            (1.5, 1.5),
            ("300s", 300),
            ("1h30m", 5400),
            ("500ms", 0.5),
            ("24h", 86400),
            (-1, inf),
            ("-1", inf),
            ("-1m", inf),
            (1e300, inf),
        ):
            self.assertEqual(keep_alive_of(value), seconds, value)

    def test_a_keep_alive_that_is_neither_is_refused(self):
        for value in ("soon", "5 m", "", True, [], "1" * 500 + "s", float("nan")):
            with self.assertRaises(BadRequest, msg=str(value)[:20]):
                keep_alive_of(value)
