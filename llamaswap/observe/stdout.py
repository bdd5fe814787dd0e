"""Standard output, which may be a pipe that no program reads: it must never block the reactor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from llamaswap.observe.batch_writer import BatchWriter, Piece, Start

BOUND = 1024 * 1024  # bytes on their way: more than a terminal shows in a second
WRITE_DELAY = 0.02  # seconds between a first line and the write of all lines since then


class StdoutWriter(BatchWriter):
    """Call it with bytes. `write_bytes` is the blocking writer (flushing), `start` runs a function in a thread."""

    def __init__(
        self, write_bytes: Callable[[bytes], object], *, start: Start | None = None, bound: int = BOUND
    ) -> None:
        def write(pieces: Sequence[Piece]) -> None:
            with suppress(OSError, ValueError):  # stdout is closed; the logs are still in memory
                write_bytes(b"".join(data for _, data in pieces))

        super().__init__(write=write, thread_name="stdout", bound=bound, delay=WRITE_DELAY, start=start)

    def __call__(self, data: bytes) -> None:
        """Have `data` written, or count it as dropped. Never waits."""
        self.put("", data)
