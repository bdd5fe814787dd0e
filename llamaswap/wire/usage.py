"""What a server reports about its tokens: read from a document, or from a stream while it passes.

A stream is never buffered: of each chunk only the lines that can contain numbers are kept, and of those only the first
and the last few. The parsing functions may take milliseconds, so they belong on a worker thread; `StreamScanner.feed`
takes about a microsecond per chunk.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterable, Mapping

from attrs import define, field

LINE_BOUND = 256 * 1024  # bytes of an event that is kept whole: a Responses API summary repeats the whole response
LINE_TAIL = 64 * 1024  # bytes kept of a longer one: usage is at its end
FIRST_LINES = 16  # Anthropic reports the input in the first event ...
MOST = 1e15  # the largest number; a larger one is not a measurement and would not fit a table's column
LAST_LINES = 64  # ... and all APIs report the totals in the last; servers that repeat usage in each event fill this


@define  # made for every request; to freeze it would double its cost
class Usage:
    """Token counts and speeds of one request; -1 means unknown. `server_ms` is the server's own time, 0 if unknown."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_tokens: int = 0
    draft_tokens: int = 0
    draft_acc_tokens: int = 0
    prompt_per_second: float = 0.0
    tokens_per_second: float = 0.0
    server_ms: int = 0


# For a request whose response says nothing about tokens.
NOTHING = Usage()


def _number(value: object) -> float | None:
    """A usable JSON number, else None (a boolean is not a number)."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and -MOST < value < MOST:
        return value
    return None


def _whole(value: object) -> int | None:
    number = _number(value)
    return None if number is None else int(number)


def _first_whole(source: Mapping[str, object], *names: str) -> int | None:
    for name in names:
        value = _whole(source.get(name))
        if value is not None:
            return value
    return None


@define
class _Ledger:
    """Adds up what documents and events report, in their order."""

    input: int = 0
    output: int = 0
    cached: int = -1
    timings: Mapping[str, object] | None = None
    metrics: Mapping[str, object] | None = None
    found: bool = False

    def usage(self, value: object) -> None:
        if not isinstance(value, dict):
            return
        self.found = True
        read, written = value.get("prompt_tokens"), value.get("completion_tokens")
        if type(read) is int and type(written) is int and 0 < read < MOST and 0 < written < MOST:
            self.input, self.output = read, written  # nearly always
        else:
            self.input = _later(self.input, _first_whole(value, "prompt_tokens", "input_tokens"))
            self.output = _later(self.output, _first_whole(value, "completion_tokens", "output_tokens"))
        cached = value.get("cache_read_input_tokens")
        cached = None if cached is None else _whole(cached)
        for details in ("input_tokens_details", "prompt_tokens_details"):
            inner = value.get(details)
            if cached is None and isinstance(inner, dict):
                cached = _whole(inner.get("cached_tokens"))
        if cached is not None and cached >= 0:
            self.cached = cached

    def event(self, value: object) -> None:
        """Everything that one document or event may contain; `response` and `message` wrap usage in some APIs."""
        if not isinstance(value, dict):
            return
        self.usage(value.get("usage"))
        for wrapper in ("response", "message"):
            inner = value.get(wrapper)
            if isinstance(inner, dict):
                self.usage(inner.get("usage"))
        self.measured(value.get("timings"), value.get("metrics"))

    def measured(self, timings: object, metrics: object) -> None:
        if isinstance(timings, dict):
            self.timings, self.found = timings, True
        if isinstance(metrics, dict):
            self.metrics, self.found = metrics, True

    def fragment(self, data: bytes) -> None:
        """What can be found in a document or event of which only pieces were kept."""
        self.usage(_object_named(data, b'"usage"'))
        self.measured(_object_named(data, b'"timings"'), _object_named(data, b'"metrics"'))

    def result(self) -> Usage | None:
        if not self.found:
            return None
        draft = accepted = -1
        prompt_speed = speed = -1.0
        server_ms = 0
        read, written, cached = self.input, self.output, self.cached
        if self.metrics is None and self.timings is None:
            return Usage(max(0, read), max(0, written), max(-1, cached), -1, -1, -1.0, -1.0)
        if self.metrics is not None:
            draft, accepted, prompt_speed, speed = _vllm(self.metrics, read, cached)
        if self.timings is not None:
            timings = self.timings
            read = _whole(timings.get("prompt_n")) or 0
            written = _whole(timings.get("predicted_n")) or 0
            prompt_speed = float(_number(timings.get("prompt_per_second")) or 0)
            speed = float(_number(timings.get("predicted_per_second")) or 0)
            cached_now = _whole(timings.get("cache_n"))
            cached = cached if cached_now is None else cached_now
            draft, accepted = _pair(timings, "draft_n", "draft_n_accepted", draft, accepted)
            spent = (_number(timings.get("prompt_ms")) or 0) + (_number(timings.get("predicted_ms")) or 0)
            server_ms = max(0, int(spent))
        return Usage(
            max(0, read),
            max(0, written),
            max(-1, cached),
            max(-1, draft),
            max(-1, accepted),
            _speed(prompt_speed),
            _speed(speed),
            server_ms,
        )


def _speed(value: float) -> float:
    return value if 0 <= value < MOST else -1.0


def _later(known: int, said: int | None) -> int:
    return said if said is not None and said > 0 else known


def _pair(source: Mapping[str, object], first: str, second: str, *otherwise: int) -> tuple[int, int]:
    """Two counts that only have a meaning together."""
    a, b = _whole(source.get(first)), _whole(source.get(second))
    return (otherwise[0], otherwise[1]) if a is None or b is None else (a, b)


def _vllm(metrics: Mapping[str, object], read: int, cached: int) -> tuple[int, int, float, float]:
    """vLLM measures times; its own tokens_per_second includes the prefill and is not used."""
    prompt_speed = speed = -1.0
    first = _number(metrics.get("time_to_first_token_ms"))
    if first is not None and first > 0:
        prompt_speed = (read - max(cached, 0)) * 1000 / first
    gap = _number(metrics.get("mean_itl_ms"))
    if gap is not None and gap > 0:
        speed = 1000 / gap
    speculative = metrics.get("speculative_decoding")
    draft, accepted = -1, -1
    if isinstance(speculative, dict):
        draft, accepted = _pair(speculative, "num_draft_tokens", "num_accepted_draft_tokens", -1, -1)
    return draft, accepted, prompt_speed, speed


def _parsed(data: bytes) -> object:
    """A JSON text's value, None if it is not JSON."""
    try:
        if data[:1] != b"{":  # perhaps in another encoding
            return json.loads(data)
        text = data.decode()
        value, end = _RAW_DECODE(text)
        return value if end == len(text) or not text[end:].strip(" \t\r\n") else None
    except (ValueError, RecursionError):
        return None


