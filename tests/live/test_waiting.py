"""Clients that wait for a model which loads for seconds: the official ones, a raw connection, and one with a bound."""

import importlib.util
import json
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.live.product import Product, free_range

MISSING = [name for name in ("xllamacpp", "gguf", "openai", "anthropic") if importlib.util.find_spec(name) is None]
LIVE = Path(__file__).parent
REPLY = "Here I am."
HELLO = [{"role": "user", "content": "hello"}]
LOAD = 2.5  # seconds


def config(folder):
    server = f'"{sys.executable}" "{LIVE}/llama_server.py" --port ${{PORT}} -t 1 -a ${{MODEL_ID}} --start-delay {LOAD}'
    slow = f"""{server} -m "{folder}/slow.gguf" --make 'chat --name slow --reply "{REPLY}"'"""
    broken = f'"{sys.executable}" -c "import time; time.sleep({LOAD})" ${{PORT}}'
    models = {"slow": {"cmd": slow}, "broken": {"cmd": broken}}
    return json.dumps({"startPort": free_range(), "waitNotices": "500ms", "models": models})


class WaitingTests(SynchronousTestCase):
    if MISSING:
        skip = f"not installed: {', '.join(MISSING)} (extra: live)"

    timeout = 180

    def setUp(self):
        folder = self.enterContext(tempfile.TemporaryDirectory(prefix="llamaswap-models-"))
        self.product = self.enterContext(Product(config(folder)))

    def enterContext(self, manager):  # in unittest from Python 3.11 on
        entered = manager.__enter__()
        self.addCleanup(manager.__exit__, None, None, None)
        return entered

    def unload(self):
        self.assertEqual(self.product.ask("/api/models/unload/slow", {})[0], 200)

    def streamed(self, path, body):
        """The lines of a response with the seconds at which they came."""
        request = urllib.request.Request(
            self.product.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        began = time.monotonic()
        with urllib.request.urlopen(request, timeout=60) as response:
            self.assertEqual(response.status, 200)
            return [(line.strip(), time.monotonic() - began) for line in response if line.strip()]

    def test_official_clients_stream_through_the_notices(self):
        import anthropic
        import openai

        options = {"api_key": "none", "max_retries": 0, "timeout": 60}
        with openai.OpenAI(base_url=self.product.url + "/v1", **options) as client:
            stream = client.chat.completions.create(model="slow", messages=HELLO, stream=True)
            self.assertEqual("".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices), REPLY)
            self.unload()
            events = [event.type for event in client.responses.create(model="slow", input="hello", stream=True)]
            self.assertEqual((events[0], events[-1]), ("response.created", "response.completed"))
            self.unload()
            with self.assertRaises(openai.APIError) as caught:
                list(client.chat.completions.create(model="broken", messages=HELLO, stream=True))
            self.assertIn("exited prematurely", str(caught.exception))
        with anthropic.Anthropic(base_url=self.product.url, **options) as client:
            with client.messages.stream(model="slow", max_tokens=50, messages=HELLO) as stream:
                self.assertEqual(stream.get_final_text(), REPLY)
            with self.assertRaises(anthropic.APIError) as caught:
                list(client.messages.create(model="broken", max_tokens=50, messages=HELLO, stream=True))
            self.assertIn("exited prematurely", str(caught.exception))

    def test_the_client_of_ollama_streams_through_the_notices(self):
        if importlib.util.find_spec("ollama"):
            import ollama

            client = ollama.Client(self.product.url)
            parts = [part.message.content for part in client.chat("slow", HELLO, stream=True)]
            self.assertEqual(("".join(parts), parts[0]), (REPLY, ""))
            self.unload()
        lines = [json.loads(line) for line, _ in self.streamed("/api/chat", {"model": "slow", "messages": HELLO})]
        self.assertEqual(lines[0]["llamaswap"]["loading"], ["slow"])
        self.assertEqual("".join(line["message"]["content"] for line in lines), REPLY)
        self.assertTrue(lines[-1]["done"])

    def test_notices_count_down_what_the_last_load_took(self):
        body = {"model": "slow", "messages": HELLO, "stream": True}
        first_took = self.streamed("/v1/chat/completions", body)[-1][1]
        self.unload()
        lines = self.streamed("/v1/chat/completions", body)
        notices = [(json.loads(line[12:]), at) for line, at in lines if line.startswith(b": llamaswap ")]
        facts, at = notices[0]
        self.assertEqual((facts["waiting_for"], facts["loading"]), ("slow", ["slow"]))
        self.assertTrue(1 <= facts["eta"] <= first_took + 1, (facts, first_took))
        self.assertLess(at, lines[-1][1] - 1)
        self.assertEqual(lines[-1][0], b"data: [DONE]")

    def test_a_bounded_wait_is_refused_and_the_load_goes_on(self):
        request = urllib.request.Request(
            self.product.url + "/v1/chat/completions",
            json.dumps({"model": "slow", "messages": HELLO}).encode(),
            {"Content-Type": "application/json", "Prefer": "wait=1"},
        )
        began = time.monotonic()
        with self.assertRaises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=60)
        self.assertLess(time.monotonic() - began, 2)
        error = caught.exception
        self.assertEqual((error.code, error.headers["Preference-Applied"]), (503, "wait=1"))
        self.assertEqual(json.load(error)["error"]["code"], "wait_limit")
        for _ in range(10):
            try:
                with urllib.request.urlopen(request, timeout=60) as response:
                    self.assertIn(REPLY, response.read().decode())
                return
            except urllib.error.HTTPError as refused:
                refused.close()
        self.fail("the load did not go on")
