"""Real llama.cpp servers, swapped under one endpoint, seen through the official clients.

The models are generated on the spot and give a known reply each, so a test can tell which of them answered and
that no byte was lost.
"""

import atexit
import importlib.util
import json
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.demo import demo_config
from tests.live.product import Product, free_range, wait_for

MISSING = [name for name in ("xllamacpp", "gguf", "openai", "anthropic") if importlib.util.find_spec(name) is None]
LIVE = Path(__file__).parent
REPLY = {"alpha": "Alpha here: every byte of this came through.", "beta": "Beta answers now, Alpha made room."}


def config(folder):
    server = f'"{sys.executable}" "{LIVE}/llama_server.py" --port ${{PORT}} -t 1 -a ${{MODEL_ID}}'
    lines = ["healthCheckTimeout: 60", f"startPort: {free_range()}", "models:"]
    for model, reply in REPLY.items():
        lines += [f"  {model}:", "    cmd: |", f'      {server} -m "{folder}/{model}.gguf" --slot-save-path "{folder}"']
        lines += [f"""      --make 'chat --name {model} --reply "{reply}"'"""]
    # Two HTTP threads: the fewest that leave one free beside the one connection that may be kept.
    lines += [
        "  few:",
        "    cmd: |",
        f"""      {server} -m "{folder}/few.gguf" --threads-http 2 --make 'chat --name few'""",
    ]
    lines += ["  embed:", "    cmd: |", f"""      {server} -m "{folder}/embed.gguf" --embedding --make embed"""]
    lines += ["  rank:", "    cmd: |", f"""      {server} -m "{folder}/rank.gguf" --rerank --make rerank"""]
    return "\n".join(lines)


class Stage:
    """One service for all tests of this file: loading models is what takes time here. Ended when the run ends."""

    _open = None

    @classmethod
    def open(cls):
        if cls._open is None:
            cls._open = cls()
            atexit.register(cls._open.close)
        return cls._open

    def __init__(self):
        import anthropic
        import openai

        self.folder = tempfile.TemporaryDirectory(prefix="llamaswap-models-")
        self.product = Product(config(self.folder.name)).__enter__()
        # A key of its own: that of the caller's environment is none of a test's business.
        self.openai = openai.OpenAI(base_url=self.product.url + "/v1", api_key="none", max_retries=0, timeout=60)
        self.anthropic = anthropic.Anthropic(base_url=self.product.url, api_key="none", max_retries=0, timeout=60)

    def close(self):
        self.openai.close()
        self.anthropic.close()
        self.product.__exit__()
        self.folder.cleanup()


class DemoModelTests(SynchronousTestCase):
    if MISSING:
        skip = f"not installed: {', '.join(MISSING)} (extra: live)"

    timeout = 120

    def test_the_generated_models_of_the_demo_give_their_replies(self):
        with tempfile.TemporaryDirectory(prefix="llamaswap-demo-") as folder:
            text = demo_config(real=True, models=f"{folder}/models").replace(
                "startPort: 5900", f"startPort: {free_range()}"
            )
            with Product(text) as product:
                for model, name in (("llama-alpha", "Alpha"), ("llama-beta", "Beta")):
                    body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
                    choice = product.json("/v1/chat/completions", body)["choices"][0]
                    self.assertEqual((choice["message"]["content"].split()[0], choice["finish_reason"]), (name, "stop"))


