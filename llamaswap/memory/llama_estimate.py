"""What llama.cpp is expected to use for a GGUF file: weights, cache and working memory, for each GPU and in RAM.

The arithmetic is llama.cpp's own where it is simple (which layer is where, what its cache takes); the working memory is
an approximation. What a server adds while it works, such as the prompts that it keeps, is left to what is learned.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from itertools import accumulate

from attrs import Factory, define, field, frozen

from llamaswap.config.schema.memory import GpuChoice
from llamaswap.memory.gguf import Gguf
from llamaswap.memory.llama_cache import CacheSettings, layer_bytes, layer_caches, type_bytes, window
from llamaswap.memory.llama_flags import Settings
from llamaswap.memory.spread import MIB, Estimate, Part, Spread, mib, shares, spreads, visible
from llamaswap.scheduling.memory import RAM, Device, MemoryNeed

UBATCH = 512  # tokens that are computed at a time
AUTO_SEQUENCES = 4  # llama-server's slots if the command does not number them; they share one stream
LEAST_COMPUTE = 300 * MIB  # working memory on a GPU
GPU_CONTEXT = 350 * MIB  # what the driver takes of a GPU for a process
HOST_DRIVER = 150 * MIB  # and of RAM
PROCESS = 16 * MIB
TOKEN = 400  # bytes of RAM for each token of the vocabulary
PROJECTOR_COMPUTE = 200 * MIB
FIT_MARGIN = 1024  # MiB that the engine leaves free of each GPU if it fits itself to the memory
CPU = -1
_BLOCK = re.compile(r"blk\.(\d+)\.")
_EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
_FEED_FORWARD = r"\.ffn_(up|down|gate)"
# Types of weights that the CPU backend copies in another order: they then take memory beside the mapped file.
_REPACKED = {2, 12, 20, 39}  # Q4_0, Q4_K, IQ4_NL, MXFP4
_REPACKED_ON_ARM = {8, 13, 14}  # Q8_0, Q5_K, Q6_K


@frozen
class LlamaModel:
    """The files of a command: the model, a draft model, and the bytes of a projector for images or audio."""

    model: Gguf
    draft: Gguf | None = None
    projector: int = 0


@define
class Use:
    """Bytes of one device by purpose; `mapped` are weights that are file cache, which the kernel can free."""

    weights: int = 0
    cache: int = 0
    compute: int = 0
    projector: int = 0
    overhead: int = 0
    mapped: int = 0

    @property
    def total(self) -> int:
        """What the device must have free."""
        return self.weights + self.cache + self.compute + self.projector + self.overhead

    def parts(self, device: str) -> list[Part]:
        """The purposes that take anything."""
        given = {
            "weights": self.weights,
            "cache": self.cache,
            "compute": self.compute,
            "projector": self.projector,
            "overhead": self.overhead,
            "weights in the file cache": self.mapped,
        }
        return [Part(device, purpose, mib(size)) for purpose, size in given.items() if size]


@define(eq=False)
class Layout:
    """Where everything of a model is, if its weights are spread over GPUs in the proportions of `split`."""

    settings: Settings
    split: Sequence[float]
    machine: str = Factory(platform.machine)
    gpus: list[Use] = field(init=False)
    ram: Use = field(factory=Use, init=False)

    def __attrs_post_init__(self) -> None:
        self.gpus = [Use(overhead=GPU_CONTEXT) for _ in self.split]
        self.ram.overhead = PROCESS + (HOST_DRIVER if self.gpus else 0)

    def use(self, device: int) -> Use:
        """A GPU by its place in the split, or RAM."""
        return self.ram if device == CPU else self.gpus[device]

    def add_model(self, model: Gguf, *, draft: bool = False) -> None:
        """Add a model's weights, its cache, and what it needs to compute."""
        layers = model.layers - model.number("nextn_predict_layers")
        loaded = layers if "mtp" not in self.settings.text("speculation") else model.layers
        wanted = self.settings.layers("draft_gpu_layers" if draft else "gpu_layers", loaded + 1)
        places = _places(loaded, wanted, self.split)
        self._add_weights(model, places, draft=draft)
        cache = self.cache_settings(model, draft=draft)
        for layer, kept in enumerate(layer_caches(model)[:loaded]):
            device = places[layer] if self.settings.on("kv_offload", True) else CPU
            self.use(device).cache += layer_bytes(kept, window(model), cache)
        self._add_compute(model, cache, all_on_gpu=CPU not in places)
        self.ram.overhead += TOKEN * _vocabulary(model)

    def add_projector(self, size: int) -> None:
        """Add the file that turns images or audio into tokens, which is never mapped."""
        on_gpu = self.gpus and self.settings.on("mmproj_offload", True)
        self.use(0 if on_gpu else CPU).projector += size + PROJECTOR_COMPUTE

    def cache_settings(self, model: Gguf, *, draft: bool = False) -> CacheSettings:
        """How the context is divided, and the types of its cache."""
        sequences = self.settings.number("parallel", -1)
        prefix = "draft_" if draft else ""
        return CacheSettings(
            context=max(0, self.settings.number("context", 0)) or model.number("context_length"),
            sequences=AUTO_SEQUENCES if sequences < 1 else sequences,
            unified=self.settings.on("unified", sequences < 1),
            ubatch=self._ubatch(),
            full_window=self.settings.on("swa_full", False),
            key_bytes=type_bytes(self.settings.text(prefix + "key_type")),
            value_bytes=type_bytes(self.settings.text(prefix + "value_type")),
        )

    def _ubatch(self) -> int:
        return max(1, min(self.settings.number("ubatch", UBATCH), self.settings.number("batch", 2048)))

    def _add_weights(self, model: Gguf, places: list[int], *, draft: bool) -> None:
        moved = [] if draft else self._overrides()
        has_output = "output.weight" in model.tensors
        for name, tensor in model.tensors.items():
            block = _BLOCK.match(name)
            if block is not None and int(block[1]) >= len(places) - 1:
                continue  # a layer that predicts further tokens, which is not loaded
            device = CPU if "token_embd" in name else places[int(block[1]) if block else -1]
            device = next((place for pattern, place in moved if pattern.search(name)), device)
            if device != CPU:
                self.gpus[device].weights += tensor.size
            elif self.is_mapped() and not self._is_repacked(name, tensor.kind, tensor.shape):
                self.ram.mapped += tensor.size
            else:
                self.ram.weights += tensor.size
            if name == "token_embd.weight" and not has_output and places[-1] != CPU:
                self.gpus[places[-1]].weights += tensor.size  # the output layer uses a copy of it

    def _overrides(self) -> list[tuple[re.Pattern[str], int]]:
        """Tensors that the command puts elsewhere, and their place."""
        found = []
        for entry in filter(None, self.settings.text("override").split(",")):
            pattern, _, place = entry.rpartition("=")
            number = re.search(r"\d{1,3}$", place)
            gpu = min(int(number[0]), len(self.gpus) - 1) if number else CPU
            try:
                found.append((re.compile(pattern), CPU if place.upper().startswith("CPU") else gpu))
            except re.error:
                continue
        for setting, tensors in (("cpu_moe", _EXPERTS), ("cpu_ffn", _FEED_FORWARD)):
            if self.settings.text(setting) == "all":
                found.append((re.compile(tensors), CPU))
            elif count := self.settings.number(setting, 0):
                found += [(re.compile(rf"blk\.{layer}{tensors}"), CPU) for layer in range(min(count, 1024))]
        return found

    def is_mapped(self) -> bool:
        """Whether weights outside GPUs are file cache: mapped, and not locked."""
        mode = self.settings.text("load_mode")
        return mode in ("", "auto", "mmap") and self.settings.on("mmap", True) and not self.settings.on("mlock", False)

    def fits_itself(self) -> bool:
        """Whether the engine may change the command's layers and context so that they fit on the GPUs."""
        return self.settings.on("fit", True) and self.settings.number("gpu_layers", -1) < 0

    def _is_repacked(self, name: str, kind: int, shape: tuple[int, ...]) -> bool:
        if self.gpus or not self.settings.on("repack", True) or len(shape) < 2 or shape[1] % 8 or "_embd" in name:
            return False
        return kind in _REPACKED or (kind in _REPACKED_ON_ARM and self.machine in ("aarch64", "arm64"))

    def _add_compute(self, model: Gguf, cache: CacheSettings, *, all_on_gpu: bool) -> None:
        width, vocabulary, ubatch = model.number("embedding_length"), _vocabulary(model), cache.ubatch
        mask = 2 * ubatch * cache.cells
        scores = 0
        if self.settings.text("flash").lower() in ("off", "0", "false"):
            scores = 4 * ubatch * cache.cells * model.number("attention.head_count")
        for gpu in self.gpus:
            gpu.compute += max(LEAST_COMPUTE, ubatch * (vocabulary * 4 + width * 24) + mask + scores)
        if all_on_gpu:
            self.ram.compute += 4 * ubatch * width + mask
            return
        experts = model.number("expert_used_count") * model.number("expert_feed_forward_length")
        hidden = max(model.number("feed_forward_length"), experts)
        self.ram.compute += ubatch * (4 * width + 16 * hidden) + mask + scores + 4 * vocabulary * cache.sequences


