"""Keys that are wrong, expired, used up or of another scope, through every route of the tables.

Each is refused in the words of the route's API, and no piece of a key is left anywhere. A new route joins by itself.
The unit tests do the same in memory; here the requests come over sockets, at both addresses.
"""

import http.client
import json
import re
import tempfile
from base64 import b64encode
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from secrets import token_urlsafe
from urllib.parse import urlsplit

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.web.mcp import TOOLS
from llamaswap.web.route_table import ROUTES
from llamaswap.wire.model_routes import MODEL_ROUTES
from llamaswap.wire.openai import speaks_anthropic, speaks_ollama
from tests.live.product import Product, group_members, wait_for
from tests.live.test_ollama import free_port
from tests.live.test_service import config

UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
PIECE, STEP = 12, 4  # characters of a secret that are looked for, at each so many characters
REFUSED = {"wrong": (401, "unauthorized"), "none": (401, "unauthorized"), "old": (401, "key_expired")}
USED_UP = ("rpm", "tpm", "spent", "busy")
KEYS = {  # by name, what their entries say
    "old": {"expires": "2020-01-01"},
    "watcher": {"scopes": ["read"]},
    "child": {"models": ["one"]},
    "rpm": {"rpm": 1},
    "tpm": {"tpm": 1},
    "spent": {"budget": {"tokens": 1, "window": "1d"}},
    "busy": {"maxParallel": 1},
    "parent": {"scopes": ["admin"]},
}
FORMS = {f"/{route.path.strip('/')}" for route in MODEL_ROUTES if route.body == "form"}
JOBS = ("/v1/videos/1", "/v1/files/1", "/v1/batches/1", "/v1/responses/1")


def presented(key):
    """Each way to present a key; none for no key."""
    if not key:
        yield {}
        return
    yield {"Authorization": f"Bearer {key}"}
    yield {"X-Api-Key": key}
    yield {"Authorization": "Basic " + b64encode(f"me:{key}".encode()).decode()}


def secrets_of(keys):
    """Every text by which a key could be known: itself, its digest, and what Basic makes of it."""
    for key in keys:
        yield from (key, sha256(key.encode()).hexdigest(), b64encode(f"me:{key}".encode()).decode())


def pieces_of(keys):
    """Parts of the secrets. The beginning of a key is the same for all, and that of Basic's text names no key."""
    return {text[start : start + PIECE] for text in secrets_of(keys) for start in range(6, len(text) - PIECE + 1, STEP)}


def requests():
    """(route, method, target, whether its body is a form) of every route that needs a key; `{model}` stands for a
    model's name."""
    for route in ROUTES:
        if route.key == "not needed":
            continue
        path = re.sub("<[^>]*>", "1", route.rule)
        if route.rule.startswith("/upstream/"):
            path = "/upstream/{model}/v1/chat/completions"
        by_query = route.methods == ("GET",) and route.key == "by handler"
        target = f"{path}?model={{model}}" if by_query or path in ("/v1/realtime", "/v1/responses") else path
        for method in route.methods or ("GET", "POST"):
            yield route, method, target, path in FORMS and method == "POST"


