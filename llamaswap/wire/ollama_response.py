"""Responses of the OpenAI API as those of the Ollama API: documents, and event streams while they pass.

A stream becomes lines of JSON. Only the line that is incomplete, and the call of a tool that is incomplete, are kept;
both are bounded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter

from attrs import define, field

from llamaswap.errors import LlamaswapError
from llamaswap.wire import usage
from llamaswap.wire.json_members import split_members, split_values
from llamaswap.wire.ollama import CHAT, EMBED, EMBEDDINGS, JsonObject, TranslatedRequest
from llamaswap.wire.openai import encode

KEPT_LIMIT = 16 << 20  # bytes of an event, or of one tool's arguments, that may be incomplete
SECOND = 1_000_000_000  # nanoseconds
ERROR_TEXT_LIMIT = 4096  # characters of a server's error text
# Why a server ended: the OpenAI API's words and llama.cpp's. All others are a `stop` for Ollama's clients.
LENGTH = frozenset(("length", "limit", "max_tokens"))


class ResponseTooLong(LlamaswapError):
    """A server's event is too long to be translated."""

    def __str__(self) -> str:
        return f"the server sent an event of more than {KEPT_LIMIT >> 20} MiB, which is not translated"


def error_line(message: str) -> bytes:
    """A failure, as the document of an error response and as the last line of a stream."""
    return encode({"error": message}) + b"\n"


def error_message(data: bytes) -> str:
    """The text of a server's error response."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        document = None
    found: object = None
    if isinstance(document, dict):
        found = document.get("error") or document.get("message") or document.get("detail")
        if isinstance(found, dict):
            found = found.get("message") or found.get("type")
    text = found if isinstance(found, str) else data.decode("utf-8", "replace").strip()
    return text[:ERROR_TEXT_LIMIT] or "the model's server sent an error without a text"


@define(eq=False)
class ToolCall:
    """The call of a tool, put together from the pieces that a stream brings."""

    name: str = ""
    identity: str = ""
    _pieces: list[str] = field(factory=list, init=False)
    _size: int = field(default=0, init=False)

    def more(self, call: Mapping[str, object]) -> None:
        """The next piece. Raises ResponseTooLong."""
        function = call.get("function")
        if not isinstance(function, dict):
            return
        name, arguments, identity = function.get("name"), function.get("arguments"), call.get("id")
        self.name = name if isinstance(name, str) and name else self.name
        self.identity = identity if isinstance(identity, str) and identity else self.identity
        text = json.dumps(arguments) if isinstance(arguments, dict) else arguments
        if isinstance(text, str) and text:
            self._pieces.append(text)
            self._size += len(text)
        if self._size > KEPT_LIMIT:
            raise ResponseTooLong()

    def document(self) -> JsonObject:
        """The call as Ollama's clients read it: the arguments are an object."""
        text = "".join(self._pieces)
        try:
            arguments = json.loads(text or "{}")
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            arguments = {"arguments": text}  # what the model wrote is not an object
        call: JsonObject = {"function": {"name": self.name, "arguments": arguments}}
        return {"id": self.identity, **call} if self.identity else call


