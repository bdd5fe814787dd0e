"""Heads that were read before: a client sends nearly the same head with each request, a server with each response.

A head is parsed once. The next that differs from it in nothing but its Content-Length is the same record with another
length, and what was made of it (`KnownHead`, `KnownResponse`) is used again. The key is the whole head, with the
client's key in it, so nothing of one client's reaches another's request.

`python -m benchmarks --only small --without known_heads`: on a busy machine a request takes 251 us of CPU without it,
163 with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from llamaswap.proxy import framing
from llamaswap.proxy.exchange import Headers, RequestHead
from llamaswap.proxy.framing import Framing, ResponseHead
from llamaswap.wire import headers as header_rules
from llamaswap.wire.headers import ResponseHeaders
from llamaswap.wire.known_response import KnownResponse

HEADS_KEPT = 256  # of requests, and as many of responses; then all are forgotten
HEAD_LIMIT = 4096  # bytes of a head that is kept

# The digits of a Content-Length, of which the parser accepts one line only.
_LENGTH = re.compile(rb"\r\ncontent-length: ?(0|[1-9][0-9]{0,14})\r\n", re.IGNORECASE)

_Key = tuple[bytes, bytes]
_responses: dict[_Key, tuple[ResponseHead, int]] = {}


def _length_place(headers: Headers) -> int:
    """The position of Content-Length; -1 if it is missing."""
    return next((place for place, item in enumerate(headers) if item[0].lower() == b"content-length"), -1)


def request_parser() -> Callable[[bytes], tuple[RequestHead, Framing]]:
    """A function that does the same as `framing.parse_request`, and remembers heads."""
    known: dict[_Key, tuple[RequestHead, Framing, int]] = {}

    def parse(raw: bytes) -> tuple[RequestHead, Framing]:
        found = _LENGTH.search(raw)
        if found is None or len(raw) > HEAD_LIMIT:
            return framing.parse_request(raw)
        start, end = found.span(1)
        key = (raw[:start], raw[end:])
        kept = known.get(key)
        if kept is None:
            head, delimited = framing.parse_request(raw)
            if len(known) >= HEADS_KEPT:
                known.clear()
            known[key] = head, delimited, _length_place(head.headers)
            return head, delimited
        same, delimited, place = kept
        digits = found.group(1)
        headers = same.headers.copy()
        headers[place] = (headers[place][0], digits)
        head = RequestHead(same.method, same.target, headers, same.version, same.known)
        return head, Framing(int(digits), delimited.keep_alive, delimited.expects)

    return parse


def parse_response(raw: bytes, *, bodyless: bool) -> ResponseHead:
    """The same as `framing.parse_response`."""
    if bodyless or len(raw) > HEAD_LIMIT:
        return framing.parse_response(raw, bodyless=bodyless)
    found = _LENGTH.search(raw)
    if found is None:
        key, digits = (raw, b""), b""
    else:
        start, end = found.span(1)
        key, digits = (raw[:start], raw[end:]), found.group(1)
    kept = _responses.get(key)
    if kept is None:
        head = framing.parse_response(raw, bodyless=False)
        # A response without a body may name the length of another's; its own is 0.
        if head.length is None if found is None else head.length == int(digits) > 0:
            head.known = KnownResponse()
            if len(_responses) >= HEADS_KEPT:
                _responses.clear()
            _responses[key] = head, _length_place(head.headers)
        return head
    same, place = kept
    if found is None:
        return same
    headers = same.headers.copy()
    headers[place] = (headers[place][0], digits)
    return ResponseHead(
        same.status,
        same.reason,
        headers,
        same.version,
        int(digits),
        False,
        same.keep_alive,
        same.server,
        same.keep_alive_hint,
        same.known,
    )


def to_client(head: ResponseHead, *, chunked: bool) -> ResponseHeaders:
    """The same as `headers.to_client` for the headers of `head`."""
    known = head.known
    if known is None:
        return header_rules.to_client(head.headers, chunked=chunked)
    same = known.headers
    if same is None or same.chunked is not chunked:
        same = known.headers = header_rules.to_client(head.headers, chunked=chunked)
        same.known, known.place = known, _length_place(same.items)
    if known.place < 0:
        return same
    items = same.items.copy()
    items[known.place] = (items[known.place][0], str(head.length).encode())
    return ResponseHeaders(
        items,
        same.content_type,
        same.content_encoding,
        same.event_stream,
        same.sized,
        same.dated,
        same.connection,
        same.chunked,
        known,
    )
