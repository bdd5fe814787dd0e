"""Bytes of several logs that the reactor collects and one thread writes, a few times a second.

A thread woken for each piece would take the interpreter from the reactor each time. The bytes on their way have a
bound: what does not fit is dropped and counted, and the next bytes of that log begin with a line that says so.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import ClassVar

from attrs import define, field

from llamaswap.observe.logs import dropped_marker

STDOUT_BOUND = 1024 * 1024  # bytes on their way: more than a terminal shows in a second

Piece = tuple[str, bytes]  # a log's name, and bytes for it
Start = Callable[[Callable[[], None]], None]


@define(eq=False)
class BatchWriter(ABC):
    """The thread calls `write_pieces`, which a subclass defines, with the pieces of `delay` seconds. Call all else from
    the reactor.

    `bound` is in bytes; `start` runs a function in a thread.
    """

    thread_name: ClassVar[str]
    delay: ClassVar[float]
    _bound: int = field(kw_only=True)
    _start: Start | None = field(default=None, kw_only=True)
    _pieces: deque[Piece] = field(factory=deque, init=False)
    _missing: dict[str, int] = field(factory=dict, init=False)
    _started: bool = field(default=False, init=False)
    _filled: threading.Event = field(factory=threading.Event, init=False)
    _closing: threading.Event = field(factory=threading.Event, init=False)
    _ended: threading.Event = field(factory=threading.Event, init=False)
    # Each counter is written by one thread, so their difference needs no lock.
    _put: int = field(default=0, init=False)
    _done: int = field(default=0, init=False)

    def put(self, log: str, data: bytes) -> None:
        """Have `data` written, or count it as dropped. Never waits; the first call starts the thread."""
        if self._closing.is_set():
            return
        if not self._started:
            self._started = True
            (self._start or self._start_daemon)(self._loop)
        if self._put - self._done + len(data) > self._bound:
            self._missing[log] = self._missing.get(log, 0) + len(data)
            return
        if log in self._missing:
            data = dropped_marker(self._missing.pop(log)) + data
        self._put += len(data)
        self._pieces.append((log, data))
        if not self._filled.is_set():
            self._filled.set()

    @property
    def idle(self) -> bool:
        """Whether every byte was written, or cannot be."""
        return self._put == self._done

    def close(self, wait: float = 0.0) -> None:
        """Let the thread end after the last piece, and wait at most `wait` seconds for that. Idempotent.

        The thread is a daemon, because its writes may block for ever: without a wait the process may end before the
        last pieces are written.
        """
        self._closing.set()
        self._filled.set()
        if wait and self._started:
            self._ended.wait(wait)

    def flush(self) -> None:
        """Write the collected pieces: the thread's step."""
        pieces = [self._pieces.popleft() for _ in range(len(self._pieces))]
        if pieces:
            self.write_pieces(pieces)
            self._done += sum(len(data) for _, data in pieces)

    @abstractmethod
    def write_pieces(self, pieces: Sequence[Piece]) -> None:
        """Write the pieces; may block."""

    def _start_daemon(self, target: Callable[[], None]) -> None:
        threading.Thread(target=target, name=self.thread_name, daemon=True).start()

    def _loop(self) -> None:
        while True:
            self._filled.wait()
            closing = self._closing.wait(self.delay)
            self._filled.clear()  # before taking the pieces: one that comes now is taken, or wakes the thread again
            self.flush()
            if closing:
                self._ended.set()
                return


@define(eq=False)
class StdoutWriter(BatchWriter):
    """Standard output, which may be a pipe that no program reads. `write_bytes` is the blocking writer (flushing)."""

    thread_name = "stdout"
    delay = 0.02  # after a first line
    _write_bytes: Callable[[bytes], object]
    _bound: int = field(default=STDOUT_BOUND, kw_only=True)

    def __call__(self, data: bytes) -> None:
        """Have `data` written, or count it as dropped. Never waits."""
        self.put("", data)

    def write_pieces(self, pieces: Sequence[Piece]) -> None:
        with suppress(OSError, ValueError):  # stdout is closed; the logs are still in memory
            self._write_bytes(b"".join(data for _, data in pieces))
