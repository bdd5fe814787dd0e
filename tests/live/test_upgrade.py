"""Upgrades in place of a real process: the same pid, the same servers, no request refused."""

import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.live.product import ROOT, Product, alive, group_members, wait_for, wait_for_serving
from tests.live.test_service import chat, config, pids


class Poller:
    """A client that sends requests all the time, each on a new connection or all on one; a context manager."""

    def __init__(self, product, model, keep=False):
        self.product, self.model, self.keep = product, model, keep
        self.results, self.longest = [], 0.0
        self._stop = threading.Event()

    def __enter__(self):
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join(30)

    def _run(self):
        where, body = urlsplit(self.product.url).netloc, json.dumps(chat(self.model)).encode()
        line = None
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                line = line or http.client.HTTPConnection(where, timeout=30)
                line.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
                answer = line.getresponse()
                pid = json.loads(answer.read())["pid"]
                self.results.append((answer.status, pid))
            except Exception as error:
                self.results.append((repr(error), None))
                line = None
            if not self.keep and line is not None:
                line.close()
                line = None
            self.longest = max(self.longest, time.monotonic() - began)


def upgrade(product, seconds=60.0):
    """Request an upgrade and wait for its end; returns the status then."""
    before = product.json("/api/upgrade")
    os.kill(product.process.pid, signal.SIGUSR2)

    def over():
        now = product.json("/api/upgrade", timeout=60)
        return now["count"] > before["count"] or (now["attempts"] > before["attempts"] and now["phase"] == "idle")

    wait_for(over, seconds, "the end of the upgrade")
    return product.json("/api/upgrade")


def together(**models):
    """A configuration whose models may all run at once."""
    text = json.loads(config(**models))
    text["groups"] = {"all": {"swap": False, "members": list(models)}}
    return json.dumps(text)


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


