"""What must be known of our children where we no longer are: to the guardian while we run, on disk for the next start.

A record names a process by pid *and* start time, and its descendants by mark, within one run of the kernel: so a
sweep never touches a stranger who got the number later.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attrs import Factory, asdict, define, field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorProcess, IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaswap.config.private_files import private_folder
from llamaswap.servers import procfs
from llamaswap.servers.server_snapshot import Adopted, descriptors
from llamaswap.servers.spawn import ChildRecord, Kernel, process_id

SWEEP_GRACE = 2.0  # seconds an orphan has between TERM and KILL; nobody is served by it
SWEEP_PAUSE = 0.02
GIVE_UP = 5.0  # seconds after KILL
REVIVALS = 5  # how often a killed guardian is replaced; who kills it more often means it

_log = Logger()

_ROOT = str(Path(__file__).resolve().parents[2])
_GUARDIAN = f"import sys; sys.path.insert(0, {_ROOT!r}); from llamaswap.servers.guardian import main; main()"


def _announcement(record: ChildRecord) -> str:
    return f"+ {record.pid} {record.start} {record.mark}"


class _GuardianPipe(ProcessProtocol):
    """The pipe to the guardian."""

    def __init__(self, guardian: GuardianClient) -> None:
        self._guardian = guardian
        self._behind = False
        self.pid = 0

    def connectionMade(self) -> None:
        self.pid = process_id(self.transport)

    def say(self, line: str) -> None:
        """One line to the guardian, at once: who kills us the next moment must not find it in a buffer of ours."""
        transport, pipe, data = self.transport, self.pipe, line.encode() + b"\n"
        if transport is None:
            return
        if pipe is not None and not self._behind:
            try:
                data = data[self._guardian.write(pipe, data) :]
            except OSError:
                pass  # full, or nobody reads any more, of which the transport hears
        if data:
            self._behind = True
            transport.writeToChild(0, data)

    @property
    def pipe(self) -> int | None:
        """Our end of the pipe to the guardian."""
        return None if self.transport is None else descriptors(self.transport).get(0)

    def hang_up(self) -> None:
        """Nothing more will be said."""
        if self.transport is not None:
            self.transport.closeStdin()

    def processEnded(self, reason: Failure) -> None:
        self._guardian.pipe_closed(self)


@define(eq=False)
class GuardianClient:
    """Our side of `guardian.py`: started with the first child, told of each, replaced when somebody kills it."""

    processes: IReactorProcess
    environ: Mapping[str, str]
    adoption: Callable[..., Any] = Adopted
    write: Callable[[int, bytes], int] = os.write
    _line: _GuardianPipe | None = None
    _children: dict[int, ChildRecord] = Factory(dict)
    _revivals: int = 0

    @property
    def pid(self) -> int | None:
        """The guardian's process, while there is one."""
        return None if self._line is None else self._line.pid

    def handover(self) -> tuple[int, int] | None:
        """(its pid, our end of its pipe), for a program that will take our place in this process."""
        line = self._line
        if line is None or line.pipe is None:
            return None
        return line.pid, line.pipe

    def adopt(self, pid: int, pipe: int) -> None:
        """Go on with the guardian that an earlier program of this process started. OSError where there is none."""
        line = _GuardianPipe(self)
        adopted = self.adoption(self.processes, pid, line, reading={}, writing={0: pipe})
        self._line = line
        adopted.watch()

    def started(self, record: ChildRecord) -> None:
        """Watch over this child."""
        self._children[record.pid] = record
        if self._line is None:
            self._start()
        else:
            self._line.say(_announcement(record))

    def ended(self, record: ChildRecord) -> None:
        """It needs no watching any more."""
        if self._children.pop(record.pid, None) is not None and self._line is not None:
            self._line.say(f"- {record.pid}")

    def close(self) -> None:
        """The end of the line; a guardian with nobody to watch over ends at once."""
        line, self._line = self._line, None
        self._revivals = REVIVALS
        if line is not None:
            line.hang_up()

    def pipe_closed(self, line: _GuardianPipe) -> None:
        """It should not end before us."""
        if self._line is not line:
            return
        self._line = None
        _log.warn("process guardian exited unexpectedly")
        if self._children and self._revivals < REVIVALS:
            self._revivals += 1
            self._start()

    def _start(self) -> None:
        line = _GuardianPipe(self)
        python = sys.executable or "python3"
        # What there is already it is born with: between its first moment and a first line we could be killed.
        words = [python, "-I", "-S", "-c", _GUARDIAN, *map(_announcement, self._children.values())]
        try:
            self.processes.spawnProcess(line, python, words, env=dict(self.environ), childFDs={0: "w"})
        except OSError as error:
            _log.warn(
                "process guardian could not be started: {error}; servers would outlive a killed proxy", error=str(error)
            )
            return
        self._line = line


