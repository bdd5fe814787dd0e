"""Guardian process: terminates model servers when the proxy dies.

One for all models, in its own session so that no signal to the proxy's group reaches it. It reads lines from a pipe
whose other end only the proxy holds: ``+ PID START MARK STOP`` for a child that began and ``- PID`` for one that ended;
lines of the time before it are in its environment. STOP is the stop command with the model's environment, in
hexadecimal, or ``-``. The end of the pipe is the end of the proxy, whatever killed it. Then stop commands run, and what
is left of the children (groups, sessions, marked processes that left both) gets SIGTERM, a short grace, and SIGKILL.

The guardian of an agent also has the agent's listening socket, without reading from it. So a connection to a host is
refused only when no server of its agent is left, and no new agent can listen there before.

Standard library only. It sleeps in a read and costs nothing meanwhile.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from llamaswap.servers import procfs

if TYPE_CHECKING:
    from subprocess import Popen

GRACE = 2.0  # seconds between SIGTERM and SIGKILL: no request uses these servers
LOST_AFTER = 10.0  # seconds after the grace; a process that lives then is stuck in the kernel
STOP_LIMIT = 10.0  # seconds for the stop commands
CHECK_PAUSE = 0.02  # seconds between two checks of what is left
CHILDREN = "LLAMASWAP_CHILDREN"  # the environment variable with the first lines: arguments could be read by others

_TERM, _KILL = 15, 9


def encode_stop(words: tuple[str, ...], env: tuple[str, ...]) -> str:
    """A stop command and its environment entries as STOP."""
    return "\0".join((str(len(words)), *words, *env)).encode("utf-8", "surrogateescape").hex() if words else "-"


class ChildTable:
    """The running children, from lines that may arrive in pieces: {pid: (start, mark, STOP)}."""

    def __init__(self) -> None:
        self.children: dict[int, tuple[int, str, str]] = {}
        self._rest = b""

    def read(self, data: bytes) -> None:
        """Take in more of the pipe."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            words = line.decode().split(" ")
            if words[0] == "+":
                self.children[int(words[1])] = (int(words[2]), words[3], words[4])
            elif words[0] == "-":
                self.children.pop(int(words[1]), None)


def termination_steps(
    find: Callable[[], list[int]], send: Callable[[int, int], object], seconds: Callable[[], float], lost_after: float
) -> Iterator[None]:
    """SIGTERM to all that `find` finds; SIGKILL after the grace, as long as it finds any, for `lost_after` seconds.

    The caller waits for `CHECK_PAUSE` whenever this yields. `send` signals what was found, `seconds` is a clock.
    """
    for target in find():
        send(target, _TERM)
    kill_at = seconds() + GRACE
    while left := find():
        now = seconds()
        if now >= kill_at + lost_after:
            return
        if now >= kill_at:
            for target in left:
                send(target, _KILL)
        yield


def end(children: dict[int, tuple[int, str, str]]) -> None:
    """Stop all processes of the children: stop commands and SIGTERM, the grace, SIGKILL until they are gone."""
    commands = [start_command(stop) for _, _, stop in children.values() if stop != "-"]

    def processes() -> list[int]:
        family = [procfs.members(pid, start, mark) for pid, (start, mark, _) in children.items()]
        return [one.pid for members in family for one in members]

    def groups() -> list[int]:
        """The process groups that still exist. Without /proc nothing more is known about a child."""
        return [group for group in children if procfs.signal_group(group, 0)]

    find, send = (processes, procfs.signal_one) if procfs.available() else (groups, procfs.signal_group)
    for _ in termination_steps(find, send, time.monotonic, LOST_AFTER):
        time.sleep(CHECK_PAUSE)
    deadline = time.monotonic() + STOP_LIMIT
    for command in commands:
        while command is not None and command.poll() is None and time.monotonic() < deadline:
            time.sleep(CHECK_PAUSE)
        if command is not None and command.poll() is None:
            procfs.signal_group(command.pid, _KILL)


def start_command(stop: str) -> Popen[bytes] | None:
    """Run a stop command: its container may live on. None if that is impossible."""
    import subprocess

    count, *fields = os.fsdecode(bytes.fromhex(stop)).split("\0")
    words, env = fields[: int(count)], fields[int(count) :]
    environ = {**os.environ, **dict(pair.split("=", 1) for pair in env if "=" in pair)}
    environ.pop(CHILDREN, None)
    try:
        return subprocess.Popen(
            words,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except (OSError, ValueError):
        return None


def main() -> None:
    """Read records of children until the proxy has exited; then stop the children that it left."""
    import signal

    os.setsid()
    os.chdir("/")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # they are meant for the proxy, whose end the pipe reports
    table = ChildTable()
    table.read(os.environ.get(CHILDREN, "").encode())
    while data := os.read(0, 65536):
        table.read(data)
    end(table.children)
    sys.exit(0)


if __name__ == "__main__":
    main()
