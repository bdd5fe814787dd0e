"""Reads the header of a GGUF file: its metadata, and the size of each tensor.

Files come from anywhere, so counts, lengths and the size of the header are bounded. Texts and long arrays, which are
the vocabulary, are skipped: only their lengths are known afterwards.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Mapping
from io import FileIO
from pathlib import Path

from attrs import Factory, define, field, frozen

HEADER_LIMIT = 32 * 1024 * 1024  # bytes; the largest vocabularies take about 15 MiB
ENTRY_LIMIT = 20_000  # entries of the metadata
TENSOR_LIMIT = 200_000
SHARD_LIMIT = 1_000
TEXT_LIMIT = 1024  # bytes of a name or of a text that is kept
LAYER_LIMIT = 1024
ARRAY_LIMIT = LAYER_LIMIT  # numbers of an array that is kept: one for each layer
NUMBER_LIMIT = 65536  # numbers that are kept of all arrays
PIECE = 1024 * 1024  # bytes read at a time
MAGIC = b"GGUF"
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
_LENGTH = struct.Struct("<Q")
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
Value = int | float | bool | str | tuple[int | float | bool, ...]


class GgufError(ValueError):
    """The file is not a GGUF file that can be read; the text says why."""


@frozen
class Tensor:
    """A tensor: its dimensions, the number of its type, and its bytes in the file."""

    shape: tuple[int, ...]
    kind: int
    size: int


@frozen
class Gguf:
    """The header of a model's files, of all shards together. `lengths` has the length of each array."""

    metadata: Mapping[str, Value]
    lengths: Mapping[str, int] = Factory(dict)
    tensors: Mapping[str, Tensor] = Factory(dict)

    @property
    def architecture(self) -> str:
        """The name of the architecture, which begins its own keys."""
        return str(self.metadata.get("general.architecture", ""))

    @property
    def layers(self) -> int:
        """The number of layers."""
        return self.number("block_count")

    def number(self, key: str, default: int = 0) -> int:
        """A number of the architecture, not negative; the largest one if each layer has its own."""
        value = self.metadata.get(f"{self.architecture}.{key}")
        if isinstance(value, tuple):
            value = max(value, default=default)
        return max(0, int(value)) if isinstance(value, int) else default

    def numbers(self, key: str, default: int = 0) -> list[int]:
        """A number of the architecture for each layer."""
        value = self.metadata.get(f"{self.architecture}.{key}")
        if not isinstance(value, tuple):
            return [self.number(key, default)] * self.layers
        given = [max(0, int(item)) for item in value[: self.layers]]
        return given + [given[-1] if given else default] * (self.layers - len(given))


def is_gguf(path: Path) -> bool:
    """Whether the file can be read and begins like a GGUF file."""
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except (OSError, ValueError):
        return False


def shards(path: Path) -> list[Path]:
    """All files of a model, of which `path` is one."""
    found = _SHARD.search(path.name)
    if found is None:
        return [path]
    count = int(found[2])
    if not 0 < count <= SHARD_LIMIT:
        raise GgufError(f"{path.name} says that it is one of {count} files")
    stem = path.name[: found.start()]
    return [path.with_name(f"{stem}-{number:05d}-of-{found[2]}.gguf") for number in range(1, count + 1)]


def read(path: Path) -> Gguf:
    """The header of a model. Blocks. Raises GgufError or OSError, which is also what a missing shard raises."""
    first, *more = (_read_file(shard) for shard in shards(path))
    if first.layers > LAYER_LIMIT:
        raise GgufError(f"the header says that the model has {first.layers} layers")
    if not more:
        return first
    tensors = dict(first.tensors)
    for shard in more:
        tensors.update(shard.tensors)
    return Gguf(first.metadata, first.lengths, tensors)


def _read_file(path: Path) -> Gguf:
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        return _HeaderReader(file).header(size)


