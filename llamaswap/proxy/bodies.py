"""Request bodies that are complete, in memory or in a file, and can be read any number of times."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from io import BytesIO
from itertools import accumulate
from tempfile import TemporaryFile
from typing import IO, Any

from attrs import define
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from zope.interface import implementer

from llamaswap.errors import BodyTooLarge, NoRoom
from llamaswap.proxy.exchange import BodyConsumer, BodySource
from llamaswap.wire.byte_budget import ByteBudget


@implementer(IPushProducer)
class _Done:
    """The producer of a body that has been fed completely."""

    def pauseProducing(self) -> None:
        """There is no more to come."""

    def resumeProducing(self) -> None:
        """There is no more to come."""

    def stopProducing(self) -> None:
        """There is no more to come."""


FED = _Done()


PIECE_SIZE = 64 * 1024
BODY_COPIES = 3  # copies of a body that was read whole: as received, as edited, and in the connection's buffer
SITE_MEMORY = 100_000  # bytes of a body for the site that are kept in memory, as twisted.web does
FEED_LIMIT = 1024 * 1024  # bytes fed at once; then other connections are served


class PiecesFile:
    """Reads pieces of bytes one after another, like a file of `size` bytes."""

    def __init__(self, pieces: Sequence[bytes | memoryview]) -> None:
        self._pieces = [memoryview(piece) for piece in pieces if piece]
        self._starts = list(accumulate((len(piece) for piece in self._pieces), initial=0))
        self.size = self._starts.pop()
        self._at = 0

    def seek(self, at: int) -> None:
        """The next read begins at this byte."""
        self._at = at

    def read(self, most: int) -> bytes:
        """Up to so many bytes, of one piece; empty at the end."""
        if self._at >= self.size:
            return b""
        number = bisect_right(self._starts, self._at) - 1
        begin = self._at - self._starts[number]
        data = bytes(self._pieces[number][begin : begin + most])
        self._at += len(data)
        return data


@implementer(IPushProducer)
class FileFeed:
    """Feeds a consumer from a file of known size, a piece at a time, until it is paused, stopped or at the end."""

    def __init__(self, clock: IReactorTime, file: IO[bytes] | PiecesFile, size: int, consumer: BodyConsumer) -> None:
        self._clock = clock
        self._file = file
        self._size = size
        self._consumer = consumer
        self._at = 0
        self._paused = False
        self._stopped = False
        self._running = False
        self._later: IDelayedCall | None = None

    def run(self) -> None:
        """Feed now, up to FEED_LIMIT bytes."""
        if self._running:
            return
        self._running = True
        budget = FEED_LIMIT
        while not self._paused and not self._stopped and self._at < self._size and budget > 0:
            # Another reader may have moved the file's position since the last piece.
            self._file.seek(self._at)
            data = self._file.read(min(PIECE_SIZE, self._size - self._at))
            if not data:
                self._stopped = True
                self._consumer.body_lost()
                break
            self._at += len(data)
            budget -= len(data)
            self._consumer.body_data(data)
        self._running = False
        if self._paused or self._stopped:
            return
        if self._at >= self._size:
            self._stopped = True
            self._consumer.body_ended()
        elif self._later is None:
            self._later = self._clock.callLater(0, self._next_turn)

    def _next_turn(self) -> None:
        self._later = None
        self.run()

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        # Later, because the transport resumes us from within its own write.
        if not self._stopped and self._later is None:
            self._later = self._clock.callLater(0, self._next_turn)

    def stopProducing(self) -> None:
        self._stopped = True
        later, self._later = self._later, None
        if later is not None:
            later.cancel()


@define(eq=False)
class FileBody:
    """A body in a file that its owner has filled and will close.

    `reserve` takes memory for copies of the body, until the file is closed; it raises NoRoom.
    """

    _clock: IReactorTime
    _file: IO[bytes] | PiecesFile
    _size: int
    _reserve: Callable[[int], None] | None = None
    replayable: bool = True
    _feed: FileFeed | None = None
    _reserved: int = 0  # bytes for copies that are made elsewhere

    @property
    def length(self) -> int | None:
        """Its size in bytes."""
        return self._size

    def read_all(self, limit: int) -> Deferred[bytes]:
        """The whole body in memory."""
        if self._size > limit:
            return fail(BodyTooLarge(limit))
        if self._reserve is not None:
            try:
                self._reserve(self._size * BODY_COPIES)
            except NoRoom as error:
                return fail(error)
        self._file.seek(0)
        pieces = []
        while data := self._file.read(self._size):
            pieces.append(data)
        return succeed(b"".join(pieces))

    def edited(self, pieces: Sequence[bytes | memoryview]) -> FileBody:
        """A body of these pieces, which is fed like this one."""
        file = PiecesFile(pieces)
        return FileBody(self._clock, file, file.size)

    def reserve(self, count: int) -> None:
        """Take memory for copies of the body that are made elsewhere; raises NoRoom."""
        self._reserved += count
        if self._reserve is not None:
            self._reserve(self._size * BODY_COPIES + self._reserved)

    def start(self, consumer: BodyConsumer, *, keep: bool = True) -> IPushProducer:
        """Feed it piece by piece, as the consumer's back-pressure allows."""
        self.close()
        feed = self._feed = FileFeed(self._clock, self._file, self._size, consumer)
        feed.run()
        return feed

    def close(self) -> None:
        """Stop feeding; the owner closes the file."""
        feed, self._feed = self._feed, None
        if feed is not None:
            feed.stopProducing()


