"""Load tests run by the server itself: many requests at once without a browser's connection limit between.

Requests go through our own front door like any client's, so that what is measured is what clients get. Runs are
bounded in size, number and time. Must not know the router.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

from attrs import define, field, frozen
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from llamaswap.config import Config
from llamaswap.observe.stats import percentile
from llamaswap.web.admin_request import AdminRequest, Response, first_json, json_answer, json_bytes
from llamaswap.web.errors import HttpError
from llamaswap.web.route import RouteTable

MOST_CONCURRENT = 256
MOST_REQUESTS = 10_000
MOST_TOKENS = 32_768
SHOWN = 500  # requests of a run told one by one, the last ones
KEPT = 16  # finished runs that can still be read

log = Logger()


class Generator(Protocol):
    """Sends one streaming request to our own front door."""

    def __call__(self, path: str, body: bytes, chunk: Callable[[bytes], None], /) -> Deferred[int]:
        """`chunk` hears each piece of the body as it comes; fires with the status at the end. Cancelling it ends it."""


@frozen
class LoadTestOrder:
    """What to do; the prompt stands in the run's body."""

    model: str
    concurrency: int
    requests: int
    max_tokens: int


@frozen
class LoadTestShot:
    """One request's outcome: seconds to the first piece and to the end, pieces seen, and the status (0: none).

    `began` in seconds since the run's beginning, `lane` which of the requests at once it was.
    """

    first: float | None
    total: float
    pieces: int
    status: int
    began: float = 0.0
    lane: int = 0


@define(eq=False)
class LoadTestRun:
    """One load test. `body` is that of each of its requests, empty once it has ended: a prompt may be large."""

    id: str
    order: LoadTestOrder
    body: bytes = field(repr=False)
    began: float
    state: str = "running"
    ended: float | None = None
    shots: list[LoadTestShot] = field(factory=list)
    left: int = 0
    flights: set[Deferred[int]] = field(factory=set)

    def document(self, now: float) -> dict[str, Any]:
        """As shown: progress, and the numbers of what is done."""
        order = self.order
        return {
            "id": self.id,
            "state": self.state,
            "model": order.model,
            "concurrency": order.concurrency,
            "max_tokens": order.max_tokens,
            "done": len(self.shots),
            "total": order.requests,
            "elapsed_ms": round(((now if self.ended is None else self.ended) - self.began) * 1000),
            "results": self._results(now),
        }

    def whole(self, now: float) -> dict[str, Any]:
        """The document with each request."""
        return {**self.document(now), "shots": [_shown(shot) for shot in self.shots[-SHOWN:]]}

    def _results(self, now: float) -> dict[str, Any]:
        good = [shot for shot in self.shots if shot.status == 200]
        span = (now if self.ended is None else self.ended) - self.began
        pieces = sum(shot.pieces for shot in good)
        gaps = [
            (shot.total - shot.first) / (shot.pieces - 1) for shot in good if shot.first is not None and shot.pieces > 1
        ]
        return {
            "errors": len(self.shots) - len(good),
            "statuses": {str(code): count for code, count in sorted(_counts(self.shots).items())},
            "requests_per_second": round(len(good) / span, 3) if span > 0 else None,
            "tokens_per_second": round(pieces / span, 3) if span > 0 else None,
            "ttft_ms": _spread([shot.first for shot in good if shot.first is not None]),
            "itl_ms": _spread(gaps),
            "duration_ms": _spread([shot.total for shot in good]),
        }


