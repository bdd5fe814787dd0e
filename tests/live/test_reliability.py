"""What befalls a service, with real servers that misbehave: crashes, hangs, leftovers, floods, leaving clients."""

import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.live.product import Product, alive, wait_for, wait_for_serving, within
from tests.live.test_service import chat, config


def stream(product, path, body, announce=0):
    """A socket on which a request was sent; `announce` so many bytes of its body that do not come."""
    host, _, port = product.url.removeprefix("http://").partition(":")
    wire = socket.create_connection((host, int(port)), timeout=30)
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(data) + announce}\r\n\r\n"
    wire.sendall(head.encode() + data)
    return wire


def until_end(wire):
    """All that comes, and whether the connection was cut rather than closed."""
    data = b""
    with wire:
        while True:
            try:
                piece = wire.recv(65536)
            except ConnectionResetError:
                return data, True
            if not piece:
                return data, False
            data += piece


def pid_of(product, model):
    return product.json(f"/upstream/{model}/pid")["pid"]


class CrashTests(SynchronousTestCase):
    timeout = 60

    def test_a_crash_is_noticed_within_fifty_milliseconds(self):
        """core L18, also where a child of the server keeps its output open (core V37)"""
        with Product(config(plain="", family="--grandchild")) as product:
            for model in ("plain", "family"):
                for noticed in within(0.05 + 0.1):  # the question itself takes its time
                    server = pid_of(product, model)
                    began = time.monotonic()
                    os.kill(server, signal.SIGKILL)
                    wait_for(lambda model=model: product.running().get(model) != "ready", 5, "the notice")
                    noticed(time.monotonic() - began)

    def test_a_request_without_a_byte_is_carried_over_to_a_fresh_server(self):
        """core V35, core W16"""
        with Product(config(one="--interval 0.2 --tokens 5")) as product:
            server = pid_of(product, "one")
            answers = []
            asking = threading.Thread(target=lambda: answers.append(product.ask("/v1/chat/completions", chat("one"))))
            asking.start()
            wait_for_serving(product, "one")
            time.sleep(0.3)
            os.kill(server, signal.SIGKILL)
            asking.join(20)
            status, _, body = answers[0]
            self.assertEqual(status, 200, body)
            self.assertNotEqual(json.loads(body)["pid"], server)

    def test_a_request_of_a_model_that_is_unloaded_ends_and_the_model_stays_down(self):
        for path in ("/api/models/unload/one", "/unload"):
            with Product(config(one="--interval 0.5 --tokens 20")) as product:
                answers = []
                ask = lambda answers=answers: answers.append(product.ask("/v1/chat/completions", chat("one")))
                asking = threading.Thread(target=ask)
                asking.start()
                wait_for_serving(product, "one")
                status, _, _ = product.ask(path, {} if path.startswith("/api/") else None)
                self.assertEqual(status, 200)
                asking.join(20)
                status, _, body = answers[0]
                self.assertEqual((status, json.loads(body)["error"]["code"]), (503, "service_unavailable"))
                self.assertIn("model unloaded", json.loads(body)["error"]["message"])
                self.assertEqual(product.running(), {})
                self.assertEqual([swap["model"] for swap in product.json("/api/swaps")], ["one"], "loaded once")

    def test_broken_stream_ends_with_an_error_in_the_clients_api_and_stays_incomplete(self):
        """core W2, reliability R35"""
        with Product(config(one="--crash-at 2")) as product:
            data, cut = until_end(stream(product, "/v1/chat/completions", chat("one", stream=True)))
            self.assertFalse(cut)  # a reset may drop the event
            self.assertNotIn(b"\r\n0\r\n\r\n", data)
            self.assertIn(b'data: {"src":"llama-swap","error":{"message":"one: answer cut short', data)
            data, cut = until_end(stream(product, "/v1/messages", chat("one", stream=True)))
            self.assertFalse(cut)
            self.assertIn(b'event: error\ndata: {"type":"error"', data)

    def test_a_stream_that_the_end_cuts_gets_its_error_event_and_no_reset(self):
        text = json.loads(config(one="--tokens 200 --interval 0.1")) | {"drainTimeout": 1}
        with Product(json.dumps(text)) as product:
            wire = stream(product, "/v1/chat/completions", chat("one", stream=True))
            self.assertIn(b"200 OK", wire.recv(100))
            product.process.send_signal(signal.SIGTERM)
            data, cut = until_end(wire)
            self.assertFalse(cut)
            self.assertIn(b"answer cut short: llamaswap is shutting down", data)
            self.assertNotIn(b"\r\n0\r\n\r\n", data)
            self.assertEqual(product.process.wait(20), 0)

    def test_a_server_that_dies_of_every_request_is_left_alone_after_the_second(self):
        """reliability R45, core W17"""
        with Product(config(one="--crash-before-head", two="")) as product:
            status, _, body = product.ask("/v1/chat/completions", chat("one"))
            self.assertIn(status, (502, 503), body)
            product.json("/v1/chat/completions", chat("two"))
            server = pid_of(product, "two")
            statuses = [product.ask("/v1/chat/completions", chat("one"))[0] for _ in range(3)]
            self.assertEqual(statuses[-1], 503, statuses)
            self.assertTrue(alive(server) or product.running() == {}, "at most one more try")
            status, headers, body = product.ask("/v1/chat/completions", chat("one"))
            self.assertEqual((status, json.loads(body)["error"]["code"]), (503, "model_keeps_failing"))
            self.assertGreaterEqual(int(headers["Retry-After"]), 1)
            [failing] = product.json("/running")["failing"]
            self.assertEqual(failing["model"], "one")
            self.assertIn("SIGKILL", failing["error"])

    def test_error_of_an_old_flag_contains_the_servers_output(self):
        """reliability R46, R9"""
        with Product(config(one="--exit-at-once")) as product:
            status, _, body = product.ask("/v1/chat/completions", chat("one"))
            self.assertEqual(status, 500)
            message = json.loads(body)["error"]["message"]
            self.assertIn("exited prematurely (exit status 7)\nerror: invalid argument: --no-mmap", message)


