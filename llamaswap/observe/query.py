"""Questions about the activity table: a query string of the API as a checked value.

This module knows the parameters, the order of their checks, the messages, and the columns that are compared.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TypeVar

from attrs import frozen

from llamaswap.errors import LlamaswapError

SORT_COLUMNS: Mapping[str, str] = {
    "id": "id",
    "time": "ts_created",
    "model": "model_id",
    "req_path": "req_path",
    "resp_status_code": "resp_status_code",
    "resp_content_type": "resp_content_type",
    "cached": "cache_tokens",
    "prompt": "input_tokens",
    "generated": "output_tokens",
    "drafted": "draft_tokens",
    "prompt_speed": "prompt_per_second",
    "gen_speed": "tokens_per_second",
    "duration": "duration_ms",
    "first_token": "first_token_ms",
    "loaded": "loaded_ms",
}
_TEXT_COLUMNS = ("model_id", "req_path", "error_msg", "metadata_json")  # in which `q` is searched
MAX_ROWS = 999
MAX_VALUES = 100  # of one parameter: each becomes a condition of the SQL statement
_MAX_ID = 2**63 - 1  # the largest value of an id column
_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(?:[.,](\d+))?([Zz]|[+-]\d\d:\d\d)")

T = TypeVar("T")
Arguments = Mapping[str, Sequence[str]]


@frozen
class BadQuery(LlamaswapError):
    """A query parameter cannot be used; `message` says which and what it may be."""

    message: str

    def __str__(self) -> str:
        return self.message


@frozen
class ActivityFilter:
    """Which rows: those for which all `conditions` hold. Each is an SQL term with the values of its placeholders."""

    conditions: tuple[tuple[str, tuple[object, ...]], ...] = ()

    def where(self) -> tuple[str, list[object]]:
        """The WHERE clause ("" if all rows are wanted), and its values."""
        terms = " AND ".join(f"({term})" for term, _ in self.conditions)
        return terms and f" WHERE {terms}", [value for _, values in self.conditions for value in values]

    def after(self, number: int) -> ActivityFilter:
        """This filter, and only rows with a higher id."""
        return ActivityFilter((*self.conditions, ("id > ?", (number,))))


@frozen
class ActivityQuery:
    """A page of rows: `page` counts from 1, `column` is a table column."""

    filter: ActivityFilter = ActivityFilter()
    page: int = 1
    limit: int = 25
    column: str = "id"
    descending: bool = True


def timestamp(text: str) -> float:
    """Unix seconds of an RFC 3339 time with a zone; ValueError for anything else."""
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError(text)
    day, clock, fraction, zone = match.groups()
    zone = "+00:00" if zone in "Zz" else zone
    whole = datetime.fromisoformat(f"{day}T{clock}{zone}").timestamp()
    return whole + (float(f"0.{fraction}") if fraction else 0.0)


def _values(args: Arguments, name: str, separator: str | None = None) -> tuple[str, ...]:
    """All values without blank ones; with a `separator` each may be a list."""
    lists = (value.split(separator) if separator else (value,) for value in args.get(name, ()))
    values = tuple(part.strip() for parts in lists for part in parts if part.strip())
    if len(values) > MAX_VALUES:
        raise BadQuery(f"{name} may have at most {MAX_VALUES} values")
    return values


def _value(args: Arguments, name: str) -> str:
    """The first value; a blank one counts as absent."""
    given = args.get(name, ())
    return given[0].strip() if given else ""


def _parsed(args: Arguments, name: str, parse: Callable[[str], T | None], message: str) -> T | None:
    """The first value as `parse` reads it, None if it is absent; BadQuery if `parse` returns None or raises."""
    text = _value(args, name)
    if not text:
        return None
    try:
        parsed = parse(text)
    except (ValueError, OverflowError):
        parsed = None
    if parsed is None:
        raise BadQuery(message)
    return parsed


def _time(args: Arguments, name: str) -> int | None:
    return _parsed(
        args, name, lambda text: int(timestamp(text) // 1), f"invalid '{name}' timestamp, use RFC3339 format"
    )


def _integer(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[+-]?[0-9]{1,19}", text) else None


def _at_least(args: Arguments, name: str, minimum: int) -> int | None:
    def parse(text: str) -> int | None:
        number = _integer(text)
        return None if number is None or not minimum <= number <= _MAX_ID else number

    return _parsed(args, name, parse, f"{name} must be >= {minimum}")


def _flag(args: Arguments, name: str) -> bool | None:
    known = {"true": True, "1": True, "false": False, "0": False}
    return _parsed(args, name, lambda text: known.get(text.lower()), f"{name} must be true or false")


def _statuses(args: Arguments) -> tuple[str, ...]:
    statuses = tuple(status.lower() for status in _values(args, "status", ","))
    if not all(re.fullmatch(r"[1-9](xx|[0-9]{2})", status) for status in statuses):
        raise BadQuery("status must be a code or a class like 5xx")
    return statuses


def _like(text: str) -> str:
    """A pattern that finds `text` anywhere, with its wildcards taken literally."""
    escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"


def parse_filter(args: Arguments) -> ActivityFilter:
    """The filter in a query string's values; raises BadQuery for the first parameter that cannot be used."""
    start, end = _time(args, "start"), _time(args, "end")
    if start is not None and end is not None and start > end:
        raise BadQuery("start must be before end")
    min_id, max_id = _at_least(args, "min_id", 1), _at_least(args, "max_id", 1)
    if min_id is not None and max_id is not None and min_id > max_id:
        raise BadQuery("min_id must be <= max_id")
    conditions: list[tuple[str, tuple[object, ...]]] = []

    def add(term: str, *values: object) -> None:
        """The term has to hold for one of the values that were given."""
        given = tuple(value for value in values if value is not None and value != "")
        if given:
            conditions.append((" OR ".join([term] * len(given)), given))

    add("ts_created >= ?", start)
    add("ts_created <= ?", end)
    add("id >= ?", min_id)
    add("id <= ?", max_id)
    add("model_id = ?", *_values(args, "model"))
    add("id > ?", _at_least(args, "after_id", 0))
    add("CAST(resp_status_code AS TEXT) LIKE ?", *(status.replace("xx", "__") for status in _statuses(args)))
    add("req_path LIKE ? ESCAPE '\\'", *map(_like, _values(args, "path")))
    add("session = ?", _value(args, "session"))
    add("client = ?", _value(args, "client"))
    add("key_name = ?", *_values(args, "key"))
    add("(error_msg <> '') = ?", _flag(args, "has_error"))
    add("duration_ms >= ?", _at_least(args, "min_ms", 0))
    text = _value(args, "q")
    if text:
        term = " OR ".join(f"{column} LIKE ? ESCAPE '\\'" for column in _TEXT_COLUMNS)
        conditions.append((term, (_like(text),) * len(_TEXT_COLUMNS)))
    return ActivityFilter(tuple(conditions))


def parse_query(args: Arguments) -> ActivityQuery:
    """The page in a query string's values; raises BadQuery for the first parameter that cannot be used."""
    wanted = parse_filter(args)
    limit = _parsed(args, "limit", _integer, "invalid limit")
    if limit is not None and not 1 <= limit <= MAX_ROWS:
        raise BadQuery(f"limit must be between 1 and {MAX_ROWS}")
    page = _at_least(args, "page", 1) or 1
    column = _parsed(args, "sort", SORT_COLUMNS.get, "invalid sort column") or "id"
    ascending = {"asc": True, "desc": False}
    order = _parsed(args, "order", lambda text: ascending.get(text.lower()), "order must be asc or desc")
    return ActivityQuery(wanted, page, limit or 25, column, not order)
