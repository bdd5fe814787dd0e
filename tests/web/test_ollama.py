"""What Ollama's clients find out about the models."""

from __future__ import annotations

from datetime import datetime

from attrs import define as record
from attrs import evolve, field
from twisted.trial.unittest import TestCase

from llamaswap.config import ApiKey, Capabilities, Model, Secret
from llamaswap.config.schema import OllamaSettings
from llamaswap.servers.supervisor_protocol import ServerStatus
from llamaswap.web.ollama import NEVER
from tests.doubles import FakeRouter
from tests.web.doubles import World, example_config, example_router, with_keys

QWEN = Model("qwen3-8b:Q4_K_M", cmd="llama-server -m /models/qwen3.gguf", ttl=300)


@record
class KnownMemory:
    """A memory source with one loaded model."""

    needs: dict = field(factory=dict)

    def document(self):
        rows = [{"model": "alpha", "mib": 100, "source": "measured"}]
        gpu = [{"model": "alpha", "mib": 900, "source": "measured"}]
        return {"devices": [{"device": "ram", "models": rows}, {"device": "gpu0", "models": gpu}], "needs": self.needs}


def post(world, path, body, *headers):
    return world.ask(path, "POST", [("Content-Type", "application/json"), *headers], body)


class TagTests(TestCase):
    def test_every_listed_name_is_a_model(self):
        found = World().ask("/api/tags").json["models"]
        listed = World().ask("/v1/models").json["data"]
        names = [*(one["id"] for one in listed), "al", "beta:hot"]  # its copies are aliases
        self.assertEqual([one["model"] for one in found], sorted(names))
        self.assertEqual([one["name"] for one in found], [one["model"] for one in found])
        for one in found:
            self.assertEqual(len(one["digest"]), 64)
            datetime.fromisoformat(one["modified_at"])
            self.assertIsInstance(one["details"]["families"], list)

    def test_a_copied_name_is_listed_as_ollama_lists_it(self):
        """`ollama cp` succeeded, and `ollama list` did not show the copy."""
        copied = evolve(QWEN, aliases=("qwen-copy",))
        config = example_config(models={QWEN.id: copied}, selectors={}, profiles={}, peers={})
        world = World(example_router(config))
        names = [one["name"] for one in world.ask("/api/tags").json["models"]]
        self.assertEqual(names, sorted([QWEN.id, "qwen-copy"]))
        self.assertEqual([one["id"] for one in world.ask("/v1/models").json["data"]], [QWEN.id])

    def test_sizes_and_details_are_told_as_far_as_they_are_known(self):
        config = example_config(models={QWEN.id: QWEN}, selectors={}, profiles={})
        need = {"ram_mib": 200, "gpus": [[800], [500, 500]]}
        world = World(example_router(config), memory=KnownMemory({QWEN.id: need}))
        entry = next(one for one in world.ask("/api/tags").json["models"] if one["name"] == QWEN.id)
        self.assertEqual(entry["size"], 1000 << 20)
        details = entry["details"]
        self.assertEqual((details["format"], details["family"]), ("gguf", "qwen3"))
        self.assertEqual((details["parameter_size"], details["quantization_level"]), ("8B", "Q4_K_M"))

    def test_a_key_is_needed_if_there_are_any(self):
        world = World(example_router(with_keys("mine")))
        self.assertEqual(world.ask("/api/tags").status, 401)
        self.assertIn("unauthorized", world.ask("/api/tags").json["error"])
        self.assertEqual(world.ask("/api/tags", headers=[("Authorization", "Bearer mine")]).status, 200)

    def test_a_key_finds_only_the_models_that_it_may_use(self):
        child = ApiKey(Secret("sk-child"), "child", models=("beta*",), scopes=("infer",))
        world = World(example_router(evolve(example_config(), api_keys=(child,))))
        mine = ("Authorization", "Bearer sk-child")
        found = world.ask("/api/tags", headers=[mine]).json["models"]
        self.assertEqual({one["name"] for one in found} - {"beta", "beta:hot"}, set())
        self.assertEqual(post(world, "/api/show", b'{"model":"alpha"}', mine).status, 404)
        self.assertEqual(post(world, "/api/show", b'{"model":"beta"}', mine).status, 200)
        self.assertEqual(world.ask("/api/ps", headers=[mine]).json, {"models": []})
        self.assertEqual(post(world, "/api/push", b'{"model":"beta"}', mine).status, 403)

    def test_the_paths_are_not_found_while_the_api_is_switched_off(self):
        world = World(example_router(evolve(example_config(), ollama=OllamaSettings(enabled=False))))
        self.assertEqual(world.ask("/api/tags").status, 404)
        self.assertEqual(world.ask("/api/ps").status, 404)
        self.assertEqual(post(world, "/api/show", b'{"model":"alpha"}').text, "model POST /api/show")


