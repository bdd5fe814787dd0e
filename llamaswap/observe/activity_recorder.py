"""The observer of one request that becomes a row: it counts the response's bytes and keeps few of them.

`head`, `data` and `ended` run between a server's bytes and its client. `digest` parses what was kept, later and, if
that takes long, on a worker's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from attrs import define, field

from llamaswap.errors import CLIENT_CLOSED_REQUEST
from llamaswap.observe.activity_row import SHORTEST_WAIT, WAITED, ActivityRow, error_message, status_text
from llamaswap.observe.captures import WITHOUT_REQUEST_BODY, WITHOUT_RESPONSE_BODY, Capture
from llamaswap.observe.redact import shown
from llamaswap.wire.byte_budget import ByteBudget
from llamaswap.wire.content_coding import Undecodable, decode
from llamaswap.wire.headers import ResponseHeaders, first
from llamaswap.wire.request_info import RequestInfo, RequestOutcome
from llamaswap.wire.usage import NOTHING, StreamScanner, Usage, from_document, from_fragment, from_lines

DOCUMENT_BOUND = 256 * 1024  # bytes; a chat response is far smaller, and of embeddings the ends contain the usage
MAX_ERROR = 16 * 1024  # bytes kept of an error response: its message is in the first few hundred
MAX_DECODED = 64 * 1024 * 1024  # bytes of a decoded response: only a decompression bomb is larger
MAX_ENCODED = 4 * 1024 * 1024  # of a compressed response; its end cannot be read without its beginning
ESTIMATE_TOKENS = 16  # fewer tokens, or
ESTIMATE_SECONDS = 0.05  # a shorter time, say little about a speed
_MEDIA = ("audio/", "image/", "video/")
_ENCODING = frozenset({b"content-encoding"})

# The status of a request that ended before any head. A client that left got none; one whose waiting request was
# cancelled gets an empty 200.
_STATUS_WITHOUT_HEAD = {"gone": CLIENT_CLOSED_REQUEST, "cancelled": 200, "complete": 200}
_OUTCOME_MESSAGES = {
    "gone": "client disconnected",
    "cancelled": "request cancelled",
    "truncated": "answer cut short",
}


@define(eq=False)
class HeadTailBuffer:
    """What is kept of a response's body while it passes: all bytes up to `bound`; of more bytes only the first and the
    last half of the bound."""

    bound: int = DOCUMENT_BOUND
    _head: bytearray = field(factory=bytearray, init=False)
    _tail: bytearray = field(factory=bytearray, init=False)

    def add(self, data: bytes) -> None:
        """Append bytes."""
        if not self._tail:
            self._head += data
            if len(self._head) > self.bound:
                self._split()
            return
        self._tail += data
        if len(self._tail) > self.bound:
            del self._tail[: -self.bound // 2]

    def take_over(self, data: bytearray) -> None:
        """Begin with `data`, which belongs to this buffer from now on: it is not copied as a whole."""
        self._head = data
        if len(data) > self.bound:
            self._split()

    def _split(self) -> None:
        half = self.bound // 2
        self._tail = self._head[-half:]
        del self._head[half:]

    @property
    def complete(self) -> bool:
        """Whether all bytes were kept."""
        return not self._tail

    def content(self) -> bytes:
        """The kept bytes: the whole body, or its two ends side by side."""
        return bytes(self._head) + bytes(self._tail)


@define(eq=False)
class ActivityRecorder:
    """A `RequestObserver`. `done` receives it when the request is over.

    `budget` bounds the bytes of all responses kept for captures (None: no captures); `held` of its bytes are this
    recorder's, to be given back after its use. `loads` has when the last load of each model began and ended. `row` and
    `capture` are set by `digest`.
    """

    request: RequestInfo
    _seconds: Callable[[], float]
    _wall: Callable[[], float]
    _sessions: Sequence[bytes]
    _budget: ByteBudget | None
    _done: Callable[[ActivityRecorder], None]
    _loads: Mapping[str, tuple[float, float]] = field(factory=dict)
    held: int = field(default=0, init=False)
    row: ActivityRow | None = field(default=None, init=False)
    capture: Capture | None = field(default=None, init=False)
    body: bytes = field(default=b"", init=False, repr=False)
    _captured: bool = field(default=False, init=False)
    _complete: bool = field(default=False, init=False)
    _outcome_message: str = field(default="", init=False)
    _granted_at: float | None = field(default=None, init=False)
    _first_data_at: float | None = field(default=None, init=False)
    _ended_at: float = field(default=0.0, init=False)
    _ended: float = field(default=0.0, init=False)
    _status: int = field(default=0, init=False)
    _headers: Sequence[tuple[bytes, bytes]] = field(default=(), init=False)
    _content_type: str = field(default="", init=False)
    _encoding: str = field(default="", init=False)
    _sent: int = field(default=0, init=False)
    _scanner: StreamScanner | None = field(default=None, init=False)
    _ends: HeadTailBuffer | None = field(default=None, init=False)
    _capture_body: bytearray | None = field(default=None, init=False)
    _over_budget: bool = field(default=False, init=False)

    # -- while the response passes -------------------------------------------------------------------------

    def granted(self) -> None:
        """The server's time begins. The priority is in the metadata, which is read when the request is over."""
        self._granted_at = self._seconds()

    def retargeted(self) -> None:
        """The model is read when the request is over."""

    def head(self, status: int, headers: ResponseHeaders) -> None:
        """Only the first head counts: after a loading stream the client has a 200 whatever the server says later."""
        if self._status:
            return
        self._status = status
        self._headers = headers.items
        self._content_type = headers.content_type.decode("latin-1")
        self._encoding = headers.content_encoding.decode("latin-1").strip().lower()
        encoded = self._encoding in ("gzip", "deflate")
        if status != 200:
            self._ends = HeadTailBuffer(MAX_ERROR)
            return
        if "text/event-stream" in self._content_type and not encoded:
            self._scanner = StreamScanner()
        elif not self._content_type.startswith(_MEDIA):
            self._ends = HeadTailBuffer(MAX_ENCODED if encoded else DOCUMENT_BOUND)
        if self._budget is not None and self.request.path not in WITHOUT_RESPONSE_BODY:
            self._capture_body = bytearray()

    def data(self, data: bytes) -> None:
        """Count the bytes, and keep those that the row or the capture needs."""
        self._sent += len(data)
        if self._first_data_at is None and not self.request.loading:
            self._first_data_at = self._seconds()
        if self._scanner is not None:
            self._scanner.feed(data)
        if self._capture_body is not None:
            self._keep_for_capture(data)
        elif self._ends is not None:
            self._ends.add(data)

    def ended(self, ending: RequestOutcome, error: Exception | None) -> None:
        """Drop what only watching needed, and call `done`."""
        kept = self._capture_body
        if kept is not None:
            self.held = len(kept)
            self.body, self._complete, self._capture_body, self._ends = bytes(kept), True, None, None
        elif self._ends is not None:
            self.body, self._complete, self._ends = self._ends.content(), self._ends.complete, None
        self._captured = self._budget is not None and not self._over_budget and self._status != 0
        if not self._status:
            self._status = _STATUS_WITHOUT_HEAD.get(ending, 500)
        if ending != "complete":
            self._outcome_message = str(error or "") or _OUTCOME_MESSAGES.get(ending, "")
        self._ended, self._ended_at = self._wall(), self._seconds()
        self._done(self)

    def _keep_for_capture(self, data: bytes) -> None:
        """Keep the body for its capture; give the capture up if all of them together hold too much."""
        kept, budget = self._capture_body, self._budget
        if kept is None or budget is None:
            return
        # One capture may hold half: a body far larger than all captures may take would be thrown away at the end.
        if len(kept) + len(data) <= budget.bound(0) // 2 and budget.take(len(data)):
            kept += data
            return
        self._capture_body = None
        self._over_budget = True
        budget.give_back(len(kept))
        if self._ends is not None:
            self._ends.take_over(kept)
            self._ends.add(data)

    # -- when the request is over --------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Bytes of bodies that it keeps in memory."""
        return len(self.body) + len(self.request.captured_body or b"")

    def forget_capture(self) -> None:
        """Drop the request's body and the capture, and keep what the row needs."""
        self._captured, self.request.captured_body = False, None

    def forget_bodies(self) -> None:
        """Keep only the row, which then lacks its tokens."""
        self.body, self._complete, self._captured, self.held, self.request.captured_body = b"", False, False, 0, None

    def digest(self) -> None:
        """Make the row and the capture. Takes as long as parsing the body."""
        if self._status != 200:
            self._make_row(NOTHING, self._error_of_body())
            self._make_capture(b"")
        elif not self._sent:
            self._make_row(NOTHING, self._outcome_message)
        else:
            try:
                body = decode(self.body, self._encoding, MAX_DECODED)
            except Undecodable as error:
                self._make_row(NOTHING, f"response decompression failed: {error}")
            else:
                self._make_row(self._usage(body) or NOTHING, self._outcome_message)
                self._make_capture(body)

    def _error_of_body(self) -> str:
        try:
            body = decode(self.body, self._encoding, MAX_DECODED)
        except Undecodable as error:
            return f"response decode failed: {error}"
        return error_message(body) or self._outcome_message or status_text(self._status)

    def _usage(self, body: bytes) -> Usage | None:
        if self._scanner is not None:
            return from_lines(self._scanner.lines())
        if "text/event-stream" in self._content_type:
            return from_lines(body.split(b"\n"))
        if self._complete:
            return from_document(body, self.request.path)
        return from_fragment(body) if "json" in self._content_type else None

    def _estimate_speeds(self, usage: Usage) -> bool:
        """Set the speeds that the server did not report, from the tokens that it reported and the times observed;
        returns whether there were any. A response that is not a stream does not show when its first token was made, so
        its speed includes the processing of the prompt."""
        begin = self.request.started if self._granted_at is None else self._granted_at
        first = self._first_data_at if "text/event-stream" in self._content_type else None
        prompt, generated = usage.prompt_per_second, usage.tokens_per_second
        if first is not None and prompt < 0:
            usage.prompt_per_second = _rate(usage.input_tokens - max(0, usage.cache_tokens), first - begin)
        if generated < 0:
            usage.tokens_per_second = _rate(usage.output_tokens, self._ended_at - (begin if first is None else first))
        return (prompt, generated) != (usage.prompt_per_second, usage.tokens_per_second)

    def _make_row(self, usage: Usage, error: str) -> None:
        request = self.request
        estimated = self._estimate_speeds(usage)
        self.row = ActivityRow(
            int(self._ended),
            request.model,
            request.stored_path,
            self._content_type,
            self._status,
            usage,
            # The server's times may exceed ours by rounding; a row never shows less than the work in it.
            max(int((self._ended_at - request.started) * 1000), usage.server_ms),
            error,
            self._metadata(estimated),
            session(request.headers, self._sessions) if self._sessions else "",
            request.remote_ip,
            key=request.key_name,
            charge=request.charge,
            first_token_ms=self._first_token_ms(),
            loaded_ms=self._loaded_ms(),
        )

    def _first_token_ms(self) -> int:
        if self._first_data_at is None or self._status != 200 or "text/event-stream" not in self._content_type:
            return -1
        return max(0, round((self._first_data_at - self.request.started) * 1000))

    def _loaded_ms(self) -> int:
        """How much of the wait was the load of the model."""
        began, ended = self._loads.get(self.request.server, (0.0, 0.0))
        until = self._ended_at if self._granted_at is None else self._granted_at
        return max(0, round((min(ended, until) - max(began, self.request.started)) * 1000))

    def _metadata(self, estimated: bool) -> Mapping[str, str]:
        """The request's metadata, and what is special about its row."""
        waited = 0.0 if self._granted_at is None else self._granted_at - self.request.started
        if waited < SHORTEST_WAIT and not estimated:
            return self.request.metadata
        found = dict(self.request.metadata)
        if estimated:
            found["speed"] = "estimated"
        if waited >= SHORTEST_WAIT:
            found[WAITED] = str(round(waited * 1000))
        return found

    def _make_capture(self, body: bytes) -> None:
        """The capture with this decoded body (an error response's body is left out)."""
        # A request far larger than all captures may take is not even compressed.
        if not self._captured or self._budget is None or self.size > self._budget.bound(0):
            return
        request = self.request
        self.capture = Capture(
            request.stored_path,
            shown(request.headers),
            None if request.path in WITHOUT_REQUEST_BODY else request.captured_body,
            shown(self._headers, without=_ENCODING),
            body if self._status == 200 and request.path not in WITHOUT_RESPONSE_BODY else None,
        )


def _rate(tokens: int, seconds: float) -> float:
    """Tokens a second; -1 (unknown) if there are too few of them, or too little time."""
    return round(tokens / seconds, 2) if tokens >= ESTIMATE_TOKENS and seconds >= ESTIMATE_SECONDS else -1.0


def session_headers(names: Sequence[str]) -> tuple[bytes, ...]:
    """The configured session headers as `session` takes them."""
    return tuple(name.lower().encode("latin-1", "replace") for name in names)


def session(headers: Sequence[tuple[bytes, bytes]], names: Sequence[bytes]) -> str:
    """The first non-empty value among the session headers `names` (lower case, in order of preference)."""
    for name in names:
        value = (first(headers, name) or b"").strip()
        if value:
            return value.decode("utf-8", "replace")
    return ""
