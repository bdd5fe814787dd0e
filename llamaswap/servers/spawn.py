"""Child processes: their output, signals to them, and the notice of their end.

Every child starts as a session leader (`sessionleader.py`) that becomes the command. A `Child` knows one process and
its descendants; it knows nothing of models or readiness.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Protocol, cast

from attrs import field, frozen
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.interfaces import IDelayedCall, IProcessTransport, IReactorTime
from twisted.internet.process import Process
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from llamaswap.servers import procfs
from llamaswap.servers.server_snapshot import Adopted, descriptors

PIPE_LINGER = 0.25  # seconds that an output pipe may stay open after the last known process of a stop
OUTPUT_WINDOW = 0.05  # seconds over which output is measured
WINDOW_BYTES = 512 * 1024  # of output per window; beyond it the child waits, so that a flood leaves time for requests


class Kernel(Protocol):
    """Questions to the operating system about processes and ports; `procfs` is the real one."""

    def stat(self, pid: int) -> procfs.Stat | None: ...
    def descendants(self, pid: int) -> list[procfs.Stat] | None: ...
    def members(self, leader: int, start: int, mark: str) -> list[procfs.Stat]: ...
    def signal_group(self, group: int, number: int) -> bool: ...
    def signal_one(self, pid: int, number: int) -> bool: ...
    def taken(self, host: str, port: int) -> bool: ...
    def free_port(self, host: str) -> int: ...
    def listening(self, port: int) -> set[int]: ...
    def sockets(self, pid: int) -> set[int] | None: ...
    def holder(self, port: int) -> procfs.Stat | None: ...
    def ports_of(self, pids: set[int]) -> set[int]: ...
    def mark_of(self, pid: int) -> str | None: ...
    def work_of(self, pid: int) -> tuple[int, int]: ...


@frozen
class ChildRecord:
    """What has to outlive this process to find a child again: `start` is in ticks since boot, 0 if unknown.

    `stop_words` and `env` are its stop command, unless that needs the process to live.
    """

    pid: int
    start: int
    mark: str
    model: str
    port: int | None
    stop_words: tuple[str, ...] = ()
    env: tuple[str, ...] = field(default=(), repr=False)


def _ignore(data: bytes) -> None:
    """Output that has no reader."""


class Child(ProcessProtocol):
    """One child process, from the moment its session leader waits for an instruction.

    `status` is its exit status (negative: the signal), None while it runs; `record` is set for the server of a model.
    """

    def __init__(self, clock: IReactorTime, kernel: Kernel, mark: str) -> None:
        self.mark = mark
        self.status: int | None = None
        self.pid = 0
        self.start = 0
        self.record: ChildRecord | None = None
        self.closed = False
        self._strays: dict[int, int] | None = None  # {pid: start} of those outside of the group when a stop began
        self._clock = clock
        self._kernel = kernel
        self._output: Callable[[bytes], None] = _ignore
        self._on_exit: Callable[[int], None] | None = None
        self._on_closed: Callable[[], None] | None = None
        self._window_end = 0.0
        self._window_bytes = 0
        self._resume: IDelayedCall | None = None
        self._cut: IDelayedCall | None = None

    # -- the reactor's calls -------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        self.pid = process_id(self.transport)
        known = self._kernel.stat(self.pid)
        self.start = known.start if known else 0

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        self._output(data)
        now = self._clock.seconds()
        if now >= self._window_end:
            self._window_end, self._window_bytes = now + OUTPUT_WINDOW, 0
        self._window_bytes += len(data)
        if self._window_bytes > WINDOW_BYTES and self._resume is None and self.status is None:
            self._process.pauseProducing()
            self._resume = self._clock.callLater(max(0.0, self._window_end - now), self._resume_reading)

    def processExited(self, reason: Failure) -> None:
        self.status = exit_status(reason)
        self._resume_reading()
        if self._on_exit is not None:
            self._on_exit(self.status)

    def processEnded(self, reason: Failure) -> None:
        self.closed = True
        for call in (self._cut, self._resume):
            if call is not None and call.active():
                call.cancel()
        self._cut = self._resume = None
        if self._on_closed is not None:
            self._on_closed()

    # -- the owner's calls ---------------------------------------------------------------------------------

    def attend(
        self,
        output: Callable[[bytes], None] = _ignore,
        on_exit: Callable[[int], None] | None = None,
        on_closed: Callable[[], None] | None = None,
    ) -> None:
        """Set what hears its output, its exit status and the end of its pipes; without arguments nothing does."""
        self._output, self._on_exit, self._on_closed = output, on_exit, on_closed

    def signal(self, number: int) -> None:
        """Signal the whole group; a session leader that does not lead one yet gets the signal alone.

        With the first signal the processes outside of the group are listed. Which process has which parent is read
        before, since a dead parent is forgotten; the walk through all processes comes after, while the server ends.
        """
        if self.status is not None:
            return
        first = self._strays is None
        descendants = self._kernel.descendants(self.pid) if first else None
        if not self._kernel.signal_group(self.pid, number):
            self._kernel.signal_one(self.pid, number)
        if first and self.start:
            family = [*(descendants or ()), *self.remaining()]
            self._strays = {one.pid: one.start for one in family if one.group != self.pid}

    def remaining(self) -> list[procfs.Stat]:
        """Its living processes: the group's, the session's, and those with its mark in their environment."""
        return self._kernel.members(self.pid, self.start, self.mark)

    def family(self) -> Iterator[int]:
        """The pids of the same, the likeliest first: all processes are read only for a caller that asks on."""
        seen = {self.pid}
        yield self.pid
        for find in (lambda: self._kernel.descendants(self.pid), self.remaining):
            for one in find() or ():
                if one.pid not in seen:
                    seen.add(one.pid)
                    yield one.pid

    def emptied(self) -> bool:
        """Whether it and all its descendants are gone.

        To look at every process of the machine takes 2 us each, and a request may wait for the next model. If a signal
        began the stop, its processes are known, and only these are read.
        """
        if self.status is None:
            return False
        if not self.start:
            return not self._kernel.signal_group(self.pid, 0)
        known = self._strays is not None and not self._kernel.signal_group(self.pid, 0) and not self._any_stray()
        return known or not self.remaining()

    def signal_remaining(self, number: int) -> None:
        """Signal what the session leader left behind."""
        if self.start:
            for one in self.remaining():
                self._kernel.signal_one(one.pid, number)
        else:
            self._kernel.signal_group(self.pid, number)

    def release_pipes(self) -> None:
        """Stop waiting for the end of its output soon: a process that cannot be seen may keep the pipe open."""
        if not self.closed and self._cut is None:
            self._cut = self._clock.callLater(PIPE_LINGER, lambda: self._process.loseConnection())

    @property
    def output(self) -> int | None:
        """The descriptor its output is read from; None if it was closed."""
        return descriptors(self._process).get(1)

    def watch(self) -> None:
        """Report the end of an adopted child from now on."""
        cast(Adopted, self.transport).watch()

    def instruct(self, instruction: bytes) -> None:
        """Tell its session leader what to become.

        What fits into the pipe, usually all of it, is written at once: the transport would begin on the reactor's next
        turn, a millisecond later.
        """
        descriptor = descriptors(self._process).get(0)
        if descriptor is not None:
            try:
                instruction = instruction[os.write(descriptor, instruction) :]
            except OSError:
                pass  # full, or broken: the transport knows what to do
        self._process.write(instruction)
        self._process.closeStdin()

    def dismiss(self) -> None:
        """End a session leader that is not needed: it exits at the end of its stdin."""
        self._process.closeStdin()

    @property
    def _process(self) -> Process:
        return cast(Process, self.transport)

    def _any_stray(self) -> bool:
        found = ((self._kernel.stat(pid), start) for pid, start in (self._strays or {}).items())
        return any(one is not None and one.start == start and not one.dead for one, start in found)

    def _resume_reading(self) -> None:
        call, self._resume = self._resume, None
        if call is not None:
            if call.active():
                call.cancel()
            self._process.resumeProducing()


def process_id(transport: IProcessTransport | None) -> int:
    """The pid behind a transport; 0 if the process is gone already."""
    return int(getattr(transport, "pid", None) or 0)


def exit_status(reason: Failure) -> int:
    """The exit code, or the signal as a negative number."""
    value = reason.value
    if isinstance(value, ProcessTerminated):
        if value.signal is not None:
            return -int(value.signal)
        return int(value.exitCode or 0)
    return 0 if isinstance(value, ProcessDone) else 1


def say_status(status: int) -> str:
    """An exit status in words: "exit status 7", "signal SIGKILL"."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"
