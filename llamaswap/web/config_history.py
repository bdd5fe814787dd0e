"""Earlier texts of the configuration file, kept in a folder beside it: bounded in number and bytes.

`FOLDER/NAME` beside the file holds one plain file for each version, so that an operator can copy one back by hand,
and `index.json` with the facts about them. The files count: a version that the index does not know is shown too, and
an index that cannot be read is replaced by an empty one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, get_args

from attrs import define, evolve, field, frozen

from llamaswap.config.private_files import PrivateFolder, private_folder

FOLDER = ".llamaswap"
INDEX = "index.json"
MAX_VERSIONS = 20  # weeks of edits, and a list that a person can look through
MAX_BYTES = 8 * 1024 * 1024  # of all versions: eight of the largest that may be saved, a thousand of the usual
IDENTITY = re.compile(r"(?P<milliseconds>[0-9]{13})-(?P<digest>[0-9a-f]{8})")
MAX_AUTHOR_LENGTH = 200  # characters of an address and of a User-Agent

VersionReason = Literal["found", "saved", "restored", "unknown"]
REASONS: tuple[VersionReason, ...] = get_args(VersionReason)


@frozen
class VersionAuthor:
    """The client that saved a version: its address and its User-Agent, empty if unknown."""

    address: str = ""
    agent: str = ""


UNKNOWN_AUTHOR = VersionAuthor()


@frozen
class ConfigVersion:
    """One text that was in the file. `at` in unix seconds; `in_force` if the file holds it now.

    `why` is found (the file held it when an edit replaced it), saved, restored (`of` names the version), or unknown.
    """

    id: str
    at: float
    size: int
    why: VersionReason = "unknown"
    author: VersionAuthor = UNKNOWN_AUTHOR
    of: str = ""
    in_force: bool = False


@define(eq=False)
class ConfigHistory:
    """The versions of one file. `wall` gives unix seconds; `path` is the file itself, not a link to it."""

    path: Path
    wall: Callable[[], float]
    max_versions: int = MAX_VERSIONS
    max_bytes: int = MAX_BYTES
    _folder: Path = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._folder = self.path.parent / FOLDER / self.path.name

    @property
    def folder(self) -> Path:
        """The folder of the versions."""
        return self._folder

    def all(self) -> list[ConfigVersion]:
        """Every version, newest first. Raises OSError if another user could have written them."""
        with self._opened() as folder:
            return [] if folder is None else self._all(folder)

    def _all(self, folder: PrivateFolder) -> list[ConfigVersion]:
        known = self._known(folder)
        found = []
        for name in folder.names():
            match = IDENTITY.fullmatch(name)
            if match is None:
                continue
            with contextlib.suppress(OSError):  # deleted meanwhile
                found.append(_version(name, int(match["milliseconds"]) / 1000, folder.size(name), known.get(name)))
        return sorted(found, key=lambda version: version.id, reverse=True)

    def beside(self, content: bytes) -> list[ConfigVersion]:
        """Every version, newest first; the newest of those that equal `content` is in force."""
        versions = self.all()
        for place, version in enumerate(versions):
            if version.id.endswith(digest(content)):
                versions[place] = evolve(version, in_force=True)
                break
        return versions

    def read(self, identity: str) -> bytes | None:
        """A version's text; None if none has this name. Raises OSError."""
        if IDENTITY.fullmatch(identity) is None:  # only such a name from outside becomes a path
            return None
        with self._opened() as folder:
            return None if folder is None else _content(folder, identity)

    def keep(
        self,
        content: bytes,
        like: os.stat_result,
        why: VersionReason,
        author: VersionAuthor = UNKNOWN_AUTHOR,
        of: str = "",
    ) -> None:
        """Keep this text, unless the newest version is the same; drop the oldest beyond the limits. Raises OSError.

        `like` is the status of the configuration file: no more users may read a version than may read the file.
        """
        with self._opened(make=True) as folder:
            assert folder is not None
            versions = self._all(folder)
            if versions and versions[0].id.endswith(digest(content)) and _content(folder, versions[0].id) == content:
                return
            # Names sort by time, also if the clock was set back.
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
        """The newest that fit, and always the newest two: the text in force and the one before. Removes the others."""
        kept: list[ConfigVersion] = []
        total = 0
        for version in versions:
            total += version.size
            if len(kept) >= 2 and (len(kept) >= self.max_versions or total > self.max_bytes):
                break
            kept.append(version)
        for version in versions[len(kept) :]:
            folder.remove(version.id)
        return kept

    @contextlib.contextmanager
    def _opened(self, *, make: bool = False) -> Iterator[PrivateFolder | None]:
        """The folder of the versions; None if it is missing and `make` is false."""
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

    def _known(self, folder: PrivateFolder) -> dict[str, object]:
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
    """The end of a version's name."""
    return hashlib.sha256(content).hexdigest()[:8]


def _version(identity: str, at: float, size: int, known: object) -> ConfigVersion:
    facts: Mapping[str, object] = known if isinstance(known, dict) else {}

    def text(name: str) -> str:
        value = facts.get(name)
        return value[:MAX_AUTHOR_LENGTH] if isinstance(value, str) else ""

    why: VersionReason = next((reason for reason in REASONS if reason == text("why")), "unknown")
    return ConfigVersion(identity, at, size, why, VersionAuthor(text("address"), text("agent")), text("of"))
