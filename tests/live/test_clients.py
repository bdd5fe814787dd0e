"""Programs that people put before, behind and beside the service, as they are: SDKs, nginx, promtool, websockets."""

import json
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.live.product import ROOT, Product, wait_for
from tests.live.test_service import chat, config, pids

try:
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import connect
except ImportError:
    connect = None

# What the official client for JavaScript makes of us; each finding is one line of JSON.
JAVASCRIPT = """
import OpenAI from "openai";
const [, , url, key] = process.argv;
const client = new OpenAI({ baseURL: url + "/v1", apiKey: key, maxRetries: 0 });
const messages = [{ role: "user", content: "hi" }];
const tell = (name, value) => console.log(JSON.stringify({ [name]: value }));
const name = async (work) => { try { await work(); return "none"; } catch (error) { return error.constructor.name; } };

tell("models", (await client.models.list()).data.map((model) => model.id));
const whole = await client.chat.completions.create({ model: "one", messages });
tell("whole", whole.choices[0].message.content);
let text = "";
const stream = await client.chat.completions.create({ model: "one", messages, stream: true });
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta?.content ?? "";
}
tell("streamed", text);
let thought = "", said = "";
const cold = await client.chat.completions.create({ model: "slow", messages, stream: true });
for await (const chunk of cold) {
  thought += chunk.choices[0]?.delta?.reasoning_content ?? "";
  said += chunk.choices[0]?.delta?.content ?? "";
}
tell("loading", [thought.includes("loading model: slow"), said]);
tell("unknown", await name(() => client.chat.completions.create({ model: "ghost", messages })));
const stranger = new OpenAI({ baseURL: url + "/v1", apiKey: "wrong", maxRetries: 0 });
tell("stranger", await name(() => stranger.models.list()));
tell("broken", await name(async () => {
  const cut = await client.chat.completions.create({ model: "crash", messages, stream: true });
  for await (const _ of cut);
}));
const leaving = await client.chat.completions.create({ model: "long", messages, stream: true });
for await (const _ of leaving) { leaving.controller.abort(); break; }
tell("left", true);
"""


def needs(*programs):
    """Their paths, or the reason why the test cannot run here."""
    paths = [shutil.which(program) for program in programs]
    for program, path in zip(programs, paths, strict=True):
        if path is None:
            raise SkipTest(f"{program} is not installed")
    return paths


class OpenAiForJavaScript(SynchronousTestCase):
    timeout = 120

    def test_client_works_as_with_the_original_server(self):
        node, npm = needs("node", "npm")
        folder = Path(self.mktemp())
        folder.mkdir()
        words = [npm, "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "openai@7"]
        try:
            done = subprocess.run(words, cwd=folder, capture_output=True, timeout=60)
        except subprocess.TimeoutExpired:
            raise SkipTest("the package registry does not answer") from None
        if done.returncode:
            raise SkipTest(f"npm cannot install openai: {done.stderr.decode()[-300:]}")
        (folder / "client.mjs").write_text(JAVASCRIPT)
        text = json.loads(
            config(
                one="--reply hello",
                slow={"flags": "--ready-after 1", "sendLoadingState": True},
                crash="--tokens 9 --crash-at 3",
                long="--tokens 1000 --interval 0.05",
            )
        )
        with Product(json.dumps({**text, "apiKeys": ["k-1"]})) as product:
            words = [node, "client.mjs", product.url, "k-1"]
            done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=60)
            self.assertEqual(done.returncode, 0, done.stderr + done.stdout)
            found = {}
            for line in done.stdout.splitlines():
                found |= json.loads(line)
            busy = lambda: product.json("/readyz", headers={"x-api-key": "k-1"})["serving"]
            wait_for(lambda: busy() == 0, 5, "the end of the request that was left")
        self.assertEqual(found["models"], ["crash", "long", "one", "slow"])
        self.assertEqual(found["whole"], "hello")
        self.assertIn("hello", found["streamed"])
        self.assertEqual(found["loading"][0], True)
        self.assertTrue(found["loading"][1])
        self.assertEqual((found["unknown"], found["stranger"]), ("NotFoundError", "AuthenticationError"))
        self.assertEqual(found["broken"], "APIError")


