"""The parts of other servers' APIs that their clients need, against the product with real processes behind it."""

import json
import sys
import threading
import urllib.request

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.live.product import ROOT, Product, wait_for
from tests.live.test_service import config as engines
from tests.live.test_upgrade import upgrade

try:
    from websockets.exceptions import ConnectionClosed, InvalidStatus
    from websockets.sync.client import connect
except ImportError:
    connect = None

HELLO = [{"role": "user", "content": "hello"}]


def config(**more) -> str:
    talker = f"{sys.executable} -I -S {ROOT}/tests/live/talker.py --port ${{PORT}}"
    broken = f"{sys.executable} -c 'raise SystemExit(3)' ${{PORT}}"
    models = {"talker": {"cmd": talker, "checkEndpoint": "/health"}, "broken": {"cmd": broken}}
    models["second"] = models["talker"]
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
            expected = {name: {"value": "unloaded"} for name in ("talker", "second")} | {
                "broken": {"value": "unloaded", "failed": True}
            }
            self.assertEqual(statuses, expected)
        reader.join(10)
        self.assertFalse(reader.is_alive())


class JobTests(SynchronousTestCase):
    def test_a_video_is_made_while_another_model_waits(self):
        with Product(config()) as product:
            made = product.json("/v1/videos", {"model": "talker", "prompt": "a cat"})
            answers = []

            def other():
                answers.append(product.ask("/v1/chat/completions", {"model": "second", "messages": HELLO})[0])

            waiting = threading.Thread(target=other, daemon=True)
            waiting.start()
            wait_for(lambda: product.json("/api/queue")["queue"], 10, "the queued request")
            path = f"/v1/videos/{made['id']}"
            statuses = [product.json(path)["status"] for _ in range(2)]
            self.assertEqual((statuses, answers), (["in_progress", "in_progress"], []))
            self.assertEqual(product.json(path)["status"], "completed")
            waiting.join(20)
            self.assertEqual(answers, [200])
            self.assertEqual([product.ask(path)[0], product.ask("/v1/videos/video_9")[0]], [409, 404])
            self.assertEqual(product.running(), {"second": "ready"})

    def test_a_video_is_found_after_an_upgrade(self):
        with Product(config()) as product:
            path = f"/v1/videos/{product.json('/v1/videos', {'model': 'talker'})['id']}"
            upgrade(product)
            self.assertEqual(product.json(path)["status"], "in_progress")
            self.assertTrue(product.json(path, method="DELETE")["deleted"])

    def test_a_video_is_read_and_deleted(self):
        with Product(config()) as product:
            path = f"/v1/videos/{product.json('/v1/videos', {'model': 'talker'})['id']}"
            self.assertEqual(product.json(path + "/content"), {"data": path.rpartition("/")[2]})
            self.assertTrue(product.json(path, method="DELETE")["deleted"])
            self.assertEqual(product.ask(path)[0], 404)
            product.ask("/unload")


class ResponseTests(SynchronousTestCase):
    def test_a_conversation_goes_on_over_a_server_that_keeps_nothing(self):
        keys = [{"key": f"sk-{name}", "name": name} for name in ("anna", "bert")]
        anna, bert = ({"Authorization": f"Bearer sk-{name}"} for name in ("anna", "bert"))
        with Product(config(apiKeys=keys)) as product:
            first = product.json("/v1/responses", {"model": "talker", "input": "one"}, headers=anna)
            self.assertEqual(first["output"][0]["content"][0]["text"], "1 items")
            body = {"model": "talker", "input": "two", "previous_response_id": first["id"], "stream": True}
            text = product.ask("/v1/responses", body, headers=anna)[2].decode()
            self.assertIn("3 items", text)
            second = json.loads(text.rpartition("data: ")[2])["response"]["id"]
            product.ask("/unload", headers=anna)
            body |= {"input": "three", "previous_response_id": second, "stream": False}
            third = product.json("/v1/responses", body, headers=anna)
            self.assertEqual(third["output"][0]["content"][0]["text"], "5 items")
            self.assertEqual(product.json(f"/v1/responses/{second}", headers=anna)["previous_response_id"], first["id"])
            items = product.json(f"/v1/responses/{third['id']}/input_items?order=asc", headers=anna)["data"]
            self.assertEqual([one["role"] for one in items], ["user", "assistant"] * 2 + ["user"])
            self.assertEqual(product.ask("/v1/responses", body, headers=bert)[0], 400)
            self.assertEqual(product.ask(f"/v1/responses/{second}", headers=bert)[0], 404)
            self.assertEqual(product.ask(f"/v1/responses/{second}")[0], 401)
            self.assertTrue(product.json(f"/v1/responses/{second}", method="DELETE", headers=anna)["deleted"])
            self.assertEqual(product.ask("/v1/responses", body, headers=anna)[0], 400)


