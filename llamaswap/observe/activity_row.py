"""One finished request as a row: how an answer becomes tokens, an error message and a capture.

Pure functions over values: a large answer is parsed and decoded off the reactor's thread. Must not know the store,
the clock or the request objects.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from attrs import define, field

from llamaswap.observe.head_tail_buffer import Undecodable, decoded
from llamaswap.wire.usage import NOTHING, Usage, from_document, from_fragment, from_lines

MESSAGE_BOUND = 500  # characters of an error message worth a table cell


# Answers and rows are made for every request and not frozen: freezing doubles what making one costs.
@define(eq=False)
class RecordedResponse:
    """What is known of a request when it is over.

    `lines` are an unencoded event stream's kept lines (None: it was none); `body` what was held of the answer,
    `whole` whether that is all of it; `milliseconds` the wall time from arrival to end.
    """

    model: str
    path: str
    stored_path: str
    timestamp: float
    status: int
    content_type: str
    encoding: str
    milliseconds: int
    body: bytes = field(repr=False)
    whole: bool
    sent: int
    lines: tuple[bytes, ...] | None = field(default=None, repr=False)
    trouble: str = ""
    metadata: Mapping[str, str] = field(factory=dict)
    session: str = ""
    client: str = ""


@define
class ActivityRow:
    """One line of the activity table; `id` is 0 until the store sets it, `created` in whole unix seconds."""

    created: int
    model: str
    req_path: str
    resp_content_type: str
    resp_status_code: int
    usage: Usage
    duration_ms: int
    error_msg: str = ""
    metadata: Mapping[str, str] = field(factory=dict)
    session: str = ""
    client: str = ""
    id: int = 0


@define
class ActivityDigest:
    """A row, and the decoded body for its capture (None: this answer may not be captured at all)."""

    row: ActivityRow
    capture_body: bytes | None = field(default=None, repr=False)


def digest(answer: RecordedResponse) -> ActivityDigest:
    """Read an answer. Costs what parsing its body costs."""
    if answer.status != 200:
        return ActivityDigest(_row(answer, NOTHING, _failure(answer)), b"")
    if not answer.sent:
        return ActivityDigest(_row(answer, NOTHING, answer.trouble))
    try:
        body = decoded(answer.body, answer.encoding)
    except Undecodable as error:
        return ActivityDigest(_row(answer, NOTHING, f"response decompression failed: {error}"))
    return ActivityDigest(_row(answer, _usage(answer, body) or NOTHING, answer.trouble), body)


def _usage(answer: RecordedResponse, body: bytes) -> Usage | None:
    if answer.lines is not None:
        return from_lines(answer.lines)
    if "text/event-stream" in answer.content_type:
        return from_lines(body.split(b"\n"))
    if answer.whole:
        return from_document(body, answer.path)
    return from_fragment(body) if "json" in answer.content_type else None


def _row(answer: RecordedResponse, usage: Usage, error: str) -> ActivityRow:
    return ActivityRow(
        int(answer.timestamp),
        answer.model,
        answer.stored_path,
        answer.content_type,
        answer.status,
        usage,
        # The server's own times may exceed ours by rounding; a row never claims less than the work in it.
        max(answer.milliseconds, usage.server_ms),
        error,
        answer.metadata,
        answer.session,
        answer.client,
    )


def _failure(answer: RecordedResponse) -> str:
    """Why a request failed, out of its own error body."""
    try:
        body = decoded(answer.body, answer.encoding)
    except Undecodable as error:
        return f"response decode failed: {error}"
    return error_message(body) or answer.trouble or reason(answer.status)


def error_message(body: bytes) -> str:
    """The first message an error body offers, "" for none; cut to a length that fits a table."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(document, dict):
        return ""
    error: Any = document.get("error")
    inner = error.get("message") if isinstance(error, dict) else None
    for candidate in (inner, error, document.get("message"), document.get("detail")):
        if isinstance(candidate, str) and candidate.strip():
            return _cut(candidate.strip())
    return ""


def _cut(text: str) -> str:
    raw = text.encode("utf-8", "replace")  # half a character that JSON can name and no table or document can hold
    return raw[:MESSAGE_BOUND].decode("utf-8", "ignore") + ("..." if len(raw) > MESSAGE_BOUND else "")


def reason(status: int) -> str:
    """`502 Bad Gateway`, or `HTTP 599` for a code without a name."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"HTTP {status}"
