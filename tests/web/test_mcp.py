"""The tools for agents, and a session of the official Python client as it was recorded."""

from __future__ import annotations

import json
import re
from pathlib import Path

from attrs import evolve
from twisted.internet.defer import Deferred, fail
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import ApiKey, Secret
from llamaswap.errors import StartFailed
from llamaswap.routing.interfaces import WaitingRequest
from llamaswap.scheduling.state import Decision
from llamaswap.web.mcp import TOOLS
from tests.doubles import FakeRouter
from tests.web.doubles import World, example_config, example_router

SESSION = json.loads(Path(__file__).with_name("mcp_session.json").read_text())
JSON = ("Content-Type", "application/json")
BOTH = ("Accept", "application/json, text/event-stream")


def rpc(world, method, params=None, *headers, number=1):
    body = {"jsonrpc": "2.0", "id": number, "method": method, "params": params or {}}
    return world.ask("/mcp", "POST", [JSON, BOTH, *headers], json.dumps(body).encode())


def use(world, name, *headers, **arguments):
    """(whether it failed, its text)"""
    result = rpc(world, "tools/call", {"name": name, "arguments": arguments}, *headers).json["result"]
    return result["isError"], result["content"][0]["text"]


def with_scopes(*scopes, models=()):
    child = ApiKey(Secret("sk-child"), "child", models=models, scopes=scopes)
    boss = ApiKey(Secret("sk-boss"), "boss", scopes=("admin",))
    return World(example_router(evolve(example_config(), api_keys=(child, boss))))


CHILD = ("Authorization", "Bearer sk-child")


class RecordedSessionTests(SynchronousTestCase):
    def test_the_official_client_gets_the_answers_that_it_got(self):
        world, pins = World(), []
        for asked in SESSION:
            answer = world.ask("/mcp", "POST", asked["headers"].items(), json.dumps(asked["body"]).encode())
            self.assertEqual(answer.status, asked["status"], asked)
            if "answer" not in asked:
                self.assertEqual(answer.body, b"")
                continue
            found = answer.json
            pins += [set(world.router.pinned)] if world.router.pinned not in pins[-1:] else []
            self.assertEqual((found["jsonrpc"], found["id"]), ("2.0", asked["body"]["id"]))
            self.assertEqual(sorted(found.get("result") or found["error"]), asked["answer"], asked)
            self.assertEqual(answer.headers["content-type"], "application/json")
        self.assertEqual(pins, [set(), {"alpha"}] * 2 + [set()])
        self.assertEqual((world.router.loaded, world.router.unloaded), (["alpha"] * 2, [["alpha"]] * 2))


