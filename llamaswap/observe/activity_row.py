"""A finished request as a row of the activity table, and the error message that an error response contains."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus

from attrs import define, field

from llamaswap.wire.request_info import TokenCharge
from llamaswap.wire.usage import Usage

WAITED = "waited_ms"  # the key of a row's metadata with the milliseconds until the model was ready and free
SHORTEST_WAIT = 0.1  # seconds; a row does not mention a shorter wait for its model
MAX_MESSAGE = 500  # bytes of an error message in a row

# The fields of `Usage` that a row has, in the order of the table's columns.
USAGE_COLUMNS = (
    "cache_tokens",
    "draft_tokens",
    "draft_acc_tokens",
    "input_tokens",
    "output_tokens",
    "prompt_per_second",
    "tokens_per_second",
)


@define  # not frozen: each request makes one, and freezing doubles what that costs
class ActivityRow:
    """One row; `id` is 0 until the store sets it, `created` is in whole unix seconds. `key` is the name of the client's
    API key; `charge` is not stored.

    `first_token_ms` is the time from the request's arrival to the first data of its event stream (-1: it has none),
    `loaded_ms` the part of its wait in which its model was loaded.
    """

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
    key: str = ""
    charge: TokenCharge | None = field(default=None, eq=False, repr=False)
    first_token_ms: int = -1
    loaded_ms: int = 0

    @property
    def queued_ms(self) -> int:
        """How long it waited for its turn, without the load of its model; 0 if that was short."""
        waited = self.metadata.get(WAITED, "")
        queued = int(waited) - self.loaded_ms if waited.isdecimal() and len(waited) < 16 else 0
        return queued if queued >= SHORTEST_WAIT * 1000 else 0

    @property
    def tokens(self) -> int:
        """Prompt and generated tokens together; -1 if neither is known."""
        counts = (self.usage.input_tokens, self.usage.output_tokens)
        return sum(max(0, count) for count in counts) if max(counts) >= 0 else -1


@define
class ActivityStored:
    """The event that the rows of some requests were stored, in the order of their ends."""

    rows: Sequence[ActivityRow]


def error_message(body: bytes) -> str:
    """The message in an error response, cut to `MAX_MESSAGE` bytes; "" if it has none."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(document, dict):
        return ""
    error = document.get("error")
    inner = error.get("message") if isinstance(error, dict) else None
    for candidate in (inner, error, document.get("message"), document.get("detail")):
        if isinstance(candidate, str) and candidate.strip():
            # JSON can name half a surrogate pair, which neither a table nor a document can hold.
            raw = candidate.strip().encode("utf-8", "replace")
            return raw[:MAX_MESSAGE].decode("utf-8", "ignore") + ("..." if len(raw) > MAX_MESSAGE else "")
    return ""


def status_text(status: int) -> str:
    """`502 Bad Gateway`, or `HTTP 599` for a code without a name."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"HTTP {status}"
