"""The activity table: SQLite, in memory or in a file that the Go program's versions can open as well.

Questions, and everything about a file, block and belong to one worker thread. Rows of a table in memory wait in a queue
until somebody asks: most of them are forgotten before that. Must not know Deferreds, HTTP or the clock.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import chain
from typing import Any

from attrs import frozen

from llamaswap.observe.activity_row import ActivityRow
from llamaswap.observe.query import ActivityFilter, ActivityQuery
from llamaswap.observe.stats import histogram
from llamaswap.wire.usage import Usage

DEFAULT_ROWS = 1000  # what an in-memory table keeps unless metricsMaxInMemory says otherwise
BUSY = 1.0  # seconds to wait for another program's lock on the file

_TOKENS = "cache_tokens, draft_tokens, draft_acc_tokens, input_tokens, output_tokens"
_COLUMNS = (
    "ts_created, model_id, req_path, resp_content_type, resp_status_code, "
    f"{_TOKENS}, prompt_per_second, tokens_per_second, duration_ms, error_msg, metadata_json"
)

# The names, types and versions are those of existing files. `request_origin` is ours: programs that do not
# know it leave it alone, and rows they wrote have none.
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
"""
_ENCODE = json.JSONEncoder(ensure_ascii=False).encode  # made once: json.dumps would make one for each row
# Rows go in by several a statement: each statement is a step out of the interpreter and back, and the reactor's
# thread may be met on the way. Old libraries take 999 values at most.
_AT_ONCE = (60, 15, 4, 1)


@lru_cache(maxsize=len(_AT_ONCE) * 2)
def _insertion(into: str, columns: int, rows: int) -> str:
    row = f"({', '.join('?' * columns)})"
    return f"INSERT OR REPLACE INTO {into} VALUES {', '.join([row] * rows)}"


_SELECT = (
    f"SELECT id, {_COLUMNS}, COALESCE(session, ''), COALESCE(client, '') "
    "FROM activity LEFT JOIN request_origin ON activity_id = id"
)


