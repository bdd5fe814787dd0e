"""Earlier texts of the configuration file, kept in a folder beside it: bounded in number and bytes.

`FOLDER/NAME` beside the file holds one plain file for each version, so that an operator can copy one back by hand,
and `index.json` with what is known of them. The files are the truth: a version that the index does not know is shown
all the same, and an index that cannot be read is begun anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import define, evolve, field, frozen

from llamaswap.config.private_files import PrivateFolder, private_folder

FOLDER = ".llamaswap"
INDEX = "index.json"
MOST = 20  # versions: weeks of edits, and a list one can look through
MOST_BYTES = 8 * 1024 * 1024  # of all of them: two of the largest that may be saved, a thousand of the usual
IDENTITY = re.compile(r"(?P<milliseconds>[0-9]{13})-(?P<digest>[0-9a-f]{8})")
LONGEST_WORD = 200  # characters of what a client says of itself


@frozen
class VersionAuthor:
    """Who saved: a client's address and its User-Agent, as far as they are known."""

    address: str = ""
    agent: str = ""


NOBODY = VersionAuthor()


@frozen
class ConfigVersion:
    """One text that was in the file. `at` in unix seconds; `in_force` where the file holds it now.

    `why` is found (it was in the file when the first edit came), saved, restored (`of` names the version), or unknown.
    """

    id: str
    at: float
    size: int
    why: str = "unknown"
    author: VersionAuthor = NOBODY
    of: str = ""
    in_force: bool = False


@define(eq=False)
class ConfigHistory:
    """The versions of one file. `wall` gives unix seconds; `path` is the file itself, not a link to it."""

    path: Path
    wall: Callable[[], float]
    most: int = MOST
    most_bytes: int = MOST_BYTES
    _folder: Path = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._folder = self.path.parent / FOLDER / self.path.name

    @property
    def folder(self) -> Path:
        """Where they are."""
        return self._folder

    def all(self) -> list[ConfigVersion]:
        """Every version, newest first. Raises OSError where another user could have written them."""
        with self._opened() as folder:
            return [] if folder is None else self._all(folder)

    def _all(self, folder: PrivateFolder) -> list[ConfigVersion]:
        known = self._known(folder)
        found = []
        for name in folder.names():
            match = IDENTITY.fullmatch(name)
            if match is None:
                continue
            with contextlib.suppress(OSError):  # gone meanwhile
                found.append(_version(name, int(match["milliseconds"]) / 1000, folder.size(name), known.get(name)))
        return sorted(found, key=lambda version: version.id, reverse=True)

    def beside(self, content: bytes) -> list[ConfigVersion]:
        """Every version, newest first; of those that are `content` the newest is in force."""
        versions = self.all()
        for place, version in enumerate(versions):
            if version.id.endswith(digest(content)):
                versions[place] = evolve(version, in_force=True)
                break
        return versions

    def read(self, identity: str) -> bytes | None:
        """A version's text; None where none has this name. Raises OSError."""
        if IDENTITY.fullmatch(identity) is None:  # a name from outside never becomes a path otherwise
            return None
        with self._opened() as folder:
            return None if folder is None else _content(folder, identity)

    def keep(
        self, content: bytes, like: os.stat_result, why: str, author: VersionAuthor = NOBODY, of: str = ""
    ) -> None:
        """Keep this text, unless the newest version is the same; drop the oldest that are too many. Raises OSError.

        `like` is the status of the configuration file: no more users may read a version than may read the file.
        """
        with self._opened(make=True) as folder:
            assert folder is not None
            versions = self._all(folder)
            if versions and versions[0].id.endswith(digest(content)) and _content(folder, versions[0].id) == content:
                return
            # Names sort by time, also where the clock was turned back.
            milliseconds = int(self.wall() * 1000)
            if versions:
                milliseconds = max(milliseconds, int(versions[0].id.partition("-")[0]) + 1)
            identity = f"{milliseconds:013d}-{digest(content)}"
            folder.write(identity, content, like, sync=True)
            kept = self._bounded(folder, [_version(identity, milliseconds / 1000, len(content), None), *versions])
            known = self._known(folder)
            known[identity] = {"why": why, "address": author.address, "agent": author.agent, "of": of}
            index = {version.id: known[version.id] for version in kept if version.id in known}
            folder.write(INDEX, json.dumps(index, indent=1).encode(), like, sync=True)

    def _bounded(self, folder: PrivateFolder, versions: list[ConfigVersion]) -> list[ConfigVersion]:
        """The newest, as many as fit; always the newest two: what is in force and what was before. Others go."""
        kept: list[ConfigVersion] = []
        total = 0
        for version in versions:
            total += version.size
            if len(kept) >= 2 and (len(kept) >= self.most or total > self.most_bytes):
                break
            kept.append(version)
        for version in versions[len(kept) :]:
            folder.remove(version.id)
        return kept

    @contextlib.contextmanager
    def _opened(self, *, make: bool = False) -> Iterator[PrivateFolder | None]:
        """The folder of the versions; None where it is missing and not to be made."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(private_folder(self._folder.parent, make=make))
                folder = stack.enter_context(private_folder(self._folder, make=make))
            except FileNotFoundError:
                if make:
                    raise
                yield None
            else:
                yield folder

    def _known(self, folder: PrivateFolder) -> dict[str, Any]:
        try:
            index = json.loads(folder.read(INDEX))
        except (OSError, ValueError):
            return {}
        return index if isinstance(index, dict) else {}


def _content(folder: PrivateFolder, name: str) -> bytes | None:
    try:
        return folder.read(name)
    except FileNotFoundError:
        return None


def digest(content: bytes) -> str:
    """What a version's name ends with."""
    return hashlib.sha256(content).hexdigest()[:8]


def _version(identity: str, at: float, size: int, known: object) -> ConfigVersion:
    facts: Mapping[str, Any] = known if isinstance(known, dict) else {}

    def word(name: str, otherwise: str = "") -> str:
        value = facts.get(name)
        return value[:LONGEST_WORD] if isinstance(value, str) else otherwise

    author = VersionAuthor(word("address"), word("agent"))
    return ConfigVersion(identity, at, size, word("why", "unknown"), author, word("of"))
