"""What a model is expected to use before it was ever loaded: the first of several ways that gives an answer.

The engine itself is asked if it can say it without loading; then the header of the model's file, then the sizes of its
files. What the configuration declares is turned into the same record here; what was measured is kept elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

from attrs import define, field

from llamaswap.config.schema.memory import ANY_DEVICE, GPU, GpuChoice
from llamaswap.memory import gguf
from llamaswap.memory.container_command import on_host
from llamaswap.memory.engine_estimate import ask_engine, estimate_from_rows, fit_program
from llamaswap.memory.llama_estimate import estimate_llama, gpu_ways
from llamaswap.memory.llama_files import all_files, model_file, read_files
from llamaswap.memory.llama_flags import Settings, settings_of
from llamaswap.memory.safetensors import (
    MARGIN,
    cpu_cache,
    estimate_share,
    estimate_weights,
    share_engine,
    weights_of,
)
from llamaswap.memory.spread import VISIBLE, Estimate, gpu_names, shares, spreads
from llamaswap.scheduling.memory import RAM, Device, GpuShare, MemoryNeed

CACHE_LIMIT = 256  # estimates that are kept
# Programs whose weights are files that the command names, each loaded as a whole.
FILE_ENGINES = ("whisper-server", "whisper-cli", "sd-server", "sd", "stable-diffusion")
FILE_MARGIN = 600  # MiB that they use besides the weights
_WEIGHTS = (".bin", ".gguf", ".safetensors", ".ckpt", ".pth", ".pt", ".onnx")
_VARIABLES = (*VISIBLE, "HOME", "PATH", "XDG_CACHE_HOME", "LLAMA_CACHE", "HF_HOME", "HF_HUB_CACHE")
_PREFIXES = ("LLAMA_ARG_", "VLLM_")
Key = tuple[object, ...]


@define(eq=False)
class Estimator:
    """Estimates what commands need, and keeps the answers until a file changes."""

    _kept: dict[Key, Estimate | None] = field(factory=dict, init=False)

    def estimate(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        devices: Mapping[str, Device],
        choice: GpuChoice,
    ) -> Estimate | None:
        """The need of a command and how it is known; None if nothing says it. Blocks for some seconds at most.

        `environment` is the server's, `devices` is the memory of the machine, `choice` the GPUs that the model may use.
        """
        argv, environment = on_host(argv, environment)
        settings = settings_of(argv, environment)
        path = model_file(settings, environment)
        totals = tuple((name, devices[name].total) for name in sorted(devices))
        variables = tuple(
            (name, environment[name])
            for name in sorted(environment)
            if name in _VARIABLES or name.startswith(_PREFIXES)
        )
        key: Key = (tuple(argv), variables, totals, choice, _states(argv, path, settings, environment))
        if key not in self._kept:
            while len(self._kept) >= CACHE_LIMIT:
                self._kept.pop(next(iter(self._kept)), None)
            self._kept[key] = _estimate(argv, environment, devices, choice, settings, path)
        return self._kept[key]


def declared_need(sizes: Mapping[str, int], choice: GpuChoice, devices: Mapping[str, Device]) -> MemoryNeed:
    """The need of a model whose `memory` is in the configuration, as MiB of `gpu`, `gpu0` and so on, and `ram`.

    `gpu` is spread evenly over the GPUs that llamaswap chooses; if it chooses none, over all, as large as they are. On
    a machine without GPUs everything is RAM.
    """
    named = {name: size for name, size in sizes.items() if name not in (ANY_DEVICE, GPU, RAM)}
    total = sizes.get(GPU, 0) + sizes.get(ANY_DEVICE, 0)
    gpus = {name: devices[name] for name in gpu_names(devices)}
    ram = sizes.get(RAM, 0)
    if not gpus:
        return MemoryNeed(ram + total + sum(named.values()))
    options = []
    for way in spreads(choice, gpus) if total else []:
        even = "" in way.names or choice.ids
        weights = [1] * len(way.names) if even or sum(way.totals) == 0 else way.totals
        options.append(shares(way, [-(-total * weight // sum(weights)) for weight in weights]))
    fixed = tuple(GpuShare(size, name) for name, size in named.items() if size)
    return MemoryNeed(ram, tuple(_joined(option, fixed) for option in options) or (fixed,))


def _joined(option: tuple[GpuShare, ...], fixed: tuple[GpuShare, ...]) -> tuple[GpuShare, ...]:
    """An option together with what is needed of certain GPUs; a GPU of both has one share."""
    if not fixed:
        return option
    found = {share.device: share.size for share in fixed}
    free = [share for share in option if not share.device]
    for share in option:
        if share.device:
            found[share.device] = found.get(share.device, 0) + share.size
    return (*(GpuShare(size, device) for device, size in found.items()), *free)


def _estimate(
    argv: Sequence[str],
    environment: Mapping[str, str],
    devices: Mapping[str, Device],
    choice: GpuChoice,
    settings: Settings,
    path: Path | None,
) -> Estimate | None:
    """The first rung of the ladder that answers."""
    if any(PurePath(word).name.startswith(FILE_ENGINES) for word in argv[:2]):
        size = sum(_size(file) for file in _named_files(argv))
        return estimate_weights(size, devices, environment, choice, FILE_MARGIN, "gguf") if size else None
    engine = share_engine(argv)
    if engine is not None and (found := estimate_share(engine, argv, devices, environment, choice)):
        return found
    if engine is None and path is not None and gguf.is_gguf(path):
        return _estimate_gguf(argv, environment, devices, choice, settings, path)
    if size := weights_of(argv, environment):
        return estimate_weights(
            size, devices, environment, choice, MARGIN if engine is None else cpu_cache(environment)
        )
    return None


def _estimate_gguf(
    argv: Sequence[str],
    environment: Mapping[str, str],
    devices: Mapping[str, Device],
    choice: GpuChoice,
    settings: Settings,
    path: Path,
) -> Estimate | None:
    """What the engine says, else what the header of the file says."""
    try:
        files = read_files(path, settings, environment)
    except (OSError, ValueError):
        return None  # also GgufError
    if not files.model.layers:
        return None  # another kind of model, such as one for images
    ways = gpu_ways(settings, devices, environment, choice)
    program = fit_program(argv, environment)
    if program is not None and files.draft is None:
        try:
            rows = ask_engine(program, path, settings, environment)
            return estimate_from_rows(rows, files, settings, ways)
        except (OSError, ValueError):
            pass  # an older program, or a driver that does not answer: the header says about the same
    return estimate_llama(files, settings, ways)


def _states(
    argv: Sequence[str], path: Path | None, settings: Settings, environment: Mapping[str, str]
) -> tuple[object, ...]:
    """The sizes and times of the files that an estimate depends on."""
    try:
        files = all_files(path, settings, environment) if path is not None else []
    except gguf.GgufError:
        files = []
    return tuple(_state(file) for file in (*files, *(Path(word) for word in argv[:64] if os.sep in word)))


def _state(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def _named_files(argv: Sequence[str]) -> list[Path]:
    """The files with weights that a command names."""
    words = (word.partition("=")[2] if word.startswith("--") and "=" in word else word for word in argv[1:])
    return [Path(word) for word in dict.fromkeys(words) if word.lower().endswith(_WEIGHTS)]


def _size(path: Path) -> int:
    state = _state(path)
    return state[0] if state else 0
