"""LM Studio's list of the models, its inference paths, and the time that its requests ask to keep a model."""

from __future__ import annotations

from math import inf

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import ApiKey, Capabilities, Model, Secret
from tests.web.doubles import World, example_config, example_router, with_keys
from tests.web.pipeline import Stage

QWEN = Model(
    "qwen3-8b",
    cmd="llama-server -hf unsloth/Qwen3-8B-GGUF:Q4_K_M",
    capabilities=Capabilities(context=4096, tools=True),
)
NOMIC = Model("nomic-ai/nomic-embed", cmd="vllm serve nomic-ai/nomic-embed")


def listed(world, *headers):
    return {one["id"]: one for one in world.ask("/api/v0/models", headers=headers).json["data"]}


class ListTests(SynchronousTestCase):
    def test_every_listed_name_is_a_model(self):
        world = World()
        self.assertEqual(list(listed(world)), sorted(one["id"] for one in world.ask("/v1/models").json["data"]))
        for one in listed(world).values():
            self.assertLessEqual({"type", "publisher", "arch", "compatibility_type", "quantization", "state"}, set(one))

    def test_a_model_says_what_is_known_of_it(self):
        config = example_config(models={QWEN.id: QWEN, NOMIC.id: NOMIC}, selectors={}, profiles={}, peers={})
        world = World(example_router(config, {QWEN.id: "ready"}))
        found = listed(world)
        self.assertEqual(
            found[QWEN.id],
            {
                "id": "qwen3-8b",
                "object": "model",
                "type": "llm",
                "publisher": "unsloth",
                "arch": "qwen3",
                "compatibility_type": "gguf",
                "quantization": "Q4_K_M",
                "state": "loaded",
                "max_context_length": 4096,
                "loaded_context_length": 4096,
                "capabilities": ["tool_use"],
            },
        )
        self.assertEqual(
            {name: found[NOMIC.id].get(name) for name in ("type", "publisher", "state", "max_context_length")},
            {"type": "embeddings", "publisher": "nomic-ai", "state": "not-loaded", "max_context_length": None},
        )

    def test_a_model_that_is_loading_is_not_loaded_yet(self):
        world = World(example_router(states={"alpha": "starting", "beta": "ready"}))
        found = listed(world)
        self.assertEqual((found["alpha"]["state"], found["beta"]["state"]), ("not-loaded", "loaded"))
        self.assertEqual(found["alpha"]["type"], "vlm")
        self.assertNotIn("loaded_context_length", found["alpha"])

    def test_one_model_is_found_by_every_name_and_another_is_not(self):
        world = World()
        self.assertEqual(world.ask("/api/v0/models/org%2Fgamma").json["id"], "org/gamma")
        self.assertEqual(world.ask("/api/v0/models/al").json["id"], "al")
        self.assertEqual(world.ask("/api/v0/models/ghost").status, 404)

    def test_a_key_finds_only_the_models_that_it_may_use(self):
        child = ApiKey(Secret("sk-child"), "child", models=("beta*",), scopes=("infer",))
        world = World(example_router(evolve(example_config(), api_keys=(child,))))
        mine = ("Authorization", "Bearer sk-child")
        self.assertLessEqual(set(listed(world, mine)), {"beta", "beta:hot"})
        self.assertEqual(world.ask("/api/v0/models/alpha", headers=[mine]).status, 404)
        self.assertEqual(World(example_router(with_keys("k"))).ask("/api/v0/models").status, 401)


class InferenceTests(SynchronousTestCase):
    def setUp(self):
        self.stage = Stage()

    @property
    def kept(self):
        return [call[1:] for call in self.stage.router.calls if call[0] == "keep_for"]

    def test_its_paths_are_those_of_the_openai_api(self):
        for path in (b"/chat/completions", b"/completions", b"/embeddings"):
            self.stage.post({"model": "alpha"}, b"/api/v0" + path + b"?a=1")
        targets = [one.head.target for one in self.stage.forwarder.forwarded]
        self.assertEqual(targets, [b"/v1/chat/completions?a=1", b"/v1/completions?a=1", b"/v1/embeddings?a=1"])

    def test_ttl_is_the_idle_time_of_the_model_and_the_body_stays(self):
        body = b'{ "model": "alpha", "ttl": 300 }'
        self.stage.post(body)
        self.assertEqual(self.stage.forwarding.sent, body)
        self.stage.post({"model": "al", "ttl": 0})
        self.stage.post({"model": "beta", "ttl": 1.5}, b"/v1/embeddings")
        self.stage.post({"model": "alpha", "ttl": 1e12})
        self.assertEqual(self.kept, [("alpha", 300), ("alpha", 0), ("beta", 1.5), ("alpha", inf)])

    def test_ttl_in_a_body_of_several_megabytes_counts_too(self):
        self.stage.post({"model": "alpha", "prompt": "x" * 3_000_000, "ttl": 60})
        self.assertEqual(self.kept, [("alpha", 60)])

    def test_ttl_that_is_no_number_of_seconds_means_nothing(self):
        for value in (b"null", b'"60"', b"true", b"-1", b"[60]", b"NaN", b"1e", b"0x10", b"9" * 5000):
            self.stage.post(b'{"model": "alpha", "ttl": %b}' % value)
        self.assertEqual(self.kept, [])

    def test_ttl_of_a_request_for_a_peer_is_the_peers_matter(self):
        self.stage.post({"model": "lab/delta", "ttl": 60})
        self.assertEqual(self.kept, [])
