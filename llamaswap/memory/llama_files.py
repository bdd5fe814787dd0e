"""The files that a command of llama-server names: model, draft model and projector, also in the caches of downloads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from llamaswap.hub_cache import hub_folder, newest_snapshot, repository
from llamaswap.memory import gguf
from llamaswap.memory.llama_estimate import LlamaModel
from llamaswap.memory.llama_flags import Settings

DEFAULT_QUANTS = ("q4_k_m", "q4_0", "q8_0")  # what llama-server takes of a repository if the command names none
FILE_LIMIT = 2000  # names of a folder that are read


def model_file(settings: Settings, environment: Mapping[str, str]) -> Path | None:
    """The model's first file, None if the command names none, or one that has yet to be downloaded."""
    if settings.text("model"):
        return Path(settings.text("model"))
    return _of_repository(settings.text("hf_repo"), settings.text("hf_file"), environment)


def _of_repository(given: str, file: str, environment: Mapping[str, str]) -> Path | None:
    """The file of a repository, given as NAME or NAME:QUANT."""
    name, _, quant = given.partition(":")
    return downloaded(name, file or quant, environment) if name else None


def downloaded(name: str, wanted: str, environment: Mapping[str, str], *, projector: bool = False) -> Path | None:
    """The file of a repository that is in a cache; `wanted` is its name or its quantisation."""
    found = [path for path in _cached(name, environment) if ("mmproj" in path.name.lower()) == projector]
    for part in [wanted.lower()] if wanted else DEFAULT_QUANTS:
        for path in found:
            if part in path.name.lower():
                return path
    return found[0] if found and (projector or not wanted) else None


def read_files(path: Path, settings: Settings, environment: Mapping[str, str]) -> LlamaModel:
    """What the estimate needs of all files of a command. Raises GgufError or OSError."""
    draft = _draft_file(settings, environment)
    return LlamaModel(
        gguf.read(path), None if draft is None else gguf.read(draft), _projector_size(settings, environment)
    )


def _draft_file(settings: Settings, environment: Mapping[str, str]) -> Path | None:
    if settings.text("draft"):
        return Path(settings.text("draft"))
    return _of_repository(settings.text("draft_repo"), "", environment)


def all_files(path: Path, settings: Settings, environment: Mapping[str, str]) -> list[Path]:
    """The files whose change changes the estimate. Raises GgufError."""
    draft, projector = _draft_file(settings, environment), settings.text("mmproj")
    return [*gguf.shards(path), *([draft] if draft else []), *([Path(projector)] if projector else [])]


def _projector_size(settings: Settings, environment: Mapping[str, str]) -> int:
    if not settings.on("use_mmproj", True):
        return 0
    if settings.text("mmproj"):
        return Path(settings.text("mmproj")).stat().st_size
    name = settings.text("hf_repo").partition(":")[0]
    path = downloaded(name, "", environment, projector=True) if name and not settings.text("model") else None
    return path.stat().st_size if path else 0


def _cached(name: str, environment: Mapping[str, str]) -> list[Path]:
    """The GGUF files of a repository: in llama.cpp's own cache, and in Hugging Face's."""
    home = Path(environment.get("HOME") or "/")
    cache = Path(environment.get("XDG_CACHE_HOME") or home / ".cache")
    own = Path(environment.get("LLAMA_CACHE") or cache / "llama.cpp")
    found = _gguf_files(own, name.replace("/", "_") + "_")
    if "/" in name and ".." not in name:
        snapshot = newest_snapshot(repository(hub_folder(home, environment), name))
        found += _gguf_files(snapshot, "") if snapshot else []
    return found


def _gguf_files(folder: Path, prefix: str) -> list[Path]:
    try:
        with_limit: Sequence[Path] = [path for _, path in zip(range(FILE_LIMIT), folder.iterdir(), strict=False)]
    except OSError:
        return []
    return sorted(path for path in with_limit if path.name.startswith(prefix) and path.suffix.lower() == ".gguf")
