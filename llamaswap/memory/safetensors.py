"""What engines need that serve models of Hugging Face: a share of each GPU that they take, or the size of the weights.

Only files of this machine are read. vLLM and SGLang take a share of the memory whatever the size of the model is.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from itertools import combinations, islice, pairwise
from pathlib import Path

from attrs import frozen

from llamaswap.config.schema.memory import GpuChoice
from llamaswap.hub_cache import hub_folder, newest_snapshot, repository
from llamaswap.memory.llama_flags import program_names
from llamaswap.memory.spread import Estimate, Part, mib, shares, spreads, visible
from llamaswap.scheduling.memory import RAM, Device, GpuShare, MemoryNeed

FILE_LIMIT = 5000  # names of a folder that are read
OPTION_LIMIT = 16
MARGIN = 512  # MiB besides the weights
CPU_CACHE = 4.0  # GiB: what vLLM keeps for the cache on a machine without GPUs


@frozen
class ShareEngine:
    """An engine that takes a share of each GPU: the flag for it with its default, and those that number the GPUs."""

    words: tuple[str, ...]
    share: str
    default: float
    counts: tuple[tuple[str, ...], ...]


VLLM = ShareEngine(
    words=("vllm", "vllm.entrypoints.openai.api_server", "vllm-openai"),
    share="--gpu-memory-utilization",
    default=0.9,
    counts=(
        ("-tp", "--tensor-parallel-size"),
        ("-pp", "--pipeline-parallel-size"),
        ("-dp", "--data-parallel-size"),
    ),
)
SGLANG = ShareEngine(
    words=("sglang", "sglang.launch_server"),
    share="--mem-fraction-static",
    default=0.88,
    counts=(("--tp", "--tp-size"), ("--pp", "--pp-size"), ("--dp", "--dp-size")),
)
MODEL_FLAGS = ("--model", "--model-path", "--model-id", "--model_id", "-m")


def share_engine(argv: Sequence[str]) -> ShareEngine | None:
    """The engine of a command if it is one of those that take a share."""
    names = {name.partition(":")[0] for name in program_names(argv)}
    return next((engine for engine in (VLLM, SGLANG) if names.intersection(engine.words)), None)


def estimate_share(
    engine: ShareEngine,
    argv: Sequence[str],
    devices: Mapping[str, Device],
    environment: Mapping[str, str],
    choice: GpuChoice,
) -> Estimate | None:
    """The share of the GPUs that the command takes; None without a GPU."""
    gpus = visible(devices, environment)
    count = 1
    for flags in engine.counts:
        count *= max(1, int(_number(argv, flags, 1)))
    if not gpus or count > len(gpus):
        return None
    share = min(1.0, max(0.0, _number(argv, (engine.share,), engine.default)))
    sizes = {name: int(device.total * share) for name, device in gpus.items()}
    if not (choice.auto or choice.count):
        named = [f"gpu{number}" for number in choice.ids if f"gpu{number}" in sizes] or list(sizes)
        options = [tuple(GpuShare(sizes[name], name) for name in named[:count])]
    elif len(set(sizes.values())) == 1:
        options = [(GpuShare(next(iter(sizes.values()))),) * count]
    else:
        sets = islice(combinations(sizes, count), OPTION_LIMIT)
        options = [tuple(GpuShare(sizes[name], name) for name in names) for names in sets]
    parts = tuple(Part(share.device or "each GPU", "share", share.size) for share in options[0])
    why = f"{engine.words[0]} takes {share:.0%} of the memory of {count} GPU{'s' if count > 1 else ''}"
    return Estimate(MemoryNeed(0, tuple(options), "flag", firm=False), why, parts)


def weights_of(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Bytes of the weights that a command names as a folder or as a repository in the cache; 0 if there are none."""
    names = [word for flag, word in pairwise(argv) if flag in MODEL_FLAGS]
    names += [word.partition("=")[2] for word in argv if word.startswith("--model") and "=" in word]
    names += [word for before, word in pairwise(argv) if before == "serve"]
    for name in names:
        if size := _folder_size(_folder(name, environment)):
            return size
    return 0


def estimate_weights(
    size: int,
    devices: Mapping[str, Device],
    environment: Mapping[str, str],
    choice: GpuChoice,
    more: int = MARGIN,
    source: str = "safetensors",
) -> Estimate:
    """The need of an engine of which only the bytes of its weights are known: they, a tenth, and `more` MiB."""
    total = mib(size + size // 10) + more
    why = f"the weights take {mib(size)} MiB, and the engine some more"
    ways = spreads(choice, visible(devices, environment))
    if not ways:
        return Estimate(MemoryNeed(total, ((),), source, firm=False), why, (Part(RAM, "weights", total),))
    options = tuple(shares(way, [-(-total // len(way.names))] * len(way.names)) for way in ways)
    parts = tuple(Part(share.device or "GPU", "weights", share.size) for share in options[0])
    return Estimate(MemoryNeed(MARGIN, options, source, firm=False), why, parts)


def cpu_cache(environment: Mapping[str, str]) -> int:
    """MiB that vLLM keeps for its cache on a machine without GPUs."""
    return int(_finite(environment.get("VLLM_CPU_KVCACHE_SPACE", ""), CPU_CACHE) * 1024)


def _folder(name: str, environment: Mapping[str, str]) -> Path | None:
    """The folder with the files of a model: the one that is named, or the newest download of the repository."""
    if os.path.isdir(name):
        return Path(name)
    if name.count("/") != 1 or ".." in name:
        return None
    home = Path(environment.get("HOME") or "/")
    return newest_snapshot(repository(hub_folder(home, environment), name))


def _folder_size(folder: Path | None) -> int:
    if folder is None:
        return 0
    try:
        files = list(islice(folder.iterdir(), FILE_LIMIT))
        for suffix in (".safetensors", ".bin"):
            found = [path for path in files if path.suffix == suffix]
            # A repository may hold the same weights once more, in one file.
            several = [path for path in found if not path.name.startswith("consolidated")] or found
            if size := sum(path.stat().st_size for path in several):
                return size
    except OSError:
        pass
    return 0


def _number(argv: Sequence[str], flags: Sequence[str], default: float) -> float:
    for at, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name in flags:
            return _finite(value if equals else "".join(argv[at + 1 : at + 2]), default)
    return default


def _finite(text: str, default: float) -> float:
    try:
        number = float(text)
    except ValueError:
        return default
    return number if math.isfinite(number) else default
