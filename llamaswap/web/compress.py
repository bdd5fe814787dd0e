"""Compression of whole responses: JSON above a kilobyte, for clients that accept gzip."""

from __future__ import annotations

import gzip

from attrs import evolve

from llamaswap.web.admin_request import JSON, Response

MIN_SIZE = 1024  # bytes; below, the header costs more than compression saves
# Level 1 compresses about 100 MB/s: this size blocks the reactor for some 20 ms, a larger body is sent as it is.
MAX_SIZE = 2 * 1024 * 1024


def accepts(accept_encoding: bytes | None, coding: str) -> bool:
    """Whether the header lists `coding` as one item, without q=0."""
    for item in (accept_encoding or b"").decode("latin-1").lower().split(","):
        name, _, weight = item.partition(";")
        if name.strip() == coding:
            value = weight.strip().removeprefix("q=").strip()
            return value not in ("0", "0.0", "0.00", "0.000")
    return False


def compressed(answer: Response, accept_encoding: bytes | None) -> Response:
    """The response, compressed if that saves bytes."""
    if answer.content_type != JSON or not MIN_SIZE < len(answer.body) <= MAX_SIZE:
        return answer
    headers = (*answer.headers, (b"Vary", b"Accept-Encoding"))
    if not accepts(accept_encoding, "gzip"):
        return evolve(answer, headers=headers)
    packed = gzip.compress(answer.body, 1, mtime=0)
    return evolve(answer, body=packed, headers=(*headers, (b"Content-Encoding", b"gzip")))