class RealServerTests(SynchronousTestCase):
    if MISSING:
        skip = f"not installed: {', '.join(MISSING)} (extra: live)"

    timeout = 240

    def setUp(self):
        stage = Stage.open()
        self.product, self.openai, self.anthropic = stage.product, stage.openai, stage.anthropic

    def chat(self, model, **more):
        messages = [{"role": "user", "content": "who is there?"}]
        return self.openai.chat.completions.create(model=model, messages=messages, **more)

    def row_of(self, session):
        """The row of the one request that carried this session header: rows are written a moment after the answer."""
        path = f"/api/metrics/activity?session={session}"
        wait_for(lambda: self.product.json(path)["data"], 5, "the row")
        return self.product.json(path)["data"][0]

    def test_two_models_swap_back_and_forth(self):
        for model in ("alpha", "beta", "alpha"):
            answer = self.chat(model)
            self.assertEqual(answer.choices[0].message.content, REPLY[model])
            self.assertEqual(self.product.running(), {model: "ready"})

    def test_streamed_chat_is_complete(self):
        for model in ("beta", "alpha"):
            stream = self.chat(model, stream=True, stream_options={"include_usage": True})
            chunks = list(stream)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            self.assertEqual(text, REPLY[model])
            self.assertGreater(chunks[-1].usage.completion_tokens, 0)

    def test_tokens_are_counted_as_the_server_counts_them(self):
        usage = self.chat("alpha", extra_headers={"X-Session-ID": "counting"}).usage
        row = self.row_of("counting")
        self.assertEqual((row["model"], row["resp_status_code"]), ("alpha", 200))
        self.assertEqual(row["tokens"]["output_tokens"], usage.completion_tokens)
        self.assertEqual(row["tokens"]["input_tokens"] + max(0, row["tokens"]["cache_tokens"]), usage.prompt_tokens)
        self.assertGreater(row["tokens"]["tokens_per_second"], 0)

    def test_completions(self):
        answer = self.openai.completions.create(model="alpha", prompt="say", max_tokens=64)
        self.assertIn("Alpha here", answer.choices[0].text)
        parts = self.openai.completions.create(model="alpha", prompt="say", max_tokens=64, stream=True)
        self.assertEqual("".join(part.choices[0].text for part in parts), answer.choices[0].text)

    def test_responses(self):
        answer = self.openai.responses.create(model="beta", input="who?")
        self.assertEqual(answer.output_text, REPLY["beta"])
        kinds = [event.type for event in self.openai.responses.create(model="beta", input="who?", stream=True)]
        self.assertEqual(kinds[-1], "response.completed")

    def test_embeddings(self):
        answer = self.openai.embeddings.create(model="embed", input=["a cat sat", "a dog sat"], encoding_format="float")
        self.assertEqual(len(answer.data), 2)
        self.assertEqual(len(answer.data[0].embedding), 128)

    def test_rerank(self):
        documents = ["city city", "relevant relevant", "relevant cat"]
        for path in ("/v1/rerank", "/rerank"):
            answer = self.product.json(path, {"model": "rank", "query": "what?", "documents": documents})
            best = max(answer["results"], key=lambda row: row["relevance_score"])
            self.assertEqual(best["index"], 1)

    def test_messages(self):
        asked = {"model": "alpha", "max_tokens": 64, "messages": [{"role": "user", "content": "who?"}]}
        answer = self.anthropic.messages.create(**asked)
        self.assertEqual(answer.content[0].text, REPLY["alpha"])
        with self.anthropic.messages.stream(**asked, extra_headers={"X-Session-ID": "messages"}) as stream:
            self.assertEqual("".join(stream.text_stream), REPLY["alpha"])
            final = stream.get_final_message()
        self.assertEqual(final.usage.output_tokens, answer.usage.output_tokens)
        row = self.row_of("messages")
        self.assertEqual(row["tokens"]["output_tokens"], final.usage.output_tokens)
        counted = self.anthropic.messages.count_tokens(model="alpha", messages=asked["messages"])
        self.assertGreater(counted.input_tokens, 0)

    def test_infill(self):
        body = {"model": "beta", "input_prefix": "def f(", "input_suffix": ")", "n_predict": 16}
        answer = self.product.json("/infill", body)
        self.assertIn("Beta", answer["content"] if isinstance(answer, dict) else answer[-1]["content"])

    def test_native_completion_and_passthrough(self):
        answer = self.product.json("/completion", {"model": "beta", "prompt": "x", "n_predict": 32})
        self.assertIn("Beta", answer["content"])
        tokens = self.product.json("/upstream/beta/tokenize", {"content": "some words"})
        self.assertTrue(tokens["tokens"])
        self.assertEqual(self.product.json("/upstream/beta/health"), {"status": "ok"})

    def few(self):
        """The model with two HTTP threads, loaded: what to ask it, and where its server is."""
        body = {"model": "few", "prompt": "x", "n_predict": 1, "cache_prompt": False}
        self.product.json("/completion", body)
        (server,) = [row["proxy"] for row in self.product.json("/running")["running"]]
        return body, server.removeprefix("http://")

    def timed(self, body):
        began = time.monotonic()
        status, _, _ = self.product.ask("/completion", body)
        return status, time.monotonic() - began

    def test_bursts_leave_no_connection_that_holds_one_of_its_few_threads(self):
        """reliability R40

        The server's HTTP threads are few, and an idle kept connection holds one of them for five seconds: a proxy
        that keeps as many as a burst needed makes requests of the next one, and everybody else's, wait for that long.
        """
        body, server = self.few()
        answers, beside = [], []
        with ThreadPoolExecutor(12) as clients:
            for _ in range(40):
                answers += clients.map(lambda _: self.timed(body), range(12))
                began = time.monotonic()
                with closing(HTTPConnection(server, timeout=30)) as other:
                    other.request("GET", "/health")
                    other.getresponse().read()
                beside.append(time.monotonic() - began)
        self.assertEqual({status for status, _ in answers}, {200})
        self.assertLess(max(seconds for _, seconds in answers), 1.0)
        self.assertLess(max(beside), 1.0)

    def test_the_models_own_error_passes_unchanged(self):
        status, _, data = self.product.ask("/v1/chat/completions", {"model": "alpha", "messages": "nonsense"})
        self.assertGreaterEqual(status, 400)
        self.assertNotIn("llama-swap", json.dumps(json.loads(data)))


