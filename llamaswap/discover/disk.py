"""What is on this machine's disks: GGUF folders, the Hugging Face cache, Ollama's models, and engines on PATH.

A disk may be slow or huge: `should_stop` is called at every step, and ends the search.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import evolve

from llamaswap.discover.config_writer import FoundModel, gguf_models, model_name
from llamaswap.hub_cache import newest_snapshot

MAX_DEPTH = 6  # levels of folders below a model folder; the usual layout is PUBLISHER/MODEL/FILE
MAX_FILES = 5000  # entries read of one folder and those in it
ENGINES = (
    *("llama-server", "llamafile", "koboldcpp", "vllm", "sglang", "mlx_lm.server", "tabbyapi", "ollama"),
    *("whisper-server", "sd-server", "podman", "docker"),
)
ShouldStop = Callable[[], bool]


def never_stop() -> bool:
    """A `ShouldStop` for a search without a limit."""
    return False


def model_folders(home: Path, environ: Mapping[str, str]) -> list[Path]:
    """The folders in which programs keep GGUF files."""
    named = [environ[name] for name in ("LLAMA_CACHE", "LLAMA_ARG_MODELS_DIR") if environ.get(name)]
    cache = Path(environ.get("XDG_CACHE_HOME") or home / ".cache")
    folders = (
        *("models", "Models", cache / "llama.cpp", "Library/Caches/llama.cpp", ".lmstudio/models"),
        *(cache / "lm-studio/models", ".local/share/nomic.ai/GPT4All", "jan/models"),
        *("/models", "/srv/models", "/opt/models"),
    )
    return [*map(Path, named), *(home / folder for folder in folders)]


def files(folder: Path, suffix: str, should_stop: ShouldStop = never_stop) -> Iterator[Path]:
    """Files of a folder and the folders in it, without those that cannot be read and without links to folders."""
    waiting, seen = [(folder, 0)], 0
    while waiting:
        here, depth = waiting.pop()
        try:
            entries = sorted(here.iterdir())
        except OSError:
            continue
        for entry in entries:
            seen += 1
            if seen > MAX_FILES or should_stop():
                return
            try:
                is_folder = stat.S_ISDIR(entry.stat().st_mode)
            except OSError:  # no permission, or a broken link
                continue
            if is_folder:
                if depth < MAX_DEPTH and not entry.is_symlink():
                    waiting.append((entry, depth + 1))
            elif entry.name.lower().endswith(suffix):
                yield entry


def hub_models(hub: Path, engines: Mapping[str, str], should_stop: ShouldStop = never_stop) -> list[FoundModel]:
    """Models of the Hugging Face cache: GGUF for llama-server, safetensors for vLLM."""
    found: list[FoundModel] = []
    try:
        repositories = sorted(path for path in hub.iterdir() if path.name.startswith("models--"))
    except OSError:
        return []
    for repository in repositories:
        name = repository.name.removeprefix("models--").replace("--", "/")
        note = f"Hugging Face cache: {name}"
        snapshot = newest_snapshot(repository)
        if should_stop():
            break
        if snapshot is None:
            continue
        ggufs = list(files(snapshot, ".gguf", should_stop))
        tensors = tuple(files(snapshot, ".safetensors", should_stop))
        if ggufs:
            models = gguf_models(ggufs, engines.get("llama-server", "llama-server"))
            found += [evolve(model, note=note) for model in models]
        elif tensors and os.path.exists(snapshot / "config.json"):
            words = (engines.get("vllm", "vllm"), "serve", name)
            active = "vllm" in engines
            found.append(FoundModel(model_name(name.rpartition("/")[2]), words, note, active=active, files=tensors))
    return found


def ollama_folders(home: Path, environ: Mapping[str, str]) -> list[Path]:
    """The folders of Ollama's models: the user's and the service's."""
    given = [Path(environ["OLLAMA_MODELS"])] if environ.get("OLLAMA_MODELS") else []
    return [*given, home / ".ollama/models", Path("/usr/share/ollama/.ollama/models"), Path("/var/lib/ollama/models")]


def ollama_models(
    folder: Path, program: str = "llama-server", should_stop: ShouldStop = never_stop
) -> list[FoundModel]:
    """The models in a folder of Ollama's, which llama-server can serve from their files."""
    return [model for model in _ollama_store(folder, program, should_stop) if isinstance(model, FoundModel)]


def unusable_ollama_models(folder: Path) -> list[str]:
    """A line for each entry in a folder of Ollama's that `ollama_models` leaves out, with the reason."""
    return [line for line in _ollama_store(folder, "", never_stop) if isinstance(line, str)]


