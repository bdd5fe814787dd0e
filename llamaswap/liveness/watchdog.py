"""Detects servers that hang: their streams are silent, no activity is visible, and they do not answer.

Silence alone proves nothing: servers think, wait for tools, prepare a long prompt. So only streams that had output
count, and silence is compared with the longest pause after which the same model ever went on. Then the server is
sampled for a while, and any sign of life clears it. A request, which may have to queue behind the silent stream, comes
last and never alone. What follows for a hung server is decided by the router.
"""

from __future__ import annotations

from collections.abc import Iterable

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger

from llamaswap.config.schema.model import HangDetection
from llamaswap.liveness.sample import LivenessSample
from llamaswap.liveness.watched_models import WatchedModels

CHECK_INTERVAL = 2.0  # seconds between two looks at the streams; pauses of minutes need no finer measure
ABANDONED_SILENCE = 3 * CHECK_INTERVAL  # seconds of silence after which a client that leaves does not end the silence

log = Logger()


@define
class _StreamProgress:
    """When a stream's count last changed. `flowing`: it had output from the server, not only our loading messages."""

    model: str
    sent: int
    at: float
    granted: bool
    flowing: bool = False


def sign_of_life(
    before: LivenessSample | None, now: LivenessSample | None, seconds: float, settings: HangDetection
) -> str:
    """What shows, in two samples `seconds` apart, that a server works; "" if nothing does."""
    if before is None or now is None:
        return "it cannot be observed"
    if before.leader != now.leader:
        return "it was restarted meanwhile"
    if before.unread or now.unread:
        return "its output waits for a slow reader"
    if "log" in settings.signs and now.printed > before.printed:
        return "it writes to its log"
    if "gpu" in settings.signs and max(before.gpu, now.gpu) > settings.gpu:
        return f"a GPU is busy ({max(before.gpu, now.gpu):.0f} %)"
    if "cpu" not in settings.signs:
        return ""
    if before.processes is None or now.processes is None:
        return "its processes cannot be observed"
    if before.runnable or now.runnable:
        return "it runs, or waits for a processor or a disk"
    if before.processes.keys() != now.processes.keys():
        return "its processes come and go"
    spent = sum(cpu - before.processes[pid][0] for pid, (cpu, _) in now.processes.items())
    if spent * 100 > settings.cpu * seconds:
        return f"its processes used {spent:.2f}s of CPU time in {seconds:.0f}s"
    if any(pages > before.processes[pid][1] for pid, (_, pages) in now.processes.items()):
        return "it reads from disk"
    return ""


