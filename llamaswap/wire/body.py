"""Request bodies: which model they name, and how to change one member without touching the rest.

JSON is walked, not parsed into values: a document is split into its top-level members, a member into its own if a path
leads there, and everything else keeps its bytes. The walk is lenient on purpose, because the server validates the
document and we only route it; it does not recurse, however deep the nesting.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from functools import lru_cache
from urllib.parse import quote_plus, unquote_plus

from attrs import define, evolve, field, frozen

from llamaswap.wire.openai import encode

PAD_BOUND = 10_000  # the largest array that an index in a filter path may create; beyond it the path is a typing error


class EditError(Exception):
    """A path addresses an array by a word, leads to where the document is cut off, or deletes by wildcard."""


class MalformedBodyError(EditError):
    """The body itself prevents the edit: it is cut off, or has too many parts."""


# -- walking JSON ------------------------------------------------------------------------------------------

# Every repetition is bounded, because other threads wait while one match runs: while a worker thread parses a body, the
# reactor runs between two matches. The walk ends at whatever exceeds a bound.
_SPACE = re.compile(rb"[ \t\r\n]{0,65536}")
# One member up to its value, for keys that need no unescaping: nearly all.
_KEY = re.compile(rb'[ \t\r\n]{0,65536}"([^"\\]{0,1000})"[ \t\r\n]{0,1000}:[ \t\r\n]{0,1000}')
# A whole member with a short plain string or a scalar, up to its comma: nearly all except the messages.
_MEMBER = re.compile(
    rb'[ \t\r\n]{0,1000}"([^"\\]{0,1000})"[ \t\r\n]{0,1000}:[ \t\r\n]{0,1000}'
    rb'("[^"\\]{0,200}"|[^ \t\r\n,\]}"\[{]{1,200})[ \t\r\n]{0,1000},'
)
LONGEST_SCALAR = 4096  # characters of a number; a longer one is malformed
_SCALAR = re.compile(rb"[^ \t\r\n,\]}\"\[{]{1,4096}")
# The next stretch of a string with many escapes. Unrolled: a run of plain bytes is one step, an escape another.
_STRING = re.compile(rb'[^"\\]{0,1000}(?:\\.[^"\\]{0,1000}){0,1000}("?)', re.DOTALL)
# Up to the next run of brackets, over all short strings on the way, or to the quote of the next one (a long one,
# or the thousandth), or as far as one match goes.
_STRUCTURE = re.compile(
    rb'[^"\[\]{}]{0,10000}(?:"[^"\\]{0,64}(?:\\.[^"\\]{0,64}){0,9}"[^"\[\]{}]{0,1000}){0,1000}'
    rb'([\[{]{1,10000}|[\]}]{1,10000}|"|)',
    re.DOTALL,
)
_ESCAPED_QUOTES = 4  # pieces skipped with find(), which runs at memory speed (images); then the regex, for text


_ENDS = b",}]"  # what usually follows a value

LARGE = 1024 * 1024  # bytes of a document whose parts are not copied, and that a worker thread parses
LONGEST_NAME = 65_536  # bytes of a key with escapes, a scalar member or a model's name; a longer one is not read
PARTS = 200_000  # members of a container that a filter's path leads into
MEMBERS = 10_000  # members of a request's top level, where a dozen are usual: each costs a record and a microsecond
BRACKETS = 1_000_000  # runs of brackets in one value; a chat of a hundred thousand messages has a third of that


def _string_end(data: bytes, start: int) -> int:
    """The index after the string that opens at `start`, or -1 if it does not end."""
    position = start
    for _ in range(_ESCAPED_QUOTES):
        position = data.find(b'"', position + 1)
        if position < 0:
            return -1
        before = data[max(start + 1, position - 64) : position]
        slashes = len(before) - len(before.rstrip(b"\\"))
        if slashes == 64:
            position = start  # a longer run of backslashes may begin anywhere
            break
        if slashes % 2 == 0:
            return position + 1
    position += 1
    while True:
        found = _STRING.match(data, position)
        if found is None or found.end() == position:
            return -1
        position = found.end()
        if found.group(1):
            return position


def _value_end(data: bytes, start: int) -> int:
    """The index after the value that begins at `start`, or -1 if it is cut off or not a value."""
    opening = data[start : start + 1]
    if opening == b'"':
        return _string_end(data, start)
    if opening not in (b"{", b"["):
        scalar = _SCALAR.match(data, start)
        return scalar.end() if scalar and scalar.end() - start < LONGEST_SCALAR else -1
    depth, position, next_run = 0, start, _STRUCTURE.match
    for _ in range(BRACKETS):
        found = next_run(data, position)
        if found is None:
            return -1
        stretch = position
        begin, position = found.span(1)
        if begin == position:
            if position == stretch:
                return -1
            continue
        byte = data[begin]
        if byte == 0x22:
            position = _string_end(data, begin)
            if position < 0:
                return -1
        elif byte in (0x7B, 0x5B):
            depth += position - begin
        elif depth <= position - begin:
            return begin + depth
        else:
            depth -= position - begin
    return -1


def _text(raw: bytes) -> str | None:
    """A JSON string (quotes included) as text without lone surrogates; None if its escapes are invalid."""
    decoded = raw.decode("utf-8", "replace")
    if "\\" not in decoded:
        return decoded[1:-1]
    try:
        value = json.loads(decoded, strict=False)
    except ValueError:
        return None
    return str(value).encode("utf-8", "replace").decode()


@define(eq=False)
class JsonMember:
    """One member: its position in its container's source (lead, value, tail), or its new value."""

    key: str
    begin: int  # after the comma before it
    start: int  # of its value
    stop: int
    end: int  # before the comma after it
    new: bytes | None = None
    lead: bytes | None = None  # the key and colon of a member that was added and so is not in the source


