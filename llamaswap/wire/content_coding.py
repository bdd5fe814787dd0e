"""Undoes content codings: gzip, deflate and zstd, in bounded steps and with a limit on the size of the result."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import partial
from io import BytesIO
from typing import Protocol

import zstandard

CODINGS = frozenset(("gzip", "x-gzip", "deflate", "zstd"))
MEMBERS = 10_000  # gzip members or zstd frames of one body: each costs time, however little it holds
PART = 4 * 1024 * 1024  # bytes of the result, or of the body, that one call of `advance` goes beyond at most once
_PIECE = 512  # bytes; a zstd block of four bytes may decode to 128 KiB, so this bounds one piece to 16 MiB


class Undecodable(Exception):
    """The body does not fit its Content-Encoding; `str()` is the cause."""


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


class Decoding:
    """The decoding of one body, part by part, so that its caller can do other things and count bytes between the parts.

    `coding` is one of CODINGS. `size` is how many bytes there are so far.
    """

    def __init__(self, body: bytes, coding: str, limit: int) -> None:
        self.done = not body
        self.size = 0
        self._body = body
        self._at = 0
        self._limit = limit
        self._members = 1
        self._content = BytesIO()  # it gives its content without a copy
        self._single = coding == "deflate"
        self._new: Callable[[], _Decompressor]
        if coding == "zstd":
            self._new = _zstd
        else:
            self._new = partial(zlib.decompressobj, _deflate_window(body) if self._single else 16 + zlib.MAX_WBITS)
        self._decompressor = self._new()

    def advance(self) -> None:
        """Decode the next part. Raises Undecodable if the body is malformed, incomplete, or too large when decoded."""
        size, at = self.size + PART, self._at + PART
        try:
            while not self.done and self.size < size and self._at < at:
                self._decode_piece()
        except (zlib.error, zstandard.ZstdError, Undecodable) as error:
            self._body, self._content = b"", BytesIO()  # the traceback keeps this object for a while
            raise Undecodable(str(error)) from error

    def _decode_piece(self) -> None:
        if self._decompressor.eof:  # a gzip file has one or more members, and so has a zstd file
            self._members += 1
            if self._members > MEMBERS:
                raise Undecodable(f"more than {MEMBERS} members")
            self._decompressor = self._new()
        decompressor = self._decompressor
        piece = self._body[self._at : self._at + _PIECE]
        self.size += self._content.write(decompressor.decompress(piece))
        if self.size > self._limit:
            raise Undecodable(f"larger than {self._limit} bytes")
        self._at += len(piece) - len(decompressor.unused_data)
        ended = self._at >= len(self._body)
        if ended and not decompressor.eof:
            raise Undecodable("unexpected end of data")
        self.done = ended or (self._single and decompressor.eof)

    @property
    def result(self) -> bytes:
        """The body without its coding, after `done`."""
        return self._content.getvalue()


def decode(body: bytes, coding: str, limit: int) -> bytes:
    """The body without its coding; a coding that is not among CODINGS leaves it as it is.

    Raises Undecodable if the body is malformed, incomplete, or has more than `limit` bytes when decoded.
    """
    coding = coding.strip().lower()
    if coding not in CODINGS:
        return body
    decoding = Decoding(body, coding, limit)
    while not decoding.done:
        decoding.advance()
    return decoding.result


def _zstd() -> _Decompressor:
    return zstandard.ZstdDecompressor().decompressobj()


def _deflate_window(body: bytes) -> int:
    """The window of a "deflate" body: zlib-wrapped by the standard, but often sent raw."""
    wrapped = len(body) > 1 and body[0] & 0x0F == 8 and int.from_bytes(body[:2], "big") % 31 == 0
    return zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS
