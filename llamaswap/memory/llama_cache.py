"""What llama.cpp allocates for the context of a model, layer by layer.

A layer with attention keeps keys and values of every token of the context, or of a window of it; a recurrent layer
keeps a state of constant size for each sequence.
"""

from __future__ import annotations

from attrs import frozen

from llamaswap.memory.gguf import Gguf

CELL_STEP = 256  # the number of tokens is rounded up to this
TYPE_BYTES = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
    "iq4_nl": 18 / 32,
}
"""Bytes of a number, by the type of the cache."""

# Architectures that keep nothing between requests: encoders and diffusion models.
_WITHOUT_CACHE = {
    *("bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "neo-bert", "modern-bert", "eurobert"),
    *("gemma-embedding", "t5encoder", "dream", "llada", "llada-moe", "rnd1", "wavtokenizer-dec"),
}
# One layer in so many attends to the whole context, the others to a window, if the file does not say it.
_WINDOW_PERIODS = {
    "gemma2": 2,
    "gemma3": 6,
    "gemma3n": 5,
    "gpt-oss": 2,
    "cohere2": 4,
    "llama4": 4,
    "exaone4": 4,
    "exaone-moe": 4,
    "olmo2": 4,
    "smallthinker": 4,
    "plamo3": 8,
    "afmoe": 4,
}
_FULL_LAYER_FIRST = {"smallthinker", "cohere2moe"}
_CHUNK = 8192  # tokens of llama4's window


@frozen
class LayerCache:
    """What a layer keeps: numbers for each token, and bytes for each sequence."""

    key_width: int = 0
    value_width: int = 0
    windowed: bool = False
    state: int = 0


@frozen
class CacheSettings:
    """How a server divides its context, and how it writes keys and values."""

    context: int
    sequences: int = 1
    unified: bool = False
    ubatch: int = 512
    full_window: bool = False
    key_bytes: float = 2.0
    value_bytes: float = 2.0

    @property
    def cells(self) -> int:
        """Tokens that one stream holds: all sequences share one stream, or each has its own."""
        return _rounded(self.context // (1 if self.unified else self.sequences))


def layer_caches(model: Gguf) -> list[LayerCache]:
    """What each layer keeps."""
    if model.architecture in _WITHOUT_CACHE or model.metadata.get(f"{model.architecture}.attention.causal") is False:
        return [LayerCache()] * model.layers
    heads = model.numbers("attention.head_count", 1)
    kv_heads = model.numbers("attention.head_count_kv") if _has(model, "attention.head_count_kv") else heads
    width = model.number("embedding_length")
    windowed = _windowed(model)
    recurrent = _recurrent(model, kv_heads)
    state = _state_size(model)
    own = model.layers - model.number("attention.shared_kv_layers")  # layers after these use their keys and values
    if model.architecture == "gemma3n":
        own = 20
    found = []
    for layer in range(model.layers):
        head_width = width // max(1, heads[layer])
        suffix = "_swa" if windowed[layer] and _has(model, "attention.key_length_swa") else ""
        keys = model.number(f"attention.key_length{suffix}", head_width) * kv_heads[layer]
        values = model.number(f"attention.value_length{suffix}", head_width) * kv_heads[layer]
        if _has(model, "attention.key_length_mla"):
            values = 0  # the values are a part of the keys
        if layer >= own or (recurrent[layer] and model.architecture != "falcon-h1"):
            keys = values = 0
        else:
            keys += model.number("attention.indexer.key_length")
        found.append(LayerCache(keys, values, windowed[layer], state if recurrent[layer] else 0))
    return found


def window(model: Gguf) -> int:
    """Tokens of the window of the windowed layers."""
    default = _CHUNK if model.architecture == "llama4" else 0
    return model.number("attention.sliding_window", model.number("attention.chunk_size", default))


def layer_bytes(layer: LayerCache, window: int, settings: CacheSettings) -> int:
    """The bytes that a layer's cache takes."""
    cells = settings.cells
    if layer.windowed and not settings.full_window:
        tokens = window * (settings.sequences if settings.unified else 1) + settings.ubatch
        cells = _rounded(min(cells, tokens))
    streams = 1 if settings.unified else settings.sequences
    token = layer.key_width * settings.key_bytes + layer.value_width * settings.value_bytes
    return int(token * cells * streams) + layer.state * settings.sequences


def type_bytes(name: str) -> float:
    """Bytes of a number of the cache type `name`; an unknown one counts as f16."""
    return TYPE_BYTES.get(name.lower(), 2.0)


def _rounded(tokens: int) -> int:
    return -(-tokens // CELL_STEP) * CELL_STEP


def _has(model: Gguf, key: str) -> bool:
    return f"{model.architecture}.{key}" in model.metadata


def _windowed(model: Gguf) -> list[bool]:
    """Whether each layer attends to a window only."""
    key = "attention.sliding_window_pattern"
    layers = model.layers
    if window(model) == 0:
        return [False] * layers
    if isinstance(model.metadata.get(f"{model.architecture}.{key}"), tuple):
        return [number > 0 for number in model.numbers(key)]
    period = model.number(key, _WINDOW_PERIODS.get(model.architecture, 1))
    if period == 0:
        return [True] * layers
    full = 0 if model.architecture in _FULL_LAYER_FIRST else period - 1
    return [layer % period != full for layer in range(layers)]


def _recurrent(model: Gguf, kv_heads: list[int]) -> list[bool]:
    """Whether each layer keeps a state."""
    if _has(model, "attention.recurrent_layers"):
        return [number > 0 for number in model.numbers("attention.recurrent_layers")]
    if model.architecture.startswith(("mamba", "rwkv", "arwkv", "falcon-h1")):
        return [True] * model.layers
    if _state_size(model) == 0:
        return [False] * model.layers
    interval = model.number("full_attention_interval", 4 if model.architecture.startswith("qwen3") else 0)
    if interval:
        return [(layer + 1) % interval != 0 for layer in range(model.layers)]
    if model.architecture.startswith("nemotron"):  # some layers are neither: they only have a feed-forward network
        hidden = model.numbers("feed_forward_length")
        return [number == 0 and hidden[layer] == 0 for layer, number in enumerate(kv_heads)]
    return [number == 0 for number in kv_heads]


def _state_size(model: Gguf) -> int:
    """Bytes of a recurrent layer's state for one sequence: what it convolves, and what it remembers, as f32."""
    width, kernel = model.number("embedding_length"), model.number("ssm.conv_kernel")
    inner, state = model.number("ssm.inner_size"), model.number("ssm.state_size")
    if head := model.number("wkv.head_size"):
        return 4 * (model.number("token_shift_count", 2) * width + width * head)
    if shift := model.number("shortconv.l_cache"):
        return 4 * width * (shift - 1)
    if head := model.number("kda.head_dim"):
        heads = model.number("attention.head_count")
        return 4 * (3 * max(0, kernel - 1) * heads * head + heads * head * head)
    return 4 * (max(0, kernel - 1) * (inner + 2 * model.number("ssm.group_count") * state) + state * inner)
