"""What can be seen of a server from outside without asking it anything: whether its processes do something.

Two looks some time apart tell. The counters are the kernel's, so nothing here depends on the server's good will.
Where it cannot be known (no /proc, a server behind a container or on another machine) the answer is that.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from attrs import Factory, frozen

from llamaswap.servers import procfs

_TICKS = float(os.sysconf("SC_CLK_TCK"))
_ESTABLISHED = ("01", "08")  # and what its other end has closed


@frozen
class LivenessSample:
    """A look at a server. `processes` are (CPU seconds, pages read from disk) by pid, None where nobody knows.

    `wants` says that one of their threads runs, or would if it got a processor or its disk, `unread` that bytes of its
    answers wait for their reader. `said` is how many bytes it printed so far, `gpu` the load of the busiest board in
    percent, 0 where that is not known. `leader` is the process that was started, 0 where nobody says.
    """

    processes: Mapping[int, tuple[float, int]] | None = Factory(dict)
    wants: bool = False
    unread: bool = False
    said: int = 0
    gpu: float = 0.0
    leader: int = 0


def look(pid: int, port: int | None) -> LivenessSample:
    """A look at the server whose first process is `pid` and which listens on `port`."""
    leader = procfs.stat(pid)
    if leader is None:
        return LivenessSample(None)
    others = procfs.members(pid, leader.start, procfs.mark_of(pid) or "")
    found = [leader, *(one for one in others if one.pid != pid)]
    listeners = procfs.listening(port) if port is not None else set()
    held = [procfs.sockets(one.pid) or set() for one in found]
    if not any(listeners & sockets for sockets in held):
        return LivenessSample(None)  # who listens is not among them: what they do says nothing
    processes = {one.pid: spent for one in found if (spent := _spent(one.pid)) is not None}
    return LivenessSample(processes, any(_wants(one.pid) for one in found), _unread(port or 0))


def _wants(pid: int) -> bool:
    """Whether a thread of the process is running, runnable, or waits for a disk. On a machine with too much to do that
    says more than CPU time."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return False
    for thread in threads:
        try:
            with open(f"/proc/{pid}/task/{thread}/stat", encoding="ascii", errors="replace") as file:
                if file.read().rpartition(")")[2].split()[0] in "RD":
                    return True
        except (OSError, IndexError):
            continue
    return False


def _spent(pid: int) -> tuple[float, int] | None:
    """(CPU seconds, pages read) of a process and of those children it has waited for."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / _TICKS, int(fields[9]) + int(fields[10])
    except (OSError, ValueError, IndexError):
        return None


def _unread(port: int) -> bool:
    """Whether a connection to the port has bytes that were not read, or could not be sent for that reason: then its
    reader is slow, and the server may well do nothing but wait."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table, encoding="ascii", errors="replace") as file:
                lines = file.read().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            near, far = (int(fields[place].rpartition(":")[2], 16) for place in (1, 2))
            sending, received = (int(count, 16) for count in fields[4].split(":"))
            if fields[3] in _ESTABLISHED and ((far == port and received) or (near == port and sending)):
                return True
    return False
