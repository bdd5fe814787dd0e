"""The commands with a running product, and `pull` with a fake model hub."""

import hashlib
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.live.product import ROOT, Product, wait_for
from tests.live.test_service import config


def command(*words, url="", stdin=None, timeout=60, **env):
    """Run a subcommand; returns (exit status, standard output, standard error)."""
    done = subprocess.run(
        [sys.executable, "-m", "llamaswap", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), **({"LLAMASWAP_URL": url} if url else {}), **env},
        input=stdin or "",
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    return done.returncode, done.stdout, done.stderr


class RemoteTests(SynchronousTestCase):
    timeout = 120

    def test_commands_of_an_operator_session(self):
        with Product(config(one="--say WRITTEN", two="", bad={"cmd": "/no/such/program --port ${PORT}"})) as product:

            def ask(*words, code=0, **more):
                status, out, err = command(*words, url=product.url, **more)
                self.assertEqual(status, code, out + err)
                return out + err if code else out

            self.assertIn("nothing is loaded", ask("ps"))
            self.assertEqual(json.loads(ask("load", "one", "--json"))[0]["state"], "ready")
            self.assertIn("one", ask("ps"))
            self.assertIn("/no/such/program", ask("load", "bad", code=1))
            self.assertEqual([row["id"] for row in json.loads(ask("ps", "-a", "--json"))["models"]].count("two"), 1)
            self.assertIn("WRITTEN", ask("logs", "one"))
            self.assertIn("tok", ask("run", "two", "hello"))
            self.assertEqual(json.loads(ask("run", "two", "--json", stdin="hello"))["model"], "two")
            found = json.loads(ask("bench", "two", "-n", "4", "-c", "2", "--json"))
            self.assertEqual((found["failed"], found["requests"]), (0, 4))
            self.assertIn("two", ask("top", "--once"))
            ask("unload", "two")
            shown = ask("ps")
            self.assertNotIn("two", shown)
            self.assertRegex(shown, r"(?m)^bad +failed")  # nothing is loaded, and this still is to be mended

    def test_keys_of_the_screen_load_a_model_and_leave(self):
        with Product(config(one="--say WRITTEN")) as product:
            leader, follower = os.openpty()
            self.addCleanup(os.close, leader)
            screen = subprocess.Popen(
                [sys.executable, "-m", "llamaswap", "top", "--every", "0.3", "--url", product.url],
                env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100", "LINES": "30"},
                **dict.fromkeys(("stdin", "stdout", "stderr"), follower),
            )
            os.close(follower)
            shown = bytearray()

            def until(part):
                def seen():
                    if select.select([leader], [], [], 0.1)[0]:
                        shown.extend(os.read(leader, 65536))
                    return part in shown

                wait_for(seen, 30, part.decode())

            try:
                until(b"one")
                os.write(leader, b"l")
                until(b"ready")
                os.write(leader, b"\r")
                until(b"WRITTEN")
                os.write(leader, b"qq")
                self.assertEqual(screen.wait(10), 0)
            finally:
                screen.kill()
                screen.wait(10)

    def test_key_is_needed_if_the_server_requires_one(self):
        text = json.loads(config(one="")) | {"apiKeys": ["open sesame".replace(" ", "-")]}
        with Product(json.dumps(text)) as product:
            self.assertEqual(command("ps", url=product.url)[0], 1)
            self.assertEqual(command("ps", "--key", "open-sesame", url=product.url)[0], 0)

    def test_followed_log_shows_later_lines(self):
        with Product(config(one="--say WRITTEN")) as product:
            follower = subprocess.Popen(
                [sys.executable, "-m", "llamaswap", "logs", "-f", "one", "--url", product.url],
                env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
                stdout=subprocess.PIPE,
                text=True,
            )
            try:
                product.json("/v1/chat/completions", {"model": "one", "messages": []})
                lines = iter(follower.stdout.readline, "")
                self.assertIn("WRITTEN", next(line for line in lines if "WRITTEN" in line))
            finally:
                follower.kill()
                follower.wait(10)
                follower.stdout.close()