@define(eq=False)
class LoadTests:
    """/api/loadtest. One run at a time; `send` None: this server offers none."""

    config: Callable[[], Config]
    clock: IReactorTime
    send: Generator | None
    runs: OrderedDict[str, LoadTestRun] = field(factory=OrderedDict, init=False)
    _last: int = field(default=0, init=False)

    def begin(self, call: AdminRequest) -> Response:
        """Begin a run; its progress is read under its id."""
        if self.send is None:
            raise HttpError(404, "load tests are not available on this server")
        if any(run.state == "running" for run in self.runs.values()):
            raise HttpError(409, "another load test is running; wait for its end or cancel it")
        order, body = self._order(call)
        self._last += 1
        run = LoadTestRun(str(self._last), order, body, self.clock.seconds(), left=order.requests)
        self.runs[run.id] = run
        while len(self.runs) > KEPT:
            self.runs.popitem(last=False)
        lanes = [Deferred.fromCoroutine(self._lane(run, lane)) for lane in range(order.concurrency)]
        gatherResults(lanes, consumeErrors=True).addCallbacks(
            lambda _: self._over(run, "done"), lambda failure: self._broken(run, failure)
        )
        return json_answer(run.document(self.clock.seconds()), 202)

    def show(self, call: AdminRequest) -> Response:
        """A run's progress and numbers."""
        return json_answer(self._run(call).whole(self.clock.seconds()))

    def index(self, call: AdminRequest) -> Response:
        """The runs that can be read, newest first."""
        now = self.clock.seconds()
        return json_answer({"runs": [run.document(now) for run in reversed(self.runs.values())]})

    def cancel(self, call: AdminRequest) -> Response:
        """End a run; its requests are cut."""
        run = self._run(call)
        self._stop(run)
        return json_answer(run.document(self.clock.seconds()))

    def close(self) -> None:
        """The service stops: no run goes on."""
        for run in self.runs.values():
            self._stop(run)

    def _stop(self, run: LoadTestRun) -> None:
        if run.state != "running":
            return
        self._over(run, "cancelled")
        run.left = 0
        for flight in tuple(run.flights):
            flight.cancel()

    def _run(self, call: AdminRequest) -> LoadTestRun:
        run = self.runs.get(call.variables["number"])
        if run is None:
            raise HttpError(404, "load test not found")
        return run

    def _order(self, call: AdminRequest) -> tuple[LoadTestOrder, bytes]:
        try:
            asked = first_json(call.body)
        except ValueError:
            raise HttpError(400, "invalid load test request")
        if not isinstance(asked, dict):
            raise HttpError(400, "invalid load test request")
        config = self.config()
        model = asked.get("model")
        if not isinstance(model, str) or (config.base(model) is None and model not in config.selectors):
            raise HttpError(404, "model not found")
        prompt = asked.get("prompt", "Write a short story about a llama.")
        if not isinstance(prompt, str):
            raise HttpError(400, "prompt must be a string")
        concurrency = _bounded(asked, "concurrency", 4, MOST_CONCURRENT)
        requests = _bounded(asked, "requests", concurrency, MOST_REQUESTS)
        tokens = _bounded(asked, "max_tokens", 128, MOST_TOKENS)
        body = {
            "model": model,
            "stream": True,
            "max_tokens": tokens,
            "messages": [{"role": "user", "content": prompt}],
        }
        return LoadTestOrder(model, min(concurrency, requests), requests, tokens), json_bytes(body)

    async def _lane(self, run: LoadTestRun, lane: int) -> None:
        while run.left > 0:
            run.left -= 1
            shot = await self._shot(run, lane)
            if shot is not None:
                run.shots.append(shot)

    async def _shot(self, run: LoadTestRun, lane: int) -> LoadTestShot | None:
        send = self.send
        if send is None:
            return None
        began, pieces = self.clock.seconds(), 0
        first: float | None = None

        def chunk(data: bytes) -> None:
            nonlocal first, pieces
            seen = data.count(b"data:") - data.count(b"data: [DONE]") - data.count(b"data:[DONE]")
            if seen and first is None:
                first = self.clock.seconds() - began
            pieces += seen

        flight = send("/v1/chat/completions", run.body, chunk)
        run.flights.add(flight)
        try:
            status = await flight
        except CancelledError:
            return None
        except Exception as error:  # a broken connection is a result of the test, not a fault of ours
            log.debug("a load test's request failed: {error}", error=error)
            status = 0
        finally:
            run.flights.discard(flight)
        return LoadTestShot(first, self.clock.seconds() - began, pieces, status, began - run.began, lane)

    def _over(self, run: LoadTestRun, state: str) -> None:
        if run.state == "running":
            run.state = state
            run.ended = self.clock.seconds()
            run.body = b""

    def _broken(self, run: LoadTestRun, failure: Any) -> None:
        log.failure("a load test failed", failure=failure)
        self._stop(run)


def _bounded(asked: dict[str, Any], name: str, default: int, most: int) -> int:
    value = asked.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise HttpError(400, f"{name} must be between 1 and {most}")
    return value


def _shown(shot: LoadTestShot) -> dict[str, Any]:
    """A request as a bar over time: milliseconds since the run's beginning."""
    return {
        "lane": shot.lane,
        "began_ms": round(shot.began * 1000),
        "ttft_ms": None if shot.first is None else round(shot.first * 1000),
        "duration_ms": round(shot.total * 1000),
        "status": shot.status,
    }


def _counts(shots: list[LoadTestShot]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for shot in shots:
        counts[shot.status] = counts.get(shot.status, 0) + 1
    return counts


def _spread(seconds: list[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    ordered = sorted(value * 1000 for value in seconds)
    return {f"p{round(p * 100)}": round(percentile(ordered, p), 3) for p in (0.5, 0.9, 0.95, 0.99)}


_table = RouteTable(LoadTests, "loadtest")
ROUTES = (
    _table.post(
        "/api/loadtest", LoadTests.begin, "Begin a load test", changes_state=True, body="LoadTestOrder", status=202
    ),
    _table.get("/api/loadtest", LoadTests.index, "The last load tests"),
    _table.get("/api/loadtest/<string:number>", LoadTests.show, "A load test's numbers", schema="LoadTest"),
    _table.each(
        ("DELETE",),
        "/api/loadtest/<string:number>",
        LoadTests.cancel,
        "End a load test",
        changes_state=True,
        schema="LoadTest",
    ),
)
