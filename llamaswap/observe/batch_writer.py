"""What the reactor gathers and one thread writes, a few times a second.

A thread woken for each piece would take the interpreter away from the reactor each time. What is on its way has a
bound: who puts more there is told that there is no room, and drops it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Piece = TypeVar("Piece")
Start = Callable[[Callable[[], None]], None]


def daemon(name: str) -> Start:
    """Starts threads of this name that never keep the process from ending: what they write to may block for ever."""
    return lambda target: threading.Thread(target=target, name=name, daemon=True).start()


class BatchWriter(Generic[Piece]):
    """`write` is called in the thread with what came within `gather` seconds; `start` runs a function in a thread.

    `bound` is in whatever unit the sizes given to `put` are. All else is called from the reactor.
    """

    def __init__(self, write: Callable[[list[Piece]], object], start: Start, *, bound: int, gather: float) -> None:
        self._write = write
        self._start: Start | None = start
        self._bound = bound
        self._gather = gather
        self._pieces: deque[tuple[Piece, int]] = deque()
        self._some = threading.Event()
        self._end = threading.Event()
        self._ended = threading.Event()
        # Each counter has one writing thread, so their difference needs no lock.
        self._put = 0
        self._done = 0

    @property
    def closed(self) -> bool:
        """Whether nothing is taken any more."""
        return self._end.is_set()

    def has_room(self, size: int) -> bool:
        """Whether a piece of this size is taken now. The thread runs from the first question on."""
        if self._start is not None:
            start, self._start = self._start, None
            start(self._loop)
        return self._put - self._done + size <= self._bound

    def put(self, piece: Piece, size: int) -> None:
        """Have it written. Never waits."""
        self._put += size
        self._pieces.append((piece, size))
        if not self._some.is_set():
            self._some.set()

    @property
    def idle(self) -> bool:
        """Whether everything was written, or cannot be."""
        return self._put == self._done

    def close(self, wait: float = 0.0) -> None:
        """Let the thread end after what is queued, and give it `wait` seconds for that. Idempotent.

        The thread is a daemon: without a wait the process may end before the last pieces are out.
        """
        self._end.set()
        self._some.set()
        if wait and self._start is None:
            self._ended.wait(wait)

    def flush(self) -> None:
        """Write what was gathered: the thread's own step."""
        pieces = [self._pieces.popleft() for _ in range(len(self._pieces))]
        if pieces:
            self._write([piece for piece, _ in pieces])
            self._done += sum(size for _, size in pieces)

    def _loop(self) -> None:
        while True:
            self._some.wait()
            # Who writes first after a pause waits a moment for those behind it; the end waits for nobody.
            ending = self._end.wait(self._gather)
            self._some.clear()  # before taking: a piece that comes now is taken, or wakes us again
            self.flush()
            if ending:
                self._ended.set()
                return
