"""Look everywhere: disks, engines, running servers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePath

from attrs import evolve

from llamaswap.discover.config_writer import FoundModel, ScanResult, gguf_models
from llamaswap.discover.disk import (
    Enough,
    engines,
    files,
    hub_folder,
    hub_models,
    model_folders,
    ollama_folders,
    ollama_models,
    patient,
)
from llamaswap.discover.servers import Ask, ask, servers


def survey(
    home: Path,
    environ: Mapping[str, str],
    folders: Sequence[Path] = (),
    *,
    which: Callable[[str], str | None] = shutil.which,
    ask: Ask | None = ask,
    skip: Collection[int] = (),
    ollama: bool = False,
    enough: Enough = patient,
) -> ScanResult:
    """What there is; only in `folders` for models where some are given.

    `ask` None asks no running servers, `skip` are ports not to ask. `ollama` also tells the models in Ollama's store,
    as llama-server would serve them; beside a running Ollama they would be told twice.
    """
    installed = engines(which)
    program = installed.get("llama-server", "llama-server")
    seen: set[str] = set()
    models: list[FoundModel] = []
    for folder in folders or model_folders(home, environ):
        paths = []
        for path in files(folder, ".gguf", enough):
            real = os.path.realpath(path)
            if real not in seen:
                seen.add(real)
                paths.append(path)
        models += gguf_models(paths, program)
    if not folders:
        models += hub_models(hub_folder(home, environ), installed, enough)
    if ollama:
        stores = dict.fromkeys(Path(os.path.realpath(path)) for path in ollama_folders(home, environ))
        in_store = partial(ollama_models, program=program, enough=enough)
        models += next(filter(None, map(in_store, stores)), [])
    models = [evolve(model, bytes=sum(map(_size, model.files))) for model in models if _speakable(model)]
    return ScanResult(tuple(models), tuple(servers(ask, skip=skip)) if ask else (), installed, complete=not enough())


def _size(path: PurePath) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _speakable(model: FoundModel) -> bool:
    """Whether a configuration can say it: a line feed in a file's name would be another line of it, `${` a macro."""
    return all(text.isprintable() and "${" not in text for text in (*model.words, model.note))
