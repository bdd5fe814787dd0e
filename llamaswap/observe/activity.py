"""The activity log: it stores finished requests in batches, and answers questions about them.

A request pays for a small record; its row appears a moment after the response ended, or when a question is asked.
Small responses are parsed on the reactor's thread, a few at a time: passing each to a thread costs more than parsing
it, and a busy thread keeps the interpreter from the reactor. Large responses and files are a worker's. This module
knows the JSON shape of a row, and nothing else of HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import TypeVar

import zstandard
from attrs import define, field
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from llamaswap.events import EventBus, SwapBegan, SwapEnded
from llamaswap.observe.activity_recorder import ActivityRecorder, session_headers
from llamaswap.observe.activity_row import USAGE_COLUMNS, ActivityRow
from llamaswap.observe.capture_files import CaptureFiles
from llamaswap.observe.captures import LEVEL, Blob, Capture, Captures, bundles, pack
from llamaswap.observe.file_store import FileStore
from llamaswap.observe.log_format import timestamp
from llamaswap.observe.store import ActivityPage, ActivityStore
from llamaswap.observe.worker import RunBlocking
from llamaswap.wire.byte_budget import ByteBudget
from llamaswap.wire.request_info import RequestInfo

BATCH_DELAY = 0.25  # seconds between a response's end and its batch: one change of thread for all that ended meanwhile
SLICE_ROWS = 16  # responses parsed at once: a fraction of a millisecond
SMALL_BODY = 16 * 1024  # bytes of a response that is parsed on the reactor's thread
BATCH_ROWS = 256  # rows per transaction: keeps a question behind it waiting for less than a few milliseconds
BATCH_BYTES = 1024 * 1024  # of bodies that are written without waiting for more
LARGE_BATCH = 128 * 1024  # bytes of bodies whose compression takes a millisecond: the worker's
BACKLOG_ROWS = 10_000  # finished requests that may wait for a slow disk; later ones are dropped and counted
BACKLOG_CAPTURES = 8 * 1024 * 1024  # bytes of bodies those may hold; later requests are not captured
BACKLOG_BODIES = 64 * 1024 * 1024  # bytes of responses those may hold; later rows lack their tokens
UNCOMPRESSED_BUDGETS = 4  # captures are compressed at the end; before, all together may hold this many times the budget

log = Logger()

Result = TypeVar("Result")
Document = dict[str, object]


@define(eq=False)
class ActivityLog:
    """Observes requests, stores their rows, and reads the table.

    `run` does blocking work in order on one thread; `clock` is monotonic, `wall` gives unix seconds; `stored(rows)` is
    called with the rows of each batch.
    """

    store: ActivityStore | FileStore
    captures: Captures
    run: RunBlocking
    clock: IReactorTime
    wall: Callable[[], float]
    stored: Callable[[Sequence[ActivityRow]], None] = lambda rows: None
    files: CaptureFiles | None = field(default=None, init=False)
    uncompressed: ByteBudget = field(init=False)
    dropped: int = field(default=0, init=False)
    _sessions: tuple[bytes, ...] = field(default=(), init=False)
    _loads: dict[str, tuple[float, float]] = field(factory=dict, init=False)
    """When the last load of each model began and ended, in the clock's seconds."""
    _compressor: zstandard.ZstdCompressor = field(factory=lambda: zstandard.ZstdCompressor(level=LEVEL), init=False)
    _backlog: list[ActivityRecorder] = field(factory=list, init=False)
    _seen: int = field(default=0, init=False)
    """How many of the backlog are digested, or too large for the reactor's thread."""
    _backlog_bytes: int = field(default=0, init=False)
    _writing: bool = field(default=False, init=False)
    _closed: bool = field(default=False, init=False)
    _timer: IDelayedCall | None = field(default=None, init=False)
    _flushed: list[Deferred[None]] = field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self.uncompressed = ByteBudget("captures", lambda used: self.captures.budget * UNCOMPRESSED_BUDGETS)

    def retune(self, sessions: Sequence[str]) -> None:
        """Take the session from these headers, in order of preference."""
        self._sessions = session_headers(sessions)

    def listen(self, bus: EventBus) -> None:
        """Learn from swaps how long requests waited for loads."""
        bus.subscribe(SwapBegan, lambda event: self._loads.update({event.model: (event.at, inf)}))
        bus.subscribe(SwapEnded, self._load_ended)

    def _load_ended(self, event: SwapEnded) -> None:
        began, _ = self._loads.get(event.model, (event.at, inf))
        self._loads[event.model] = (began, event.at)

    def keep_files(self, files: CaptureFiles | None) -> None:
        """Keep later captures in these files too; None: only in memory."""
        self.files = files
        if files is not None:
            self.run(files.open).addErrback(lambda failure: log.failure("opening the captures failed", failure=failure))

    def use(self, store: ActivityStore | FileStore) -> None:
        """A reload changed the store: later rows go to `store`; the old one is closed after its last row."""
        old, self.store = self.store, store
        self.renumbered()
        self.run(old.close).addErrback(lambda failure: log.failure("closing the old store failed", failure=failure))

    def renumbered(self) -> None:
        """Forget everything known by a row's id, because rows have other ids now."""
        self.captures.clear()

    # -- recording -----------------------------------------------------------------------------------------

    def open(self, request: RequestInfo) -> ActivityRecorder | None:
        """The observer of this request, None if it leaves no row."""
        if not request.metered:
            return None
        budget = self.uncompressed if self.captures.enabled else None
        seconds, sessions = self.clock.seconds, self._sessions
        return ActivityRecorder(request, seconds, self.wall, sessions, budget, self._finished, self._loads)

    def _finished(self, recorder: ActivityRecorder) -> None:
        backlog = self._backlog
        if self._closed or len(backlog) >= BACKLOG_ROWS:
            self.uncompressed.give_back(recorder.held)
            if not self.dropped and not self._closed:
                log.warn("dropping activity rows: the store is slower than the requests")
            self.dropped += 1
            return
        size = recorder.size
        if self._backlog_bytes + size > BACKLOG_CAPTURES:
            recorder.forget_capture()
            size = recorder.size
        if self._backlog_bytes + size > BACKLOG_BODIES:
            self.uncompressed.give_back(recorder.held)
            recorder.forget_bodies()
            size = 0
        self._backlog_bytes += size
        backlog.append(recorder)
        if len(backlog) - self._seen >= SLICE_ROWS:
            self._digest_small()
        if self._writing:
            return
        if len(backlog) >= BATCH_ROWS or self._backlog_bytes >= BATCH_BYTES:
            self._write()
        elif self._timer is None:
            self._timer = self.clock.callLater(BATCH_DELAY, self._write)

    def _digest_small(self) -> None:
        for recorder in self._backlog[self._seen :]:
            if len(recorder.body) <= SMALL_BODY:
                recorder.digest()
        self._seen = len(self._backlog)

    def _write(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        self._digest_small()
        batch, self._backlog = self._backlog[:BATCH_ROWS], self._backlog[BATCH_ROWS:]
        self._seen = len(self._backlog)
        bytes_before, self._backlog_bytes = self._backlog_bytes, sum(recorder.size for recorder in self._backlog)
        self._writing = True
        store, files = self.store, self.files
        large = bytes_before - self._backlog_bytes > LARGE_BATCH or any(recorder.row is None for recorder in batch)
        if store.durable or large or files is not None:
            written = self.run(lambda: self._store_batch(batch, store, files))
        else:
            written = maybeDeferred(self._store_batch, batch, store, files)
        written.addCallbacks(
            lambda stored: self._announce(stored[0], stored[1], store),
            lambda failure: log.failure("storing activity rows failed; they are lost", failure=failure),
        )
        written.addErrback(lambda failure: log.failure("a listener to stored rows failed", failure=failure))
        written.addBoth(lambda _: self._written(batch))

    def _store_batch(
        self, batch: Sequence[ActivityRecorder], store: ActivityStore | FileStore, files: CaptureFiles | None
    ) -> tuple[list[ActivityRow], list[Blob]]:
        """Parse the large responses, store the rows, compress the captures. On the worker if that takes long."""
        for recorder in batch:
            if recorder.row is None:
                recorder.digest()
        if files is not None:
            store.number_from(files.open())
        rows = store.insert(recorder.row for recorder in batch if recorder.row is not None)
        captures = [
            (recorder.row.id, recorder.capture)
            for recorder in batch
            if recorder.row is not None and recorder.capture is not None
        ]
        blobs = [pack(some, self._compressor) for some in bundles(captures)]
        if files is not None and blobs and not store.problem:  # otherwise the rows may get other numbers
            files.write(blobs)
        return rows, blobs

    def _announce(self, rows: Sequence[ActivityRow], blobs: Sequence[Blob], store: ActivityStore | FileStore) -> None:
        if store is self.store:
            for blob in blobs:
                self.captures.put(blob)
        # Last, because a listener may ask for the rows that it is called with.
        self.stored(rows)

    def _written(self, batch: Sequence[ActivityRecorder]) -> None:
        for recorder in batch:
            self.uncompressed.give_back(recorder.held)
        self._writing = False
        if self._backlog:
            self._write()
            return
        flushed, self._flushed = self._flushed, []
        for done in flushed:
            done.callback(None)

    def flush(self) -> Deferred[None]:
        """Fires when every request finished so far is stored (or was lost)."""
        if self._timer is not None:
            self._write()
        if not self._writing:
            return succeed(None)
        done: Deferred[None] = Deferred()
        self._flushed.append(done)
        return done

    async def close(self) -> None:
        """Store the backlog and close the store; requests that end later leave no row."""
        self._closed = True
        await self.flush()
        await self.run(self.store.close)

    # -- questions -----------------------------------------------------------------------------------------

    def ask(self, question: Callable[[ActivityStore], Result]) -> Deferred[Result]:
        """The result of a question to the table, which blocks. The client of a request that just ended finds its row,
        because the backlog is written first."""
        if self._timer is not None:
            self._write()
        return self.run(lambda: self.store.ask(question))

    def capture(self, number: int) -> Deferred[Capture | None]:
        """The capture of a row from memory, or else from its file."""
        found, files = self.captures.get(number), self.files
        if found is not None or files is None:
            return succeed(found)
        return self.run(lambda: files.read(number))

    def legacy(self) -> Deferred[list[Document]]:
        """The flat objects of GET /api/metrics, oldest first."""
        rows = self.ask(lambda table: table.newest_good())
        return rows.addCallback(lambda found: [self.flat(row) for row in found])

    def document(self, row: ActivityRow) -> Document:
        """A row as the activity API shows it."""
        optional = {
            "error_msg": row.error_msg,
            "metadata": dict(row.metadata),
            "session": row.session,
            "client": row.client,
            "key": row.key,
            "queued_ms": row.queued_ms,
            "loaded_ms": row.loaded_ms,
        }
        return {
            "id": row.id,
            "timestamp": timestamp(row.created),
            "model": row.model,
            "req_path": row.req_path,
            "resp_content_type": row.resp_content_type,
            "resp_status_code": row.resp_status_code,
            "tokens": {name: getattr(row.usage, name) for name in USAGE_COLUMNS},
            "duration_ms": row.duration_ms,
            **({"ttft_ms": row.first_token_ms} if row.first_token_ms >= 0 else {}),
            "has_capture": self.captures.has(row.id) or (self.files is not None and self.files.has(row.id)),
            **{name: value for name, value in optional.items() if value},
        }

    def page_document(self, page: ActivityPage) -> Document:
        """A page as the activity API shows it; `store_error` says why it is from memory alone."""
        problem = self.store.problem
        return {
            **({"store_error": problem} if problem else {}),
            "data": [self.document(row) for row in page.rows],
            "page": page.page,
            "limit": page.limit,
            "total": page.total,
            "total_pages": page.total_pages,
        }

    def flat(self, row: ActivityRow) -> Document:
        """A row as older dashboards know it."""
        drafts = ("draft_tokens", "draft_acc_tokens")
        return {
            "id": row.id,
            "timestamp": timestamp(row.created),
            "model": row.model,
            **{name: getattr(row.usage, name) for name in USAGE_COLUMNS if name not in drafts},
            "duration_ms": row.duration_ms,
        }
