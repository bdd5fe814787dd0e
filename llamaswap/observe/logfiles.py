"""Logs in files, one per log, each rotated at its size: for those who want to read them later, without another program.

One thread writes what was gathered; whoever logs never waits for a disk. What a full or broken disk does not take is
dropped and counted, and said in the file as soon as it takes something again. A file is opened for each write, so that
it may be moved or deleted at any time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

from attrs import frozen

from llamaswap.config.filenames import filename_for
from llamaswap.observe.batch_writer import BatchWriter, Start, daemon
from llamaswap.observe.logs import dropped_marker

BOUND = 4 * 1024 * 1024  # bytes on their way to the disk
GATHER = 0.25  # seconds from a first line to the write of all that came meanwhile
PAUSE = 5.0  # seconds for which a disk that takes nothing is left alone
LONGEST_NAME = 150  # characters of a log's name in its file's; a file system takes 255 bytes
MODE = 0o640  # what models print is not for everybody
FOLDER_MODE = 0o750
# A link in place of a log file would have us write to whatever file another user chose.
OPEN_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


@frozen
class LogFileLimits:
    """`folder` is made where it is missing; a file of more than `size` bytes is put aside, `keep` of them are kept."""

    folder: str
    size: int
    keep: int


def file_name(log: str) -> str:
    """The name of a log's file."""
    return filename_for(log, ":@+")[:LONGEST_NAME] + ".log"


class LogFiles:
    """Call `write` from the reactor. `report` is called in the thread, once for each time the disk begins to refuse."""

    def __init__(
        self,
        settings: LogFileLimits | None,
        report: Callable[[str], object],
        *,
        start: Start | None = None,
        clock: Callable[[], float] = time.monotonic,
        bound: int = BOUND,
    ) -> None:
        self._settings = settings
        self._report = report
        self._clock = clock
        self._pieces = BatchWriter(self._sort, start or daemon("logfiles"), bound=bound, gather=GATHER)
        self._overflow: dict[str, int] = {}
        self._missing: dict[str, int] = {}
        self._refuses = False
        self._again_at = 0.0
        self.close = self._pieces.close
        self.flush = self._pieces.flush

    # -- the reactor's side --------------------------------------------------------------------------------

    def retune(self, settings: LogFileLimits | None) -> None:
        """Write there from now on; None: nowhere."""
        self._settings = settings

    def write(self, log: str, data: bytes) -> None:
        """Have `data` written to a log's file, or count it as dropped. Never waits."""
        pieces = self._pieces
        if self._settings is None or pieces.closed:
            return
        if not pieces.has_room(len(data)):
            self._overflow[log] = self._overflow.get(log, 0) + len(data)
            return
        if log in self._overflow:
            data = dropped_marker(self._overflow.pop(log)) + data
        pieces.put((log, data), len(data))

    @property
    def idle(self) -> bool:
        """Whether everything was written, or cannot be."""
        return self._pieces.idle

    # -- the thread's side ---------------------------------------------------------------------------------

    def _sort(self, pieces: list[tuple[str, bytes]]) -> None:
        gathered: dict[str, list[bytes]] = {}
        for log, data in pieces:
            gathered.setdefault(log, []).append(data)
        settings = self._settings
        if settings is not None:
            for log, parts in gathered.items():
                self._keep(settings, log, b"".join(parts))

    def _keep(self, settings: LogFileLimits, log: str, data: bytes) -> None:
        lost = self._missing.pop(log, 0)
        if self._refuses and self._clock() < self._again_at:
            self._missing[log] = lost + len(data)
            return
        told = dropped_marker(lost) + data if lost else data
        left = len(told)
        try:
            for piece in _append(settings, file_name(log), told):
                left -= piece
            self._refuses = False
        except OSError as error:
            self._missing[log] = lost + min(left, len(data))
            self._again_at = self._clock() + PAUSE
            if not self._refuses:
                self._refuses = True
                self._report(f"log files cannot be written in {settings.folder}: {error.strerror or error}")


def _append(settings: LogFileLimits, name: str, data: bytes) -> Iterator[int]:
    """Add to a file, putting it aside whenever it is full; tells the bytes written in each go. Raises OSError."""
    os.makedirs(settings.folder, FOLDER_MODE, exist_ok=True)
    path = os.path.join(settings.folder, name)
    while data:
        descriptor = os.open(path, OPEN_FLAGS, MODE)
        try:
            there = os.fstat(descriptor).st_size
            room = settings.size - there
            cut = len(data) if len(data) <= room else data.rfind(b"\n", 0, max(0, room)) + 1
            if not cut and not there:
                cut = room  # a line longer than a file
            if cut:
                count = os.write(descriptor, data[:cut])
                data = data[count:]
        finally:
            os.close(descriptor)
        if cut:
            yield count
        else:
            _put_aside(path, settings.keep)


def _put_aside(path: str, keep: int) -> None:
    """NAME becomes NAME.1, that NAME.2, and so on; the oldest goes."""
    if not keep:
        os.unlink(path)
        return
    for number in range(keep - 1, 0, -1):
        if os.path.exists(f"{path}.{number}"):
            os.replace(f"{path}.{number}", f"{path}.{number + 1}")
    os.replace(path, f"{path}.1")