_SHORT = 1024  # bytes of a response that is parsed as soon as its end is found
_CLOSING = 4096  # bytes from usage to the end of an answer that has it at its end
# The members behind usage, as far as their nesting is plain: if then one bracket closes everything, usage stands in the
# outermost object.
_REST = re.compile(
    r'(?:\s*,\s*"[^"\\]*"\s*:\s*(?:"[^"\\]*"|[^\s,:{}\[\]"]+|\{[^{}\[\]]*\}))*\s*\}\s*',
)
_VALUE = re.compile(r"\s*:\s*")


def _closing(data: bytes) -> dict[str, object] | None:
    """The members with numbers, of an object that has them at its end as nearly all servers' do; None if all of it must
    be parsed to be sure. A response is mostly text that has no numbers to read."""
    at = data.find(b'"usage"')
    end = at + len(b'"usage"')
    if at < 1 or data[:1] != b"{" or len(data) - at > _CLOSING or data[at - 1] == 0x5C:
        return None
    if data.find(b'"usage"', end) >= 0:
        return None
    if data.find(b'"timings"', 0, at) >= 0 or data.find(b'"metrics"', 0, at) >= 0:
        return None
    try:
        text = data[end:].decode()
        usage, stop = _value(text, 0)
        if _REST.fullmatch(text, stop) is None:
            return None
        found = {"usage": usage}
        for name in ("timings", "metrics"):
            quoted = f'"{name}"'
            begin = text.find(quoted, stop)
            if begin >= 0:
                if text.find(quoted, begin + 1) >= 0:
                    return None
                found[name], _ = _value(text, begin + len(quoted))
    except (ValueError, RecursionError):
        return None
    return found


