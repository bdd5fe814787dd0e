"""The activity table: SQLite, in memory or in a file that the Go program's versions can open as well.

Questions, and everything about a file, block: they are for one worker thread. Rows of a table in memory are queued
until a question is asked, because most of them are dropped before that. This module must not know Deferreds, HTTP or
the clock.
"""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import chain
from operator import attrgetter
from typing import TypeVar

from attrs import frozen

from llamaswap.observe.activity_row import USAGE_COLUMNS, ActivityRow
from llamaswap.observe.query import ActivityFilter, ActivityQuery
from llamaswap.observe.stats import deciles, histogram, p95
from llamaswap.sqlite_file import connect
from llamaswap.wire.usage import Usage

DEFAULT_ROWS = 1000  # rows that a table in memory keeps unless metricsMaxInMemory is set
MAX_GROUPS = 10_000  # combinations in an answer about usage
# By what usage can be summed: times are the unix seconds at which an hour or a day (UTC) begins.
USAGE_GROUPS = {
    "key": "COALESCE(key_name, '')",
    "model": "model_id",
    "client": "COALESCE(client, '')",
    "session": "COALESCE(session, '')",
    "hour": "ts_created / 3600 * 3600",
    "day": "ts_created / 86400 * 86400",
}
_SUMMED = ("input_tokens", "output_tokens", "cache_tokens", "duration_ms")
# Errors of requests that clients or operators ended: they are not counted as failed.
ENDED_BY_CLIENT = "'client disconnected', 'request cancelled'"
LOCK_TIMEOUT = 1.0  # seconds to wait for another program's lock on the file

Result = TypeVar("Result")
Document = dict[str, object]
Values = tuple[object, ...]

_COLUMNS = ", ".join(
    (
        *("ts_created", "model_id", "req_path", "resp_content_type", "resp_status_code"),
        *USAGE_COLUMNS,
        *("duration_ms", "error_msg", "metadata_json"),
    )
)
_SOURCE = (
    "FROM activity LEFT JOIN request_origin ON activity_id = id LEFT JOIN request_key ON keyed_activity_id = id "
    "LEFT JOIN request_times ON timed_activity_id = id"
)
_TIMES = "COALESCE(first_token_ms, -1), COALESCE(loaded_ms, 0)"
_SELECT = (
    f"SELECT {_COLUMNS}, COALESCE(session, ''), COALESCE(client, ''), id, COALESCE(key_name, ''), {_TIMES} {_SOURCE}"
)

