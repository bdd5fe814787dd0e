"""The demo's servers and configuration, without the product around them."""

import io
import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.demo import demo_config
from llamaswap.demo.server import DemoServer, last_user_text, parrot, pieces, poet


class VoiceTests(SynchronousTestCase):
    def test_last_user_message_is_the_prompt(self):
        messages = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
        self.assertEqual(last_user_text({"messages": messages}), "one")
        parts = [{"type": "text", "text": "three"}, {"type": "image_url"}]
        self.assertEqual(last_user_text({"messages": [*messages, {"role": "user", "content": parts}]}), "three ")
        self.assertEqual(last_user_text({"prompt": "four"}), "four")

    def test_joined_pieces_are_the_text(self):
        for text in (parrot("hello there"), poet("hello there")):
            self.assertEqual("".join(pieces(text, 999)), text)
        self.assertEqual(len(pieces("a b c", 2)), 2)

    def test_verse_depends_only_on_its_theme(self):
        self.assertEqual(poet("a river"), poet("the river"))


class ConfigTests(SynchronousTestCase):
    def test_demo_configuration_fills_placeholders_and_adds_real_models(self):
        plain, real = demo_config(real=False), demo_config(real=True, models="/m")
        self.assertTrue(real.startswith(plain.replace("MODELS", "/m")))
        for text in (plain, real):
            self.assertIn(sys.executable, text)
            for word in ("PYTHON", "FOLDER", "MODELS"):
                self.assertNotIn(word, text)
        self.assertIn("llama-beta", real)


class ServerTests(SynchronousTestCase):
    """Over loopback: it is a few lines of the standard library, and a browserless client sees what a user would."""

    def setUp(self):
        self.server = DemoServer(0, "poet", "poet", 0.0)
        thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        self.addCleanup(thread.join, 5)
        self.addCleanup(self.server.server_close)
        self.addCleanup(self.server.shutdown)

    def ask(self, path, body=None):
        url = f"http://127.0.0.1:{self.server.server_port}{path}"
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=10) as answer:
            return answer.read()

    def test_server_log_shows_requests_without_health_checks(self):
        written = io.StringIO()
        self.patch(sys, "stdout", written)
        for path in ("/health", "/v1/models", "/health"):
            self.ask(path)
        self.assertEqual(written.getvalue().split(), ["GET", "/v1/models", "200"])

    def test_chat_stream_has_the_words_of_the_whole_answer(self):
        body = {"messages": [{"role": "user", "content": "a lamp"}]}
        whole = json.loads(self.ask("/v1/chat/completions", body))
        events = self.ask("/v1/chat/completions", {**body, "stream": True}).decode().split("\n\n")
        chunks = [json.loads(event[6:]) for event in events if event.startswith("data: {")]
        text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks)
        self.assertEqual(text, whole["choices"][0]["message"]["content"])
        self.assertEqual(chunks[-1]["usage"], whole["usage"])
        self.assertEqual(events[-2], "data: [DONE]")

    def test_messages_answer_has_the_anthropic_format(self):
        body = {"messages": [{"role": "user", "content": "a lamp"}], "max_tokens": 3}
        whole = json.loads(self.ask("/v1/messages", body))
        self.assertEqual((whole["type"], whole["usage"]["output_tokens"]), ("message", 3))
        stream = self.ask("/v1/messages", {**body, "stream": True}).decode()
        self.assertIn("event: message_stop\n", stream)

    def test_every_path_answers_503_while_it_loads(self):
        self.server.ready_at += 3600
        error = self.assertRaises(urllib.error.HTTPError, self.ask, "/health")
        self.assertEqual(error.code, 503)
        error.close()

    def test_body_that_is_not_json_is_answered_400(self):
        url = f"http://127.0.0.1:{self.server.server_port}/v1/chat/completions"
        error = self.assertRaises(urllib.error.HTTPError, urllib.request.urlopen, url, b"{", 10)
        self.assertEqual(error.code, 400)
        error.close()


class ImportTests(SynchronousTestCase):
    def test_demo_server_needs_only_the_standard_library(self):
        import llamaswap.demo.server as module

        done = subprocess.run([sys.executable, "-I", "-S", module.__file__, "--help"], capture_output=True, timeout=30)
        self.assertEqual(done.returncode, 0, done.stderr)
