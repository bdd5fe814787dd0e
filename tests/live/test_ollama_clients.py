"""Requests of programs that know only Ollama, as their public sources send them, against the product at both addresses.

Each test reads of the answers what the program reads, in the way it does.
"""

import asyncio
import json
import re
from base64 import b64encode

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.live.product import Product
from tests.live.test_ollama import NAMES, PNG, config, free_port

try:
    import ollama
except ImportError:
    ollama = None

JSON = {"Content-Type": "application/json"}
TEXT = {"Content-Type": "text/plain;charset=UTF-8"}  # what fetch says of a body that is a text
HELLO = [{"role": "system", "content": "You help."}, {"role": "user", "content": "hello"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


class RecordedTestCase(SynchronousTestCase):
    timeout = 60

    def setUp(self):
        self.port = free_port()
        self.product = Product(config(self.port)).__enter__()
        self.addCleanup(self.product.__exit__)
        self.addresses = (f"http://127.0.0.1:{self.port}", self.product.url)

    def ask(self, path, body=None, headers=JSON, method=None):
        sent = None if body is None else json.dumps(body).encode()
        status, _, data = self.product.ask(path, sent, headers=headers, method=method)
        self.assertEqual(status, 200, (path, data))
        return data

    def lines(self, path, body, headers=JSON):
        """The objects of a stream, which ends with one that is done."""
        found = [json.loads(line) for line in self.ask(path, body, headers).split(b"\n") if line.strip()]
        self.assertEqual([line["done"] for line in found], [False] * (len(found) - 1) + [True])
        return found


class CopilotTests(RecordedTestCase):
    """microsoft/vscode, extensions/copilot/src/extension/byok: vscode-node/ollamaProvider, node/openAIEndpoint."""

    def test_copilot_lists_the_models_and_chats(self):
        self.product.url = self.addresses[0]  # it wants Ollama's version, without a key
        version = json.loads(self.ask("/api/version", headers={}))["version"]
        self.assertGreaterEqual([int(part) for part in version.split(".")], [0, 6, 4])
        for listed in json.loads(self.ask("/api/tags", headers={}))["models"]:
            shown = json.loads(self.ask("/api/show", {"model": listed["model"]}))
            info = shown["model_info"]
            self.assertEqual(info[f"{info['general.architecture']}.context_length"], 2048)
            self.assertEqual(info["general.basename"], listed["model"])
            self.assertIn("tools", shown["capabilities"])
            self.assertIsInstance(shown["details"]["family"], str)
        body = {
            "messages": [HELLO[0], {"role": "user", "content": [{"type": "text", "text": "hello"}]}],
            "model": "talker",
            "temperature": 0.1,
            "top_p": 1,
            "n": 1,
            "stream": True,
            "tools": [WEATHER],
            "stream_options": {"include_usage": True},
        }
        headers = {**JSON, "Authorization": "Bearer ", "OpenAI-Intent": "conversation-agent"}
        events = [line[6:] for line in self.ask("/v1/chat/completions", body, headers).decode().split("\n") if line]
        self.assertEqual(events[-1], "[DONE]")
        first = json.loads(events[0])["choices"][0]["delta"]["tool_calls"][0]
        self.assertEqual((first["function"]["name"], first["index"]), ("weather", 0))
        self.assertGreater(json.loads(events[-2])["usage"]["completion_tokens"], 0)


class ContinueTests(RecordedTestCase):
    """continuedev/continue, core/llm/llms/Ollama.ts."""

    OPTIONS = {"temperature": 0.2, "num_predict": 2048, "stop": ["<|end|>"], "num_ctx": 2048}

    def test_continue_lists_chats_calls_tools_and_embeds(self):
        for address in self.addresses:
            self.product.url = address
            self.assertEqual([model["name"] for model in json.loads(self.ask("/api/tags"))["models"]], NAMES)
            shown = json.loads(self.ask("/api/show", {"name": "talker"}))
            lines = [re.match(r'^(\S+)\s+((?:".*")|\S+)$', line) for line in shown["parameters"].split("\n")]
            self.assertEqual([line.groups() for line in lines], [("num_ctx", "2048")])
            self.assertIsInstance(shown["template"], str)
            body = {"model": "talker", "messages": HELLO, "options": self.OPTIONS, "keep_alive": 1800, "stream": True}
            found = self.lines("/api/chat", body)
            self.assertEqual("".join(line["message"]["content"] for line in found), "0 images, text ")
            self.assertEqual({line["message"]["role"] for line in found}, {"assistant"})
            image = {"role": "user", "content": "what?", "images": [b64encode(PNG).decode()]}
            body = {**body, "messages": [image], "stream": False, "tools": [WEATHER]}
            message = json.loads(self.ask("/api/chat", body))["message"]
            self.assertEqual(message["tool_calls"][0]["function"]["arguments"], {"city": "Ulm"})
            self.assertIsInstance(message["content"], str)
            body = {"model": "talker", "prompt": "hi", "options": self.OPTIONS, "keep_alive": 1800, "stream": True}
            self.assertEqual("".join(line["response"] for line in self.lines("/api/generate", body)), "0 images, text ")
            embedded = json.loads(self.ask("/api/embed", {"model": "talker", "input": ["a", "bcd"]}))
            self.assertEqual(embedded["embeddings"], [[1.0, 0.5], [3.0, 0.5]])

    def test_continue_reads_the_stop_words_of_a_created_model(self):
        talker = json.loads(config(self.port))["models"]["talker"]
        rules = {"setParamsByID": {"calm": {"stop?": ["<|end of text|>", "b"], "temperature?": 0.1}}}
        text = config(free_port(), models={"talker": {**talker, "filters": rules}})
        with Product(text) as product:
            shown = product.json("/api/show", {"name": "calm"})
        found = [re.match(r'^(\S+)\s+((?:".*")|\S+)$', line) for line in shown["parameters"].split("\n")]
        self.assertEqual([json.loads(line[2]) for line in found if line[1] == "stop"], ["<|end of text|>", "b"])


class RaycastTests(RecordedTestCase):
    """raycast/extensions, extensions/raycast-ollama/src/lib: ollama/ollama.ts, ollama/types.ts, ui."""

    def test_raycast_lists_loads_chats_and_unloads(self):
        for address in self.addresses:
            self.product.url = address
            self.assertTrue(json.loads(self.ask("/api/version", headers={}))["version"])
            for row in json.loads(self.ask("/api/tags", headers={}))["models"]:
                self.assertLessEqual({"name", "modified_at", "size", "digest", "details"}, row.keys())
                shown = json.loads(self.ask("/api/show", {"name": row["name"]}))
                self.assertIsInstance(shown["details"]["families"], list)
                self.assertEqual([type(shown[name]) for name in ("parameters", "template", "modelfile")], [str] * 3)
            loaded = json.loads(self.ask("/api/generate", {"model": "talker", "keep_alive": -1, "stream": False}, TEXT))
            self.assertTrue(loaded["done"])
            [row] = json.loads(self.ask("/api/ps", headers={}))["models"]
            self.assertLessEqual({"name", "model", "size", "digest", "expires_at", "size_vram"}, row.keys())
            self.assertEqual(row["details"].keys(), shown["details"].keys())
            body = {"model": "talker", "messages": HELLO, "think": True, "keep_alive": "5m"}
            found = self.lines("/api/chat", body, TEXT)
            for line in found:
                kinds = [type(line[name]) for name in ("model", "created_at", "done")]
                self.assertEqual((kinds, type(line["message"]["content"])), ([str, str, bool], str))
                self.assertIn(line["message"]["role"], ("system", "user", "assistant", "tool"))
            self.assertEqual("".join(line["message"].get("thinking", "") for line in found), "hm")
            for name in ("total_duration", "load_duration", "prompt_eval_count", "eval_count", "eval_duration"):
                self.assertIsInstance(found[-1][name], int)
            [call] = self.lines("/api/chat", {**body, "think": False, "tools": [WEATHER]}, TEXT)[0]["message"][
                "tool_calls"
            ]
            answered = [*HELLO, {"role": "assistant", "content": "", "tool_calls": [call]}]
            answered.append({"role": "tool", "tool_name": "weather", "content": "rain"})
            found = self.lines("/api/chat", {**body, "messages": answered, "tools": [WEATHER]}, TEXT)
            self.assertIn("call_", "".join(line["message"]["content"] for line in found))
            body = {"model": "talker", "prompt": "what?", "system": "Be brief.", "images": [b64encode(PNG).decode()]}
            self.assertIn("1 images", "".join(line["response"] for line in self.lines("/api/generate", body, TEXT)))
            embedded = json.loads(self.ask("/api/embeddings", {"model": "talker", "prompt": "abc"}, TEXT))
            self.assertEqual(embedded["embedding"], [3.0, 0.5])
            self.ask("/api/generate", {"model": "talker", "keep_alive": 0, "stream": False}, TEXT)


class HomeAssistantTests(RecordedTestCase):
    """home-assistant/core, homeassistant/components/ollama: config_flow.py, coordinator.py, entity.py."""

    def test_home_assistant_lists_and_converses(self):
        if ollama is None:
            raise SkipTest("the package ollama is not installed (extra: live)")
        for address in self.addresses:
            asyncio.run(self.converse(address))

    async def converse(self, address):
        client = ollama.AsyncClient(host=address, headers={"Authorization": "Bearer any"})
        models = {model["model"] for model in (await client.list()).get("models", [])}
        self.assertEqual(models, set(NAMES))
        messages = [ollama.Message(**message) for message in HELLO]
        schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": []}
        for tools, form, keep_alive in ((None, schema, -1), ([WEATHER], None, "300s")):
            stream = await client.chat(
                model="talker",
                messages=list(messages),
                tools=tools,
                stream=True,
                keep_alive=keep_alive,
                options={"num_ctx": 8192.0},
                think=False,
                format=form,
            )
            text, calls = "", []
            async for response in stream:
                message = response["message"]
                text += message.get("content") or ""
                calls += message.get("tool_calls") or ()
            if form:
                self.assertEqual((text, calls), ("0 images, json_schema ", []))
        [call] = calls
        self.assertEqual((call["function"]["name"], call["function"]["arguments"]), ("weather", {"city": "Ulm"}))
        messages.append(ollama.Message(role="assistant", content="", tool_calls=calls))
        messages.append(ollama.Message(role="tool", content='{"data": "rain", "error": null}'))
        stream = await client.chat("talker", messages, tools=[WEATHER], stream=True, think=None, keep_alive="300s")
        self.assertIn("call_", "".join([part["message"].get("content") or "" async for part in stream]))
        self.assertEqual([model.model for model in (await client.ps()).models], ["talker"])
