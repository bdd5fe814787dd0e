"""How a response's head and body are framed for a client, on the listening socket and in the Klein app."""

from __future__ import annotations

import time
from collections.abc import Collection
from email.utils import formatdate
from http.client import responses

from llamaswap.errors import BodyTooLarge, NoRoom
from llamaswap.proxy.exchange import Headers, RequestHead
from llamaswap.proxy.framing import HeadTooLarge, HeadTooSlow, MalformedMessage, as_chunk, write_head
from llamaswap.wire.headers import CHUNKED, ResponseHeaders, readable_by_pages

REFUSALS: dict[type[Exception], tuple[int, bytes]] = {
    MalformedMessage: (400, b"Bad Request"),
    HeadTooSlow: (408, b"Request Timeout"),
    BodyTooLarge: (413, b"Content Too Large"),
    HeadTooLarge: (431, b"Request Header Fields Too Large"),
    NoRoom: (507, b"Insufficient Storage"),
}
_date: tuple[int, bytes] = (0, b"")


def date_line() -> bytes:
    """The present time for a Date header; formatted once a second."""
    global _date
    now = int(time.time())
    if now != _date[0]:
        _date = (now, formatdate(now, usegmt=True).encode("ascii"))
    return _date[1]


class ResponseFramer:
    """Decides how one response is delimited.

    `body`: whether body bytes may follow the head; `chunking`: whether what is written must be framed here;
    `delimited`: whether the client can tell the end without the connection's close; `open`: whether more body bytes may
    be put between those of the server, `chunked` as chunks only. Pages of `origins` may read the response.
    """

    __slots__ = (
        "_headers",
        "_origin",
        "_origins",
        "_version",
        "body",
        "chunked",
        "chunking",
        "delimited",
        "open",
        "status",
    )

    def __init__(
        self,
        request: RequestHead,
        status: int,
        headers: ResponseHeaders,
        *,
        raw: bool,
        origins: Collection[str] = ("*",),
    ) -> None:
        self._headers = headers
        self._version = request.version
        self._origin = request.first(b"origin")
        self._origins = origins
        self.status = status
        self.chunked = headers.chunked and raw
        self.open = headers.chunked or not raw
        self.body = request.method != b"HEAD" and status not in (204, 304)
        self.chunking = False
        self.delimited = True
        if self.body and not headers.sized and not self.chunked:
            if raw or request.version < (1, 1):
                self.delimited = False
            else:
                self.chunking = True

    def head(self, reason: bytes, *, keep_alive: bool, data: bytes = b"") -> bytes:
        """The head's bytes, followed by the first body bytes with their framing."""
        response = self._headers
        known = response.known
        date = b"" if response.dated else date_line()
        if known is None or self.status == 204:
            head = self._written(reason, date, keep_alive)
        else:
            name, length = response.items[known.place] if known.place >= 0 else (b"", b"")
            key = (self.chunking, keep_alive, date, self._version, self._origin, self._origins)
            if key == known.key:
                head = b"%b%b%b" % (known.before, length, known.after)
            else:
                head = self._written(reason, date, keep_alive)
                line = b"\r\n%b: " % name
                before, found, after = head.partition(line + length + b"\r\n")
                known.key = key
                known.before, known.after = (before + line, b"\r\n" + after) if found else (head, b"")
        if not data or not self.body:
            return head
        return head + (as_chunk(data) if self.chunking else data)

    def _written(self, reason: bytes, date: bytes, keep_alive: bool) -> bytes:
        response = self._headers
        headers = readable_by_pages(response.items, self._origin, self._origins)
        if self.status == 204 and response.sized:  # not allowed there (RFC 9110, 8.6)
            headers = [item for item in headers if item[0].lower() != b"content-length"]
        if self.chunking:
            headers.append(CHUNKED)
        if date:
            headers.append((b"Date", date))
        if not keep_alive:
            if response.connection:
                headers = [item for item in headers if item[0].lower() != b"connection"]
            headers.append((b"Connection", b"close"))
        elif self._version < (1, 1):
            headers.append((b"Connection", b"keep-alive"))
        return write_head(status_line(self.status, reason), headers)

    def write_final(self, words: bytes, last: bytes) -> bytes | None:
        """More body bytes behind `last` with their framing; None if the framing allows none there."""
        if not self.open or not self.body:
            return None
        if not self.chunked:
            return as_chunk(words) if self.chunking else words
        return as_chunk(words) if last.endswith(b"\r\n") else None

    @staticmethod
    def interim(status: int, reason: bytes, headers: Headers) -> bytes:
        """A 1xx head's bytes."""
        return write_head(status_line(status, reason), headers)


def status_line(status: int, reason: bytes = b"") -> bytes:
    """A status line without its line end; a missing reason becomes the standard one."""
    if not reason:
        reason = responses.get(status, "").encode("ascii")
    return b"HTTP/1.1 %d %b" % (status, reason)


def refusal(error: MalformedMessage | BodyTooLarge | NoRoom) -> bytes:
    """The response to a request that cannot be read; the connection closes after it."""
    status, reason = REFUSALS[type(error)]
    body = b"%d %b: %b\n" % (status, reason, str(error).encode("ascii", "replace"))
    headers = [
        (b"Content-Type", b"text/plain; charset=utf-8"),
        (b"Content-Length", b"%d" % len(body)),
        (b"Connection", b"close"),
    ]
    return write_head(status_line(status, reason), headers) + body
