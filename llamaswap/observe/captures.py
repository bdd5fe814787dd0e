"""Whole requests and responses, compressed in memory within a budget. The oldest are dropped first.

This module decides what is kept of which path. It must not know the activity store: a capture's id is that of its row.
Captures that ended at the same time are compressed together, because they resemble each other: that takes a tenth of
the time.
"""

from __future__ import annotations

import base64
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence

import zstandard
from attrs import define, field

from llamaswap.wire.byte_budget import MIB
from llamaswap.wire.model_routes import MODEL_ROUTES

LEVEL = 1  # of compression: a capture is read seldom and written with every request
BLOB_CAPTURES = 64  # captures in one blob; a blob is also what is dropped at once
BLOB_BYTES = 128 * 1024  # of their bodies; a larger capture is a blob alone
ENTRY_BYTES = 128  # memory for a capture's place in the table, beside its own bytes


# The paths whose captures lack a body; the headers are always kept.
WITHOUT_REQUEST_BODY = frozenset(route.path for route in MODEL_ROUTES if not route.keep_request)
WITHOUT_RESPONSE_BODY = frozenset(route.path for route in MODEL_ROUTES if not route.keep_response)


@define  # not frozen: each request makes one, and freezing doubles what that costs
class Capture:
    """The parts of one request; None is a part that was not kept, b"" one that was empty."""

    req_path: str
    req_headers: Mapping[str, str] | None
    req_body: bytes | None = field(repr=False)
    resp_headers: Mapping[str, str] | None
    resp_body: bytes | None = field(repr=False)

    def document(self, number: int) -> dict[str, object]:
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


@define(eq=False)
class Blob:
    """Some captures, compressed together; `numbers` are their rows' ids, in the same order."""

    numbers: Sequence[int]
    data: bytes = field(repr=False)

    @property
    def size(self) -> int:
        """Bytes of memory that it takes."""
        return len(self.data) + ENTRY_BYTES * len(self.numbers)


def bundles(captures: Sequence[tuple[int, Capture]]) -> Iterator[Sequence[tuple[int, Capture]]]:
    """Neighbouring captures to compress together, up to a number and a size."""
    begin = size = 0
    for at, (_, capture) in enumerate(captures):
        more = len(capture.req_body or b"") + len(capture.resp_body or b"")
        if at > begin and (at - begin >= BLOB_CAPTURES or size + more > BLOB_BYTES):
            yield captures[begin:at]
            begin, size = at, 0
        size += more
    if begin < len(captures):
        yield captures[begin:]


def pack(captures: Sequence[tuple[int, Capture]], compressor: zstandard.ZstdCompressor) -> Blob:
    """(row id, capture) pairs as one blob; meant for a thread."""
    heads: list[object] = []
    bodies: list[bytes] = []
    for _, capture in captures:
        request, response = capture.req_body, capture.resp_body
        sizes = (None if request is None else len(request), None if response is None else len(response))
        heads.append((capture.req_path, capture.req_headers, capture.resp_headers, sizes))
        bodies += (request or b"", response or b"")
    head = _ENCODE(heads).encode()
    data = compressor.compress(b"".join((len(head).to_bytes(4, "big"), head, *bodies)))
    # Copied, because the compressor's result keeps the memory of the worst case, a hundred times as much.
    return Blob([number for number, _ in captures], bytes(memoryview(data)))


_ENCODE = json.JSONEncoder(separators=(",", ":")).encode


def unpack(blob: Blob, number: int) -> Capture:
    """One of the captures that `pack` packed."""
    raw = zstandard.ZstdDecompressor().decompress(blob.data)
    start = 4 + int.from_bytes(raw[:4], "big")
    wanted = blob.numbers.index(number)
    for at, (path, req_headers, resp_headers, (request, response)) in enumerate(json.loads(raw[4:start])):
        middle = start + (request or 0)
        end = middle + (response or 0)
        if at == wanted:
            return Capture(
                req_path=path,
                req_headers=req_headers,
                req_body=None if request is None else raw[start:middle],
                resp_headers=resp_headers,
                resp_body=None if response is None else raw[middle:end],
            )
        start = end
    raise KeyError(number)


class Captures:
    """Compressed captures by row id, `mebibytes` of them (0 or less: none are kept)."""

    def __init__(self, mebibytes: int) -> None:
        self.budget = max(0, mebibytes) * MIB
        self.used = 0
        self._blobs: deque[Blob] = deque()
        self._by_number: dict[int, Blob] = {}

    @property
    def enabled(self) -> bool:
        """Whether captures are kept."""
        return self.budget > 0

    def put(self, blob: Blob) -> None:
        """Keep packed captures and drop the oldest for them. A blob larger than the whole budget is not kept."""
        size = blob.size
        if size > self.budget:
            return
        self._shrink(self.budget - size)
        self._blobs.append(blob)
        self.used += size
        for number in blob.numbers:
            self._by_number[number] = blob

    def has(self, number: int) -> bool:
        """Whether this row's capture is kept."""
        return number in self._by_number

    def get(self, number: int) -> Capture | None:
        """The capture of a row, None if there never was one or it was dropped."""
        blob = self._by_number.get(number)
        return None if blob is None else unpack(blob, number)

    def resize(self, mebibytes: int) -> None:
        """A reload changed captureBuffer: drop the oldest that do not fit any more."""
        self.budget = max(0, mebibytes) * MIB
        self._shrink(self.budget)

    def clear(self) -> None:
        """Drop all captures."""
        self._blobs.clear()
        self._by_number.clear()
        self.used = 0

    def _shrink(self, bound: int) -> None:
        while self.used > bound:
            oldest = self._blobs.popleft()
            self.used -= oldest.size
            for number in oldest.numbers:
                self._by_number.pop(number, None)