def gpu_ways(
    settings: Settings, devices: Mapping[str, Device], environment: Mapping[str, str], choice: GpuChoice
) -> list[Spread]:
    """The ways in which a command may use the GPUs."""
    return spreads(choice, _used_gpus(settings, visible(devices, environment)))


def estimate_llama(files: LlamaModel, settings: Settings, ways: Sequence[Spread]) -> Estimate:
    """What a command needs, for each way to use the GPUs."""
    layouts = [_layout(files, settings, way) for way in ways] or [_layout(files, settings, None)]
    need, note = fitted_need(ways, [[mib(use.total) for use in layout.gpus] for layout in layouts], layouts[0], "gguf")
    parts = [part for index, use in enumerate(layouts[0].gpus) for part in use.parts(_shown(ways[0], index))]
    context = layouts[0].cache_settings(files.model).context
    why = f"the header of the {files.model.architecture} model, with a context of {context} tokens{note}"
    return Estimate(need, why, (*parts, *layouts[0].ram.parts(RAM)))


def fitted_need(
    ways: Sequence[Spread], sizes: Sequence[Sequence[int]], layout: Layout, source: str
) -> tuple[MemoryNeed, str]:
    """The need whose ways take `sizes` of MiB, and a note if the engine will fit itself to the GPUs.

    If the command does not number the layers on GPUs, the engine puts on them what fits, so it never needs more.
    """
    spilled = 0
    options = []
    for way, wanted in zip(ways, sizes, strict=False):
        given = list(wanted)
        if layout.fits_itself() and way is ways[-1]:
            given = [min(size, max(1, total - FIT_MARGIN)) for size, total in zip(wanted, way.totals, strict=True)]
            spilled = sum(wanted) - sum(given)
        options.append(shares(way, given))
    ram = mib(layout.ram.total) + (0 if layout.is_mapped() else spilled)
    note = f"; {spilled} MiB do not fit on the GPUs, and the engine fits itself to them" if spilled else ""
    return MemoryNeed(ram, tuple(options) or ((),), source, firm=False), note


