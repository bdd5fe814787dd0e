"""What of an answer's body is held while it passes: all of a small one, the two ends of a large one.

Memory is bounded per request here and over all requests by a `CaptureBudget`; must not know what the bytes mean,
except how to undo their content encoding.
"""

from __future__ import annotations

import zlib

from attrs import define, field

DOCUMENT_BOUND = 256 * 1024  # a chat answer is far below; embeddings above keep their ends, where usage stands
DECODED_BOUND = 64 * 1024 * 1024  # of a compressed answer: nothing honest is larger, a bomb is


class Undecodable(Exception):
    """The body is not what its Content-Encoding says; `str()` is the cause."""


@define
class CaptureBudget:
    """Bytes that all requests together may hold; `most` of them one alone."""

    bound: int
    used: int = 0

    @property
    def most(self) -> int:
        """Half of them."""
        return self.bound // 2

    def take(self, count: int) -> bool:
        """Whether `count` more may be held; if so they are."""
        if self.used + count > self.bound:
            return False
        self.used += count
        return True

    def give_back(self, count: int) -> None:
        """They are held no more."""
        self.used -= count


@define(eq=False)
class HeadTailBuffer:
    """Holds what is added; beyond `bound` bytes only the first and the last half of the bound."""

    bound: int = DOCUMENT_BOUND
    size: int = field(default=0, init=False)
    _head: bytearray = field(factory=bytearray, init=False)
    _tail: bytearray = field(factory=bytearray, init=False)

    def add(self, data: bytes) -> None:
        """Some more bytes."""
        self.size += len(data)
        if not self._tail:
            self._head += data
            if len(self._head) > self.bound:
                half = self.bound // 2
                self._tail = self._head[-half:]
                del self._head[half:]
            return
        self._tail += data
        if len(self._tail) > self.bound:
            del self._tail[: -self.bound // 2]

    def take_over(self, data: bytearray) -> None:
        """What somebody else has held so far, the first bytes there are; what is not kept of it is not copied."""
        self.size += len(data)
        if len(data) <= self.bound:
            self._head = data
            return
        half = self.bound // 2
        self._tail = data[-half:]
        del data[half:]
        self._head = data

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return not self._tail

    def content(self) -> bytes:
        """Everything held: the whole body, or its two ends side by side."""
        return bytes(self._head) + bytes(self._tail)


def decoded(body: bytes, encoding: str) -> bytes:
    """The body without its content encoding: gzip, deflate (raw or zlib-wrapped); any other is taken literally."""
    encoding = encoding.strip().lower()
    if encoding not in ("gzip", "deflate") or not body:
        return body
    if encoding == "gzip":
        return _members(body)
    # "deflate" is zlib-wrapped by the letter and raw in the field. The wrapper is recognised by its check sum;
    # a raw stream that happens to look like one is tried raw when the wrapped reading fails.
    wrapped = len(body) > 1 and body[0] & 0x0F == 8 and int.from_bytes(body[:2], "big") % 31 == 0
    if wrapped:
        try:
            return _inflate(body, zlib.MAX_WBITS)[0]
        except Undecodable:
            pass
    return _inflate(body, -zlib.MAX_WBITS)[0]


def _members(body: bytes) -> bytes:
    """A gzip file is one or more members, one after another."""
    parts: list[bytes] = []
    held = 0
    while body:
        part, body = _inflate(body, 16 + zlib.MAX_WBITS, DECODED_BOUND - held)
        held += len(part)
        parts.append(part)
    return b"".join(parts)


def _inflate(body: bytes, wbits: int, bound: int = DECODED_BOUND) -> tuple[bytes, bytes]:
    decoder = zlib.decompressobj(wbits)
    try:
        # A bound of 0 would mean none.
        result = decoder.decompress(body, max(bound, 1))
    except zlib.error as error:
        raise Undecodable(str(error)) from error
    if decoder.unconsumed_tail and not decoder.eof:
        raise Undecodable(f"larger than {DECODED_BOUND} bytes")
    if not decoder.eof:
        raise Undecodable("unexpected end of data")
    return result, decoder.unused_data
