"""Notices servers that hang: their streams stand still, nothing shows that they work, and they answer nothing.

A pause alone proves nothing: servers think, wait for tools, prepare a long prompt. So only streams that were under way
count, and silence is measured against the longest pause that the same model ever came back from. Then the server is
watched for a while, and any sign of life acquits it; a question that may have to queue behind the silent stream comes
last and never alone. What is done about a hung server is the router's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from attrs import define, field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger

from llamaswap.config.schema import HangDetection, Model
from llamaswap.liveness.sample import LivenessSample

LOOK = 2.0  # seconds between two looks; pauses are measured this coarsely, which is fine enough for minutes
LEFT = 3 * LOOK  # seconds of silence before its client left that make an ended stream worth remembering

log = Logger()


@frozen
class OpenStream:
    """One stream under way: how many bytes its client was sent, `granted` once its model's server has it."""

    request: str
    model: str
    sent: int
    granted: bool


@define
class _Seen:
    model: str
    sent: int
    at: float
    granted: bool
    flowing: bool = False


def stall_of(model: Model) -> HangDetection | None:
    """The thresholds for a model; None where nobody is to watch, as by default where websockets are ignored."""
    stall = model.stall
    if stall.after <= 0 or (model.compat.ignore_websockets and stall == HangDetection()):
        return None
    return stall


def alive(before: LivenessSample | None, now: LivenessSample | None, seconds: float, stall: HangDetection) -> str:
    """What shows, in two looks so many seconds apart, that a server works; "" where nothing does."""
    if before is None or now is None:
        return "it cannot be looked at"
    if before.leader != now.leader:
        return "it was started anew meanwhile"
    if before.unread or now.unread:
        return "its answers wait for a slow reader"
    if "log" in stall.signs and now.said > before.said:
        return "it writes to its log"
    if "gpu" in stall.signs and max(before.gpu, now.gpu) > stall.gpu:
        return f"a GPU is busy ({max(before.gpu, now.gpu):.0f} %)"
    if "cpu" not in stall.signs:
        return ""
    if before.processes is None or now.processes is None:
        return "its processes cannot be looked at"
    if before.wants or now.wants:
        return "it runs, or waits for a processor or a disk"
    if before.processes.keys() != now.processes.keys():
        return "its processes come and go"
    spent = sum(cpu - before.processes[pid][0] for pid, (cpu, _) in now.processes.items())
    if spent * 100 > stall.cpu * seconds:
        return f"its processes used {spent:.2f}s of CPU time in {seconds:.0f}s"
    if any(pages > before.processes[pid][1] for pid, (_, pages) in now.processes.items()):
        return "it reads from disk"
    return ""