def _added(key: str, lead: bytes, value: bytes) -> JsonMember:
    return JsonMember(key, 0, 0, 0, 0, value, lead)


@define
class JsonContainer:
    """An object or array split at its commas: positions in `source`, without copies (an image may have 100 MB).

    `rest` is where the last understood member ends. `whole` is False if the text is cut off there.
    """

    source: bytes
    is_object: bool
    opened: int  # after the bracket
    members: list[JsonMember] = field(factory=list)
    rest: int = 0
    whole: bool = False
    dangling: bool = False  # cut off after a comma

    def value(self, member: JsonMember) -> bytes:
        """A member's value as text."""
        return self.source[member.start : member.stop] if member.new is None else member.new

    def render(self) -> bytes:
        """The text again: unchanged parts have their old bytes."""
        # Views of a large source need no memory for its parts. For a small one, copies are faster.
        source: bytes | memoryview = self.source if len(self.source) < LARGE else memoryview(self.source)
        pieces = [source[: self.opened]]
        for number, member in enumerate(self.members):
            if number:
                pieces.append(b",")
            if member.lead is not None:
                pieces += (member.lead, member.new or b"")
            elif member.new is None:
                pieces.append(source[member.begin : member.end])
            else:
                pieces += (source[member.begin : member.start], member.new, source[member.stop : member.end])
        if self.dangling and self.members:
            pieces.append(b",")
        pieces.append(source[self.rest :])
        return b"".join(pieces)