@define(eq=False)
class Watchdog:
    """Watches the streams of `models` from `start` to `stop`."""

    clock: IReactorTime
    models: WatchedModels
    _progress: dict[str, _StreamProgress] = field(factory=dict, init=False)  # by request
    _longest_pauses: dict[str, float] = field(factory=dict, init=False)  # by model, as all that follow
    _abandoned: dict[str, float] = field(factory=dict, init=False)  # since when; its client left during the silence
    _cleared: dict[str, tuple[float, str]] = field(factory=dict, init=False)
    _judging: set[str] = field(factory=set, init=False)
    _hung: dict[str, int] = field(factory=dict, init=False)
    _loop: LoopingCall | None = field(default=None, init=False)

    def start(self) -> None:
        """Look at the streams from now on."""
        self._loop = loop = LoopingCall(self.check_streams)
        loop.clock = self.clock
        loop.start(CHECK_INTERVAL, now=False).addErrback(
            lambda failure: log.failure("hang detection stopped unexpectedly", failure)
        )

    def stop(self) -> None:
        """Look at nothing any more."""
        if self._loop is not None:
            self._loop.stop()
            self._loop = None

    def retain(self, models: Iterable[str]) -> None:
        """Forget all models but these."""
        kept = set(models)
        for known in (self._longest_pauses, self._abandoned, self._cleared, self._hung):
            for model in known.keys() - kept:
                del known[model]

    def document(self, model: str) -> dict[str, object]:
        """A model's state and thresholds, for the API."""
        settings = self.models.settings(model)
        if settings is None:
            return {"watched": False}
        silence = self._silences().get(model)
        cleared = self._cleared.get(model)
        return {
            "watched": True,
            "after_s": settings.after,
            "times": settings.times,
            "canary_s": settings.canary,
            "signs": list(settings.signs),
            "cpu_pct": settings.cpu,
            "gpu_pct": settings.gpu,
            "longest_pause_s": round(self._longest_pauses.get(model, 0.0), 3),
            "silent_s": None if silence is None else round(self.clock.seconds() - silence, 3),
            "judged_at_s": self._threshold(model, settings),
            "asking": model in self._judging,
            "last_sign": None if cleared is None else cleared[1],
            "ended": self._hung.get(model, 0),
        }

    # -- silence -------------------------------------------------------------------------------------------

    def check_streams(self) -> None:
        """Look once at all streams."""
        now = self.clock.seconds()
        for model in self._update_progress(now):
            self._abandoned.pop(model, None)
            self._cleared.pop(model, None)
        for model, since in self._silences().items():
            settings = self.models.settings(model)
            if model in self._judging or settings is None or now - since < self._threshold(model, settings):
                continue
            if now - self._cleared.get(model, (-settings.after, ""))[0] >= settings.after:
                self._judging.add(model)
                judging = Deferred.fromCoroutine(self._judge(model, now - since, settings))
                judging.addErrback(lambda failure: log.failure("checking a silent server failed", failure))

    def _update_progress(self, now: float) -> set[str]:
        """Note how far each stream is; returns the models whose streams moved."""
        earlier, self._progress = self._progress, {}
        moved: set[str] = set()
        for stream in self.models.streams():
            progress = earlier.pop(stream.request, None)
            if progress is None:
                progress = _StreamProgress(stream.model, stream.sent, now, stream.granted)
            elif progress.sent != stream.sent:
                if progress.flowing:
                    pause = now - progress.at
                    self._longest_pauses[stream.model] = max(pause, self._longest_pauses.get(stream.model, 0.0))
                # What came before the grant, or just then, was our own text about the loading.
                progress = _StreamProgress(stream.model, stream.sent, now, stream.granted, flowing=progress.granted)
            progress.granted = stream.granted
            if progress.at == now:
                moved.add(stream.model)
            self._progress[stream.request] = progress
        for ended in earlier.values():
            if ended.flowing and now - ended.at >= ABANDONED_SILENCE:
                # Its client gave up before us, and the next one may do the same: the silence goes on.
                self._abandoned[ended.model] = min(ended.at, self._abandoned.get(ended.model, ended.at))
        return moved

    def _silences(self) -> dict[str, float]:
        """Since when the models with streams are silent."""
        abandoned = {model: since for model, since in self._abandoned.items() if self.models.has_requests(model)}
        last: dict[str, float] = {}
        for progress in self._progress.values():
            if progress.flowing:
                last[progress.model] = max(progress.at, last.get(progress.model, progress.at))
        return {**last, **abandoned}

    def _threshold(self, model: str, settings: HangDetection) -> float:
        """Seconds of silence after which a model's server is checked."""
        return max(settings.after, settings.times * self._longest_pauses.get(model, 0.0))

    def _counts(self, model: str) -> dict[str, int]:
        return {one.request: one.sent for one in self.models.streams() if one.model == model and one.sent}

    # -- the check -----------------------------------------------------------------------------------------

    async def _judge(self, model: str, silence: float, settings: HangDetection) -> None:
        log.info("{model}: no output on any stream for {silence:.0f}s; checking it", model=model, silence=silence)
        began, before = self.clock.seconds(), self._counts(model)
        try:
            sign = await self._find_sign_of_life(model, settings)
        finally:
            self._judging.discard(model)
        if any(before.get(request) != sent for request, sent in self._counts(model).items()):
            return  # there was output meanwhile
        now = self.clock.seconds()
        self._abandoned.pop(model, None)
        if sign:
            self._cleared[model] = now, sign
            log.info("{model} is silent but alive: {sign}", model=model, sign=sign)
            return
        self._hung[model] = self._hung.get(model, 0) + 1
        watched = f"no sign of life and no answer in {now - began:.0f}s"
        self.models.mark_hung(model, f"it hung: no byte on its streams for {silence:.0f}s, then {watched}")

    async def _find_sign_of_life(self, model: str, settings: HangDetection) -> str:
        """A sign of life of a model's server; "" if there is none."""
        models, began = self.models, self.clock.seconds()
        first = await models.sample(model)
        if "health" in settings.signs and await models.answers_health_check(model, settings.canary):
            return "it answers the health check"
        left = settings.canary - (self.clock.seconds() - began)
        if left > 0:
            await deferLater(self.clock, left)
        sign = sign_of_life(first, await models.sample(model), self.clock.seconds() - began, settings)
        if sign:
            return sign
        if await models.answers_request(model, settings.canary):
            return "it answers a request"
        return sign_of_life(first, await models.sample(model), self.clock.seconds() - began, settings)
