"""The official clients of Ollama for Python and JavaScript, against the product at both of its addresses."""

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.live.product import ROOT, Product, wait_for

try:
    import ollama
except ImportError:
    ollama = None

PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)
HELLO = [{"role": "user", "content": "hello"}]


def weather(city: str) -> str:
    """Tell the weather.

    Args:
      city: Where.
    """
    return f"rain in {city}"


def config(port: int, **more) -> str:
    talker = f"{sys.executable} -I -S {ROOT}/tests/live/talker.py --port ${{PORT}}"
    model = {"cmd": talker, "checkEndpoint": "/health", "aliases": ["chatty"], "capabilities": {"context": 2048}}
    return json.dumps({"ollama": {"listen": f"127.0.0.1:{port}"}, "models": {"talker": model}, **more})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def fetched(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return answer.read()


class PythonClientTests(SynchronousTestCase):
    def setUp(self):
        if ollama is None:
            raise SkipTest("the package ollama is not installed (extra: live)")
        self.port = free_port()
        self.product = Product(config(self.port)).__enter__()
        self.addCleanup(self.product.__exit__)
        self.client = ollama.Client(f"http://127.0.0.1:{self.port}", timeout=30)

    def test_second_address_looks_like_ollama(self):
        self.assertEqual(fetched(f"http://127.0.0.1:{self.port}/"), b"Ollama is running")
        self.assertEqual(json.loads(fetched(f"http://127.0.0.1:{self.port}/api/version")), {"version": "0.12.0"})
        self.assertIn("commit", json.loads(fetched(f"{self.product.url}/api/version")))

    def test_chat_is_streamed_with_thinking(self):
        parts = list(self.client.chat("talker", HELLO, stream=True, think=True, options={"num_ctx": 8192.0}))
        self.assertEqual("".join(part.message.thinking or "" for part in parts), "hm")
        self.assertEqual("".join(part.message.content for part in parts), "0 images, text ")
        last = parts[-1]
        self.assertEqual((last.done, last.done_reason, last.prompt_eval_count, last.eval_count), (True, "stop", 7, 4))
        self.assertGreater(last.eval_duration, 100_000_000)
        self.assertGreaterEqual(last.total_duration, last.load_duration + last.eval_duration)

    def test_chat_without_a_stream_has_images_and_a_format(self):
        message = {"role": "user", "content": "what?", "images": [PNG, PNG]}
        found = self.client.chat("talker:latest", [message], format={"type": "object"})
        self.assertEqual(found.message.content, "2 images, json_schema ")

    def test_tools_are_called_and_answered(self):
        messages = [*HELLO]
        for stream in (False, True):
            found = self.client.chat("talker", messages, tools=[weather], stream=stream)
            message = next(iter(found)).message if stream else found.message
            [call] = message.tool_calls
            self.assertEqual((call.function.name, call.function.arguments), ("weather", {"city": "Ulm"}))
        messages += [message, {"role": "tool", "tool_name": "weather", "content": weather(**call.function.arguments)}]
        found = self.client.chat("talker", messages, tools=[weather])
        self.assertTrue(found.message.content.startswith("0 images, text call_"), found.message.content)

    def test_generate_and_its_stream(self):
        self.assertEqual(self.client.generate("chatty", "hi", system="Be brief.").response, "0 images, text ")
        parts = list(self.client.generate("chatty", "hi", stream=True, images=[PNG]))
        self.assertEqual("".join(part.response for part in parts), "1 images, text ")

    def test_embeddings_of_one_text_and_of_several(self):
        self.assertEqual(self.client.embed("talker", ["a", "bcd"]).embeddings, [[1.0, 0.5], [3.0, 0.5]])
        self.assertEqual(self.client.embed("talker", "ab").prompt_eval_count, 5)
        self.assertEqual(self.client.embeddings("talker", "abc").embedding, [3.0, 0.5])

    def test_models_are_listed_shown_and_loaded(self):
        self.assertEqual([model.model for model in self.client.list().models], ["talker"])
        shown = self.client.show("talker")
        self.assertEqual(shown.modelinfo["talker.context_length"], 2048)
        self.client.generate("talker", keep_alive=-1)
        [loaded] = self.client.ps().models
        self.assertEqual((loaded.model, loaded.context_length, loaded.expires_at.year), ("talker", 2048, 2318))
        self.client.chat("talker", HELLO, keep_alive="10m")
        self.assertLess(self.client.ps().models[0].expires_at.year, 2318)

    def test_keep_alive_of_0_unloads(self):
        self.client.generate("talker")
        self.assertEqual(len(self.client.ps().models), 1)
        self.assertEqual(self.client.generate("talker", keep_alive=0).done_reason, "unload")
        wait_for(lambda: not self.client.ps().models)

    def test_errors_have_a_status_and_a_text(self):
        for status, text, work in (
            (404, "no router", lambda: self.client.chat("ghost", HELLO)),
            (404, "not found", lambda: self.client.show("ghost")),
            (400, "the context is full", lambda: self.client.chat("talker", [{"role": "user", "content": "break"}])),
            (404, "no /infill here", lambda: self.client.generate("talker", "a", suffix="b")),
            (501, "cannot", lambda: self.client.push("talker")),
        ):
            with self.assertRaises(ollama.ResponseError) as caught:
                work()
            self.assertEqual(caught.exception.status_code, status)
            self.assertIn(text, caught.exception.error)

    def test_tokens_are_counted_in_the_activity(self):
        self.client.chat("talker", HELLO)
        rows = lambda: json.loads(fetched(f"{self.product.url}/api/metrics"))
        wait_for(lambda: any(row["req_path"] == "/api/chat" for row in rows()))
        found = next(row for row in rows() if row["req_path"] == "/api/chat")
        self.assertEqual(found["tokens"]["input_tokens"], 7)


# What the official client for JavaScript makes of us; each finding is one line of JSON.
JAVASCRIPT = """
import { Ollama } from "ollama";
const client = new Ollama({ host: process.argv[2] });
const messages = [{ role: "user", content: "hi" }];
const tell = (name, value) => console.log(JSON.stringify({ [name]: value }));
tell("models", (await client.list()).models.map((model) => model.name));
let text = "", thought = "", last;
for await (const part of await client.chat({ model: "talker", messages, stream: true, think: true })) {
  text += part.message.content; thought += part.message.thinking ?? ""; last = part;
}
tell("streamed", [text, thought, last.done, last.eval_count]);
const tools = [{ type: "function", function: { name: "weather", parameters: { type: "object", properties: {} } } }];
tell("tools", (await client.chat({ model: "talker", messages, tools })).message.tool_calls[0].function.arguments);
tell("generated", (await client.generate({ model: "talker", prompt: "hi" })).response);
tell("embedded", (await client.embed({ model: "talker", input: ["a", "bcd"] })).embeddings);
tell("shown", (await client.show({ model: "talker" })).capabilities);
tell("loaded", (await client.ps()).models.map((model) => model.model));
try { await client.chat({ model: "ghost", messages }); } catch (error) { tell("error", error.status_code); }
const leaving = await client.chat({ model: "talker", messages, stream: true });
for await (const _ of leaving) { leaving.abort(); break; }
tell("left", true);
process.exit(0);
"""


class JavaScriptClientTests(SynchronousTestCase):
    def test_javascript_client_finds_its_api(self):
        if shutil.which("node") is None or shutil.which("npm") is None:
            raise SkipTest("node and npm are not installed")
        with tempfile.TemporaryDirectory() as folder:
            installed = subprocess.run(
                ["npm", "install", "--silent", "--no-audit", "--no-fund", "ollama@0"],
                cwd=folder,
                capture_output=True,
                timeout=120,
                check=False,
            )
            if installed.returncode:
                raise SkipTest("the npm package ollama cannot be installed")
            (Path(folder) / "try.mjs").write_text(JAVASCRIPT)
            with Product(config(free_port())) as product:
                ran = subprocess.run(
                    ["node", "try.mjs", product.url], cwd=folder, capture_output=True, timeout=60, check=False
                )
        found = {}
        for line in ran.stdout.splitlines():
            found.update(json.loads(line))
        self.assertEqual(ran.returncode, 0, ran.stderr.decode())
        self.assertEqual(found["models"], ["talker"])
        self.assertEqual(found["streamed"], ["0 images, text ", "hm", True, 4])
        self.assertEqual((found["tools"], found["generated"]), ({"city": "Ulm"}, "0 images, text "))
        self.assertEqual(found["embedded"], [[1.0, 0.5], [3.0, 0.5]])
        self.assertEqual((found["shown"], found["loaded"]), (["completion", "tools"], ["talker"]))
        self.assertEqual(found["error"], 404)
        self.assertTrue(found["left"])
