"""Control groups: the processes and the memory of a container, and how much memory llamaswap's own group may use.

Both versions of the kernel's interface are read. Blocks: for a worker's thread.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

from llamaswap.kernel_files import file_text
from llamaswap.memory.process_memory import RamUse, fields

NO_LIMIT = 1 << 60  # version 1 writes a number near 2**63 for no limit

# The fields of memory.stat, by what they are called here. Those of version 1 with total_ include groups below.
_STAT_1 = {"anon": "total_rss", "shmem": "total_shmem", "swap": "total_swap"}
_STAT_1 |= {"inactive_file": "total_inactive_file", "active_file": "total_active_file"}


@frozen
class ControlGroups:
    """The memory controller's groups as folders; `root` and `proc` are where the kernel shows them."""

    root: Path = Path("/sys/fs/cgroup")
    proc: Path = Path("/proc")

    @property
    def _old(self) -> bool:
        return (self.root / "memory").is_dir() and not (self.root / "cgroup.controllers").exists()

    @property
    def _top(self) -> Path:
        return self.root / "memory" if self._old else self.root

    def folder_of(self, pid: int | str) -> Path | None:
        """The group of a process; None if it is not visible, as that of a process outside of our container."""
        text = file_text(self.proc / str(pid) / "cgroup")
        pattern = r"^\d+:(?:[^:]*,)?memory(?:,[^:]*)?:(/.*)$" if self._old else r"^0::(/.*)$"
        match = re.search(pattern, text, re.MULTILINE)
        if match is None or "/.." in match[1]:
            return None
        folder = self._top / match[1].lstrip("/")
        return folder if folder.is_dir() else None

    def is_apart(self, folder: Path) -> bool:
        """Whether the group is neither ours nor contains ours: its processes then belong together."""
        ours = self.folder_of("self")
        return folder != self._top and (ours is None or (folder != ours and folder not in ours.parents))

    def processes(self, folder: Path) -> set[int]:
        """The processes of the group and of those below it."""
        listed = [file_text(path) for path in (folder / "cgroup.procs", *folder.glob("**/*/cgroup.procs"))]
        return {int(word) for text in listed for word in text.split() if word.isdigit()}

    def ram_of(self, folder: Path) -> RamUse | None:
        """The memory of the group, without its pages of files; None if the kernel does not say."""
        stat = self._stat(folder)
        if "anon" not in stat:
            return None
        swapped = stat.get("swap", 0) or self._number(folder / "memory.swap.current")
        return RamUse(stat["anon"] + stat.get("shmem", 0), swapped or 0)

    def limit(self) -> tuple[int, int] | None:
        """The smallest limit of our group and those above it, and the bytes that it leaves; None without a limit."""
        found = [limit for folder in self._upwards() if (limit := self._limit(folder)) is not None]
        return (min(limit for limit, _ in found), min(left for _, left in found)) if found else None

    def _upwards(self) -> Iterator[Path]:
        folder = self.folder_of("self") or self._top
        yield folder
        while folder != self._top and folder != folder.parent:
            folder = folder.parent
            yield folder

    def _limit(self, folder: Path) -> tuple[int, int] | None:
        limit_file, use_file = ("limit_in_bytes", "usage_in_bytes") if self._old else ("max", "current")
        limit, used = self._number(folder / f"memory.{limit_file}"), self._number(folder / f"memory.{use_file}")
        if limit is None or limit >= NO_LIMIT:
            return None
        stat = self._stat(folder)
        files = stat.get("inactive_file", 0) + stat.get("active_file", 0)  # the kernel takes these pages back
        return limit, max(0, limit - max(0, (used or 0) - files))

    def _stat(self, folder: Path) -> dict[str, int]:
        text = file_text(folder / "memory.stat")
        if not self._old:
            return fields(text, ("anon", "shmem", "inactive_file", "active_file"))
        found = fields(text, _STAT_1.values())
        return {name: found[old] for name, old in _STAT_1.items() if old in found}

    @staticmethod
    def _number(path: Path) -> int | None:
        text = file_text(path)
        return int(text) if text.isdigit() else None
