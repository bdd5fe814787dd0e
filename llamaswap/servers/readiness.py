"""Is it ready? Ask often at first, believe only a 200, and only from the server we started.

Every question has its own small time limit, so that a server which accepts and stays silent can neither stop
the asking nor outlast the deadline. Knows an endpoint and a way to ask; nothing of processes beyond a callable
that says whose listener it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from attrs import define, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.error import ConnectError, ConnectionRefusedError, TimeoutError
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IProtocolFactory,
    IReactorTCP,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Protocol as StreamProtocol
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from llamaswap.config import durations
from llamaswap.config.endpoints import Endpoint
from llamaswap.config.steps import StepRequest
from llamaswap.servers.port_ownership import PortOwner, Verdict

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
HEAD_BOUND = 4096  # bytes in which a status line must come

_log = Logger()
Speaker = TypeVar("Speaker", bound=StreamProtocol)

CONNECTED = 0  # the "status" of a question that only asked for a connection


GET = StepRequest("GET", "/")


class ReadinessRequest(Protocol):
    """One question: GET `path` (None: only connect), the status back; errback on anything else.

    `how` gives another method, and a body; its path does not count.
    """

    def __call__(self, endpoint: Endpoint, path: str | None, limit: float, how: StepRequest = GET) -> Deferred[int]: ...


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
    ask: ReadinessRequest
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


# -- asking over a socket ----------------------------------------------------------------------------------


class _ReadinessConnection(StreamProtocol):
    """A minimal request: the status line is all we want. The rest is let come, briefly: no server sees a reset."""

    def __init__(self, clock: IReactorTime, endpoint: Endpoint, path: str | None, how: StepRequest) -> None:
        self.answer: Deferred[int] = Deferred(self._give_up)
        self._clock = clock
        self._endpoint = endpoint
        self._path = path
        self._how = how
        self._head = b""
        self._cut: IDelayedCall | None = None
        self._pipe: Any = None  # the transport; aborting is only in the TCP one

    def connectionMade(self) -> None:
        self._pipe = self.transport
        if self._path is None:
            self._tell(CONNECTED)
            self._pipe.loseConnection()
            return
        target = f"{self._endpoint.path}/{self._path.lstrip('/')}"
        if self._endpoint.query:
            target += ("&" if "?" in target else "?") + self._endpoint.query
        body = self._how.body.encode()
        lines = [
            f"{self._how.method} {target} HTTP/1.1",
            f"Host: {self._endpoint.authority}",
            "User-Agent: llamaswap",
            "Accept: */*",
            "Connection: close",  # several servers have few threads, and a kept connection holds one
        ]
        if body:
            lines.append("Content-Type: application/json")
        if self._how.method != "GET":
            lines.append(f"Content-Length: {len(body)}")
        self._pipe.write("\r\n".join([*lines, "\r\n"]).encode("utf-8") + body)

    def dataReceived(self, data: bytes) -> None:
        if self._cut is not None:
            return
        self._head += data
        line, end, rest = self._head.partition(b"\r\n")
        if not end:
            if len(self._head) > HEAD_BOUND:
                self._fail("the answer is not HTTP")
            return
        words = line.split(b" ", 2)
        if not words[0].startswith(b"HTTP/") or len(words) < 2 or not words[1].isdigit():
            self._fail("the answer is not HTTP")
            return
        status = int(words[1])
        if status < 200:  # an interim answer: skip its head, the real one follows
            _, over, self._head = rest.partition(b"\r\n\r\n") if not rest.startswith(b"\r\n") else (b"", b"x", rest[2:])
            if over:
                self.dataReceived(b"")
            return
        self._cut = self._clock.callLater(0.25, self._pipe.abortConnection)
        self._tell(status)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._cut is not None and self._cut.active():
            self._cut.cancel()
        if not self.answer.called:
            self.answer.errback(ConnectError(string="the connection closed without an answer"))

    def _tell(self, status: int) -> None:
        if not self.answer.called:
            self.answer.callback(status)

    def _fail(self, why: str) -> None:
        self._pipe.abortConnection()
        if not self.answer.called:
            self.answer.errback(ConnectError(string=why))

    def _give_up(self, answer: Deferred[int]) -> None:
        self._pipe.abortConnection()


Connector = Callable[[Endpoint, float], list[IStreamClientEndpoint]]


def connector(reactor: IReactorTCP) -> Connector:
    """Ways to reach an endpoint, the likeliest first. `localhost` is both families: servers bind either."""

    def ways(endpoint: Endpoint, limit: float) -> list[IStreamClientEndpoint]:
        four = {"localhost": "127.0.0.1", "0.0.0.0": "127.0.0.1"}.get(endpoint.host, endpoint.host)
        found: list[IStreamClientEndpoint] = []
        if endpoint.host in ("::", "::1"):
            found.append(TCP6ClientEndpoint(reactor, "::1", endpoint.port, timeout=limit))
        elif four.replace(".", "").isdigit():
            found.append(TCP4ClientEndpoint(reactor, four, endpoint.port, timeout=limit))
            if endpoint.host == "localhost":
                found.append(TCP6ClientEndpoint(reactor, "::1", endpoint.port, timeout=limit))
        else:
            found.append(HostnameEndpoint(reactor, endpoint.host.encode(), endpoint.port, timeout=limit))
        if endpoint.scheme == "https":
            from twisted.internet.ssl import optionsForClientTLS  # an extra: only who configures https needs it

            options = optionsForClientTLS(endpoint.host)
            found = [wrapClientTLS(options, way) for way in found]
        return found

    return ways


@frozen
class SocketReadinessRequest:
    """Ask over a connection of its own, with one time limit over everything."""

    clock: IReactorTime
    ways: Connector

    def __call__(self, endpoint: Endpoint, path: str | None, limit: float, how: StepRequest = GET) -> Deferred[int]:
        asked = Deferred.fromCoroutine(self._ask(endpoint, path, limit, how))
        return asked.addTimeout(limit, self.clock, onTimeoutCancel=_too_slow)

    async def _ask(self, endpoint: Endpoint, path: str | None, limit: float, how: StepRequest) -> int:
        question = await connected(
            self.ways(endpoint, limit), lambda: _ReadinessConnection(self.clock, endpoint, path, how)
        )
        return await question.answer


async def connected(ways: Sequence[IStreamClientEndpoint], make: Callable[[], Speaker]) -> Speaker:
    """A protocol of this making, connected by the first way that leads there."""
    for number, way in enumerate(ways):
        speaker = make()
        try:
            await way.connect(_Single(speaker))
        except ConnectError:
            if number + 1 == len(ways):
                raise
        else:
            return speaker
    raise ConnectError(string="no way to reach it")


@implementer(IProtocolFactory)
class _Single:
    """Hands out the one protocol it was made for."""

    def __init__(self, speaker: StreamProtocol) -> None:
        self._speaker = speaker

    def doStart(self) -> None:
        pass

    def doStop(self) -> None:
        pass

    def buildProtocol(self, addr: IAddress) -> StreamProtocol:
        return self._speaker


def _too_slow(result: int | Failure, limit: float) -> int | Failure:
    """Our own time limit looks like any other timeout."""
    if isinstance(result, Failure) and result.check(CancelledError):
        raise TimeoutError(string=f"no answer within {durations.render(limit)}")
    return result
