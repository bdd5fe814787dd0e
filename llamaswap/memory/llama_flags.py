"""Reads the command lines of the programs that serve GGUF files: llama-server, koboldcpp and llama_cpp.server.

Each has its own flags for the same settings; here they get one name each. A value that cannot be read counts as unset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath

from attrs import Factory, frozen

_OFF = ("0", "off", "false", "no", "disabled")
_FLASH_WORDS = ("on", "off", "auto", "0", "1", "-1", "true", "false")


@frozen
class Engine:
    """The flags of a program: setting -> its spellings; spelling -> (setting, value) for those without a value.

    `defaults` are what the program takes if the command says nothing, where it differs from llama-server, and
    `cache_types` its own names for the types of the cache.
    """

    values: Mapping[str, str]
    switches: Mapping[str, tuple[str, str]]
    environment: Mapping[str, tuple[str, ...]] = Factory(dict)
    defaults: Mapping[str, str] = Factory(dict)
    cache_types: Mapping[str, str] = Factory(dict)


LLAMA_SERVER = Engine(
    values={
        "model": "-m --model",
        "hf_repo": "-hf -hfr --hf-repo",
        "hf_file": "-hff --hf-file",
        "mmproj": "-mm --mmproj",
        "draft": "-md --model-draft --spec-draft-model",
        "draft_repo": "-hfd -hfrd --hf-repo-draft --spec-draft-hf",
        "gpu_layers": "-ngl --gpu-layers --n-gpu-layers",
        "draft_gpu_layers": "-ngld --gpu-layers-draft --n-gpu-layers-draft --spec-draft-ngl",
        "cpu_moe": "-ncmoe --n-cpu-moe",
        "cpu_ffn": "-ncffn --n-cpu-ffn",
        "override": "-ot --override-tensor",
        "context": "-c --ctx-size",
        "parallel": "-np --parallel",
        "batch": "-b --batch-size",
        "ubatch": "-ub --ubatch-size",
        "key_type": "-ctk --cache-type-k",
        "value_type": "-ctv --cache-type-v",
        "draft_key_type": "-ctkd --cache-type-k-draft --spec-draft-type-k",
        "draft_value_type": "-ctvd --cache-type-v-draft --spec-draft-type-v",
        "flash": "-fa --flash-attn",
        "tensor_split": "-ts --tensor-split",
        "main_gpu": "-mg --main-gpu",
        "split_mode": "-sm --split-mode",
        "device": "-dev --device",
        "load_mode": "-lm --load-mode",
        "fit": "-fit --fit",
        "speculation": "--spec-type",
    },
    switches={
        "--mmap": ("mmap", "1"),
        "--no-mmap": ("mmap", "0"),
        "-dio": ("mmap", "0"),
        "--direct-io": ("mmap", "0"),
        "--mlock": ("mlock", "1"),
        "-kvo": ("kv_offload", "1"),
        "--kv-offload": ("kv_offload", "1"),
        "-nkvo": ("kv_offload", "0"),
        "--no-kv-offload": ("kv_offload", "0"),
        "--swa-full": ("swa_full", "1"),
        "-kvu": ("unified", "1"),
        "--kv-unified": ("unified", "1"),
        "-no-kvu": ("unified", "0"),
        "--no-kv-unified": ("unified", "0"),
        "-nr": ("repack", "0"),
        "--no-repack": ("repack", "0"),
        "--repack": ("repack", "1"),
        "-cmoe": ("cpu_moe", "all"),
        "--cpu-moe": ("cpu_moe", "all"),
        "--no-mmproj": ("use_mmproj", "0"),
        "--no-mmproj-offload": ("mmproj_offload", "0"),
        "--mtp": ("speculation", "draft-mtp"),
    },
    environment={
        "model": ("LLAMA_ARG_MODEL",),
        "hf_repo": ("LLAMA_ARG_HF_REPO",),
        "hf_file": ("LLAMA_ARG_HF_FILE",),
        "mmproj": ("LLAMA_ARG_MMPROJ",),
        "draft": ("LLAMA_ARG_SPEC_DRAFT_MODEL", "LLAMA_ARG_MODEL_DRAFT"),
        "draft_repo": ("LLAMA_ARG_SPEC_DRAFT_HF_REPO", "LLAMA_ARG_HFD_REPO"),
        "gpu_layers": ("LLAMA_ARG_N_GPU_LAYERS",),
        "draft_gpu_layers": ("LLAMA_ARG_N_GPU_LAYERS_DRAFT",),
        "cpu_moe": ("LLAMA_ARG_N_CPU_MOE",),
        "cpu_ffn": ("LLAMA_ARG_N_CPU_FFN",),
        "override": ("LLAMA_ARG_OVERRIDE_TENSOR",),
        "context": ("LLAMA_ARG_CTX_SIZE",),
        "parallel": ("LLAMA_ARG_N_PARALLEL",),
        "batch": ("LLAMA_ARG_BATCH",),
        "ubatch": ("LLAMA_ARG_UBATCH",),
        "key_type": ("LLAMA_ARG_CACHE_TYPE_K",),
        "value_type": ("LLAMA_ARG_CACHE_TYPE_V",),
        "draft_key_type": ("LLAMA_ARG_SPEC_DRAFT_CACHE_TYPE_K",),
        "draft_value_type": ("LLAMA_ARG_SPEC_DRAFT_CACHE_TYPE_V",),
        "flash": ("LLAMA_ARG_FLASH_ATTN",),
        "tensor_split": ("LLAMA_ARG_TENSOR_SPLIT",),
        "main_gpu": ("LLAMA_ARG_MAIN_GPU",),
        "split_mode": ("LLAMA_ARG_SPLIT_MODE",),
        "device": ("LLAMA_ARG_DEVICE",),
        "load_mode": ("LLAMA_ARG_LOAD_MODE",),
        "mmap": ("LLAMA_ARG_MMAP",),
        "mlock": ("LLAMA_ARG_MLOCK",),
        "kv_offload": ("LLAMA_ARG_KV_OFFLOAD",),
        "swa_full": ("LLAMA_ARG_SWA_FULL",),
        "unified": ("LLAMA_ARG_KV_UNIFIED",),
        "repack": ("LLAMA_ARG_REPACK",),
        "mmproj_offload": ("LLAMA_ARG_MMPROJ_OFFLOAD",),
        "fit": ("LLAMA_ARG_FIT",),
        "speculation": ("LLAMA_ARG_SPEC_TYPE",),
    },
)
LLAMA_CPP_PYTHON = Engine(
    values={
        "model": "--model",
        "mmproj": "--clip_model_path",
        "gpu_layers": "--n_gpu_layers",
        "context": "--n_ctx",
        "ubatch": "--n_ubatch --n_batch",
        "key_type": "--type_k",
        "value_type": "--type_v",
        "tensor_split": "--tensor_split",
        "main_gpu": "--main_gpu",
        "mmap": "--use_mmap",
        "mlock": "--use_mlock",
        "kv_offload": "--offload_kqv",
        "flash": "--flash_attn",
    },
    switches={},
    cache_types={"0": "f32", "1": "f16", "2": "q4_0", "3": "q4_1", "6": "q5_0", "7": "q5_1", "8": "q8_0"},
    defaults={"gpu_layers": "0", "context": "2048", "parallel": "1", "fit": "off", "flash": "off", "swa_full": "1"},
)
KOBOLDCPP = Engine(
    values={
        "model": "--model -m",
        "mmproj": "--mmproj",
        "draft": "--draftmodel",
        "gpu_layers": "--gpulayers --gpu-layers --n-gpu-layers -ngl",
        "draft_gpu_layers": "--draftgpulayers",
        "cpu_moe": "--moecpu --ncmoe --n-cpu-moe -ncmoe",
        "override": "--overridetensors --override-tensor -ot",
        "context": "--contextsize --ctx-size -c",
        "ubatch": "--batchsize --blasbatchsize --batch-size -b",
        "key_type": "--quantkv",
        "value_type": "--quantkv",
        "tensor_split": "--tensor_split --tensorsplit --tensor-split -ts",
        "main_gpu": "--maingpu --main-gpu -mg",
    },
    switches={
        "--usecpu": ("device", "none"),
        "--usemmap": ("mmap", "1"),
        "--usemlock": ("mlock", "1"),
        "--mlock": ("mlock", "1"),
        "--lowvram": ("kv_offload", "0"),
        "--useswa": ("swa_full", "0"),
        "--noflashattention": ("flash", "off"),
    },
    cache_types={"0": "f16", "1": "q8_0", "2": "q4_0"},
    defaults={"context": "8192", "parallel": "1", "mmap": "0", "fit": "off", "swa_full": "1"},
)


@frozen
class Settings:
    """The settings of a command, as text."""

    values: Mapping[str, str]

    def text(self, name: str) -> str:
        """A setting, empty if it is unset."""
        return self.values.get(name, "")

    def number(self, name: str, default: int) -> int:
        """A whole number."""
        try:
            return int(self.values.get(name, default))
        except ValueError:
            return default

    def on(self, name: str, default: bool) -> bool:
        """Whether a setting is on."""
        given = self.values.get(name)
        return default if given is None else given.lower() not in _OFF

    def layers(self, name: str, all_layers: int, default: int | None = None) -> int:
        """A number of layers; `auto` and `all` are all of them, and so is an unset one unless there is a `default`."""
        number = self.number(name, -1)
        if name not in self.values and default is not None:
            return default
        return all_layers if number < 0 else min(number, all_layers)

    def ratios(self) -> list[float]:
        """How the weights are split over GPUs; empty if the program decides that."""
        try:
            return [max(0.0, float(part)) for part in self.text("tensor_split").replace("/", ",").split(",") if part]
        except ValueError:
            return []


def program_names(argv: Sequence[str]) -> list[str]:
    """The names of what a command may run: its words without flags and their values, but with python's modules."""
    pairs = zip(("", *argv), argv, strict=False)
    words = (word for before, word in pairs if not before.startswith("-") or before == "-m")
    return [PurePath(word).name for word in words if not word.startswith("-")]


