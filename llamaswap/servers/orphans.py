"""The record of running servers on disk, and the end of those that a killed proxy left behind.

A record names a process by pid *and* start time, and its descendants by mark, within one run of the kernel, so that the
sweep never touches another process that got the number later.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from io import FileIO
from pathlib import Path

from attrs import Factory, define, field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from llamaswap.config.private_files import private_folder
from llamaswap.servers import guardian, procfs
from llamaswap.servers.spawn import ChildRecord, Kernel

LOST_AFTER = 5.0  # seconds after SIGKILL
PAGE = 4096  # bytes that the kernel takes from a write at once, whenever the process is killed
# Seconds for the guardian of the killed proxy, whose stop commands could stop what is started now.
GUARDIAN_LIMIT = guardian.GRACE + guardian.LOST_AFTER + guardian.STOP_LIMIT + 1.0

_log = Logger()


@define(eq=False)
class ChildRecordFile:
    """The running servers in a file that is complete at every moment. `path` None keeps no record.

    It is overwritten in place while it fits into a page: a start waits for the write, and to make a new file takes half
    a millisecond, ten times that while the disk is busy.

    `guardian_pid` names the guardian process. A failing disk costs the next start its sweep, never a model its start.
    `later` calls its argument after a moment: a server that has ended is taken out then, because its place may be
    wanted by the next one, and a record of it does no harm.
    """

    path: Path | None
    kernel: Kernel = field(default=procfs)
    boot: str = Factory(procfs.boot)
    guardian_pid: Callable[[], int | None] = lambda: None
    later: Callable[[Callable[[], None]], object] = lambda write: write()
    _children: dict[int, ChildRecord] = Factory(dict)
    _outdated: bool = False
    _warned: bool = False
    _file: FileIO | None = None  # the file that was written last, if it can be overwritten

    def started(self, record: ChildRecord) -> None:
        self._children[record.pid] = record
        self._write()

    def ended(self, record: ChildRecord) -> None:
        if self._children.pop(record.pid, None) is not None:
            self._outdated = True
            self.later(self.flush)

    def flush(self) -> None:
        """Write now what is to be written later."""
        if self._outdated:
            self._write()

    def close(self) -> None:
        """Write what is left to be written, and close the file."""
        self.flush()
        self._forget()

    def _write(self) -> None:
        self._outdated = False
        if self.path is None:
            return
        names = ("pid", "start", "mark", "model", "port")  # the environment of a stop command may contain secrets
        document = {
            "boot": self.boot,
            "pid": os.getpid(),
            "start": _start_of(os.getpid(), self.kernel),
            "guardian": (pid := self.guardian_pid() or 0),
            "guardian_start": _start_of(pid, self.kernel),
            "children": [{name: getattr(record, name) for name in names} for record in self._children.values()],
        }
        try:
            self._store(self.path, json.dumps(document).encode())
        except OSError as error:
            if not self._warned:
                self._warned = True
                _log.warn(
                    "running servers are not recorded in {path}: {error}. After a crash the next start cannot end them",
                    path=str(self.path),
                    error=error.strerror or str(error),
                )

    def _store(self, path: Path, content: bytes) -> None:
        content = content.ljust(PAGE)
        if len(content) == PAGE and self._overwrite(path, content):
            return
        self._forget()
        with private_folder(path.parent, make=True, links=True) as folder:
            folder.write(path.name, content)
            if len(content) == PAGE:
                self._file = folder.open(path.name)

    def _overwrite(self, path: Path, content: bytes) -> bool:
        """Whether the file of the last write was still there and has the content now."""
        if self._file is None:
            return False
        try:
            here = os.path.samestat(os.fstat(self._file.fileno()), os.lstat(path))
            return here and os.pwrite(self._file.fileno(), content, 0) == len(content)
        except OSError:
            return False

    def _forget(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


@frozen
class EarlierRun:
    """What an earlier run left: `guardian` is the pid and start time of its guardian process."""

    children: tuple[ChildRecord, ...] = ()
    guardian: tuple[int, int] = (0, 0)


@frozen
class SweptOrphan:
    """An orphan that was ended, and whether it is gone."""

    record: ChildRecord
    gone: bool


def read_record(path: Path, boot: str, kernel: Kernel, lost: int = 0) -> EarlierRun:
    """What an earlier run left, as far as the file can be trusted.

    It is empty if another user could have written the file, if it is of another run of the kernel, or if its writer
    still lives. A writer with the pid `lost` lives but no longer knows of its children.
    """
    try:
        with private_folder(path.parent, links=True) as folder:
            content = folder.read(path.name)
    except FileNotFoundError:
        return EarlierRun()
    except OSError as error:
        _log.error(
            "the record of an earlier run is not used, so its servers are not ended: {error}",
            error=f"{path} is a link; delete it" if error.errno == errno.ELOOP else error.strerror or str(error),
        )
        return EarlierRun()
    try:
        document = json.loads(content)
        children = tuple(
            ChildRecord(int(one["pid"]), int(one["start"]), str(one["mark"]), str(one["model"]), one["port"])
            for one in document["children"]
        )
        writer, start = int(document["pid"]), int(document["start"])
        run = EarlierRun(children, (int(document.get("guardian", 0)), int(document.get("guardian_start", 0))))
        same_boot = bool(boot) and document["boot"] == boot
    except (ValueError, KeyError, TypeError, AttributeError):
        return EarlierRun()
    if writer == lost and same_boot:
        return EarlierRun(run.children)  # its guardian watches this process, which lives
    return run if same_boot and not _lives(writer, start, kernel) else EarlierRun()


def processes_of(record: ChildRecord, kernel: Kernel) -> list[procfs.Stat]:
    """Living processes that certainly are this child's.

    With a session leader of the recorded start time, its session and group count; without it only the mark does.
    """
    found = kernel.members(record.pid, record.start, record.mark)
    if _start_of(record.pid, kernel) == record.start:
        return found
    return [one for one in found if kernel.mark_of(one.pid) == record.mark]


def sweep(
    path: Path, clock: IReactorTime, *, boot: str | None = None, kernel: Kernel = procfs, lost: int = 0
) -> Deferred[list[SweptOrphan]]:
    """End what an earlier run left behind, by SIGTERM and SIGKILL, after its guardian has ended. Never fails.

    `lost` is the own pid if this process ran another program before and its children were not handed over.
    """
    run = read_record(path, procfs.boot() if boot is None else boot, kernel, lost)
    return Deferred.fromCoroutine(_sweep(run, clock, kernel))


async def _sweep(run: EarlierRun, clock: IReactorTime, kernel: Kernel) -> list[SweptOrphan]:
    found = [record for record in run.children if record.start and processes_of(record, kernel)]
    until = clock.seconds() + GUARDIAN_LIMIT
    while _lives(*run.guardian, kernel) and clock.seconds() < until:
        await deferLater(clock, guardian.CHECK_PAUSE)
    find = lambda: [one.pid for record in found for one in processes_of(record, kernel)]
    for _ in guardian.termination_steps(find, kernel.signal_one, clock.seconds, LOST_AFTER):
        await deferLater(clock, guardian.CHECK_PAUSE)
    return [SweptOrphan(record, not processes_of(record, kernel)) for record in found]


def _start_of(pid: int, kernel: Kernel) -> int:
    """When a process started; 0 if that is not known."""
    process = kernel.stat(pid) if pid else None
    return process.start if process is not None else 0


def _lives(pid: int, start: int, kernel: Kernel) -> bool:
    process = kernel.stat(pid) if pid else None
    return process is not None and process.start == start and not process.dead
