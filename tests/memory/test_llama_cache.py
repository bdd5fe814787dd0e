"""The cache of a model's context: layers that attend to everything or to a window, and layers that keep a state."""

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.memory.gguf import Gguf
from llamaswap.memory.llama_cache import CacheSettings, LayerCache, layer_bytes, layer_caches, type_bytes, window

MIB = 1024 * 1024


def model(architecture, layers, **numbers):
    """A model; `__` in a name is a dot."""
    metadata = {f"{architecture}.{name.replace('__', '.')}": value for name, value in numbers.items()}
    return Gguf({"general.architecture": architecture, f"{architecture}.block_count": layers, **metadata})


class LayerTests(SynchronousTestCase):
    def test_keys_and_values_have_the_width_of_the_kv_heads(self):
        found = model("llama", 2, embedding_length=4096, attention__head_count=32, attention__head_count_kv=8)
        self.assertEqual(layer_caches(found), [LayerCache(1024, 1024)] * 2)

    def test_model_without_kv_heads_has_as_many_as_heads(self):
        found = model("llama", 1, embedding_length=512, attention__head_count=8)
        self.assertEqual(layer_caches(found), [LayerCache(512, 512)])

    def test_head_width_may_be_given(self):
        numbers = {"attention__key_length": 256, "attention__value_length": 128}
        found = model("x", 1, embedding_length=512, attention__head_count=8, attention__head_count_kv=2, **numbers)
        self.assertEqual(layer_caches(found), [LayerCache(512, 256)])

    def test_latent_attention_keeps_no_values(self):
        numbers = {"attention__key_length": 576, "attention__value_length": 512, "attention__key_length_mla": 192}
        found = model("deepseek2", 1, attention__head_count=128, attention__head_count_kv=1, **numbers)
        self.assertEqual(layer_caches(found), [LayerCache(576, 0)])

    def test_encoder_keeps_nothing(self):
        for architecture, more in (("bert", {}), ("qwen3", {"attention__causal": False})):
            found = model(architecture, 1, embedding_length=64, attention__head_count=4, **more)
            self.assertEqual(layer_caches(found), [LayerCache()])

    def test_layers_that_use_the_keys_of_others_keep_nothing(self):
        found = model("gemma4", 3, embedding_length=64, attention__head_count=4, attention__shared_kv_layers=1)
        self.assertEqual([layer.key_width for layer in layer_caches(found)], [64, 64, 0])


class WindowTests(SynchronousTestCase):
    def windowed(self, architecture, layers=6, **numbers):
        more = {"attention__sliding_window": 512, "embedding_length": 64, "attention__head_count": 4, **numbers}
        return [layer.windowed for layer in layer_caches(model(architecture, layers, **more))]

    def test_architecture_says_which_layers_have_a_window(self):
        self.assertEqual(self.windowed("gemma3"), [True] * 5 + [False])
        self.assertEqual(self.windowed("gpt-oss", 4), [True, False, True, False])
        self.assertEqual(self.windowed("smallthinker", 5), [False, True, True, True, False])

    def test_file_says_which_layers_have_a_window(self):
        pattern = {"attention__sliding_window_pattern": (True, False, True)}
        self.assertEqual(self.windowed("gemma4", 3, **pattern), [True, False, True])
        self.assertEqual(self.windowed("gemma3", 4, attention__sliding_window_pattern=2), [True, False, True, False])

    def test_window_of_an_architecture_that_does_not_use_it_is_ignored(self):
        self.assertEqual(self.windowed("phi3", 2), [False, False])

    def test_model_without_a_window_has_none(self):
        self.assertEqual(self.windowed("gemma3", 2, attention__sliding_window=0), [False, False])
        self.assertEqual(window(model("llama4", 4)), 8192)

    def test_windowed_layers_may_have_heads_of_another_width(self):
        found = model(
            "gemma4",
            2,
            attention__head_count=4,
            attention__key_length=512,
            attention__value_length=512,
            attention__key_length_swa=256,
            attention__value_length_swa=256,
            attention__sliding_window=512,
            attention__sliding_window_pattern=(True, False),
        )
        self.assertEqual([layer.key_width for layer in layer_caches(found)], [1024, 2048])


