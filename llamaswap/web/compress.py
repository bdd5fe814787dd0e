"""Compressing whole answers: JSON above a kilobyte for clients that take gzip."""

from __future__ import annotations

import gzip

from attrs import evolve

from llamaswap.web.admin_request import JSON, Response

SMALLEST = 1024  # below, the header costs more than it saves
# Level 1 packs about 100 MB/s: this much holds up the reactor for some 20 ms, more is sent as it is.
LARGEST = 2 * 1024 * 1024


def accepts(accept_encoding: bytes | None, coding: str) -> bool:
    """Whether the header lists `coding` as an item of its own, and not with q=0."""
    for item in (accept_encoding or b"").decode("latin-1").lower().split(","):
        name, _, weight = item.partition(";")
        if name.strip() == coding:
            value = weight.strip().removeprefix("q=").strip()
            return value not in ("0", "0.0", "0.00", "0.000")
    return False


def compressed(answer: Response, accept_encoding: bytes | None) -> Response:
    """The answer, packed if that pays."""
    if answer.content_type != JSON or not SMALLEST < len(answer.body) <= LARGEST:
        return answer
    headers = (*answer.headers, (b"Vary", b"Accept-Encoding"))
    if not accepts(accept_encoding, "gzip"):
        return evolve(answer, headers=headers)
    packed = gzip.compress(answer.body, 1, mtime=0)
    return evolve(answer, body=packed, headers=(*headers, (b"Content-Encoding", b"gzip")))
