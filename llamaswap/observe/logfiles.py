"""Logs in files, one per log, each rotated at its size: for those who want to read them later, without another program.

One thread writes what was gathered; whoever logs never waits for a disk. What a full or broken disk does not take is
dropped and counted, and said in the file as soon as it takes something again. A file is opened for each write, so that
it may be moved or deleted at any time.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from attrs import frozen

from llamaswap.observe.logs import dropped_marker

BOUND = 4 * 1024 * 1024  # bytes on their way to the disk
GATHER = 0.25  # seconds from a first line to the write of all that came meanwhile
PAUSE = 5.0  # seconds for which a disk that takes nothing is left alone
LONGEST_NAME = 150  # characters of a log's name in its file's; a file system takes 255 bytes
MODE = 0o640  # what models print is not for everybody


@frozen
class Settings:
    """`folder` is made where it is missing; a file of more than `size` bytes is put aside, `keep` of them are kept."""

    folder: str
    size: int
    keep: int


def file_name(log: str) -> str:
    """The name of a log's file; a model's id may have slashes."""
    return re.sub(r"[^A-Za-z0-9._:@+-]", "_", log)[:LONGEST_NAME].lstrip(".") + ".log"


def _daemon(target: Callable[[], None]) -> None:
    threading.Thread(target=target, name="logfiles", daemon=True).start()


class LogFiles:
    """Call `write` from the reactor. `report` is called in the thread, once for each time the disk begins to refuse."""

    def __init__(
        self,
        settings: Settings | None,
        report: Callable[[str], object],
        *,
        start: Callable[[Callable[[], None]], None] = _daemon,
        clock: Callable[[], float] = time.monotonic,
        bound: int = BOUND,
    ) -> None:
        self._settings = settings
        self._report = report
        self._start: Callable[[Callable[[], None]], None] | None = start
        self._clock = clock
        self._bound = bound
        self._pieces: deque[tuple[str, bytes]] = deque()
        self._some = threading.Event()
        self._end = threading.Event()
        self._ended = threading.Event()
        # Each counter has one writing thread, so their difference needs no lock.
        self._put = 0
        self._done = 0
        self._overflow: dict[str, int] = {}
        self._missing: dict[str, int] = {}
        self._refuses = False
        self._again_at = 0.0

    # -- the reactor's side --------------------------------------------------------------------------------

    def retune(self, settings: Settings | None) -> None:
        """Write there from now on; None: nowhere."""
        self._settings = settings

    def write(self, log: str, data: bytes) -> None:
        """Have `data` written to a log's file, or count it as dropped. Never waits."""
        if self._settings is None or self._end.is_set():
            return
        if self._start is not None:
            start, self._start = self._start, None
            start(self._loop)
        if self._put - self._done + len(data) > self._bound:
            self._overflow[log] = self._overflow.get(log, 0) + len(data)
            return
        if log in self._overflow:
            data = dropped_marker(self._overflow.pop(log)) + data
        self._put += len(data)
        self._pieces.append((log, data))
        if not self._some.is_set():
            self._some.set()

    @property
    def idle(self) -> bool:
        """Whether everything was written, or cannot be."""
        return self._put == self._done

    def close(self, wait: float = 0.0) -> None:
        """Let the thread end after what is queued, and give it `wait` seconds for that. Idempotent."""
        self._end.set()
        self._some.set()
        if wait and self._start is None:
            self._ended.wait(wait)

    # -- the thread's side ---------------------------------------------------------------------------------

    def _loop(self) -> None:
        while True:
            self._some.wait()
            ending = self._end.wait(GATHER)
            self._some.clear()
            self.flush()
            if ending:
                self._ended.set()
                return

    def flush(self) -> None:
        """Write what was gathered."""
        gathered: dict[str, list[bytes]] = {}
        taken = 0
        for _ in range(len(self._pieces)):
            log, data = self._pieces.popleft()
            gathered.setdefault(log, []).append(data)
            taken += len(data)
        settings = self._settings
        for log, pieces in gathered.items():
            if settings is not None:
                self._keep(settings, log, b"".join(pieces))
        self._done += taken

    def _keep(self, settings: Settings, log: str, data: bytes) -> None:
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


def _append(settings: Settings, name: str, data: bytes) -> Iterator[int]:
    """Add to a file, putting it aside whenever it is full; tells the bytes written in each go. Raises OSError."""
    os.makedirs(settings.folder, exist_ok=True)
    path = os.path.join(settings.folder, name)
    while data:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, MODE)
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