CONTENT = b"GGUF" + bytes(range(256)) * 49152  # 12 MiB: the hub's client writes pieces of ten
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """As much of the model hub's interface as a download needs. `cut`: the first response ends early; `hold`: it stops
    there, and the connection stays open."""

    protocol_version = "HTTP/1.1"
    names = ("README.md", "Tiny-Q4_K_M.gguf", "Tiny-Q8_0.gguf")
    ranges: list = []
    cut = False
    hold: threading.Event | None = None

    def do_HEAD(self):
        self._answer(head=True)

    def do_GET(self):
        self._answer()

    def _answer(self, head=False):
        path = self.path.partition("?")[0]
        if path == "/api/models":
            return self._send(200, b'[{"id": "org/Tiny-GGUF", "downloads": 5}]', {}, head)
        if path.startswith("/api/models/org/Tiny-GGUF/tree/"):
            rows = [{"type": "file", "path": name, "size": len(CONTENT), "oid": "a" * 40} for name in self.names]
            return self._send(200, json.dumps(rows).encode(), {"Content-Type": "application/json"}, head)
        if path.startswith("/api/models/org/Tiny-GGUF"):
            body = {
                "id": "org/Tiny-GGUF",
                "sha": COMMIT,
                "siblings": [{"rfilename": name, "size": len(CONTENT)} for name in self.names],
            }
            return self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"}, head)
        if path.startswith("/org/Tiny-GGUF/resolve/") and path.rpartition("/")[2] in self.names:
            headers = {"ETag": f'"{hashlib.sha1(CONTENT).hexdigest()}"', "X-Repo-Commit": COMMIT}
            asked = self.headers.get("Range")
            if asked and not head:
                type(self).ranges.append(asked)
                start = int(asked.removeprefix("bytes=").partition("-")[0])
                if start:
                    headers["Content-Range"] = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
                    return self._send(206, CONTENT[start:], headers, head)
            return self._send(200, CONTENT, headers, head)
        return self._send(404, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, head)

    def _send(self, status, body, headers, head):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not head:
            if type(self).hold is not None and status == 200 and body is CONTENT:
                held, type(self).hold = type(self).hold, None
                self.wfile.write(body[: len(body) * 11 // 12])
                held.wait(30)
                self.close_connection = True
            elif type(self).cut and status == 200 and body is CONTENT:
                type(self).cut = False
                self.wfile.write(body[: len(body) * 11 // 12])
                self.close_connection = True
            else:
                self.wfile.write(body)

    def log_message(self, *_):
        """Nothing."""


class PullTests(SynchronousTestCase):
    timeout = 120

    def setUp(self):
        if importlib.util.find_spec("huggingface_hub") is None:
            raise SkipTest("huggingface_hub is not installed (extra: pull)")
        Hub.ranges, Hub.cut, Hub.hold = [], False, None
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
        thread = threading.Thread(target=self.server.serve_forever)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(self.server.server_close)
        self.addCleanup(self.server.shutdown)
        self.home = Path(self.mktemp()).absolute()

    def hub(self):
        home = {"HF_HOME": str(self.home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        return {"HF_ENDPOINT": f"http://127.0.0.1:{self.server.server_address[1]}", **home}

    def pull(self, *words):
        return command("pull", *words, **self.hub())

    def test_service_searches_and_downloads_for_its_page(self):
        with Product("models: {}\n", "--allow-config-edit", env=self.hub()) as product:
            [found] = product.json("/api/hub/models?q=tiny")["models"]
            quants = product.json(f"/api/hub/models/{found['repository']}")["quants"]
            self.assertEqual([one["quant"] for one in quants], ["Q4_K_M", "Q8_0"])
            product.json("/api/hub/downloads", {"name": f"{found['repository']}:Q8_0"})
            newest = lambda: product.json("/api/hub/downloads")["downloads"][0]
            wait_for(lambda: newest()["state"] != "running", 60, "the download")
            done = newest()
            self.assertEqual((done["state"], done["completed"], done["total"]), ("done", len(CONTENT), len(CONTENT)))
            self.assertIn("Tiny-Q8_0.gguf", done["models"][0]["yaml"])
            refused = product.ask("/api/hub/downloads", {"name": "org/nothing"})
            self.assertEqual(refused[0], 202)
            wait_for(lambda: newest()["state"] == "failed", 60, "the refusal")
            self.assertIn("not found", newest()["error"].lower())

    def test_named_quant_is_downloaded_into_the_cache(self):
        status, out, err = self.pull("org/Tiny-GGUF:Q8_0", "--json")
        self.assertEqual(status, 0, out + err)
        (path,) = json.loads(out)["files"]
        self.assertTrue(path.endswith("Tiny-Q8_0.gguf") and path.startswith(str(self.home)))
        self.assertEqual(Path(path).read_bytes(), CONTENT)

    def test_pulled_model_is_added_to_the_configuration(self):
        config = Path(self.mktemp())
        config.write_text("# mine\nmodels:\n  owl: {cmd: 's ${PORT}'}\n")
        status, out, err = self.pull("hf.co/org/Tiny-GGUF:Q8_0", "--add", "--config", str(config))
        self.assertEqual(status, 0, out + err)
        self.assertIn(f"-m {out.splitlines()[0]}", config.read_text())
        self.assertIn("# mine", config.read_text())
        self.assertEqual(command("check", str(config), "--json")[0], 0)
        self.assertEqual(self.pull("org/Tiny-GGUF:Q8_0", "--add", "--config", str(config))[0], 1)  # it is there

    def test_broken_download_is_resumed(self):
        Hub.cut = True
        status, out, err = self.pull("org/Tiny-GGUF")
        self.assertEqual(status, 0, out + err)
        self.assertEqual(Path(out.splitlines()[0]).read_bytes(), CONTENT)
        self.assertTrue(any(int(asked[6:].partition("-")[0]) for asked in Hub.ranges), Hub.ranges)

    def test_killed_download_is_resumed_by_the_next_process(self):
        held = Hub.hold = threading.Event()
        self.addCleanup(held.set)
        killed = subprocess.Popen(
            [sys.executable, "-m", "llamaswap", "pull", "org/Tiny-GGUF"],
            env={**os.environ, "PYTHONPATH": str(ROOT), **self.hub()},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            wait_for(lambda: self.partial() >= 10 * 1024 * 1024, 60, "a part of the file")
        finally:
            os.killpg(killed.pid, signal.SIGKILL)
            killed.wait(10)
        there = self.partial()
        status, out, err = self.pull("org/Tiny-GGUF")
        self.assertEqual(status, 0, out + err)
        self.assertEqual(Path(out.splitlines()[0]).read_bytes(), CONTENT)
        self.assertIn(f"bytes={there}-", Hub.ranges)

    def partial(self):
        """Bytes of unfinished files."""
        return sum(path.stat().st_size for path in self.home.rglob("*.incomplete"))

    def test_complete_file_is_not_downloaded_again(self):
        self.assertEqual(self.pull("org/Tiny-GGUF")[0], 0)
        Hub.cut = True  # it would be seen
        self.assertEqual(self.pull("org/Tiny-GGUF")[0], 0)
        self.assertTrue(Hub.cut)

    def test_unknown_quant_lists_the_available_ones(self):
        status, _, err = self.pull("org/Tiny-GGUF:Q2_K")
        self.assertEqual((status, "Q4_K_M" in err), (1, True))

    def test_unreachable_hub_exits_1_with_a_message(self):
        nobody = {**self.hub(), "HF_ENDPOINT": "http://127.0.0.1:9"}
        status, _, err = command("pull", "org/Tiny-GGUF", **nobody)
        self.assertEqual((status, "Traceback" in err), (1, False), err)
        self.assertIn("org/Tiny-GGUF", err)

    def test_unknown_repository_exits_1_with_a_message(self):
        status, _, err = self.pull("org/Nothing")
        self.assertEqual((status, "Traceback" in err), (1, False), err)
