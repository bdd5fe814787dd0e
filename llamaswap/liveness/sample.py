"""Samples a server from outside, without a request: whether its processes do something.

Two samples some time apart are compared. The counters are the kernel's, so a server that hangs is sampled as well. A
server without visible processes (no /proc, a container, another machine) has a sample that says so.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from attrs import Factory, frozen

from llamaswap.servers import procfs

_TICKS = float(os.sysconf("SC_CLK_TCK"))
_ESTABLISHED = ("01", "08")  # the second is a connection that its other end has closed


@frozen
class LivenessSample:
    """One sample of a server. `processes` are (CPU seconds, pages read from disk) by pid, None if they are not visible.

    `runnable` says that one of their threads runs or waits for a processor or a disk, `unread` that bytes of its
    responses wait for a reader. `printed` is the number of bytes in its log so far, `gpu` the load of the busiest GPU
    in percent (0 if unknown), `leader` the pid that was started (0 if unknown).
    """

    processes: Mapping[int, tuple[float, int]] | None = Factory(dict)
    runnable: bool = False
    unread: bool = False
    printed: int = 0
    gpu: float = 0.0
    leader: int = 0


def take_sample(pid: int, port: int | None) -> LivenessSample:
    """A sample of the server whose first process is `pid` and which listens on `port`."""
    leader = procfs.stat(pid)
    if leader is None:
        return LivenessSample(None)
    others = procfs.members(pid, leader.start, procfs.mark_of(pid) or "")
    found = [leader, *(one for one in others if one.pid != pid)]
    listeners = procfs.listening(port) if port is not None else set()
    held = [procfs.sockets(one.pid) or set() for one in found]
    if not any(listeners & sockets for sockets in held):
        return LivenessSample(None)  # another process listens, so the activity of these says nothing
    processes = {one.pid: spent for one in found if (spent := _spent(one.pid)) is not None}
    return LivenessSample(processes, any(_runnable(one.pid) for one in found), _unread(port or 0))


def _lines(path: str) -> list[str]:
    """The lines of a file of /proc; none if it cannot be read, for example because the process has ended."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().splitlines()
    except OSError:
        return []


def _stat(process: str) -> list[str]:
    """The fields of a process or thread after its name, which may contain brackets and blanks; none if it ended."""
    return " ".join(_lines(f"/proc/{process}/stat")).rpartition(")")[2].split()


def _runnable(pid: int) -> bool:
    """Whether a thread of the process runs, could run, or waits for a disk: on an overloaded machine it gets no CPU
    time."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return False
    return any(_stat(f"{pid}/task/{thread}")[:1] in (["R"], ["D"]) for thread in threads)


def _spent(pid: int) -> tuple[float, int] | None:
    """(CPU seconds, pages read) of a process and of the children it has reaped."""
    fields = _stat(str(pid))
    if len(fields) < 15:
        return None
    return sum(map(int, fields[11:15])) / _TICKS, int(fields[9]) + int(fields[10])


def _unread(port: int) -> bool:
    """Whether a connection to the port has unread or unsent bytes: then its reader is slow, and the server may rightly
    do nothing but wait."""
    for line in _lines("/proc/net/tcp")[1:] + _lines("/proc/net/tcp6")[1:]:
        fields = line.split()
        near, far = (int(fields[place].rpartition(":")[2], 16) for place in (1, 2))
        sending, received = (int(count, 16) for count in fields[4].split(":"))
        if fields[3] in _ESTABLISHED and ((far == port and received) or (near == port and sending)):
            return True
    return False
