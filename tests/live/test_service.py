"""The service as an operator meets it: started, signalled, killed, misconfigured. Real processes throughout."""

import base64
import datetime
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.live.product import ROOT, Product, alive, free_range, group_members, wait_for, wait_for_serving

ENGINE = f"{sys.executable} -I -S {Path(__file__).with_name('engine.py')} --port ${{PORT}}"


def config(**models):
    """A configuration of stand-in engines; each value is the engine's extra flags, or a mapping of model keys."""
    body = {}
    for name, more in models.items():
        keys = dict(more) if isinstance(more, dict) else {"flags": more}
        body[name] = {"cmd": f"{ENGINE} --name {name} {keys.pop('flags', '')}".strip(), **keys}
    return json.dumps({"healthCheckTimeout": 15, "unloadTimeout": 3, "startPort": free_range(), "models": body})


def chat(model, **more):
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], **more}


def pids(product, *models):
    return [product.json(f"/upstream/{model}/pid")["pid"] for model in models]


def guardian_of(product):
    """The process that ends the servers when the product is killed."""
    for entry in Path("/proc").iterdir():
        try:
            parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
            if parent == str(product.process.pid) and b"servers.guardian" in (entry / "cmdline").read_bytes():
                return int(entry.name)
        except (OSError, IndexError):
            continue
    raise AssertionError("there is no guardian")


class SwapTests(SynchronousTestCase):
    timeout = 60

    def test_a_request_for_another_model_swaps(self):
        with Product(config(one="", two="")) as product:
            for model in ("one", "two", "one"):
                answer = product.json("/v1/chat/completions", chat(model))
                self.assertEqual(answer["model"], model)
                self.assertEqual(product.running(), {model: "ready"})

    def test_a_burst_for_a_cold_model_starts_one_server(self):
        """reliability R6"""
        text = json.loads(config(one="--ready-after 0.3 --say STARTED")) | {"logToStdout": "both"}
        with Product(json.dumps(text)) as product:
            results = []
            burst = [
                threading.Thread(target=lambda: results.append(product.ask("/v1/chat/completions", chat("one"))[0]))
                for _ in range(100)
            ]
            for thread in burst:
                thread.start()
            for thread in burst:
                thread.join(30)
            self.assertEqual(results, [200] * 100)
            self.assertEqual(product.output.count("STARTED"), 1)

    def test_a_running_stream_is_not_cut_by_a_request_for_another_model(self):
        """reliability R5"""
        with Product(config(one="--tokens 20 --interval 0.05", two="")) as product:
            streamed = []
            ask = lambda: streamed.append(product.ask("/v1/chat/completions", chat("one", stream=True))[2])
            reader = threading.Thread(target=ask)
            product.json("/v1/chat/completions", chat("one"))
            reader.start()
            wait_for_serving(product, "one")
            product.json("/v1/chat/completions", chat("two"))
            reader.join(20)
            self.assertEqual(streamed[0].count(b'"tok'), 20, streamed[0])
            self.assertIn(b"[DONE]", streamed[0])

    def test_a_server_that_runs_already_is_served_behind_a_written_out_proxy(self):
        engine = ENGINE.replace("${PORT}", "0").split()
        outside = subprocess.Popen(engine, stdout=subprocess.PIPE, text=True)
        self.addCleanup(outside.stdout.close)
        self.addCleanup(outside.wait, 10)
        self.addCleanup(outside.kill)
        port = int(outside.stdout.readline().split()[-1])
        keys = {"cmd": "sleep infinity", "proxy": f"http://127.0.0.1:{port}", "checkEndpoint": "none"}
        with Product(json.dumps({"models": {"ext": keys}})) as product:
            self.assertEqual(product.json("/upstream/ext/pid")["pid"], outside.pid)
            product.ask("/unload")
            self.assertEqual(product.json("/upstream/ext/pid")["pid"], outside.pid)
            self.assertEqual(product.output.count("which cmd did not start"), 1)

    def test_bad_command_is_refused_at_once_and_affects_no_other_request(self):
        with Product(config(good="", bad={"cmd": "/no/such/program --port ${PORT}"})) as product:
            product.json("/v1/chat/completions", chat("good"))
            status, _, data = product.ask("/v1/chat/completions", chat("bad"))
            self.assertEqual(status, 500)
            self.assertIn("/no/such/program", json.loads(data)["error"]["message"])
            self.assertEqual(product.json("/v1/chat/completions", chat("good"))["model"], "good")