class SiteContent:
    """The body of a twisted.web request, file-like: in memory while it is small, then in a temporary file.

    If the disk is full, the body stays in memory as far as `memory` allows; then NoRoom is raised. `length` is the
    announced size, None if it is unknown.
    """

    def __init__(self, length: int | None, memory: ByteBudget, disk: ByteBudget) -> None:
        self._memory = memory
        self._disk = disk
        self._file: IO[bytes] = BytesIO()
        self._size = 0
        self._in_memory = 0  # bytes taken of each budget
        self._on_disk = 0
        self._reserved = 0
        if length is not None and length > SITE_MEMORY and max(disk.left, memory.left) < length:
            raise disk.full()

    def write(self, data: bytes) -> None:
        """Append some bytes."""
        size = self._size + len(data)
        if size > SITE_MEMORY and not self._on_disk and not self._in_memory:
            self._spool()
        if not (self._on_disk and self._written(data)):
            if self._on_disk:
                self._unspool()
            if size > SITE_MEMORY:
                self._take_memory(size - self._in_memory)
            self._file.write(data)
        self._size = size

    def reserve(self, count: int) -> None:
        """Have at least `count` bytes of memory for copies of the body, until it is closed; raises NoRoom."""
        more = count - self._reserved
        if more > 0:
            if not self._memory.take(more):
                raise self._memory.full()
            self._reserved = count

    def close(self) -> None:
        """Discard the body. Idempotent."""
        self._file.close()
        self._memory.give_back(self._in_memory + self._reserved)
        self._disk.give_back(self._on_disk)
        self._in_memory = self._on_disk = self._reserved = 0

    def __getattr__(self, name: str) -> Any:
        # read, seek, tell ...
        return getattr(self._file, name)

    def _spool(self) -> None:
        try:
            file = TemporaryFile(prefix="llamaswap-body-", buffering=0)  # noqa: SIM115
        except OSError:
            return
        small, self._file = self._file, file
        small.seek(0)
        data, self._size = small.read(), 0
        if not self._written(data):
            self._file = small
            file.close()
        self._size = len(data)

    def _written(self, data: bytes) -> bool:
        if not self._disk.take(len(data)):
            return False
        self._on_disk += len(data)
        try:
            self._file.seek(self._size)
            return bool(self._file.write(data) == len(data))
        except OSError:
            return False

    def _unspool(self) -> None:
        self._take_memory(self._size)
        file = self._file
        file.seek(0)
        self._file = BytesIO()
        self._file.write(file.read(self._size))
        file.close()
        self._disk.give_back(self._on_disk)
        self._on_disk = 0

    def _take_memory(self, count: int) -> None:
        if not self._memory.take(count):
            raise self._disk.full()
        self._in_memory += count


@define(eq=False)
class BytesBody:
    """A body in memory, as received or edited. Its size was checked before."""

    data: bytes
    replayable: bool = True

    @property
    def length(self) -> int | None:
        """Its size in bytes."""
        return len(self.data)

    def read_all(self, limit: int) -> Deferred[bytes]:
        """The body itself."""
        if len(self.data) > limit:
            return fail(BodyTooLarge(limit))
        return succeed(self.data)

    def start(self, consumer: BodyConsumer, *, keep: bool = True) -> IPushProducer:
        """Feed everything at once: it is in memory already, so a pause would save nothing."""
        if self.data:
            consumer.body_data(self.data)
        consumer.body_ended()
        return FED

    def close(self) -> None:
        """There is nothing to close."""


_check: tuple[type[BodySource], type[BodySource]] = (BytesBody, FileBody)