class HangTests(SynchronousTestCase):
    timeout = 60

    def test_server_that_hangs_in_the_middle_of_a_stream_is_restarted(self):
        with Product(self.watched(one="--freeze-at 10 --interval 0.5 --tokens 12")) as product:
            server = pid_of(product, "one")
            broken = stream(product, "/v1/chat/completions", chat("one", stream=True))
            wait_for(lambda: Path(f"/proc/{server}/stat").read_text().split()[2] == "T", 15, "its freezing")
            answers = []
            ask = lambda: answers.append(product.ask("/v1/embeddings", chat("one")))
            silent = threading.Thread(target=ask)  # no byte was seen of this one: it is asked again
            silent.start()
            data, cut = until_end(broken)
            self.assertFalse(cut)  # a reset may drop the event
            self.assertIn(b'"error"', data)
            self.assertNotIn(b"\r\n0\r\n\r\n", data)
            wait_for(lambda: not alive(server), 5, "its end")
            wait_for(lambda: "it hung" in product.output, 5, product.output)
            silent.join(30)
            status, _, body = answers[0]
            self.assertEqual(status, 200, body)
            self.assertNotEqual(json.loads(body)["pid"], server)

    def test_deadlocked_server_is_restarted(self):
        text = self.watched(one="--one-thread --interval 0.5 --tokens 12 --pause-at 10 --pause 50")
        with Product(text) as product:
            server = pid_of(product, "one")
            data, cut = until_end(stream(product, "/v1/chat/completions", chat("one", stream=True)))
            self.assertFalse(cut)
            self.assertIn(b'"error"', data)
            self.assertNotIn(b"\r\n0\r\n\r\n", data)
            wait_for(lambda: not alive(server), 5, "its end")
            self.assertNotEqual(pid_of(product, "one"), server)
            self.assertEqual(product.json("/api/models/one")["stall"]["ended"], 1)

    def test_servers_that_only_pause_are_never_ended(self):
        """One slot, one thread, a long pause in the middle of a stream: working, blocked but healthy, or held up by
        a client that does not read. None of them would answer a request."""
        slow = "--interval 0.5 --tokens 12 --pause-at 10 --pause 9"
        text = self.watched(
            works=f"--one-thread --busy {slow}",
            healthy=f"--one-slot {slow}",
            unread=f"--one-thread --tokens 20000 --reply {'x' * 1500}",
        )
        with Product(text) as product:
            servers = {model: pid_of(product, model) for model in ("works", "healthy", "unread")}
            wires = {model: stream(product, "/v1/chat/completions", chat(model, stream=True)) for model in servers}
            trickle, began = b"", time.monotonic()
            while time.monotonic() - began < 7:  # it reads a little, and then nothing for a while
                trickle += wires["unread"].recv(20000)
                time.sleep(0.2)
            time.sleep(9)
            for model, wire in wires.items():
                data = b""
                try:
                    while b"[DONE]" not in data and (piece := wire.recv(65536)):
                        data = data[-100:] + piece
                except ConnectionResetError:
                    pass
                self.assertIn(b"[DONE]", data, (model, product.output[-2000:]))
                wire.close()
            self.assertEqual({model: pid_of(product, model) for model in servers}, servers)
            self.assertNotIn("it hung", product.output)
            for model in ("works", "healthy"):
                self.assertIn(f"{model} is silent but alive", product.output)

    def watched(self, **models):
        text = json.loads(config(**models))
        for model in text["models"].values():
            # In so short a watch each tick of the CPU clock is one per cent, and refusing our questions costs some.
            model["stall"] = {"after": "2s", "times": 1, "canary": "1s", "cpu": 20}
        text["groups"] = {"all": {"swap": False, "members": list(models)}}
        return json.dumps(text)


