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
OUTPUT_LIMIT = 8 << 20  # bytes of events that are kept of a response's output; of a longer one the end repeats nothing
# Members of a choice, of its delta, or of a delta of Anthropic's, that have text of the model.
_TEXT = ("content", "text", "reasoning_content", "reasoning", "thinking", "partial_json", "tool_calls")
# Types of the last events of a message and of a response.
_LAST = ("message_stop", "response.completed", "response.incomplete", "response.failed")


@define(eq=False)
class ResponseOutput:
    """The output of a response as far as its events have told it."""

    _items: dict[int, dict[str, object]] = field(factory=dict, init=False)
    # The parts of messages that are not complete, each as the texts of its events.
    _open: dict[int, dict[int, list[str]]] = field(factory=dict, init=False)
    _size: int = field(default=0, init=False)

    def feed(self, document: Mapping[str, object], size: int) -> None:
        """An event of so many bytes."""
        index, item, kind = document.get("output_index"), document.get("item"), document.get("type")
        part = document.get("content_index")
        self._size += size
        if self._size > OUTPUT_LIMIT:
            self._items, self._open = {}, {}
        elif not isinstance(index, int):
            return
        elif isinstance(item, dict):
            self._open.pop(index, None)
            if kind == "response.output_item.done":
                self._items[index] = item
            elif item.get("type") == "message":
                self._items[index], self._open[index] = item, {}
        elif index in self._open and isinstance(part, int) and kind == "response.output_text.delta":
            self._open[index].setdefault(part, []).append(str(document.get("delta")))

    def end(self, begun: object, number: object) -> bytes:
        """The events that end the response `begun` after the event `number`. A tool's call that is not complete is left
        out, because a client would make it."""
        number = number if isinstance(number, int) else -1
        events = b""
        for index, parts in self._open.items():
            content = [{"type": "output_text", "text": "".join(texts), "annotations": []} for texts in parts.values()]
            item = self._items[index] = {**self._items[index], "status": "incomplete", "content": content}
            number += 1
            done = {"type": "response.output_item.done", "sequence_number": number, "output_index": index, "item": item}
            events += event(encode(done), "response.output_item.done")
        response = {
            **(begun if isinstance(begun, dict) else {}),
            "status": "incomplete",
            "incomplete_details": {"reason": "max_output_tokens"},
            "output": [self._items[index] for index in sorted(self._items)],
        }
        last = {"type": "response.incomplete", "sequence_number": number + 1, "response": response}
        return events + event(encode(last), "response.incomplete")


@define(eq=False)
class StreamEnd:
    """Follows the events of one stream to a client of `path`. `tokens` counts those with text, which have one or more
    tokens each; at most `limit` of them pass (0: all), and `full` says that another one came."""

    path: str
    limit: int = 0
    tokens: int = field(default=0, init=False)
    clean: bool = field(default=True, init=False)
    full: bool = field(default=False, init=False)
    _over: bool = field(default=False, init=False)
    _rest: bytes = field(default=b"", init=False)
    _first: bytes = field(default=b"", init=False)
    _last: bytes = field(default=b"", init=False)
    _line_passed: bytes = field(default=b"", init=False)
    _output: ResponseOutput = field(factory=ResponseOutput, init=False)

    def feed(self, data: bytes) -> bytes:
        """The whole lines among the bytes that came so far, up to the event that is too many. The line with an event's
        name waits for the next one, because clients read an event without data as a broken one."""
        data = self._rest + data
        at = passed = 0
        while not self.full and (end := data.find(b"\n", at) + 1):
            line, at = data[at:end].rstrip(b"\r\n"), end
            if line.startswith(b"event:"):
                continue
            if line.startswith(b"data:") and self._is_too_many(line[5:]):
                break
            self._line_passed, passed = line, end
        self._rest = b"" if self.full else data[passed:]
        if len(self._rest) > LINE_LIMIT:
            passed, self._rest, self.clean = len(data), b"", False
        return data[:passed]

    def rest(self) -> bytes:
        """The incomplete line at the end of a stream that is complete."""
        rest, self._rest = self._rest, b""
        return rest

    def _is_too_many(self, text: bytes) -> bool:
        """Whether the event has text beyond the limit. Another one is counted and kept."""
        if text.strip() == b"[DONE]":
            self._over = True
            return False
        document = _parsed(text)
        if document.get("type") == "ping":
            return False
        if _has_text(document):
            self.full = 0 < self.limit <= self.tokens
            if self.full:
                return True
            self.tokens += 1
        self._over = document.get("type") in _LAST or document.get("stop") is True
        self._first = self._first or text
        self._last = text
        if "/responses" in self.path:
            self._output.feed(document, len(text))
        return False

    def end(self) -> bytes:
        """The events that end the stream now; none if it has its last one."""
        if self._over:
            return b""
        lead = b"\n" if self._line_passed else b""
        first, last = _parsed(self._first), _parsed(self._last)
        if speaks_anthropic(self.path):
            return lead + self._anthropic(last)
        if "/responses" in self.path:
            return lead + self._output.end(first.get("response"), last.get("sequence_number"))
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


def _has_text(document: Mapping[str, object]) -> bool:
    choices = document.get("choices")
    if isinstance(choices, list):
        return any(_part_has_text(choice.get("delta", choice)) for choice in choices if isinstance(choice, dict))
    # Events of messages and of responses have a type. Those of the latter repeat the text when it is complete.
    return _part_has_text(document.get("delta") if "type" in document else document)


def _part_has_text(part: object) -> bool:
    if isinstance(part, dict):
        return any(part.get(name) for name in _TEXT)
    return isinstance(part, str) and part != ""


def _parsed(text: bytes) -> dict[str, object]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
