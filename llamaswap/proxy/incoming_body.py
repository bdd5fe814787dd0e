"""A request body that is still arriving from its client.

It is kept in memory, and beyond a threshold in an unlinked file, until its last reader starts; then it is streamed.
While it has no reader, the client is made to wait, so memory does not fill.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import IO

from attrs import define, field
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IPushProducer, IReactorTime

from llamaswap.errors import BodyTooLarge, ClientGone
from llamaswap.proxy.bodies import BODY_COPIES, FED, PIECE_SIZE, BodyFeed, PiecesBody
from llamaswap.proxy.exchange import BodyConsumer, BodySource
from llamaswap.wire.byte_budget import UNBOUNDED, ByteBudget

SPOOL_THRESHOLD = 8 * 1024 * 1024
READ_AHEAD = 256 * 1024  # bytes read ahead while there is no reader; then the client waits
SMALL_BODY = 1024 * 1024  # bytes; a body up to this size can be read again even if its reader does not ask for that
DISCARD_LIMIT = 1024 * 1024  # bytes of an unwanted body that are read; beyond it the connection is closed instead
DISK_STEP = 4 * 1024 * 1024  # bytes of the disk's budget that are taken at once


@define(eq=False)
class SpooledBody:
    """A connection feeds it by `arrived`, `finished` and `lost`; it calls `changed` when `wants_body` may differ.

    `length` is None for a chunked body, until its end. `continue_` is called when the first byte is asked for. `memory`
    and `disk` are the budgets that all bodies share; readers fail with NoRoom when they are used up.
    """

    _clock: IReactorTime
    _length: int | None
    _changed: Callable[[], None]
    _continue: Callable[[], None] = field(alias="continue_")
    _threshold: int = SPOOL_THRESHOLD
    _folder: str | None = None
    _memory: ByteBudget = UNBOUNDED
    _disk: ByteBudget = UNBOUNDED
    complete: bool = field(init=False)
    asked: bool = field(default=False, init=False)
    refusal: Exception | None = field(default=None, init=False)  # why it could not be kept
    _arrived: int = field(default=0, init=False)
    _chunks: list[bytes] = field(factory=list, init=False)
    _content: BytesIO | None = field(default=None, init=False)
    """Of a body that is read whole; it grows, and is read, without a copy."""
    _file: IO[bytes] | None = field(default=None, init=False)
    _lost: bool = field(default=False, init=False)
    _closed: bool = field(default=False, init=False)
    _discarding: bool = field(default=False, init=False)
    _discarded: int = field(default=0, init=False)
    _feed: BodyFeed | None = field(default=None, init=False)
    _whole_body: Deferred[bytes] | None = field(default=None, init=False)
    _whole_body_limit: int = field(default=0, init=False)
    _memory_taken: int = field(default=0, init=False)
    _disk_taken: int = field(default=0, init=False)
    _spooled: int = field(default=0, init=False)  # bytes in the file

    def __attrs_post_init__(self) -> None:
        self.complete = self._length == 0

    # -- what readers call

    @property
    def length(self) -> int | None:
        """Total bytes; None for a chunked body still arriving."""
        return self._arrived if self.complete else self._length

    @property
    def replayable(self) -> bool:
        """Whether it can be read from its first byte."""
        return not self._discarding and not self._closed

    def read_all(self, limit: int) -> Deferred[bytes]:
        """The whole body in memory."""
        if self.refusal is not None:
            return fail(self.refusal)
        if not self.replayable:
            raise RuntimeError("the body was released")
        size = max(self._length or 0, self._arrived)
        if size > limit:
            return fail(BodyTooLarge(limit))
        if not self._take_memory(size * BODY_COPIES - self._memory_taken):
            return fail(self._memory.full())
        if self.complete:
            return self._joined()
        if self._lost:
            return fail(ClientGone())
        if self._whole_body is not None:
            raise RuntimeError("the body is already being read whole")
        if self._file is None:
            try:
                self._begin_content()
            except MemoryError:
                return fail(self._memory.full())
        self._whole_body_limit = limit
        whole_body = self._whole_body = Deferred(self._reading_cancelled)
        self._request_bytes()
        return whole_body

    def content(self) -> bytes:
        """Every byte so far."""
        if self._file is not None:
            self._file.seek(0)
            return self._file.read()
        if len(self._chunks) != 1:
            self._chunks = [b"".join(self._chunks)]
        return self._chunks[0]

    def start(self, consumer: BodyConsumer, *, keep: bool = True) -> IPushProducer:
        """Feed a consumer from the first byte; see BodySource."""
        if self.refusal is not None:
            consumer.body_failed(self.refusal)
            return FED
        if not self.replayable:
            raise RuntimeError("the body was released")
        if self._feed is not None:
            self._feed.stopProducing()
        # A complete body costs nothing to keep, and a small one is worth a second attempt.
        self._discarding = not (keep or self.complete or (self._length is not None and self._length <= SMALL_BODY))
        feed = self._feed = BodyFeed(self._clock, self, consumer)
        self._request_bytes()
        feed.pump()
        return feed

    def edited(self, pieces: Sequence[bytes | memoryview]) -> PiecesBody:
        """A body of these pieces, which is fed as a connection takes it."""
        return PiecesBody(self._clock, pieces)

    def reserve(self, count: int) -> None:
        """Take memory for copies of the body that are made elsewhere, until it is closed; raises NoRoom."""
        if not self._take_memory(count):
            raise self._memory.full()

    def release(self) -> None:
        """Drop the bytes of a body that was read whole: an edited copy and the one being sent live as long as the
        request, so their memory stays taken."""
        if self.complete and self._file is None:
            self._chunks = []
            self._discarding = True
            self._give_memory_back(self._memory_taken // BODY_COPIES)

    def close(self) -> None:
        """Discard everything, also what still arrives."""
        if self._closed:
            return
        self._closed = True
        if self._feed is not None:
            self._feed.stopProducing()
        self._chunks = []
        self._content = None
        self._close_file()
        self._give_memory_back(self._memory_taken)
        self._changed()
        self._changed = self._continue = lambda: None  # or the connection and the body would form a reference cycle

    # -- what the connection calls

    @property
    def wants_body(self) -> bool:
        """Whether the connection should go on reading."""
        if self._closed:
            return self._discarded < DISCARD_LIMIT
        if self._whole_body is not None:
            return True
        if self._feed is not None:
            return not self._feed.paused
        return self._arrived < READ_AHEAD

    def arrived(self, data: bytes) -> None:
        """Some bytes of the body, without framing."""
        self._arrived += len(data)
        if self._closed:
            self._discarded += len(data)
            return
        feed = self._feed
        if self._discarding and feed is not None and feed.direct:
            feed.consumer.body_data(data)
            return
        if not self._keep(data):
            self._refuse()
        elif self._whole_body is not None and self._arrived > self._whole_body_limit:
            whole_body, self._whole_body = self._whole_body, None
            self._end_content()
            whole_body.errback(BodyTooLarge(self._whole_body_limit))
        elif feed is not None:
            feed.pump()

    def finished(self) -> None:
        """The body is complete."""
        self.complete = True
        whole_body, self._whole_body = self._whole_body, None
        if whole_body is not None:
            self._joined().chainDeferred(whole_body)
        elif self._feed is not None:
            self._feed.pump()

    def lost(self) -> None:
        """The client left, so an incomplete body stays incomplete."""
        self._lost = True
        if self.complete:
            return
        self._fail_reader(ClientGone())

    # -- private

    def _fail_reader(self, error: Exception) -> None:
        whole_body, self._whole_body = self._whole_body, None
        feed, self._feed = self._feed, None
        if whole_body is not None:
            whole_body.errback(error)
        if feed is not None:
            feed.stopped = True
            feed.consumer.body_failed(error)

    def _begin_content(self) -> None:
        """What came, and what comes, is one growing text."""
        content = BytesIO()
        content.writelines(self._chunks)
        self._content, self._chunks = content, []

    def _end_content(self) -> None:
        """The body is not read whole any more: what came is one chunk."""
        content, self._content = self._content, None
        if content is not None:
            self._chunks = [content.getvalue()]

    def _joined(self) -> Deferred[bytes]:
        try:
            self._end_content()
            return succeed(self.content())
        except MemoryError:  # the limits were measured, but another part of the process took the rest
            return fail(self._memory.full())

    def _request_bytes(self) -> None:
        if not self.asked:
            self.asked = True
            if not self._arrived and not self.complete:
                self._continue()
        self._changed()

    def _reading_cancelled(self, _: object) -> None:
        self._whole_body = None
        self._end_content()
        self._changed()

    def _keep(self, data: bytes) -> bool:
        """Keep some more bytes; False if neither budget has room for them."""
        if self._file is None:
            size = len(data)
            if self._content is not None:
                # If the length was announced, all of its memory is taken already.
                if self._memory_taken < self._arrived * BODY_COPIES and not self._take_memory(size * BODY_COPIES):
                    return False
                self._content.write(data)
                return True
            if (self._arrived <= self._threshold or self._discarding) and self._take_memory(size):
                self._chunks.append(data)
                return True
            if self._discarding:
                return False
            if self._spool(data):
                return True
        elif self._write(data):
            return True
        return self._back_to_memory(data)

    def _spool(self, data: bytes) -> bool:
        """Continue in a file, with the bytes so far and these; False if that is impossible."""
        if self._disk.left < (self._length or 0):
            return False
        # Writing goes to the page cache, so it is no slower than the memory it saves. The file has no name.
        try:
            self._file = tempfile.TemporaryFile(prefix="llamaswap-body-", dir=self._folder, buffering=0)  # noqa: SIM115
        except OSError:
            return False
        if not all(self._write(chunk) for chunk in (*self._chunks, data)):
            self._close_file()
            return False
        feed = self._feed
        if feed is not None:
            feed.at = sum(len(chunk) for chunk in self._chunks[: feed.at])
        self._chunks = []
        self._give_memory_back(self._memory_taken)
        return True

    def _back_to_memory(self, data: bytes) -> bool:
        """Keep everything in memory because the disk is full; False if memory has no room either."""
        kept = self._spooled
        announced = (self._length or 0) - self._memory_taken
        if announced > self._memory.left or not self._take_memory(kept + len(data)):
            return False
        if self._file is not None:
            at = 0 if self._feed is None else self._feed.at
            self._file.seek(0)
            self._chunks = [piece for piece in (self._file.read(at), self._file.read(kept - at)) if piece]
            if self._feed is not None:
                self._feed.at = 1 if at else 0
            self._close_file()
        self._chunks.append(data)
        if self._whole_body is not None:
            self._begin_content()
        return True

    def _close_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()
        self._spooled = 0
        self._disk.give_back(self._disk_taken)
        self._disk_taken = 0

    def _write(self, data: bytes) -> bool:
        assert self._file is not None  # it is written to
        size = self._spooled + len(data)
        if size > self._disk_taken:
            step = max(DISK_STEP, size - self._disk_taken)
            if not self._disk.take(step):
                return False
            self._disk_taken += step
        try:
            self._file.seek(self._spooled)
            if self._file.write(data) < len(data):
                return False
        except OSError:  # the disk is full after all
            return False
        self._spooled = size
        return True

    def _take_memory(self, count: int) -> bool:
        if count > 0:
            if not self._memory.take(count):
                return False
            self._memory_taken += count
        return True

    def _give_memory_back(self, count: int) -> None:
        count = min(count, self._memory_taken)
        self._memory.give_back(count)
        self._memory_taken -= count

    def _refuse(self) -> None:
        """There is no room for the bytes that came: fail the reader and discard the rest."""
        in_memory = self._file is None and (self._whole_body is not None or self._discarding)
        error = self.refusal = (self._memory if in_memory else self._disk).full()
        self._fail_reader(error)
        self.close()

    def next_piece(self, feed: BodyFeed) -> bytes:
        """The feed's next piece; empty if it has had everything that is here."""
        if self._file is not None:
            self._file.seek(feed.at)
            data = self._file.read(PIECE_SIZE)
            feed.at += len(data)
            return data
        while feed.at < len(self._chunks):
            data = self._chunks[feed.at]
            if self._discarding:
                self._chunks[feed.at] = b""
                self._give_memory_back(len(data))
            feed.at += 1
            if data:
                return data
        if self._discarding:
            self._chunks.clear()
            feed.at = 0
        return b""

    def feed_ended(self, feed: BodyFeed) -> None:
        """This feed is not the running one any more."""
        if self._feed is feed:
            self._feed = None

    def feed_stopped(self, feed: BodyFeed) -> None:
        """The consumer wants no more."""
        self.feed_ended(feed)
        if self._discarding:
            self.close()  # the bytes that passed are discarded, so the rest is useless
        else:
            self._changed()

    def feed_paused(self) -> None:
        """`wants_body` may differ, because the consumer paused or resumed the feed."""
        self._changed()


_check: type[BodySource] = SpooledBody