class UpgradeTests(SynchronousTestCase):
    timeout = 120

    def test_servers_stay_no_request_fails_and_idle_time_continues(self):
        text = together(one="", two={"flags": "", "ttl": 12})
        with Product(text) as product:
            servers = pids(product, "one", "two")
            used = time.monotonic()
            product.json("/v1/chat/completions", chat("two"))
            with Poller(product, "one") as fresh, Poller(product, "one", keep=True) as kept:
                time.sleep(0.3)
                done = upgrade(product)
                time.sleep(0.3)
            self.assertEqual((done["count"], done["error"], done["pid"]), (1, "", product.process.pid))
            self.assertIsNone(product.process.poll())
            for poller in (fresh, kept):
                self.assertGreater(len(poller.results), 50)
                self.assertEqual(set(poller.results), {(200, servers[0])})
            print(
                f"{len(fresh.results) + len(kept.results)} requests, longest {fresh.longest:.2f}, {kept.longest:.2f} s;"
            )
            print(f"the upgrade was over {time.monotonic() - used - 0.6:.1f} s after the signal")
            self.assertEqual(product.running(), {"one": "ready", "two": "ready"})
            wait_for(lambda: product.running() == {"one": "ready"}, 15, "the end of the idle time")
            self.assertLess(abs(time.monotonic() - used - 12.0), 1.0)
            self.assertFalse(alive(servers[1]))
            self.assertEqual(pids(product, "one"), servers[:1])
            self.assertNotIn("rror", product.output)

    def test_open_stream_is_complete(self):
        with Product(together(one="--tokens 40 --interval 0.05")) as product:
            (server,) = pids(product, "one")
            streamed = []
            ask = lambda: streamed.append(product.ask("/v1/chat/completions", chat("one", stream=True))[2])
            reader = threading.Thread(target=ask)
            reader.start()
            wait_for_serving(product, "one")
            done = upgrade(product)
            reader.join(20)
            self.assertEqual(done["count"], 1)
            self.assertEqual(streamed[0].count(b'"tok'), 40, streamed[0])
            self.assertIn(b"[DONE]", streamed[0])
            self.assertEqual(pids(product, "one"), [server])

    def test_repeated_upgrades_run_the_new_code_and_leak_nothing(self):
        shadow = self.shadow()
        with Product(together(one="--grandchild"), env={"PYTHONPATH": f"{shadow}:{ROOT}"}) as product:
            (server,) = pids(product, "one")
            time.sleep(1.5)  # until everything is open that stays open
            open_then = descriptors(product.process.pid)
            self.replace(shadow, "9.9")
            upgrade(product)
            self.assertEqual(product.json("/api/version")["version"], "9.9")
            self.assertIn("listening on", str(product.ask("/logs")[2]))
            for _ in range(2):
                self.assertEqual(upgrade(product)["error"], "")
            self.assertEqual(upgrade(product)["count"], 4)
            self.assertEqual(pids(product, "one"), [server])
            wait_for(lambda: descriptors(product.process.pid) <= open_then, 5, "as few descriptors as before")
            group = os.getpgid(server)
            product.ask("/api/models/unload/one", b"", method="POST")
            wait_for(lambda: not alive(server), 5, "the end of the server")
            wait_for(lambda: not group_members(group), 5, "the end of its family")
            self.assertEqual(self.zombies(product.process.pid), [])

    def test_upgrade_command_upgrades_and_reports_it(self):
        with Product(together(one="")) as product:
            (server,) = pids(product, "one")
            words = [sys.executable, "-m", "llamaswap", "upgrade", "--url", product.url]
            done = subprocess.run(words, env=product.env, capture_output=True, text=True, timeout=60)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn(f"process {product.process.pid} runs version", done.stdout)
            self.assertEqual(pids(product, "one"), [server])

    def test_tls_listener_is_kept(self):
        certificate, key = self.certificate()
        self.patch(ssl, "_create_default_https_context", ssl._create_unverified_context)
        with Product(together(one=""), "--tls-cert-file", certificate, "--tls-key-file", key) as product:
            (server,) = pids(product, "one")
            self.assertEqual(upgrade(product)["count"], 1)
            self.assertEqual(pids(product, "one"), [server])

    def certificate(self):
        try:
            from OpenSSL import crypto
        except ImportError:
            raise SkipTest("needs pyOpenSSL")
        key = crypto.PKey()
        key.generate_key(crypto.TYPE_RSA, 2048)
        made = crypto.X509()
        made.get_subject().CN = "localhost"
        made.set_issuer(made.get_subject())
        made.gmtime_adj_notBefore(0)
        made.gmtime_adj_notAfter(3600)
        made.set_pubkey(key)
        made.sign(key, "sha256")
        paths = Path(self.mktemp()).resolve(), Path(self.mktemp()).resolve()
        paths[0].write_bytes(crypto.dump_certificate(crypto.FILETYPE_PEM, made))
        paths[1].write_bytes(crypto.dump_privatekey(crypto.FILETYPE_PEM, key))
        return map(str, paths)

    def zombies(self, parent):
        """Children that were not reaped."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                except (FileNotFoundError, ProcessLookupError):
                    continue
                if int(fields[1]) == parent and fields[0] == "Z":
                    found.append(entry.name)
        return found

    def shadow(self):
        path = Path(self.mktemp()).resolve()
        path.mkdir(parents=True)
        return path

    def replace(self, shadow, version):
        """A copy of the package with another version."""
        shutil.copytree(ROOT / "llamaswap", shadow / "llamaswap", ignore=shutil.ignore_patterns("__pycache__"))
        with open(shadow / "llamaswap" / "version.py", "a", encoding="utf-8") as module:
            module.write(f"\n\ndef build() -> Build:\n    return Build({version!r})\n")

    def test_page_that_is_first_opened_after_the_package_was_upgraded_is_of_the_running_version(self):
        shadow = self.shadow()
        self.replace(shadow, "1.0")
        text = json.dumps({**json.loads(together(one="")), "logLevel": "debug"})
        with Product(text, env={"PYTHONPATH": f"{shadow}:{ROOT}"}) as product:
            wait_for(lambda: "for later imports" in product.output, 30, "the code of the modules imported later")
            for module in (shadow / "llamaswap").rglob("*.py"):
                module.write_text("raise ImportError('half an upgrade')\n")
            self.assertEqual(product.json("/api/version")["version"], "1.0")
            self.assertEqual(product.ask("/ui/")[0], 200)
            self.assertNotIn("half an upgrade", product.output)

    def test_broken_new_code_leaves_the_old_one_serving(self):
        shadow = self.shadow()
        with Product(together(one=""), env={"PYTHONPATH": f"{shadow}:{ROOT}"}) as product:
            servers = pids(product, "one")
            (shadow / "llamaswap").mkdir()
            (shadow / "llamaswap" / "__init__.py").write_text("raise ImportError('half an upgrade')\n")
            with Poller(product, "one") as poller:
                done = upgrade(product)
            self.assertEqual(done["count"], 0)
            self.assertIn("half an upgrade", done["error"])
            self.assertEqual({status for status, _ in poller.results}, {200})
            self.assertEqual(pids(product, "one"), servers)
            shutil.rmtree(shadow / "llamaswap")
            self.assertEqual(upgrade(product)["count"], 1)

    def test_invalid_configuration_leaves_the_old_code_serving(self):
        with Product(together(one="")) as product:
            servers = pids(product, "one")
            product.config.write_text("models: [")
            done = upgrade(product)
            self.assertEqual(done["count"], 0)
            self.assertIn("configuration", done["error"])
            self.assertEqual(pids(product, "one"), servers)

    def test_changed_configuration_keeps_unchanged_models(self):
        first = json.loads(together(one="", two="", three=""))
        with Product(json.dumps(first)) as product:
            servers = pids(product, "one", "two", "three")
            second = json.loads(json.dumps(first))
            del second["models"]["three"]
            second["groups"]["all"]["members"].remove("three")
            second["models"]["two"]["cmd"] += " --say again"
            product.config.write_text(json.dumps(second))
            self.assertEqual(upgrade(product)["count"], 1)
            wait_for(lambda: not alive(servers[1]) and not alive(servers[2]), 10, "the end of both")
            self.assertEqual(pids(product, "one"), servers[:1])
            self.assertNotIn("three", str(product.json("/v1/models")))
            self.assertNotEqual(pids(product, "two"), servers[1:2])

    def test_kill_9_after_an_upgrade_leaves_no_child(self):
        with Product(together(one="--ignore-term --grandchild-ignores")) as product:
            (server,) = pids(product, "one")
            group = os.getpgid(server)
            self.assertEqual(upgrade(product)["count"], 1)
            product.process.kill()
            product.process.wait(10)
            wait_for(lambda: not group_members(group), 10, "the end of the whole group")

    def test_guardian_pipe_alone_ends_servers_that_ignore_the_parent_death_signal(self):
        """The whole group, after two upgrades, also of a server that was started after them."""
        stubborn = "--ignore-term --grandchild-ignores"
        with Product(together(one=stubborn, two=stubborn)) as product:
            groups = [os.getpgid(pid) for pid in pids(product, "one")]
            upgrade(product)
            self.assertEqual(upgrade(product)["count"], 2)
            groups += [os.getpgid(pid) for pid in pids(product, "two")]
            self.assertTrue(all(len(group_members(group)) == 2 for group in groups))
            self.kill(product)
            wait_for(lambda: not any(map(group_members, groups)), 10, "the end of both groups")

    def test_parent_death_signal_alone_ends_a_server_at_once(self):
        """The guardian is stopped; it ends the rest of the server's group when it continues."""
        with Product(together(one="--grandchild-ignores")) as product:
            (server,) = pids(product, "one")
            group, (guardian,) = os.getpgid(server), self.guardians(product)
            self.assertEqual(upgrade(product)["count"], 1)
            self.assertEqual(self.guardians(product), [guardian], "it is the same one")
            os.kill(guardian, signal.SIGSTOP)
            try:
                self.kill(product)
                wait_for(lambda: not alive(server), 1, "the server's end by the signal")
                self.assertTrue(group_members(group), "what it started got no signal")
            finally:
                os.kill(guardian, signal.SIGCONT)
            wait_for(lambda: not group_members(group), 10, "the end of the whole group")

    def test_guardian_killed_after_an_upgrade_is_replaced_and_knows_all_servers(self):
        with Product(together(one="--ignore-term --grandchild-ignores")) as product:
            (server,) = pids(product, "one")
            group, (guardian,) = os.getpgid(server), self.guardians(product)
            upgrade(product)
            os.kill(guardian, signal.SIGKILL)
            deadline = time.monotonic() + 5
            while self.guardians(product) in (
                [],
                [guardian],
            ):  # it must know all servers at once
                self.assertLess(time.monotonic(), deadline, "no new guardian was started")
            self.kill(product)
            wait_for(lambda: not group_members(group), 10, "the end of the whole group")

    def kill(self, product):
        product.process.kill()
        product.process.wait(10)

    def guardians(self, product):
        """The living guardians of the product."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                    words = (entry / "cmdline").read_bytes()
                except (FileNotFoundError, ProcessLookupError):
                    continue
                if int(parent) == product.process.pid and b"servers.guardian" in words and alive(int(entry.name)):
                    found.append(int(entry.name))
        return found

    def test_shutdown_after_an_upgrade_leaves_no_child(self):
        with Product(together(one="")) as product:
            (server,) = pids(product, "one")
            upgrade(product)
            product.process.send_signal(signal.SIGTERM)
            product.process.wait(20)
            self.assertFalse(alive(server))

    def test_model_that_crashes_after_an_upgrade_is_started_again(self):
        with Product(together(one="")) as product:
            (server,) = pids(product, "one")
            upgrade(product)
            os.kill(server, signal.SIGKILL)
            wait_for(lambda: product.running() == {}, 5, "the crash's notice")
            self.assertNotEqual(pids(product, "one"), [server])

    def test_backoff_of_a_failing_model_continues(self):
        text = json.loads(together(broken="--exit-at-once"))
        text["routing"] = {"scheduler": {"settings": {"fifo": {"backoff": "60s"}}}}
        with Product(json.dumps(text)) as product:
            statuses = [product.ask("/v1/chat/completions", chat("broken"))[0] for _ in range(3)]
            self.assertEqual(statuses, [500, 500, 503])
            starts = product.output.count("loading broken")
            self.assertEqual(upgrade(product)["error"], "")
            status, headers, body = product.ask("/v1/chat/completions", chat("broken"))
            self.assertEqual((status, json.loads(body)["error"]["code"]), (503, "model_keeps_failing"))
            self.assertIn(b"--no-mmap", body, "with the last lines of its log")
            self.assertGreater(int(headers["Retry-After"]), 30)
            [failing] = product.json("/running")["failing"]
            self.assertEqual((failing["model"], failing["failures"]), ("broken", 2))
            self.assertEqual(product.output.count("loading broken"), starts)
            product.json("/api/models/load/broken", b"", method="POST")
            wait_for(lambda: product.output.count("loading broken") > starts, 5, "a load by hand")

    def test_partial_request_head_is_not_lost(self):
        with Product(together(one="")) as product:
            pids(product, "one")
            where = urlsplit(product.url)
            with socket.create_connection((where.hostname, where.port), timeout=30) as line:
                line.sendall(b"GET /v1/models HTT")
                time.sleep(0.1)
                upgrade(product)
                line.sendall(b"P/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                self.assertIn(b"200 OK", line.recv(65536))

    def test_logs_pins_and_the_profile_are_kept(self):
        text = json.loads(together(one="--say REMEMBER-ME"))
        text["profiles"] = {"quiet": {"description": "", "pins": {"one": ""}}}
        with Product(json.dumps(text)) as product:
            pids(product, "one")
            product.json("/api/models/pin/one", b"", method="POST")
            product.json("/api/profiles/active", {"name": "quiet"}, method="PUT")
            upgrade(product)
            self.assertTrue(self.remembered(product, "one", b"REMEMBER-ME"))
            self.assertTrue(product.json("/api/models/one")["pinned"])
            self.assertEqual(product.json("/api/profiles")["active"], "quiet")

    def remembered(self, product, model, words):
        """Whether the log stream of the model contains these words."""
        where, seen = urlsplit(product.url), b""
        with socket.create_connection((where.hostname, where.port), timeout=5) as line:
            line.sendall(f"GET /logs/stream/{model} HTTP/1.0\r\n\r\n".encode())
            while words not in seen:
                seen += line.recv(65536)
        return True
