"""Rules for requests and bounds on responses, with a llama.cpp server whose model never ends its turn."""

import importlib.util
import json
import sys
import tempfile
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.live.product import Product, free_range, wait_for

MISSING = [name for name in ("xllamacpp", "gguf", "openai", "anthropic") if importlib.util.find_spec(name) is None]
LIVE = Path(__file__).parent
HELLO = [{"role": "user", "content": "hello"}]


def config(folder):
    server = f'"{sys.executable}" "{LIVE}/llama_server.py" --port ${{PORT}} -t 1 -c 100000 -a ${{MODEL_ID}}'
    command = f"""{server} -m "{folder}/m.gguf" --make 'chat --name m --loop --reply "on and on "'"""
    kid = {"key": "sk-kid", "name": "kid", "scopes": ["infer"], "maxTokens": 5}
    return json.dumps(
        {
            "startPort": free_range(),
            "apiKeys": [kid, {"key": "sk-me", "name": "me", "scopes": ["admin"]}],
            "models": {
                "endless": {"cmd": command, "maxDuration": "2s"},
                "other": {"cmd": command, "ttl": 1, "filters": {"renameParams": {"limit": "max_tokens"}}},
            },
            "routing": {"defaultModel": "endless", "restoreDefault": True},
        }
    )


class RuleTests(SynchronousTestCase):
    if MISSING:
        skip = f"not installed: {', '.join(MISSING)} (extra: live)"

    timeout = 240

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="llamaswap-models-")
        self.addCleanup(folder.cleanup)
        self.product = Product(config(folder.name)).__enter__()
        self.addCleanup(self.product.__exit__)

    def ask(self, path, body, key="sk-me"):
        return self.product.ask(path, body, headers={"Authorization": f"Bearer {key}"}, timeout=60)

    def idle(self):
        """Whether the server of `endless` generates nothing any more."""
        _, _, data = self.ask("/upstream/endless/slots", None)
        return not any(slot["is_processing"] for slot in json.loads(data))

    def test_official_clients_see_a_runaway_stream_end_at_its_limit(self):
        import anthropic
        import openai

        options = {"api_key": "sk-me", "max_retries": 0, "timeout": 60}
        with openai.OpenAI(base_url=self.product.url + "/v1", **options) as client:
            began = time.monotonic()
            chunks = list(client.chat.completions.create(model="endless", messages=HELLO, stream=True))
            self.assertEqual(chunks[-1].choices[0].finish_reason, "length")
            self.assertGreater(len(chunks), 3)
            self.assertGreater(time.monotonic() - began, 1.9)
            wait_for(self.idle, 10, "the server's request to be cancelled")
            events = list(client.responses.create(model="endless", input="hello", stream=True))
            self.assertEqual(events[-1].type, "response.incomplete")
            self.assertEqual(events[-1].response.incomplete_details.reason, "max_output_tokens")
            with self.assertRaises(openai.InternalServerError) as caught:
                client.chat.completions.create(model="endless", messages=HELLO)
            self.assertEqual(caught.exception.status_code, 504)
        with anthropic.Anthropic(base_url=self.product.url, **options) as client:
            with client.messages.stream(model="endless", max_tokens=90_000, messages=HELLO) as stream:
                message = stream.get_final_message()
            self.assertEqual(message.stop_reason, "max_tokens")
            self.assertIn("on and on", message.content[0].text)
        lines = [
            json.loads(line) for line in self.ask("/api/chat", {"model": "endless", "messages": HELLO})[2].splitlines()
        ]
        self.assertEqual((lines[-1]["done"], lines[-1]["done_reason"]), (True, "length"))

    def test_rules_of_models_and_keys_reach_the_server(self):
        _, _, data = self.ask("/v1/chat/completions", {"model": "other", "messages": HELLO, "limit": 9})
        answer = json.loads(data)
        self.assertEqual((answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]), (9, "length"))
        for path, more in (("/v1/chat/completions", {}), ("/v1/chat/completions", {"max_tokens": -1})):
            _, _, data = self.ask(path, {"model": "other", "messages": HELLO, **more}, "sk-kid")
            self.assertEqual(json.loads(data)["usage"]["completion_tokens"], 5)
        _, _, data = self.ask("/v1/messages", {"model": "other", "max_tokens": 4000, "messages": HELLO}, "sk-kid")
        self.assertEqual(
            (json.loads(data)["stop_reason"], json.loads(data)["usage"]["output_tokens"]), ("max_tokens", 5)
        )
        self.assertEqual(self.ask("/upstream/other/v1/chat/completions", {"messages": HELLO}, "sk-kid")[0], 403)

    def test_the_default_model_returns_and_a_request_keeps_its_model(self):
        def running():
            _, _, data = self.ask("/running", None)
            return {row["model"]: row["state"] for row in json.loads(data)["running"]}

        self.ask("/v1/chat/completions", {"model": "endless", "messages": HELLO, "max_tokens": 1})
        self.ask("/v1/chat/completions", {"model": "other", "messages": HELLO, "max_tokens": 1, "keepAlive": "4s"})
        time.sleep(2)
        self.assertEqual(running(), {"other": "ready"})
        wait_for(lambda: running() == {"endless": "ready"}, 30, "the default model")
