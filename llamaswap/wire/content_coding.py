"""Undoes content codings: gzip, deflate and zstd, with a limit on the size of the result."""

from __future__ import annotations

import zlib

import zstandard

_ZSTD_STEP = 512  # bytes; a block of four bytes may decode to 128 KiB, so this bounds one step to 16 MiB
CODINGS = frozenset(("gzip", "x-gzip", "deflate", "zstd"))


class Undecodable(Exception):
    """The body does not fit its Content-Encoding; `str()` is the cause."""


def decode(body: bytes, coding: str, limit: int) -> bytes:
    """The body without its coding; a coding that is not among CODINGS leaves it as it is.

    Raises Undecodable if the body is malformed, incomplete, or has more than `limit` bytes when decoded.
    """
    coding = coding.strip().lower()
    if coding not in CODINGS or not body:
        return body
    if coding == "zstd":
        return _zstd(body, limit)
    if coding == "deflate":
        return _deflate(body, limit)
    content = bytearray()
    while body:  # a gzip file has one or more members
        part, body = _inflate(body, 16 + zlib.MAX_WBITS, limit - len(content), limit)
        content += part
    return bytes(content)


def _deflate(body: bytes, limit: int) -> bytes:
    # "deflate" is zlib-wrapped by the standard, but often sent raw. The wrapper is recognised by its checksum; a raw
    # stream that looks like a wrapped one is decoded as raw after that fails.
    wrapped = len(body) > 1 and body[0] & 0x0F == 8 and int.from_bytes(body[:2], "big") % 31 == 0
    if wrapped:
        try:
            return _inflate(body, zlib.MAX_WBITS, limit, limit)[0]
        except Undecodable:
            pass
    return _inflate(body, -zlib.MAX_WBITS, limit, limit)[0]


def _inflate(body: bytes, window: int, left: int, limit: int) -> tuple[bytes, bytes]:
    decoder = zlib.decompressobj(window)
    try:
        result = decoder.decompress(body, max(left, 1))  # 0 would mean no limit
    except zlib.error as error:
        raise Undecodable(str(error)) from error
    if decoder.unconsumed_tail and not decoder.eof:
        raise Undecodable(f"larger than {limit} bytes")
    if not decoder.eof:
        raise Undecodable("unexpected end of data")
    return result, decoder.unused_data


def _zstd(body: bytes, limit: int) -> bytes:
    content, at = bytearray(), 0
    decoder = zstandard.ZstdDecompressor().decompressobj()
    try:
        while at < len(body):
            if decoder.eof:  # several frames may follow each other
                decoder = zstandard.ZstdDecompressor().decompressobj()
            piece = body[at : at + _ZSTD_STEP]
            content += decoder.decompress(piece)
            at += len(piece) - len(decoder.unused_data)
            if len(content) > limit:
                raise Undecodable(f"larger than {limit} bytes")
    except zstandard.ZstdError as error:
        raise Undecodable(str(error)) from error
    if not decoder.eof:
        raise Undecodable("unexpected end of data")
    return bytes(content)