class ToolTests(SynchronousTestCase):
    def test_an_agent_loads_a_model_and_reads_why(self):
        def rpc(method, **params):
            body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
            found = product.json("/mcp", body, headers={"Accept": "application/json, text/event-stream"}, timeout=60)
            return found["result"]

        def use(name, **arguments):
            found = rpc("tools/call", name=name, arguments=arguments)
            return found["isError"], found["content"][0]["text"]

        with Product(config()) as product:
            self.assertEqual(rpc("initialize", protocolVersion="2025-06-18")["protocolVersion"], "2025-06-18")
            self.assertEqual(json.loads(use("load", model="talker", wait=True)[1])["state"], "ready")
            states = {row["id"]: row["state"] for row in json.loads(use("list_models")[1])}
            self.assertEqual(states, {"talker": "ready", "second": "stopped", "broken": "stopped"})
            plan = json.loads(use("plan", model="second")[1])
            self.assertEqual([one["model"] for one in plan["evicts"]], ["talker"])
            failed, text = use("load", model="broken", wait=True)
            self.assertTrue(failed and "exit" in text, text)
            self.assertIn("exit", json.loads(use("why", model="broken")[1])["model"]["last_error"])
            self.assertIn("broken", use("logs", lines=20)[1])
            self.assertEqual(use("unload", model="second"), (False, "OK"))


class WebsocketTests(SynchronousTestCase):
    def setUp(self):
        if connect is None:
            raise SkipTest("the package websockets is not installed (extra: live)")
        self.product = Product(engines(one="")).__enter__()
        self.addCleanup(self.product.__exit__)
        self.url = "ws" + self.product.url.removeprefix("http")

    def test_realtime_by_query_and_by_the_first_event(self):
        with connect(self.url + "/v1/realtime?model=one", open_timeout=30) as client:
            client.send("over the query")
            self.assertEqual(client.recv(20), "over the query")
        self.product.ask("/unload")
        with connect(self.url + "/v1/realtime", subprotocols=["realtime"]) as client:
            self.assertEqual(json.loads(client.recv(20))["type"], "session.created")
            self.assertEqual(self.product.running(), {})
            update = json.dumps({"type": "session.update", "session": {"model": "one", "text": "ö" * 70_000}})
            client.send(update)
            client.send(b"\0" * 1000)
            self.assertEqual(client.recv(30), update)
            self.assertEqual(client.recv(20), b"\0" * 1000)
            self.assertEqual(self.product.running(), {"one": "ready"})
        wait_for(lambda: not self.product.json("/api/models/one")["active"], 10, "the end of the request")

    def test_realtime_with_an_unknown_model_says_so_in_an_event(self):
        with connect(self.url + "/v1/realtime") as client:
            client.recv(20)
            client.send(json.dumps({"type": "session.update", "model": "ghost"}))
            self.assertIn("no router for requested model", json.loads(client.recv(20))["error"]["message"])
            self.assertRaises(ConnectionClosed, client.recv, 20)
            self.assertEqual(client.close_code, 1008)

    def refused(self, query):
        with self.assertRaises(InvalidStatus) as raised:
            connect(self.url + "/v1/responses" + query).close()
        return raised.exception.response.status_code

    def test_responses_are_a_websocket_where_the_server_has_one(self):
        self.assertEqual([self.refused(query) for query in ("", "?model=one&ws=1", "?model=ghost")], [426, 426, 404])
        self.assertEqual(self.product.running(), {})
        self.product.json("/api/models/load/one?wait=1", b"")
        self.assertEqual(self.refused("?model=one"), 426)
        with connect(self.url + "/v1/responses?model=one&ws=1") as client:
            client.send("hello")
            self.assertEqual(client.recv(20), "hello")
        status, headers, _ = self.product.ask("/v1/responses")
        self.assertEqual((status, headers["Upgrade"]), (426, "websocket"))
