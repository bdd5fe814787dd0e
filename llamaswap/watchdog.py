"""Notices servers that hang: their streams stand still, and a small question put to them gets no answer either.

A pause alone proves nothing: servers think, wait for tools, prepare a long prompt. So only streams that were under way
count, silence is measured against the longest pause that the same model ever came back from, and a canary has the last
word. What is done about a hung server is the router's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from attrs import define, field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from llamaswap.config.schema import Model, Stall

LOOK = 2.0  # seconds between two looks; pauses are measured this coarsely, which is fine enough for minutes

log = Logger()


@frozen
class Stream:
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


def stall_of(model: Model) -> Stall | None:
    """The thresholds for a model; None where nobody is to watch, as by default where websockets are ignored."""
    stall = model.stall
    if stall.after <= 0 or (model.compat.ignore_websockets and stall == Stall()):
        return None
    return stall


@define(eq=False)
class Watchdog:
    """`streams` lists what is under way, `stall` gives a model's thresholds, `canary` asks a model's server and says
    whether it answered within so many seconds, `hangs(model, why)` is told of a server that does not."""

    clock: IReactorTime
    streams: Callable[[], Iterable[Stream]]
    stall: Callable[[str], Stall | None]
    canary: Callable[[str, float], Deferred[bool]]
    hangs: Callable[[str, str], None]
    _seen: dict[str, _Seen] = field(factory=dict, init=False)
    _pauses: dict[str, float] = field(factory=dict, init=False)
    _asking: set[str] = field(factory=set, init=False)
    _loop: LoopingCall | None = field(default=None, init=False)

    def start(self) -> None:
        """Look from now on."""
        self._loop = loop = LoopingCall(self.look)
        loop.clock = self.clock
        loop.start(LOOK, now=False).addErrback(lambda failure: log.failure("nobody looks for hung servers", failure))

    def stop(self) -> None:
        """No more."""
        if self._loop is not None:
            self._loop.stop()
            self._loop = None

    def retain(self, models: Iterable[str]) -> None:
        """Only these models exist now."""
        kept = set(models)
        self._pauses = {model: pause for model, pause in self._pauses.items() if model in kept}

    def look(self) -> None:
        """One look at all streams."""
        now = self.clock.seconds()
        earlier, self._seen = self._seen, {}
        moving: set[str] = set()
        for stream in self.streams():
            seen = earlier.get(stream.request)
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
        for model in {seen.model for seen in self._seen.values() if seen.flowing} - moving - self._asking:
            silence = min(now - seen.at for seen in self._seen.values() if seen.model == model and seen.flowing)
            stall = self.stall(model)
            if stall is not None and silence >= max(stall.after, stall.times * self._pauses.get(model, 0.0)):
                self._asking.add(model)
                asked = Deferred.fromCoroutine(self._ask(model, silence, stall.canary))
                asked.addErrback(lambda failure: log.failure("asking a silent server failed", failure))

    async def _ask(self, model: str, silence: float, limit: float) -> None:
        before = self._counts(model)
        log.info("{model}: no byte on any stream for {silence:.0f}s; asking it", model=model, silence=silence)
        try:
            answered = await self.canary(model, limit)
        finally:
            self._asking.discard(model)
        if answered:
            self._note_pause(model, silence)
        elif before and self._counts(model) == before:
            self.hangs(model, f"it hung: no byte on its streams for {silence:.0f}s, and no answer in {limit:g}s")

    def _counts(self, model: str) -> dict[str, int]:
        return {stream.request: stream.sent for stream in self.streams() if stream.model == model and stream.sent}

    def _note_pause(self, model: str, pause: float) -> None:
        self._pauses[model] = max(pause, self._pauses.get(model, 0.0))
