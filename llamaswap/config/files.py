"""Configuration files on disk: their names, their text, and whether they changed.

`-config` names one file, `-config-dir` a folder whose *.yml and *.yaml follow it in byte order.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from attrs import Factory, define

from llamaswap.config.private_files import private_folder
from llamaswap.config.yaml_tree import ConfigText
from llamaswap.errors import ConfigError, Problem

SUFFIXES = (".yml", ".yaml")
MAX_BYTES = 32 * 1024 * 1024  # of a file; a larger one is a mistake, and reading it would stall the service

Fingerprint = Mapping[str, tuple[int, int]]
"""(mtime in ns, size) of each existing file, symlinks followed."""


def read_sources(config_path: str | None, config_dir: str | None) -> list[ConfigText]:
    """The texts of the file and of the folder's files, in this order. Raises ConfigError, naming the file or folder."""
    paths = [config_path] if config_path else []
    if config_dir:
        try:
            found = files_in(config_dir)
        except OSError as error:
            raise _error(f"-config-dir {config_dir}: cannot be read: {error.strerror}", config_dir)
        if config_path and os.path.abspath(config_path) in [os.path.abspath(path) for path in found]:
            raise _error(f"-config {config_path} is also present in -config-dir {config_dir}", config_path)
        paths += found
    if not paths:
        raise _error(
            f"no configuration sources: {config_dir} holds no *.yml or *.yaml"
            if config_dir
            else "no configuration sources: give -config or -config-dir",
            None,
        )
    return [ConfigText(path, _text(path)) for path in paths]


def files_in(folder: str) -> list[str]:
    """Paths of the folder's configuration files, sorted by bytes, without those of subfolders. Raises OSError."""
    with os.scandir(folder) as entries:
        names = [entry.path for entry in entries if entry.name.endswith(SUFFIXES) and not entry.is_dir()]
    return sorted(names, key=os.fsencode)


def _text(path: str) -> str:
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _error(f"{path}: cannot be read: {error.strerror}", path)
    if len(content) > MAX_BYTES:
        raise _error(f"{path}: larger than {MAX_BYTES} bytes", path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError([Problem("not UTF-8 text", file=path, line=line, hint="save the file as UTF-8")])


def _error(message: str, file: str | None) -> ConfigError:
    return ConfigError([Problem(message, file=None if file and file in message else file)])


def fingerprint(config_path: str | None, config_dir: str | None) -> Fingerprint:
    """The state of the files, for comparison. A folder that cannot be read has no files."""
    paths = [config_path] if config_path else []
    if config_dir:
        try:
            paths += files_in(config_dir)
        except OSError:
            pass  # missing now; it counts as changed when it returns
    found: dict[str, tuple[int, int]] = {}
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            continue
        found[path] = (status.st_mtime_ns, status.st_size)
    return found


@define
class FileWatch:
    """Finds changes between polls. A file that disappears is not a change, one that returns is.

    An emptied file counts at the second poll: most editors, and `cp`, empty a file before they write it, and an empty
    configuration has no models.
    """

    config_path: str | None
    config_dir: str | None
    _file: Fingerprint = Factory(dict)
    _folder: Fingerprint = Factory(dict)
    _seen: bool = False
    _maybe_emptied: bool = False

    def changed(self) -> bool:
        """Poll: whether there is something new to load. The first call only records the state."""
        file = fingerprint(self.config_path, None)
        folder = fingerprint(None, self.config_dir)
        self._maybe_emptied = not self._maybe_emptied and (_emptied(self._file, file) or _emptied(self._folder, folder))
        if self._maybe_emptied:
            return False
        fired = self._seen and ((bool(file) and file != self._file) or (bool(folder) and folder != self._folder))
        self._file, self._folder, self._seen = file, folder, True
        return fired


def _emptied(before: Fingerprint, now: Fingerprint) -> bool:
    """Whether one of the files became empty."""
    return any(size == 0 and before.get(path, (0, 0))[1] for path, (_, size) in now.items())


def folder_problem(path: str, *, private: bool = False) -> str | None:
    """Why files cannot be made in the folder `path`, None if they can; it may be created first.

    With `private` it must belong to our user, and others must not write to it.
    """
    place = Path(path).absolute()
    try:
        if private and place.is_dir():
            with private_folder(place):
                pass
        while not os.path.lexists(place):
            place = place.parent
    except OSError as error:
        reason = error.strerror or str(error)
        return reason if str(place) in reason else f"{place}: {reason}"
    if not place.is_dir():
        return f"{place} is not a directory"
    return None if os.access(place, os.W_OK | os.X_OK) else f"{place} is not writable"


def store_problem(path: str) -> str | None:
    """Why `path` cannot be the file of the activity store, None if it can."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        folder = os.path.dirname(path) or "."
        if os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK):
            return None
        return f"not writable: its folder {folder} is missing or not writable"
    except (OSError, ValueError) as error:
        return str(getattr(error, "strerror", None) or error)
    if stat.S_ISDIR(status.st_mode):
        return "is a directory"
    return None if os.access(path, os.W_OK) else "not writable"
