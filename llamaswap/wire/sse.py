"""Server-sent events: whether a stream ended between two of them, and the event that reports a failure."""

from __future__ import annotations

from attrs import define

from llamaswap.wire.openai import SOURCE, document, encode, kind, speaks_anthropic, speaks_ollama

DONE = b"data: [DONE]\n\n"
_LONGEST_END = 4


@define
class Tail:
    """Knows from the last bytes of a stream whether it is between two events."""

    _last: bytes = b"\n\n"

    def feed(self, data: bytes) -> None:
        """Some bytes of the stream."""
        self._last = data[-_LONGEST_END:] if len(data) >= _LONGEST_END else (self._last + data)[-_LONGEST_END:]

    @property
    def clean(self) -> bool:
        """Whether the last event is complete."""
        return self._last.endswith((b"\n\n", b"\n\r\n", b"\r\r"))


def event(data: bytes, name: str = "") -> bytes:
    """One event as it is sent."""
    lead = f"event: {name}\n".encode() if name else b""
    return lead + b"data: " + data + b"\n\n"


def error_event(path: str, status: int, message: str, *, clean: bool = True, code: str | None = None) -> bytes:
    """An event that reports a failure, in the dialect of the API that `path` belongs to.

    With `clean` False the stream broke inside an event, which a blank line ends first.
    """
    if speaks_ollama(path):
        return encode({"error": message}) + b"\n"
    lead = b"" if clean else b"\n\n"
    if speaks_anthropic(path):
        failure = {"type": "api_error", "message": message}
        return lead + event(encode({"type": "error", "src": SOURCE, "error": failure}), "error")
    body = document(status, message, code=code)
    if "/responses" in path:
        # The API's own error event is flat, and its SDK raises an exception for an `error` member.
        flat = {
            "type": "error",
            "code": code or kind(status)[1],
            "message": message,
            "param": None,
            "sequence_number": 0,
        }
        return lead + event(encode({**flat, **body}), "error")
    return lead + event(encode(body))
