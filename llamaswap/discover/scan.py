"""Searches disks for models, PATH for engines, and the loopback interface for servers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePath

from attrs import evolve

from llamaswap.discover.config_writer import FoundModel, ScanResult, gguf_models
from llamaswap.discover.disk import (
    ShouldStop,
    engines,
    files,
    hub_models,
    model_folders,
    never_stop,
    ollama_folders,
    ollama_models,
)
from llamaswap.discover.servers import Ask, ask, servers
from llamaswap.hub_cache import hub_folder


def scan(
    home: Path,
    environ: Mapping[str, str],
    folders: Sequence[Path] = (),
    *,
    which: Callable[[str], str | None] = shutil.which,
    ask: Ask | None = ask,
    skip: Collection[int] = (),
    ollama: bool = False,
    should_stop: ShouldStop = never_stop,
) -> ScanResult:
    """Everything found; with `folders` models are only searched there.

    With `ask` None no running servers are asked; ports in `skip` are not asked. With `ollama` the models in Ollama's
    store are found as well, for llama-server; a running Ollama would list them a second time.
    """
    installed = engines(which)
    program = installed.get("llama-server", "llama-server")
    seen: set[str] = set()
    models: list[FoundModel] = []
    for folder in folders or model_folders(home, environ):
        paths = []
        for path in files(folder, ".gguf", should_stop):
            real = os.path.realpath(path)
            if real not in seen:
                seen.add(real)
                paths.append(path)
        models += gguf_models(paths, program)
    if not folders:
        models += hub_models(hub_folder(home, environ), installed, should_stop)
    if ollama:
        stores = dict.fromkeys(Path(os.path.realpath(path)) for path in ollama_folders(home, environ))
        in_store = partial(ollama_models, program=program, should_stop=should_stop)
        models += next(filter(None, map(in_store, stores)), [])
    models = [evolve(model, bytes=sum(map(_size, model.files))) for model in models if _is_writable(model)]
    return ScanResult(
        tuple(models), tuple(servers(ask, skip=skip)) if ask else (), installed, complete=not should_stop()
    )


def _size(path: PurePath) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _is_writable(model: FoundModel) -> bool:
    """Whether a configuration can contain it: a line feed in a file's name would begin a line, `${` a macro."""
    return all(text.isprintable() and "${" not in text for text in (*model.words, model.note))
