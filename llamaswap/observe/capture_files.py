"""Captures in files, so that they outlast memory and a restart; the oldest files are deleted beyond a size.

A file is one blob of captures as memory has it, so secrets are replaced in it already. Its name says which rows are in
it: `FIRST-BITS-ORIGIN.capture`, where bit n of the hexadecimal number BITS stands for the row FIRST + n, and ORIGIN for
the store that numbered the rows.
"""

from __future__ import annotations

import re
import threading
import zlib
from bisect import bisect_right, insort
from collections.abc import Callable, Sequence
from pathlib import Path

from attrs import define, field, frozen
from zstandard import ZstdError

from llamaswap.config.private_files import MAX_BYTES, PrivateFolder, private_folder
from llamaswap.observe.captures import Blob, Capture, unpack

MAX_FILES = 20_000  # each has a place in memory and in the folder
MAX_SPAN = 512  # rows from the first to the last of a file; a batch of rows has fewer
BLOCK = 4096  # bytes of a file system's block: a small file takes one
RETRY_DELAY = 5.0  # seconds between two tries of a folder that cannot be used

_NAME = re.compile(r"([0-9]{1,18})-([0-9a-f]{1,128})-([0-9a-f]{8})\.capture")
_INCOMPLETE = re.compile(_NAME.pattern + r"\.[0-9]+\.new")


@frozen(order=True)
class CaptureFile:
    """A file by its name. Those of the present store (`own`) come last, in the order of their rows."""

    own: bool
    first: int
    bits: int
    size: int
    name: str

    def has(self, number: int) -> bool:
        """Whether this row's capture is in it."""
        return self.own and 0 <= number - self.first < MAX_SPAN and bool(self.bits >> (number - self.first) & 1)


@define(eq=False)
class CaptureFiles:
    """The capture files of a folder, at most `limit` bytes. Only `has` may be called outside the worker thread.

    `store` is the path of the activity store, empty for memory: other stores number their rows differently. `early`
    says that no row has been numbered yet in memory; otherwise the numbers in the files that are found could be those
    of other rows. `report` gets a text when the folder begins to refuse, and when it works again; `seconds` is a
    monotonic clock.
    """

    folder: str
    limit: int
    store: str
    report: Callable[[str], object]
    seconds: Callable[[], float]
    early: bool = True
    _files: list[CaptureFile] | None = field(default=None, init=False)  # None: the folder has not been read
    _lock: threading.Lock = field(factory=threading.Lock, init=False)  # of `_files`
    _size: int = field(default=0, init=False)
    _found: int = field(default=0, init=False)
    _refused: bool = field(default=False, init=False)
    _retry_at: float = field(default=0.0, init=False)

    def has(self, number: int) -> bool:
        """Whether this row's capture is in a file."""
        return self._file_of(number) is not None

    def _file_of(self, number: int) -> CaptureFile | None:
        with self._lock:
            files = self._files or ()
            at = bisect_right(files, (True, number), key=lambda file: (file.own, file.first)) - 1
            return files[at] if at >= 0 and files[at].has(number) else None

    # -- on the worker thread ------------------------------------------------------------------------------

    def open(self) -> int:
        """Read the folder, if that was not done; returns the highest row in its files, above which rows must be
        numbered."""
        if self._files is None:
            self._use_folder(lambda folder: None)
        return self._found

    def write(self, blobs: Sequence[Blob]) -> None:
        """Write captures, and delete the oldest files for them. Never fails."""
        self._use_folder(lambda folder: self._write(folder, blobs))

    def read(self, number: int) -> Capture | None:
        """The capture of a row; None if there is none, or if its file cannot be read."""
        file = self._file_of(number)
        if file is None:
            return None
        try:
            with private_folder(Path(self.folder)) as folder:
                data = folder.read(file.name)
            rows = [file.first + offset for offset in range(file.bits.bit_length()) if file.bits >> offset & 1]
            return unpack(Blob(rows, data), number)
        except (OSError, ZstdError, ValueError, TypeError, LookupError) as error:
            self.report(f"capture {number} cannot be read from {self.folder}/{file.name}: {error}")
            return None

    def _use_folder(self, work: Callable[[PrivateFolder], None]) -> None:
        if self._refused and self.seconds() < self._retry_at:
            return
        try:
            with private_folder(Path(self.folder), make=True) as folder:
                if self._files is None:
                    self._read_names(folder)
                work(folder)
                self._delete_oldest(folder)
        except OSError as error:
            self._retry_at, self.early = self.seconds() + RETRY_DELAY, False
            if not self._refused:
                self._refused = True
                self.report(
                    f"captures cannot be written to {self.folder}: {error.strerror or error}; they are kept in memory "
                    "only until the folder can be used"
                )
        else:
            if self._refused:
                self._refused = False
                self.report(f"captures are written to {self.folder} again")

    def _read_names(self, folder: PrivateFolder) -> None:
        files = []
        for name in folder.names():
            match = _NAME.fullmatch(name)
            if match is not None:
                first, bits, ours = int(match[1]), int(match[2], 16), match[3] == self._origin
                known = ours and (self.early or bool(self.store))
                files.append(CaptureFile(known, first, bits, _blocks(folder.size(name)), name))
                if ours:
                    self._found = max(self._found, first + bits.bit_length() - 1)
            elif _INCOMPLETE.fullmatch(name):
                folder.remove(name)
        self._size = sum(file.size for file in files)
        with self._lock:
            self._files = sorted(files)

    def _write(self, folder: PrivateFolder, blobs: Sequence[Blob]) -> None:
        for blob in blobs:
            first, size = min(blob.numbers), _blocks(len(blob.data))
            bits = sum(1 << (number - first) for number in blob.numbers)
            if bits.bit_length() > MAX_SPAN or size > min(self.limit, MAX_BYTES):
                continue
            file = CaptureFile(True, first, bits, size, f"{first}-{bits:x}-{self._origin}.capture")
            folder.write(file.name, blob.data)
            self._size += size
            assert self._files is not None  # the names were read
            with self._lock:
                insort(self._files, file)

    def _delete_oldest(self, folder: PrivateFolder) -> None:
        assert self._files is not None  # the names were read
        while self._size > self.limit or len(self._files) > MAX_FILES:
            oldest = self._files[0]
            folder.remove(oldest.name)
            self._size -= oldest.size
            with self._lock:
                del self._files[0]

    @property
    def _origin(self) -> str:
        return f"{zlib.crc32(self.store.encode()):08x}"


def _blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
