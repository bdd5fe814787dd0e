"""Where an HTTP/1 message's head and body end, to the byte. Pure: bytes in, positions and records out.

httptools (llhttp) checks every head strictly. It reports what it found but not where, and the proxy passes bodies on
unchanged; so chunk framing is parsed here: sizes are read, payload is only located.
"""

from __future__ import annotations

import re

import httptools
from attrs import define, field

from llamaswap.proxy.exchange import Headers, RequestHead
from llamaswap.wire.headers import comma_items
from llamaswap.wire.known_response import KnownResponse

HEAD_LIMIT = 64 * 1024  # bytes; enough for long cookies and traces
HEADER_COUNT = 500
SIZE_LINE_LIMIT = 4096  # a chunk size with its extensions
TRAILER_LIMIT = 16 * 1024

_SIZE = re.compile(rb"([0-9a-fA-F]{1,15})(?:[ \t]*;[^\r\n\x00]*)?\r\n")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_AUTHORITY = re.compile(rb"^[^/?]*")
_EIGHT_BIT = re.compile(rb"[\x80-\xff]")
# Framing fields are not allowed in trailers (RFC 9110, 6.5.1): llhttp, and so Node, treats such a response as broken.
_TRAILER = re.compile(rb"(?!(?i:content-length|transfer-encoding):)[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[^\r\n\x00]*\r\n")

_REQUEST_FIELDS = frozenset((b"content-length", b"transfer-encoding", b"connection", b"expect", b"host"))
_RESPONSE_FIELDS = frozenset((b"content-length", b"transfer-encoding", b"connection", b"keep-alive", b"server"))
LAST_CHUNK = b"0\r\n\r\n"


class MalformedMessage(Exception):
    """The bytes are not HTTP as it is accepted here; the text says what is wrong."""


class HeadTooSlow(MalformedMessage):
    """The next bytes of a request did not come in time."""


class HeadTooLarge(MalformedMessage):
    """A head has more bytes or fields than are accepted."""


@define  # made for every response; to freeze it would double its cost
class ResponseHead:
    """A response's head. `length` is the body's size, None if it is `chunked` or ends with the connection."""

    status: int
    reason: bytes
    headers: Headers
    version: tuple[int, int]
    length: int | None
    chunked: bool
    keep_alive: bool
    server: bytes = b""
    keep_alive_hint: bytes = b""
    known: KnownResponse | None = field(default=None, eq=False, repr=False)

    @property
    def until_close(self) -> bool:
        """Whether only the end of the connection ends the body."""
        return self.length is None and not self.chunked


@define
class Framing:
    """How a request's body is delimited: by `length` bytes, or in chunks if it is None."""

    length: int | None
    keep_alive: bool
    expects: bool


_Parser = httptools.HttpRequestParser | httptools.HttpResponseParser


class _Collector:
    """Collects what llhttp reports of one head."""

    __slots__ = ("complete", "headers", "line")

    def __init__(self) -> None:
        self.headers: Headers = []
        self.line = b""
        self.complete = False

    def on_url(self, piece: bytes) -> None:
        self.line += piece

    def on_status(self, piece: bytes) -> None:
        self.line += piece

    def on_header(self, name: bytes, value: bytes) -> None:
        if value[-1:] in (b" ", b"\t"):
            value = value.rstrip(b" \t")
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.complete = True


def find_head_end(data: bytes, limit: int = HEAD_LIMIT) -> int:
    """The position after a head's blank line, -1 if it is incomplete. Raises HeadTooLarge and MalformedMessage."""
    end = data.find(b"\r\n\r\n")
    if end >= 0:
        if end > limit:
            raise HeadTooLarge(f"head larger than {limit} bytes")
        return end + 4
    if len(data) > limit:
        raise HeadTooLarge(f"head larger than {limit} bytes")
    if _BARE_LF.search(data):
        raise MalformedMessage("line ended by LF alone")
    return -1


