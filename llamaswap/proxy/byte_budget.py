"""The budgets of request bodies, in memory and on disk, so that no number of clients can exhaust either. A body that
does not fit is refused while it arrives, before the kernel would end the process for it."""

from __future__ import annotations

import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from attrs import define, frozen

from llamaswap.wire.byte_budget import ByteBudget

MEMORY_SHARE = 4  # bodies may take a quarter of each limit,
FREE_SHARE = 3  # and a third of what the limit leaves, because announced bodies are still to come
LEAST_MEMORY = 16 * 1024 * 1024
DISK_SHARE = 2  # half of the free space, because other programs write there too
SAMPLE_SECONDS = 0.1  # seconds for which a measurement of the memory in use is valid,
SAMPLE_BYTES = 1024 * 1024  # unless bodies grew by this many bytes since
_NO_LIMIT = 1 << 60  # version 1 of the control groups writes the largest number of pages for "no limit"


@frozen
class MemoryLimit:
    """A limit of `size` bytes on this process, called `name`; `in_use` measures what counts against it now."""

    name: str
    size: int
    in_use: Callable[[], int]


def memory_limits(root: Path = Path("/")) -> Iterator[MemoryLimit]:
    """Every limit on this process's memory: of the machine, its address space, its control group and that one's
    parents.

    `root` is the folder that contains /proc and /sys.
    """
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    yield MemoryLimit("the machine's memory", physical, lambda: physical - _available(root, physical))
    size = resource.getrlimit(resource.RLIMIT_AS)[0]
    if size != resource.RLIM_INFINITY:
        yield MemoryLimit("the address space limit (ulimit -v)", size, lambda: _address_space(root))
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if not controllers:
            for mount in ("sys/fs/cgroup", "sys/fs/cgroup/unified"):
                yield from _group_limits(root / mount, group, "memory.max", "memory.current", "")
        elif "memory" in controllers.split(","):
            usage = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
            yield from _group_limits(root / "sys/fs/cgroup/memory", group, *usage)


def _group_limits(mount: Path, group: str, limit: str, usage: str, prefix: str) -> Iterator[MemoryLimit]:
    """The limits of a control group and its parents; in a container the path may be the host's while the mount is its
    own."""
    parts = [part for part in group.split("/") if part and part != ".."]
    for depth in range(len(parts), -1, -1):
        folder = mount.joinpath(*parts[:depth])
        text = _text(folder / limit).strip()
        if text.isdigit() and int(text) < _NO_LIMIT:
            name = f"control group /{'/'.join(parts[:depth])}"
            yield MemoryLimit(name, int(text), lambda folder=folder: _group_use(folder, usage, prefix))  # type: ignore[misc]


def _group_use(folder: Path, usage: str, prefix: str) -> int:
    """Bytes a control group uses, without the page cache, which the kernel takes back when memory is short."""
    used = _text(folder / usage).strip()
    cache = 0
    for line in _text(folder / "memory.stat").splitlines():
        key, _, value = line.partition(" ")
        if key in (f"{prefix}inactive_file", f"{prefix}active_file"):
            cache += int(value)
    return max(0, int(used) - cache) if used.isdigit() else 0


def _available(root: Path, physical: int) -> int:
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return physical


def _address_space(root: Path) -> int:
    words = _text(root / "proc/self/statm").split()
    return int(words[0]) * os.sysconf("SC_PAGE_SIZE") if words else 0


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


@define(eq=False)
class _MemoryBound:
    """The bytes that bodies may take of the tightest limit; measured again when it may have changed.

    `tightest` names that limit, by the last measurement.
    """

    limits: list[MemoryLimit]
    seconds: Callable[[], float]
    tightest: str = ""
    _bound: int = 0
    _measured: float | None = None
    _used: int = 0

    def __call__(self, used: int) -> int:
        now = self.seconds()
        if self._measured is None or now - self._measured >= SAMPLE_SECONDS or abs(used - self._used) >= SAMPLE_BYTES:
            self._measured, self._used = now, used
            shares = [(self._share(limit, used), limit) for limit in self.limits]
            bound, limit = min(shares, key=lambda share: share[0])
            self._bound = max(LEAST_MEMORY, bound)
            self.tightest = f"limited to {limit.size // (1 << 20)} MiB by {limit.name}"
        return self._bound

    @staticmethod
    def _share(limit: MemoryLimit, used: int) -> int:
        return min(limit.size // MEMORY_SHARE, (limit.size - limit.in_use() + used) // FREE_SHARE)


def memory_budget(limits: list[MemoryLimit] | None = None, seconds: Callable[[], float] = time.monotonic) -> ByteBudget:
    """The budget of bodies in memory: a share of what this process may use."""
    bound = _MemoryBound(list(memory_limits()) if limits is None else limits, seconds)
    return ByteBudget("memory", bound, lambda: bound.tightest)


def disk_budget(folder: str | None = None, free: Callable[[str], int] | None = None) -> ByteBudget:
    """The budget of bodies on disk: a share of what is free in the folder of temporary files."""
    where = folder or _temporary_folder()
    ask = free or _free
    return ByteBudget(
        "disk", lambda used: (ask(where) + used) // DISK_SHARE, lambda: f"folder of temporary files {where}"
    )


def _temporary_folder() -> str:
    try:
        return tempfile.gettempdir()
    except OSError:  # every candidate is full or not writable
        return os.environ.get("TMPDIR") or "/tmp"


def _free(folder: str) -> int:
    try:
        found = os.statvfs(folder)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize
