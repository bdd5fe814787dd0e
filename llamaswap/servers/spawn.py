"""Children: how they begin, what they say, how they are signalled, how their end is noticed.

Every child starts as a session leader of ours (`sessionleader.py`) that becomes the command; one leader is kept
waiting ahead of need. A `Child` knows one process and its descendants, and nothing of models or readiness.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from attrs import Factory, define, field, frozen
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.interfaces import IDelayedCall, IProcessTransport, IReactorProcess, IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaswap.servers import procfs, sessionleader
from llamaswap.servers.environment import for_servers
from llamaswap.servers.procfs import MARK
from llamaswap.servers.server_snapshot import Adopted, descriptors

CENSUS = 0.1  # seconds from readiness to the look for who belongs to a server: who waited for it is served first
AFTERMATH = 0.5  # seconds after which a swap is over, and there is time to look whether anything was left
LOOKS = 20  # such looks at what does not die, before it is given up
LINGER = 0.25  # seconds an output pipe may outlive the last process of a stop; somebody we cannot see holds it
SPARE_DELAY = 1.0  # seconds before the next spare leader is started: not while the model of this one begins to load
WINDOW = 0.05  # seconds over which output is measured
WINDOW_BYTES = 512 * 1024  # of output per window; beyond it the child waits, so that a flood leaves time for requests

_log = Logger()

_NOTHING: Callable[[bytes], None] = lambda data: None


class Kernel(Protocol):
    """What we ask of the operating system about processes and ports; `procfs` is the real one."""

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


@frozen
class ChildRecord:
    """What must outlive us to find a child again: `start` is in ticks since boot, 0 where unknown."""

    pid: int
    start: int
    mark: str
    model: str
    port: int | None


class ChildWatcher(Protocol):
    """Told of every child, so that somebody can end it when we no longer can."""

    def started(self, birth: ChildRecord) -> None: ...
    def gone(self, birth: ChildRecord) -> None: ...


class Child(ProcessProtocol):
    """One process of ours, from the moment its leader waits for an instruction."""

    def __init__(self, clock: IReactorTime, kernel: Kernel, mark: str) -> None:
        self.mark = mark
        self.status: int | None = None
        self.pid = 0
        self.start = 0
        self.birth: ChildRecord | None = None
        self.closed = False
        self.doubtful = False
        self.looks = 0
        self._counted = False
        self._strays: dict[int, int] = {}
        self._census: IDelayedCall | None = None
        self._clock = clock
        self._kernel = kernel
        self._output: Callable[[bytes], None] = _NOTHING
        self._on_exit: Callable[[int], None] | None = None
        self._on_closed: Callable[[], None] | None = None
        self._window_end = 0.0
        self._window_bytes = 0
        self._resume: IDelayedCall | None = None
        self._cut: IDelayedCall | None = None
        self._pipes: Any = None  # the transport; pausing its reading is not in IProcessTransport

    # -- told by the reactor --

    def connectionMade(self) -> None:
        self._pipes = self.transport
        self.pid = process_id(self.transport)
        known = self._kernel.stat(self.pid)
        self.start = known.start if known else 0

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        self._output(data)
        now = self._clock.seconds()
        if now >= self._window_end:
            self._window_end, self._window_bytes = now + WINDOW, 0
        self._window_bytes += len(data)
        if self._window_bytes > WINDOW_BYTES and self._resume is None and self.status is None:
            self._pipes.pauseProducing()
            self._resume = self._clock.callLater(max(0.0, self._window_end - now), self._listen_again)

    def processExited(self, reason: Failure) -> None:
        self.status = exit_status(reason)
        self._cancel_census()
        self._listen_again()
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

    # -- asked by its owner --

    def attend(
        self,
        output: Callable[[bytes], None],
        on_exit: Callable[[int], None] | None = None,
        on_closed: Callable[[], None] | None = None,
    ) -> None:
        """Who hears its output, its exit (negative: the signal) and the end of its pipes."""
        self._output, self._on_exit, self._on_closed = output, on_exit, on_closed

    def abandon(self) -> None:
        """Hear nothing more of it."""
        self.attend(_NOTHING)

    def signal(self, number: int) -> None:
        """Signal the whole group; a leader too young to lead one gets it alone."""
        if self.status is not None:
            return
        if self._counted:
            # Once it is dead nobody knows any more whose parent it was.
            family = self._kernel.descendants(self.pid)
            self._counted = family is not None
            self._note(family or ())
        if not self._kernel.signal_group(self.pid, number):
            self._kernel.signal_one(self.pid, number)

    def remaining(self) -> list[procfs.Stat]:
        """Its living processes: the group's, the session's, and those that carry its mark."""
        return self._kernel.members(self.pid, self.start, self.mark)

    def family(self) -> Iterator[int]:
        """The pids of the same, the likeliest first: only who goes on asking has every process there is looked at."""
        told = {self.pid}
        yield self.pid
        for look in (lambda: self._kernel.descendants(self.pid), self.remaining):
            for one in look() or ():
                if one.pid not in told:
                    told.add(one.pid)
                    yield one.pid

    def settle(self) -> None:
        """It is ready and will stay for a while: see soon who belongs to it."""
        if self.start and self.status is None and self._census is None:
            self._census = self._clock.callLater(CENSUS, self._count)

    def emptied(self) -> bool:
        """Whether the leader and everything it left are gone.

        To ask every process of the machine takes 15 us each, on the way of those who wait for the next model. So where
        it is known who belonged to the child these alone are asked, and the answer is `doubtful`: whoever left its
        session since it was counted, and its parents, is found by a later look.
        """
        if self.status is None:
            return False
        if self.start:
            self.doubtful = self._counted and not self._kernel.signal_group(self.pid, 0) and not self._any_stray()
            return self.doubtful or not self.remaining()
        return not self._kernel.signal_group(self.pid, 0)

    def signal_remaining(self, number: int) -> None:
        """Signal what the leader left behind."""
        if self.start:
            for one in self.remaining():
                self._kernel.signal_one(one.pid, number)
        else:
            self._kernel.signal_group(self.pid, number)

    def _count(self) -> None:
        self._census = None
        self._counted = True
        self._note(self.remaining())

    def _note(self, family: Iterable[procfs.Stat]) -> None:
        """Remember those that are not in the child's group: the kernel knows the others."""
        self._strays.update({one.pid: one.start for one in family if one.group != self.pid})

    def _any_stray(self) -> bool:
        found = ((self._kernel.stat(pid), start) for pid, start in self._strays.items())
        return any(one is not None and one.start == start and not one.dead for one, start in found)

    def _cancel_census(self) -> None:
        census, self._census = self._census, None
        if census is not None:
            census.cancel()

    def release_pipes(self) -> None:
        """Stop waiting for the end of its output soon: whoever still holds the pipe is out of our sight."""
        if not self.closed and self._cut is None:
            self._cut = self._clock.callLater(LINGER, self._cut_pipes)

    @property
    def output(self) -> int | None:
        """The descriptor its output is read from; None where it was closed."""
        return descriptors(self._pipes).get(1)

    def watch(self) -> None:
        """An adopted child: from now on its end is told."""
        self._pipes.watch()

    def instruct(self, instruction: bytes) -> None:
        """What its leader shall become."""
        self._pipes.write(self._written_at_once(instruction))
        self._pipes.closeStdin()

    def _written_at_once(self, instruction: bytes) -> bytes:
        """Write what fits into the pipe, which is usually all of it; returns the rest. The transport would begin on
        the reactor's next turn, a millisecond later."""
        descriptor = descriptors(self._pipes).get(0)
        if descriptor is None:
            return instruction
        try:
            return instruction[os.write(descriptor, instruction) :]
        except OSError:
            return instruction  # full, or broken: the transport knows what to do

    def dismiss(self) -> None:
        """A spare that is not needed: the end of its stdin is its end."""
        self._pipes.closeStdin()

    def _cut_pipes(self) -> None:
        self._pipes.loseConnection()

    def _listen_again(self) -> None:
        call, self._resume = self._resume, None
        if call is not None:
            if call.active():
                call.cancel()
            self._pipes.resumeProducing()