class SupersedeTests(SynchronousTestCase):
    timeout = 60

    def test_an_editors_strokes_wait_as_one_and_load_once(self):
        text = json.loads(config(busy="--interval 0.5 --tokens 8", fim="--ready-after 1"))
        text["models"]["fim"]["supersede"] = "session"
        with Product(json.dumps(text)) as product:
            talk = stream(product, "/v1/chat/completions", chat("busy", stream=True))
            self.assertIn(b"200 OK", talk.recv(100))
            statuses, session = [], {"X-Session-ID": "vim-1"}

            def stroke():
                statuses.append(product.ask("/v1/completions", chat("fim"), headers=session)[0])

            strokes = [threading.Thread(target=stroke) for _ in range(30)]
            for each in strokes:
                each.start()
                time.sleep(0.02)
            stranger = product.ask("/v1/completions", chat("fim"))[0]
            for each in strokes:
                each.join(30)
            talk.close()
            self.assertEqual(stranger, 200)
            self.assertEqual(sorted(statuses), [200] + [410] * 29)
            self.assertEqual(product.output.count("loading fim"), 1)


class LeavingTests(SynchronousTestCase):
    timeout = 60

    def test_two_hundred_dropped_streams_leave_nothing_and_delay_no_request(self):
        """reliability R23, R24, R25"""
        with Product(config(one="--tokens 2000 --interval 0.01")) as product:
            product.json("/upstream/one/pid")
            wires = [stream(product, "/v1/chat/completions", chat("one", stream=True)) for _ in range(200)]
            for wire in wires[::20]:
                wire.recv(1000)
            slowest = 0.0
            for wire in wires:
                wire.close()
            for _ in range(20):
                began = time.monotonic()
                product.ask("/health")
                slowest = max(slowest, time.monotonic() - began)
            self.assertLess(slowest, 1.0)
            wait_for(lambda: product.json("/readyz")["serving"] == 0, 5, "the leases' return")


