"""Is it ready? Ask often at first, believe only a 200, and only from the server we started.

Every question has its own small time limit, so that a server which accepts and stays silent can neither stop
the asking nor outlast the deadline. Knows an endpoint and a way to ask; nothing of processes beyond a callable
that says whose listener it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from attrs import define
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionRefusedError, TimeoutError
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaswap.config import durations
from llamaswap.config.endpoints import Endpoint
from llamaswap.servers.port_ownership import PortOwner, Verdict
from llamaswap.servers.server_request import CONNECTED, ServerRequest

FAST_PROBE_INTERVAL = 0.010  # seconds between questions in the first half second: small models load in a tenth
NORMAL_PROBE_INTERVAL = 0.025  # up to the second second
SLOW_PROBE_INTERVAL = 0.1  # and at most, later; with half of it lost on average
FIRST_LIMIT = 1.0  # seconds a question may take at first
LAST_LIMIT = 5.0  # and after it doubled: some servers answer slowly while they load
HINT_GAP = 0.005  # seconds between questions prompted by output; a flood of it must not become a flood of questions
HINT_GAP_LATER = 0.05
# What a server says when it is up, in whatever words: llama.cpp, vLLM, uvicorn, Ollama, SGLang, koboldcpp.
ANNOUNCES = re.compile(rb"listen|ready|running on|startup complete|started|serving|fired up|please connect", re.I)
ANNOUNCEMENT = 2048  # bytes at the end of what was said in which it is looked for
ANNOUNCED_GAP = 0.001  # seconds after which such a line is believed: nothing else is worth asking twice for
DEADLINE_STEP = 1.0  # seconds between looks at the deadline
STEP_AT_MOST = 2.0  # seconds one such step counts at most: a longer one means that this process did not run
COMPLAIN_404 = 5.0  # seconds of nothing but 404 before the log says what to do
NEWCOMER_PATIENCE = 2.0  # seconds a stranger younger than our child may hold the port before we take it for ours

_log = Logger()


def pause_after(elapsed: float) -> float:
    """How long to wait for the next question, `elapsed` seconds after the start."""
    if elapsed < 0.5:
        return FAST_PROBE_INTERVAL
    if elapsed < 2.0:
        return NORMAL_PROBE_INTERVAL
    return min(SLOW_PROBE_INTERVAL, NORMAL_PROBE_INTERVAL + (elapsed - 2.0) * 0.01)


@define(eq=False)
class Readiness:
    """Asks until the server is ready, or until `deadline` seconds have passed in which this process ran.

    `path` None asks for a connection only. `find_owner` says whose listener answered. Exactly one of `passed()` and
    `failed(cause)` is called, unless `cancel` came first. `explain` adds what is known when time is up.
    """

    clock: IReactorTime
    ask: ServerRequest
    endpoint: Endpoint
    path: str | None
    deadline: float
    find_owner: Callable[[], Verdict]
    passed: Callable[[], None]
    failed: Callable[[str], None]
    explain: Callable[[], str] = lambda: ""
    name: str = ""
    _began: float = 0.0
    _waited: float = 0.0
    _stepped_at: float = 0.0
    _limit: float = FIRST_LIMIT
    _timer: IDelayedCall | None = None
    _alarm: IDelayedCall | None = None
    _asking: Deferred[int] | None = None
    _asked_at: float = 0.0
    _announced_at: float = float("-inf")
    _hinted: float | None = None
    _last: str = ""
    _missing_since: float | None = None
    _complained: bool = False
    _stranger_since: float | None = None
    _over: bool = False

    def start(self) -> None:
        """Begin; the first question comes after a moment, since no process is up at once."""
        self._began = self._stepped_at = self.clock.seconds()
        self._alarm = self.clock.callLater(min(DEADLINE_STEP, self.deadline), self._count_time)
        self._timer = self.clock.callLater(FAST_PROBE_INTERVAL, self._question)

    def hint(self, said: bytes = b"") -> None:
        """The server said something: perhaps that it listens now. Ask, but not for every line of a flood."""
        now = self.clock.seconds()
        gap = HINT_GAP if now - self._began < 2.0 else HINT_GAP_LATER
        if ANNOUNCES.search(said[-ANNOUNCEMENT:]) and now - self._announced_at >= gap:
            self._announced_at = now
            gap = ANNOUNCED_GAP
        if self._asking is not None:
            # The answer may be from before; the next question need not wait its turn.
            self._hinted = gap if self._hinted is None else min(self._hinted, gap)
        if self._timer is not None and self._timer.active():
            wait = max(0.0, self._asked_at + gap - now)
            if self._timer.getTime() > now + wait:
                self._timer.reset(wait)

    def cancel(self) -> None:
        """Nobody wants to know any more."""
        self._over = True
        for call in (self._timer, self._alarm):
            if call is not None and call.active():
                call.cancel()
        self._timer = self._alarm = None
        asking, self._asking = self._asking, None
        if asking is not None:
            asking.cancel()

    def _question(self) -> None:
        self._timer = None
        self._asked_at = self.clock.seconds()
        asking = self._asking = self.ask(self.endpoint, self.path, self._limit)
        asking.addCallbacks(self._answered, self._unanswered)
        asking.addErrback(self._broke)

    def _answered(self, status: int) -> None:
        self._asking = None
        if self._over:
            return
        now = self.clock.seconds()
        self._note_missing(status, now)
        if status in (CONNECTED, 200):
            verdict = self.find_owner()
            if self._believable(verdict, now):
                self.cancel()
                self.passed()
                return
            self._last = f"port {self.endpoint.port} is answered by {verdict.process}, which is not this model's server"
        else:
            self._last = f"GET {self.path} answered {status}"
            if status == 404:
                self._last += "; set checkEndpoint to a path that answers 200 once the server is ready"
        self._again(now)

    def _unanswered(self, failure: Failure) -> None:
        self._asking = None
        if self._over:
            failure.trap(CancelledError, Exception)
            return
        if failure.check(TimeoutError):
            self._last = f"GET {self.path} got no answer within {durations.render(self._limit)}"
            self._limit = min(LAST_LIMIT, self._limit * 2)
        elif failure.check(ConnectionRefusedError):
            self._last = f"nothing listens on {self.endpoint.host}:{self.endpoint.port}"
        else:
            self._last = f"GET {self.path}: {failure.getErrorMessage()}"
        self._missing_since = None
        self._again(self.clock.seconds())

    def _broke(self, failure: Failure) -> None:
        """A fault of ours must not leave the model starting for ever without a word."""
        _log.failure("readiness check of {model} failed", failure=failure, model=self.name)
        if not self._over and self._timer is None:
            self._again(self.clock.seconds())

    def _again(self, now: float) -> None:
        pause = pause_after(now - self._began)
        if self._hinted is not None:
            pause = min(pause, max(0.0, self._asked_at + self._hinted - now))
            self._hinted = None
        self._timer = self.clock.callLater(pause, self._question)

    def _note_missing(self, status: int, now: float) -> None:
        """A health path that does not exist looks like a slow load; say so while there is time to mend it."""
        if status != 404:
            self._missing_since = None
            return
        if self._missing_since is None:
            self._missing_since = now
        elif now - self._missing_since >= COMPLAIN_404 and not self._complained:
            self._complained = True
            _log.warn(
                "{model}: GET {path} keeps answering 404; set checkEndpoint to a path that answers 200", **self._about()
            )

    def _believable(self, verdict: Verdict, now: float) -> bool:
        if verdict.owner in (PortOwner.OURS, PortOwner.UNKNOWN, PortOwner.EXTERNAL):
            return True
        if verdict.owner is PortOwner.FOREIGN:
            return False
        if self._stranger_since is None:
            self._stranger_since = now
        if now - self._stranger_since < NEWCOMER_PATIENCE:
            return False
        _log.warn(
            "{model}: port {port} is served by {process}, not started by this command; assuming it is the server",
            process=verdict.process,
            **self._about(),
        )
        return True

    def _about(self) -> dict[str, object]:
        return {"model": self.name, "path": self.path, "port": self.endpoint.port}

    def _count_time(self) -> None:
        """Add the time since the last step; a proxy that was stopped must not fail a start on being continued."""
        now = self.clock.seconds()
        self._waited += min(now - self._stepped_at, STEP_AT_MOST)
        self._stepped_at = now
        left = self.deadline - self._waited
        if left > 1e-6:  # sums of floating-point steps fall short of the deadline by less than this
            self._alarm = self.clock.callLater(min(DEADLINE_STEP, left), self._count_time)
        else:
            self._time_is_up()

    def _time_is_up(self) -> None:
        self._alarm = None
        said = [f"health check timed out after {durations.render(self.deadline)}", self._last, self.explain()]
        self.cancel()
        self.failed(": ".join(part for part in said if part))
