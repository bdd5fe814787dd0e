"""The APIs of LM Studio and of llama.cpp's router, against the product with a real process behind it."""

import json
import sys
import threading
import urllib.request

from twisted.trial.unittest import SynchronousTestCase

from tests.live.product import ROOT, Product, wait_for

HELLO = [{"role": "user", "content": "hello"}]


def config(**more) -> str:
    talker = f"{sys.executable} -I -S {ROOT}/tests/live/talker.py --port ${{PORT}}"
    broken = f"{sys.executable} -c 'raise SystemExit(3)' ${{PORT}}"
    models = {"talker": {"cmd": talker, "checkEndpoint": "/health"}, "broken": {"cmd": broken}}
    return json.dumps({"models": models, **more})


class StudioTests(SynchronousTestCase):
    def test_a_client_of_lm_studio_sees_the_model_come_and_go_by_its_ttl(self):
        def state():
            return product.json("/api/v0/models/talker")["state"]

        with Product(config()) as product:
            self.assertEqual(state(), "not-loaded")
            body = {"model": "talker", "messages": HELLO, "ttl": 60}
            found = product.json("/api/v0/chat/completions", body)
            self.assertEqual(found["choices"][0]["message"]["content"], "0 images, text ")
            self.assertEqual(state(), "loaded")
            wait_for(lambda: "max_context_length" in product.json("/api/v0/models/talker"), 10, "the context length")
            self.assertEqual(product.json("/api/v0/models/talker")["loaded_context_length"], 2048)
            left = product.json("/api/models/talker")["ttl_left_s"]
            self.assertTrue(50 < left <= 60, left)
            product.json("/api/v0/embeddings", {"model": "talker", "input": "a", "ttl": 0})
            wait_for(lambda: state() == "not-loaded", 10, "the unload")


class RouterTests(SynchronousTestCase):
    def test_a_client_of_the_router_loads_and_unloads_and_sees_a_failure(self):
        seen, connected = [], threading.Event()

        def read(url):
            with urllib.request.urlopen(url, timeout=60) as response:
                connected.set()
                for line in response:
                    if line.startswith(b"data: "):
                        event = json.loads(line[6:])
                        seen.append((event["model"], event["data"].get("status"), event["data"].get("exit_code")))

        with Product(config()) as product:
            self.assertEqual(product.json("/props")["role"], "router")
            reader = threading.Thread(target=read, args=(product.url + "/models/sse",), daemon=True)
            reader.start()
            self.assertTrue(connected.wait(10))
            self.assertEqual(product.json("/models/load", {"model": "talker"}), {"success": True})
            wait_for(lambda: ("talker", "loaded", None) in seen, 15, "the load")
            self.assertEqual(product.json("/models/unload", {"model": "talker"}), {"success": True})
            wait_for(lambda: ("talker", "unloaded", None) in seen, 15, "the unload")
            product.ask("/models/load", {"model": "broken"})
            wait_for(lambda: ("broken", "unloaded", 1) in seen, 15, "the failure")
            statuses = {one["id"]: one["status"] for one in product.json("/models")["data"]}
            expected = {"talker": {"value": "unloaded"}, "broken": {"value": "unloaded", "failed": True}}
            self.assertEqual(statuses, expected)
        reader.join(10)
        self.assertFalse(reader.is_alive())
