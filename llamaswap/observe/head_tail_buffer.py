"""The part of a response's body that is kept while it passes: all of a small one, both ends of a large one."""

from __future__ import annotations

from attrs import define, field

DOCUMENT_BOUND = 256 * 1024  # bytes; a chat response is far smaller, and of embeddings the ends contain the usage


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