@frozen
class ActivityPage:
    """Rows of one page, and how many there are in all pages."""

    rows: tuple[ActivityRow, ...]
    page: int
    limit: int
    total: int

    @property
    def total_pages(self) -> int:
        """0 when there is nothing."""
        return -(-self.total // self.limit)


def _values(row: ActivityRow) -> tuple[Any, ...]:
    usage = row.usage
    return (
        row.created,
        row.model,
        row.req_path,
        row.resp_content_type,
        row.resp_status_code,
        usage.cache_tokens,
        usage.draft_tokens,
        usage.draft_acc_tokens,
        usage.input_tokens,
        usage.output_tokens,
        usage.prompt_per_second,
        usage.tokens_per_second,
        row.duration_ms,
        row.error_msg,
        _ENCODE(dict(row.metadata)) if row.metadata else "",
    )


def _insert(connection: sqlite3.Connection, into: str, values: Sequence[tuple[Any, ...]]) -> int:
    """Insert rows of values, in order; returns the last one's id."""
    done = last = 0
    for count in _AT_ONCE:
        while len(values) - done >= count:
            some = values[done : done + count]
            statement = _insertion(into, len(some[0]), count)
            last = connection.execute(statement, tuple(chain.from_iterable(some))).lastrowid or 0
            done += count
    return last


def _insert_origins(connection: sqlite3.Connection, rows: Iterable[tuple[int, ActivityRow]]) -> None:
    origins = [(number, row.session, row.client) for number, row in rows if row.session or row.client]
    _insert(connection, "request_origin", origins)


def _metadata(text: str) -> dict[str, str]:
    try:
        value = json.loads(text) if text else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _row(record: Sequence[Any]) -> ActivityRow:
    (number, created, model, path, content_type, status, cached, draft, accepted, read, written) = record[:11]
    (prompt_speed, speed, duration, error, metadata, session, client) = record[11:]
    return ActivityRow(
        created=created,
        model=model,
        req_path=path,
        resp_content_type=content_type,
        resp_status_code=status,
        usage=Usage(read, written, cached, draft, accepted, prompt_speed, speed),
        duration_ms=duration,
        error_msg=error,
        metadata=_metadata(metadata),
        session=session,
        client=client,
        id=number,
    )


def _like(text: str) -> str:
    """A pattern that finds `text` anywhere, its own wildcards taken literally."""
    escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"


class _Conditions:
    """A WHERE clause in the making."""

    def __init__(self, wanted: ActivityFilter) -> None:
        self.terms: list[str] = []
        self.values: list[Any] = []
        if wanted.models:
            self._add(f"model_id IN ({', '.join('?' * len(wanted.models))})", *wanted.models)
        for term, value in (
            ("ts_created >= ?", wanted.start),
            ("ts_created <= ?", wanted.end),
            ("id >= ?", wanted.min_id),
            ("id <= ?", wanted.max_id),
            ("id > ?", wanted.after_id),
            ("duration_ms >= ?", wanted.min_ms),
            ("session = ?", wanted.session or None),
            ("client = ?", wanted.client or None),
        ):
            if value is not None:
                self._add(term, value)
        self._any("CAST(resp_status_code AS TEXT) LIKE ?", [s.replace("xx", "__") for s in wanted.statuses])
        self._any("req_path LIKE ? ESCAPE '\\'", [_like(path) for path in wanted.paths])
        if wanted.has_error is not None:
            self._add("error_msg <> ''" if wanted.has_error else "error_msg = ''")
        if wanted.text:
            columns = ("model_id", "req_path", "error_msg", "metadata_json")
            terms = " OR ".join(f"{column} LIKE ? ESCAPE '\\'" for column in columns)
            self._add(f"({terms})", *[_like(wanted.text)] * len(columns))

    def _add(self, term: str, *values: Any) -> None:
        self.terms.append(term)
        self.values.extend(values)

    def _any(self, term: str, values: Sequence[Any]) -> None:
        if values:
            self._add(f"({' OR '.join([term] * len(values))})", *values)

    @property
    def clause(self) -> str:
        return f" WHERE {' AND '.join(self.terms)}" if self.terms else ""


class ActivityStore:
    """Opened by its first use, on the thread that uses it. `path` None: in memory, the newest `keep` rows."""

    problem = ""  # why the table is not in its file now

    def __init__(self, path: str | None = None, keep: int = DEFAULT_ROWS) -> None:
        self._path = path
        self.keep = keep if keep > 0 else DEFAULT_ROWS
        self._connection: sqlite3.Connection | None = None
        # Of a table in memory: the newest rows, not in the database yet. Filled by one thread, emptied by another.
        self._fresh: deque[tuple[int, ActivityRow]] = deque(maxlen=self.keep)
        self._last = 0

    @property
    def durable(self) -> bool:
        """Whether rows survive a restart."""
        return self._path is not None

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            if self._path is not None:
                # SQLite would make it readable for every user; the files that it makes beside it take its mode.
                with suppress(OSError):  # it is there, or SQLite says why it cannot be
                    os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            # The worker is one thread at a time, but not for ever the same one.
            connection = sqlite3.connect(
                self._path or ":memory:", timeout=BUSY, isolation_level=None, check_same_thread=False
            )
            try:
                if self._path is not None:
                    connection.execute("PRAGMA journal_mode = WAL")
                    # With a write-ahead log this loses at most the last rows on power failure, never the file.
                    connection.execute("PRAGMA synchronous = NORMAL")
                connection.executescript(_SCHEMA)
                if not connection.execute("SELECT 1 FROM goose_db_version LIMIT 1").fetchone():
                    connection.executemany(
                        "INSERT INTO goose_db_version (version_id, is_applied) VALUES (?, 1)", [(0,), (1,)]
                    )
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def insert(self, rows: Iterable[ActivityRow]) -> list[ActivityRow]:
        """Store rows in one transaction and set their ids; returned in the same order. Blocks only for a file."""
        stored = list(rows)
        if self._path is None:
            for row in stored:
                self._last += 1
                row.id = self._last
                self._fresh.append((self._last, row))
            return stored
        connection = self._open()
        connection.execute("BEGIN IMMEDIATE")
        try:
            last = _insert(connection, f"activity ({_COLUMNS})", [_values(row) for row in stored])
            # Nobody else writes during our transaction: the ids follow one another.
            for number, row in enumerate(stored, last - len(stored) + 1):
                row.id = number
            _insert_origins(connection, ((row.id, row) for row in stored))
        except BaseException:
            with suppress(sqlite3.Error):  # a full disk or a broken file has rolled it back already
                connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")
        return stored

    def remember(self, rows: Iterable[ActivityRow]) -> None:
        """Keep rows that have their ids already. For a table in memory."""
        for row in rows:
            self._last = row.id
            self._fresh.append((row.id, row))

    def restore(self, rows: Sequence[ActivityRow]) -> None:
        """Store rows under the ids they have. For a file."""
        connection = self._open()
        connection.execute("BEGIN IMMEDIATE")
        _insert(connection, f"activity (id, {_COLUMNS})", [(row.id, *_values(row)) for row in rows])
        _insert_origins(connection, ((row.id, row) for row in rows))
        connection.execute("COMMIT")

    def _asked(self) -> sqlite3.Connection:
        """The database with every row in it."""
        connection = self._open()
        fresh: list[tuple[int, ActivityRow]] = []
        while self._fresh:
            fresh.append(self._fresh.popleft())
        if fresh:
            _insert(connection, f"activity (id, {_COLUMNS})", [(number, *_values(row)) for number, row in fresh])
            _insert_origins(connection, fresh)
            kept = (fresh[-1][0] - self.keep,)
            connection.execute("DELETE FROM activity WHERE id <= ?", kept)
            connection.execute("DELETE FROM request_origin WHERE activity_id <= ?", kept)
        return connection

    def page(self, query: ActivityQuery) -> ActivityPage:
        """One page of rows."""
        connection = self._asked()
        where = _Conditions(query.filter)
        counted = f"SELECT COUNT(*) FROM activity LEFT JOIN request_origin ON activity_id = id{where.clause}"
        (total,) = connection.execute(counted, where.values).fetchone()
        way = "DESC" if query.descending else "ASC"
        order = f"{query.column} {way}" + ("" if query.column == "id" else f", id {way}")
        # A page number may be any 64-bit integer; its offset must still be one.
        offset = min((query.page - 1) * query.limit, 2**62)
        found = connection.execute(
            f"{_SELECT}{where.clause} ORDER BY {order} LIMIT ? OFFSET ?", (*where.values, query.limit, offset)
        )
        return ActivityPage(tuple(map(_row, found)), query.page, query.limit, total)

    def after(self, wanted: ActivityFilter, number: int, count: int) -> list[ActivityRow]:
        """The next `count` rows with a higher id, ascending: an export reads itself through in steps."""
        where = _Conditions(wanted)
        where.terms.append("id > ?")
        found = self._asked().execute(
            f"{_SELECT}{where.clause} ORDER BY id ASC LIMIT ?", (*where.values, number, count)
        )
        return [_row(record) for record in found]

    def newest_good(self, count: int | None = None) -> list[ActivityRow]:
        """The newest rows with status 200, oldest first (as many as an in-memory table keeps)."""
        found = self._asked().execute(
            f"{_SELECT} WHERE resp_status_code = 200 ORDER BY id DESC LIMIT ?", (count or self.keep,)
        )
        return [_row(record) for record in found][::-1]

    def stats(self, wanted: ActivityFilter, bucket: int = 0) -> dict[str, Any]:
        """Totals and speed histograms of the rows; with `bucket` seconds also a `series` of sums over time."""
        connection = self._asked()
        where = _Conditions(wanted)
        source = f"FROM activity LEFT JOIN request_origin ON activity_id = id{where.clause}"
        requests, read, written, cached = connection.execute(
            "SELECT COUNT(*), COALESCE(SUM(input_tokens), 0), COALESCE(SUM(output_tokens), 0), "
            f"COALESCE(SUM(MAX(cache_tokens, 0)), 0) {source}",
            where.values,
        ).fetchone()
        speeds = connection.execute(f"SELECT prompt_per_second, tokens_per_second {source}", where.values).fetchall()
        result: dict[str, Any] = {
            "total_requests": requests,
            "total_input_tokens": read,
            "total_output_tokens": written,
            "total_cache_tokens": cached,
            "prompt_histogram": histogram([prompt for prompt, _ in speeds]),
            "gen_histogram": histogram([generated for _, generated in speeds]),
        }
        if bucket > 0:
            result["series"] = list(self._series(connection, source, where.values, bucket))
        return result

    @staticmethod
    def _series(
        connection: sqlite3.Connection, source: str, values: Sequence[Any], bucket: int
    ) -> Iterator[dict[str, Any]]:
        names = ("start", "requests", "errors", "input_tokens", "output_tokens", "cache_tokens", "duration_ms")
        found = connection.execute(
            "SELECT (ts_created / ?) * ? AS start, COUNT(*), SUM(error_msg <> ''), SUM(input_tokens), "
            "SUM(output_tokens), SUM(MAX(cache_tokens, 0)), SUM(duration_ms) "
            f"{source} GROUP BY start ORDER BY start",
            (bucket, bucket, *values),
        )
        for record in found:
            yield dict(zip(names, record, strict=True))

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close()
