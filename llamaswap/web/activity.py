"""The served requests over HTTP: pages, statistics, exports and captures, and the cancellation of a running request."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from typing import TypeVar

from attrs import define, field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from llamaswap.observe.activity import ActivityLog
from llamaswap.observe.inflight import InflightRequests
from llamaswap.observe.log_format import Timestamp
from llamaswap.observe.query import ActivityFilter, parse_filter, parse_query
from llamaswap.web.admin_request import JSON, AdminRequest, JsonObject, Response, json_answer, json_bytes, positive
from llamaswap.web.errors import HttpError
from llamaswap.web.processes import Message
from llamaswap.web.route import QueryParameter, Route, RouteTable
from llamaswap.web.streaming_response import StreamingResponse, StreamingResponses

EXPORT_ROWS = 100  # rows an export reads, renders in one turn of the reactor, and writes
LARGEST_BUCKET = 366 * 24 * 3600

Result = TypeVar("Result")
log = Logger()


@frozen
class TokenCounts:
    """The usage of a request; -1 means unknown."""

    cache_tokens: int
    draft_tokens: int
    draft_acc_tokens: int
    input_tokens: int
    output_tokens: int
    prompt_per_second: float
    tokens_per_second: float


@frozen
class Activity:
    """A served request. It waited `queued_ms` for its turn and `loaded_ms` for the load of its model; `ttft_ms` is the
    time from its arrival to the first data of its event stream."""

    id: int
    timestamp: Timestamp
    model: str
    tokens: TokenCounts
    duration_ms: int
    has_capture: bool
    req_path: str = ""
    resp_content_type: str = ""
    resp_status_code: int | None = None
    error_msg: str = ""
    metadata: JsonObject = field(factory=dict)
    session: str = ""
    client: str = ""
    key: str = ""
    queued_ms: int = 0
    loaded_ms: int = 0
    ttft_ms: int | None = None


@frozen
class ActivityPageDocument:
    """One page of served requests."""

    data: list[Activity]
    page: int
    limit: int
    total: int
    total_pages: int
    store_error: str = ""


@frozen
class ActivityStats:
    """Totals and histograms."""

    total_requests: int
    total_input_tokens: int
    total_output_tokens: int
    total_cache_tokens: int
    prompt_histogram: JsonObject | None
    gen_histogram: JsonObject | None
    first_token_p95_ms: float | None
    series: list[JsonObject] | None = None
    speeds: list[JsonObject] | None = None


@frozen
class FlatActivity:
    """A served request, as older dashboards know it."""

    id: int
    timestamp: Timestamp
    model: str
    input_tokens: int
    output_tokens: int


@frozen
class CaptureDocument:
    """One stored request with its answer."""

    id: int
    req_path: str
    req_headers: JsonObject | None
    req_body: str | None
    resp_headers: JsonObject | None
    resp_body: str | None


route = RouteTable("activity", Route)
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
    QueryParameter("key", "Only requests with the keys of these names.", repeatable=True),
    QueryParameter("q", "Text in model, path, error or metadata."),
    QueryParameter("has_error", "Only failed, or only good ones.", "boolean"),
    QueryParameter("min_ms", "Shortest duration.", "integer"),
)
_PAGE = (
    *_FILTER,
    QueryParameter("limit", "Rows on a page, 1 to 999.", "integer"),
    QueryParameter("page", "From 1.", "integer"),
    QueryParameter("sort", "The column to sort by."),
    QueryParameter("order", "asc or desc."),
)
_STATS = (*_FILTER, QueryParameter("bucket", "Seconds of each element of `series`.", "integer"))
_EXPORT = (*_FILTER, QueryParameter("format", "csv, jsonl or md."))


@define(eq=False)
class ActivityEndpoints:
    """The activity table, captures and in-flight requests."""

    activity: ActivityLog
    inflight: InflightRequests
    streams: StreamingResponses

    @route("GET", "/api/metrics/activity", query=_PAGE, answer=ActivityPageDocument)
    async def page(self, call: AdminRequest) -> Response:
        """One page of the served requests."""
        query = parse_query(call.query)
        page = await stored(self.activity.ask(lambda table: table.page(query)), "failed to get activity")
        return json_answer(self.activity.page_document(page))

    @route("GET", "/api/metrics/stats", query=_STATS, answer=ActivityStats)
    async def stats(self, call: AdminRequest) -> Response:
        """Totals and speed histograms; with `bucket` also sums over time, and speeds by model over time."""
        wanted = parse_filter(call.query)
        text = call.text("bucket")
        bucket = positive(text, LARGEST_BUCKET) if text else 0
        if bucket is None:
            raise HttpError(400, f"bucket must be a number of seconds from 1 to {LARGEST_BUCKET}")
        asked = self.activity.ask(lambda table: table.stats(wanted, bucket))
        stats = await stored(asked, "failed to get activity stats")
        return json_answer(stats)

    @route("GET", "/api/metrics", answer=list[FlatActivity])
    async def legacy(self, call: AdminRequest) -> Response:
        """The successful requests as a flat array, for older dashboards."""
        rows = await stored(self.activity.legacy(), "failed to get activity")
        return json_answer(rows)

    @route("GET", "/api/metrics/export", query=_EXPORT, content="text/csv")
    async def export(self, call: AdminRequest) -> None:
        """The served requests as a file, oldest first, written as fast as the client reads."""
        name = call.text("format") or "csv"
        export_format = EXPORT_FORMATS.get(name)
        if export_format is None:
            raise HttpError(400, f"format must be one of {', '.join(EXPORT_FORMATS)}")
        wanted = parse_filter(call.query)
        disposition = f'attachment; filename="activity.{name}"'.encode()
        stream = self.streams.open(
            call, export_format.content_type, ((b"Content-Disposition", disposition),), feed=False
        )
        if stream.ended:
            return
        export = _Export(self.activity, wanted, export_format, stream)
        stream.register(export)
        Deferred.fromCoroutine(export.run()).addErrback(export.failed)
        await stream.until_end()

    @route("GET", "/api/captures/<rest:number>", answer=CaptureDocument)
    async def capture(self, call: AdminRequest) -> Response:
        """One stored request with its answer."""
        text = call.variables["number"]
        try:
            number = int(text) if text.strip() == text and "_" not in text else None
        except ValueError:
            number = None
        if number is None:
            raise HttpError(400, "invalid capture ID")
        found = await self.activity.capture(number)
        if found is None:
            raise HttpError(404, "capture not found")
        return Response(200, json_bytes(found.document(number)), JSON)

    @route("POST", "/api/inflight/<string:number>/cancel", answer=Message)
    def cancel(self, call: AdminRequest) -> Response:
        """Cancel a running request; answers before it has ended."""
        if not self.inflight.cancel(call.variables["number"]):
            raise HttpError(404, "inflight request not found")
        return json_answer(Message("ok"))


async def stored(result: Deferred[Result], message: str) -> Result:
    """The result of a read from the store; if it fails, the client gets `message`, and the log the reason."""
    try:
        return await result
    except Exception:
        log.failure("{message}", message=message)
        raise HttpError(500, message)


# -- exports -----------------------------------------------------------------------------------------------

COLUMNS = (
    *("id", "timestamp", "model", "req_path", "resp_status_code", "resp_content_type", "duration_ms"),
    *("input_tokens", "output_tokens", "cache_tokens", "draft_tokens", "draft_acc_tokens"),
    *("prompt_per_second", "tokens_per_second", "session", "client", "key", "error_msg"),
    *("queued_ms", "loaded_ms", "ttft_ms"),
)


def _cells(document: JsonObject) -> list[object]:
    """A row's cells in the columns' order; a number that is unknown (-1) gives an empty cell."""
    tokens = document["tokens"]
    flat = {**document, **(tokens if isinstance(tokens, dict) else {})}
    return ["" if value in (None, -1) else value for value in (flat.get(name, "") for name in COLUMNS)]


def _csv(rows: Iterable[Iterable[object]]) -> bytes:
    out = io.StringIO()
    csv.writer(out).writerows([harmless(cell) for cell in row] for row in rows)
    return out.getvalue().encode()


def harmless(cell: object) -> object:
    """The cell, marked as text if a spreadsheet would read it as a formula; clients choose model names."""
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t") else cell


def _line(cells: Iterable[object]) -> str:
    texts = (str(cell).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ") for cell in cells)
    return "| " + " | ".join(texts) + " |\n"


@frozen
class ExportFormat:
    """A file format: its head, and its lines for some rows."""

    content_type: bytes
    head: bytes
    lines: Callable[[list[JsonObject]], bytes]


EXPORT_FORMATS = {
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
    """Reads the table in steps, and pauses while the client does not read."""

    activity: ActivityLog
    wanted: ActivityFilter
    export_format: ExportFormat
    stream: StreamingResponse
    _resumed: Deferred[None] | None = field(default=None, init=False)
    """Fires when the client reads again; None while it reads."""

    async def run(self) -> None:
        """Write the file."""
        self.stream.write(self.export_format.head)
        last, count = 0, EXPORT_ROWS
        next_rows = lambda table: table.after(self.wanted, last, EXPORT_ROWS)
        while count == EXPORT_ROWS:
            if self._resumed is not None:
                await self._resumed
            if self.stream.ended:
                return
            rows = await self.activity.ask(next_rows)
            self.stream.write(self.export_format.lines([self.activity.document(row) for row in rows]))
            last, count = rows[-1].id if rows else last, len(rows)
        self.stream.end()

    def failed(self, failure: Failure) -> None:
        """End the file after a failure."""
        log.failure("reading the activity for an export failed; the file is incomplete", failure=failure)
        self.stream.end()

    def pauseProducing(self) -> None:
        self._resumed = self._resumed or Deferred()

    def resumeProducing(self) -> None:
        resumed, self._resumed = self._resumed, None
        if resumed is not None:
            resumed.callback(None)

    stopProducing = resumeProducing
