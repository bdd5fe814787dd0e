"""Whole requests and answers, kept compressed in memory within a budget, oldest out first.

What is kept of which path, and that secrets never are, is decided here. Must not know the activity store:
a capture's id is whatever its row got.
"""

from __future__ import annotations

import base64
import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import zstandard
from attrs import field, frozen

LEVEL = 1  # a capture is read seldom and written with every request
MIB = 1024 * 1024


@frozen
class Mask:
    """Which of the four parts of a request are kept."""

    req_headers: bool = True
    req_body: bool = True
    resp_headers: bool = True
    resp_body: bool = True


_ALL = Mask()
_NO_ANSWER = Mask(resp_body=False)  # audio and images out
_NO_QUESTION = Mask(req_body=False)  # uploads in
_HEADERS = Mask(req_body=False, resp_body=False)

MASKS: Mapping[str, Mask] = {
    "/v1/audio/speech": _NO_ANSWER,
    "/v1/audio/voices": _NO_QUESTION,
    "/v1/audio/transcriptions": _NO_QUESTION,
    "/v1/images/generations": _NO_ANSWER,
    "/v1/images/edits": _HEADERS,
    "/sdapi/v1/txt2img": _NO_ANSWER,
    "/sdapi/v1/img2img": _HEADERS,
}


def mask_for(path: str) -> Mask:
    """The mask of a path as it was requested."""
    return MASKS.get(path, _ALL)


@frozen
class Capture:
    """The parts of one request; None is a part that was not kept, b"" one that was empty."""

    req_path: str
    req_headers: Mapping[str, str] | None
    req_body: bytes | None = field(repr=False)
    resp_headers: Mapping[str, str] | None
    resp_body: bytes | None = field(repr=False)

    def document(self, number: int) -> dict[str, Any]:
        """The JSON document of GET /api/captures/<id>."""
        return {
            "id": number,
            "req_path": self.req_path,
            "req_headers": self.req_headers,
            "req_body": _base64(self.req_body),
            "resp_headers": self.resp_headers,
            "resp_body": _base64(self.resp_body),
        }


def _base64(body: bytes | None) -> str | None:
    return None if body is None else base64.b64encode(body).decode("ascii")


def pack(capture: Capture, compressor: zstandard.ZstdCompressor) -> bytes:
    """One compressed blob; meant for a thread."""
    sizes = [None if body is None else len(body) for body in (capture.req_body, capture.resp_body)]
    head = json.dumps([capture.req_path, capture.req_headers, capture.resp_headers, sizes]).encode()
    return compressor.compress(
        len(head).to_bytes(4, "big") + head + (capture.req_body or b"") + (capture.resp_body or b"")
    )


def unpack(blob: bytes) -> Capture:
    """What `pack` packed."""
    raw = zstandard.ZstdDecompressor().decompress(blob)
    start = 4 + int.from_bytes(raw[:4], "big")
    path, req_headers, resp_headers, (asked, answered) = json.loads(raw[4:start])
    middle = start + (asked or 0)
    return Capture(
        req_path=path,
        req_headers=req_headers,
        req_body=None if asked is None else raw[start:middle],
        resp_headers=resp_headers,
        resp_body=None if answered is None else raw[middle : middle + answered],
    )


class Captures:
    """The shelf: compressed captures by row id, `mebibytes` of them (0 or less: none are kept)."""

    def __init__(self, mebibytes: int) -> None:
        self.budget = max(0, mebibytes) * MIB
        self.used = 0
        self._shelf: OrderedDict[int, bytes] = OrderedDict()

    @property
    def enabled(self) -> bool:
        """Whether anything is kept at all."""
        return self.budget > 0

    def put(self, number: int, blob: bytes) -> None:
        """Keep a packed capture; the oldest make room. One larger than the whole budget is not kept."""
        if len(blob) > self.budget:
            return
        while self.used + len(blob) > self.budget:
            _, oldest = self._shelf.popitem(last=False)
            self.used -= len(oldest)
        self._shelf[number] = blob
        self.used += len(blob)

    def has(self, number: int) -> bool:
        """Whether this row's capture is still here."""
        return number in self._shelf

    def get(self, number: int) -> Capture | None:
        """The capture of a row, None when it never was or went."""
        blob = self._shelf.get(number)
        return None if blob is None else unpack(blob)

    def resize(self, mebibytes: int) -> None:
        """A reload changed captureBuffer: what no longer fits goes, oldest first."""
        self.budget = max(0, mebibytes) * MIB
        while self.used > self.budget:
            _, oldest = self._shelf.popitem(last=False)
            self.used -= len(oldest)

    def clear(self) -> None:
        """Forget all of them."""
        self._shelf.clear()
        self.used = 0