class RecurrentTests(SynchronousTestCase):
    SSM = {"ssm__conv_kernel": 4, "ssm__inner_size": 4096, "ssm__state_size": 128, "ssm__group_count": 16}
    STATE = 4 * (3 * (4096 + 2 * 16 * 128) + 128 * 4096)

    def states(self, architecture, layers, **numbers):
        more = {"embedding_length": 64, "attention__head_count": 4, **numbers}
        return [(layer.key_width > 0, layer.state) for layer in layer_caches(model(architecture, layers, **more))]

    def test_every_fourth_layer_of_qwen3_next_has_attention(self):
        expected = [(False, self.STATE)] * 3 + [(True, 0)]
        self.assertEqual(self.states("qwen3next", 4, **self.SSM), expected)
        self.assertEqual(self.states("qwen35", 4, full_attention_interval=4, **self.SSM), expected)

    def test_layers_without_kv_heads_keep_a_state(self):
        found = self.states("granitehybrid", 3, attention__head_count_kv=(0, 4, 0), **self.SSM)
        self.assertEqual(found, [(False, self.STATE), (True, 0), (False, self.STATE)])

    def test_feed_forward_layers_of_nemotron_keep_nothing(self):
        more = {"attention__head_count_kv": (0, 4, 0), "feed_forward_length": (0, 0, 64)}
        found = self.states("nemotron_h", 3, **more, **self.SSM)
        self.assertEqual(found, [(False, self.STATE), (True, 0), (False, 0)])

    def test_layers_of_falcon_h1_have_both(self):
        self.assertEqual(self.states("falcon-h1", 1, **self.SSM), [(True, self.STATE)])

    def test_other_kinds_of_states_have_their_sizes(self):
        self.assertEqual(self.states("rwkv7", 1, wkv__head_size=64), [(False, 4 * (2 * 64 + 64 * 64))])
        self.assertEqual(
            self.states("lfm2", 2, shortconv__l_cache=3, attention__head_count_kv=(0, 4)),
            [(False, 4 * 64 * 2), (True, 0)],
        )
        kda = {"kda__head_dim": 8, "ssm__conv_kernel": 4, "attention__head_count_kv": (0, 1)}
        self.assertEqual(self.states("kimi-linear", 2, **kda)[0], (False, 4 * (3 * 3 * 4 * 8 + 4 * 8 * 8)))


class SizeTests(SynchronousTestCase):
    def test_context_is_shared_by_the_sequences(self):
        layer = LayerCache(1024, 1024)
        for settings in (CacheSettings(8192), CacheSettings(8192, 4), CacheSettings(8192, 4, unified=True)):
            self.assertEqual(layer_bytes(layer, 0, settings), 8192 * 2048 * 2)

    def test_types_of_the_cache_have_their_sizes(self):
        settings = CacheSettings(4096, key_bytes=type_bytes("q8_0"), value_bytes=type_bytes("q4_0"))
        self.assertEqual(layer_bytes(LayerCache(1024, 1024), 0, settings), int(4096 * 1024 * (1.0625 + 0.5625)))
        self.assertEqual(type_bytes("unheard-of"), 2.0)

    def test_window_bounds_the_cache_of_its_layers(self):
        layer = LayerCache(512, 512, windowed=True)
        token = 1024 * 2
        self.assertEqual(layer_bytes(layer, 1024, CacheSettings(131072)), (1024 + 512) * token)
        self.assertEqual(layer_bytes(layer, 1024, CacheSettings(131072, 4)), 4 * (1024 + 512) * token)
        self.assertEqual(layer_bytes(layer, 1024, CacheSettings(131072, 4, True)), (4 * 1024 + 512) * token)
        self.assertEqual(layer_bytes(layer, 1024, CacheSettings(1000)), 1024 * token)
        self.assertEqual(layer_bytes(layer, 1024, CacheSettings(131072, full_window=True)), 131072 * token)

    def test_state_is_kept_for_each_sequence(self):
        self.assertEqual(layer_bytes(LayerCache(state=100), 0, CacheSettings(131072, 4, True)), 400)
