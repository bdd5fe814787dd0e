"""Server-sent events: cutting a stream into them, and saying that one broke in the words its caller understands.

Nothing here keeps a stream: a splitter holds at most one event, a tail four bytes.
"""

from __future__ import annotations

import re

from attrs import define, field

from llamaswap.wire.openai import SOURCE, document, encode, kind, speaks_anthropic

DONE = b"data: [DONE]\n\n"
_BLANK_LINE = re.compile(rb"\r\n\r\n|\n\n|\r\r|\n\r\n")
_LONGEST_END = 4


@define
class EventSplitter:
    """Cuts bytes into events (without the blank line that ends each).

    An event longer than `bound` bytes is passed over: `overlong` counts them, and what is held stays bounded.
    """

    bound: int
    overlong: int = 0
    _held: bytearray = field(factory=bytearray)
    _skipping: bool = False

    def feed(self, data: bytes) -> list[bytes]:
        """The events that these bytes complete."""
        searched = max(0, len(self._held) - _LONGEST_END + 1)
        self._held += data
        events: list[bytes] = []
        while (found := _BLANK_LINE.search(self._held, searched)) is not None:
            event = bytes(self._held[: found.start()])
            del self._held[: found.end()]
            searched = 0
            if self._skipping or len(event) > self.bound:
                self.overlong += 1
            elif event.strip(b"\r\n"):
                events.append(event)
            self._skipping = False
        if len(self._held) > self.bound + _LONGEST_END:
            del self._held[: -(_LONGEST_END - 1)]
            self._skipping = True
        return events

    @property
    def clean(self) -> bool:
        """Whether the stream stands between two events."""
        return not self._skipping and not self._held.strip(b"\r\n")


@define
class Tail:
    """Knows whether a stream that passes by stands between two events, from its last bytes alone."""

    _last: bytes = b"\n\n"

    def feed(self, data: bytes) -> None:
        """Some bytes passed."""
        self._last = data[-_LONGEST_END:] if len(data) >= _LONGEST_END else (self._last + data)[-_LONGEST_END:]

    @property
    def clean(self) -> bool:
        """Whether the last event is complete."""
        return self._last.endswith((b"\n\n", b"\n\r\n", b"\r\r"))


def event(data: bytes, name: str = "") -> bytes:
    """One event on the wire."""
    lead = f"event: {name}\n".encode() if name else b""
    return lead + b"data: " + data + b"\n\n"


def error_event(path: str, status: int, message: str, *, clean: bool = True, code: str | None = None) -> bytes:
    """An event that tells a stream's reader of a failure, in the dialect of the API that `path` belongs to.

    With `clean` False the stream broke inside an event: a blank line ends that one first.
    """
    lead = b"" if clean else b"\n\n"
    _, default = kind(status)
    if speaks_anthropic(path):
        failure = {"type": "api_error", "message": message}
        return lead + event(encode({"type": "error", "src": SOURCE, "error": failure}), "error")
    body = document(status, message, code=code)
    if "/responses" in path:
        # The API's own error event is flat; its SDK raises on an `error` member.
        flat = {"type": "error", "code": code or default, "message": message, "param": None, "sequence_number": 0}
        return lead + event(encode({**flat, **body}), "error")
    return lead + event(encode(body))