class ProtocolTests(SynchronousTestCase):
    def test_the_version_is_the_clients_or_the_newest_one(self):
        for asked, answered in (("2024-11-05", "2024-11-05"), ("2099-01-01", "2025-11-25"), (7, "2025-11-25")):
            result = rpc(World(), "initialize", {"protocolVersion": asked}).json["result"]
            self.assertEqual(result["protocolVersion"], answered)
        answer = rpc(World(), "ping", {}, ("MCP-Protocol-Version", "2099-01-01"))
        self.assertEqual((answer.status, answer.json["error"]["code"]), (400, -32022))
        self.assertIn("2025-06-18", answer.json["error"]["data"]["supported"])

    def test_malformed_messages_are_errors(self):
        for body, status, code in (
            (b"", 400, -32700),
            (b"{", 400, -32700),
            (b"[" * 100_000, 400, -32700),
            (b"[]", 400, -32600),
            (b'"ping"', 400, -32600),
            (b'{"id":1,"method":7}', 400, -32600),
            (b'{"id":[],"method":"ping"}', 400, -32600),
            (b'{"id":true,"method":"ping"}', 400, -32600),
            (b'{"id":2.5,"method":"ping"}', 400, -32600),
            (b'{"id":NaN,"method":"ping"}', 400, -32600),
            (b'{"id":1,"method":"ping","params":[1]}', 200, -32602),
            (b'{"id":1,"method":"nonsense"}', 200, -32601),
            (b'{"id":1,"method":"tools/call"}', 200, -32602),
            (b'{"id":1,"method":"tools/call","params":{"name":"nonsense"}}', 200, -32602),
            (b'{"id":1,"method":"tools/call","params":{"name":["load"]}}', 200, -32602),
            (b'{"id":1,"method":"tools/call","params":{"name":"load","arguments":[1]}}', 200, -32602),
            (b'{"id":1,"method":"tools/call","params":{"name":"load"}}', 200, -32602),
            (b'{"id":1,"method":"tools/call","params":{"name":"load","arguments":{"model":7}}}', 200, -32602),
            (b'{"id":1,"method":"tools/call","params":{"name":"logs","arguments":{"lines":true}}}', 200, -32602),
        ):
            answer = World().ask("/mcp", "POST", [JSON], body)
            self.assertEqual((answer.status, answer.json["error"]["code"]), (status, code), body[:80])

    def test_a_large_message_is_refused(self):
        answer = World().ask("/mcp", "POST", [JSON], b'{"id":1,"pad":"' + b"x" * 1_100_000 + b'"}')
        self.assertEqual(answer.status, 413)

    def test_notifications_get_no_answer(self):
        for body in (b'{"method":"notifications/cancelled"}', b'{"id":1,"result":{}}'):
            answer = World().ask("/mcp", "POST", [JSON], body)
            self.assertEqual((answer.status, answer.body), (202, b""))

    def test_other_methods_and_pages_of_other_sites_are_refused(self):
        self.assertEqual(World().ask("/mcp").status, 405)
        self.assertEqual(World().ask("/mcp", "DELETE").status, 405)
        self.assertEqual(rpc(World(), "ping", {}, ("Origin", "https://evil.example")).status, 403)
        body = b'{"id":1,"method":"ping"}'
        self.assertEqual(World().ask("/mcp", "POST", [JSON], body, host="evil.example").status, 403)


class ScopeTests(SynchronousTestCase):
    def names(self, world, *headers):
        return [tool["name"] for tool in rpc(world, "tools/list", {}, *headers).json["result"]["tools"]]

    def test_a_key_sees_and_uses_the_tools_of_its_scopes(self):
        reading = ["list_models", "why", "plan", "queue", "logs", "usage"]
        for scopes, expected in ((("infer",), ["list_models"]), (("read",), reading), (("admin",), list(TOOLS))):
            world = with_scopes(*scopes)
            self.assertEqual(self.names(world, CHILD), expected)
            for name in set(TOOLS) - set(expected):
                failed, text = use(world, name, CHILD, model="alpha")
                self.assertTrue(failed and "scope" in text, (name, text))
            self.assertEqual((world.router.calls, world.router.loaded, world.router.unloaded), ([], [], []))
        self.assertEqual(rpc(world, "tools/list").status, 401)

    def test_a_key_manages_only_the_models_that_it_may_use(self):
        world = with_scopes("admin", models=("beta*",))
        for name in ("load", "unload", "pin", "why", "plan", "logs"):
            failed, text = use(world, name, CHILD, model="al")
            self.assertTrue(failed and "may not use" in text, (name, text))
        self.assertEqual({row["id"] for row in json.loads(use(world, "list_models", CHILD)[1])}, {"beta"})
        self.assertEqual(use(world, "load", CHILD, model="beta")[0], False)

    def test_tools_name_no_model_that_the_key_may_not_use(self):
        world = with_scopes("read", models=("beta*",))
        world.router.expected = Decision("beta", "queue", ("alpha",), ("org/gamma",), reason="al leaves, org loads")
        world.router.waiting = [WaitingRequest(1, "whisper", 1, 2.0, 0)]
        world.book.proxy.write(b"den/delta and whisper are up, or-g is not\n")
        for tool in ("plan", "why", "queue", "usage", "logs", "list_models"):
            arguments = {"model": "beta"} if tool in ("plan", "why") else {}
            failed, text = use(world, tool, CHILD, **arguments)
            self.assertFalse(failed, text)
            self.assertIsNone(re.search(r"\b(alpha|org|gamma|al|whisper|delta)\b", text), (tool, text))
            if tool == "logs":
                self.assertIn("another model and another model are up, or-g is not", text)
            else:
                json.loads(text)
        plan = json.loads(use(world, "plan", CHILD, model="beta")[1])
        self.assertEqual(plan["reason"], "another model leaves, another model loads")

    def test_a_name_that_begins_like_a_hidden_one_is_shown_whole(self):
        """`alpha:7b` was shown as "another model:7b"."""
        world = with_scopes("read", models=("beta*", "alpha:7b", "alpha.x"))
        given = world.router.config
        longer = evolve(given.models["beta"], id="alpha.x", aliases=(), cmd="serve x")
        beta = evolve(given.models["beta"], aliases=("alpha:7b",))
        world.router.config = evolve(given, models={**given.models, "beta": beta, "alpha.x": longer})
        world.book.proxy.write(b"alpha, alpha:7b, alpha.x\n")
        self.assertIn("another model, alpha:7b, alpha.x", use(world, "logs", CHILD)[1])

    def test_a_key_for_an_alias_sees_its_model(self):
        world = with_scopes("infer", models=("al",))
        self.assertEqual([row["id"] for row in json.loads(use(world, "list_models", CHILD)[1])], ["alpha"])

    def test_tools_say_what_they_change(self):
        tools = {tool["name"]: tool for tool in rpc(World(), "tools/list").json["result"]["tools"]}
        changing = {name for name, tool in tools.items() if not tool["annotations"]["readOnlyHint"]}
        self.assertEqual(changing, {"load", "unload", "pin"})
        for tool in tools.values():
            self.assertTrue(tool["description"].endswith("."), tool)
            self.assertLessEqual(set(tool["inputSchema"]["required"]), set(tool["inputSchema"]["properties"]))


