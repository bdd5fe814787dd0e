"""What the models of a configuration need and this machine does not have: programs, and files of models.

Neither is an error of the configuration, because the file may be meant for another machine.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

from attrs import frozen

from llamaswap.config import Model
from llamaswap.config.command_line import words
from llamaswap.config.schema.hosts import HERE
from llamaswap.scheduling.hosts import HostFacts, allowed_by, shown

FILE_FLAGS = frozenset(("-m", "--model", "--mmproj", "--lora", "-md", "--model-draft"))
FILE_SUFFIXES = (".gguf", ".ggml", ".bin", ".safetensors")
ELSEWHERE = frozenset(("docker", "podman", "nerdctl", "ssh"))  # these start the server where other files are


def missing_programs(
    models: Iterable[Model], which: Callable[[str], str | None] = shutil.which
) -> dict[str, list[str]]:
    """The programs that are not installed, each with the models that need it."""
    return _missing(models, lambda command: command[:1], which)


def missing_files(models: Iterable[Model], exists: Callable[[str], object] = os.path.exists) -> dict[str, list[str]]:
    """The files of models (-m and the like) that do not exist, each with the models that need it."""
    return _missing(models, _files, exists)


def _missing(
    models: Iterable[Model], needed: Callable[[Sequence[str]], Iterable[str]], there: Callable[[str], object]
) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for model in sorted((one for one in models if not one.replica_of), key=lambda one: one.id):
        for name in needed([word.text for word in words(model.cmd)]):
            if not there(name):
                found.setdefault(name, []).append(model.id)
    return found


def _files(command: Sequence[str]) -> Iterator[str]:
    if ELSEWHERE & {os.path.basename(word) for word in command[:3]}:
        return
    for word, following in pairwise((*command, "")):
        flag, equals, value = word.partition("=")
        name = value if equals else following
        # Otherwise it may be the name of a repository, or of a Python module.
        if flag in FILE_FLAGS and (os.path.isabs(name) or name.endswith(FILE_SUFFIXES)):
            yield name


@frozen
class NeededFiles:
    """What the command of a model needs on its host. `paths` may be its weights, or folders of them."""

    program: str
    files: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()


def needed_files(model: Model) -> NeededFiles:
    """What the command of a model needs. Relative paths are left out: they depend on where the server is started."""
    command = [word.text for word in words(model.cmd)]
    named = [text for word in command[1:] for text in (word, word.partition("=")[2]) if os.path.isabs(text)]
    return NeededFiles(command[0] if command else "", tuple(filter(os.path.isabs, _files(command))), tuple(named))


def lacking(
    needs: Mapping[str, NeededFiles],
    which: Callable[[str], str | None] = shutil.which,
    exists: Callable[[str], object] = os.path.exists,
) -> dict[str, str]:
    """What this machine lacks for each model: its program, or else its file."""
    found: dict[str, str] = {}
    for model, need in needs.items():
        lacks = [need.program] if need.program and not which(need.program) else []
        lacks += [name for name in need.files if not exists(name)]
        if lacks:
            found[model] = lacks[0]
    return found


def host_findings(models: Iterable[Model], hosts: Mapping[str, HostFacts]) -> list[str]:
    """A sentence for each program and file that a host lacks, if `place` lets the model run there."""
    found: dict[tuple[str, str], list[str]] = {}
    for model in models:
        for host in allowed_by(hosts, model.place):
            lacking = host in hosts and not model.replica_of and hosts[host].missing.get(model.id)
            if lacking:
                found.setdefault((host, lacking), []).append(model.id)
    return [f"{shown(host)} lacks {name} (needed by {', '.join(needing)})" for (host, name), needing in found.items()]


def findings(given: Iterable[Model]) -> list[str]:
    """A sentence for each program and file that this machine lacks, but may need."""
    models = [model for model in given if not model.place.hosts or HERE in model.place.hosts]
    return [
        f"{name} {text} (needed by {', '.join(names)})"
        for found, text in (
            (missing_programs(models), "is not on this machine, or not in PATH"),
            (missing_files(models), "does not exist"),
        )
        for name, names in found.items()
    ]