# How llama.cpp, whisper.cpp and stable-diffusion.cpp have long served, and most installed ones do: a fixed number of
# threads, each with one connection until that is closed or silent for five seconds.
FIXED_THREADS = """
import queue, socket, sys, threading, time
door = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=64)
waiting = queue.Queue()
def serve():
    while True:
        line = waiting.get()
        line.settimeout(5)
        try:
            data = b""
            while True:
                more = line.recv(65536)
                if not more:
                    break
                data += more
                head, found, rest = data.partition(b"\\r\\n\\r\\n")
                length = head.lower().partition(b"content-length: ")[2].partition(b"\\r\\n")[0]
                if found and len(rest) >= int(length or 0):
                    data = b""
                    time.sleep(0.02)  # its work: those who come together meet here
                    line.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\n{}")
        except OSError:
            pass
        line.close()
for _ in range(2):
    threading.Thread(target=serve, daemon=True).start()
while True:
    waiting.put(door.accept()[0])
"""


class FixedThreadsTests(SynchronousTestCase):
    timeout = 120

    def worst(self, product, model, bursts):
        """The slowest of so many bursts of twelve."""

        def one(_):
            began = time.monotonic()
            status, _, _ = product.ask("/v1/chat/completions", {"model": model, "messages": []})
            self.assertEqual(status, 200)
            return time.monotonic() - began

        with ThreadPoolExecutor(12) as clients:
            return max(seconds for _ in range(bursts) for seconds in clients.map(one, range(12)))

    def test_bursts_for_a_server_of_two_threads_wait_for_its_work_alone(self):
        """reliability R40"""
        script = Path(self.mktemp()).resolve()
        script.write_text(FIXED_THREADS)
        with Product(f"models:\n  two:\n    cmd: {sys.executable} -I -S {script} ${{PORT}}\n") as product:
            self.worst(product, "two", 1)
            self.assertLess(self.worst(product, "two", 40), 1.0)
            (server,) = [row["proxy"] for row in product.json("/running")["running"]]
            # The same server behind a wide pool, as peers have it: this is what the bound above keeps away.
            with Product(f"peers:\n  wide:\n    proxy: {server}\n    models: [two]\n") as wide:
                self.assertTrue(any(self.worst(wide, "two", 1) > 2.0 for _ in range(20)))