def split(data: bytes, most: int = sys.maxsize) -> JsonContainer | None:
    """Split an object or array at its top level; None if `data` begins with neither, or has over `most` members."""
    start = 0
    if data[:1] != b"{":
        start = _SPACE.match(data, 3 if data.startswith(b"\xef\xbb\xbf") else 0).end()  # type: ignore[union-attr] # matches empty
    opening = data[start : start + 1]
    if opening not in (b"{", b"["):
        return None
    is_object = opening == b"{"
    closing = 0x7D if is_object else 0x5D
    begin, end = start + 1, len(data)
    cut = JsonContainer(data, is_object, begin)
    members = cut.members
    if data[begin : begin + 1] != b'"':
        first = _SPACE.match(data, begin).end()  # type: ignore[union-attr] # matches empty
        if first < end and data[first] == closing:
            cut.rest, cut.whole = begin, True
            return cut
    while len(members) <= most:
        key, position = "", begin
        if is_object:
            simple = _MEMBER.match(data, begin)
            if simple is not None:
                start, stop = simple.span(2)
                after = simple.end()
                members.append(JsonMember(simple.group(1).decode("utf-8", "replace"), begin, start, stop, after - 1))
                begin = after
                continue
            plain = _KEY.match(data, begin)
            if plain is not None:
                key, position = plain.group(1).decode("utf-8", "replace"), plain.end()
            else:
                escaped = _escaped_key(data, begin)
                if escaped is None:
                    break
                key, position = escaped
        else:
            position = _SPACE.match(data, begin).end()  # type: ignore[union-attr] # matches empty
        stop = _value_end(data, position)
        if stop < 0:
            break
        after = stop
        if stop < end and data[stop] not in _ENDS:
            after = _SPACE.match(data, stop).end()  # type: ignore[union-attr] # matches empty
        members.append(JsonMember(key, begin, position, stop, after))
        begin = after
        if after < end and data[after] == 0x2C:
            begin = after + 1
            continue
        cut.whole = after < end and data[after] == closing
        cut.rest = after
        return cut
    if len(members) > most:
        return None
    cut.rest, cut.dangling = begin, bool(members)
    return cut


def _escaped_key(data: bytes, begin: int) -> tuple[str, int] | None:
    """A member's key with escapes in it, and the position of its value."""
    start = _SPACE.match(data, begin).end()  # type: ignore[union-attr] # matches empty
    if data[start : start + 1] != b'"':
        return None
    stop = _string_end(data, start)
    if stop < 0 or stop - start > LONGEST_NAME:
        return None
    colon = _SPACE.match(data, stop).end()  # type: ignore[union-attr] # matches empty
    if data[colon : colon + 1] != b":":
        return None
    value = _SPACE.match(data, colon + 1).end()  # type: ignore[union-attr] # matches empty
    return _text(data[start:stop]) or "", value


# -- a JSON body -------------------------------------------------------------------------------------------


@define
class JsonBody:
    """A JSON request body, split once and edited in place."""

    _source: bytes
    _top: JsonContainer
    _changed: bool = False

    @classmethod
    def parse(cls, data: bytes) -> JsonBody | None:
        """The body; None if it is not a JSON object (an array names no model) or has an absurd number of members."""
        top = split(data, MEMBERS)
        return cls(data, top) if top is not None and top.is_object else None

    def copy(self) -> JsonBody:
        """The same body, to be edited separately."""
        return JsonBody(self._source, evolve(self._top, members=list(map(evolve, self._top.members))), self._changed)

    @property
    def large(self) -> bool:
        """Whether an edit may take too long for the reactor's thread."""
        return len(self._source) > LARGE

    def raw(self, key: str) -> bytes | None:
        """The text of a top-level member's value; the first of several counts."""
        for member in self._top.members:
            if member.key == key:
                return self._top.value(member)
        return None

    def scalar(self, key: str) -> str:
        """A top-level member as text: numbers and booleans as written; absent, null, objects and arrays are empty."""
        raw = self.raw(key)
        if raw is None or raw == b"null" or raw[:1] in (b"{", b"[") or len(raw) > LONGEST_NAME:
            return ""
        if raw[:1] == b'"':
            return _text(raw) or ""
        return raw.decode("utf-8", "replace")

    def flag(self, key: str) -> bool:
        """A top-level member as a boolean: true, a number other than zero, or the string "true"."""
        raw = self.raw(key)
        if raw is None or raw == b"false":
            return False
        text = self.scalar(key)
        if text.lower() == "true":
            return True
        if raw[:1] == b'"':
            return False
        try:
            return float(text) != 0
        except ValueError:
            return False

    @property
    def model(self) -> str:
        """The model it names; empty if it names none."""
        return self.scalar("model")

    @property
    def streaming(self) -> bool:
        """Whether it asks for a stream."""
        return self.flag("stream")

    def set(self, path: str, value: object) -> None:
        """Set the member at `path`. A value on the way that is not a container is replaced by one. Raises EditError."""
        top = _set(self._top, parse_path(path), encode(value))
        self._changed = self._changed or top

    def has(self, path: str) -> bool:
        """Whether there is a member at `path`."""
        return _has(self._top, parse_path(path))

    def set_model(self, name: str) -> None:
        """Name another model, in every `model` member, because a server may read the last of them."""
        self._changed = _set(self._top, (PathStep("model"),), encode(name)) or self._changed

    def delete(self, path: str) -> None:
        """Remove every member at `path`; there need not be one. Raises EditError for wildcards."""
        self._changed = _delete(self._top, _deletable(path)) or self._changed

    def render(self) -> bytes:
        """The body's bytes: the same object as long as nothing changed."""
        if self._changed:
            self._source, self._changed = self._top.render(), False
        return self._source