@define(eq=False)
class ResponseTranslator:
    """Translates one response. Each call gets the present time as `now`, in unix seconds.

    `arrived` is when the request came, `granted` when its model was ready. `timestamp` writes a time as text.
    """

    request: TranslatedRequest
    arrived: float
    timestamp: Callable[[float], str]
    granted: float | None = None
    _carry: bytearray = field(factory=bytearray, init=False)
    _call: ToolCall | None = field(default=None, init=False)
    _call_index: object = field(default=None, init=False)
    _first_token: float | None = field(default=None, init=False)
    _scanner: usage.StreamScanner = field(factory=usage.StreamScanner, init=False)
    _reason: str = field(default="stop", init=False)
    _failed: bool = field(default=False, init=False)

    # -- a stream ------------------------------------------------------------------------------------------

    def feed(self, data: bytes, now: float) -> bytes:
        """The lines for the next bytes of an event stream. Raises ResponseTooLong."""
        self._scanner.feed(data)
        end = data.rfind(b"\n") + 1
        if not end:
            self._carry += data
            if len(self._carry) > KEPT_LIMIT:
                raise ResponseTooLong()
            return b""
        whole = bytes(self._carry) + data[:end]
        self._carry = bytearray(data[end:])
        return b"".join([self._event(line, now) for line in whole.split(b"\n") if line])

    def finish(self, now: float) -> bytes:
        """The last lines of a stream that is complete."""
        rest = self._event(bytes(self._carry), now)
        self._carry.clear()
        if self._failed:
            return rest
        found = usage.from_lines(self._scanner.lines())
        return rest + self._tool_call(now) + self._last({}, found, self._timings(), now)

    def _timings(self) -> Mapping[str, object]:
        for line in reversed(self._scanner.lines()):
            document = _parsed(line.partition(b":")[2])
            if isinstance(timings := document.get("timings"), dict):
                return timings
        return {}

    def _event(self, line: bytes, now: float) -> bytes:
        name, _, payload = line.partition(b":")
        if name not in (b"data", b"error") or self._failed:
            return b""
        document = _parsed(payload)
        if "error" in document or name == b"error":
            self._failed = True
            return error_line(error_message(payload.strip()))
        if "choices" not in document:
            return self._text_event(document, now)
        choices = document["choices"]
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            return b""
        if isinstance(reason := choice.get("finish_reason"), str):
            self._reason = "length" if reason in LENGTH else "stop"
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            return self._piece(choice.get("text"), None, now, choice)
        written = self._piece(delta.get("content"), _reasoning(delta), now, choice)
        calls = delta.get("tool_calls")
        return written + b"".join([self._call_piece(call, now) for call in calls]) if calls else written

    def _text_event(self, document: Mapping[str, object], now: float) -> bytes:
        """An event of llama.cpp's own completion API."""
        if document.get("stop") is True and document.get("stop_type") in LENGTH:
            self._reason = "length"
        return self._piece(document.get("content"), None, now, {})

    def _piece(self, content: object, thinking: object, now: float, choice: Mapping[str, object]) -> bytes:
        text = content if isinstance(content, str) else ""
        thought = thinking if isinstance(thinking, str) and self.request.think else ""
        if (text or thinking) and self._first_token is None:
            self._first_token = now
        if not text and not thought:
            return b""
        before = self._tool_call(now)
        return before + self._line(self._message(text, thought) | _log_probabilities(choice), now)

    def _call_piece(self, call: object, now: float) -> bytes:
        """A piece of a tool's call; the line of the call before, if another one begins."""
        if not isinstance(call, dict):
            return b""
        if self._first_token is None:
            self._first_token = now
        written = b""
        if self._call is not None and call.get("index") != self._call_index:
            written = self._tool_call(now)
        if self._call is None:
            self._call, self._call_index = ToolCall(), call.get("index")
        self._call.more(call)
        return written

    def _tool_call(self, now: float) -> bytes:
        """The line of the tool's call that is complete now."""
        call, self._call = self._call, None
        return b"" if call is None else self._line(self._message("", "", [call.document()]), now)

    # -- a document ----------------------------------------------------------------------------------------

    def document(self, data: bytes, now: float) -> bytes:
        """The response for a complete JSON document; of several lines if the client asked for a stream."""
        if self.request.path in (EMBED, EMBEDDINGS):
            # Not parsed as a whole: other threads would wait while millions of numbers are.
            members = split_members(data)
            found = usage.from_document(b'{"usage":%b}' % members.get("usage", b"null"))
            return self._embeddings(_vectors(members.get("data", b"")), found, now)
        document = _parsed(data)
        found = usage.from_document(data, self.request.target)
        choices = document.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else {}
        message = choice.get("message") if isinstance(choice, dict) else None
        if isinstance(message, dict):
            text, thought = message.get("content"), _reasoning(message)
            calls = [_whole_call(call).document() for call in message.get("tool_calls") or ()]
        else:
            text, thought, calls = choice.get("text", document.get("content")), None, []
        reason = choice.get("finish_reason") or document.get("stop_type")
        self._reason = "length" if reason in LENGTH else "stop"
        thought = thought if isinstance(thought, str) and self.request.think else ""
        content = self._message(text if isinstance(text, str) else "", thought, calls) | _log_probabilities(choice)
        timings = document.get("timings")
        timings = timings if isinstance(timings, dict) else {}
        if not self.request.streaming:
            return self._last(content, found, timings, now)
        return self._line(content, now) + self._last({}, found, timings, now)

    def _embeddings(self, vectors: Sequence[bytes], found: usage.Usage | None, now: float) -> bytes:
        if self.request.path == EMBEDDINGS:
            return b'{"embedding":%b}' % (vectors[0] if vectors else b"[]")
        rest = {
            "model": self.request.model,
            "total_duration": _nanoseconds(now - self.arrived),
            "load_duration": _nanoseconds(self._load_seconds),
            "prompt_eval_count": found.input_tokens if found is not None else 0,
        }
        return b'{"embeddings":[%b],%b' % (b",".join(vectors), encode(rest)[1:])

    # -- lines ---------------------------------------------------------------------------------------------

    def without_generation(self, now: float) -> bytes:
        """The response to a request that only loads or unloads its model, or embeds nothing."""
        if self.request.path in (EMBED, EMBEDDINGS):
            return self._embeddings((), None, now)
        reason = "unload" if self.request.unloads else "load"
        return self._line({**self._message("", ""), "done_reason": reason, "done": True}, now)

    def notice(self, facts: Mapping[str, object], now: float) -> bytes:
        """A line without text that has facts about the wait for the model."""
        return self._line({**self._message("", ""), "llamaswap": facts}, now)

    def _message(self, text: str, thinking: str, calls: Sequence[object] = ()) -> JsonObject:
        more: JsonObject = {"thinking": thinking} if thinking else {}
        if self.request.path != CHAT:
            return {"response": text, **more}
        if calls:
            more["tool_calls"] = list(calls)
        return {"message": {"role": "assistant", "content": text, **more}}

    def _line(self, content: Mapping[str, object], now: float) -> bytes:
        head = {"model": self.request.model, "created_at": self.timestamp(now)}
        return encode({**head, "done": False, **content}) + b"\n"

    def _last(
        self,
        content: Mapping[str, object],
        found: usage.Usage | None,
        timings: Mapping[str, object],
        now: float,
    ) -> bytes:
        """The line that ends the response, with its counts and durations."""
        ready = self.arrived + self._load_seconds
        first = self._first_token if self._first_token is not None else now
        read, written = timings.get("prompt_ms"), timings.get("predicted_ms")
        counts = {
            "total_duration": _nanoseconds(now - self.arrived),
            "load_duration": _nanoseconds(self._load_seconds),
            "prompt_eval_count": _prompt_tokens(found, timings),
            "prompt_eval_duration": _nanoseconds(_seconds(read, first - ready)),
            "eval_count": found.output_tokens if found is not None else 0,
            "eval_duration": _nanoseconds(_seconds(written, now - first)),
        }
        content = content or self._message("", "")
        return self._line({**content, "done": True, "done_reason": self._reason, **counts}, now)

    @property
    def _load_seconds(self) -> float:
        return max(0.0, self.granted - self.arrived) if self.granted is not None else 0.0


