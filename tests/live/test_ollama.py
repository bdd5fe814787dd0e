"""The official clients of Ollama for Python and JavaScript, against the product at both of its addresses."""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.request
from http.server import ThreadingHTTPServer
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.live.product import ROOT, Product, wait_for
from tests.live.test_commands import CONTENT, Hub
from tests.live.test_upgrade import upgrade

try:
    import ollama
except ImportError:
    ollama = None

PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)
HELLO = [{"role": "user", "content": "hello"}]
NAMES = ["chatty", "talker"]  # that are listed: an alias and its model


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
        self.assertEqual([model.model for model in self.client.list().models], NAMES)
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
        wait_for(lambda: rows())
        [row] = rows()
        self.assertEqual((row["model"], row["input_tokens"], row["output_tokens"]), ("talker", 7, 3))

    def test_second_address_is_kept_in_an_upgrade_and_closed_at_the_end(self):
        self.client.chat("talker", HELLO, keep_alive="10m")
        [before] = self.client.ps().models
        self.assertEqual(upgrade(self.product)["count"], 1)
        [after] = self.client.ps().models
        self.assertEqual(after.model, before.model)
        self.assertLess(abs(after.expires_at - before.expires_at).total_seconds(), 2.0)
        self.assertEqual(self.client.chat("talker", HELLO).message.content, "0 images, text ")
        os.kill(self.product.process.pid, signal.SIGTERM)
        self.product.process.wait(30)
        self.assertRaises(OSError, socket.create_connection, ("127.0.0.1", self.port), 5)

    def test_taken_address_is_refused_before_a_server_runs(self):
        words = [sys.executable, "-m", "llamaswap", "--config", str(self.product.config), "-listen", "127.0.0.1:0"]
        ran = subprocess.run(
            words, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        self.assertEqual(ran.returncode, 1, ran.stdout + ran.stderr)
        self.assertIn("ollama.listen takes another address", ran.stderr)


class ChangeTests(SynchronousTestCase):
    timeout = 120

    def setUp(self):
        if ollama is None or importlib.util.find_spec("huggingface_hub") is None:
            raise SkipTest("the package ollama or huggingface_hub is not installed (extras: live, pull)")
        Hub.ranges, Hub.cut, Hub.hold = [], False, None
        server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        for ending in (thread.join, server.server_close, server.shutdown):
            self.addCleanup(ending)
        home = Path(self.mktemp()).absolute()
        env = {"HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        env["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_address[1]}"
        self.home, self.port = home, free_port()
        self.product = Product(config(self.port), "--allow-config-edit", env=env).__enter__()
        self.addCleanup(self.product.__exit__)
        self.client = ollama.Client(f"http://127.0.0.1:{self.port}", timeout=60)

    def names(self):
        return [model.model for model in self.client.list().models]

    def test_pulled_model_is_configured_and_deleted_with_its_file(self):
        name = "hf.co/org/Tiny-GGUF:Q8_0"
        parts = list(self.client.pull(name, stream=True))
        self.assertEqual((parts[0].status, parts[-1].status), ("pulling manifest", "success"))
        sizes = [(part.completed, part.total) for part in parts if part.digest]
        self.assertEqual(sizes[-1], (len(CONTENT), len(CONTENT)), parts)
        self.assertIn(name, self.names())
        self.assertEqual(len(list(self.home.rglob("*.gguf"))), 1)
        self.client.delete(name)
        self.assertEqual((self.names(), list(self.home.rglob("*.gguf"))), (NAMES, []))
        self.assertEqual([path for path in self.home.rglob("blobs/*") if path.stat().st_size == len(CONTENT)], [])

    def test_repository_that_is_missing_is_an_error(self):
        with self.assertRaises(ollama.ResponseError) as caught:
            list(self.client.pull("hf.co/org/Ghost-GGUF", stream=True))
        self.assertIn("Ghost-GGUF", caught.exception.error)

    def test_copy_create_and_delete_change_the_names(self):
        self.client.copy("talker", "friend")
        self.client.create("calm", from_="talker", parameters={"temperature": 0.1}, system="Stay calm.")
        self.assertEqual(self.names(), sorted([*NAMES, "calm", "friend"]))
        for name, told in (("friend", ""), ("calm", "Stay calm.")):
            self.assertEqual(self.client.generate(name, "hi").response, f"0 images, text {told}")
            self.client.delete(name)
        with self.assertRaises(ollama.ResponseError):
            self.client.generate("calm", "hi")


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
        self.assertEqual(found["models"], NAMES)
        self.assertEqual(found["streamed"], ["0 images, text ", "hm", True, 4])
        self.assertEqual((found["tools"], found["generated"]), ({"city": "Ulm"}, "0 images, text "))
        self.assertEqual(found["embedded"], [[1.0, 0.5], [3.0, 0.5]])
        self.assertEqual((found["shown"], found["loaded"]), (["completion", "tools"], ["talker"]))
        self.assertEqual(found["error"], 404)
        self.assertTrue(found["left"])