@define(eq=False)
class ChildRecordFile:
    """The children there are, in a file that is whole at every moment. `path` None keeps no record.

    A failing disk costs the next start its sweep, never a model its start.
    """

    path: Path | None
    kernel: Kernel = field(default=procfs)
    boot: str = Factory(procfs.boot)
    _children: dict[int, ChildRecord] = Factory(dict)
    _complained: bool = False

    def started(self, record: ChildRecord) -> None:
        """Note it down."""
        self._children[record.pid] = record
        self._write()

    def ended(self, record: ChildRecord) -> None:
        """Strike it out."""
        if self._children.pop(record.pid, None) is not None:
            self._write()

    def _write(self) -> None:
        if self.path is None:
            return
        me = self.kernel.stat(os.getpid())
        document = {
            "boot": self.boot,
            "pid": os.getpid(),
            "start": me.start if me else 0,
            "children": [asdict(record) for record in self._children.values()],
        }
        try:
            with private_folder(self.path.parent, make=True, links=True) as folder:
                folder.write(self.path.name, json.dumps(document).encode())
        except OSError as error:
            if not self._complained:
                self._complained = True
                _log.warn(
                    "running servers are not recorded in {path}: {error}. After a crash the next start cannot end them",
                    path=str(self.path),
                    error=error.strerror or str(error),
                )


@frozen
class SweptOrphan:
    """An orphan that was ended, and whether it is gone."""

    record: ChildRecord
    gone: bool


def read(path: Path, boot: str, kernel: Kernel, lost: int = 0) -> list[ChildRecord]:
    """The children an earlier run left, as far as the file can be believed.

    The list is empty where another user could have written the file, where it is of another run of the kernel, and
    where its writer still lives. A writer with the pid `lost` lives but has no knowledge of them any more.
    """
    try:
        with private_folder(path.parent, links=True) as folder:
            content = folder.read(path.name)
    except FileNotFoundError:
        return []
    except OSError as error:
        _log.error(
            "the record of an earlier run is not used, so its servers are not ended: {error}",
            error=f"{path} is a link; delete it" if error.errno == errno.ELOOP else error.strerror or str(error),
        )
        return []
    try:
        document = json.loads(content)
        records = [
            ChildRecord(int(one["pid"]), int(one["start"]), str(one["mark"]), str(one["model"]), one["port"])
            for one in document["children"]
        ]
        writer, start = int(document["pid"]), int(document["start"])
        same_boot = bool(boot) and document["boot"] == boot
    except (ValueError, KeyError, TypeError):
        return []
    living = kernel.stat(writer)
    if not same_boot or (writer != lost and living is not None and living.start == start and not living.dead):
        return []
    return records


def left_of(record: ChildRecord, kernel: Kernel) -> list[procfs.Stat]:
    """Living processes that surely are this child's: the leader with the known start time, with its session and
    group; and whoever carries the mark. Without the leader, number alone proves nothing."""
    found = kernel.members(record.pid, record.start, record.mark)
    leader = kernel.stat(record.pid)
    if leader is not None and leader.start == record.start:
        return found
    return [one for one in found if kernel.mark_of(one.pid) == record.mark]


def sweep(
    path: Path, clock: IReactorTime, *, boot: str | None = None, kernel: Kernel = procfs, lost: int = 0
) -> Deferred[list[SweptOrphan]]:
    """End what an earlier run of ours left behind: TERM, a grace, KILL. Fires with what was found; never fails.

    `lost` is our own pid where this process ran another program before and its children were not handed over.
    """
    records = read(path, procfs.boot() if boot is None else boot, kernel, lost)
    return Deferred.fromCoroutine(_sweep([one for one in records if one.start], clock, kernel))


async def _sweep(records: list[ChildRecord], clock: IReactorTime, kernel: Kernel) -> list[SweptOrphan]:
    found = [record for record in records if left_of(record, kernel)]
    for record in found:
        for one in left_of(record, kernel):
            kernel.signal_one(one.pid, signal.SIGTERM)
    began = clock.seconds()
    while any(left_of(record, kernel) for record in found):
        waited = clock.seconds() - began
        if waited >= SWEEP_GRACE + GIVE_UP:
            break
        if waited >= SWEEP_GRACE:
            for record in found:
                for one in left_of(record, kernel):
                    kernel.signal_one(one.pid, signal.SIGKILL)
        await deferLater(clock, SWEEP_PAUSE)
    return [SweptOrphan(record, not left_of(record, kernel)) for record in found]
