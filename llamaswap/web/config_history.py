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

from attrs import asdict, define, evolve, frozen

from llamaswap.config.private_files import PrivateFolder, private_folder
from llamaswap.observe.log_format import Timestamp, local_time, rfc3339

FOLDER = ".llamaswap"
INDEX = "index.json"
MAX_VERSIONS = 20  # weeks of edits, and a list that a person can look through
MAX_BYTES = 8 * 1024 * 1024  # of all versions: eight of the largest that may be saved, a thousand of the usual
IDENTITY = re.compile("[0-9]{13}-[0-9a-f]{8}")  # milliseconds since the epoch, and a digest of the text
MAX_AUTHOR_LENGTH = 200  # characters of an address and of a User-Agent

VersionReason = Literal["found", "saved", "restored", "unknown"]
REASONS: tuple[VersionReason, ...] = get_args(VersionReason)


@frozen
class VersionSource:
    """Where a text comes from, and the address and User-Agent of the client that saved it (empty if unknown).

    `why` is found (the file held it when an edit replaced it), saved, restored (`of` names the version), or unknown.
    """

    why: VersionReason = "unknown"
    address: str = ""
    agent: str = ""
    of: str = ""


@frozen
class VersionEntry:
    """One text that was in the file. `in_force`: the file holds it now."""

    id: str
    time: Timestamp
    size: int
    why: VersionReason
    address: str
    agent: str
    restored_from: str | None
    in_force: bool


@define(eq=False)
class ConfigHistory:
    """The versions of one file. `wall` gives unix seconds; `path` is the file itself, not a link to it."""

    path: Path
    wall: Callable[[], float]
    max_versions: int = MAX_VERSIONS
    max_bytes: int = MAX_BYTES

    @property
    def folder(self) -> Path:
        """The folder of the versions."""
        return self.path.parent / FOLDER / self.path.name

    def all(self) -> list[VersionEntry]:
        """Every version, newest first. Raises OSError if another user could have written them."""
        with self._opened() as folder:
            return [] if folder is None else self._all(folder)

    def _all(self, folder: PrivateFolder) -> list[VersionEntry]:
        known = self._known(folder)
        found = []
        for name in folder.names():
            if IDENTITY.fullmatch(name):
                with contextlib.suppress(OSError):  # deleted meanwhile
                    found.append(_version(name, folder.size(name), known.get(name)))
        return sorted(found, key=lambda version: version.id, reverse=True)

    def beside(self, content: bytes) -> list[VersionEntry]:
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

    def keep(self, content: bytes, like: os.stat_result, source: VersionSource) -> None:
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
            kept = self._bounded(folder, [_version(identity, len(content), None), *versions])
            known = self._known(folder)
            known[identity] = asdict(source)
            index = {version.id: known[version.id] for version in kept if version.id in known}
            folder.write(INDEX, json.dumps(index, indent=1).encode(), like, sync=True)

    def _bounded(self, folder: PrivateFolder, versions: list[VersionEntry]) -> list[VersionEntry]:
        """The newest that fit, and always the newest two: the text in force and the one before. Removes the others."""
        kept: list[VersionEntry] = []
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
                stack.enter_context(private_folder(self.folder.parent, make=make))
                folder = stack.enter_context(private_folder(self.folder, make=make))
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


def _version(identity: str, size: int, known: object) -> VersionEntry:
    facts: Mapping[str, object] = known if isinstance(known, dict) else {}

    def text(name: str) -> str:
        value = facts.get(name)
        return value[:MAX_AUTHOR_LENGTH] if isinstance(value, str) else ""

    why: VersionReason = next((reason for reason in REASONS if reason == text("why")), "unknown")
    time = rfc3339(local_time(int(identity.partition("-")[0]) / 1000))
    return VersionEntry(identity, time, size, why, text("address"), text("agent"), text("of") or None, in_force=False)