def _shown(way: Spread, index: int) -> str:
    return way.names[index] or f"GPU {index + 1} of {len(way.names)}"


def _layout(files: LlamaModel, settings: Settings, way: Spread | None) -> Layout:
    split: list[float] = []
    if way is not None:
        ratios = settings.ratios()[: len(way.names)]
        ratios += [0.0] * (len(way.names) - len(ratios))
        even = [1.0] * len(way.names) if "" in way.names else [float(total) for total in way.totals]
        split = ratios if sum(ratios) > 0 else even
    layout = Layout(settings, split)
    layout.add_model(files.model)
    if files.draft is not None:
        layout.add_model(files.draft, draft=True)
    if files.projector:
        layout.add_projector(files.projector)
    return layout


def _used_gpus(settings: Settings, gpus: dict[str, Device]) -> dict[str, Device]:
    """The GPUs that the command names, of those that the server sees."""
    names = list(gpus)
    device = settings.text("device")
    if device:
        numbers = [re.search(r"\d{1,3}$", word) for word in device.split(",")]
        names = [names[int(number[0])] for number in numbers if number and int(number[0]) < len(names)]
    if settings.text("split_mode") == "none" and names:
        names = [names[max(0, min(settings.number("main_gpu", 0), len(names) - 1))]]
    return {name: gpus[name] for name in names}


def _places(layers: int, gpu_layers: int, split: Sequence[float]) -> list[int]:
    """The device of each layer, and of the output layer after them: the last `gpu_layers` are on GPUs."""
    if not split or gpu_layers == 0:
        return [CPU] * (layers + 1)
    bounds = [bound / sum(split) for bound in accumulate(split)]
    first = layers + 1 - gpu_layers
    found = [CPU] * first
    for index in range(gpu_layers):
        found.append(next((gpu for gpu, bound in enumerate(bounds) if index / gpu_layers < bound), len(split) - 1))
    return found


def _vocabulary(model: Gguf) -> int:
    """The number of tokens that the model knows."""
    embedding = model.tensors.get("token_embd.weight")
    if embedding is not None and len(embedding.shape) > 1:
        return embedding.shape[1]
    return model.lengths.get("tokenizer.ggml.tokens", 0)
