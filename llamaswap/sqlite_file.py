"""What SQLite files that several parts keep have in common: private to the user, and replaced if they are corrupt.

Blocks: for a worker's thread.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress

RETRY_DELAY = 5.0  # seconds between two tries of a file that cannot be used

_CORRUPT = ("malformed", "not a database")
_UNUSABLE = ("locked", "busy", "unable to open", "readonly", "disk i/o error", "is full", "no such table")


def is_corrupt(error: Exception) -> bool:
    """Whether the file contains something else than a database."""
    return isinstance(error, sqlite3.DatabaseError) and any(words in str(error).lower() for words in _CORRUPT)


def is_unusable(error: Exception) -> bool:
    """Whether the file caused the error, not the question or the row."""
    return isinstance(error, OSError) or any(words in str(error).lower() for words in _UNUSABLE)


def connect(path: str | None, timeout: float) -> sqlite3.Connection:
    """The database in this file, or in memory. One thread uses it at a time, but not always the same one.

    `timeout` are the seconds to wait for another program's lock.
    """
    if path is not None:
        # SQLite would make it readable for all users; the files that it makes beside it get the same mode.
        with suppress(OSError):  # the file exists, or SQLite says why it cannot be made
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path or ":memory:", timeout=timeout, isolation_level=None, check_same_thread=False)
    try:
        if path is not None:
            connection.execute("PRAGMA journal_mode = WAL")
            # With a write-ahead log a power failure loses at most the last rows, never the file.
            connection.execute("PRAGMA synchronous = NORMAL")
    except BaseException:
        connection.close()
        raise
    return connection


def set_aside(path: str, stamp: str) -> str:
    """Rename a corrupt file, so that another can begin; returns its new name. Raises OSError."""
    aside = f"{path}.corrupt-{stamp}"
    os.rename(path, aside)
    for suffix in ("-wal", "-shm"):
        with suppress(FileNotFoundError):
            os.rename(path + suffix, aside + suffix)
    return aside
