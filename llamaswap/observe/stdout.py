"""Standard output that may be a pipe nobody empties: it must never hold up the reactor.

When too much waits for it bytes are dropped, counted, and their number is said as soon as there is room again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from llamaswap.observe.batch_writer import BatchWriter, Start, daemon
from llamaswap.observe.logs import dropped_marker

BOUND = 1024 * 1024  # bytes on their way; a terminal swallows more than this in a second
GATHER = 0.02  # seconds from a first line to the write of all that came meanwhile


class StdoutWriter:
    """Call it with bytes. `write` is the blocking writer (flushing), `start` runs a function in a thread."""

    def __init__(self, write: Callable[[bytes], object], *, start: Start | None = None, bound: int = BOUND) -> None:
        self._write = write
        self._lines = BatchWriter(self._flush, start or daemon("stdout"), bound=bound, gather=GATHER)
        self._missing = 0
        self.dropped = 0
        self.close = self._lines.close
        self.flush = self._lines.flush

    def __call__(self, data: bytes) -> None:
        """Queue `data`, or count it as dropped. Never waits."""
        lines = self._lines
        if lines.closed:
            return
        if not lines.has_room(len(data)):
            self._missing += len(data)
            self.dropped += len(data)
            return
        if self._missing:
            data = dropped_marker(self._missing) + data
            self._missing = 0
        lines.put(data, len(data))

    @property
    def idle(self) -> bool:
        """Whether everything was written, or cannot be."""
        return self._lines.idle

    def _flush(self, lines: list[bytes]) -> None:
        with suppress(OSError, ValueError):  # stdout is gone: the monitors have everything, nobody else is to be told
            self._write(b"".join(lines))