def _ollama_store(folder: Path, program: str, should_stop: ShouldStop) -> Iterator[FoundModel | str]:
    """The models of a store, and for what cannot be used its path and the reason."""
    manifests = folder / "manifests"
    for path in sorted(files(manifests, "", should_stop)):
        if should_stop():
            break
        place = path.relative_to(manifests)
        try:
            layers = json.loads(path.read_text(encoding="utf-8"))["layers"]
            by_kind: dict[str, list[Path]] = {}
            for layer in layers:
                kind = layer["mediaType"].rpartition(".")[2]
                by_kind.setdefault(kind, []).append(folder / "blobs" / layer["digest"].replace(":", "-"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            yield f"{place}: it is not a manifest"
            continue
        if not by_kind.get("model"):
            yield f"{place}: it names no file of a model"
        elif not os.path.exists(by_kind["model"][0]):
            yield f"{place}: {by_kind['model'][0]} is missing; the download is incomplete"
        else:
            yield _ollama_model(place, by_kind, program)


def _ollama_model(manifest: Path, layers: Mapping[str, Sequence[Path]], program: str) -> FoundModel:
    *place, name, tag = manifest.parts
    words = [program, "-m", str(layers["model"][0])]
    for kind, flag in (("projector", "--mmproj"), ("adapter", "--lora")):
        for path in layers.get(kind, ()):
            words += [flag, str(path)]
    parameters = _ollama_parameters(layers.get("params", ()))
    words += [word for key in OLLAMA_FLAGS if key in parameters for word in (OLLAMA_FLAGS[key], str(parameters[key]))]
    if parameters.get("use_mmap") is False:
        words.append("--no-mmap")
    namespace = [part for part in place[1:] if part != "library"]
    full = "/".join([*namespace, name])
    unknown = sorted(parameters.keys() - OLLAMA_FLAGS.keys() - {"stop", "use_mmap"})
    return FoundModel(
        model_name(full + (f":{tag}" if tag != "latest" else "")),
        tuple(words),
        f"Ollama: {full}:{tag}",
        files=tuple(layers["model"]),
        aliases=(f"{full}:{tag}",),
        params={"stop": parameters["stop"]} if parameters.get("stop") else {},
        system_prompt="\n".join(filter(None, map(_short_text, layers.get("system", ())))).strip(),
        skipped=(
            *(f"the parameter {key}" for key in unknown),
            *(OLLAMA_SKIPPED[kind] for kind in OLLAMA_SKIPPED if layers.get(kind)),
        ),
    )


# Parameters of a Modelfile -> flags of llama-server.
OLLAMA_FLAGS = {
    "num_ctx": "-c",
    "num_batch": "-b",
    "num_gpu": "-ngl",
    "num_thread": "-t",
    "num_predict": "-n",
    "seed": "--seed",
    "temperature": "--temp",
    "top_k": "--top-k",
    "top_p": "--top-p",
    "min_p": "--min-p",
    "typical_p": "--typical",
    "repeat_penalty": "--repeat-penalty",
    "repeat_last_n": "--repeat-last-n",
    "presence_penalty": "--presence-penalty",
    "frequency_penalty": "--frequency-penalty",
    "mirostat": "--mirostat",
    "mirostat_eta": "--mirostat-lr",
    "mirostat_tau": "--mirostat-ent",
}
OLLAMA_SKIPPED = {
    "template": "the prompt template (llama-server uses the one in the model's file)",
    "messages": "the example messages",
}
MAX_LAYER = 256 * 1024  # bytes of a layer that is text


def _short_text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(MAX_LAYER)
    except (OSError, ValueError):
        return ""


def _ollama_parameters(paths: Sequence[Path]) -> dict[str, Any]:
    """The parameters by name: numbers, switches, and the list of stop words."""
    found: dict[str, Any] = {}
    for path in paths:
        try:
            given = json.loads(_short_text(path))
        except ValueError:
            continue
        if isinstance(given, dict):
            found |= given
    stop = [found["stop"]] if isinstance(found.get("stop"), str) else found.get("stop")
    found["stop"] = [word for word in stop if isinstance(word, str)] if isinstance(stop, list) else []
    numbers = {name: value for name, value in found.items() if isinstance(value, int | float)}
    return {**numbers, "stop": found["stop"]}


def engines(which: Callable[[str], str | None] = shutil.which) -> dict[str, str]:
    """Engines on PATH."""
    found = ((name, which(name)) for name in ENGINES)
    return {name: path for name, path in found if path}
