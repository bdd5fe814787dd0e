"""Readiness checks: ask a starting server often at first, accept only a 200, and only from the server that was started.

Each request has a short time limit, so that a server which accepts and stays silent cannot stop the checks. If one
passes it, a second request runs beside the others for as long as the start may take: some health checks are slow. The
start fails after `timeout` seconds without progress (output, memory, bytes read), and after `longest` in any case.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError, TimeoutError
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaswap.config import durations
from llamaswap.config.endpoints import Endpoint
from llamaswap.servers.port_ownership import PortOwner, Verdict
from llamaswap.servers.server_request import CONNECTED, ServerRequest

FAST_PROBE_INTERVAL = 0.010  # seconds between requests in the first half second: small models load in a tenth
NORMAL_PROBE_INTERVAL = 0.025  # up to the second second
SLOW_PROBE_INTERVAL = 0.1  # at most, later; half of it is lost on average
FIRST_LIMIT = 1.0  # seconds a request may take at first
LAST_LIMIT = 5.0  # and after it doubled: some servers answer slowly while they load
HINT_INTERVAL = 0.005  # seconds between requests prompted by output, so that a flood of it is not a flood of requests
LATER_HINT_INTERVAL = 0.05
# What a ready server prints: llama.cpp, vLLM, uvicorn, Ollama, SGLang, koboldcpp.
ANNOUNCEMENT = re.compile(rb"listen|ready|running on|startup complete|started|serving|fired up|please connect", re.I)
ANNOUNCEMENT_BYTES = 2048  # at the end of the output, searched for an announcement
ANNOUNCEMENT_DELAY = 0.001  # seconds from an announcement to the next request
STEP_INTERVAL = 1.0  # seconds between two looks at the time and at the progress
LONGEST_STEP = 2.0  # seconds that one step counts at most: a longer one means that this process did not run
PROGRESS_BYTES = 1 << 20  # per step, read or taken as memory, that count as progress
MISSING_PAGE_WARNING = 5.0  # seconds of 404 responses alone before the log says what to do
NEWCOMER_PERIOD = 2.0  # seconds that a process younger than the child has the port before it counts as the server

_log = Logger()


def pause_after(elapsed: float) -> float:
    """Seconds to the next request, `elapsed` seconds after the start."""
    if elapsed < 0.5:
        return FAST_PROBE_INTERVAL
    if elapsed < 2.0:
        return NORMAL_PROBE_INTERVAL
    return min(SLOW_PROBE_INTERVAL, NORMAL_PROBE_INTERVAL + (elapsed - 2.0) * 0.01)


@define(eq=False)
class Readiness:
    """Asks until the server is ready or the start has failed. Exactly one of `passed()` and `failed(cause)` is called.

    `path` None asks for a connection only. `find_owner` says whose listener answered. `work` gives the bytes that the
    server has in memory and has read. `explain` adds what is known about a server that never answered.
    """

    clock: IReactorTime
    send: ServerRequest
    endpoint: Endpoint
    path: str | None
    timeout: float
    longest: float
    find_owner: Callable[[], Verdict]
    passed: Callable[[], None]
    failed: Callable[[str], None]
    work: Callable[[], tuple[int, int]] = lambda: (0, 0)
    explain: Callable[[], str] = lambda: ""
    name: str = ""
    _began: float = 0.0
    _elapsed: float = 0.0  # seconds in which this process ran
    _progress_at: float = 0.0  # of the same
    _step_at: float = 0.0
    _last_work: tuple[int, int] = (0, 0)
    _limit: float = FIRST_LIMIT
    _timer: IDelayedCall | None = None
    _step: IDelayedCall | None = None
    _request: Deferred[int] | None = None
    _patient_request: Deferred[int] | None = None
    _sent_at: float = 0.0
    _announced_at: float = float("-inf")
    _hint: float | None = None
    _problem: str = ""
    _missing_since: float | None = None
    _warned: bool = False
    _newcomer_since: float | None = None
    _over: bool = field(default=False, init=False)

    def start(self) -> None:
        """Begin. The first request follows after a moment, because no process is ready at once."""
        self._began = self._step_at = self.clock.seconds()
        self._step = self.clock.callLater(min(STEP_INTERVAL, self.timeout), self._count_time)
        self._timer = self.clock.callLater(FAST_PROBE_INTERVAL, self._ask)

    def hint(self, output: bytes = b"") -> None:
        """The server printed something and may listen now: ask, but not for every line of a flood.

        Output is progress, except for lines about the check itself: many servers log each request.
        """
        now = self.clock.seconds()
        own = b"GET" if self.path in ("", "/") else (self.path or "\n").encode()
        if any(line.strip() and own not in line for line in output.splitlines()):
            self._progress_at = self._elapsed + min(now - self._step_at, LONGEST_STEP)
        interval = HINT_INTERVAL if now - self._began < 2.0 else LATER_HINT_INTERVAL
        if ANNOUNCEMENT.search(output[-ANNOUNCEMENT_BYTES:]) and now - self._announced_at >= interval:
            self._announced_at = now
            interval = ANNOUNCEMENT_DELAY
        if self._request is not None:
            # Its response may be from before the output, so the next request does not wait for its turn.
            self._hint = interval if self._hint is None else min(self._hint, interval)
        if self._timer is not None and self._timer.active():
            wait = max(0.0, self._sent_at + interval - now)
            if self._timer.getTime() > now + wait:
                self._timer.reset(wait)

    def cancel(self) -> None:
        """Stop asking; neither `passed` nor `failed` will be called."""
        self._over = True
        for call in (self._timer, self._step):
            if call is not None and call.active():
                call.cancel()
        self._timer = self._step = None
        requests = (self._request, self._patient_request)
        self._request = self._patient_request = None
        for request in requests:
            if request is not None:
                request.cancel()

    # -- requests ------------------------------------------------------------------------------------------

    def _ask(self) -> None:
        self._timer = None
        self._sent_at = self.clock.seconds()
        request = self._request = self.send(self.endpoint, self.path, self._limit)
        request.addCallbacks(self._answered, self._unanswered)
        request.addErrback(self._broke)

    def _answered(self, status: int) -> None:
        self._request = None
        if not self._over and not self._accept(status):
            self._ask_later()

    def _unanswered(self, failure: Failure) -> None:
        self._request = None
        if self._over:
            return
        if failure.check(TimeoutError):
            self._problem = f"GET {self.path} got no answer within {durations.render(self._limit)}"
            self._limit = min(LAST_LIMIT, self._limit * 2)
            self._ask_patiently()
        elif failure.check(ConnectionRefusedError):
            self._problem = f"nothing listens on {self.endpoint.host}:{self.endpoint.port}"
        else:
            self._problem = f"GET {self.path}: {failure.getErrorMessage()}"
        self._missing_since = None
        self._ask_later()

    def _ask_patiently(self) -> None:
        """Have one request open that may take as long as the start."""
        if self._patient_request is not None:
            return

        def ended(result: int | Failure) -> None:
            self._patient_request = None
            if isinstance(result, int) and not self._over:
                self._accept(result)

        request = self.send(self.endpoint, self.path, self.timeout)
        self._patient_request = request
        request.addBoth(ended).addErrback(self._broke)

    def _broke(self, failure: Failure) -> None:
        """An error of this program must not leave the model starting without end."""
        _log.failure("readiness check of {model} failed", failure=failure, model=self.name)
        if not self._over and self._timer is None and self._request is None:
            self._ask_later()

    def _ask_later(self) -> None:
        now = self.clock.seconds()
        pause = pause_after(now - self._began)
        if self._hint is not None:
            pause = min(pause, max(0.0, self._sent_at + self._hint - now))
            self._hint = None
        self._timer = self.clock.callLater(pause, self._ask)

    @property
    def _url(self) -> str:
        return f"{str(self.endpoint).rstrip('/')}{self.path or ''}"

    # -- responses -----------------------------------------------------------------------------------------

    def _accept(self, status: int) -> bool:
        """Whether a response shows that the server is ready."""
        now = self.clock.seconds()
        if status in (CONNECTED, 200):
            verdict = self.find_owner()
            if self._is_server(verdict, now):
                _log.info("{model}: Health check passed on {url}", model=self.name, url=self._url)
                self.cancel()
                self.passed()
                return True
            self._problem = (
                f"port {self.endpoint.port} is answered by {verdict.process}, which is not this model's server"
            )
        else:
            self._problem = f"GET {self.path} answered {status}"
        _log.debug("{model}: readiness check: {problem}", model=self.name, problem=self._problem)
        self._note_missing(status, now)
        return False

    def _note_missing(self, status: int, now: float) -> None:
        """A health path that does not exist looks like a slow load, so the log says it before the start fails."""
        if status != 404:
            self._missing_since = None
            return
        self._problem += "; set checkEndpoint to a path that answers 200 once the server is ready"
        if self._missing_since is None:
            self._missing_since = now
        elif now - self._missing_since >= MISSING_PAGE_WARNING and not self._warned:
            self._warned = True
            _log.warn(
                "{model}: GET {path} keeps answering 404; set checkEndpoint to a path that answers 200",
                model=self.name,
                path=self.path,
            )

    def _is_server(self, verdict: Verdict, now: float) -> bool:
        if verdict.owner is PortOwner.FOREIGN:
            return False
        if verdict.owner is not PortOwner.NEWCOMER:
            return True
        if self._newcomer_since is None:
            self._newcomer_since = now
        if now - self._newcomer_since < NEWCOMER_PERIOD:
            return False
        _log.warn(
            "{model}: port {port} is served by {process}, not started by this command; assuming it is the server",
            model=self.name,
            port=self.endpoint.port,
            process=verdict.process,
        )
        return True

    # -- time ----------------------------------------------------------------------------------------------

    def _count_time(self) -> None:
        """Add the time since the last step. Time in which this process was stopped does not count."""
        now = self.clock.seconds()
        self._elapsed += min(now - self._step_at, LONGEST_STEP)
        self._step_at = now
        work = self.work()
        if any(after - before >= PROGRESS_BYTES for before, after in zip(self._last_work, work, strict=True)):
            self._progress_at = self._elapsed
        self._last_work = work
        left = min(self._progress_at + self.timeout, self.longest) - self._elapsed
        if left > 1e-6:  # sums of floating-point steps fall short of the deadline by less than this
            self._step = self.clock.callLater(min(STEP_INTERVAL, left), self._count_time)
        else:
            self._time_is_up()

    def _time_is_up(self) -> None:
        self._step = None
        cause = f"health check timed out after {durations.render(round(self._elapsed, 1))}"
        if self._progress_at:
            idle = durations.render(round(self._elapsed - self._progress_at, 1))
            cause += f", {idle} after the last output or progress"
        parts = [cause, self._problem, self.explain()]
        self.cancel()
        self.failed(": ".join(part for part in parts if part))