class Promtool(SynchronousTestCase):
    timeout = 60

    def test_a_scrape_passes_its_checks(self):
        (promtool,) = needs("promtool")
        with Product(config(one="", bad="--exit-at-once")) as product:
            product.json("/v1/chat/completions", chat("one"))
            product.ask("/v1/chat/completions", chat("bad"))
            product.ask("/v1/chat/completions", chat("ghost"))
            product.ask("/v1/chat/completions", chat("one", stream=True))
            wait_for(lambda: b"llamaswap_cpu_util_percent" in product.ask("/metrics")[2], 15, "a sample")
            page = product.ask("/metrics")[2]
        done = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, timeout=30)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, b"", b""))


def snippet():
    """The location block that the page about reverse proxies recommends."""
    page = (ROOT / "docs/recipes/proxies.rst").read_text(encoding="utf-8")
    found = re.search(r"^ +location / \{\n.*?^ +\}\n", page, re.S | re.M)
    if found is None:
        raise AssertionError("docs/recipes/proxies.rst has no nginx location")
    return found[0]


class Nginx:
    """nginx in front of a product, configured as the documentation says; `url` is where it listens."""

    def __init__(self, product):
        (self.program,) = needs("nginx")
        self.home = tempfile.TemporaryDirectory(prefix="llamaswap-nginx-")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        place = snippet().replace("http://127.0.0.1:8080", product.url)
        folders = "".join(
            f"{kind}_temp_path {self.home.name}/{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        self.path = Path(self.home.name) / "nginx.conf"
        self.path.write_text(
            f"daemon off;\nmaster_process off;\nworker_processes 1;\npid {self.home.name}/pid;\n"
            "events { worker_connections 256; }\n"
            f"http {{\naccess_log off;\n{folders}"
            "map $http_upgrade $connection_upgrade { default upgrade; '' ''; }\n"
            f"server {{ listen 127.0.0.1:{port};\n{place} }}\n}}\n"
        )

    def __enter__(self):
        words = [self.program, "-p", self.home.name, "-c", str(self.path), "-e", "stderr"]
        self.process = subprocess.Popen(words, stderr=subprocess.PIPE)
        try:
            wait_for(self.listens, 10, "nginx")
        except AssertionError:
            self.process.kill()
            raise AssertionError(self.process.communicate()[1].decode()) from None
        return self

    def listens(self):
        try:
            with socket.create_connection(("127.0.0.1", int(self.url.rpartition(":")[2])), 1):
                return True
        except ConnectionRefusedError:
            return False

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
        self.home.cleanup()


class BehindNginx(SynchronousTestCase):
    timeout = 60

    def test_events_pass_as_they_come(self):
        with Product(config(one="--tokens 5 --interval 0.2")) as product, Nginx(product) as front:
            product.json("/v1/chat/completions", chat("one"))
            body = json.dumps(chat("one", stream=True)).encode()
            request = urllib.request.Request(
                front.url + "/v1/chat/completions", body, {"Content-Type": "application/json"}
            )
            times = []
            with urllib.request.urlopen(request, timeout=20) as answer:
                for line in answer:
                    if b'"tok' in line:
                        times.append(time.monotonic())
            self.assertEqual(len(times), 5)
            self.assertGreater(times[-1] - times[0], 0.5)

    def test_the_clients_address_is_the_one_that_is_shown(self):
        with Product(config(one="")) as product, Nginx(product) as front:
            body = json.dumps(chat("one")).encode()
            request = urllib.request.Request(
                front.url + "/v1/chat/completions",
                body,
                {"Content-Type": "application/json", "X-Forwarded-For": "203.0.113.9"},
            )
            urllib.request.urlopen(request, timeout=20).read()
            wait_for(lambda: "203.0.113.9" in product.output + product.ask("/logs")[2].decode(), 5, "the access line")

    def test_an_upload_of_fifty_megabytes_passes(self):
        with Product(config(one="")) as product, Nginx(product) as front:
            request = urllib.request.Request(front.url + "/upstream/one/anything", b"x" * 50_000_000)
            with urllib.request.urlopen(request, timeout=40) as answer:
                self.assertEqual(json.loads(answer.read())["length"], 50_000_000)

    def test_a_websocket_passes(self):
        if connect is None:
            raise SkipTest("the package websockets is not installed")
        with Product(config(one="")) as product, Nginx(product) as front:
            product.json("/v1/chat/completions", chat("one"))
            with connect(front.url.replace("http", "ws") + "/upstream/one/ws", open_timeout=10) as client:
                client.send("through two")
                self.assertEqual(client.recv(timeout=10), "through two")


class WebsocketTests(SynchronousTestCase):
    timeout = 60

    def setUp(self):
        if connect is None:
            raise SkipTest("the package websockets is not installed")

    def socket(self, product, model="one"):
        address = product.url.replace("http", "ws") + f"/upstream/{model}/ws"
        return connect(address, open_timeout=20, max_size=None, compression=None)

    def test_messages_of_every_kind_and_size_pass_both_ways(self):
        """http T104"""
        with Product(config(one="")) as product, self.socket(product) as client:
            for message in ("hello", "", b"\x00\xff" * 500_000, "ä" * 70_000):
                client.send(message)
                self.assertEqual(client.recv(timeout=10), message)
            self.assertTrue(client.ping().wait(10))
            client.close(1000, "enough")
            self.assertEqual((client.close_code, product.running()), (1000, {"one": "ready"}))

    def test_ignored_websocket_does_not_keep_its_model(self):
        """core V19"""
        models = {"one": {"ttl": 2, "compat": {"ignoreWebsockets": True}}}
        with Product(config(**models)) as product:
            product.json("/v1/chat/completions", chat("one"))
            with self.socket(product) as client:
                client.send("x")
                self.assertEqual(client.recv(timeout=5), "x")
                began = time.monotonic()
                self.assertRaises(ConnectionClosed, client.recv, timeout=10)
                self.assertLess(time.monotonic() - began, 5)
            wait_for(lambda: product.running() == {}, 5, "the end of the server")

    def test_counted_websocket_keeps_its_model(self):
        with Product(config(one={"ttl": 1})) as product, self.socket(product) as client:
            time.sleep(2)
            client.send("still there")
            self.assertEqual(client.recv(timeout=5), "still there")


class ReloadUnderLoad(SynchronousTestCase):
    timeout = 90

    def test_a_hundred_reloads_fail_no_request_and_touch_no_unchanged_server(self):
        """core V103, core V104"""
        first = json.loads(config(one="--tokens 20 --interval 0.01", other="--tokens 3"))
        first["routing"] = {"router": {"settings": {"groups": {"g": {"swap": False, "members": ["one", "other"]}}}}}
        results, over = [], threading.Event()

        def keep_asking(product, model):
            while not over.is_set():
                status, _, data = product.ask("/v1/chat/completions", chat(model, stream=True))
                results.append((model, status, data.count(b'"tok'), data.rstrip().endswith(b"[DONE]")))

        with Product(json.dumps(first)) as product:
            before = pids(product, "one", "other")
            threads = [
                threading.Thread(target=keep_asking, args=(product, model)) for model in ("one", "one", "one", "other")
            ]
            for thread in threads:
                thread.start()
            try:
                for turn in range(100):
                    text = json.loads(json.dumps(first))
                    text["models"][f"a{turn}"] = {"cmd": "true --port ${PORT}"}  # sorts first: every port would shift
                    text["models"]["other"]["ttl"] = turn
                    product.config.write_text(json.dumps(text))
                    product.process.send_signal(signal.SIGHUP)
                    wait_for(lambda turn=turn: f'"a{turn}"' in product.ask("/v1/models")[2].decode(), 10, "a reload")
            finally:
                over.set()
                for thread in threads:
                    thread.join(20)
            self.assertEqual(pids(product, "one", "other"), before)
        wanted = {("one", 200, 20, True), ("other", 200, 3, True)}
        self.assertEqual(set(results), wanted)
        self.assertGreater(len(results), 50)