@define(eq=False)
class Watchdog:
    """`streams` lists what is under way, `waiting` says whether requests of a model are, `stall` gives its thresholds.

    `signs` looks at a model's server, `health` and `canary` ask it (a small question, a chat of one token) and say
    whether it answered within so many seconds. `hangs(model, why)` is told of a server that hangs.
    """

    clock: IReactorTime
    streams: Callable[[], Iterable[OpenStream]]
    waiting: Callable[[str], bool]
    stall: Callable[[str], HangDetection | None]
    signs: Callable[[str], Deferred[LivenessSample | None]]
    health: Callable[[str, float], Deferred[bool]]
    canary: Callable[[str, float], Deferred[bool]]
    hangs: Callable[[str, str], None]
    _seen: dict[str, _Seen] = field(factory=dict, init=False)
    _pauses: dict[str, float] = field(factory=dict, init=False)
    _left: dict[str, float] = field(factory=dict, init=False)
    _acquitted: dict[str, tuple[float, str]] = field(factory=dict, init=False)
    _asking: set[str] = field(factory=set, init=False)
    _hung: dict[str, int] = field(factory=dict, init=False)
    _loop: LoopingCall | None = field(default=None, init=False)

    def start(self) -> None:
        """Look from now on."""
        self._loop = loop = LoopingCall(self.look)
        loop.clock = self.clock
        loop.start(LOOK, now=False).addErrback(
            lambda failure: log.failure("hang detection stopped unexpectedly", failure)
        )

    def stop(self) -> None:
        """No more."""
        if self._loop is not None:
            self._loop.stop()
            self._loop = None

    def retain(self, models: Iterable[str]) -> None:
        """Only these models exist now."""
        kept = set(models)
        for books in (self._pauses, self._left, self._acquitted, self._hung):
            for model in books.keys() - kept:
                del books[model]

    def document(self, model: str) -> dict[str, Any]:
        """How a model stands, and the thresholds it is judged by, for the API."""
        stall = self.stall(model)
        if stall is None:
            return {"watched": False}
        silence = self._silences().get(model)
        acquitted = self._acquitted.get(model)
        return {
            "watched": True,
            "after_s": stall.after,
            "times": stall.times,
            "canary_s": stall.canary,
            "signs": list(stall.signs),
            "cpu_pct": stall.cpu,
            "gpu_pct": stall.gpu,
            "longest_pause_s": round(self._pauses.get(model, 0.0), 3),
            "silent_s": None if silence is None else round(self.clock.seconds() - silence, 3),
            "judged_at_s": self._patience(model, stall),
            "asking": model in self._asking,
            "last_sign": None if acquitted is None else acquitted[1],
            "ended": self._hung.get(model, 0),
        }

    # -- silence -------------------------------------------------------------------------------------------

    def look(self) -> None:
        """One look at all streams."""
        now = self.clock.seconds()
        earlier, self._seen = self._seen, {}
        moving: set[str] = set()
        for stream in self.streams():
            seen = earlier.pop(stream.request, None)
            if seen is None:
                seen = _Seen(stream.model, stream.sent, now, stream.granted)
            elif seen.sent != stream.sent:
                if seen.flowing:
                    self._note_pause(stream.model, now - seen.at)
                # What came before the grant, or just then, was our own text about the loading.
                seen = _Seen(stream.model, stream.sent, now, stream.granted, flowing=seen.granted)
            seen.granted = stream.granted
            if seen.at == now:
                moving.add(stream.model)
            self._seen[stream.request] = seen
        for gone in earlier.values():
            if gone.flowing and now - gone.at >= LEFT:
                # Its client lost patience before us, and so may the next one: the silence goes on.
                self._left[gone.model] = min(gone.at, self._left.get(gone.model, gone.at))
        for model in moving:
            self._moved(model)
        for model, since in self._silences().items():
            stall = self.stall(model)
            if model in self._asking or stall is None or now - since < self._patience(model, stall):
                continue
            if now - self._acquitted.get(model, (-stall.after, ""))[0] >= stall.after:
                self._asking.add(model)
                asked = Deferred.fromCoroutine(self._judge(model, now - since, stall))
                asked.addErrback(lambda failure: log.failure("judging a silent server failed", failure))

    def _silences(self) -> dict[str, float]:
        """Since when the models with streams under way are silent."""
        silences = {model: since for model, since in self._left.items() if self.waiting(model)}
        last: dict[str, float] = {}
        for seen in self._seen.values():
            if seen.flowing:
                last[seen.model] = max(seen.at, last.get(seen.model, seen.at))
        return {**last, **silences}

    def _patience(self, model: str, stall: HangDetection) -> float:
        return max(stall.after, stall.times * self._pauses.get(model, 0.0))

    def _moved(self, model: str) -> None:
        self._left.pop(model, None)
        self._acquitted.pop(model, None)

    def _note_pause(self, model: str, pause: float) -> None:
        self._pauses[model] = max(pause, self._pauses.get(model, 0.0))

    def _counts(self, model: str) -> dict[str, int]:
        return {stream.request: stream.sent for stream in self.streams() if stream.model == model and stream.sent}

    # -- judgement -----------------------------------------------------------------------------------------

    async def _judge(self, model: str, silence: float, stall: HangDetection) -> None:
        log.info("{model}: no byte on any stream for {silence:.0f}s; looking at it", model=model, silence=silence)
        began, before = self.clock.seconds(), self._counts(model)
        try:
            sign = await self._sign_of_life(model, stall)
        finally:
            self._asking.discard(model)
        if any(before.get(request) != sent for request, sent in self._counts(model).items()):
            return  # something came: no more has to be known
        now = self.clock.seconds()
        if sign:
            self._acquitted[model] = now, sign
            self._left.pop(model, None)
            log.info("{model} is silent but alive: {sign}", model=model, sign=sign)
            return
        self._left.pop(model, None)
        self._hung[model] = self._hung.get(model, 0) + 1
        watched = f"no sign of life and no answer in {now - began:.0f}s"
        self.hangs(model, f"it hung: no byte on its streams for {silence:.0f}s, then {watched}")

    async def _sign_of_life(self, model: str, stall: HangDetection) -> str:
        """What acquits it, in words; "" for nothing at all."""
        began, first = self.clock.seconds(), await self.signs(model)
        if "health" in stall.signs and await self.health(model, stall.canary):
            return "it answers the health check"
        left = stall.canary - (self.clock.seconds() - began)
        if left > 0:
            await deferLater(self.clock, left)
        second = await self.signs(model)
        sign = alive(first, second, self.clock.seconds() - began, stall)
        if sign:
            return sign
        if await self.canary(model, stall.canary):
            return "it answers a request"
        return alive(first, await self.signs(model), self.clock.seconds() - began, stall)


@define(eq=False)
class OutputCounter:
    """Counts what servers print."""

    counts: dict[str, int] = field(factory=dict)

    def writer(self, model: str, write: Callable[[bytes], None]) -> Callable[[bytes], None]:
        """`write`, and note how much passed."""

        def heard(data: bytes) -> None:
            self.counts[model] = self.counts.get(model, 0) + len(data)
            write(data)

        return heard