class CapabilityTests(SynchronousTestCase):
    timeout = 60

    def test_context_length_that_a_server_reports_is_listed_also_after_its_unload(self):
        models = {"one": "--context 4096", "two": {"flags": "--context 8192", "capabilities": {"context": 512}}}
        together = {"groups": {"all": {"swap": False, "members": ["one", "two"]}}}
        with Product(json.dumps(json.loads(config(**models)) | together)) as product:

            def lengths():
                return {one["id"]: one.get("context_length") for one in product.json("/v1/models")["data"]}

            self.assertEqual(lengths(), {"one": None, "two": 512})
            for model in ("two", "one"):  # in this order their servers are asked
                product.json("/v1/chat/completions", chat(model))
            wait_for(lambda: lengths()["one"] == 4096, 10, "the context length")
            maps = Path(f"/proc/{product.process.pid}/maps")
            if maps.exists():  # OpenSSL and the web client would take 12 MB
                self.assertNotIn("cryptography", maps.read_text())
            self.assertEqual(lengths(), {"one": 4096, "two": 512})
            product.json("/api/models/unload", {})
            wait_for(lambda: not product.running(), 10, "the unload")
            self.assertEqual(lengths(), {"one": 4096, "two": 512})


class CaptureTests(SynchronousTestCase):
    timeout = 60

    def test_captures_in_files_are_found_after_a_restart(self):
        with tempfile.TemporaryDirectory(prefix="llamaswap-captures-") as home:
            folder = Path(home, "captures")
            text = json.loads(config(one="")) | {"captures": {"path": str(folder)}, "apiKeys": ["k-secret"]}
            key = {"X-Api-Key": "k-secret"}
            with Product(json.dumps(text)) as product:
                product.json("/v1/chat/completions", chat("one"), headers=key)
                wait_for(lambda: list(Path(home).rglob("*.capture")), 10, "the file")
            with Product(json.dumps(text)) as product:
                product.json("/v1/chat/completions", chat("one", user="second"), headers=key)
                (row,) = product.json("/api/metrics/activity", headers=key)["data"]
                found = [product.json(f"/api/captures/{number}", headers=key) for number in (1, 2)]
            self.assertEqual((row["id"], row["has_capture"]), (2, True))
            self.assertEqual(["second" in str(base64.b64decode(one["req_body"])) for one in found], [False, True])
            self.assertNotIn("k-secret", json.dumps(found))

    def test_folder_that_cannot_be_used_is_reported_and_requests_are_served(self):
        text = json.loads(config(one="")) | {"captures": {"path": "/proc/captures"}}
        with Product(json.dumps(text)) as product:
            product.json("/v1/chat/completions", chat("one"))
            product.json("/v1/chat/completions", chat("one"))
            wait_for(lambda: product.json("/api/metrics/activity")["total"] == 2, 10, "the rows")
            self.assertIn("req_body", product.json("/api/captures/1"))
            self.assertEqual(product.output.count("captures cannot be written to /proc/captures"), 1)


