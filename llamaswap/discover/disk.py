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
    manifests = folder / "manifests"
    found: list[FoundModel] = []
    for path in sorted(files(manifests, "", should_stop)):
        if should_stop():
            break
        try:
            layers = json.loads(path.read_text(encoding="utf-8"))["layers"]
            by_kind: dict[str, list[Path]] = {}
            for layer in layers:
                kind = layer["mediaType"].rpartition(".")[2]
                by_kind.setdefault(kind, []).append(folder / "blobs" / layer["digest"].replace(":", "-"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # an incomplete download, or another file
        if not by_kind.get("model") or not os.path.exists(by_kind["model"][0]):
            continue
        found.append(_ollama_model(path.relative_to(manifests), by_kind, program))
    return found


def _ollama_model(manifest: Path, layers: Mapping[str, Sequence[Path]], program: str) -> FoundModel:
    *place, name, tag = manifest.parts
    words = [program, "-m", str(layers["model"][0])]
    for kind, flag in (("projector", "--mmproj"), ("adapter", "--lora")):
        for path in layers.get(kind, ()):
            words += [flag, str(path)]
    words += _ollama_parameters(layers.get("params", ()))
    namespace = [part for part in place[1:] if part != "library"]
    full = "/".join([*namespace, name]) + (f":{tag}" if tag != "latest" else "")
    return FoundModel(model_name(full), tuple(words), f"Ollama: {full}", files=tuple(layers["model"]))


def _ollama_parameters(paths: Sequence[Path]) -> list[str]:
    """The parameters that llama-server has flags for; it knows stop words from the model's template."""
    flags = {"num_ctx": "-c", "temperature": "--temp", "top_k": "--top-k", "top_p": "--top-p", "min_p": "--min-p"}
    words: list[str] = []
    for path in paths:
        try:
            parameters = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        for name, flag in flags.items():
            if isinstance(parameters, dict) and isinstance(parameters.get(name), int | float):
                words += [flag, f"{parameters[name]:g}"]
    return words


def engines(which: Callable[[str], str | None] = shutil.which) -> dict[str, str]:
    """Engines on PATH."""
    found = ((name, which(name)) for name in ENGINES)
    return {name: path for name, path in found if path}