# Names, types and versions are those of the Go program's files. `request_origin`, `request_key` and `request_times` are
# ours: other programs and older versions ignore them, and their rows have none.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS goose_db_version (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    version_id INTEGER NOT NULL,
    is_applied INTEGER NOT NULL,
    tstamp TIMESTAMP DEFAULT (datetime('now'))
);
CREATE TABLE IF NOT EXISTS activity (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    ts_created INTEGER NOT NULL,
    model_id TEXT NOT NULL,
    req_path TEXT NOT NULL,
    resp_content_type TEXT NOT NULL,
    resp_status_code INTEGER NOT NULL DEFAULT 0,
    cache_tokens INTEGER NOT NULL DEFAULT 0,
    draft_tokens INTEGER NOT NULL DEFAULT 0,
    draft_acc_tokens INTEGER NOT NULL DEFAULT 0,
    input_tokens INTEGER NOT NULL DEFAULT 0,
    output_tokens INTEGER NOT NULL DEFAULT 0,
    prompt_per_second REAL NOT NULL DEFAULT 0,
    tokens_per_second REAL NOT NULL DEFAULT 0,
    duration_ms INTEGER NOT NULL DEFAULT 0,
    error_msg TEXT NOT NULL DEFAULT '',
    metadata_json TEXT NOT NULL DEFAULT ''
);
CREATE INDEX IF NOT EXISTS idx_activity_created_id ON activity (ts_created DESC, id DESC);
CREATE INDEX IF NOT EXISTS idx_activity_model_created_id ON activity (model_id, ts_created DESC, id DESC);
CREATE TABLE IF NOT EXISTS request_origin (
    activity_id INTEGER PRIMARY KEY,
    session TEXT NOT NULL,
    client TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS request_key (
    keyed_activity_id INTEGER PRIMARY KEY,
    key_name TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS request_times (
    timed_activity_id INTEGER PRIMARY KEY,
    first_token_ms INTEGER NOT NULL,
    loaded_ms INTEGER NOT NULL
);
"""
_ENCODE = json.JSONEncoder(ensure_ascii=False).encode  # made once: json.dumps makes an encoder for each row
# Several rows are inserted by one statement, because the interpreter is released and taken back for each statement,
# which may have to wait for the reactor's thread. Old libraries take at most 999 values.
_ROWS_PER_STATEMENT = (60, 15, 4, 1)
_usage_values = attrgetter(*USAGE_COLUMNS)


@frozen
class ActivityPage:
    """The rows of one page, and the number of rows on all pages."""

    rows: tuple[ActivityRow, ...]
    page: int
    limit: int
    total: int

    @property
    def total_pages(self) -> int:
        """0 without rows."""
        return -(-self.total // self.limit)


@lru_cache(maxsize=3 * len(_ROWS_PER_STATEMENT))
def _insertion(into: str, columns: int, rows: int) -> str:
    row = f"({', '.join('?' * columns)})"
    return f"INSERT OR REPLACE INTO {into} VALUES {', '.join([row] * rows)}"


def _insert(connection: sqlite3.Connection, into: str, rows: Sequence[Values]) -> int:
    """Insert rows of values, in order; returns the id of the last one."""
    done = last = 0
    for count in _ROWS_PER_STATEMENT:
        while len(rows) - done >= count:
            some = rows[done : done + count]
            statement = _insertion(into, len(some[0]), count)
            last = connection.execute(statement, tuple(chain.from_iterable(some))).lastrowid or 0
            done += count
    return last


def _insert_origins(connection: sqlite3.Connection, rows: Sequence[ActivityRow]) -> None:
    origins = [(row.id, row.session, row.client) for row in rows if row.session or row.client]
    _insert(connection, "request_origin", origins)
    _insert(connection, "request_key", [(row.id, row.key) for row in rows if row.key])
    times = [(row.id, row.first_token_ms, row.loaded_ms) for row in rows if row.first_token_ms >= 0 or row.loaded_ms]
    _insert(connection, "request_times", times)


def _insert_with_ids(connection: sqlite3.Connection, rows: Sequence[ActivityRow]) -> None:
    _insert(connection, f"activity (id, {_COLUMNS})", [(row.id, *_values(row)) for row in rows])
    _insert_origins(connection, rows)


def _number_from(connection: sqlite3.Connection, number: int) -> None:
    """Let ids begin after `number`, unless they are beyond it."""
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        (last,) = connection.execute("SELECT MAX(seq) FROM sqlite_sequence WHERE name = 'activity'").fetchone()
        if number > (last or 0):
            connection.execute("DELETE FROM sqlite_sequence WHERE name = 'activity'")
            connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('activity', ?)", (number,))


def _values(row: ActivityRow) -> Values:
    return (
        row.created,
        row.model,
        row.req_path,
        row.resp_content_type,
        row.resp_status_code,
        *_usage_values(row.usage),
        row.duration_ms,
        row.error_msg,
        _ENCODE(dict(row.metadata)) if row.metadata else "",
    )


def _row(record: sqlite3.Row) -> ActivityRow:
    created, model, path, content_type, status, *counts, duration, error, metadata = record[:-6]
    session, client, number, key, first_token, loaded = record[-6:]
    usage = Usage(**dict(zip(USAGE_COLUMNS, counts, strict=True)))
    known = _metadata(metadata)
    charge = None
    return ActivityRow(
        *(created, model, path, content_type, status, usage, duration, error, known, session, client, number, key),
        *(charge, first_token, loaded),
    )


def _metadata(text: str) -> dict[str, str]:
    try:
        value = json.loads(text) if text else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


class ActivityStore:
    """Opened by its first use, on the thread that uses it. With `path` None the newest `keep` rows are in memory."""

    problem = ""  # why the table is not in its file now

    def __init__(self, path: str | None = None, keep: int = DEFAULT_ROWS) -> None:
        self._path = path
        self.keep = keep if keep > 0 else DEFAULT_ROWS
        self._connection: sqlite3.Connection | None = None
        # The newest rows of a table in memory that are not in the database yet. One thread appends, another removes.
        self._queued: deque[ActivityRow] = deque(maxlen=self.keep)
        self._last = 0

    @property
    def durable(self) -> bool:
        """Whether rows survive a restart."""
        return self._path is not None

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            connection = connect(self._path, LOCK_TIMEOUT)
            try:
                connection.executescript(_SCHEMA)
                if not connection.execute("SELECT 1 FROM goose_db_version LIMIT 1").fetchone():
                    connection.executemany(
                        "INSERT INTO goose_db_version (version_id, is_applied) VALUES (?, 1)", [(0,), (1,)]
                    )
                if self._path is not None and self._last:
                    _number_from(connection, self._last)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def ask(self, question: Callable[[ActivityStore], Result]) -> Result:
        """The result of a question to the table."""
        return question(self)

    def number_from(self, number: int) -> None:
        """Give later rows higher ids than `number`."""
        if number > self._last:
            self._last = number
            if self._path is not None:
                self.close()  # it is done when the file is opened

    def insert(self, rows: Iterable[ActivityRow]) -> list[ActivityRow]:
        """Store rows in one transaction and set their ids; returns them in the same order. Blocks only for a file."""
        stored = list(rows)
        if self._path is None:
            for number, row in enumerate(stored, self._last + 1):
                row.id = number
            self.remember(stored)
            return stored
        connection = self._open()
        with connection:  # commits, or rolls back after an exception
            connection.execute("BEGIN IMMEDIATE")
            last = _insert(connection, f"activity ({_COLUMNS})", [_values(row) for row in stored])
            # No other program writes during the transaction, so the ids are consecutive.
            for number, row in enumerate(stored, last - len(stored) + 1):
                row.id = number
            _insert_origins(connection, stored)
        return stored

    def remember(self, rows: Sequence[ActivityRow]) -> None:
        """Store rows under the ids that they have. For a table in memory."""
        self._queued.extend(rows)
        if rows:
            self._last = rows[-1].id

    def restore(self, rows: Sequence[ActivityRow]) -> None:
        """Store rows under the ids that they have. For a file."""
        connection = self._open()
        with connection:  # commits, or rolls back after an exception
            connection.execute("BEGIN IMMEDIATE")
            _insert_with_ids(connection, rows)

    def _with_queued(self) -> sqlite3.Connection:
        """The database, with every row in it."""
        connection = self._open()
        queued: list[ActivityRow] = []
        while self._queued:
            queued.append(self._queued.popleft())
        if queued:
            _insert_with_ids(connection, queued)
            dropped = (queued[-1].id - self.keep,)
            connection.execute("DELETE FROM activity WHERE id <= ?", dropped)
            connection.execute("DELETE FROM request_origin WHERE activity_id <= ?", dropped)
            connection.execute("DELETE FROM request_key WHERE keyed_activity_id <= ?", dropped)
            connection.execute("DELETE FROM request_times WHERE timed_activity_id <= ?", dropped)
        return connection

    def page(self, query: ActivityQuery) -> ActivityPage:
        """One page of rows."""
        connection = self._with_queued()
        clause, values = query.filter.where()
        (total,) = connection.execute(f"SELECT COUNT(*) {_SOURCE}{clause}", values).fetchone()
        direction = "DESC" if query.descending else "ASC"
        order = f"{query.column} {direction}" + ("" if query.column == "id" else f", id {direction}")
        # A page number may be any 64-bit integer; its offset must be one as well.
        offset = min((query.page - 1) * query.limit, 2**62)
        found = connection.execute(
            f"{_SELECT}{clause} ORDER BY {order} LIMIT ? OFFSET ?", (*values, query.limit, offset)
        )
        return ActivityPage(tuple(map(_row, found)), query.page, query.limit, total)

    def after(self, wanted: ActivityFilter, number: int, count: int) -> list[ActivityRow]:
        """The next `count` rows with a higher id, ascending: the steps of an export."""
        clause, values = wanted.after(number).where()
        found = self._with_queued().execute(f"{_SELECT}{clause} ORDER BY id ASC LIMIT ?", (*values, count))
        return list(map(_row, found))

    def newest_good(self) -> list[ActivityRow]:
        """The newest rows with status 200, oldest first (as many as a table in memory keeps)."""
        found = self._with_queued().execute(
            f"{_SELECT} WHERE resp_status_code = 200 ORDER BY id DESC LIMIT ?", (self.keep,)
        )
        return list(map(_row, found))[::-1]

    def stats(self, wanted: ActivityFilter, bucket: int = 0) -> Document:
        """Totals and speed histograms of the rows; with `bucket` seconds also a `series` of sums over time,
        and the `speeds` at which each model generated, with their deciles."""
        connection = self._with_queued()
        clause, values = wanted.where()
        requests, read, written, cached = connection.execute(
            "SELECT COUNT(*), COALESCE(SUM(input_tokens), 0), COALESCE(SUM(output_tokens), 0), "
            f"COALESCE(SUM(MAX(cache_tokens, 0)), 0) {_SOURCE}{clause}",
            values,
        ).fetchone()
        timings = connection.execute(
            f"SELECT model_id, (ts_created / ?) * ?, prompt_per_second, tokens_per_second, {_TIMES} {_SOURCE}{clause}",
            (max(bucket, 1), max(bucket, 1), *values),
        ).fetchall()
        result: Document = {
            "total_requests": requests,
            "total_input_tokens": read,
            "total_output_tokens": written,
            "total_cache_tokens": cached,
            "prompt_histogram": histogram([prompt for _, _, prompt, *_ in timings]),
            "gen_histogram": histogram([generated for _, _, _, generated, *_ in timings]),
            "first_token_p95_ms": p95([first for *_, first, _ in timings]),
        }
        if bucket > 0:
            names = ("start", "requests", "errors", "failed", *_SUMMED)
            sums = connection.execute(
                "SELECT (ts_created / ?) * ? AS start, COUNT(*), SUM(error_msg <> ''), "
                f"SUM(error_msg NOT IN ('', {ENDED_BY_CLIENT})), SUM(input_tokens), "
                "SUM(output_tokens), SUM(MAX(cache_tokens, 0)), SUM(duration_ms) "
                f"{_SOURCE}{clause} GROUP BY start ORDER BY start",
                (bucket, bucket, *values),
            )
            first_tokens, speeds = defaultdict(list), defaultdict(list)
            for model, start, _, speed, first, _ in timings:
                first_tokens[start].append(first)
                if speed > 0:
                    speeds[model, start].append(speed)
            result["series"] = [
                {**dict(zip(names, record, strict=True)), "first_token_p95_ms": p95(first_tokens[record[0]])}
                for record in sums
            ]
            result["speeds"] = [
                {"model": model, "start": start, "requests": len(found), **deciles(found)}
                for (model, start), found in sorted(speeds.items())
            ]
        return result

    def usage(self, wanted: ActivityFilter, by: Sequence[str], limit: int = MAX_GROUPS) -> list[Document]:
        """Sums over the rows for each combination of `by` (of `USAGE_GROUPS`), at most `limit`, largest first."""
        clause, values = wanted.where()
        columns = [f"{USAGE_GROUPS[name]} AS g_{name}" for name in by]
        places = ", ".join(str(place) for place in range(1, len(by) + 1))
        names = (*by, "requests", "errors", "input_tokens", "output_tokens", "cache_tokens", "duration_ms")
        found = self._with_queued().execute(
            f"SELECT {', '.join([*columns, 'COUNT(*)'])}, COALESCE(SUM(error_msg <> ''), 0), "
            "COALESCE(SUM(MAX(input_tokens, 0)), 0), COALESCE(SUM(MAX(output_tokens, 0)), 0), "
            "COALESCE(SUM(MAX(cache_tokens, 0)), 0), COALESCE(SUM(duration_ms), 0) "
            f"{_SOURCE}{clause}{f' GROUP BY {places}' if by else ''} "
            "ORDER BY SUM(MAX(input_tokens, 0)) + SUM(MAX(output_tokens, 0)) DESC, COUNT(*) DESC LIMIT ?",
            (*values, limit),
        )
        return [dict(zip(names, record, strict=True)) for record in found]

    def use_by_key(self, since: float, width: float) -> list[tuple[str, float, int, int]]:
        """What each key used in spans of `width` seconds: (key, the span's end, tokens, requests without 429)."""
        found = self._with_queued().execute(
            "SELECT COALESCE(key_name, ''), CAST(ts_created / ? AS INTEGER) AS span, "
            "SUM(MAX(input_tokens, 0) + MAX(output_tokens, 0)), SUM(resp_status_code != 429) "
            f"{_SOURCE} WHERE ts_created >= ? GROUP BY 1, 2",
            (width, since),
        )
        return [(key, (span + 1) * width, tokens, requests) for key, span, tokens, requests in found]

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close()