@define(eq=False)
class _HeaderReader:
    """Reads a header in pieces; no more than one piece and one text are in memory."""

    _file: FileIO
    _buffer: bytes = field(default=b"", init=False)
    _at: int = field(default=0, init=False)
    _before: int = field(default=0, init=False)  # bytes of the file before the buffer
    _kept: int = field(default=0, init=False)  # numbers of arrays

    def header(self, size: int) -> Gguf:
        """The header of a file of `size` bytes."""
        if self._take(4) != MAGIC:
            raise GgufError("not a GGUF file")
        version = self._number("I")
        if version not in (2, 3):
            raise GgufError(f"GGUF version {version} is unknown" if version < 1 << 16 else "the file is big-endian")
        tensors, entries = self._number("Q"), self._number("Q")
        if tensors > TENSOR_LIMIT or entries > ENTRY_LIMIT:
            raise GgufError(f"the header counts {tensors} tensors and {entries} entries")
        metadata: dict[str, Value] = {}
        lengths: dict[str, int] = {}
        for _ in range(entries):
            name = self._text("the name of an entry")
            value = self._value(self._number("I"), name, lengths)
            if value is not None:
                metadata[name] = value
        return Gguf(metadata, lengths, self._tensors(tensors, metadata.get("general.alignment", 32), size))

    def _tensors(self, count: int, alignment: Value, size: int) -> dict[str, Tensor]:
        """The tensors. A tensor ends where the next one begins, so that new types need no table of sizes."""
        found: list[tuple[int, str, tuple[int, ...], int]] = []
        for _ in range(count):
            name = self._text("the name of a tensor")
            dimensions = self._number("I")
            if dimensions > 8:
                raise GgufError(f"tensor {name} has {dimensions} dimensions")
            shape = tuple(self._number("Q") for _ in range(dimensions))
            kind, offset = self._number("I"), self._number("Q")
            found.append((offset, name, shape, kind))
        step = alignment if isinstance(alignment, int) and alignment > 0 else 32
        data = size - -(-(self._before + self._at) // step) * step
        found.sort()
        if found and found[-1][0] > data:
            raise GgufError(f"the file is incomplete: {max(data, 0)} bytes of tensors, of more than {found[-1][0]}")
        ends = [*(offset for offset, _, _, _ in found[1:]), data]
        return {
            name: Tensor(shape, kind, end - offset)
            for (offset, name, shape, kind), end in zip(found, ends, strict=False)
        }

    def _value(self, kind: int, name: str, lengths: dict[str, int]) -> Value | None:
        """The value of an entry, None if it is too long to be kept."""
        if kind == _TEXT:
            length = self._number("Q")
            if length > TEXT_LIMIT:
                self._skip(length)
                return None
            return self._take(length).decode("utf-8", "replace")
        if kind != _ARRAY:
            return self._scalar(kind)
        item, length = self._number("I"), self._number("Q")
        lengths[name] = length
        if item == _TEXT:
            self._skip_texts(length)
            return None
        if item not in _SCALARS:
            raise GgufError(f"{name} is an array of the unknown type {item}")
        width = struct.calcsize("<" + _SCALARS[item])
        if length > ARRAY_LIMIT or self._kept + length > NUMBER_LIMIT:
            self._skip(length * width)
            return None
        self._kept += length
        return struct.unpack(f"<{length}{_SCALARS[item]}", self._take(length * width))

    def _scalar(self, kind: int) -> int | float | bool:
        if kind not in _SCALARS:
            raise GgufError(f"the metadata has a value of the unknown type {kind}")
        code = "<" + _SCALARS[kind]
        value: int | float | bool = struct.unpack(code, self._take(struct.calcsize(code)))[0]
        return value

    def _number(self, code: str) -> int:
        number: int = struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))[0]
        return number

    def _text(self, what: str) -> str:
        length = self._number("Q")
        if length > TEXT_LIMIT:
            raise GgufError(f"{what} has {length} bytes")
        return self._take(length).decode("utf-8", "replace")

    def _take(self, length: int) -> bytes:
        end = self._at + length
        if end > len(self._buffer):
            self._fill(length)
            end = length
        taken = self._buffer[self._at : end]
        self._at = end
        return taken

    def _fill(self, wanted: int) -> None:
        """Read on, so that `wanted` bytes are in the buffer, from its start."""
        position = self._before + self._at
        if position + wanted > HEADER_LIMIT:
            raise GgufError(f"the header is larger than {HEADER_LIMIT} bytes")
        self._file.seek(position)
        pieces, length = [], 0
        while length < wanted:
            piece = self._file.read(max(PIECE, wanted - length))
            if not piece:
                raise GgufError("the file ends within its header")
            pieces.append(piece)
            length += len(piece)
        self._buffer, self._at, self._before = b"".join(pieces), 0, position

    def _skip(self, length: int) -> None:
        if self._before + self._at + length > HEADER_LIMIT:
            raise GgufError(f"the header is larger than {HEADER_LIMIT} bytes")
        self._at += length
        if self._at > len(self._buffer):
            self._fill(0)

    def _skip_texts(self, count: int) -> None:
        """Skip an array of texts; a vocabulary has some hundred thousand, so that this is the loop that takes time."""
        length_at = _LENGTH.unpack_from
        while count:
            buffer, at, last = self._buffer, self._at, len(self._buffer) - 8
            while count and at <= last:
                at += 8 + length_at(buffer, at)[0]
                count -= 1
            self._at = at
            if count:
                self._fill(8)
