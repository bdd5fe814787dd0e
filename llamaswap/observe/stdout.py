"""Standard output that may be a pipe nobody empties: it must never hold up the reactor.

Writes are gathered in a bounded list that one thread empties a few times a second: a thread woken for each line
would take the interpreter away from the reactor each time. When the list is full bytes are dropped, counted, and
their number is said as soon as there is room again.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

BOUND = 1024 * 1024  # bytes on their way; a terminal swallows more than this in a second
GATHER = 0.02  # seconds from a first line to the write of all that came meanwhile


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
        self._lines: deque[bytes] = deque()
        self._some = threading.Event()
        self._end = threading.Event()
        self._ended = threading.Event()
        # Each counter has one writing thread, so their difference needs no lock.
        self._put = 0
        self._done = 0
        self._missing = 0
        self.dropped = 0

    def __call__(self, data: bytes) -> None:
        """Queue `data`, or count it as dropped. Never waits."""
        if self._end.is_set():
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
        self._lines.append(data)
        if not self._some.is_set():
            self._some.set()

    @property
    def idle(self) -> bool:
        """Whether everything was written, or cannot be."""
        return self._put == self._done

    def close(self, wait: float = 0.0) -> None:
        """Let the thread end after what is queued, and give it `wait` seconds for that. Idempotent.

        The thread is a daemon: without a wait the process may end before the last lines are out.
        """
        self._end.set()
        self._some.set()
        if wait and self._start is None:
            self._ended.wait(wait)

    def _drain(self) -> None:
        while True:
            self._some.wait()
            # Whoever writes first after a pause waits a moment for those behind it; the end waits for nobody.
            ending = self._end.wait(GATHER)
            self._some.clear()  # before taking: a line that comes now is taken, or wakes us again
            lines = self._lines
            data = b"".join([lines.popleft() for _ in range(len(lines))])
            if data:
                try:
                    self._write(data)
                except (OSError, ValueError):
                    pass  # stdout is gone; the monitors still have everything, and there is no one else to tell
                self._done += len(data)
            if ending:
                self._ended.set()
                return
