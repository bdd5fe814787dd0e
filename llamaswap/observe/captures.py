"""Whole requests and answers, kept compressed in memory within a budget, oldest out first.

What is kept of which path, and that secrets never are, is decided here. Must not know the activity store:
a capture's id is whatever its row got. Captures that were finished in the same moment are compressed as one: that
costs a tenth, and they resemble each other.
"""

from __future__ import annotations

import base64
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import zstandard
from attrs import define, field, frozen

from llamaswap.wire.model_routes import MODEL_ROUTES

LEVEL = 1  # a capture is read seldom and written with every request
TOGETHER = 64  # captures in one blob, which is also what goes out at once when room is needed
TOGETHER_BYTES = 128 * 1024  # of their bodies; what is larger is a blob of its own
KEPT = 128  # bytes that finding a capture again takes, beside its own
MIB = 1024 * 1024


@frozen
class Mask:
    """Which bodies are kept; the headers always are."""

    request: bool = True
    response: bool = True


_ALL = Mask()
_MASKS = {route.path: Mask(route.keep_request, route.keep_response) for route in MODEL_ROUTES}


def mask_for(path: str) -> Mask:
    """The mask of a path as it was requested."""
    return _MASKS.get(path, _ALL)


@define  # not frozen: each request makes one, and freezing doubles what that costs
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


@define(eq=False)
class Blob:
    """Some captures, compressed together; `numbers` are their rows' ids, in the same order."""

    numbers: Sequence[int]
    data: bytes = field(repr=False)

    @property
    def size(self) -> int:
        """Bytes that keeping it takes."""
        return len(self.data) + KEPT * len(self.numbers)


def bundles(captures: Sequence[tuple[int, Capture]]) -> Iterator[Sequence[tuple[int, Capture]]]:
    """What to compress together: neighbours, up to a number and a size."""
    begin = size = 0
    for at, (_, capture) in enumerate(captures):
        more = len(capture.req_body or b"") + len(capture.resp_body or b"")
        if at > begin and (at - begin >= TOGETHER or size + more > TOGETHER_BYTES):
            yield captures[begin:at]
            begin, size = at, 0
        size += more
    if begin < len(captures):
        yield captures[begin:]


def pack(captures: Sequence[tuple[int, Capture]], compressor: zstandard.ZstdCompressor) -> Blob:
    """(row id, capture) pairs as one blob; meant for a thread."""
    heads: list[Any] = []
    bodies: list[bytes] = []
    for _, capture in captures:
        asked, answered = capture.req_body, capture.resp_body
        sizes = (None if asked is None else len(asked), None if answered is None else len(answered))
        heads.append((capture.req_path, capture.req_headers, capture.resp_headers, sizes))
        bodies += (asked or b"", answered or b"")
    head = _ENCODE(heads).encode()
    data = compressor.compress(b"".join((len(head).to_bytes(4, "big"), head, *bodies)))
    # Copied: the compressor's own result keeps the room that the worst case would have needed, a hundred times as much.
    return Blob([number for number, _ in captures], bytes(memoryview(data)))


_ENCODE = json.JSONEncoder(separators=(",", ":")).encode


def unpack(blob: Blob, number: int) -> Capture:
    """One of those that `pack` packed."""
    raw = zstandard.ZstdDecompressor().decompress(blob.data)
    start = 4 + int.from_bytes(raw[:4], "big")
    wanted = blob.numbers.index(number)
    for at, (path, req_headers, resp_headers, (asked, answered)) in enumerate(json.loads(raw[4:start])):
        middle = start + (asked or 0)
        end = middle + (answered or 0)
        if at == wanted:
            return Capture(
                req_path=path,
                req_headers=req_headers,
                req_body=None if asked is None else raw[start:middle],
                resp_headers=resp_headers,
                resp_body=None if answered is None else raw[middle:end],
            )
        start = end
    raise KeyError(number)


class Captures:
    """The shelf: compressed captures by row id, `mebibytes` of them (0 or less: none are kept)."""

    def __init__(self, mebibytes: int) -> None:
        self.budget = max(0, mebibytes) * MIB
        self.used = 0
        self._shelf: deque[Blob] = deque()
        self._where: dict[int, Blob] = {}

    @property
    def enabled(self) -> bool:
        """Whether anything is kept at all."""
        return self.budget > 0

    def put(self, blob: Blob) -> None:
        """Keep packed captures; the oldest make room. A blob larger than the whole budget is not kept."""
        size = blob.size
        if size > self.budget:
            return
        self._shrink(self.budget - size)
        self._shelf.append(blob)
        self.used += size
        for number in blob.numbers:
            self._where[number] = blob

    def has(self, number: int) -> bool:
        """Whether this row's capture is still here."""
        return number in self._where

    def get(self, number: int) -> Capture | None:
        """The capture of a row, None when it never was or went."""
        blob = self._where.get(number)
        return None if blob is None else unpack(blob, number)

    def resize(self, mebibytes: int) -> None:
        """A reload changed captureBuffer: what no longer fits goes, oldest first."""
        self.budget = max(0, mebibytes) * MIB
        self._shrink(self.budget)

    def clear(self) -> None:
        """Forget all of them."""
        self._shelf.clear()
        self._where.clear()
        self.used = 0

    def _shrink(self, bound: int) -> None:
        while self.used > bound:
            oldest = self._shelf.popleft()
            self.used -= oldest.size
            for number in oldest.numbers:
                self._where.pop(number, None)
