"""Which weights are in this machine's page cache: a model is loaded much faster where they are."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

PIECES = 64  # of a file that are looked at, so that a look at 500 GB takes no longer than one at 1 GB
PIECE = 16 * mmap.ALLOCATIONGRANULARITY
MOSTLY = 0.75

_libc = ctypes.CDLL(None, use_errno=True)


def mostly_cached(files: Sequence[Path]) -> bool:
    """Whether most of these files, weighted by size, is in the page cache; False if that cannot be known."""
    total = cached = 0.0
    for path in files:
        try:
            size = path.stat().st_size
            cached += size * cached_share(path)
            total += size
        except OSError:
            return False
    return total > 0 and cached >= MOSTLY * total


def cached_share(path: Path) -> float:
    """The share of a file that is in the page cache, by a sample. Raises OSError."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        # Of files of others Linux says that all of their pages are there.
        if not status.st_size or not (status.st_uid == os.geteuid() or os.access(path, os.W_OK)):
            return 0.0
        step = max(PIECE, status.st_size // PIECES // PIECE * PIECE)
        there = looked = 0
        for start in range(0, status.st_size, step):
            found = _pages(file.fileno(), start, min(PIECE, status.st_size - start))
            there += sum(found)
            looked += len(found)
        return there / looked


def _pages(descriptor: int, start: int, length: int) -> list[int]:
    """For each page of a part of a file, 1 if it is in the page cache, else 0."""
    vector = (ctypes.c_ubyte * -(-length // mmap.PAGESIZE))()
    with mmap.mmap(descriptor, length, offset=start, access=mmap.ACCESS_COPY) as piece:
        first = ctypes.c_char.from_buffer(piece)
        failed = _libc.mincore(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(length), vector)
        del first  # otherwise the part cannot be unmapped
    if failed:
        raise OSError(ctypes.get_errno(), "mincore failed")
    return [page & 1 for page in vector]
