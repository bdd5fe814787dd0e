"""Ends a stream of text early, in the form of its API, as if the model had reached its token limit.

Whole lines of the stream are passed on, so that the end never falls inside one. What the end needs is in the first and
the last event, which are kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from attrs import define, field

from llamaswap.wire.openai import encode, speaks_anthropic
from llamaswap.wire.sse import DONE, event

# Bytes of an incomplete line. A longer one passes in parts, and then the stream cannot be ended cleanly.
LINE_LIMIT = 1 << 20
# Members of events that have text of the model.
_CONTENT = (b'"content"', b'"text"', b'"delta"', b'"reasoning')


@define(eq=False)
class StreamEnd:
    """Follows the events of one stream to a client of `path`. `tokens` counts those with text, which have one or more
    tokens each."""

    path: str
    tokens: int = field(default=0, init=False)
    clean: bool = field(default=True, init=False)
    _rest: bytes = field(default=b"", init=False)
    _first: bytes = field(default=b"", init=False)
    _last: bytes = field(default=b"", init=False)
    _line_passed: bytes = field(default=b"", init=False)

    def feed(self, data: bytes) -> bytes:
        """The whole lines among the bytes that came so far."""
        data = self._rest + data
        end = data.rfind(b"\n") + 1
        passed, self._rest = data[:end], data[end:]
        for line in passed.split(b"\n")[:-1]:
            self._line_passed = line.rstrip(b"\r")
            if line.startswith(b"data:"):
                self._data(line[5:])
        if len(self._rest) > LINE_LIMIT:
            passed, self._rest, self.clean = data, b"", False
        return passed

    def rest(self) -> bytes:
        """The incomplete line at the end of a stream that is complete."""
        rest, self._rest = self._rest, b""
        return rest

    def _data(self, text: bytes) -> None:
        if b'"type":"ping"' in text or b'"type": "ping"' in text or text.strip() == b"[DONE]":
            return
        self._first = self._first or text
        self._last = text
        if any(member in text for member in _CONTENT):
            self.tokens += 1

    def end(self) -> bytes:
        """The events that end the stream now."""
        lead = b"\n" if self._line_passed else b""
        first, last = _parsed(self._first), _parsed(self._last)
        if speaks_anthropic(self.path):
            return lead + self._anthropic(last)
        if "/responses" in self.path:
            return lead + _incomplete_response(first, last)
        if self.path.endswith(("/completion", "/infill")):
            stop = {"content": "", "stop": True, "stop_type": "limit", "tokens_predicted": self.tokens}
            return lead + event(encode(stop))
        chunk: dict[str, object] = {name: first[name] for name in ("id", "object", "created", "model") if name in first}
        text: tuple[str, object] = ("delta", {}) if "/chat/" in self.path else ("text", "")
        chunk["choices"] = [{"index": 0, text[0]: text[1], "finish_reason": "length"}]
        if isinstance(last.get("usage"), dict):
            chunk["usage"] = last["usage"]
        return lead + event(encode(chunk)) + DONE

    def _anthropic(self, last: Mapping[str, object]) -> bytes:
        events = b""
        if last.get("type") in ("content_block_start", "content_block_delta"):
            stop = {"type": "content_block_stop", "index": last.get("index", 0)}
            events = event(encode(stop), "content_block_stop")
        delta = {"stop_reason": "max_tokens", "stop_sequence": None}
        message = {"type": "message_delta", "delta": delta, "usage": {"output_tokens": self.tokens}}
        return events + event(encode(message), "message_delta") + event(b'{"type":"message_stop"}', "message_stop")


def _incomplete_response(first: Mapping[str, object], last: Mapping[str, object]) -> bytes:
    begun, number = first.get("response"), last.get("sequence_number")
    response = {
        **(begun if isinstance(begun, dict) else {}),
        "status": "incomplete",
        "incomplete_details": {"reason": "max_output_tokens"},
    }
    document = {
        "type": "response.incomplete",
        "sequence_number": number + 1 if isinstance(number, int) else 0,
        "response": response,
    }
    return event(encode(document), "response.incomplete")


def _parsed(text: bytes) -> dict[str, object]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