class LogTests(SynchronousTestCase):
    timeout = 60

    def load_one(self, level):
        text = json.loads(config(one="--say API_KEY=sekret")) | {"logLevel": level}
        with Product(json.dumps(text)) as product:
            product.json("/v1/chat/completions", chat("one"))
            product.json("/v1/chat/completions", chat("one"))
            wait_for(lambda: product.output.count("POST /v1/chat/completions") >= 2, what="access lines")
        return product.output

    def test_debug_shows_the_command_without_its_secrets_the_states_and_each_dispatch(self):
        log = self.load_one("debug")
        self.assertIn("one: executing start command: ", log)
        self.assertIn("API_KEY=***", log)
        self.assertNotIn("sekret", log)
        self.assertIn("one: stopped -> starting", log)
        self.assertEqual(log.count("POST /v1/chat/completions for one is forwarded to http://"), 2)

    def test_info_shows_the_passed_health_check_and_nothing_of_debug(self):
        log = self.load_one("info")
        self.assertIn("one: Health check passed on http://", log)
        self.assertNotIn("[DEBUG]", log)


class EndTests(SynchronousTestCase):
    timeout = 60

    def test_sigterm_drains_and_leaves_no_child(self):
        """core V105"""
        with Product(config(one="--tokens 20 --interval 0.05", two="--ignore-term")) as product:
            (child,) = pids(product, "one")
            streamed = []
            ask = lambda: streamed.append(product.ask("/v1/chat/completions", chat("one", stream=True))[2])
            reader = threading.Thread(target=ask)
            reader.start()
            wait_for_serving(product, "one")
            product.process.send_signal(signal.SIGTERM)
            reader.join(20)
            self.assertIn(b"[DONE]", streamed[0])
            self.assertEqual(product.process.wait(20), 0)
            self.assertFalse(alive(child))

    def test_a_request_that_waits_for_a_load_is_answered_at_once_when_the_service_ends(self):
        with Product(config(one="--ready-after 30")) as product:
            answers = []
            asking = threading.Thread(target=lambda: answers.append(product.ask("/v1/chat/completions", chat("one"))))
            asking.start()
            wait_for(lambda: product.running() == {"one": "starting"}, 10, "the load")
            began = time.monotonic()
            product.process.send_signal(signal.SIGTERM)
            asking.join(20)
            self.assertLess(time.monotonic() - began, 3)
            status, _, body = answers[0]
            self.assertEqual((status, json.loads(body)["error"]["code"]), (503, "service_unavailable"))
            self.assertEqual(product.process.wait(20), 0)

    def test_a_server_that_ignores_sigterm_is_gone_too(self):
        with Product(config(one="--ignore-term --grandchild-ignores")) as product:
            (child,) = pids(product, "one")
            group = os.getpgid(child)
            product.process.send_signal(signal.SIGTERM)
            product.process.wait(20)
            self.assertEqual(group_members(group), [])

    def test_kill_9_of_the_proxy_leaves_no_child(self):
        """reliability R16"""
        with Product(config(one="--grandchild-ignores", two="--ignore-term")) as product:
            (child,) = pids(product, "one")
            group = os.getpgid(child)
            product.process.kill()
            product.process.wait(10)

            wait_for(lambda: not group_members(group), 10, "the end of the whole group")

    def test_a_start_right_after_a_kill_9_loads_nothing_beside_what_still_ends(self):
        """reliability R16"""
        with socket.socket() as finder:
            finder.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{finder.getsockname()[1]}"
        with tempfile.TemporaryDirectory() as state:
            text, env = config(one="--ignore-term"), {"STATE_DIRECTORY": state}
            with Product(text, "--listen", address, env=env) as first:
                (left,) = pids(first, "one")
                first.process.send_signal(signal.SIGSTOP)
                os.kill(guardian_of(first), signal.SIGKILL)  # so that the next start has to do it
                first.process.kill()
                first.process.wait(10)
                with Product(text, "--listen", address, env=env) as second:
                    (fresh,) = pids(second, "one")
                    self.assertFalse(alive(left))
                    self.assertNotEqual(fresh, left)

    def test_a_driver_or_a_disk_that_hangs_does_not_keep_the_process_from_ending(self):
        program = """
import threading
from llamaswap.app import shutdown
from llamaswap.tap import Options, makeService
from twisted.internet import reactor
shutdown.SERVERS_TIMEOUT = shutdown.CLOSE_TIMEOUT = 0.2
options = Options()
options.parseOptions(["--demo", "--listen", "127.0.0.1:0"])
made = makeService(options)
made.startService()
models = made.parts.models
for worker in (models.driver_thread, models.disk_thread, made.parts.observability.recorder):
    worker(threading.Event().wait)
reactor.callLater(0.2, lambda: made.stopService().addBoth(lambda _: reactor.stop()))
reactor.run()
"""
        words = [sys.executable, "-c", program]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("giving up on pending disk or driver work", done.stdout + done.stderr)

    def test_a_taken_port_exits_1_and_starts_nothing(self):
        """core V109"""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            text = json.loads(config(one=""))
            text["hooks"] = {"on_startup": {"preload": ["one"]}}
            product = Product(json.dumps(text), "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
            done = subprocess.run(product.words, env=product.env, cwd=product.cwd, capture_output=True, timeout=30)
            product.remove_home()
            self.assertEqual(done.returncode, 1)
            self.assertNotIn(b"loading", done.stdout)


def certificate(folder):
    """Paths of a self-signed certificate for localhost and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    cert_file, key_file = folder / "cert.pem", folder / "key.pem"
    cert_file.write_bytes(made.public_bytes(pem))
    form = serialization.PrivateFormat.PKCS8
    key_file.write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))
    return cert_file, key_file


class ListeningTests(SynchronousTestCase):
    timeout = 60

    def test_tls_serves_models_and_the_admin_surface(self):
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        cert_file, key_file = certificate(folder)
        flags = ("--tls-cert-file", str(cert_file), "--tls-key-file", str(key_file))
        with Product(config(one=""), *flags) as product:
            self.assertTrue(product.url.startswith("https://localhost:"))
            context = ssl.create_default_context(cafile=str(cert_file))
            for path, body in (
                ("/v1/chat/completions", chat("one")),
                ("/v1/chat/completions", chat("one", stream=True)),
                ("/running", None),
            ):
                data = json.dumps(body).encode() if body else None
                request = urllib.request.Request(product.url + path, data, {"Content-Type": "application/json"})
                with urllib.request.urlopen(request, timeout=20, context=context) as answer:
                    self.assertIn(b"one", answer.read())

    def test_an_ipv4_client_is_known_by_its_ipv4_address_on_the_default_address(self):
        """http T093"""
        with Product(config(one=""), "--listen", ":0") as product:
            url = product.url.replace("localhost", "127.0.0.1")
            with urllib.request.urlopen(f"{url}/upstream/one/echo", timeout=20) as answer:
                headers = {name.lower(): value for name, value in json.loads(answer.read())["headers"]}
            self.assertEqual(headers["x-forwarded-for"], "127.0.0.1")
            wait_for(lambda: "Request 127.0.0.1 " in product.output, 5, "the line of the access log")

    def test_a_unix_socket_serves(self):
        path = f"{tempfile.mkdtemp()}/socket"
        product = Product(config(one=""), "--listen", f"unix:{path}")
        child = subprocess.Popen(product.words, env=product.env, cwd=product.cwd, start_new_session=True)
        try:
            wait_for(lambda: os.path.exists(path), 20, "the socket")
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(20)
                client.connect(path)
                body = json.dumps(chat("one")).encode()
                head = f"POST /v1/chat/completions HTTP/1.0\r\nContent-Length: {len(body)}\r\n"
                client.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
                answer = b""
                while data := client.recv(65536):
                    answer += data
            self.assertIn(b" 200 ", answer[:20])
        finally:
            child.terminate()
            child.wait(20)
            product.remove_home()
            shutil.rmtree(os.path.dirname(path))


class ConfigurationTests(SynchronousTestCase):
    timeout = 60

    def exits(self, words, code, *parts):
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True, timeout=30)
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        for part in parts:
            self.assertIn(part, done.stdout + done.stderr)

    def test_a_broken_configuration_exits_1_and_names_the_place(self):
        path = Path(self.mktemp())
        path.write_text("models:\n  owl:\n    cmd: x ${PORT}\n    ttl: -5\n")
        self.exits(["-m", "twisted", "llamaswap", "--config", str(path)], 1, "owl", "ttl", str(path))

    def test_one_tls_file_exits_1_and_names_both_flags(self):
        """core V107"""
        words = ["-m", "twisted", "llamaswap", "--tls-cert-file", "x"]
        self.exits(words, 1, "--tls-cert-file", "--tls-key-file")

    def test_the_go_command_line_without_any_source_exits_1(self):
        """config T141"""
        words = ["-c", f"import os; os.chdir({self.mktemp_folder()!r}); from llamaswap.cli import main; main([])"]
        self.exits(words, 1, "-config", "-config-dir")

    def mktemp_folder(self):
        path = self.mktemp()
        os.makedirs(path)
        return os.path.abspath(path)

    def test_a_broken_reload_keeps_everything_and_a_good_one_restarts_only_what_changed(self):
        """core V103"""
        first = config(one="", two={"flags": "", "ttl": 0})
        with Product(first, "--watch-config") as product:
            (one,) = pids(product, "one")
            product.config.write_text("models: [")
            wait_for(lambda: product.json("/api/config/status")["result"] == "rejected", 10, "the report")
            self.assertEqual(pids(product, "one"), [one])
            good = config(one="", three="")
            text = json.loads(good) | {"startPort": json.loads(first)["startPort"]}
            product.config.write_text(json.dumps(text))
            product.process.send_signal(signal.SIGHUP)
            wait_for(lambda: "three" in str(product.json("/v1/models")), 10, "the new model")
            self.assertEqual(product.json("/api/config/status")["result"], "reloaded")
            self.assertEqual(pids(product, "one"), [one])

    def test_the_go_command_line_runs_the_same_service(self):
        program = ("-c", "from llamaswap.cli import main; main()")
        with Product(config(one=""), "-listen", "127.0.0.1:0", "-watch-config", program=program) as product:
            self.assertEqual(product.json("/v1/chat/completions", chat("one"))["model"], "one")


class EarlySignalTests(SynchronousTestCase):
    timeout = 120

    def test_sighup_and_sigusr2_while_the_program_starts_do_not_end_it(self):
        for number in (signal.SIGHUP, signal.SIGUSR2):
            signals_itself = (  # the signals begin with the program's first line, wherever the interpreter's start ends
                "import os, threading, time; import llamaswap.__main__; pid = os.getpid();"
                f"os.kill(pid, {int(number)});"
                f"threading.Thread(target=lambda: [(os.kill(pid, {int(number)}), time.sleep(0.01)) for _ in range(30)],"
                " daemon=True).start(); llamaswap.__main__.main()"
            )
            with Product(config(one=""), "-listen", "127.0.0.1:0", program=("-c", signals_itself)) as product:
                self.assertEqual(product.json("/v1/chat/completions", chat("one"))["model"], "one")
                if number == signal.SIGHUP:
                    wait_for(lambda: product.json("/api/config/status")["result"] is not None, 10, "the reload")


class DemoTests(SynchronousTestCase):
    timeout = 60

    def test_without_any_configuration_the_demo_swaps_two_models(self):
        with Product() as product:
            for model in ("parrot", "poet"):
                answer = product.json("/v1/chat/completions", chat(model))
                self.assertEqual(answer["model"], model)
                self.assertEqual(product.running(), {model: "ready"})
            self.assertIn("curl", product.output)
            self.assertEqual(product.ask("/ui/")[0], 200)

    def test_demo_that_may_be_edited_is_written_to_a_file_first(self):
        for program in (("-m", "twisted", "llamaswap"), ("-m", "llamaswap", "demo")):
            with Product(None, "--allow-config-edit", program=program) as product:
                self.assertEqual(product.json("/v1/chat/completions", chat("parrot"))["model"], "parrot")
                self.assertTrue(product.json("/api/config/status")["editable"])
                self.assertIn("parrot:", (product.home / "config.yaml").read_text(encoding="utf-8"))
