"""`ps`, `load` and `unload`."""

import json

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.cli.client import ApiClient, ClientError
from llamaswap.cli.models import UNSEEN_TIMEOUT, wait_for_load
from tests.cli.doubles import Server, chat, invoke, news, sse


def detail(name, state="ready", **more):
    return {"id": name, "state": state, "uptime_s": 65, "ttl_s": 0, "active": 1, "waiting": 0, "pid": 7, **more}


def server_with(*models):
    server = Server().on("GET /running", {"running": [{"model": model["id"]} for model in models]})
    server.on("GET /api/queue", {"queue": [{"model": "late", "wait_ms": 1500, "position": 1}]})
    for model in models:
        server.on(f"GET /api/models/{model['id']}", model)
    return server


class PsTests(SynchronousTestCase):
    def test_running_models_and_waiting_requests_are_shown(self):
        done = invoke(["ps"], server_with(detail("owl")))
        self.assertEqual(done.exit_code, 0, done.output)
        for part in ("owl", "ready", "1m 5s", "waiting 1.5s for late"):
            self.assertIn(part, done.stdout)

    def test_host_is_shown_if_there_are_several(self):
        self.assertNotIn("HOST", invoke(["ps"], server_with(detail("owl", host=None))).stdout)
        done = invoke(["ps"], server_with(detail("owl", host="gpu-box")))
        self.assertRegex(done.stdout, "HOST")
        self.assertRegex(done.stdout, "owl .* gpu-box")

    def test_reason_of_a_wait_is_that_of_the_plan(self):
        plan = {"reason": "late needs 9.0 GiB, but other programs use 20.0 GiB of gpu0 (firefox)", "waits_for": []}
        server = server_with(detail("owl")).on("GET /api/plan?model=late", plan)
        self.assertIn("waiting 1.5s for late (place 1): late needs 9.0 GiB, but", invoke(["ps"], server).stdout)
        self.assertEqual(json.loads(invoke(["ps", "--json"], server).stdout)["queue"][0]["reason"], plan["reason"])

    def test_long_name_is_shown_in_full_on_a_narrow_terminal(self):
        name = "qwen3-coder-30b-a3b-instruct-2507-q4_k_m"
        done = invoke(["ps"], server_with(detail(name)), env={"COLUMNS": "30"})
        self.assertIn(name, done.stdout)
        self.assertEqual(len(done.stdout.splitlines()), 3, done.stdout)  # head, model, queue

    def test_failed_model_is_shown_with_its_reason(self):
        bad = detail("bad", "stopped", failed="exit status 3: no such file\n", uptime_s=None, active=0)
        server = server_with(detail("owl")).on("GET /api/models/bad", bad)
        server.on("GET /running", {"running": [{"model": "owl"}], "failing": [{"model": "bad", "error": "x"}]})
        for words in (["ps"], ["status"]):
            done = invoke(words, server)
            self.assertRegex(done.stdout, "bad +failed")
            self.assertIn("bad failed: exit status 3: no such file\n", done.stdout)
        self.assertEqual(
            [row["id"] for row in json.loads(invoke(["ps", "--json"], server).stdout)["models"]], ["owl", "bad"]
        )

    def test_brackets_of_a_name_are_shown(self):
        done = invoke(
            ["ps"], server_with(detail("owl-[bold]")).on("GET /api/models/owl-%5Bbold%5D", detail("owl-[bold]"))
        )
        self.assertIn("owl-[bold]", done.stdout)

    def test_ps_json_is_one_document(self):
        done = invoke(["ps", "--json"], server_with(detail("owl")))
        self.assertEqual([row["id"] for row in json.loads(done.stdout)["models"]], ["owl"])

    def test_ps_all_shows_local_models_only(self):
        server = server_with(detail("owl")).on("GET /api/models/cat", detail("cat", "stopped"))
        rows = [{"id": "cat"}, {"id": "box/far", "meta": {"llamaswap": {"type": "peer"}}}]
        server.on("GET /v1/models", {"data": rows})
        done = invoke(["ps", "-a", "--json"], server)
        self.assertEqual([row["id"] for row in json.loads(done.stdout)["models"]], ["cat", "owl"])

    def test_model_removed_meanwhile_is_left_out(self):
        server = server_with(detail("owl")).on("GET /api/models/owl", (404, {"error": "gone"}))
        self.assertEqual(json.loads(invoke(["ps", "--json"], server).stdout)["models"], [])

    def test_key_comes_from_the_environment(self):
        server = server_with(detail("owl"))
        invoke(["ps"], server, env={"LLAMASWAP_API_KEY": "k"})
        self.assertEqual(server.headers[0]["Authorization"], "Bearer k")

    def test_unreachable_server_exits_1(self):
        done = invoke(["ps"], Server().on("GET /running", ConnectionRefusedError(111, "Connection refused")))
        self.assertEqual(done.exit_code, 1)
        self.assertIn("Connection refused", done.stderr)