def process_id(transport: IProcessTransport | None) -> int:
    """The pid behind a transport; 0 where the process is gone already."""
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


def _look(name: str, path: str) -> str | None:
    return shutil.which(name, path=path)


@define(eq=False)
class Launcher:
    """Starts children for all models. `environ` is the proxy's own environment; values among `secrets` stay here.

    `token` is unlike that of any other run of the proxy: children are marked with it.
    """

    processes: IReactorProcess
    clock: IReactorTime
    environ: Mapping[str, str]
    token: str
    kernel: Kernel = field(default=procfs)
    watchers: Sequence[ChildWatcher] = ()
    look: Callable[[str, str], str | None] = _look
    adoption: Callable[..., Any] = Adopted
    secrets: Callable[[], Collection[str]] = tuple
    _spare: Child | None = None
    _warming: IDelayedCall | None = None
    _born: int = 0
    _closed: bool = False
    _doubtful: list[Child] = Factory(list)
    _aftermath: IDelayedCall | None = None

    def find(self, name: str) -> str | None:
        """The file a command's first word means: looked up in the proxy's PATH, whatever the model's env says."""
        return self.look(name, self.environ.get("PATH", os.defpath))

    def launch(
        self,
        executable: str,
        argv: Sequence[str],
        env: Iterable[str],
        *,
        model: str = "",
        port: int | None = None,
        policy: str = "inherit",
    ) -> Child:
        """Become `argv` in a new session, with `env` (K=V, later ones win) over what `policy` lets pass of our own.

        `model` names a child that must not outlive us: the watchers are told. OSError where no process can be made.
        """
        spare, self._spare = self._spare, None
        child = spare if spare is not None and spare.status is None else self._lead()
        passed = for_servers(self.environ, policy, self.secrets())
        pairs = [f"{key}={value}" for key, value in passed.items()]
        pairs += [entry for entry in env if "=" in entry]
        pairs.append(f"{MARK}={child.mark}")
        try:
            instruction = sessionleader.instruct(
                os.fsencode(executable), [os.fsencode(word) for word in argv], [os.fsencode(pair) for pair in pairs]
            )
        except ValueError as error:  # a NUL, or what is no character: no program can be given that
            child.dismiss()
            raise OSError(errno.EINVAL, f"{error}") from error
        if model:  # before it becomes anything: there must be no moment in which nobody knows of it
            child.birth = ChildRecord(child.pid, child.start, child.mark, model, port)
            for watcher in self.watchers:
                watcher.started(child.birth)
        child.instruct(instruction)
        self.warm(SPARE_DELAY)
        return child

    def adopt(self, birth: ChildRecord, output: int | None) -> Child:
        """Take over a child that this very process started when it ran an earlier program; `watch` it when it has an
        owner. `output` is the descriptor its output comes from. Raises OSError where there is no such child."""
        child = Child(self.clock, self.kernel, birth.mark)
        reading = {} if output is None else {1: output}
        self.adoption(self.processes, birth.pid, child, reading=reading, writing={})
        child.start = birth.start
        child.birth = birth
        for watcher in self.watchers:
            watcher.started(birth)
        return child

    def gone(self, child: Child) -> None:
        """Nothing is left of the child; who watches over it may forget it, at once or after a second look."""
        if child.birth is None:
            return
        if not child.doubtful:
            self._forget(child)
            return
        self._doubtful.append(child)
        if self._aftermath is None:
            self._aftermath = self.clock.callLater(AFTERMATH, self._look_again)

    def _forget(self, child: Child) -> None:
        birth, child.birth = child.birth, None
        if birth is not None:
            for watcher in self.watchers:
                watcher.gone(birth)

    def _look_again(self) -> None:
        """Now that nobody waits: is really nothing left of those that were taken for gone?"""
        self._aftermath = None
        doubtful, self._doubtful = self._doubtful, []
        for child in doubtful:
            left = child.remaining()
            child.looks += 1
            if not left or child.looks > LOOKS:
                self._forget(child)
                continue
            model = child.birth.model if child.birth is not None else ""
            _log.warn(
                "{model}: processes {left} left its session and are still running; killing them",
                model=model,
                left=[one.pid for one in left],
            )
            for one in left:
                self.kernel.signal_one(one.pid, signal.SIGKILL)
            self._doubtful.append(child)
        if self._doubtful and not self._closed:
            self._aftermath = self.clock.callLater(AFTERMATH, self._look_again)

    def warm(self, delay: float = 0.0) -> None:
        """Have a leader waiting, after `delay` seconds at the latest."""
        if self._spare is not None or self._closed:
            return
        if self._warming is None:
            self._warming = self.clock.callLater(delay, self._warm)
        elif self._warming.getTime() > self.clock.seconds() + delay:
            self._warming.reset(delay)

    def rest(self) -> Child | None:
        """Let the spare go, for now: the next `warm` brings another. Returns it, on its way to its end."""
        spare = self._spare
        self.close()
        self._closed = False
        return spare

    def close(self) -> None:
        """No spare is kept any more. Running children are their supervisors' affair."""
        self._closed = True
        if self._aftermath is not None:
            self._aftermath.cancel()
            self._look_again()
        if self._warming is not None:
            self._warming.cancel()
            self._warming = None
        if self._spare is not None:
            self._spare.dismiss()
            self._spare = None

    def _warm(self) -> None:
        self._warming = None
        try:
            self._spare = self._lead()
        except OSError as error:
            _log.warn("could not start a spare process: {error}", error=str(error))
            return
        spare = self._spare
        spare.attend(_NOTHING, lambda status: self._spare_died(spare))

    def _spare_died(self, spare: Child) -> None:
        if self._spare is spare:
            self._spare = None

    def _lead(self) -> Child:
        """A leader that waits for its instruction. Its stdout carries both streams; 2 is for its own first words."""
        self._born += 1
        child = Child(self.clock, self.kernel, f"{self.token}.{self._born}")
        python = sys.executable or "python3"
        self.processes.spawnProcess(
            child,
            python,
            [python, "-I", "-S", sessionleader.__file__, str(os.getpid())],
            env=dict(self.environ),
            childFDs={0: "w", 1: "r", 2: "r"},
        )
        return child
