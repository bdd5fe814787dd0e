"""The RAM of processes as /proc has it, and without /proc as psutil does.

Pages of files that are mapped, such as a model's weights, do not count unless they are locked: the kernel takes them
back when others need memory. smaps would tell more, and takes a hundred times as long. Blocks: for a worker's thread.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path

from attrs import frozen

from llamaswap.kernel_files import file_text, number

KIB = 1024
PROC = Path("/proc")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@frozen
class RamUse:
    """Bytes in memory, and bytes in swap space."""

    resident: int = 0
    swapped: int = 0


def fields(text: str, names: Collection[str]) -> dict[str, int]:
    """The numbers of lines like `VmSwap:  12 kB` and `anon 12`, of these names."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.replace(":", " ", 1).partition(" ")
        if name in names:
            words = value.split()
            found[name] = int(number(words[0])) if words else 0
    return found


def ram_of(pids: Iterable[int], proc: Path = PROC) -> RamUse:
    """The memory that only these processes use. Those that ended, or that may not be read, count as nothing.

    Shared memory is in the numbers of each process that uses it, so the largest number stands for all of them: workers
    of one server mostly share one segment.
    """
    if not (proc / "self").exists():
        return _asked_of_psutil(pids)
    private = shared = swapped = 0
    for pid in pids:
        names = ("RssAnon", "RssFile", "RssShmem", "VmSwap", "VmLck")
        status = fields(file_text(proc / str(pid) / "status"), names)
        private += status.get("RssAnon", 0) + min(status.get("VmLck", 0), status.get("RssFile", 0))
        shared = max(shared, status.get("RssShmem", 0))
        swapped += status.get("VmSwap", 0)
    return RamUse((private + shared) * KIB, swapped * KIB)


def _asked_of_psutil(pids: Iterable[int]) -> RamUse:
    import psutil

    total = 0
    for pid in pids:
        try:
            process = psutil.Process(pid)
            try:
                total += int(process.memory_full_info().uss)
            except psutil.AccessDenied:
                total += int(process.memory_info().rss)
        except psutil.Error:
            continue  # it ended
    return RamUse(total)


def children_of(pid: int) -> list[int]:
    """The descendants of a process on a system without /proc."""
    import psutil

    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return []


def largest_process(but: Collection[int], proc: Path = PROC) -> int | None:
    """The process with the most memory of its own, except these; None without /proc."""
    sizes: dict[int, int] = {}
    for folder in proc.glob("[0-9]*"):
        words = file_text(folder / "statm").split()
        if len(words) > 2 and int(folder.name) not in but:
            sizes[int(folder.name)] = (int(words[1]) - int(words[2])) * _PAGE
    return max(sizes, key=lambda pid: (sizes[pid], -pid), default=None)


def program_of(pid: int, proc: Path = PROC) -> str:
    """The name of a process's program; "" if the process is not visible here."""
    return file_text(proc / str(pid) / "comm")
