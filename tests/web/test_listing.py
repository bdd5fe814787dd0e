from attrs import evolve
from twisted.trial.unittest import TestCase

from llamaswap.config import Capabilities, Config, Model, Selector
from llamaswap.errors import FailureRecord
from llamaswap.web.listing import status_rows
from tests.doubles import server_status
from tests.web.doubles import World, example_config, example_router, with_keys


def listed(world, path="/v1/models"):
    return {record["id"]: record for record in world.ask(path).json["data"]}


class ListingTests(TestCase):
    def test_local_models_peers_and_selectors_are_listed_in_byte_order(self):
        """http T077"""
        answer = World().ask("/v1/models")
        names = [record["id"] for record in answer.json["data"]]
        expected = ["alpha", "beta", "den/delta", "den/zeta", "lab/delta", "lab/org2/eps", "org", "pick", "whisper"]
        self.assertEqual(names, expected)
        self.assertEqual(answer.headers["content-type"], "application/json")
        self.assertTrue(answer.body.endswith(b"\n"))

    def test_record_has_its_capabilities_and_hides_contradicting_metadata(self):
        """http T078"""
        record = listed(World())["alpha"]
        self.assertEqual(
            record,
            {
                "id": "alpha",
                "object": "model",
                "created": 1700000000,
                "owned_by": "llama-swap",
                "name": "Alpha",
                "description": "first",
                "architecture": {
                    "input_modalities": ["text", "image"],
                    "output_modalities": ["text"],
                    "modality": "text+image->text",
                },
                "capabilities": {"vision": True, "function_calling": True},
                "supported_parameters": ["tools", "tool_choice"],
                "context_length": 8192,
                "meta": {"llamaswap": {"tier": "gold", "type": "model", "aliases": ["al"]}, "n_ctx": 8192},
                "status": {"value": "unloaded"},
            },
        )

    def test_record_of_a_failing_model_has_its_number_of_failures(self):
        listed = (
            World(example_router(broken=[(FailureRecord("alpha", "", 3, 1e9, "exited"), 1.75)]))
            .ask("/v1/models")
            .json["data"]
        )
        told = {one["id"]: one["meta"]["llamaswap"].get("failures") for one in listed}
        self.assertEqual((told["alpha"], told["beta"]), (3, None))

    def test_capabilities_that_a_server_reported_are_shown_where_the_model_is(self):
        found = Capabilities(inputs=("text", "image"), context=4096)
        plain = Model("m", aliases=("n",), metadata={"context_length": "mine"})
        world = World(
            example_router(Config(models={"m": plain}, include_aliases_in_list=True)), capabilities=lambda model: found
        )
        for record in listed(world).values():
            self.assertEqual((record["context_length"], record["meta"]["n_ctx"]), (4096, 4096))
            self.assertEqual(record["architecture"], {"input_modalities": ["text", "image"]})
            self.assertEqual(record["capabilities"], {"vision": True})
            self.assertEqual(record["meta"]["llamaswap"]["context_length"], "mine")
        self.assertEqual(world.ask("/api/models/m").json["context_length"], 4096)

    def test_model_that_is_an_alias_of_itself_is_listed_once(self):
        config = example_config(models={"m": Model("m", aliases=("m", "n"))}, include_aliases_in_list=True)
        records = World(example_router(config)).ask("/v1/models").json["data"]
        kinds = [(one["id"], one["meta"]["llamaswap"]["type"]) for one in records if one["id"] in "mn"]
        self.assertEqual(kinds, [("m", "model"), ("n", "alias")])

    def test_tags_of_a_model_are_in_its_metadata_and_in_the_status_of_models(self):
        tagged = Model("m", tags=("coding", "small"), metadata={"tags": "mine"})
        plain = Model("n", metadata={"tags": "mine"})
        world = World(example_router(Config(models={"m": tagged, "n": plain})))
        self.assertEqual(listed(world)["m"]["meta"]["llamaswap"], {"type": "model", "tags": ["coding", "small"]})
        self.assertEqual(listed(world)["n"]["meta"]["llamaswap"], {"type": "model", "tags": "mine"})
        self.assertEqual(
            [row.get("tags") for row in status_rows(world.router, world.peers)], [["coding", "small"], None]
        )
        self.assertEqual(world.ask("/api/models/m").json["tags"], ["coding", "small"])

    def test_status_of_a_model_that_failed_has_the_reason_without_secrets(self):
        world = World(router=example_router(with_keys("sesame-key")))
        world.router.statuses["alpha"] = server_status("alpha", "stopped", last_error="exit 3: sesame-key")
        rows = {row["id"]: row.get("failed") for row in status_rows(world.router, world.peers)}
        self.assertEqual((rows["alpha"], rows["beta"]), ("exit 3: ***", None))
        detail = world.ask("/api/models/alpha", headers=[("x-api-key", "sesame-key")]).json
        self.assertEqual(detail["failed"], "exit 3: ***")

    def test_replica_is_in_the_status_of_models_and_not_listed(self):
        filters = example_config().models["beta"].filters
        models = {
            "beta": Model("beta", filters=filters, replicas=2),
            "beta.r2": Model("beta.r2", filters=filters, replica_of="beta", unlisted=True),
        }
        world = World(router=example_router(Config(models=models), {"beta.r2": "ready"}))
        found = listed(world)
        self.assertEqual([(name, found[name]["status"]["value"]) for name in found], [("beta", "loaded")])
        rows = status_rows(world.router, world.peers)
        self.assertEqual([row.get("replica_of") for row in rows], [None, "beta"])
        self.assertEqual([row.get("aliases") for row in rows], [["beta:hot"], None])

    def test_names_made_by_filters_count_as_aliases(self):
        """http T079"""
        record = listed(World())["beta"]
        self.assertEqual(record["meta"], {"llamaswap": {"type": "model", "aliases": ["beta:hot"]}})
        self.assertNotIn("name", record)
        self.assertNotIn("description", record)

    def test_a_peers_model_carries_both_names(self):
        """http T080"""
        record = listed(World())["lab/delta"]
        self.assertEqual(record["name"], "lab: delta")
        self.assertEqual(record["meta"], {"llamaswap": {"type": "peer", "peerID": "lab"}})
        self.assertEqual(record["status"], {"value": "unloaded"})

    def test_record_of_a_selector_has_its_strategy_and_targets(self):
        """http T081"""
        record = listed(World())["pick"]
        self.assertEqual(
            record["meta"],
            {"llamaswap": {"type": "selector", "strategy": "pin", "targets": ["beta:hot", "lab/delta"]}},
        )

    def test_a_selectors_state_follows_the_targets_it_considers(self):
        config = example_config(
            selectors={
                "pin": Selector("pin", strategy="pin", targets=("alpha", "beta")),
                "warm": Selector("warm", strategy="warm", targets=("alpha", "beta")),
                "spill": Selector("spill", strategy="spillover", targets=("alpha",)),
            }
        )
        records = listed(World(example_router(config, {"beta": "starting", "alpha": "stopping"})))
        states = {name: records[name]["status"]["value"] for name in ("pin", "warm", "spill")}
        self.assertEqual(states, {"pin": "unloaded", "warm": "loaded", "spill": "unloaded"})
        self.assertEqual(records["spill"]["meta"]["llamaswap"]["spillover"], 1)

    def test_aliases_have_records_if_configured(self):
        """http T082, http T083"""
        world = World(example_router(example_config(include_aliases_in_list=True), {"alpha": "starting"}))
        records = listed(world)
        self.assertEqual(records["al"]["meta"]["llamaswap"], {"tier": "gold", "type": "alias", "modelID": "alpha"})
        self.assertEqual(records["al"]["status"], {"value": "loaded"})
        self.assertEqual(records["alpha"]["status"], {"value": "loaded"})
        self.assertEqual(listed(world, "/models"), records)
        self.assertEqual(listed(world, "/api/names"), records)

    def test_record_of_each_name_is_served_listed_or_not(self):
        world = World()
        for name in ("alpha", "al", "org/gamma", "org%2Fgamma", "lab/org2/eps", "pick", "beta:hot"):
            answer = world.ask(f"/v1/models/{name}", headers=[("Origin", "http://ui.local")])
            self.assertEqual((answer.status, answer.json["id"]), (200, name.replace("%2F", "/")))
            self.assertEqual(answer.json["object"], "model")
            self.assertEqual(answer.headers["access-control-allow-origin"], "http://ui.local")
        self.assertEqual(world.ask("/v1/models/alpha").json, listed(world)["alpha"])
        self.assertEqual(world.ask("/v1/models/alpha", "HEAD").status, 200)
        self.assertEqual(world.router.loaded, [])

    def test_an_unknown_name_is_a_404_in_the_form_of_openai(self):
        answer = World().ask("/v1/models/ghost")
        self.assertEqual((answer.status, answer.json["error"]["code"]), (404, "model_not_found"))
        self.assertIn("'ghost'", answer.json["error"]["message"])

    def test_origin_of_a_listing_request_is_echoed(self):
        """http T084"""
        answer = World().ask("/v1/models", headers=[("Origin", "http://ui.local")])
        self.assertEqual(answer.headers["access-control-allow-origin"], "http://ui.local")
        self.assertNotIn("access-control-allow-origin", World().ask("/v1/models").headers)

    def test_active_profile_adds_its_own_names(self):
        """http T085"""
        records = listed(World(example_router(profile="work")))
        self.assertEqual(records["chat"]["meta"], {"llamaswap": {"type": "profile"}})
        self.assertIn("pool/x", records)
        self.assertEqual(records["org"]["meta"]["llamaswap"]["type"], "model")

    def test_metadata_of_a_model_without_capabilities_passes(self):
        plain = evolve(example_config().models["org"], metadata={"context_length": 5})
        records = listed(World(example_router(example_config(models={"org": plain}))))
        self.assertEqual(records["org"]["meta"]["llamaswap"], {"context_length": 5, "type": "model"})
