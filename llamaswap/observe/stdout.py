"""Standard output that may be a pipe nobody empties: it must never hold up the reactor.

Writes go into a bounded queue that one thread empties. When the queue is full bytes are dropped, counted,
and their number is said as soon as there is room again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

BOUND = 1024 * 1024  # bytes on their way; a terminal swallows more than this in a second


def _daemon(target: Callable[[], None]) -> None:
    # A daemon: a blocked pipe must not keep the process from ending.
    threading.Thread(target=target, name="stdout", daemon=True).start()


class StdoutWriter:
    """Call it with bytes. `write` is the blocking writer (flushing), `start` runs a function in a thread."""

    def __init__(
        self,
        write: Callable[[bytes], object],
        *,
        start: Callable[[Callable[[], None]], None] = _daemon,
        bound: int = BOUND,
    ) -> None:
        self._write = write
        self._start: Callable[[Callable[[], None]], None] | None = start
        self._bound = bound
        self._queue: SimpleQueue[bytes | None] = SimpleQueue()
        # Each counter has one writing thread, so their difference needs no lock.
        self._put = 0
        self._done = 0
        self._missing = 0
        self._closed = False
        self.dropped = 0

    def __call__(self, data: bytes) -> None:
        """Queue `data`, or count it as dropped. Never waits."""
        if self._closed:
            return
        if self._start is not None:
            start, self._start = self._start, None
            start(self._drain)
        if self._put - self._done + len(data) > self._bound:
            self._missing += len(data)
            self.dropped += len(data)
            return
        if self._missing:
            data = f"\n\N{EM DASH} {self._missing} bytes dropped \N{EM DASH}\n".encode() + data
            self._missing = 0
        self._put += len(data)
        self._queue.put(data)

    def close(self) -> None:
        """Let the thread end after what is queued. Idempotent."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)

    def _drain(self) -> None:
        while True:
            data = self._queue.get()
            if data is None:
                return
            try:
                self._write(data)
            except (OSError, ValueError):
                pass  # stdout is gone; the monitors still have everything, and there is no one else to tell
            self._done += len(data)
