"""Memory given back to the system when a crowd of connections has left.

The C library keeps what was freed in the middle of its heap. What a thousand streams needed would so stay with the
process until the next thousand come. Giving it back takes less than a millisecond.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

CROWD = 16  # connections; fewer leave nothing behind that is worth a look


def trimmer(library: ctypes.CDLL | None = None) -> Callable[[], None]:
    """What gives free memory back: glibc's own means, and nothing with other libraries."""
    trim = getattr(library or ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return lambda: None
    return lambda: trim(0)


class LowWaterTrimmer:
    """Told of each number of connections; calls `low` when half of a crowd has left, and again with each half."""

    __slots__ = ("_low", "_most")

    def __init__(self, low: Callable[[], None]) -> None:
        self._low = low
        self._most = 0

    def count(self, now: int) -> None:
        """There are so many now."""
        if now > self._most:
            self._most = now
        elif self._most >= CROWD and now <= self._most // 2:
            self._most = now
            self._low()
