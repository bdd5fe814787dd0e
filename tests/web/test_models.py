from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from llamaswap.errors import NotReady, StartFailed
from llamaswap.events import StateChanged, SwapBegan, SwapEnded
from llamaswap.scheduling.state import Decision
from llamaswap.servers.supervisor_protocol import ServerStatus
from tests.doubles import server_status
from tests.web.doubles import World, envelope, example_router, with_keys


class DetailTests(TestCase):
    def test_detail_of_a_model_hides_secrets(self):
        world = World(example_router(with_keys("sesame-key"), {"alpha": "ready"}))
        command = ("serve", "--api-key", "x", "--label", "sesame-key")
        world.router.statuses["alpha"] = server_status("alpha", cmd=command, last_error="bad sesame-key")
        world.book.model("alpha").write(b"using sesame-key\nboom\n")
        world.inflight.counts = {"alpha": 2}
        world.router.left = {"alpha": 42.5}
        world.clock.advance(10)
        detail = world.ask("/api/models/al", headers=[("x-api-key", "sesame-key")]).json
        self.assertEqual(detail["id"], "alpha")
        self.assertEqual(detail["cmd"], ["serve", "--api-key", "***", "--label", "***"])
        self.assertEqual((detail["uptime_s"], detail["active"], detail["load_ms"]), (7.0, 2, [2000]))
        self.assertEqual((detail["last_error"], detail["log_tail"]), ("bad ***", ["using ***", "boom"]))
        self.assertEqual(detail["groups"], ["(default)"])
        self.assertEqual(detail["ttl_left_s"], 42.5)

    def test_detail_of_a_suspended_model_has_its_resume_times(self):
        world = World()
        status = server_status("alpha", "stopped", ready_at=None, asleep_since=4.0, wake_seconds=(0.25,))
        world.router.statuses["alpha"] = status
        world.clock.advance(10)
        detail = world.ask("/api/models/alpha").json
        self.assertEqual((detail["state"], detail["asleep"], detail["asleep_s"]), ("stopped", True, 6.0))
        self.assertEqual((detail["wake_ms"], detail["load_ms"]), ([250], [2000]))
        plan = world.ask("/api/plan?model=alpha").json
        self.assertEqual(plan["asleep"], True)

    def test_a_model_that_does_not_run_shows_the_command_it_would_run(self):
        world = World()
        world.router.statuses["alpha"] = ServerStatus("alpha", "stopped")
        self.assertEqual(world.ask("/api/models/alpha").json["cmd"], ["serve", "--port", "5800"])

    def test_model_with_slashes_is_found_and_an_unknown_one_is_not(self):
        self.assertEqual(World().ask("/api/models/org/gamma").json["id"], "org/gamma")
        answer = World().ask("/api/models/ghost")
        self.assertEqual((answer.status, answer.json), (404, envelope(404, "model not found")))


class VerbTests(TestCase):
    def test_load_is_acknowledged_before_its_end(self):
        world = World()
        world.router.work = Deferred()
        answer = world.ask("/api/models/load/al", "POST")
        self.assertEqual((answer.status, world.router.loaded), (202, ["alpha"]))
        world.router.work.callback(None)

    def test_a_load_that_fails_at_once_is_answered_with_its_error(self):
        for path, body in (("/api/models/load/alpha", b""), ("/models/load", b'{"model": "al"}')):
            world = World()
            world.router.work = fail(StartFailed("alpha", "no such command"))
            answer = world.ask(path, "POST", body=body)
            self.assertEqual(answer.status, 500)
            self.assertIn("no such command", answer.json["error"]["message"])

    def test_a_load_that_a_pinned_model_blocks_is_a_conflict_with_the_reason(self):
        for verb in ("load", "restart"):
            world = World()
            world.router.work = fail(NotReady("alpha", "cannot load alpha: beta is pinned"))
            if verb == "restart":
                world.router.unloads = succeed(None)
            answer = world.ask(f"/api/models/{verb}/alpha", "POST")
            self.assertEqual((answer.status, answer.json["error"]["code"]), (409, "conflict"), verb)
            self.assertIn("beta is pinned", answer.json["error"]["message"])

    def test_a_load_that_has_to_wait_is_acknowledged_as_queued(self):
        for state, shown in (("stopped", "queued"), ("stopping", "queued"), ("starting", "starting")):
            world = World(example_router(states={"alpha": state}))
            self.assertEqual(world.ask("/api/models/load/alpha", "POST").json["state"], shown)

    def test_a_load_that_fails_later_is_logged_unless_its_swap_has_logged_it(self):
        for error, logged in ((NotReady("alpha", "no"), 1), (StartFailed("alpha", "no"), 0), (ValueError("no"), 1)):
            world = World()
            world.router.work = Deferred()
            self.assertEqual(world.ask("/api/models/load/alpha", "POST").status, 202)
            with capturedLogs() as events:
                world.router.work.errback(error)
            self.assertEqual(sum("loading alpha" in formatEvent(event) for event in events), logged, error)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_a_load_is_answered_at_its_end_if_the_client_waits(self):
        world = World()
        for result, status in ((None, 202), (Failure(StartFailed("alpha", "no")), 500)):
            work = world.router.work = Deferred()
            client = world.open("/api/models/load/alpha?wait=1", "POST")
            self.assertEqual(client.received, b"")
            work.callback(result)
            self.assertEqual(client.answer().status, status)
            client.leave()

    def test_a_secret_in_the_log_of_a_failed_server_is_masked_in_the_answer(self):
        world = World()
        world.router.work = fail(StartFailed("alpha", "no", log_tail="bad argument: --api-key s3cret-word"))
        answer = world.ask("/api/models/load/alpha?wait=1", "POST")
        self.assertIn(b"bad argument: --api-key ***", answer.body)

    def test_the_load_of_a_model_named_in_a_body_is_acknowledged_as_llama_cpp_does(self):
        world = World()
        answer = world.ask("/models/load", "POST", body=b'{"model": "al"}')
        self.assertEqual((answer.status, answer.json, world.router.loaded), (200, {"success": True}, ["alpha"]))
        for body, status in ((b"", 400), (b"{}", 400), (b'{"model": 7}', 400), (b'{"model": "ghost"}', 404)):
            self.assertEqual(world.ask("/models/load", "POST", body=body).status, status, body)
        self.assertEqual(world.ask("/models/load", "HEAD").status, 405)
        self.assertEqual(world.ask("/models/load", "GET").headers["allow"], "POST")
        foreign = world.ask("/models/load", "POST", [("Origin", "http://evil.example")], b'{"model": "al"}')
        self.assertEqual((foreign.status, world.router.loaded), (403, ["alpha"]))

    def test_restart_stops_the_server_first(self):
        world = World()
        self.assertEqual(world.ask("/api/models/restart/org/gamma", "POST").status, 202)
        self.assertEqual((world.router.unloaded, world.router.loaded), ([["org/gamma"]], ["org/gamma"]))

    def test_pin_is_set_and_removed(self):
        world = World()
        self.assertTrue(world.ask("/api/models/pin/al", "POST").json["pinned"])
        self.assertFalse(world.ask("/api/models/pin/alpha", "DELETE").json["pinned"])
        self.assertEqual(world.ask("/api/models/pin/ghost", "POST").status, 404)