class LoadTests(SynchronousTestCase):
    def server(self, states, swaps=(), **more):
        states = iter(states)
        server = Server().on("GET /api/models/owl", lambda _: detail("owl", next(states), **more))
        return server.on("GET /api/swaps", list(swaps))

    def wait(self, server):
        now = [0.0]

        def sleep(seconds):
            now[0] += seconds

        return wait_for_load(ApiClient("x", server.send), "owl", 4, sleep=sleep, now=lambda: now[0])

    def test_load_waits_until_the_model_is_ready(self):
        self.assertEqual(self.wait(self.server(["stopped", "starting", "ready"])), "ready")

    def test_failed_load_is_reported_with_the_end_of_the_log(self):
        swaps = [
            {"id": 5, "model": "owl", "outcome": "failed", "error": "exited"},
            {"id": 3, "model": "owl", "outcome": "failed", "error": "older"},
        ]
        server = self.server(["stopped"], swaps).on("GET /api/swaps/5", {"log_tail": "out of memory\n"})
        self.assertEqual(str(self.assertRaises(ClientError, self.wait, server)), "owl: exited\nout of memory")

    def test_reason_of_a_failed_load_does_not_begin_with_unspecific_error(self):
        swaps = [{"id": 5, "model": "owl", "outcome": "failed", "error": "unspecific error: exited"}]
        server = self.server(["stopped"], swaps).on("GET /api/swaps/5", {"log_tail": ""})
        self.assertEqual(str(self.assertRaises(ClientError, self.wait, server)), "owl: exited")

    def test_end_of_the_log_is_reported_once(self):
        swaps = [{"id": 5, "model": "owl", "outcome": "failed", "error": "exited\nno\nmemory\n"}]
        server = self.server(["stopped"], swaps).on("GET /api/swaps/5", {"log_tail": "no\nmemory\n"})
        self.assertEqual(str(self.assertRaises(ClientError, self.wait, server)), "owl: exited\nno\nmemory\n")

    def test_load_that_the_server_does_not_report_fails(self):
        server = self.server(["stopped"] * int(UNSEEN_TIMEOUT * 10), last_error="not today")
        self.assertIn("not today", str(self.assertRaises(ClientError, self.wait, server)))

    def test_load_with_no_wait_returns_at_once(self):
        server = (
            Server()
            .on("GET /api/swaps", [])
            .on("POST /api/models/load/owl", (202, {"model": "owl", "state": "starting", "pinned": False}))
        )
        done = invoke(["load", "owl", "--no-wait", "--json"], server)
        self.assertEqual(json.loads(done.stdout)[0]["state"], "starting")

    def test_unknown_model_exits_1(self):
        done = invoke(["load", "absent"], Server().on("GET /api/swaps", []))
        self.assertEqual((done.exit_code, "404" in done.stderr), (1, True))