class BlockingTests(SynchronousTestCase):
    timeout = 60

    def test_other_requests_are_answered_at_once_while_models_load_and_stop(self):
        """reliability R8, core W11"""
        text = json.loads(config(loading="--ready-after 5", stopping="--ignore-term", other=""))
        text["groups"] = {"all": {"swap": False, "members": ["loading", "stopping", "other"]}}
        with Product(json.dumps(text)) as product:
            for model in ("stopping", "other"):
                product.json(f"/upstream/{model}/pid")
            threads = [
                threading.Thread(target=product.ask, args=("/v1/chat/completions", chat("loading"))),
                threading.Thread(
                    target=product.ask, args=("/api/models/unload/stopping", b""), kwargs={"method": "POST"}
                ),
            ]
            for thread in threads:
                thread.start()
            wait_for(lambda: {*product.running().values()} == {"starting", "stopping", "ready"}, 5, "the two")
            for path, body in (("/running", None), ("/v1/models", None), ("/v1/chat/completions", chat("other"))):
                for answered in within(0.05):
                    times = []
                    for _ in range(10):
                        began = time.monotonic()
                        product.json(path, body)
                        times.append(time.monotonic() - began)
                    answered(sorted(times)[5])
            self.assertIn("starting", product.running().values())
            for thread in threads:
                thread.join(20)

    def test_a_proxy_of_the_environment_is_not_asked(self):
        """core W31"""
        nowhere = {
            "http_proxy": "http://127.0.0.1:9",
            "HTTP_PROXY": "http://127.0.0.1:9",
            "no_proxy": "",
            "NO_PROXY": "",
        }
        with Product(config(one=""), env=nowhere) as product:
            self.assertEqual(product.json("/v1/chat/completions", chat("one"))["model"], "one")

    def test_unfinished_body_holds_no_model(self):
        with Product(config(one="")) as product:
            wires = [stream(product, "/v1/chat/completions", chat("one"), announce=100) for _ in range(3)]
            self.assertEqual(product.json("/readyz")["serving"], 0)
            for wire in wires:
                wire.close()


class CostTests(SynchronousTestCase):
    timeout = 60

    def test_at_rest_it_costs_nothing(self):
        """reliability R36"""
        with Product(config(one="")) as product:
            product.json("/upstream/one/pid")
            product.ask("/unload")
            time.sleep(1.5)
            before = cpu(product.process.pid)
            time.sleep(5)
            self.assertLess(cpu(product.process.pid) - before, 0.05, "seconds of CPU in five seconds")

    def test_a_flood_of_log_lines_keeps_no_request_waiting(self):
        """reliability R38"""
        with Product(config(one="--flood 0")) as product:
            product.json("/upstream/one/pid")
            waits = []
            for _ in range(20):
                began = time.monotonic()
                product.json("/v1/chat/completions", chat("one"))
                waits.append(time.monotonic() - began)
            self.assertLess(sorted(waits)[10], 0.5, waits)


class UnloadTests(SynchronousTestCase):
    timeout = 60

    def test_every_state_can_be_ended(self):
        """reliability R37: starting for ever, stopping slowly, failing"""
        models = {"starting": "--hang health", "stopping": "--ignore-term", "failing": "--exit-at-once"}
        with Product(config(**models)) as product:
            ask = lambda: product.ask("/v1/chat/completions", chat("starting"))
            asking = threading.Thread(target=ask)
            asking.start()
            wait_for(lambda: product.running() == {"starting": "starting"}, 5, "the start")
            self.assertEqual(product.ask("/unload")[0], 200)
            self.assertEqual(product.running(), {})
            asking.join(10)
            product.json("/upstream/stopping/pid")
            began = time.monotonic()
            self.assertEqual(product.ask("/unload")[0], 200)
            self.assertLess(time.monotonic() - began, 5.0)
            product.ask("/v1/chat/completions", chat("failing"))
            self.assertEqual(product.ask("/api/models/unload/failing", b"", method="POST")[0], 200)


class BodyTests(SynchronousTestCase):
    timeout = 120

    def test_a_huge_upload_to_a_cold_model_is_not_held_in_memory(self):
        """reliability R30"""
        with Product(config(one="--ready-after 0.5")) as product:
            host, _, port = product.url.removeprefix("http://").partition(":")
            product.ask("/health")
            before = rss(product.process.pid)
            head = b'--B\r\nContent-Disposition: form-data; name="model"\r\n\r\none\r\n'
            head += b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
            tail = b"\r\n--B--\r\n"
            size = 200 * 2**20
            block = bytes(2**20)
            with socket.create_connection((host, int(port)), timeout=60) as wire:
                length = len(head) + size + len(tail)
                wire.sendall(
                    b"POST /upstream/one/status/200 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                    b"Content-Type: multipart/form-data; boundary=B\r\nContent-Length: %d\r\n\r\n" % length + head
                )
                most = 0
                for _ in range(size // len(block)):
                    wire.sendall(block)
                    most = max(most, rss(product.process.pid))
                wire.sendall(tail)
                self.assertIn(b" 200 ", wire.recv(200))
            self.assertLess(most - before, 64, "MiB")


def cpu(pid):
    """Seconds of CPU a process used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss(pid):
    """Resident memory in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) // 1024
    return 0