class ForecastTests(TestCase):
    def test_plan_names_the_evicted_models_and_the_expected_time(self):
        world = World()
        world.inflight.counts = {"beta": 2}
        plan = world.ask("/api/plan?model=al").json
        self.assertEqual(plan["evicts"], [{"model": "beta", "active": 2}])
        self.assertEqual((plan["waits_for"], plan["eta_ms"], plan["running"]), (["org"], 2000, False))
        self.assertEqual(world.ask("/api/plan").status, 404)
        self.assertEqual((plan["host"], world.ask("/api/models/alpha").json["host"]), (None, None))

    def test_host_is_named_if_there_are_several(self):
        world = World()
        world.router.at["beta"] = "gpu-box"
        world.router.expected = Decision("alpha", "load", host="nas")
        self.assertEqual(world.ask("/api/plan?model=alpha").json["host"], "nas")
        world.router.at["alpha"] = "here"
        self.assertEqual(world.ask("/api/models/alpha").json["host"], "here")

    def test_swaps_and_residency_are_served(self):
        world = World()
        for event in (
            SwapBegan(1, "alpha", ("beta",), "group", 0.0),
            StateChanged("alpha", "stopped", "starting"),
            SwapEnded(1, "alpha", "upstream command exited prematurely", 0.0, {"stop": 1.0}),
        ):
            world.bus.publish(event)
            if isinstance(event, StateChanged):
                world.book.model("alpha").write(b"it broke\n")
        self.assertEqual([swap["id"] for swap in world.ask("/api/swaps").json], [1])
        swap = world.ask("/api/swaps/1").json
        self.assertEqual((swap["log_tail"], swap["outcome"]), ("it broke\n", "failed"))
        for name in ("2", "x"):
            self.assertEqual(world.ask(f"/api/swaps/{name}").status, 404)
        self.assertEqual(world.ask("/api/residency").json[0]["state"], "starting")
        self.assertEqual(world.ask("/api/residency?since=x").status, 400)

    def test_a_secret_in_the_error_of_a_swap_is_masked(self):
        world = World()
        client = world.open("/api/events?topics=swaps")
        world.bus.publish(SwapBegan(1, "alpha", (), "group", 0.0))
        world.bus.publish(SwapEnded(1, "alpha", "cannot run: --api-key s3cret-word", 0.0, {}))
        for shown in (world.ask("/api/swaps").json[0], world.ask("/api/swaps/1").json):
            self.assertEqual(shown["error"], "cannot run: --api-key ***")
        self.assertIn(b"cannot run: --api-key ***", client.answer().body)
        self.assertNotIn(b"s3cret-word", client.answer().body)
        client.leave()

    def test_current_state_of_a_model_has_its_requests_and_memory(self):
        world = World(vram={"alpha": 6000})
        world.inflight.counts = {"alpha": 2}
        world.bus.publish(StateChanged("beta", "stopped", "ready"))
        world.bus.publish(StateChanged("beta", "ready", "stopped"))
        world.bus.publish(StateChanged("alpha", "stopped", "ready"))
        world.bus.publish(StateChanged("org", "stopped", "ready"))
        told = {segment["model"]: segment for segment in world.ask("/api/residency").json}
        self.assertEqual([told["alpha"][key] for key in ("busy", "vram_mb")], [2, 6000])
        self.assertEqual([told["org"][key] for key in ("busy", "vram_mb")], [0, None])
        self.assertNotIn("busy", told["beta"])
        self.assertEqual(world.ask("/api/models/alpha").json["vram_mb"], 6000)

    def test_empty_queue_is_an_empty_list(self):
        world = World()
        self.assertEqual(world.ask("/api/queue").json, {"queue": []})