# -- paths -------------------------------------------------------------------------------------------------


@frozen
class PathStep:
    """One component of a path. `index` is set if it can address an array, `glob` if it matches several keys."""

    key: str
    index: int | None = None
    glob: re.Pattern[str] | None = field(default=None, eq=False)

    def matches(self, key: str) -> bool:
        """Whether it addresses this member of an object."""
        return self.glob.fullmatch(key) is not None if self.glob is not None else key == self.key


@lru_cache(maxsize=1024)  # filters use the same few paths for every request
def parse_path(path: str) -> tuple[PathStep, ...]:
    """The components of `a.b.0`. A backslash escapes the next character; a leading colon makes a number a key."""
    steps: list[PathStep] = []
    key: list[str] = []
    pattern: list[str] = []
    wild = forced = escaped = False

    def finish() -> None:
        text = "".join(key)
        index = None if forced or not (text.isascii() and (text.isdigit() or text == "-1")) else int(text)
        glob = re.compile("".join(pattern), re.DOTALL) if wild else None
        steps.append(PathStep(text, index, glob))

    for character in path:
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
            continue
        elif character == ".":
            finish()
            key, pattern, wild, forced = [], [], False, False
            continue
        elif character == ":" and not key and not forced:
            forced = True
            continue
        elif character in "*?":
            wild = True
            key.append(character)
            pattern.append(".*" if character == "*" else ".")
            continue
        key.append(character)
        pattern.append(re.escape(character))
    finish()
    return tuple(steps)


@lru_cache(maxsize=1024)
def _deletable(path: str) -> tuple[PathStep, ...]:
    steps = parse_path(path)
    if any(step.glob is not None for step in steps):
        raise EditError(f"wildcards cannot be deleted: {path}")
    return steps


def _targets(container: JsonContainer, step: PathStep) -> list[JsonMember]:
    """The members a step addresses."""
    if container.is_object:
        if step.glob is None:
            key = step.key
            return [member for member in container.members if member.key == key]
        return [member for member in container.members if step.matches(member.key)]
    if step.index is None or not 0 <= step.index < len(container.members):
        return []
    return [container.members[step.index]]


def _set(container: JsonContainer, steps: Sequence[PathStep], value: bytes) -> bool:
    step, rest = steps[0], steps[1:]
    targets = _targets(container, step)
    changed = False
    for member in targets:
        old = container.value(member)
        inner = _inner(old) if rest else None
        if not rest:
            new = value
        elif inner is not None:
            if not _set(inner, rest, value):
                continue
            new = inner.render()
        else:
            # The path asks for a container, which replaces a null, a number or a text on the way.
            new = _nested(rest, value)
        if new != old:
            member.new = new
            changed = True
    if not targets and step.glob is None:
        _append(container, step, _nested(rest, value))
        changed = True
    return changed


def _has(container: JsonContainer, steps: Sequence[PathStep]) -> bool:
    step, rest = steps[0], steps[1:]
    for member in _targets(container, step):
        inner = _inner(container.value(member)) if rest else None
        if not rest or (inner is not None and _has(inner, rest)):
            return True
    return False