def _value(text: str, at: int) -> tuple[object, int]:
    """The value of the member whose key ends at `at`, and its end; ValueError if that was not a key."""
    colon = _VALUE.match(text, at)
    if colon is None:
        raise ValueError("no member")
    return _RAW_DECODE(text, colon.end())


_RAW_DECODE = json.JSONDecoder().raw_decode


def from_document(data: bytes, path: str = "") -> Usage | None:
    """Usage of a complete JSON response, None if it has none or is not JSON. `/infill` responses are arrays."""
    document = (_closing(data) if len(data) > _SHORT else None) or _parsed(data)
    if isinstance(document, list):
        document = {"timings": _last_timings(document)} if path.startswith("/infill") else None
    if not isinstance(document, dict):
        return None
    ledger = _Ledger()
    # Only the top level counts here: `message` and `response` are wrappers of streams.
    ledger.usage(document.get("usage"))
    if "timings" in document or "metrics" in document:
        ledger.measured(document.get("timings"), document.get("metrics"))
    return ledger.result()


def _last_timings(elements: list[object]) -> object:
    last = elements[-1] if elements else None
    return last.get("timings") if isinstance(last, dict) else None


def from_fragment(data: bytes) -> Usage | None:
    """Usage from a document or event of which only pieces were kept: the last object of each known name."""
    ledger = _Ledger()
    ledger.fragment(data)
    return ledger.result()


def _object_named(data: bytes, quoted: bytes) -> object:
    """The last object that is the value of this name. Inside a JSON string the quotes would be escaped."""
    at = len(data)
    while (at := data.rfind(quoted, 0, at)) >= 0:
        rest = data[at + len(quoted) : at + LINE_TAIL].lstrip()
        if data[at - 1 : at] == b"\\" or not rest.startswith(b":"):
            continue
        try:
            value, _ = json.JSONDecoder().raw_decode(rest[1:].lstrip().decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            return value
    return None


def from_lines(lines: Iterable[bytes]) -> Usage | None:
    """Usage from the lines of an event stream, None if they have none; only `data:` lines count."""
    ledger = _Ledger()
    for line in lines:
        if not line.startswith(b"data:"):
            continue
        payload = line[5:].strip()
        if not payload or payload == b"[DONE]":
            continue
        if len(payload) >= LINE_BOUND:
            ledger.fragment(payload)
        else:
            ledger.event(_parsed(payload))
    return ledger.result()


@define(eq=False)
class StreamScanner:
    """Keeps the few lines of an event stream that can contain numbers. `carry` is an incomplete last line. Both are
    bounded."""

    carry: bytearray = field(factory=bytearray, init=False)
    _first: list[bytes] = field(factory=list, init=False)
    _last: deque[bytes] | None = field(default=None, init=False)  # made when it is needed: an empty one takes 600 bytes

    def feed(self, data: bytes) -> None:
        """The next bytes of the stream, split anywhere."""
        if self.carry or not data.endswith(b"\n"):
            data = self._joined(data)
        # The usual case, one complete event without numbers, costs three searches.
        if b'"usage"' in data or b'"timings"' in data or b'"metrics"' in data:
            for line in data.split(b"\n"):
                if b'"usage"' in line or b'"timings"' in line or b'"metrics"' in line:
                    self._keep(line)

    def lines(self) -> list[bytes]:
        """The lines kept, in their order; a last one without its line end counts too."""
        if self.carry:
            rest, self.carry = bytes(self.carry), bytearray()
            self._keep(rest)
        return [*self._first, *(self._last or ())]

    def _joined(self, data: bytes) -> bytes:
        """The complete lines of the bytes carried over plus `data`; the rest is carried over again."""
        carry = self.carry
        end = data.rfind(b"\n") + 1
        if not end:
            carry += data
            if len(carry) > LINE_BOUND + LINE_TAIL:
                # Keep the first bytes, which show what kind of line it is, and the end, padded so that it stays "long".
                del carry[5 : -LINE_BOUND - 5]
            return b""
        whole = bytes(carry) + data[:end]
        self.carry = bytearray(data[end:])
        return whole

    def _keep(self, line: bytes) -> None:
        if not line.startswith(b"data:"):
            return
        if len(self._first) < FIRST_LINES:
            self._first.append(line)
            return
        if self._last is None:
            self._last = deque(maxlen=LAST_LINES)
        self._last.append(line)
