"""Activity rows as files: CSV, JSON, JSON lines or a Markdown table, written piece by piece.

An export of any size is a loop of `rows` between `begin` and `end`. Must not know where rows come from.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

FORMATS: Mapping[str, tuple[str, str]] = {
    "csv": ("text/csv; charset=utf-8", "csv"),
    "json": ("application/json", "json"),
    "ndjson": ("application/x-ndjson", "ndjson"),
    "markdown": ("text/markdown; charset=utf-8", "md"),
}
_TOKENS = (
    "cache_tokens",
    "input_tokens",
    "output_tokens",
    "draft_tokens",
    "draft_acc_tokens",
    "prompt_per_second",
    "tokens_per_second",
)
_COLUMNS = ("id", "timestamp", "model", "req_path", "resp_status_code", "resp_content_type")
COLUMNS = (*_COLUMNS, *_TOKENS, "duration_ms", "error_msg", "session", "client", "metadata")

Document = Mapping[str, Any]


class Export:
    """One file in the making; `form` is a key of FORMATS. Rows are the activity API's row documents."""

    def __init__(self, form: str) -> None:
        self.content_type, self.suffix = FORMATS[form]
        self._write: Callable[[Iterable[Document]], str] = {
            "csv": self._csv,
            "json": self._json,
            "ndjson": self._ndjson,
            "markdown": self._markdown,
        }[form]
        self._form = form
        self._first = True

    def begin(self) -> bytes:
        """What stands before the rows."""
        if self._form == "csv":
            return _csv_line(COLUMNS).encode()
        if self._form == "json":
            return b"["
        if self._form == "markdown":
            return f"{_markdown_line(COLUMNS)}{_markdown_line(['---'] * len(COLUMNS))}".encode()
        return b""

    def rows(self, documents: Iterable[Document]) -> bytes:
        """Some rows."""
        return self._write(documents).encode("utf-8", "replace")

    def end(self) -> bytes:
        """What stands behind them."""
        return b"\n]\n" if self._form == "json" else b""

    def _csv(self, documents: Iterable[Document]) -> str:
        return "".join(_csv_line([_harmless(value) for value in _values(document)]) for document in documents)

    def _json(self, documents: Iterable[Document]) -> str:
        parts = []
        for document in documents:
            parts.append(("\n" if self._first else ",\n") + json.dumps(document, ensure_ascii=False))
            self._first = False
        return "".join(parts)

    def _ndjson(self, documents: Iterable[Document]) -> str:
        return "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents)

    def _markdown(self, documents: Iterable[Document]) -> str:
        return "".join(_markdown_line(_values(document)) for document in documents)


def _values(document: Document) -> list[Any]:
    metadata = document.get("metadata")
    flat = {
        **document,
        **document["tokens"],
        "metadata": json.dumps(metadata, ensure_ascii=False) if metadata else "",
    }
    return [flat.get(column, "") for column in COLUMNS]


def _harmless(value: Any) -> Any:
    # Spreadsheets run cells that begin like formulas, and paths and error messages come from strangers.
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    return value


def _csv_line(values: Sequence[Any]) -> str:
    line = io.StringIO()
    csv.writer(line).writerow(values)
    return line.getvalue()


def _markdown_line(values: Sequence[Any]) -> str:
    cells = (" ".join(str(value).split()).replace("\\", "\\\\").replace("|", "\\|") for value in values)
    return f"| {' | '.join(cells)} |\n"