def engine_of(argv: Sequence[str]) -> Engine:
    """The program of a command, llama-server if it is unknown."""
    for name in program_names(argv):
        if name.startswith("koboldcpp"):
            return KOBOLDCPP
        if name == "llama_cpp.server":
            return LLAMA_CPP_PYTHON
    return LLAMA_SERVER


def settings_of(argv: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """The settings of a command: its flags, else its environment, else the program's defaults."""
    engine = engine_of(argv)
    found = dict(engine.defaults)
    for setting, names in engine.environment.items():
        for name in names:
            if name in environment:
                found[setting] = environment[name]
            elif name.replace("LLAMA_ARG_", "LLAMA_ARG_NO_") in environment:
                found[setting] = "0"
    found.update(_flags(engine, argv))
    for setting in ("key_type", "value_type"):
        if setting in found:
            found[setting] = engine.cache_types.get(found[setting], found[setting])
    return Settings(found)


def _flags(engine: Engine, argv: Sequence[str]) -> dict[str, str]:
    settings: dict[str, list[str]] = {}
    for setting, spellings in engine.values.items():
        for spelling in spellings.split():
            settings.setdefault(spelling, []).append(setting)
    found: dict[str, str] = {}
    words = list(argv)
    at = 0
    while at < len(words):
        word, _, joined = words[at].partition("=") if words[at].startswith("--") else (words[at], "", "")
        at += 1
        if word in engine.switches:
            setting, value = engine.switches[word]
            found[setting] = value
            continue
        names = settings.get(word)
        if names is None:
            continue
        values = [joined] if joined else _values(names[0], words[at : at + 32])
        at += 0 if joined else len(values)
        for setting in names:
            if setting == "override" and setting in found:
                values = [found[setting], *values]
            found[setting] = ",".join(values) or "on"
    return found


def _values(setting: str, words: Sequence[str]) -> list[str]:
    """The value of a flag: the next word, or the numbers that follow, or nothing if the flag may stand alone."""
    if setting == "flash":
        return list(words[:1]) if words and words[0].lower() in _FLASH_WORDS else []
    if setting != "tensor_split":
        return list(words[:1])
    found: list[str] = []
    for word in words:
        if found and not word.replace(".", "", 1).isdigit():
            break
        found.append(word)
    return found