class PrefixTests(SynchronousTestCase):
    def server(self, *names):
        return Server().on("GET /v1/models", {"data": [{"id": name} for name in names]}).on("GET /api/swaps", [])

    def test_unique_beginning_of_a_name_names_the_model(self):
        server = self.server("qwen3-8b", "gemma").on("POST /api/models/unload/qwen3-8b", b"OK")
        self.assertEqual(invoke(["unload", "qw"], server).stdout, "unloaded qwen3-8b\n")
        server.on("POST /v1/chat/completions", lambda body: chat("hi") if body["model"] == "gemma" else (404, {}))
        self.assertEqual(invoke(["run", "ge", "hello"], server).stdout, "hi\n")
        self.assertEqual(json.loads(invoke(["bench", "g", "-n", "1", "--json"], server).stdout)["model"], "gemma")
        stream = sse(news("logData", {"source": "gemma", "data": "line\n"}))
        server.on("GET /api/events?topics=logs:g", sse(news("uiConfig", {})))
        server.on("GET /api/events?topics=logs:gemma", stream)
        self.assertIn("line", invoke(["logs", "g"], server).stdout)

    def test_beginning_of_several_names_is_refused_with_these_names(self):
        done = invoke(["unload", "qw"], self.server("qwen3-8b", "qwen3-4b", "gemma"))
        self.assertEqual(done.exit_code, 1)
        self.assertIn("(available: qwen3-8b, qwen3-4b)", done.stderr)

    def test_whole_name_is_never_taken_for_the_beginning_of_another(self):
        done = invoke(["run", "owl", "hello"], self.server("owl", "owl-big"))
        self.assertEqual((done.exit_code, done.stderr), (1, "Error: 404: not found\n"))


class ShowTests(SynchronousTestCase):
    def test_show_has_the_command_and_the_reason_of_a_failure(self):
        more = {"failed": "exited", "cmd": ["srv", "a b"], "aliases": ["bird"], "load_ms": [1500]}
        server = Server().on("GET /api/models/owl", detail("owl", "stopped", **more))
        done = invoke(["show", "owl"], server)
        for part in ("failed", "exited", "srv 'a b'", "bird", "1.5s"):
            self.assertIn(part, done.stdout)
        self.assertEqual(json.loads(invoke(["show", "owl", "--json"], server).stdout)["cmd"], ["srv", "a b"])


class PinTests(SynchronousTestCase):
    def test_pin_is_set_and_removed(self):
        accepted = lambda pinned: {"model": "owl", "state": "ready", "pinned": pinned}
        server = (
            Server().on("POST /api/models/pin/owl", accepted(True)).on("DELETE /api/models/pin/owl", accepted(False))
        )
        self.assertEqual(invoke(["pin", "owl"], server).stdout, "owl: pinned (ready)\n")
        self.assertEqual(invoke(["pin", "owl", "--off"], server).stdout, "owl: not pinned (ready)\n")
        self.assertEqual(server.asked, ["POST /api/models/pin/owl", "DELETE /api/models/pin/owl"])


class UnknownModelTests(SynchronousTestCase):
    WORDS = (("load", "parot"), ("unload", "parot"), ("run", "parot", "hello"), ("bench", "parot"))

    def server(self, *names):
        rows = {"data": [{"id": name} for name in names]}
        return Server().on("GET /api/swaps", []).on("GET /v1/models", rows)

    def test_mistyped_name_is_answered_with_the_right_one(self):
        for words in self.WORDS:
            done = invoke(words, self.server("parrot", "poet"))
            self.assertEqual(done.exit_code, 1)
            self.assertIn("404: not found: parot (did you mean parrot?)", done.stderr)

    def test_unknown_name_is_answered_with_the_available_ones(self):
        names = [f"m{number}" for number in range(20)]
        self.assertIn("(available: owl, cat)", invoke(["load", "parot"], self.server("owl", "cat")).stderr)
        self.assertIn("m11, ...)", invoke(["load", "parot"], self.server(*names)).stderr)
        self.assertIn("(no model is configured)", invoke(["load", "parot"], self.server()).stderr)

    def test_404_of_the_model_server_is_reported_unchanged(self):
        self.assertEqual(invoke(["run", "owl", "hello"], self.server("owl")).stderr, "Error: 404: not found\n")


class UnloadTests(SynchronousTestCase):
    def test_named_models_are_unloaded_one_by_one(self):
        server = Server().on("POST /api/models/unload/a/b", b"OK").on("POST /api/models/unload/c", b"OK")
        self.assertEqual(invoke(["unload", "a/b", "c"], server).exit_code, 0)
        self.assertEqual(server.asked, ["POST /api/models/unload/a/b", "POST /api/models/unload/c"])

    def test_unload_without_a_name_unloads_all(self):
        server = Server().on("POST /api/models/unload", {"msg": "ok"})
        self.assertEqual(json.loads(invoke(["unload", "--json"], server).stdout), {"unloaded": "all"})
