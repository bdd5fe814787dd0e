"""What was served: records finished requests in batches, and answers questions about them.

A request pays for a small record and nothing more; rows appear a moment after the response ended, or when somebody
asks. Small answers are read on the reactor's thread, a handful at a time: handing each to a thread costs more than
reading it, and a thread that computes keeps the interpreter from the reactor. What is large, blocks or waits for a
disk is a worker's.
Must not know HTTP's side of the questions beyond the JSON shape of a row.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

import zstandard
from attrs import define
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaswap.observe.activity_recorder import ActivityRecorder
from llamaswap.observe.activity_row import ActivityRow, digest
from llamaswap.observe.captures import LEVEL, Blob, Capture, Captures, bundles, pack
from llamaswap.observe.file_store import FileStore
from llamaswap.observe.head_tail_buffer import CaptureBudget
from llamaswap.observe.log_format import local_time, rfc3339
from llamaswap.observe.query import ActivityFilter, ActivityQuery
from llamaswap.observe.store import ActivityPage, ActivityStore
from llamaswap.observe.worker import RunBlocking
from llamaswap.wire.request_info import RequestInfo

GATHER = 0.25  # seconds between a response's end and its batch: one thread hop for all that ended meanwhile
SLICE = 16  # answers read in one go: a fraction of a millisecond
SMALL = 16 * 1024  # bytes of an answer that is read on the reactor's thread
BATCH = 256  # rows per transaction: keeps the wait of a reader behind it under a few milliseconds
BATCH_BODIES = 1024 * 1024  # bytes of bodies that are written without waiting for more
LARGE_BATCH = 128 * 1024  # bytes of bodies whose compression is the worker's: a millisecond
BACKLOG = 10_000  # finished requests that may wait for a slow disk; beyond, rows are dropped and counted
BACKLOG_CAPTURES = 8 * 1024 * 1024  # bytes of bodies those may hold; beyond, requests are not captured
BACKLOG_BODIES = 64 * 1024 * 1024  # bytes of answers those may hold; beyond, rows come without their tokens
HELD_PER_BUDGET = 4  # captures in the making are not compressed yet: together they may hold this many budgets
RECENT = 64  # rows kept at hand for the event that announces them

log = Logger()

Answer = TypeVar("Answer")


@define(eq=False)
class _StoredRequest:
    """A recording read: its row, and its capture if it has one."""

    row: ActivityRow
    capture: Capture | None


class ActivityLog:
    """A scope factory, the writer behind it, and the reader of its table.

    `run` does blocking work in order on one thread; `clock` is monotonic, `wall` gives unix seconds;
    `stored(row)` hears of each stored row. `sessions` are the configured session headers.
    """

    def __init__(
        self,
        *,
        store: ActivityStore | FileStore,
        captures: Captures,
        run: RunBlocking,
        clock: IReactorTime,
        wall: Callable[[], float],
        stored: Callable[[ActivityRow], None] = lambda row: None,
        sessions: Sequence[str] = (),
        local: Callable[[float], datetime] = local_time,
    ) -> None:
        self._store = store
        self._captures = captures
        self._run = run
        self._clock = clock
        self._wall = wall
        self._stored = stored
        self._local = local
        self._allowance = CaptureBudget(captures.budget * HELD_PER_BUDGET)
        self._compressor = zstandard.ZstdCompressor(level=LEVEL)
        self._backlog: list[ActivityRecorder] = []
        self._filed: list[
            _StoredRequest | ActivityRecorder
        ] = []  # the backlog's beginning: read, or left to the worker
        self._backlog_bodies = 0
        self._writing = False
        self._closed = False
        self._timer: Any = None
        self._idle: list[Deferred[None]] = []
        self._recent: OrderedDict[int, ActivityRow] = OrderedDict()
        self.dropped = 0
        self.retune(sessions)

    def retune(self, sessions: Sequence[str]) -> None:
        """A reload changed the session headers, and perhaps the captures' budget."""
        self._sessions = tuple(name.lower().encode("latin-1", "replace") for name in sessions)
        self._allowance.bound = self._captures.budget * HELD_PER_BUDGET

    def use(self, store: ActivityStore | FileStore) -> None:
        """A reload changed where rows are kept: later ones go to `store`, the old one is closed after its last."""
        old, self._store = self._store, store
        self.renumbered()
        self._run(old.close).addErrback(lambda failure: log.failure("the old store did not close", failure=failure))

    def renumbered(self) -> None:
        """Rows have other ids now: what is known by an old one would be taken for another row's."""
        self._captures.clear()
        self._recent.clear()

    # -- recording -----------------------------------------------------------------------------------------

    def open(self, facts: RequestInfo) -> ActivityRecorder | None:
        """Record this request, if it is one that leaves a row."""
        if not facts.metered:
            return None
        allowance = self._allowance if self._captures.enabled else None
        return ActivityRecorder(facts, self._clock.seconds, self._wall, self._sessions, allowance, self._finished)

    def _finished(self, recording: ActivityRecorder) -> None:
        backlog = self._backlog
        if self._closed or len(backlog) >= BACKLOG:
            self._allowance.give_back(recording.held)
            if not self.dropped and not self._closed:
                log.warn("activity rows are dropped: the store is slower than the requests")
            self.dropped += 1
            return
        size = recording.size
        if self._backlog_bodies + size > BACKLOG_CAPTURES:
            recording.forget_capture()
            size = recording.size
        if self._backlog_bodies + size > BACKLOG_BODIES:
            self._allowance.give_back(recording.held)
            recording.forget_bodies()
            size = 0
        self._backlog_bodies += size
        backlog.append(recording)
        if len(backlog) - len(self._filed) >= SLICE:
            self._read()
        if self._writing:
            return
        if len(backlog) >= BATCH or self._backlog_bodies >= BATCH_BODIES:
            if self._timer is not None:
                self._timer.cancel()
            self._write()
        elif self._timer is None:
            self._timer = self._clock.callLater(GATHER, self._write)

    def _read(self) -> None:
        """Read what was not read yet and is small."""
        filed = self._filed
        for recording in self._backlog[len(filed) :]:
            filed.append(self._digested(recording) if len(recording.body) <= SMALL else recording)

    def _digested(self, recording: ActivityRecorder) -> _StoredRequest:
        found = digest(recording.answer())
        body = found.capture_body
        # What is far too large for the shelf is not even compressed.
        wanted = recording.captured and body is not None and recording.size <= self._allowance.bound
        return _StoredRequest(found.row, recording.capture(body) if wanted and body is not None else None)

    def _write(self) -> None:
        self._timer = None
        self._read()
        batch, self._backlog = self._backlog[:BATCH], self._backlog[BATCH:]
        filed, self._filed = self._filed[:BATCH], self._filed[BATCH:]
        bodies, self._backlog_bodies = self._backlog_bodies, sum(recording.size for recording in self._backlog)
        self._writing = True
        store = self._store
        if (
            store.durable
            or bodies - self._backlog_bodies > LARGE_BATCH
            or any(isinstance(item, ActivityRecorder) for item in filed)
        ):
            written = self._run(lambda: self._file(filed, store))
        else:
            written = maybeDeferred(self._file, filed, store)
        written.addCallbacks(self._announce, self._lost, callbackArgs=(store,))
        written.addErrback(lambda failure: log.failure("a listener to stored rows failed", failure=failure))
        written.addBoth(lambda _: self._wrote(batch))

    def _file(
        self, batch: Sequence[_StoredRequest | ActivityRecorder], store: ActivityStore | FileStore
    ) -> tuple[list[ActivityRow], list[Blob]]:
        """Read the large answers, store the rows, compress the captures. On the worker where that may take a while."""
        filed = [item if isinstance(item, _StoredRequest) else self._digested(item) for item in batch]
        rows = store.insert(item.row for item in filed)
        captures = [(item.row.id, item.capture) for item in filed if item.capture is not None]
        return rows, [pack(some, self._compressor) for some in bundles(captures)]

    def _announce(self, stored: tuple[list[ActivityRow], list[Blob]], store: ActivityStore | FileStore) -> None:
        rows, blobs = stored
        if store is self._store:
            for blob in blobs:
                self._captures.put(blob)
            for row in rows[-RECENT:]:
                self._recent[row.id] = row
        while len(self._recent) > RECENT:
            self._recent.popitem(last=False)
        # Told only after the books are in order: a listener may ask for what it hears of.
        for row in rows:
            self._stored(row)

    def _lost(self, failure: Failure) -> None:
        log.failure("activity rows could not be stored", failure=failure)

    def _wrote(self, batch: Sequence[ActivityRecorder]) -> None:
        for recording in batch:
            self._allowance.give_back(recording.held)
        self._writing = False
        if self._backlog:
            self._write()
            return
        waiting, self._idle = self._idle, []
        for waiter in waiting:
            waiter.callback(None)

    def flush(self) -> Deferred[None]:
        """Fires when everything finished so far is stored (or was lost)."""
        if self._timer is not None:
            self._timer.cancel()
            self._write()
        if not self._writing:
            return succeed(None)
        done: Deferred[None] = Deferred()
        self._idle.append(done)
        return done

    async def close(self) -> None:
        """Store what is left and close the store; what ends later leaves no row."""
        self._closed = True
        await self.flush()
        await self._run(self._store.close)

    # -- asking --------------------------------------------------------------------------------------------

    def _ask(self, question: Callable[[], Answer]) -> Deferred[Answer]:
        """The batch that gathers does not wait for more: who asks after its request has ended finds the row."""
        if self._timer is not None:
            self._timer.cancel()
            self._write()
        return self._run(question)

    def page(self, query: ActivityQuery) -> Deferred[ActivityPage]:
        """One page of the table."""
        return self._ask(lambda: self._store.page(query))

    def stats(self, wanted: ActivityFilter | None = None, bucket: int = 0) -> Deferred[dict[str, Any]]:
        """Totals and histograms; with `bucket` seconds also sums over time."""
        return self._ask(lambda: self._store.stats(wanted or ActivityFilter(), bucket))

    def after(self, wanted: ActivityFilter, number: int, count: int) -> Deferred[list[ActivityRow]]:
        """The next rows above an id, ascending: how an export walks through the table."""
        return self._ask(lambda: self._store.after(wanted, number, count))

    def legacy(self) -> Deferred[list[dict[str, Any]]]:
        """The flat objects of GET /api/metrics, oldest first."""
        rows = self._ask(self._store.newest_good)
        return rows.addCallback(lambda found: [self.flat(row) for row in found])

    def recent(self, number: int) -> ActivityRow | None:
        """A row just stored, for whoever hears its number; None once it is not among the last few."""
        return self._recent.get(number)

    def document(self, row: ActivityRow) -> dict[str, Any]:
        """A row as the activity API shows it."""
        usage = row.usage
        shown: dict[str, Any] = {
            "id": row.id,
            "timestamp": rfc3339(self._local(row.created)),
            "model": row.model,
            "req_path": row.req_path,
            "resp_content_type": row.resp_content_type,
            "resp_status_code": row.resp_status_code,
            "tokens": {
                "cache_tokens": usage.cache_tokens,
                "draft_tokens": usage.draft_tokens,
                "draft_acc_tokens": usage.draft_acc_tokens,
                "input_tokens": usage.input_tokens,
                "output_tokens": usage.output_tokens,
                "prompt_per_second": usage.prompt_per_second,
                "tokens_per_second": usage.tokens_per_second,
            },
            "duration_ms": row.duration_ms,
            "has_capture": self._captures.has(row.id),
        }
        for name, value in (
            ("error_msg", row.error_msg),
            ("metadata", dict(row.metadata)),
            ("session", row.session),
            ("client", row.client),
        ):
            if value:
                shown[name] = value
        return shown

    def page_document(self, page: ActivityPage) -> dict[str, Any]:
        """A page as the activity API shows it; `store_error` says why it is from memory alone."""
        problem = self._store.problem
        return {
            **({"store_error": problem} if problem else {}),
            "data": [self.document(row) for row in page.rows],
            "page": page.page,
            "limit": page.limit,
            "total": page.total,
            "total_pages": page.total_pages,
        }

    def flat(self, row: ActivityRow) -> dict[str, Any]:
        """A row as older dashboards know it."""
        usage = row.usage
        return {
            "id": row.id,
            "timestamp": rfc3339(self._local(row.created)),
            "model": row.model,
            "cache_tokens": usage.cache_tokens,
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "prompt_per_second": usage.prompt_per_second,
            "tokens_per_second": usage.tokens_per_second,
            "duration_ms": row.duration_ms,
        }