class ToolTests(SynchronousTestCase):
    def test_why_has_the_details_and_the_plan(self):
        found = json.loads(use(World(), "why", model="al")[1])
        self.assertEqual(
            (found["model"]["id"], found["plan"]["action"], found["plan"]["evicts"][0]["model"]),
            ("alpha", "load", "beta"),
        )

    def test_a_load_that_is_waited_for_answers_with_its_error(self):
        world = World(
            FakeRouter(example_config(), work=fail(StartFailed("alpha", "exit status 1", log_tail="no such file")))
        )
        failed, text = use(world, "load", model="alpha", wait=True)
        self.assertTrue(failed)
        self.assertIn("no such file", text)

    def test_a_client_that_leaves_does_not_end_the_load(self):
        work: Deferred = Deferred()
        world = World(FakeRouter(example_config(), work=work))
        body = b'{"id":1,"method":"tools/call","params":{"name":"load","arguments":{"model":"alpha","wait":true}}}'
        client = world.open("/mcp", "POST", [JSON], body)
        client.leave()
        self.assertFalse(work.called)
        work.callback(None)

    def test_logs_are_the_last_lines_without_secrets(self):
        world = with_scopes("read")
        world.book.model("alpha").write(b"one\ntwo\nthe key is sk-boss\n")
        self.assertEqual(use(world, "logs", CHILD, model="al", lines=2)[1].splitlines()[0], "two")
        self.assertNotIn("sk-boss", use(world, "logs", CHILD, model="al")[1])
        self.assertEqual(use(world, "logs", CHILD, model="ghost"), (True, "model not found"))
        world.book.proxy.write(b"of llamaswap\n")
        self.assertIn("of llamaswap", use(world, "logs", CHILD)[1])

    def test_wrong_values_are_answers_that_a_model_can_read(self):
        self.assertEqual(use(World(), "unload", model="ghost"), (True, "model not found"))
        failed, text = use(World(), "usage", by="colour")
        self.assertTrue(failed and "colour" in text)
        failed, text = use(World(), "usage", since="yesterday")
        self.assertTrue(failed, text)
