"""The API of llama.cpp's router beside the listing: its events, and its properties."""

from __future__ import annotations

import json

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import ApiKey, Secret
from llamaswap.events import ConfigReloaded, LoadFailed, SleepEnded, StateChanged
from llamaswap.web.sse_feed import LONGEST_PAUSE
from tests.doubles import server_status
from tests.web.doubles import World, example_config, example_router
from tests.web.pipeline import Stage, config


def events(client):
    found = []
    for block in client.answer().body.decode().split("\n\n"):
        lines = [line for line in block.split("\n") if line.startswith("data: ")]
        found += [json.loads(line[6:]) for line in lines]
    return found


def change(model, status, **more):
    return {"model": model, "event": "status_change", "data": {"status": status, **more}}


class EventTests(SynchronousTestCase):
    def setUp(self):
        self.world = World()
        self.client = self.world.open("/models/sse")

    def tell(self, model, old, new, why=""):
        self.world.router.states[model] = new
        self.world.bus.publish(StateChanged(model, old, new, why))

    def test_a_load_and_an_unload_are_told(self):
        self.assertEqual(self.client.answer().headers["content-type"], "text/event-stream")
        self.tell("alpha", "stopped", "starting")
        self.tell("alpha", "starting", "ready")
        self.tell("alpha", "ready", "stopping", "idle")
        self.tell("alpha", "stopping", "stopped")
        expected = [change("alpha", status) for status in ("loading", "loaded", "unloaded")]
        self.assertEqual(events(self.client), expected)

    def test_a_failed_load_has_an_exit_code(self):
        """llama.cpp's page waits until the model is loaded, or until it has failed."""
        self.tell("alpha", "starting", "stopped", "failed")
        self.world.bus.publish(LoadFailed("beta", "no such file"))
        self.assertEqual(
            events(self.client), [change("alpha", "unloaded", exit_code=1), change("beta", "unloaded", exit_code=1)]
        )

    def test_a_server_that_ends_asleep_is_unloaded(self):
        self.world.bus.publish(SleepEnded("alpha"))
        self.assertEqual(events(self.client), [change("alpha", "unloaded")])

    def test_models_without_a_listing_have_no_events(self):
        self.tell("org/gamma", "stopped", "starting")
        self.tell("ghost", "stopped", "starting")
        self.assertEqual(events(self.client), [])

    def test_a_new_configuration_asks_for_the_list_again(self):
        self.world.router.config = example_config(models={"new": evolve(example_config().models["beta"], id="new")})
        self.world.bus.publish(ConfigReloaded(added=("new",)))
        self.tell("new", "stopped", "starting")
        self.assertEqual(
            events(self.client), [{"model": "", "event": "models_reload", "data": {}}, change("new", "loading")]
        )

    def test_a_client_that_fell_behind_is_told_to_read_the_list(self):
        producer = self.client.transport.producer
        producer.pauseProducing()
        self.world.clock.advance(LONGEST_PAUSE + 1)
        self.tell("alpha", "stopped", "starting")
        self.tell("alpha", "starting", "ready")
        producer.resumeProducing()
        self.assertEqual(events(self.client), [{"model": "", "event": "models_reload", "data": {}}])

    def test_a_client_that_left_is_forgotten(self):
        self.client.leave()
        self.tell("alpha", "stopped", "starting")
        self.assertEqual((events(self.client), len(self.world.streams)), ([], 0))
        self.assertEqual(self.world.clock.getDelayedCalls(), [])

    def test_a_key_gets_the_events_of_its_models(self):
        keys = tuple(
            ApiKey(Secret(f"sk-{name}"), name, models=(name,), scopes=("infer",)) for name in ("alpha", "beta")
        )
        self.world = World(example_router(evolve(example_config(), api_keys=keys)))
        self.assertEqual(self.world.ask("/models/sse").status, 401)
        readers = [
            self.world.open("/models/sse", headers=[("Authorization", f"Bearer sk-{name}")])
            for name in ("alpha", "beta")
        ]
        self.world.router.config = evolve(example_config(), api_keys=keys)
        self.world.bus.publish(ConfigReloaded())
        self.tell("alpha", "stopped", "starting")
        found = [[event["model"] for event in events(reader)] for reader in readers]
        self.assertEqual(found, [["", "alpha"], [""]])


class ReplicaEventTests(SynchronousTestCase):
    def test_a_replica_that_stops_does_not_unload_the_model(self):
        alpha = example_config().models["alpha"]
        copy = evolve(alpha, id="alpha.r2", aliases=(), replica_of="alpha", unlisted=True)
        models = {"alpha": evolve(alpha, replicas=2), "alpha.r2": copy}
        world = World(example_router(example_config(models=models, selectors={}, profiles={}), {"alpha": "ready"}))
        client = world.open("/models/sse")
        world.bus.publish(StateChanged("alpha.r2", "ready", "stopped", "crash"))
        world.router.states["alpha"] = "stopped"
        world.bus.publish(StateChanged("alpha.r2", "stopped", "starting"))
        self.assertEqual(events(client), [change("alpha", "loaded"), change("alpha", "loading")])


class ListingTests(SynchronousTestCase):
    def test_a_model_that_failed_says_so(self):
        world = World(example_router(statuses={"alpha": server_status("alpha", "stopped", last_error="exit status 1")}))
        found = {one["id"]: one["status"] for one in world.ask("/models").json["data"]}
        self.assertEqual(found["alpha"], {"value": "unloaded", "failed": True})
        self.assertEqual(found["beta"], {"value": "unloaded"})


class PropertiesTests(SynchronousTestCase):
    def test_properties_without_a_model_are_those_of_a_router(self):
        stage = Stage()
        asked = stage.ask(b"GET", b"/props")
        self.assertEqual((asked.sink.status, asked.sink.json["role"], asked.done), (200, "router", [None]))
        self.assertEqual((stage.router.asked, stage.witnesses.seen), ([], []))
        stage.keys[b"authorization"] = b"Bearer mine"
        self.assertEqual(stage.ask(b"GET", b"/props").sink.status, 401)

    def test_properties_without_a_model_are_those_of_the_default_model(self):
        routing = evolve(config().routing, default_model="alpha")
        stage = Stage(config=config(routing=routing), states={"alpha": "ready"})
        stage.ask(b"GET", b"/props")
        self.assertEqual(stage.forwarding.head.target, b"/props")
