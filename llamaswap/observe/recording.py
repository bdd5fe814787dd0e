"""The scope of one request that ends as a row: it watches the answer pass and holds as little as it can.

Everything here runs between a server's bytes and its client, so it only counts and keeps. Reading what was
kept is record.py's work, later and elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import define, field

from llamaswap.observe.captures import Capture, mask_for
from llamaswap.observe.record import Answer
from llamaswap.observe.redact import first, shown
from llamaswap.observe.tape import DOCUMENT_BOUND, Allowance, Tape
from llamaswap.wire.facts import Ending, RequestFacts
from llamaswap.wire.usage import StreamScanner

ERROR_BOUND = 16 * 1024  # bytes of a failed answer: its message stands in the first few hundred
ENCODED_BOUND = 4 * 1024 * 1024  # of a compressed answer; its end cannot be read without its beginning
_MEDIA = ("audio/", "image/", "video/")
_ENCODING = frozenset({b"content-encoding"})
# What a client would have seen had there been a head: see Recording._status.
CLIENT_CLOSED = 499


@define(eq=False)  # not frozen: freezing doubles what making one costs, and each request makes them
class Job:
    """A finished request: its answer, what else its capture needs (None: not captured), and bytes to give back."""

    answer: Answer
    parts: Parts | None
    held: int

    @property
    def size(self) -> int:
        """Bytes of bodies it keeps alive."""
        asked = self.parts.facts.body if self.parts is not None else None
        return len(self.answer.body) + len(asked or b"")


@define(eq=False)
class Parts:
    """A capture's parts as they came; `capture` redacts them, off the reactor's thread."""

    facts: RequestFacts = field(repr=False)
    resp_headers: Sequence[tuple[bytes, bytes]] = field(repr=False)

    def capture(self, status: int, body: bytes) -> Capture:
        """The capture, within its path's mask, with this decoded answer (of a failure the answer is left out)."""
        facts, mask = self.facts, mask_for(self.facts.path)
        return Capture(
            req_path=facts.stored_path,
            req_headers=shown(facts.headers) if mask.req_headers else None,
            req_body=facts.body if mask.req_body else None,
            resp_headers=shown(self.resp_headers, without=_ENCODING) if mask.resp_headers else None,
            resp_body=body if mask.resp_body and status == 200 else None,
        )


@define(eq=False)
class Recording:
    """A Scope. `done` takes the job; `allowance` bounds what all captures in the making hold (None: no captures)."""

    facts: RequestFacts
    _seconds: Callable[[], float]
    _wall: Callable[[], float]
    _sessions: Sequence[bytes]
    _allowance: Allowance | None
    _done: Callable[[Job], None]
    _status: int = field(default=0, init=False)
    _headers: Sequence[tuple[bytes, bytes]] = field(default=(), init=False)
    _content_type: str = field(default="", init=False)
    _encoding: str = field(default="", init=False)
    _sent: int = field(default=0, init=False)
    _scanner: StreamScanner | None = field(default=None, init=False)
    _tape: Tape | None = field(default=None, init=False)
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
        self._content_type = first(headers, b"content-type").decode("latin-1")
        self._encoding = first(headers, b"content-encoding").decode("latin-1").strip().lower()
        encoded = self._encoding in ("gzip", "deflate")
        if status != 200:
            self._tape = Tape(ERROR_BOUND)
            return
        if "text/event-stream" in self._content_type and not encoded:
            self._scanner = StreamScanner()
        elif not self._content_type.startswith(_MEDIA):
            self._tape = Tape(ENCODED_BOUND if encoded else DOCUMENT_BOUND)
        if self._allowance is not None and mask_for(self.facts.path).resp_body:
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

    def closed(self, ending: Ending, error: Exception | None) -> None:
        """Hand the job over."""
        reel, self._reel = self._reel, None
        held = 0 if reel is None else len(reel)
        if reel is not None:
            body, whole = bytes(reel), True
        elif self._tape is not None:
            body, whole = self._tape.content(), self._tape.complete
        else:
            body, whole = b"", False
        facts = self.facts
        status = self._status or self._unsent(ending)
        answer = Answer(
            model=facts.model,
            path=facts.path,
            stored_path=facts.stored_path,
            timestamp=self._wall(),
            status=status,
            content_type=self._content_type,
            encoding=self._encoding,
            milliseconds=max(0, int((self._seconds() - facts.started) * 1000)),
            body=body,
            whole=whole,
            sent=self._sent,
            lines=None if self._scanner is None else tuple(self._scanner.lines()),
            trouble=_trouble(ending, error),
            metadata=dict(facts.metadata),
            session=session(facts.headers, self._sessions),
            client=facts.remote_ip,
        )
        captured = self._allowance is not None and not self._lost and bool(self._status)
        self._done(Job(answer, Parts(facts, self._headers) if captured else None, held))

    def _wind(self, data: bytes) -> None:
        """Keep the body for its capture; when too much is held by everyone, give this capture up."""
        if self._reel is None or self._allowance is None:
            return
        if self._allowance.take(len(data)):
            self._reel += data
            return
        self._allowance.give_back(len(self._reel))
        if self._tape is not None:
            self._tape.add(bytes(self._reel))
            self._tape.add(data)
        self._reel = None
        self._lost = True

    @staticmethod
    def _unsent(ending: Ending) -> int:
        """The status of a request that ended before any head."""
        # A cancelled waiter's client gets an empty 200; one that left could not be told anything.
        return {"gone": CLIENT_CLOSED, "cancelled": 200, "complete": 200}.get(ending, 500)


def _trouble(ending: Ending, error: Exception | None) -> str:
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
        value = first(headers, name).strip()
        if value:
            return value.decode("utf-8", "replace")
    return ""
