"""Questions about the activity table: the query string of the API as a checked value.

Knows the parameters, their order of checking and their messages; must not know SQL's side of it (store.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime

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
}
MOST_ROWS = 999
MOST_VALUES = 100  # of one parameter: each is a condition of the question that the database is asked
_BIGGEST = 2**63 - 1  # what an id column holds
_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(?:[.,](\d+))?([Zz]|[+-]\d\d:\d\d)")

Arguments = Mapping[str, Sequence[str]]


@frozen
class BadQuery(LlamaswapError):
    """A query parameter cannot be used; `message` says which and what it may be."""

    message: str

    def __str__(self) -> str:
        return self.message


@frozen
class ActivityFilter:
    """Which rows. All given conditions hold together; of several `models`, `statuses` or `paths` one is enough.

    `statuses` are codes ("404") or classes ("5xx"); `text` is looked for in model, path, error and metadata.
    `start` and `end` are whole unix seconds, inclusive.
    """

    models: tuple[str, ...] = ()
    start: int | None = None
    end: int | None = None
    min_id: int | None = None
    max_id: int | None = None
    after_id: int | None = None
    statuses: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    session: str = ""
    client: str = ""
    text: str = ""
    has_error: bool | None = None
    min_ms: int | None = None


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


def _values(args: Arguments, name: str) -> tuple[str, ...]:
    return _few(name, [value.strip() for value in args.get(name, ()) if value.strip()])


def _few(name: str, values: Sequence[str]) -> tuple[str, ...]:
    if len(values) > MOST_VALUES:
        raise BadQuery(f"{name} may have at most {MOST_VALUES} values")
    return tuple(values)


def _value(args: Arguments, name: str) -> str:
    """The first value; a blank one counts as absent."""
    given = args.get(name, ())
    return given[0].strip() if given else ""


def _time(args: Arguments, name: str) -> int | None:
    text = _value(args, name)
    if not text:
        return None
    try:
        return int(timestamp(text) // 1)
    except (ValueError, OverflowError):
        raise BadQuery(f"invalid '{name}' timestamp, use RFC3339 format") from None


def _integer(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[+-]?[0-9]{1,19}", text) else None


def _least(args: Arguments, name: str, least: int) -> int | None:
    text = _value(args, name)
    if not text:
        return None
    number = _integer(text)
    if number is None or not least <= number <= _BIGGEST:
        raise BadQuery(f"{name} must be >= {least}")
    return number


def _flag(args: Arguments, name: str) -> bool | None:
    text = _value(args, name).lower()
    if not text:
        return None
    if text not in ("true", "false", "1", "0"):
        raise BadQuery(f"{name} must be true or false")
    return text in ("true", "1")


def _statuses(args: Arguments) -> tuple[str, ...]:
    parts = [part.strip().lower() for value in _values(args, "status") for part in value.split(",") if part.strip()]
    given = _few("status", parts)
    for status in given:
        if not re.fullmatch(r"[1-9](xx|[0-9]{2})", status):
            raise BadQuery("status must be a code or a class like 5xx")
    return given


def parse_filter(args: Arguments) -> ActivityFilter:
    """The filter of a query string's values; BadQuery in the order clients know."""
    start, end = _time(args, "start"), _time(args, "end")
    if start is not None and end is not None and start > end:
        raise BadQuery("start must be before end")
    min_id, max_id = _least(args, "min_id", 1), _least(args, "max_id", 1)
    if min_id is not None and max_id is not None and min_id > max_id:
        raise BadQuery("min_id must be <= max_id")
    return ActivityFilter(
        models=_values(args, "model"),
        start=start,
        end=end,
        min_id=min_id,
        max_id=max_id,
        after_id=_least(args, "after_id", 0),
        statuses=_statuses(args),
        paths=_values(args, "path"),
        session=_value(args, "session"),
        client=_value(args, "client"),
        text=_value(args, "q"),
        has_error=_flag(args, "has_error"),
        min_ms=_least(args, "min_ms", 0),
    )


def parse_query(args: Arguments) -> ActivityQuery:
    """A whole page request of a query string's values (name to its values); BadQuery when one cannot be used."""
    wanted = parse_filter(args)
    limit, text = 25, _value(args, "limit")
    if text:
        number = _integer(text)
        if number is None:
            raise BadQuery("invalid limit")
        if not 1 <= number <= MOST_ROWS:
            raise BadQuery(f"limit must be between 1 and {MOST_ROWS}")
        limit = number
    page = _least(args, "page", 1) or 1
    column = SORT_COLUMNS.get(_value(args, "sort") or "id")
    if column is None:
        raise BadQuery("invalid sort column")
    order = _value(args, "order").lower() or "desc"
    if order not in ("asc", "desc"):
        raise BadQuery("order must be asc or desc")
    return ActivityQuery(wanted, page, limit, column, order == "desc")
