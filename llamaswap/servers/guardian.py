"""Guardian process: terminates model servers when the proxy dies.

A program of its own, one for all models, in a session of its own so that no signal to the proxy's group reaches
it. It reads lines from a pipe whose other end only the proxy holds: ``+ PID START MARK`` for a child that began,
``- PID`` for one that is gone. The children there were before it are such lines too, each an argument. The end of
the pipe is the end of the proxy, whatever killed it. Then what is left of the children gets SIGTERM, a short grace,
and SIGKILL: the leaders (which the parent-death signal reached already), their groups and sessions, and marked
processes that left both.

Standard library only. It sleeps in a read and costs nothing meanwhile.
"""

from __future__ import annotations

import os
import sys
import time

from llamaswap.servers import procfs

GRACE = 2.0  # seconds between SIGTERM and SIGKILL: nobody waits for these servers any more
PAUSE = 0.02  # between two looks at what is left

_TERM, _KILL = 15, 9


class ChildTable:
    """Which children there are, from lines that may arrive in pieces."""

    def __init__(self) -> None:
        self.children: dict[int, tuple[int, str]] = {}
        self._rest = b""

    def read(self, data: bytes) -> None:
        """Take in more of the pipe."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            words = line.decode().split(" ")
            if words[0] == "+":
                self.children[int(words[1])] = (int(words[2]), words[3])
            elif words[0] == "-":
                self.children.pop(int(words[1]), None)


def remaining(children: dict[int, tuple[int, str]]) -> list[procfs.Stat]:
    """Every living process that belongs to one of the children."""
    found = {}
    for pid, (start, mark) in children.items():
        for one in procfs.members(pid, start, mark):
            found[one.pid] = one
    return list(found.values())


def end(children: dict[int, tuple[int, str]], grace: float = GRACE) -> None:
    """Leave nothing of the children: SIGTERM, the grace, SIGKILL until they are gone."""
    if not procfs.available():
        _end_blindly(children, grace)
        return
    for one in remaining(children):
        procfs.signal_one(one.pid, _TERM)
    deadline = time.monotonic() + grace
    while left := remaining(children):
        now = time.monotonic()
        if now >= deadline + 10.0:
            return  # not even SIGKILL helps: stuck in the kernel, and not for us to wait for
        if now >= deadline:
            for one in left:
                procfs.signal_one(one.pid, _KILL)
        time.sleep(PAUSE)


def _end_blindly(children: dict[int, tuple[int, str]], grace: float) -> None:
    """Without /proc a group's number is all we know; it was alive when the proxy last spoke."""
    for group in children:
        procfs.signal_group(group, _TERM)
    deadline = time.monotonic() + grace
    while time.monotonic() < deadline and any(procfs.signal_group(group, 0) for group in children):
        time.sleep(PAUSE)
    for group in children:
        procfs.signal_group(group, _KILL)


def main() -> None:
    """Read until the proxy is gone, then end what it left."""
    import signal

    os.setsid()
    os.chdir("/")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they are meant for the proxy; its end is ours
    book = ChildTable()
    for line in sys.argv[1:]:
        book.read(os.fsencode(line) + b"\n")
    while data := os.read(0, 65536):
        book.read(data)
    end(book.children)
    sys.exit(0)


if __name__ == "__main__":
    main()
