"""How much the bodies of all requests together may take, in memory and on disk, so that no number of clients can
exhaust either. What does not fit is refused while it arrives, not killed for later.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from attrs import define

MEMORY_SHARE = 4  # a quarter of the machine's memory, or of what its control group leaves us
LEAST_MEMORY = 64 * 1024 * 1024
DISK_SHARE = 2  # half of what would be free without us: others write there too
_GROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@define(eq=False)
class Room:
    """Bytes that may be taken. `name` is for messages; `bound` is asked each time, with the bytes taken so far."""

    name: str
    bound: Callable[[int], int]
    used: int = 0

    @property
    def left(self) -> int:
        """How much may still be taken."""
        return max(0, self.bound(self.used) - self.used)

    def take(self, count: int) -> bool:
        """Whether so many more bytes fit; if so they are taken."""
        if self.used + count > self.bound(self.used):
            return False
        self.used += count
        return True

    def give_back(self, count: int) -> None:
        """They are free again."""
        self.used -= count


def memory_room(physical: Callable[[], int] | None = None, group: Path = _GROUP_LIMIT) -> Room:
    """A share of the memory there is."""
    there = (physical or _physical)()
    try:
        there = min(there, int(group.read_text()))
    except (OSError, ValueError):  # no control group, or one without a limit ("max")
        pass
    bound = max(LEAST_MEMORY, there // MEMORY_SHARE)
    return Room("memory", lambda used: bound)


def disk_room(folder: str | None = None, free: Callable[[str], int] | None = None) -> Room:
    """A share of what is free in the folder of temporary files; what is taken there already counts as free."""
    where = folder or tempfile.gettempdir()
    ask = free or _free
    return Room("disk", lambda used: (ask(where) + used) // DISK_SHARE)


def _physical() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _free(folder: str) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


UNBOUNDED = Room("any", lambda used: used + (1 << 62))