def _prompt_tokens(found: usage.Usage | None, timings: Mapping[str, object]) -> int:
    """The tokens of the prompt; llama.cpp's timings do not count those that its cache has."""
    if found is None:
        return 0
    return found.input_tokens + (max(0, found.cache_tokens) if timings else 0)


def _parsed(data: bytes) -> JsonObject:
    """The object in a JSON text; empty if there is none."""
    data = data.strip()
    if not data.startswith(b"{"):
        return {}
    try:
        document: JsonObject = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return document


def _reasoning(message: Mapping[str, object]) -> object:
    return message.get("reasoning_content") or message.get("reasoning")


def _whole_call(call: object) -> ToolCall:
    found = ToolCall()
    if isinstance(call, dict):
        found.more(call)
    return found


def _log_probabilities(choice: object) -> JsonObject:
    found = choice.get("logprobs") if isinstance(choice, dict) else None
    content = found.get("content") if isinstance(found, dict) else None
    return {"logprobs": content} if isinstance(content, list) and content else {}


def _vectors(data: bytes) -> list[bytes]:
    """The embeddings in the `data` of a document, in their order."""
    rows = []
    for row in split_values(data):
        members = split_members(row)
        index = members.get("index", b"")
        if "embedding" in members:
            rows.append((int(index) if index.isdigit() else 0, members["embedding"]))
    return [vector for _, vector in sorted(rows, key=itemgetter(0))]


def _seconds(milliseconds: object, otherwise: float) -> float:
    measured = isinstance(milliseconds, (int, float)) and not isinstance(milliseconds, bool)
    return float(milliseconds) / 1000 if measured else otherwise  # type: ignore[arg-type] # a number


def _nanoseconds(seconds: float) -> int:
    return int(min(max(0.0, seconds), 1e9) * SECOND)
