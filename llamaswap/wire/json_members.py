"""JSON text split into its members, without being parsed into values.

The walk is lenient on purpose, because the server validates the document and we only route it; it does not recurse,
however deep the nesting.
"""

from __future__ import annotations

import json
import re
import sys

from attrs import define, field

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


SEARCH_WINDOW = 1 << 22  # bytes searched by one find(), a millisecond's work: other threads wait for it as well
_ENDS = b",}]"  # what usually follows a value

LARGE = 1024 * 1024  # bytes of a document whose parts are not copied, and that a worker thread parses
LONGEST_NAME = 65_536  # bytes of a key with escapes, a scalar member or a model's name; a longer one is not read
PARTS = 200_000  # members of a container that a filter's path leads into
MEMBERS = 10_000  # members of a request's top level, where a dozen are usual: each costs a record and a microsecond
BRACKETS = 1_000_000  # runs of brackets in one value; a chat of a hundred thousand messages has a third of that


def _next_quote(data: bytes, start: int) -> int:
    """The index of the next quotation mark, or -1."""
    for begin in range(start, len(data), SEARCH_WINDOW):
        found = data.find(b'"', begin, begin + SEARCH_WINDOW)
        if found >= 0:
            return found
    return -1


def _string_end(data: bytes, start: int) -> int:
    """The index after the string that opens at `start`, or -1 if it does not end."""
    position = start
    for _ in range(_ESCAPED_QUOTES):
        position = _next_quote(data, position + 1)
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


def json_text(raw: bytes) -> str | None:
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


def added_member(key: str, lead: bytes, value: bytes) -> JsonMember:
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
        return b"".join(self.pieces())

    def pieces(self) -> list[bytes | memoryview]:
        """The parts of the text, in order."""
        # Views of a large source need no memory for its parts. For a small one, copies are faster.
        source: bytes | memoryview = self.source if len(self.source) < LARGE else memoryview(self.source)
        pieces: list[bytes | memoryview] = [source[: self.opened]]
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
        return pieces


def split(data: bytes, most: int = sys.maxsize) -> JsonContainer | None:
    """Split an object or array at its top level; None if `data` begins with neither, or has over `most` members."""
    cut = _opened(data)
    if cut is None:
        return None
    is_object, begin, members = cut.is_object, cut.opened, cut.members
    closing, end = 0x7D if is_object else 0x5D, len(data)
    if data[begin : begin + 1] != b'"':
        first = after_space(data, begin)
        if first < end and data[first] == closing:
            cut.rest, cut.whole = begin, True
            return cut
    while len(members) <= most:
        if is_object:
            simple = _MEMBER.match(data, begin)
            if simple is not None:
                start, stop = simple.span(2)
                after = simple.end()
                members.append(JsonMember(simple.group(1).decode("utf-8", "replace"), begin, start, stop, after - 1))
                begin = after
                continue
            named = _key(data, begin)
            if named is None:
                break
            key, position = named
        else:
            key, position = "", after_space(data, begin)
        stop = _value_end(data, position)
        if stop < 0:
            break
        after = stop
        if stop < end and data[stop] not in _ENDS:
            after = after_space(data, stop)
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


def split_members(data: bytes) -> dict[str, bytes]:
    """The members of an object as text, the last one of each name; none if `data` is not an object, or cut off."""
    cut = split(data, PARTS)
    return {one.key: cut.value(one) for one in cut.members} if cut is not None and cut.is_object and cut.whole else {}


def split_values(data: bytes) -> list[bytes]:
    """The values of an array as text; none if `data` is not an array, or cut off."""
    cut = split(data, PARTS)
    return list(map(cut.value, cut.members)) if cut is not None and not cut.is_object and cut.whole else []


def _opened(data: bytes) -> JsonContainer | None:
    """The object or array that `data` begins with, its members not read yet; None if it begins with neither."""
    start = 0
    if data[:1] != b"{":
        start = after_space(data, 3 if data.startswith(b"\xef\xbb\xbf") else 0)
    opening = data[start : start + 1]
    return JsonContainer(data, opening == b"{", start + 1) if opening in (b"{", b"[") else None


def after_space(data: bytes, position: int) -> int:
    """The index of the first byte from `position` on that is not white space."""
    return _SPACE.match(data, position).end()  # type: ignore[union-attr] # matches empty


def _key(data: bytes, begin: int) -> tuple[str, int] | None:
    """The key of the member that begins there, and the position of its value; None if it is malformed or cut off."""
    plain = _KEY.match(data, begin)
    if plain is not None:
        return plain.group(1).decode("utf-8", "replace"), plain.end()
    start = after_space(data, begin)
    if data[start : start + 1] != b'"':
        return None
    stop = _string_end(data, start)
    if stop < 0 or stop - start > LONGEST_NAME:
        return None
    colon = after_space(data, stop)
    if data[colon : colon + 1] != b":":
        return None
    return json_text(data[start:stop]) or "", after_space(data, colon + 1)
