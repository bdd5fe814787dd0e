"""The activity table in a file, with the newest rows also in memory for the time in which the file cannot be used.

Another program may lock the file, the disk may be full or fail, and the file may be corrupt. Rows are then kept and
questions answered from memory; the file is tried again every few seconds. Runs on the worker thread, as the store does.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import ClassVar, TypeVar

from attrs import define, field

from llamaswap.observe.activity_row import ActivityRow
from llamaswap.observe.query import ActivityFilter
from llamaswap.observe.store import DEFAULT_ROWS, ActivityStore
from llamaswap.sqlite_file import RETRY_DELAY, is_corrupt, is_unusable, set_aside

Result = TypeVar("Result")


@define(eq=False)
class FileStore:
    """An `ActivityStore` in a file that continues in memory. `problem` says why; it is empty while the file is in use.

    `say(text)` writes to the log; `renumbered()` is called when rows kept in memory have other ids in the file. Both
    are called on the worker thread. `seconds` is a monotonic clock, `stamp` the time as a part of a file's name.
    """

    durable: ClassVar[bool] = True

    _path: str
    _keep: int = DEFAULT_ROWS
    say: Callable[[str], None] = field(kw_only=True)
    renumbered: Callable[[], None] = field(kw_only=True)
    seconds: Callable[[], float] = field(kw_only=True)
    stamp: Callable[[], str] = lambda: time.strftime("%Y%m%d-%H%M%S")
    problem: str = field(default="", init=False)
    _file: ActivityStore = field(init=False)
    _newest: ActivityStore = field(init=False)
    _pending: list[ActivityRow] = field(factory=list, init=False)  # not in the file yet
    _retry_at: float = field(default=0.0, init=False)
    _first_number: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._file = ActivityStore(self._path, self._keep)
        self._newest = ActivityStore(None, self._keep)

    def number_from(self, number: int) -> None:
        """Give later rows higher ids than `number`."""
        self._first_number = number
        self._file.number_from(number)
        self._newest.number_from(number)

    def insert(self, rows: Iterable[ActivityRow]) -> list[ActivityRow]:
        """Store rows and set their ids; only in memory while the file cannot be used."""
        stored = list(rows)
        if self._in_file(lambda file: file.insert(stored)) is not None:
            self._newest.remember(stored)
            return stored
        self._newest.insert(stored)
        self._pending = (self._pending + stored)[-self._newest.keep :]
        return stored

    def ask(self, question: Callable[[ActivityStore], Result]) -> Result:
        """The result of a question to the table in the file, or to the newest rows if the file cannot be used."""
        result = self._in_file(question)
        return question(self._newest) if result is None else result

    def close(self) -> None:
        """Write the pending rows, if the file can be used, and close it. Idempotent."""
        if self._pending:
            self._retry_at = 0.0
            self._in_file(lambda file: True)
        if self._pending:
            self.say(f"{len(self._pending)} rows of activity are lost, because {self.problem}")
            self._pending = []
        self._file.close()
        self._newest.close()

    def _in_file(self, work: Callable[[ActivityStore], Result]) -> Result | None:
        """The result of work on the file; None if the file cannot be used now. Errors of the work itself are raised."""
        if self.problem and self.seconds() < self._retry_at:
            return None
        for _ in range(2):  # the second time with the file that replaces a corrupt one
            try:
                self._write_pending()
                result = work(self._file)
            except (sqlite3.Error, OSError) as error:
                if is_corrupt(error) and self._replace_corrupt(error):
                    continue
                if not is_unusable(error) and not is_corrupt(error):
                    raise
                self._failed(str(error))
                return None
            if self.problem:
                self.problem = ""
                self.say(f"the activity store {self._path} is in use again")
            return result
        self._failed("it is corrupt again")
        return None

    def _write_pending(self) -> None:
        if not self._pending:
            return
        before = [row.id for row in self._pending]
        rows = self._file.insert(self._pending)
        self._pending = []
        if before != [row.id for row in rows]:
            self._newest = ActivityStore(None, self._keep)
            self._newest.remember(rows)
            self.renumbered()

    def _failed(self, cause: str) -> None:
        with suppress(sqlite3.Error):
            self._file.close()
        self._retry_at = self.seconds() + RETRY_DELAY
        if not self.problem:
            self.say(
                f"the activity store {self._path} cannot be used: {cause}; the newest {self._newest.keep} rows are "
                f"kept in memory, and the file is tried again every {RETRY_DELAY:g} s"
            )
        self.problem = f"the activity store {self._path} cannot be used: {cause}"

    def _replace_corrupt(self, error: Exception) -> bool:
        """Rename a corrupt file and begin another with the rows in memory; False if it cannot be renamed."""
        with suppress(sqlite3.Error):
            self._file.close()
        try:
            aside = set_aside(self._path, self.stamp())
        except OSError:
            return False
        self.say(f"the activity store {self._path} is corrupt ({error}): it is kept as {aside}, and a new one begins")
        self._file = ActivityStore(self._path, self._keep)
        self._file.number_from(self._first_number)
        try:
            self._file.restore(self._newest.after(ActivityFilter(), 0, self._newest.keep))
            self._pending = []
        except (sqlite3.Error, OSError) as failure:
            self._failed(str(failure))
        return True
