"""Requests that were recorded, to be played again: from an activity store, or from a file of JSON lines or CSV.

Everything blocks, and only the command line uses it. Rows of a store are sorted by SQLite; a text file is read whole,
up to a bound.
"""

from __future__ import annotations

import csv
import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from math import isfinite
from pathlib import Path
from typing import TextIO

from llamaswap.errors import LlamaswapError
from llamaswap.observe.activity_row import WAITED
from llamaswap.observe.query import timestamp
from llamaswap.scheduling.simulation import RecordedRequest

SQLITE_MAGIC = b"SQLite format 3\0"
MAX_REQUESTS = 1_000_000  # of a text file, which is sorted in memory

_ROWS = """
SELECT model_id, ts_created, duration_ms, input_tokens - MAX(cache_tokens, 0), output_tokens, prompt_per_second,
    tokens_per_second, metadata_json
FROM activity
WHERE resp_status_code BETWEEN 200 AND 399 AND ts_created >= (SELECT MAX(ts_created) FROM activity) - ?
ORDER BY ts_created - duration_ms / 1000.0, id
"""


class UnusableTraffic(LlamaswapError):
    """A file does not contain recorded requests."""


def read_traffic(path: Path, seconds: float) -> Iterator[RecordedRequest]:
    """The requests of a file in the order of their arrival; of a store those that ended within the last `seconds` that
    it has. Raises UnusableTraffic, or OSError."""
    with path.open("rb") as file:
        magic = file.read(len(SQLITE_MAGIC))
    return _from_store(path, seconds) if magic == SQLITE_MAGIC else iter(_from_text(path, seconds))


def _from_store(path: Path, seconds: float) -> Iterator[RecordedRequest]:
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            for row in connection.execute(_ROWS, (min(seconds, 2**62),)):
                model, ended, milliseconds = row[:3]
                whole = milliseconds / 1000
                yield RecordedRequest(ended - whole, model, _busy(whole, *row[3:]))
    except sqlite3.Error as error:
        raise UnusableTraffic(f"{path}: {error}") from None


def _busy(whole: float, prompt: int, generated: int, prompt_speed: float, speed: float, metadata: str) -> float:
    """How long a request of `whole` seconds kept its server busy: without its wait, which newer rows contain.

    Of older rows it is what the tokens took at the speeds that the server reported.
    """
    waited: object = None
    if metadata:
        with suppress(ValueError):
            found = json.loads(metadata)
            waited = found.get(WAITED) if isinstance(found, dict) else None
    if isinstance(waited, str) and waited.isdigit():
        return max(0.0, whole - int(waited) / 1000)
    if speed <= 0 or generated <= 0:
        return whole
    return min(whole, generated / speed + (max(0, prompt) / prompt_speed if prompt_speed > 0 else 0.0))


def _from_text(path: Path, seconds: float) -> list[RecordedRequest]:
    found: list[RecordedRequest] = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for number, row in enumerate(_rows(file), 1):
                if number > MAX_REQUESTS:
                    raise UnusableTraffic(f"{path}: more than {MAX_REQUESTS} requests; split the file")
                try:
                    found.append(RecordedRequest(_time(row["time"]), str(row["model"]), _finite(row["duration"])))
                except (KeyError, ValueError, TypeError):
                    raise UnusableTraffic(
                        f"{path}: request {number} needs time (unix seconds or RFC 3339), model and duration (seconds)"
                    ) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UnusableTraffic(f"{path} is neither an activity store nor text: {error}") from None
    found.sort(key=lambda request: request.time)
    first = found[-1].time - seconds if found else 0.0
    return [request for request in found if request.time >= first]


def _rows(file: TextIO) -> Iterator[Mapping[str, object]]:
    """The rows of JSON lines, or of CSV with a line of names."""
    begins = file.read(1)
    file.seek(0)
    if begins != "{":
        yield from csv.DictReader(file)
        return
    for line in file:
        if line.strip():
            yield _document(line)


def _document(line: str) -> Mapping[str, object]:
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


def _time(value: object) -> float:
    text = str(value)
    return timestamp(text) if "T" in text.upper() else _finite(text)


def _finite(value: object) -> float:
    number = float(str(value))
    if not isfinite(number):
        raise ValueError(value)
    return number