def _inner(value: bytes) -> JsonContainer | None:
    inner = split(value, PARTS)
    if inner is None and value[:1] in (b"{", b"["):
        raise MalformedBodyError(f"an object or array has more than {PARTS} members")
    return inner


def _nested(steps: Sequence[PathStep], value: bytes) -> bytes:
    """The value inside new containers for the steps."""
    for step in reversed(steps):
        if step.index is None:
            value = b"{" + encode(step.key) + b":" + value + b"}"
        else:
            value = b"[" + b"null," * _bounded(max(step.index, 0)) + value + b"]"
    return value


def _append(container: JsonContainer, step: PathStep, value: bytes) -> None:
    if not container.whole:
        raise MalformedBodyError("the JSON document is cut off or malformed")
    if container.is_object:
        container.members.append(_added(step.key, encode(step.key) + b":", value))
        return
    if step.index is None:
        raise EditError(f"{step.key} is not an array index")
    if step.index >= 0:
        missing = _bounded(step.index) - len(container.members)
        container.members.extend(_added("", b"", b"null") for _ in range(missing))
    container.members.append(_added("", b"", value))


def _bounded(index: int) -> int:
    if index > PAD_BOUND:
        raise EditError(f"array index {index} is larger than {PAD_BOUND}")
    return index


def _delete(container: JsonContainer, steps: Sequence[PathStep]) -> bool:
    step, rest = steps[0], steps[1:]
    targets = _targets(container, step)
    if not rest:
        for member in targets:
            container.members.remove(member)
        return bool(targets)
    changed = False
    for member in targets:
        inner = _inner(container.value(member))
        if inner is not None and _delete(inner, rest):
            member.new = inner.render()
            changed = True
    return changed


# -- forms and queries -------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _form_field(name: str) -> re.Pattern[bytes]:
    """Finds a field in urlencoded text that begins with `&`; the bytes of the key may be percent-encoded."""
    letters = (
        b"(?:%s|(?i:%%%02x))" % (b"\\+" if byte == 0x20 else re.escape(bytes((byte,))), byte) for byte in name.encode()
    )
    return re.compile(b"(&" + b"".join(letters) + b")(?:=([^&]*)|(?=&)|\\Z)")


def form_value(text: bytes, name: str) -> str:
    """The first field with that name in an urlencoded text (a body or a query); empty if there is none."""
    found = _form_field(name).search(b"&" + text)
    return _unquoted((found.group(2) or b"")[:LONGEST_NAME]) if found else ""


def with_form_value(text: bytes, name: str, value: str) -> bytes:
    """The text with another value for every field of that name; its other bytes are unchanged."""
    encoded = quote_plus(value.encode("utf-8", "replace")).encode("ascii")
    return _form_field(name).sub(rb"\1=" + encoded, b"&" + text)[1:]


def _unquoted(text: bytes) -> str:
    return unquote_plus(text.decode("latin-1"), encoding="utf-8", errors="replace")


# -- multipart ---------------------------------------------------------------------------------------------

_BOUNDARY = re.compile(rb';[ \t]*boundary[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^;, \t]+))', re.IGNORECASE)
_NAME = re.compile(rb';[ \t]*name[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^; \t]+))', re.IGNORECASE)
_FILENAME = re.compile(rb";[ \t]*filename\*?[ \t]*=", re.IGNORECASE)
_DISPOSITION = re.compile(rb"^content-disposition[ \t]*:[ \t]*form-data([^\r\n]*)", re.IGNORECASE | re.MULTILINE)
PART_HEAD_BOUND = 16_384  # bytes of one part's headers
VALUE_BOUND = 65_536  # bytes of a model's name; a longer value is not one


def boundary(content_type: bytes) -> bytes | None:
    """The boundary of a multipart content type; None if it is missing or too long."""
    found = _BOUNDARY.search(content_type)
    if found is None:
        return None
    value = _unescaped(found)
    return value if 0 < len(value) <= 200 else None