def _parse(parser: _Parser, collector: _Collector, head: bytes) -> None:
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        pass  # it stops after an upgrade's head, which is all it was given
    except httptools.HttpParserError as error:
        # A 101 without the headers that belong to it also stops the parser after its head.
        if not (collector.complete and "Upgrade" in str(error)):
            raise MalformedMessage(str(error))
    if not collector.complete:
        raise MalformedMessage("incomplete head")
    if len(collector.headers) > HEADER_COUNT:
        raise HeadTooLarge(f"more than {HEADER_COUNT} header fields")


def _version(parser: _Parser) -> tuple[int, int]:
    text = parser.get_http_version()
    if text == "1.1":
        return (1, 1)
    if text == "1.0":
        return (1, 0)
    raise MalformedMessage(f"HTTP/{text} is not spoken here")


def _keeps_alive(connection: bytes, otherwise: bool) -> bool:
    """Whether a Connection header keeps the connection open."""
    asked = comma_items(connection)
    return b"close" not in asked and (otherwise or b"keep-alive" in asked)


def parse_request(head: bytes) -> tuple[RequestHead, Framing]:
    """Read a request's head, complete with its blank line."""
    collector = _Collector()
    parser = httptools.HttpRequestParser(collector)
    _parse(parser, collector, head if head.isascii() else _escaped(head))
    version = _version(parser)
    keep_alive = version == (1, 1)
    length: int | None = 0
    expects = False
    hosts = 0
    for name, value in collector.headers:
        lower = name.lower()
        if lower not in _REQUEST_FIELDS:
            continue
        if lower == b"content-length":
            length = int(value)
        elif lower == b"transfer-encoding":
            if value.strip().lower() != b"chunked":
                raise MalformedMessage("a transfer coding other than chunked")
            if version == (1, 0):
                raise MalformedMessage("HTTP/1.0 knows no transfer coding")
            length = None
        elif lower == b"connection":
            keep_alive = _keeps_alive(value, keep_alive)
        elif lower == b"expect":
            expects = value.lower() == b"100-continue" and version == (1, 1)
        elif lower == b"host":
            hosts += 1
    if hosts > 1:
        raise MalformedMessage("more than one Host")
    if not hosts and version == (1, 1):
        raise MalformedMessage("HTTP/1.1 requires a Host")
    method = parser.get_method()
    if method == b"CONNECT":
        raise MalformedMessage("CONNECT is not served")
    target = collector.line
    if target[:1] != b"/" and target != b"*":
        # Every server must understand the absolute form, which is meant for proxies (RFC 9112, 3.2.2).
        scheme, found, rest = target.partition(b"://")
        if not found or scheme.lower() not in (b"http", b"https"):
            raise MalformedMessage("a target that is no path")
        path = _AUTHORITY.sub(b"", rest)
        target = path if path[:1] == b"/" else b"/" + path
    request = RequestHead(method, target, collector.headers, version)
    return request, Framing(length, keep_alive, expects)


def _escaped(head: bytes) -> bytes:
    """A request's head with its target in ASCII, because some clients send non-ASCII letters unencoded."""
    line, found, rest = head.partition(b"\r\n")
    return _EIGHT_BIT.sub(lambda byte: b"%%%02X" % byte[0][0], line) + found + rest


def with_target(head: bytes, target: bytes) -> bytes:
    """A request's head with this target."""
    line, found, rest = head.partition(b"\r\n")
    return b" ".join((line.partition(b" ")[0], target, line.rpartition(b" ")[2])) + found + rest


def parse_response(head: bytes, *, bodyless: bool) -> ResponseHead:
    """Read a response's head, complete with its blank line. `bodyless`: it answers a HEAD."""
    collector = _Collector()
    parser = httptools.HttpResponseParser(collector)
    # Some servers send a length in addition to chunks; the chunks count (RFC 9112, 6.3).
    parser.set_dangerous_leniencies(lenient_chunked_length=True)
    _parse(parser, collector, head)
    version = _version(parser)
    status = parser.get_status_code()
    if status < 100:  # llhttp accepts 099, but clients do not
        raise MalformedMessage(f"status {status}")
    keep_alive = version == (1, 1)
    length: int | None = None
    coded = chunked = False
    server = hint = b""
    for name, value in collector.headers:
        lower = name.lower()
        if lower not in _RESPONSE_FIELDS:
            continue
        if lower == b"content-length":
            length = int(value)
        elif lower == b"transfer-encoding":
            coded = True
            chunked = comma_items(value)[-1] == b"chunked"
        elif lower == b"connection":
            keep_alive = _keeps_alive(value, keep_alive)
        elif lower == b"keep-alive":
            hint = value
        elif lower == b"server":
            server = value
    headers = collector.headers
    if coded and length is not None:
        headers = [item for item in headers if item[0].lower() != b"content-length"]
        length = None
    if bodyless or status in (204, 304) or 100 <= status < 200:
        length, chunked = 0, False
    return ResponseHead(status, collector.line, headers, version, length, chunked, keep_alive, server, hint)