class KeySweep(SynchronousTestCase):
    timeout = 150

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.port = free_port()
        slow = "--interval 0.5 --tokens 600"
        document = json.loads(config(one="--env LLAMASWAP_API_KEY", two="", slow=slow, comfyui_auto=""))
        document |= {"store": {"path": f"{folder.name}/activity.db"}, "logLevel": "debug", "logToStdout": "both"}
        document |= {"ollama": {"listen": f"127.0.0.1:{self.port}"}}
        self.keys = {"none": "", **{name: f"sk-{token_urlsafe(24)}" for name in ("wrong", *KEYS)}}
        document["apiKeys"] = [
            {"name": name, "key": f"sha256:{sha256(self.keys[name].encode()).hexdigest()}", **more}
            for name, more in KEYS.items()
        ]
        self.text = json.dumps(document)
        self.pieces = pieces_of(filter(None, self.keys.values()))
        self.asked = 0

    def expected(self, name, route, method, target):
        """(status, code) of the refusal; None: the key may do this."""
        if name in REFUSED:
            return REFUSED[name]
        if route.key == "checked":
            if route.scope == "any":
                return None
            return None if name == "watcher" and route.scope == "read" else (403, "scope")
        if name == "watcher":
            return 403, "scope"
        if target.startswith(JOBS):
            return 404, None
        if name == "child":
            return 403, "model_not_allowed"
        counted = method == "POST" or not target.startswith(("/upstream/", "/comfyui/"))
        if method == "POST" and target == "/v1/batches":
            return 403, "scope"  # what is in a batch is not counted
        if target.startswith("/comfyui/") or not counted:
            return 403, "scope"  # a server's own page is not counted, so a limited key may not use it
        return 429, "insufficient_quota" if name == "spent" else "rate_limit_exceeded"

    def check(self, connection, headers, method, target, body, expected):
        connection.request(method, target, body, headers)
        answer = connection.getresponse()
        data, sent = answer.read(), answer.headers
        self.asked += 1
        where = (method, target, headers, data[:300])
        status, code = expected
        self.assertEqual(answer.status, status, where)
        self.assertEqual("WWW-Authenticate" in sent, status == 401, where)
        self.assertEqual("Retry-After" in sent, status == 429, where)
        self.clean(data.decode() + str(sent), where)
        if method == "HEAD":
            return
        document = json.loads(data)
        path = target.partition("?")[0]
        if speaks_ollama(path):
            self.assertIsInstance(document["error"], str, where)
            return
        self.assertTrue(document["error"]["message"], where)
        if code is not None:
            self.assertEqual(document["error"]["code"], code, where)
        self.assertEqual(document.get("type"), "error" if speaks_anthropic(path) else None, where)

    def clean(self, text, where):
        found = [piece for piece in self.pieces if piece in text]
        self.assertEqual(found, [], where)

    def use_up(self, product):
        """Let each limit be reached, the last one by a request that goes on."""
        for name in USED_UP[:3]:
            body = {"model": "one", "messages": [{"role": "user", "content": "hello"}]}
            status, _, data = product.ask("/v1/chat/completions", body, headers={"X-Api-Key": self.keys[name]})
            self.assertEqual(status, 200, data)
        self.running = http.client.HTTPConnection(urlsplit(product.url).netloc, timeout=60)
        body = json.dumps({"model": "slow", "stream": True, "messages": []})
        headers = {"X-Api-Key": self.keys["busy"], "Content-Type": "application/json"}
        self.running.request("POST", "/v1/chat/completions", body, headers)
        self.assertEqual(self.running.getresponse().status, 200)
        parent = {"X-Api-Key": self.keys["parent"]}

        def used():
            rows = json.loads(product.ask("/api/keys", headers=parent)[2])["keys"]
            return {row["name"]: row for row in rows}["spent"]["used"] >= 1

        wait_for(used, 10, "the use of the keys")

    def sweep(self, name, address):
        """Every request of the tables with one key; those that the key may do are left out."""
        connection = http.client.HTTPConnection(address, timeout=20)
        self.addCleanup(connection.close)
        model = "one" if name in USED_UP else "two"
        plain = json.dumps({"model": model, "messages": [{"role": "user", "content": "hello"}]}).encode()
        for route, method, template, form in requests():
            target = template.format(model=model)
            expected = self.expected(name, route, method, target)
            if expected is None:
                continue
            body = b"model=%b&prompt=x" % model.encode() if form else plain
            kind = "application/x-www-form-urlencoded" if form else "application/json"
            for key in presented(self.keys[name]):
                headers = {**key, "Content-Type": kind, "Accept": "application/json"}
                if method in ("GET", "HEAD"):
                    self.check(connection, headers, method, target, None, expected)
                    continue
                self.check(connection, headers, method, target, body, expected)
                if route.key == "by handler" and not form:
                    self.check(connection, headers, method, target, body[:-1] + b', "stream": true}', expected)
        self.sweep_other_paths(name, connection, model, plain)

    def sweep_other_paths(self, name, connection, model, body):
        """What no table lists: a POST to any path that names a model, websockets, a page's key, and tools."""
        for key in presented(self.keys[name]):
            headers = {**key, "Content-Type": "application/json", "Accept": "application/json"}
            if name in USED_UP or name == "child":
                limit = (429, "insufficient_quota" if name == "spent" else "rate_limit_exceeded")
                expected = limit if name in USED_UP else (403, "model_not_allowed")
                self.check(connection, headers, "POST", "/v1/of/its/own", body, expected)
            for path in ("/v1/realtime", "/v1/responses"):
                of_page = {
                    "Sec-WebSocket-Protocol": f"realtime, openai-insecure-api-key.{self.keys[name] or 'sk-other'}"
                }
                for way in (key, of_page):
                    expected = (403, "scope") if path == "/v1/realtime" else (426, "no_websocket")
                    expected = (403, "model_not_allowed") if name == "child" else expected
                    expected = REFUSED.get(name, (403, "scope") if name == "watcher" else expected)
                    self.check(connection, {**UPGRADE, **way}, "GET", f"{path}?model={model}", None, expected)
            for tool in TOOLS.values() if name not in REFUSED else ():
                if tool.scope == "admin" or (tool.scope == "read" and name != "watcher"):
                    self.check_tool(connection, headers, tool.name)

    def check_tool(self, connection, headers, tool):
        call = {"name": tool, "arguments": {"model": "one"}}
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
        connection.request("POST", "/mcp", json.dumps(message), headers)
        answer = connection.getresponse()
        data = answer.read()
        self.asked += 1
        result = json.loads(data)["result"]
        self.assertTrue(result["isError"], tool)
        self.assertIn("has no scope", result["content"][0]["text"])
        self.clean(data.decode() + str(answer.headers), tool)

    def test_every_route_refuses_every_such_key_and_leaves_no_trace(self):
        with Product(self.text) as product:
            self.use_up(product)
            with closing(self.running):
                self.sweep_all(product)
            self.assertGreater(self.asked, 10_000)
            self.check_traces(product)

    def sweep_all(self, product):
        for address in (urlsplit(product.url).netloc, f"127.0.0.1:{self.port}"):
            for name in (*USED_UP, *REFUSED, "watcher", "child"):
                self.sweep(name, address)

    def check_traces(self, product):
        parent = {"X-Api-Key": self.keys["parent"]}
        rows = json.loads(product.ask("/api/metrics/activity?limit=999", headers=parent)[2])
        self.assertGreater(rows["total"], 500)
        views = [f"/api/captures/{row['id']}" for row in rows["data"][:200] if row["has_capture"]]
        self.assertTrue(views)
        views += [route.rule for route in ROUTES if plain(route)]
        self.assertGreater(len(views), 30)
        for view in views:
            _, _, data = product.ask(view, headers=parent)
            self.clean(data.decode("utf-8", "replace"), view)
        self.clean(self.events(product, parent), "/api/events")
        for pid in group_members(product.process.pid):
            for file in ("cmdline", "environ"):
                self.clean(Path(f"/proc/{pid}/{file}").read_bytes().decode("utf-8", "replace"), file)
        self.clean(product.output, "the log")

    def events(self, product, headers):
        """What the event stream of the page begins with: the states, the logs, the requests."""
        connection = http.client.HTTPConnection(urlsplit(product.url).netloc, timeout=1)
        self.addCleanup(connection.close)
        connection.request("GET", "/api/events", headers=headers)
        stream, found = connection.getresponse(), b""
        try:
            while len(found) < 1 << 20:
                found += stream.readline()
        except TimeoutError:
            pass
        self.assertIn(b"modelStatus", found)
        return found.decode("utf-8", "replace")


def plain(route):
    """Whether a GET route has a document, and no part of its path has to be known."""
    shown = route.methods == ("GET",) and route.scope == "read" and "<" not in route.rule
    return shown and "stream" not in route.rule and route.content != "text/event-stream"