def _unescaped(found: re.Match[bytes]) -> bytes:
    quoted = found.group(1)
    return re.sub(rb"\\(.)", rb"\1", quoted) if quoted is not None else found.group(2)


@frozen
class ValueSpan:
    """The position of a form field's value in the body."""

    name: str
    value: str
    start: int
    end: int


@define
class MultipartScan:
    """Reads a multipart body as it comes, for the values of some fields; it stores no file.

    Give `feed` the bytes in order. `places` grows as fields are complete. `ended`: the closing boundary was seen;
    `broken`: this is not a multipart body. The bytes of files are only searched for the boundary.
    """

    _delimiter: bytes
    _names: frozenset[str]
    places: list[ValueSpan] = field(factory=list)
    ended: bool = False
    broken: bool = False
    _held: bytes = b""
    _offset: int = 0  # of _held in the body
    _part: str | None = None  # the wanted field whose value is being read
    _in_part: bool = False
    _begun: bool = False

    @classmethod
    def of(cls, content_type: bytes, names: frozenset[str] = frozenset(("model", "stream"))) -> MultipartScan:
        """A scan of a body with this content type; it is `broken` if that names no boundary."""
        mark = boundary(content_type)
        scan = cls(b"\r\n--" + (mark or b""), names)
        scan.broken = mark is None
        # The first delimiter may be at the very start, so pretend that a line end came before.
        scan._held, scan._offset = b"\r\n", -2
        return scan

    def restarted(self) -> MultipartScan:
        """A new scan of the same body."""
        scan = MultipartScan(self._delimiter, self._names)
        scan._held, scan._offset = b"\r\n", -2
        return scan

    def value(self, name: str) -> str | None:
        """The first complete value of a field, None if there is none yet."""
        for place in self.places:
            if place.name == name:
                return place.value
        return None

    def feed(self, data: bytes) -> None:
        """Read the next bytes."""
        if self.ended or self.broken:
            return
        self._held += data
        while not (self.ended or self.broken) and (
            self._read_data() if self._in_part or not self._begun else self._read_head()
        ):
            pass

    def _drop(self, count: int) -> None:
        self._held = self._held[count:]
        self._offset += count

    def _read_data(self) -> bool:
        """Read up to the next delimiter; False if more bytes are needed."""
        found = self._held.find(self._delimiter)
        if found < 0:
            keep = len(self._delimiter) - 1
            if self._part is None:
                self._drop(max(0, len(self._held) - keep))
            elif len(self._held) > VALUE_BOUND:
                self._part = None
            return False
        if self._part is not None:
            raw = self._held[:found]
            self.places.append(
                ValueSpan(self._part, raw.decode("utf-8", "replace"), self._offset, self._offset + len(raw))
            )
        self._drop(found + len(self._delimiter))
        self._part, self._in_part, self._begun = None, False, True
        return True

    def _read_head(self) -> bool:
        """Read what follows a delimiter: the end, or a part's headers; False if more bytes are needed."""
        held = self._held
        if held.startswith(b"--"):
            self.ended = True
            return False
        line = held.find(b"\r\n")
        if line < 0:
            self.broken = len(held) > PART_HEAD_BOUND
            return False
        if held[:line].strip(b" \t"):
            self.broken = True
            return False
        stop = held.find(b"\r\n\r\n", line)
        if stop < 0:
            self.broken = len(held) > PART_HEAD_BOUND
            return False
        disposition = _DISPOSITION.search(held, 0, stop)
        self._part = None
        if disposition is not None and not _FILENAME.search(disposition.group(1)):
            named = _NAME.search(disposition.group(1))
            name = _unescaped(named).decode("utf-8", "replace") if named else ""
            self._part = name if name in self._names else None
        self._drop(stop + 4)
        self._in_part = True
        return True


def with_places(data: bytes, places: Sequence[ValueSpan], name: str, value: str) -> bytes:
    """The body with another value for every found field of that name; boundary, headers and files are unchanged."""
    encoded = value.encode("utf-8", "replace")
    for place in reversed([place for place in places if place.name == name]):
        data = data[: place.start] + encoded + data[place.end :]
    return data
