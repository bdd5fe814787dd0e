"""Fields of urlencoded and multipart forms: how to read the model's name, and how to replace it in place."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from urllib.parse import quote_plus, unquote_plus

from attrs import define, field, frozen

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
    return _unquoted((found.group(2) or b"")[:VALUE_LIMIT]) if found else ""


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
PART_HEAD_LIMIT = 16_384  # bytes of one part's headers
VALUE_LIMIT = 65_536  # bytes of a model's name; a longer value is not one


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
    `broken`: this is not a multipart body. `held` are the bytes not read yet: few, because the bytes of
    files are only searched for the boundary.
    """

    _delimiter: bytes
    _names: frozenset[str]
    places: list[ValueSpan] = field(factory=list)
    ended: bool = False
    broken: bool = False
    held: bytes = b"\r\n"  # the first delimiter may be at the very start: as if a line end came before
    _offset: int = -2  # of `held` in the body
    _part: str | None = None  # the wanted field whose value is being read
    _in_part: bool = False
    _begun: bool = False

    @classmethod
    def of(cls, content_type: bytes, names: frozenset[str] = frozenset(("model", "stream"))) -> MultipartScan:
        """A scan of a body with this content type; it is `broken` if that names no boundary."""
        mark = boundary(content_type)
        return cls(b"\r\n--" + (mark or b""), names, broken=mark is None)

    def restarted(self) -> MultipartScan:
        """A new scan of the same body."""
        return MultipartScan(self._delimiter, self._names)

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
        self.held += data
        while not (self.ended or self.broken) and (
            self._read_data() if self._in_part or not self._begun else self._read_head()
        ):
            pass

    def _drop(self, count: int) -> None:
        self.held = self.held[count:]
        self._offset += count

    def _read_data(self) -> bool:
        """Read up to the next delimiter; False if more bytes are needed."""
        found = self.held.find(self._delimiter)
        if found < 0:
            keep = len(self._delimiter) - 1
            if self._part is None:
                self._drop(max(0, len(self.held) - keep))
            elif len(self.held) > VALUE_LIMIT:
                self._part = None
            return False
        if self._part is not None:
            raw = self.held[:found]
            self.places.append(
                ValueSpan(self._part, raw.decode("utf-8", "replace"), self._offset, self._offset + len(raw))
            )
        self._drop(found + len(self._delimiter))
        self._part, self._in_part, self._begun = None, False, True
        return True

    def _read_head(self) -> bool:
        """Read what follows a delimiter: the end, or a part's headers; False if more bytes are needed."""
        held = self.held
        if held.startswith(b"--"):
            self.ended = True
            return False
        line = held.find(b"\r\n")
        if line < 0:
            self.broken = len(held) > PART_HEAD_LIMIT
            return False
        if held[:line].strip(b" \t"):
            self.broken = True
            return False
        stop = held.find(b"\r\n\r\n", line)
        if stop < 0:
            self.broken = len(held) > PART_HEAD_LIMIT
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
    """The body with another value for every field found with that name; boundary, headers and files are unchanged."""
    encoded = value.encode("utf-8", "replace")
    for place in reversed([place for place in places if place.name == name]):
        data = data[: place.start] + encoded + data[place.end :]
    return data