class LoadedTests(TestCase):
    def loaded(self, **more):
        statuses = {name: ServerStatus(name, "ready") for name in ("alpha", "beta")}
        router = FakeRouter(example_config(), {"alpha": "ready", "beta": "ready"}, statuses, **more)
        return {one["model"]: one for one in World(router, memory=KnownMemory()).ask("/api/ps").json["models"]}

    def test_a_loaded_model_has_its_measured_sizes(self):
        alpha = self.loaded()["alpha"]
        self.assertEqual((alpha["size"], alpha["size_vram"]), (1000 << 20, 900 << 20))
        self.assertEqual(alpha["context_length"], 8192)
        self.assertEqual(self.loaded()["beta"]["size"], 0)

    def test_a_model_expires_when_its_idle_time_ends(self):
        found = self.loaded(left={"alpha": 60.0})
        expires = datetime.fromisoformat(found["alpha"]["expires_at"])
        self.assertEqual(expires.timestamp(), 1700000060.5)
        self.assertEqual(found["beta"]["expires_at"], NEVER)
        datetime.fromisoformat(NEVER)

    def test_no_loaded_model_is_an_empty_list(self):
        self.assertEqual(World().ask("/api/ps").json, {"models": []})


class ShowTests(TestCase):
    def test_copilot_finds_what_a_model_can_do(self):
        found = post(World(), "/api/show", b'{"model":"alpha"}').json
        self.assertEqual(found["capabilities"], ["completion", "tools", "vision"])
        architecture = found["model_info"]["general.architecture"]
        self.assertEqual(found["model_info"][f"{architecture}.context_length"], 8192)
        self.assertEqual(found["model_info"]["general.basename"], "Alpha")

    def test_continue_finds_that_a_model_can_insert(self):
        config = example_config(models={QWEN.id: QWEN}, selectors={}, profiles={})
        world = World(example_router(config), capabilities=lambda model: Capabilities(context=4096))
        found = post(world, "/api/show", b'{"name":"qwen3-8b:Q4_K_M"}').json
        self.assertIn(".Suffix", found["template"])
        self.assertEqual((found["parameters"], found["capabilities"][-1]), ("num_ctx 4096", "insert"))

    def test_an_alias_and_a_default_tag_name_the_model(self):
        for name in (b"al", b"alpha:latest", b"lab/delta", b"pick"):
            found = post(World(), "/api/show", b'{"model":"%b"}' % name)
            self.assertEqual(found.status, 200, name)
            self.assertIn("model_info", found.json)

    def test_an_embedding_model_says_so(self):
        config = example_config(models={"nomic-embed": Model("nomic-embed")}, selectors={}, profiles={})
        found = post(World(example_router(config)), "/api/show", b'{"model":"nomic-embed"}').json
        self.assertEqual(found["capabilities"], ["embedding"])

    def test_an_unknown_model_is_not_found(self):
        answer = post(World(), "/api/show", b'{"model":"ghost"}')
        self.assertEqual((answer.status, answer.json), (404, {"error": "model 'ghost' not found"}))
        self.assertEqual(post(World(), "/api/show", b"[]").status, 400)


class UnsupportedTests(TestCase):
    def test_unsupported_paths_say_why(self):
        answer = post(World(), "/api/push", b'{"model":"alpha"}')
        self.assertEqual(answer.status, 501)
        self.assertIn("not uploaded", answer.json["error"])
        answer = post(World(), "/api/blobs/sha256:00", b"x")
        self.assertEqual(answer.status, 501)
        self.assertIn("uploaded files", answer.json["error"])
