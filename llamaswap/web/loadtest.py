"""Load tests that the server runs itself, so that a browser's connection limit does not limit them.

The requests come over the loopback interface like a client's, so that a run measures what clients get. A first request,
which is not counted, loads the model. Runs are bounded in size, number and time. This module must not know the router.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import TypeAlias

from attrs import Factory, define, field, frozen
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaswap.config import Config
from llamaswap.observe.stats import percentile
from llamaswap.web.admin_request import AdminRequest, JsonObject, Response, json_answer, json_bytes
from llamaswap.web.errors import HttpError
from llamaswap.web.route import Route, RouteTable

MAX_CONCURRENCY = 256
MAX_REQUESTS = 10_000
MAX_TOKENS = 32_768
MAX_SHOTS_SHOWN = 500  # the last requests of a run, shown one by one
MAX_RUNS = 16  # runs that can be read

log = Logger()


@frozen
class ShotDocument:
    """A request as a bar over time: milliseconds since the run began."""

    lane: int
    began_ms: int
    ttft_ms: int | None
    duration_ms: int
    status: int


@frozen
class RunDocument:
    """The progress of a run, and the numbers of the requests that have ended.

    `state` is loading (the model), running, done, failed (the model could not be loaded) or cancelled. `load_ms` is how
    long the request took that loads the model.
    """

    id: str
    state: str
    model: str
    concurrency: int
    max_tokens: int
    done: int
    total: int
    elapsed_ms: int
    load_ms: int | None
    results: JsonObject
    shots: list[ShotDocument] | None = None


@frozen
class RunList:
    """The runs that can be read."""

    runs: list[RunDocument]


@frozen
class LoadTestBody:
    """What a run does."""

    model: str
    prompt: str = ""
    concurrency: int | None = None
    requests: int | None = None
    max_tokens: int | None = None


# Sends one streaming request to this server itself: `(path, body, chunk)`. It calls `chunk` with each piece of the
# response's body, and fires with the status at its end. Cancelling the Deferred cancels the request.
Generator: TypeAlias = Callable[[str, bytes, Callable[[bytes], None]], Deferred[int]]


@frozen
class LoadTestShot:
    """One request's outcome: seconds to the first piece and to the end, the number of pieces, and the status (0: none).

    `began` is in seconds since the run began, `lane` the number of the concurrent sender.
    """

    first: float | None
    total: float
    pieces: int
    status: int
    began: float
    lane: int

    def document(self) -> ShotDocument:
        """The request in milliseconds."""
        first = None if self.first is None else round(self.first * 1000)
        return ShotDocument(self.lane, round(self.began * 1000), first, round(self.total * 1000), self.status)


@define(eq=False)
class LoadTestRun:
    """One load test of `total` requests, of which `left` have not begun. `body` is that of each of its requests, empty
    once it has ended: a prompt may be large."""

    id: str
    model: str
    concurrency: int
    total: int
    max_tokens: int
    body: bytes = field(repr=False)
    began: float
    state: str = "loading"
    load: float | None = None
    ended: float | None = None
    shots: list[LoadTestShot] = field(factory=list)
    left: int = field(default=Factory(lambda self: self.total, takes_self=True))
    flights: set[Deferred[int]] = field(factory=set)

    @property
    def active(self) -> bool:
        """Whether it has not ended."""
        return self.state in ("loading", "running")

    def document(self, now: float, *, with_shots: bool = False) -> RunDocument:
        """The progress, the numbers of the requests that have ended, and the last of these."""
        span = (now if self.ended is None else self.ended) - self.began
        return RunDocument(
            id=self.id,
            state=self.state,
            model=self.model,
            concurrency=self.concurrency,
            max_tokens=self.max_tokens,
            done=len(self.shots),
            total=self.total,
            elapsed_ms=round(span * 1000),
            load_ms=None if self.load is None else round(self.load * 1000),
            results=self._results(span),
            shots=[shot.document() for shot in self.shots[-MAX_SHOTS_SHOWN:]] if with_shots else None,
        )

    def _results(self, span: float) -> JsonObject:
        good = [shot for shot in self.shots if shot.status == 200]
        pieces = sum(shot.pieces for shot in good)
        gaps = [
            (shot.total - shot.first) / (shot.pieces - 1) for shot in good if shot.first is not None and shot.pieces > 1
        ]
        statuses = Counter(shot.status for shot in self.shots)
        return {
            "errors": len(self.shots) - len(good),
            "statuses": {str(code): count for code, count in sorted(statuses.items())},
            "requests_per_second": round(len(good) / span, 3) if span > 0 else None,
            "tokens_per_second": round(pieces / span, 3) if span > 0 else None,
            "ttft_ms": _percentiles([shot.first for shot in good if shot.first is not None]),
            "itl_ms": _percentiles(gaps),
            "duration_ms": _percentiles([shot.total for shot in good]),
        }


route = RouteTable("loadtest", Route)


@define(eq=False)
class LoadTests:
    """/api/loadtest. One run at a time; `send` None: load tests are not available."""

    config: Callable[[], Config]
    clock: IReactorTime
    send: Generator | None
    runs: OrderedDict[str, LoadTestRun] = field(factory=OrderedDict, init=False)
    _last: int = field(default=0, init=False)

    @route("POST", "/api/loadtest", body=LoadTestBody, status=202, answer=RunDocument)
    def begin(self, call: AdminRequest) -> Response:
        """Begin a load test; its id leads to its progress."""
        send = self.send
        if send is None:
            raise HttpError(404, "load tests are not available on this server")
        if any(run.active for run in self.runs.values()):
            raise HttpError(409, "another load test is running; wait for its end or cancel it")
        run = self._ordered(call)
        self.runs[run.id] = run
        while len(self.runs) > MAX_RUNS:
            self.runs.popitem(last=False)
        Deferred.fromCoroutine(self._measure(run, send)).addErrback(lambda failure: self._failed(run, failure))
        return json_answer(run.document(self.clock.seconds()), 202)

    @route("GET", "/api/loadtest/<string:number>", answer=RunDocument)
    def show(self, call: AdminRequest) -> Response:
        """A load test's progress and numbers."""
        return json_answer(self._run(call).document(self.clock.seconds(), with_shots=True))

    @route("GET", "/api/loadtest", answer=RunList)
    def index(self, call: AdminRequest) -> Response:
        """The last load tests, newest first."""
        now = self.clock.seconds()
        return json_answer(RunList([run.document(now) for run in reversed(self.runs.values())]))

    @route("DELETE", "/api/loadtest/<string:number>", answer=RunDocument)
    def cancel(self, call: AdminRequest) -> Response:
        """Cancel a load test with its running requests."""
        run = self._run(call)
        self._stop(run)
        return json_answer(run.document(self.clock.seconds(), with_shots=True))

    def close(self) -> None:
        """Cancel every run, because the service stops."""
        for run in self.runs.values():
            self._stop(run)

    def _stop(self, run: LoadTestRun) -> None:
        if not run.active:
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

    def _ordered(self, call: AdminRequest) -> LoadTestRun:
        asked = call.json_object("invalid load test request")
        config = self.config()
        model = asked.get("model")
        if not isinstance(model, str) or (config.base(model) is None and model not in config.selectors):
            raise HttpError(404, "model not found")
        prompt = asked.get("prompt", "Write a short story about a llama.")
        if not isinstance(prompt, str):
            raise HttpError(400, "prompt must be a string")
        concurrency = _bounded(asked, "concurrency", 4, MAX_CONCURRENCY)
        requests = _bounded(asked, "requests", concurrency, MAX_REQUESTS)
        tokens = _bounded(asked, "max_tokens", 128, MAX_TOKENS)
        self._last += 1
        lanes, body = min(concurrency, requests), _request(model, prompt, tokens)
        return LoadTestRun(str(self._last), model, lanes, requests, tokens, body, self.clock.seconds())

    async def _measure(self, run: LoadTestRun, send: Generator) -> None:
        """Load the model. The prompt is not that of the run, because a server may keep what it computed for one."""
        first = await self._shot(run, 0, send, _request(run.model, "Hello", 1))
        if first is None:
            return
        if first.status != 200:
            run.shots.append(first)
            self._over(run, "failed")
            return
        run.load, run.began, run.state = first.total, self.clock.seconds(), "running"
        lanes = [Deferred.fromCoroutine(self._lane(run, lane, send)) for lane in range(run.concurrency)]
        await gatherResults(lanes, consumeErrors=True)
        self._over(run, "done")

    async def _lane(self, run: LoadTestRun, lane: int, send: Generator) -> None:
        while run.left > 0:
            run.left -= 1
            shot = await self._shot(run, lane, send, run.body)
            if shot is not None:
                run.shots.append(shot)

    async def _shot(self, run: LoadTestRun, lane: int, send: Generator, body: bytes) -> LoadTestShot | None:
        """Send one request; None: it was cancelled."""
        began, pieces = self.clock.seconds(), 0
        first: float | None = None

        def chunk(data: bytes) -> None:
            nonlocal first, pieces
            seen = data.count(b"data:") - data.count(b"data: [DONE]") - data.count(b"data:[DONE]")
            if seen and first is None:
                first = self.clock.seconds() - began
            pieces += seen

        flight = send("/v1/chat/completions", body, chunk)
        run.flights.add(flight)
        try:
            status = await flight
        except CancelledError:
            return None
        except Exception as error:  # a broken connection is a result of the test
            log.debug("a request of a load test failed and counts as an error: {error}", error=error)
            status = 0
        finally:
            run.flights.discard(flight)
        total = self.clock.seconds() - began
        return LoadTestShot(first, total, pieces, status, began - run.began, lane)

    def _over(self, run: LoadTestRun, state: str) -> None:
        if run.active:
            run.state = state
            run.ended = self.clock.seconds()
            run.body = b""

    def _failed(self, run: LoadTestRun, failure: Failure) -> None:
        log.failure("load test {id} failed and was cancelled", failure=failure, id=run.id)
        self._stop(run)


def _request(model: str, prompt: str, tokens: int) -> bytes:
    messages = [{"role": "user", "content": prompt}]
    return json_bytes({"model": model, "stream": True, "max_tokens": tokens, "messages": messages})


def _bounded(asked: JsonObject, name: str, default: int, most: int) -> int:
    value = asked.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise HttpError(400, f"{name} must be between 1 and {most}")
    return value


def _percentiles(seconds: list[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    ordered = sorted(value * 1000 for value in seconds)
    return {f"p{round(p * 100)}": round(percentile(ordered, p), 3) for p in (0.5, 0.9, 0.95, 0.99)}
