from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from llamaswap.config import ApiKey, Secret
from llamaswap.errors import FailureRecord
from llamaswap.routing.interfaces import HealthSnapshot
from tests.doubles import server_status
from tests.web.doubles import World, envelope, example_config, example_router


class RunningTests(TestCase):
    def test_running_lists_the_servers_that_are_not_stopped(self):
        """http T087"""
        self.assertEqual(World().ask("/running").body, b'{"running":[]}\n')
        running = World(example_router(states={"alpha": "starting", "org": "stopped"})).ask("/running").json["running"]
        self.assertEqual(
            running,
            [
                {
                    "model": "alpha",
                    "state": "starting",
                    "cmd": "serve --port 5800",
                    "proxy": "http://localhost:5800",
                    "ttl": 0,
                    "name": "Alpha",
                    "description": " first ",
                }
            ],
        )

    def test_secrets_in_a_command_and_an_address_are_hidden(self):
        config = example_config(api_keys=(ApiKey(Secret("k-secret")),))
        command = "HF_TOKEN=one-1 serve --api-key two-2 --hf-token=three-3 --label k-secret --max-tokens 7"
        alpha = evolve(config.models["alpha"], cmd=command, proxy="http://h:1/?token=four-4")
        router = example_router(evolve(config, models={"alpha": alpha}), states={"alpha": "ready"})
        [row] = World(router).ask("/running", headers=[("x-api-key", "k-secret")]).json["running"]
        self.assertEqual(row["cmd"], "HF_TOKEN=*** serve --api-key *** --hf-token=*** --label *** --max-tokens 7")
        self.assertEqual(row["proxy"], "http://h:1/?token=***")

    def test_suspended_servers_are_listed_apart_from_the_running_ones(self):
        router = example_router(statuses={"alpha": server_status("alpha", "stopped", asleep_since=5.0)})
        told = World(router).ask("/running").json
        self.assertEqual(told, {"running": [], "sleeping": [{"model": "alpha", "pid": 4711}]})

    def test_failing_models_are_listed_with_the_end_of_their_logs(self):
        broken = FailureRecord("alpha", "", 3, 1e9, "exited prematurely", "loading\nout of memory"), 1.75
        told = World(example_router(broken=[broken])).ask("/running").json
        words = ["loading", "out of memory"]
        facts = {"failures": 3, "retry_in_s": 1.75, "error": "exited prematurely", "log_tail": words}
        self.assertEqual(told, {"running": [], "failing": [{"model": "alpha", **facts}]})

    def test_model_whose_command_cannot_be_run_is_among_the_failing_ones(self):
        missing = server_status("alpha", "stopped", last_error="alpha-server: no such executable file")
        told = World(example_router(statuses={"alpha": missing})).ask("/running").json
        facts = {"failures": 0, "retry_in_s": 0.0, "error": "alpha-server: no such executable file", "log_tail": []}
        self.assertEqual(told, {"running": [], "failing": [{"model": "alpha", **facts}]})


class UnloadTests(TestCase):
    def test_each_spelling_of_unload_stops_every_server(self):
        """http T016, http T088, http T169"""
        world = World()
        self.assertEqual(world.ask("/unload").body, b"OK")
        self.assertEqual(world.ask("/unload", "POST").status, 405)
        self.assertEqual(world.ask("/models/unload").body, b"OK")
        self.assertEqual(world.ask("/models/unload", "POST").body, b"OK")
        self.assertEqual(world.ask("/api/models/unload", "POST").json, {"msg": "ok"})
        self.assertEqual(world.router.unloaded, [None] * 4)

    def test_a_model_named_in_the_body_or_the_query_is_unloaded_alone(self):
        """Before, every model was unloaded, whatever the request named."""
        world = World()
        body = b'{"model": "al"}'
        self.assertEqual(world.ask("/models/unload", "POST", body=body).json, {"success": True})
        self.assertEqual(world.ask("/api/models/unload", "POST", body=body).json, {"msg": "ok"})
        self.assertEqual(world.ask("/unload?model=alpha").body, b"OK")
        self.assertEqual(world.ask("/models/unload?model=al&model=org/gamma").body, b"OK")
        self.assertEqual(world.router.unloaded, [["alpha"], ["alpha"], ["alpha"], ["alpha", "org/gamma"]])

    def test_an_unload_that_names_no_model_unloads_all(self):
        world = World()
        for body in (b"", b" ", b"{}"):
            self.assertEqual(world.ask("/models/unload", "POST", body=body).status, 200)
        self.assertEqual(world.router.unloaded, [None] * 3)

    def test_an_unload_of_an_unknown_model_unloads_nothing_and_names_the_nearest(self):
        world = World()
        for path, body in (("/models/unload", b'{"model": "alhpa"}'), ("/models/unload?model=al&model=alhpa", b"")):
            answer = world.ask(path, "POST", body=body)
            self.assertEqual(answer.status, 404)
            self.assertIn("'alhpa'", answer.text)
            self.assertIn("'alpha'", answer.text)
        self.assertEqual(world.router.unloaded, [])

    def test_an_unload_whose_body_cannot_be_understood_unloads_nothing(self):
        world = World()
        bodies = (b"{", b"[]", b'"alpha"', b"null", b'{"model": ""}', b'{"model": 7}', b'{"model": null}', b"[" * 9999)
        for body in (*bodies, b'{"model": "\xff'):
            self.assertEqual(world.ask("/models/unload", "POST", body=body).status, 400, body[:20])
        self.assertEqual(world.ask("/unload?model=").status, 400)
        self.assertEqual(world.router.unloaded, [])

    def test_unload_stops_one_server_by_id_or_alias_raw_or_encoded(self):
        """http T088"""
        world = World()
        for name in ("al", "org/gamma", "org%2Fgamma"):
            answer = world.ask(f"/api/models/unload/{name}", "POST")
            self.assertEqual((answer.status, answer.body), (200, b"OK"))
        self.assertEqual(world.router.unloaded, [["alpha"], ["org/gamma"], ["org/gamma"]])

    def test_unload_of_a_peer_a_selector_or_an_unknown_name_is_refused(self):
        """http T089"""
        world = World(example_router(profile="work"))
        for name in ("ghost", "zeta", "pick", "chat", ""):
            answer = world.ask(f"/api/models/unload/{name}", "POST")
            self.assertEqual((answer.status, answer.json), (404, envelope(404, "model not found")), name)

    def test_unload_is_answered_when_the_servers_have_stopped(self):
        world = World()
        world.router.work = Deferred()
        client = world.open("/unload")
        self.assertEqual(client.received, b"")
        world.router.work.callback(None)
        self.assertEqual(client.answer().body, b"OK")


class ReadinessTests(TestCase):
    def test_scheduler_without_progress_while_requests_wait_is_not_ready(self):
        """llama-swap issue 946: health said OK while requests hung for ever."""
        world = World()
        self.assertEqual(world.ask("/readyz").status, 200)
        for moving in ({"loading": 1}, {"serving": 1}):
            world.router.vitals = HealthSnapshot(601.0, 2.0, **{"waiting": 1, "serving": 0, "loading": 0, **moving})
            self.assertEqual(world.ask("/readyz").status, 200)
        world.router.vitals = HealthSnapshot(601.0, 2.0, 1, 0, 0)
        answer = world.ask("/readyz")
        self.assertEqual((answer.status, answer.json["ready"]), (503, False))
        self.assertEqual(world.ask("/health").status, 200)
