"""Bytes of several logs that the reactor collects and one thread writes, a few times a second.

A thread woken for each piece would take the interpreter from the reactor each time. The bytes on their way have a
bound: what does not fit is dropped and counted, and the next bytes of that log begin with a line that says so.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from llamaswap.observe.logs import dropped_marker

Piece = tuple[str, bytes]  # a log's name, and bytes for it
Start = Callable[[Callable[[], None]], None]


class BatchWriter:
    """`write` is called in the thread `thread_name` with the pieces of `delay` seconds. Call all else from the reactor.

    `bound` is in bytes; `start` runs a function in a thread.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Piece]], object],
        thread_name: str,
        *,
        bound: int,
        delay: float,
        start: Start | None = None,
    ) -> None:
        self._write = write
        self._thread_name = thread_name
        self._start: Start | None = start or self._start_daemon
        self._bound = bound
        self._delay = delay
        self._pieces: deque[Piece] = deque()
        self._missing: dict[str, int] = {}
        self.dropped = 0
        self._filled = threading.Event()
        self._closing = threading.Event()
        self._ended = threading.Event()
        # Each counter is written by one thread, so their difference needs no lock.
        self._put = 0
        self._done = 0

    def put(self, log: str, data: bytes) -> None:
        """Have `data` written, or count it as dropped. Never waits; the first call starts the thread."""
        if self._closing.is_set():
            return
        if self._start is not None:
            start, self._start = self._start, None
            start(self._loop)
        if self._put - self._done + len(data) > self._bound:
            self._missing[log] = self._missing.get(log, 0) + len(data)
            self.dropped += len(data)
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
        if wait and self._start is None:
            self._ended.wait(wait)

    def flush(self) -> None:
        """Write the collected pieces: the thread's step."""
        pieces = [self._pieces.popleft() for _ in range(len(self._pieces))]
        if pieces:
            self._write(pieces)
            self._done += sum(len(data) for _, data in pieces)

    def _start_daemon(self, target: Callable[[], None]) -> None:
        threading.Thread(target=target, name=self._thread_name, daemon=True).start()

    def _loop(self) -> None:
        while True:
            self._filled.wait()
            closing = self._closing.wait(self._delay)
            self._filled.clear()  # before taking the pieces: one that comes now is taken, or wakes the thread again
            self.flush()
            if closing:
                self._ended.set()
                return
