"""The part of a response's body that is kept while it passes: all of a small one, both ends of a large one.

This module must not know what the bytes mean, except how to undo their content encoding.
"""

from __future__ import annotations

import zlib

from attrs import define, field

DOCUMENT_BOUND = 256 * 1024  # bytes; a chat response is far smaller, and of embeddings the ends contain the usage
DECODED_BOUND = 64 * 1024 * 1024  # bytes of a decoded response: only a decompression bomb is larger


class Undecodable(Exception):
    """The body does not fit its Content-Encoding; `str()` is the cause."""


@define(eq=False)
class HeadTailBuffer:
    """Keeps all bytes up to `bound`; of more bytes only the first and the last half of the bound."""

    bound: int = DOCUMENT_BOUND
    _head: bytearray = field(factory=bytearray, init=False)
    _tail: bytearray = field(factory=bytearray, init=False)

    def add(self, data: bytes) -> None:
        """Append bytes."""
        if not self._tail:
            self._head += data
            if len(self._head) > self.bound:
                self._split()
            return
        self._tail += data
        if len(self._tail) > self.bound:
            del self._tail[: -self.bound // 2]

    def take_over(self, data: bytearray) -> None:
        """Begin with `data`, which belongs to this buffer from now on: it is not copied as a whole."""
        self._head = data
        if len(data) > self.bound:
            self._split()

    def _split(self) -> None:
        half = self.bound // 2
        self._tail = self._head[-half:]
        del self._head[half:]

    @property
    def complete(self) -> bool:
        """Whether all bytes were kept."""
        return not self._tail

    def content(self) -> bytes:
        """The kept bytes: the whole body, or its two ends side by side."""
        return bytes(self._head) + bytes(self._tail)


def decoded(body: bytes, encoding: str) -> bytes:
    """The body without its content encoding: gzip, deflate (raw or zlib-wrapped); any other is taken literally."""
    encoding = encoding.strip().lower()
    if encoding not in ("gzip", "deflate") or not body:
        return body
    if encoding == "gzip":
        return _members(body)
    # "deflate" is zlib-wrapped by the standard, but often sent raw. The wrapper is recognised by its checksum; a raw
    # stream that looks like a wrapped one is decoded as raw after that fails.
    wrapped = len(body) > 1 and body[0] & 0x0F == 8 and int.from_bytes(body[:2], "big") % 31 == 0
    if wrapped:
        try:
            return _inflate(body, zlib.MAX_WBITS)[0]
        except Undecodable:
            pass
    return _inflate(body, -zlib.MAX_WBITS)[0]


def _members(body: bytes) -> bytes:
    """A gzip file is one or more members, one after another."""
    content = bytearray()
    while body:
        part, body = _inflate(body, 16 + zlib.MAX_WBITS, DECODED_BOUND - len(content))
        content += part
    return bytes(content)


def _inflate(body: bytes, wbits: int, bound: int = DECODED_BOUND) -> tuple[bytes, bytes]:
    decoder = zlib.decompressobj(wbits)
    try:
        # 0 would mean no bound.
        result = decoder.decompress(body, max(bound, 1))
    except zlib.error as error:
        raise Undecodable(str(error)) from error
    if decoder.unconsumed_tail and not decoder.eof:
        raise Undecodable(f"larger than {DECODED_BOUND} bytes")
    if not decoder.eof:
        raise Undecodable("unexpected end of data")
    return result, decoder.unused_data
