"""Logs in files, one per log, each rotated at its size.

A thread writes, so that logging never waits for a disk. Bytes that a full or broken disk does not take are dropped and
counted; the file says so when it can be written again. A file is opened for each write, so that it may be moved or
deleted at any time. twisted.python.logfile does not fit: it keeps the file open, follows a symbolic link in its place,
exceeds the size by a whole write and cannot keep 0 old files.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence

from attrs import define, field, frozen

from llamaswap.config.filenames import filename_for
from llamaswap.observe.batch_writer import BatchWriter, Piece
from llamaswap.observe.logs import dropped_marker

BOUND = 4 * 1024 * 1024  # bytes on their way to the disk
WRITE_DELAY = 0.25  # seconds between a first line and the write of all lines since then
RETRY_DELAY = 5.0  # seconds between two tries of a disk that refuses writes
MAX_NAME = 150  # characters of a log's name in its file's name; a file system takes 255 bytes
MODE = 0o640  # other users must not read the output of models
FOLDER_MODE = 0o750
# A link in place of a log file would let another user choose the file that we write to.
OPEN_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


@frozen
class LogFileLimits:
    """`folder` is made if it is missing; a file of `size` bytes is rotated, and `keep` rotated files are kept."""

    folder: str
    size: int
    keep: int


def file_name(log: str) -> str:
    """The name of a log's file."""
    return filename_for(log, ":@+")[:MAX_NAME] + ".log"


@define(eq=False)
class LogFiles(BatchWriter):
    """Call `write` from the reactor. `report` is called in the thread, once whenever the disk begins to refuse."""

    thread_name = "logfiles"
    delay = WRITE_DELAY
    _settings: LogFileLimits | None
    _report: Callable[[str], object]
    _clock: Callable[[], float] = field(default=time.monotonic, kw_only=True)
    _bound: int = field(default=BOUND, kw_only=True)
    _unwritten: dict[str, int] = field(factory=dict, init=False)
    _refused: bool = field(default=False, init=False)
    _retry_at: float = field(default=0.0, init=False)

    def retune(self, settings: LogFileLimits | None) -> None:
        """A reload changed the settings; with None nothing is written."""
        self._settings = settings

    def write(self, log: str, data: bytes) -> None:
        """Have `data` written to a log's file, or count it as dropped. Never waits."""
        if self._settings is not None:
            self.put(log, data)

    # -- in the thread -------------------------------------------------------------------------------------

    def write_pieces(self, pieces: Sequence[Piece]) -> None:
        by_log: dict[str, list[bytes]] = {}
        for log, data in pieces:
            by_log.setdefault(log, []).append(data)
        settings = self._settings
        if settings is not None:
            for log, parts in by_log.items():
                self._write_file(settings, log, b"".join(parts))

    def _write_file(self, settings: LogFileLimits, log: str, data: bytes) -> None:
        missing = self._unwritten.pop(log, 0)
        if self._refused and self._clock() < self._retry_at:
            self._unwritten[log] = missing + len(data)
            return
        content = dropped_marker(missing) + data if missing else data
        left = len(content)
        try:
            for written in _append(settings, file_name(log), content):
                left -= written
            self._refused = False
        except OSError as error:
            self._unwritten[log] = missing + min(left, len(data))
            self._retry_at = self._clock() + RETRY_DELAY
            if not self._refused:
                self._refused = True
                self._report(f"log files cannot be written in {settings.folder}: {error.strerror or error}")


def _append(settings: LogFileLimits, name: str, data: bytes) -> Iterator[int]:
    """Append to a file, and rotate it whenever it is full; yields the bytes of each write. Raises OSError."""
    os.makedirs(settings.folder, FOLDER_MODE, exist_ok=True)
    path = os.path.join(settings.folder, name)
    while data:
        descriptor = os.open(path, OPEN_FLAGS, MODE)
        try:
            size = os.fstat(descriptor).st_size
            room = settings.size - size
            cut = len(data) if len(data) <= room else data.rfind(b"\n", 0, max(0, room)) + 1
            if not cut and not size:
                cut = room  # the line is longer than a file
            if cut:
                count = os.write(descriptor, data[:cut])
                data = data[count:]
        finally:
            os.close(descriptor)
        if cut:
            yield count
        else:
            _rotate(path, settings.keep)


def _rotate(path: str, keep: int) -> None:
    """NAME becomes NAME.1, that NAME.2, and so on; the oldest is deleted."""
    if not keep:
        os.unlink(path)
        return
    for number in range(keep - 1, 0, -1):
        if os.path.exists(f"{path}.{number}"):
            os.replace(f"{path}.{number}", f"{path}.{number + 1}")
    os.replace(path, f"{path}.1")
