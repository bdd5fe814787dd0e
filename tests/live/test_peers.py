"""Peers that are asked for their models, and selectors that turn from one to the next. Real processes throughout."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.live.product import Product, wait_for
from tests.live.test_reliability import stream, until_end
from tests.live.test_service import chat, config


class Engine:
    """A stand-in server on its own, as a peer; use as a context manager."""

    def __init__(self, *flags):
        path = Path(__file__).with_name("engine.py")
        self.words = [sys.executable, "-I", "-S", str(path), "--port", "0", *flags]

    def __enter__(self):
        self.process = subprocess.Popen(self.words, stdout=subprocess.PIPE, text=True)
        self.port = int(re.search(r"listening on (\d+)", self.process.stdout.readline())[1])
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait(10)
        self.process.stdout.close()


class PeerTests(SynchronousTestCase):
    timeout = 60

    def text(self, engine, **peer):
        text = json.loads(config(own=""))
        text["peers"] = {"lab": {"proxy": f"http://127.0.0.1:{engine.port}", "models": "auto", **peer}}
        text["selectors"] = {"safe": {"strategy": "failover", "targets": ["lab/far", "own"]}}
        return json.dumps(text)

    def peer(self, product):
        (peer,) = product.json("/api/peers")["peers"]
        return peer

    def test_one_key_serves_a_proxy_its_engine_and_a_peer_without_a_key_of_its_own(self):
        behind = json.loads(config(far="")) | {"apiKeys": ["shared"]}
        behind["models"]["far"]["env"] = ["LLAMA_API_KEY=shared"]
        headers = {"Authorization": "Bearer shared"}
        with Product(json.dumps(behind)) as second:
            front = {"apiKeys": ["shared"], "peers": {"lab": {"proxy": second.url, "models": ["far"]}}}
            for more, status in (({}, 200), ({"forwardKey": "never"}, 401)):
                with Product(json.dumps(front | more)) as first:
                    asked = first.ask("/v1/chat/completions", chat("far"), headers=headers)
                    self.assertEqual(asked[0], status, asked)
            seen = json.loads(second.ask("/upstream/far/echo", headers=headers)[2])
            self.assertIn("Bearer shared", json.dumps(seen["headers"]))

    def test_a_request_that_two_peers_pass_around_ends_at_the_third_hop(self):
        """Before, one request went round 19,900 times."""
        with Product(json.dumps({"models": {}})) as first:
            back = {"peers": {"back": {"proxy": first.url, "models": ["loop"]}}}
            with Product(json.dumps(back)) as second:
                first.config.write_text(json.dumps({"peers": {"on": {"proxy": second.url, "models": ["loop"]}}}))
                first.process.send_signal(signal.SIGHUP)
                wait_for(lambda: "loop" in str(first.json("/v1/models")))
                status, _, body = first.ask("/v1/chat/completions", chat("loop"))
                self.assertEqual(status, 508, body)
                self.assertIn(b"loop detected", body)
                rows = sum(len(one.json("/api/metrics")) for one in (first, second))
                self.assertLessEqual(rows, 3)

    def test_a_stream_of_a_peer_that_the_end_cuts_gets_its_error_event_and_no_reset(self):
        with Engine("--name", "far", "--tokens", "200", "--interval", "0.1") as engine:
            text = json.loads(self.text(engine, models=["far"])) | {"drainTimeout": 1}
            with Product(json.dumps(text)) as product:
                wire = stream(product, "/v1/chat/completions", chat("far", stream=True))
                self.assertIn(b"200 OK", wire.recv(100))
                product.process.send_signal(signal.SIGTERM)
                data, cut = until_end(wire)
                self.assertFalse(cut)
                self.assertIn(b"llamaswap is shutting down", data)
                self.assertNotIn(b"\r\n0\r\n\r\n", data)
                self.assertEqual(product.process.wait(20), 0)

    def test_models_of_a_peer_are_listed_and_routed_until_it_ends(self):
        with Engine("--name", "far") as engine, Product(self.text(engine)) as product:
            wait_for(lambda: self.peer(product)["models"] == ["far"], 10, "the peer's list")
            self.assertEqual(self.peer(product)["state"], "up")
            self.assertIn("lab/far", [record["id"] for record in product.json("/v1/models")["data"]])
            for name in ("lab/far", "far", "safe"):
                self.assertEqual(product.json("/v1/chat/completions", chat(name))["model"], "far")
            self.assertEqual(product.running(), {})
            engine.process.kill()
            engine.process.wait(10)
            began = time.monotonic()
            self.assertEqual(product.json("/v1/chat/completions", chat("safe"))["model"], "own")
            self.assertLess(time.monotonic() - began, 5)
            self.assertEqual(product.ask("/v1/chat/completions", chat("lab/far"))[0], 502)
            self.assertEqual(self.peer(product)["state"], "down")
            wait_for(lambda: self.failovers(product) == ["lab/far,own"], 5, "the record")

    def failovers(self, product):
        rows = product.json("/api/metrics/activity")["data"]
        return [row["metadata"]["failover"] for row in rows if "failover" in row.get("metadata", {})]

    def test_absent_peer_delays_no_request(self):
        with Engine() as engine:
            text = self.text(engine)
        with Product(text) as product:
            wait_for(lambda: self.peer(product)["state"] == "down", 10, "the first question's end")
            self.assertEqual(product.json("/v1/chat/completions", chat("safe"))["model"], "own")
            self.assertEqual(product.ask("/v1/chat/completions", chat("lab/far"))[0], 404)
