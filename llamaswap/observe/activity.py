"""What was served: records finished requests in batches on a worker thread, and answers questions about them.

A request pays for a small record and nothing more; rows appear a moment after the response ended. Must not
know HTTP's side of the questions beyond the JSON shape of a row.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import zstandard
from attrs import evolve, frozen
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaswap.observe.captures import LEVEL, Captures, pack
from llamaswap.observe.lines import local_time, rfc3339
from llamaswap.observe.query import Filter, Query
from llamaswap.observe.record import Row, digest
from llamaswap.observe.recording import Job, Recording
from llamaswap.observe.store import Page, Store
from llamaswap.observe.tape import Allowance
from llamaswap.observe.worker import Run
from llamaswap.wire.facts import RequestFacts

GATHER = 0.02  # seconds between a response's end and its batch: one thread hop for all that ended meanwhile
BATCH = 256  # rows per transaction: keeps the wait of a reader behind it under a few milliseconds
BACKLOG = 10_000  # finished requests that may wait for a slow disk; beyond, rows are dropped and counted
BACKLOG_BODIES = 64 * 1024 * 1024  # bytes of answers those may hold; beyond, rows come without their tokens
HELD_PER_BUDGET = 4  # captures in the making are not compressed yet: together they may hold this many budgets
RECENT = 64  # rows kept at hand for the event that announces them

log = Logger()


@frozen
class _Filed:
    row: Row
    blob: bytes | None


class Activity:
    """A scope factory, the writer behind it, and the reader of its table.

    `run` does blocking work in order on one thread; `clock` is monotonic, `wall` gives unix seconds;
    `stored(row)` hears of each stored row. `sessions` are the configured session headers.
    """

    def __init__(
        self,
        *,
        store: Store,
        captures: Captures,
        run: Run,
        clock: IReactorTime,
        wall: Callable[[], float],
        stored: Callable[[Row], None] = lambda row: None,
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
        self._allowance = Allowance(captures.budget * HELD_PER_BUDGET)
        self._compressor = zstandard.ZstdCompressor(level=LEVEL)
        self._backlog: list[Job] = []
        self._backlog_bodies = 0
        self._writing = False
        self._closed = False
        self._timer: Any = None
        self._idle: list[Deferred[None]] = []
        self._recent: OrderedDict[int, Row] = OrderedDict()
        self.dropped = 0
        self.retune(sessions)

    def retune(self, sessions: Sequence[str]) -> None:
        """A reload changed the session headers, and perhaps the captures' budget."""
        self._sessions = tuple(name.lower().encode("latin-1", "replace") for name in sessions)
        self._allowance.bound = self._captures.budget * HELD_PER_BUDGET

    def use(self, store: Store) -> None:
        """A reload changed where rows are kept: later ones go to `store`, the old one is closed after its last."""
        old, self._store = self._store, store
        self._run(old.close).addErrback(lambda failure: log.failure("the old store did not close", failure=failure))

    # -- recording -----------------------------------------------------------------------------------------

    def open(self, facts: RequestFacts) -> Recording | None:
        """Record this request, if it is one that leaves a row."""
        if not facts.metered:
            return None
        allowance = self._allowance if self._captures.enabled else None
        return Recording(facts, self._clock.seconds, self._wall, self._sessions, allowance, self._finished)

    def _finished(self, job: Job) -> None:
        if self._closed or len(self._backlog) >= BACKLOG:
            self._allowance.give_back(job.held)
            if not self.dropped and not self._closed:
                log.warn("activity rows are dropped: the store is slower than the requests")
            self.dropped += 1
            return
        size = job.size
        if self._backlog_bodies + size > BACKLOG_BODIES:
            self._allowance.give_back(job.held)
            job = Job(evolve(job.answer, body=b"", whole=False), None, 0)
            size = 0
        self._backlog_bodies += size
        self._backlog.append(job)
        if self._timer is None and not self._writing:
            self._timer = self._clock.callLater(GATHER, self._write)

    def _write(self) -> None:
        self._timer = None
        batch, self._backlog = self._backlog[:BATCH], self._backlog[BATCH:]
        self._backlog_bodies = sum(job.size for job in self._backlog)
        self._writing = True
        written = self._run(lambda: self._file(batch))
        written.addCallbacks(self._announce, self._lost)
        written.addErrback(lambda failure: log.failure("a listener to stored rows failed", failure=failure))
        written.addBoth(lambda _: self._wrote(batch))

    def _file(self, batch: Sequence[Job]) -> list[_Filed]:
        """On the worker: read the answers, store the rows, compress the captures."""
        digests = [digest(job.answer) for job in batch]
        rows = self._store.insert(found.row for found in digests)
        return [
            _Filed(row, self._packed(job, found.capture_body))
            for row, job, found in zip(rows, batch, digests, strict=True)
        ]

    def _packed(self, job: Job, body: bytes | None) -> bytes | None:
        # What is far too large for the shelf is not even compressed.
        if job.parts is None or body is None or job.size > self._allowance.bound:
            return None
        return pack(job.parts.capture(job.answer.status, body), self._compressor)

    def _announce(self, filed: list[_Filed]) -> None:
        for item in filed:
            if item.blob is not None:
                self._captures.put(item.row.id, item.blob)
            self._recent[item.row.id] = item.row
            if len(self._recent) > RECENT:
                self._recent.popitem(last=False)
        # Told only after the books are in order: a listener may ask for what it hears of.
        for item in filed:
            self._stored(item.row)

    def _lost(self, failure: Failure) -> None:
        log.failure("activity rows could not be stored", failure=failure)

    def _wrote(self, batch: Sequence[Job]) -> None:
        for job in batch:
            self._allowance.give_back(job.held)
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

    def page(self, query: Query) -> Deferred[Page]:
        """One page of the table."""
        return self._run(lambda: self._store.page(query))

    def stats(self, wanted: Filter | None = None, bucket: int = 0) -> Deferred[dict[str, Any]]:
        """Totals and histograms; with `bucket` seconds also sums over time."""
        return self._run(lambda: self._store.stats(wanted or Filter(), bucket))

    def after(self, wanted: Filter, number: int, count: int) -> Deferred[list[Row]]:
        """The next rows above an id, ascending: how an export walks through the table."""
        return self._run(lambda: self._store.after(wanted, number, count))

    def legacy(self) -> Deferred[list[dict[str, Any]]]:
        """The flat objects of GET /api/metrics, oldest first."""
        rows = self._run(self._store.newest_good)
        return rows.addCallback(lambda found: [self.flat(row) for row in found])

    def recent(self, number: int) -> Row | None:
        """A row just stored, for whoever hears its number; None once it is not among the last few."""
        return self._recent.get(number)

    def document(self, row: Row) -> dict[str, Any]:
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

    def page_document(self, page: Page) -> dict[str, Any]:
        """A page as the activity API shows it."""
        return {
            "data": [self.document(row) for row in page.rows],
            "page": page.page,
            "limit": page.limit,
            "total": page.total,
            "total_pages": page.total_pages,
        }

    def flat(self, row: Row) -> dict[str, Any]:
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
