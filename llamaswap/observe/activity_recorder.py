"""The scope of one request that ends as a row: it watches the answer pass and holds as little as it can.

Everything here runs between a server's bytes and its client, so it only counts and keeps. Reading what was
kept is record.py's work, later and elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import define, field

from llamaswap.errors import CLIENT_CLOSED_REQUEST
from llamaswap.observe.activity_row import RecordedResponse
from llamaswap.observe.captures import Capture, mask_for
from llamaswap.observe.head_tail_buffer import DOCUMENT_BOUND, CaptureBudget, HeadTailBuffer
from llamaswap.observe.redact import shown
from llamaswap.wire.headers import first
from llamaswap.wire.request_info import RequestInfo, RequestOutcome
from llamaswap.wire.usage import StreamScanner

ERROR_BOUND = 16 * 1024  # bytes of a failed answer: its message stands in the first few hundred
ENCODED_BOUND = 4 * 1024 * 1024  # of a compressed answer; its end cannot be read without its beginning
_MEDIA = ("audio/", "image/", "video/")
_ENCODING = frozenset({b"content-encoding"})


@define(eq=False)
class ActivityRecorder:
    """A Scope. `done` takes it when it is over; `allowance` bounds what all captures in the making hold (None: no
    captures). From then on it is read: `answer` for the row, `capture` for the capture, `held` bytes to give back.
    """

    facts: RequestInfo
    _seconds: Callable[[], float]
    _wall: Callable[[], float]
    _sessions: Sequence[bytes]
    _allowance: CaptureBudget | None
    _done: Callable[[ActivityRecorder], None]
    held: int = field(default=0, init=False)
    captured: bool = field(default=False, init=False)
    body: bytes = field(default=b"", init=False, repr=False)
    _whole: bool = field(default=False, init=False)
    _trouble: str = field(default="", init=False)
    _ended: float = field(default=0.0, init=False)
    _milliseconds: int = field(default=0, init=False)
    _status: int = field(default=0, init=False)
    _headers: Sequence[tuple[bytes, bytes]] = field(default=(), init=False)
    _content_type: str = field(default="", init=False)
    _encoding: str = field(default="", init=False)
    _sent: int = field(default=0, init=False)
    _scanner: StreamScanner | None = field(default=None, init=False)
    _tape: HeadTailBuffer | None = field(default=None, init=False)
    _reel: bytearray | None = field(default=None, init=False)
    _lost: bool = field(default=False, init=False)

    def metadata_changed(self) -> None:
        """Metadata is read when the request is over."""

    def head(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """The first head wins: with a loading stream the client has a 200 whatever the server says later."""
        if self._status:
            return
        self._status = status
        self._headers = headers
        self._content_type = (first(headers, b"content-type") or b"").decode("latin-1")
        self._encoding = (first(headers, b"content-encoding") or b"").decode("latin-1").strip().lower()
        encoded = self._encoding in ("gzip", "deflate")
        if status != 200:
            self._tape = HeadTailBuffer(ERROR_BOUND)
            return
        if "text/event-stream" in self._content_type and not encoded:
            self._scanner = StreamScanner()
        elif not self._content_type.startswith(_MEDIA):
            self._tape = HeadTailBuffer(ENCODED_BOUND if encoded else DOCUMENT_BOUND)
        if self._allowance is not None and mask_for(self.facts.path).response:
            self._reel = bytearray()

    def data(self, data: bytes) -> None:
        """Count, and keep what is to be kept."""
        self._sent += len(data)
        if self._scanner is not None:
            self._scanner.feed(data)
        if self._reel is not None:
            self._wind(data)
        elif self._tape is not None:
            self._tape.add(data)

    def closed(self, ending: RequestOutcome, error: Exception | None) -> None:
        """Let go of what only the watching needed, and hand over."""
        reel = self._reel
        if reel is not None:
            self.held = len(reel)
            self.body, self._whole, self._reel, self._tape = bytes(reel), True, None, None
        elif self._tape is not None:
            self.body, self._whole, self._tape = self._tape.content(), self._tape.complete, None
        self.captured = self._allowance is not None and not self._lost and self._status != 0
        if not self._status:
            self._status = self._unsent(ending)
        if ending != "complete":
            self._trouble = _trouble(ending, error)
        self._ended = self._wall()
        self._milliseconds = max(0, int((self._seconds() - self.facts.started) * 1000))
        self._done(self)

    @property
    def size(self) -> int:
        """Bytes of bodies it keeps alive."""
        return len(self.body) + len(self.facts.body or b"")

    def forget_capture(self) -> None:
        """There is no room for what was asked, only for what the row needs."""
        self.captured, self.facts.body = False, None

    def forget_bodies(self) -> None:
        """Only the row is left, and it will not know of tokens."""
        self.body, self._whole, self.captured, self.held, self.facts.body = b"", False, False, 0, None

    def answer(self) -> RecordedResponse:
        """What the row is made from."""
        facts = self.facts
        return RecordedResponse(
            facts.model,
            facts.path,
            facts.stored_path,
            self._ended,
            self._status,
            self._content_type,
            self._encoding,
            self._milliseconds,
            self.body,
            self._whole,
            self._sent,
            None if self._scanner is None else tuple(self._scanner.lines()),
            self._trouble,
            facts.metadata,
            session(facts.headers, self._sessions) if self._sessions else "",
            facts.remote_ip,
        )

    def capture(self, body: bytes) -> Capture:
        """The capture, within its path's mask, with this decoded answer (of a failure the answer is left out)."""
        facts, mask = self.facts, mask_for(self.facts.path)
        return Capture(
            facts.stored_path,
            shown(facts.headers),
            facts.body if mask.request else None,
            shown(self._headers, without=_ENCODING),
            body if mask.response and self._status == 200 else None,
        )

    def _wind(self, data: bytes) -> None:
        """Keep the body for its capture; when too much is held by everyone, give this capture up."""
        if self._reel is None or self._allowance is None:
            return
        # What is far too large for the shelf would be thrown away at the end.
        if len(self._reel) + len(data) <= self._allowance.most and self._allowance.take(len(data)):
            self._reel += data
            return
        reel, self._reel = self._reel, None
        self._lost = True
        self._allowance.give_back(len(reel))
        if self._tape is not None:
            self._tape.take_over(reel)
            self._tape.add(data)

    @staticmethod
    def _unsent(ending: RequestOutcome) -> int:
        """The status of a request that ended before any head."""
        # A cancelled waiter's client gets an empty 200; one that left could not be told anything.
        return {"gone": CLIENT_CLOSED_REQUEST, "cancelled": 200, "complete": 200}.get(ending, 500)


def _trouble(ending: RequestOutcome, error: Exception | None) -> str:
    if ending == "complete":
        return ""
    if error is not None and str(error):
        return str(error)
    return {"gone": "client disconnected", "cancelled": "request cancelled", "truncated": "answer cut short"}.get(
        ending, ""
    )


def session(headers: Sequence[tuple[bytes, bytes]], names: Sequence[bytes]) -> str:
    """The first non-empty of the configured session headers (`names` in lower case, in order of preference)."""
    for name in names:
        value = (first(headers, name) or b"").strip()
        if value:
            return value.decode("utf-8", "replace")
    return ""
