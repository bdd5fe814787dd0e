"""What was served, as questions over HTTP: pages, statistics, exports, captures; and ending what is being served."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from zope.interface import implementer

from llamaswap.observe.activity import ActivityLog
from llamaswap.observe.activity_row import ActivityRow
from llamaswap.observe.captures import Captures
from llamaswap.observe.inflight import InflightRequests
from llamaswap.observe.query import ActivityFilter, parse_filter, parse_query
from llamaswap.web.admin_request import AdminRequest, Response, json_answer, json_bytes
from llamaswap.web.errors import HttpError
from llamaswap.web.route import QueryParameter, RouteTable
from llamaswap.web.streaming_response import StreamingResponses

STEP = 100  # rows an export reads, renders in one turn of the reactor, and writes
LARGEST_BUCKET = 366 * 24 * 3600

log = Logger()


@define(eq=False)
class ActivityEndpoints:
    """The activity table, captures and in-flight requests."""

    book: ActivityLog
    captures: Captures
    inflight: InflightRequests
    streams: StreamingResponses

    async def page(self, call: AdminRequest) -> Response:
        """One page of rows."""
        query = parse_query(call.query)
        page = await _stored(self.book.page(query), "failed to get activity")
        return json_answer(self.book.page_document(page))

    async def stats(self, call: AdminRequest) -> Response:
        """Totals and histograms of the rows the filter lets through; with `bucket` also sums over time."""
        wanted = parse_filter(call.query)
        text = call.text("bucket")
        if text and not (text.isascii() and text.isdigit() and 0 < int(text) <= LARGEST_BUCKET):
            raise HttpError(400, "bucket must be a number of seconds >= 1")
        found = await _stored(self.book.stats(wanted, int(text or 0)), "failed to get activity stats")
        return json_answer(found)

    async def legacy(self, call: AdminRequest) -> Response:
        """The successful requests as a flat array, for older dashboards."""
        return json_answer(await _stored(self.book.legacy(), "failed to get activity"))

    async def export(self, call: AdminRequest) -> None:
        """Every row the filter lets through, oldest first, written as fast as the client reads."""
        name = call.text("format") or "csv"
        form = FORMS.get(name)
        if form is None:
            raise HttpError(400, f"format must be one of {', '.join(FORMS)}")
        wanted = parse_filter(call.query)
        disposition = f'attachment; filename="activity.{name}"'.encode()
        stream = self.streams.open(call, form.content_type, ((b"Content-Disposition", disposition),))
        if stream.ended:
            return
        pull = _Export(self.book, wanted, form, stream.write, stream.end)
        pull.begin()
        await stream.until_end(pull)

    def capture(self, call: AdminRequest) -> Response:
        """One stored request with its answer."""
        text = call.variables["number"]
        try:
            number = int(text) if text.strip() == text and "_" not in text else None
        except ValueError:
            number = None
        if number is None:
            raise HttpError(400, "invalid capture ID")
        found = self.captures.get(number)
        if found is None:
            raise HttpError(404, "capture not found")
        answer = json_answer(found.document(number))
        return Response(200, answer.body.rstrip(b"\n"), answer.content_type)

    def cancel(self, call: AdminRequest) -> Response:
        """End a request under way; its end is not waited for."""
        if not self.inflight.cancel(call.variables["number"]):
            raise HttpError(404, "inflight request not found")
        return json_answer({"msg": "ok"})


async def _stored(asked: Deferred[Any], message: str) -> Any:
    try:
        return await asked
    except Exception:  # whatever the disk says: the client learns that, the log why
        log.failure("{message}", message=message)
        raise HttpError(500, message)


# -- exports -----------------------------------------------------------------------------------------------

COLUMNS = (
    *("id", "timestamp", "model", "req_path", "resp_status_code", "resp_content_type", "duration_ms"),
    *("input_tokens", "output_tokens", "cache_tokens", "draft_tokens", "draft_acc_tokens"),
    *("prompt_per_second", "tokens_per_second", "session", "client", "error_msg"),
)


def _cells(document: dict[str, Any]) -> list[Any]:
    """A row's cells in the columns' order; -1 means that a number is not known, which a cell says by being empty."""
    flat = {**document, **document["tokens"]}
    return ["" if value in (None, -1) else value for value in (flat.get(name, "") for name in COLUMNS)]


def _csv(rows: Iterable[Iterable[Any]]) -> bytes:
    out = io.StringIO()
    csv.writer(out).writerows([_harmless(cell) for cell in row] for row in rows)
    return out.getvalue().encode()


def _harmless(cell: Any) -> Any:
    """Text that a spreadsheet would take for a formula; model names and errors come from clients."""
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t") else cell


def _line(cells: Iterable[Any]) -> str:
    texts = (str(cell).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ") for cell in cells)
    return "| " + " | ".join(texts) + " |\n"


@define
class ExportFormat:
    """A file format: its head, and its lines for some rows."""

    content_type: bytes
    head: bytes
    lines: Callable[[list[dict[str, Any]]], bytes]


FORMS = {
    "csv": ExportFormat(b"text/csv; charset=utf-8", _csv([COLUMNS]), lambda rows: _csv(map(_cells, rows))),
    "jsonl": ExportFormat(
        b"application/jsonl; charset=utf-8", b"", lambda rows: b"".join(json_bytes(row) + b"\n" for row in rows)
    ),
    "md": ExportFormat(
        b"text/markdown; charset=utf-8",
        (_line(COLUMNS) + "|" + " --- |" * len(COLUMNS) + "\n").encode(),
        lambda rows: "".join(_line(_cells(row)) for row in rows).encode(),
    ),
}


@implementer(IPushProducer)
@define(eq=False)
class _Export:
    """Reads the table in steps; the next one only when the client has room."""

    book: ActivityLog
    wanted: ActivityFilter
    form: ExportFormat
    write: Callable[[bytes], None]
    end: Callable[[], None]
    _last: int = field(default=0, init=False)
    _reading: bool = field(default=False, init=False)
    _paused: bool = field(default=False, init=False)
    _stopped: bool = field(default=False, init=False)

    def begin(self) -> None:
        self.write(self.form.head)
        self._next()

    def _next(self) -> None:
        if self._reading or self._paused or self._stopped:
            return
        self._reading = True
        self.book.after(self.wanted, self._last, STEP).addCallbacks(self._read, self._failed)

    def _read(self, rows: list[ActivityRow]) -> None:
        self._reading = False
        if self._stopped:
            return
        if rows:
            self._last = rows[-1].id
            self.write(self.form.lines([self.book.document(row) for row in rows]))
        if len(rows) < STEP:
            self.end()
        else:
            self._next()

    def _failed(self, failure: Any) -> None:
        log.failure("an export failed", failure=failure)
        self.end()

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self._next()

    def stopProducing(self) -> None:
        self._stopped = True


_table = RouteTable(ActivityEndpoints, "activity")
_FILTER = (
    QueryParameter("model", "Only these models.", repeatable=True),
    QueryParameter("start", "RFC 3339, inclusive."),
    QueryParameter("end", "RFC 3339, inclusive."),
    QueryParameter("min_id", "Smallest id.", "integer"),
    QueryParameter("max_id", "Largest id.", "integer"),
    QueryParameter("after_id", "Only larger ids.", "integer"),
    QueryParameter("status", "Codes or classes (5xx).", repeatable=True),
    QueryParameter("path", "Part of the path.", repeatable=True),
    QueryParameter("session", "One session."),
    QueryParameter("client", "One client address."),
    QueryParameter("q", "Text in model, path, error or metadata."),
    QueryParameter("has_error", "Only failed, or only good ones.", "boolean"),
    QueryParameter("min_ms", "Shortest duration.", "integer"),
)
_PAGE = (
    *_FILTER,
    QueryParameter("limit", "Rows on a page, 1 to 999.", "integer"),
    QueryParameter("page", "From 1.", "integer"),
    QueryParameter("sort", "Which column."),
    QueryParameter("order", "asc or desc."),
)
ROUTES = (
    _table.get("/api/metrics/activity", ActivityEndpoints.page, "Requests served", query=_PAGE, schema="ActivityPage"),
    _table.get(
        "/api/metrics/stats",
        ActivityEndpoints.stats,
        "Totals and speed histograms",
        query=(*_FILTER, QueryParameter("bucket", "Seconds of each element of `series`.", "integer")),
        schema="Stats",
    ),
    _table.get("/api/metrics", ActivityEndpoints.legacy, "Successful requests as a flat array", schema="Metrics"),
    _table.get(
        "/api/metrics/export",
        ActivityEndpoints.export,
        "The activity as a file",
        query=(*_FILTER, QueryParameter("format", "csv, jsonl or md.")),
        content="text/csv",
    ),
    _table.get("/api/captures/<rest:number>", ActivityEndpoints.capture, "One stored request", schema="Capture"),
    _table.post(
        "/api/inflight/<string:number>/cancel",
        ActivityEndpoints.cancel,
        "End a request",
        changes_state=True,
        schema="Message",
    ),
)