def write_head(first_line: bytes, headers: Headers) -> bytes:
    """A head's bytes with its blank line. Names and values come from a parsed head or from our own code."""
    lines = [first_line]
    for name, value in headers:
        lines.append(name + b": " + value)
    lines.append(b"\r\n")
    return b"\r\n".join(lines)


# Chunk size lines seen before: those of an event stream are few, and a lookup costs a fraction of parsing one.
_known_sizes: dict[bytes, int] = {}
KNOWN_SIZES = 1024
KNOWN_LINE = 6  # bytes of the longest line that is remembered


class ChunkWalker:
    """Walks a chunked body, however it is sliced, and finds its exact end."""

    __slots__ = ("_held", "_left", "_state", "_trailer", "done", "payload")

    def __init__(self) -> None:
        self.done = False
        self.payload = 0  # bytes of payload seen
        self._left = 0  # bytes of the present chunk to come
        self._held = b""  # an incomplete line
        self._trailer = 0  # bytes of trailer lines
        self._state = 0  # 0 size line, 1 payload, 2 its CRLF, 3 trailer lines

    @property
    def between(self) -> bool:
        """Whether the bytes read so far end with a complete chunk."""
        return not self._state and not self._held

    def feed(self, data: bytes, pieces: list[bytes] | None) -> int:
        """Walk on; returns how many bytes of `data` belong to the body. The payload goes to `pieces`, if given."""
        at, size = 0, len(data)
        if not self._state and not self._held:
            # Complete chunks with known size lines: nearly every read of an event stream is one.
            while True:
                begin = data.find(b"\n", at) + 1
                length = _known_sizes.get(data[at:begin])
                if length is None or not data.startswith(b"\r\n", begin + length):
                    break
                self.payload += length
                if pieces is not None:
                    pieces.append(data[begin : begin + length])
                at = begin + length + 2
                if at == size:
                    return size
        while at < size and not self.done:
            if self._state == 1:
                take = size - at
                if take > self._left:
                    take = self._left
                if pieces is not None:
                    pieces.append(data[at : at + take])
                at += take
                self._left -= take
                if not self._left:
                    self._state = 2
                continue
            if self._state == 2 and not self._held and data.startswith(b"\r\n", at):
                at += 2
                self._state = 0
                continue
            end = data.find(b"\n", at) + 1
            if not end:
                self._held += data[at:]
                if len(self._held) > SIZE_LINE_LIMIT:
                    raise MalformedMessage("chunk line too long")
                return size
            line = self._held + data[at:end] if self._held else data[at:end]
            self._held = b""
            at = end
            self._line(line)
        return at

    def _line(self, line: bytes) -> None:
        if self._state == 0:
            match = _SIZE.fullmatch(line)
            if match is None or len(line) > SIZE_LINE_LIMIT:
                raise MalformedMessage("invalid chunk size")
            self._left = left = int(match.group(1), 16)
            self.payload += left
            self._state = 1 if left else 3
            if left and len(line) <= KNOWN_LINE and len(_known_sizes) < KNOWN_SIZES:
                _known_sizes[line] = left
        elif self._state == 2:
            if line != b"\r\n":
                raise MalformedMessage("chunk without its end")
            self._state = 0
        elif line == b"\r\n":
            self.done = True
        else:
            self._trailer += len(line)
            if self._trailer > TRAILER_LIMIT or _TRAILER.fullmatch(line) is None:
                raise MalformedMessage("invalid trailer")


def as_chunk(data: bytes) -> bytes:
    """`data` (not empty) as one chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)
