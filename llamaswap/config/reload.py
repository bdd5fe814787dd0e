"""Reload: notice that the configuration's files changed, load them, and put what changed in force.

Whatever goes wrong, the old configuration stays. Where files are, how they are read and compared, and who else wants
to know about a new configuration is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

from attrs import define, field, frozen
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaswap.config import Config
from llamaswap.errors import ConfigError, Problem
from llamaswap.events import ConfigRejected, ConfigReloaded, EventBus

WATCH_EVERY = 2.0  # seconds between two looks at the files


class LoadResult(Protocol):
    """A configuration that can be used, and what is odd about it."""

    @property
    def config(self) -> Config: ...
    @property
    def warnings(self) -> Sequence[Problem]: ...


class ReloadDiff(Protocol):
    """What is different, by model."""

    @property
    def added(self) -> tuple[str, ...]: ...
    @property
    def removed(self) -> tuple[str, ...]: ...
    @property
    def restarted(self) -> tuple[str, ...]: ...
    @property
    def retuned(self) -> tuple[str, ...]: ...


@frozen
class ReloadStatus:
    """How the last reload went: `ok` with `warnings`, or refused for `problems`. `at` in the clock's seconds."""

    ok: bool
    at: float
    message: str = ""
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()


@define(eq=False)
class Reloader:
    """Reloads on demand, and with `watch()` whenever `fingerprint` changes.

    `current` gives the configuration in force, `load` the one on disk (raising ConfigError or OSError), `keep` adds to
    the new one what only the old one knows, `diff` compares them, `apply` puts the new one in force. All are called on
    the reactor; `load` may return a Deferred, because a large file is read on another thread.
    """

    _clock: IReactorTime
    _bus: EventBus
    _current: Callable[[], Config]
    _load: Callable[[], LoadResult | Deferred[LoadResult]]
    _keep: Callable[[Config, Config], Config]
    _diff: Callable[[Config, Config], ReloadDiff]
    _apply: Callable[[Config, ReloadDiff], object]
    _fingerprint: Callable[[], Hashable | None]
    status: ReloadStatus | None = field(default=None, init=False)
    _waiting: list[Deferred[None]] = field(factory=list, init=False)
    _running: bool = field(default=False, init=False)
    _seen: Hashable | None = field(default=None, init=False)
    _watch: LoopingCall | None = field(default=None, init=False)
    _log: Logger = field(factory=lambda: Logger("llamaswap.config.reload"), init=False, repr=False)

    def reload(self) -> Deferred[None]:
        """Load the files anew; fires when that has been done, well or badly (see `status`). Never fails.

        Asked while a reload runs, one more follows it: what changed in the meantime is not lost.
        """
        done: Deferred[None] = Deferred()
        self._waiting.append(done)
        if not self._running:
            self._running = True
            running = Deferred.fromCoroutine(self._run())
            running.addErrback(lambda failure: self._log.failure("reload", failure))
        return done

    def watch(self) -> None:
        """Look at the files every two seconds from now on; how they are now is the baseline."""
        if self._watch is None:
            self._seen = self._look()
            self._watch = LoopingCall(self._compare)
            self._watch.clock = self._clock
            watching = self._watch.start(WATCH_EVERY, now=False)
            watching.addErrback(lambda failure: self._log.failure("watching the configuration", failure))

    def stop(self) -> None:
        """Watch no more. Idempotent."""
        watch, self._watch = self._watch, None
        if watch is not None and watch.running:
            watch.stop()

    def _look(self) -> Hashable | None:
        try:
            return self._fingerprint()
        except OSError:
            return None

    def _compare(self) -> None:
        """Absence is silent, but what comes back counts as changed."""
        seen, self._seen = self._seen, self._look()
        if self._seen is not None and self._seen != seen:
            self.reload()

    async def _run(self) -> None:
        try:
            while self._waiting:
                waiting, self._waiting = self._waiting, []
                self.status = await self._once()
                for waiter in waiting:
                    waiter.callback(None)
        finally:
            self._running = False

    async def _once(self) -> ReloadStatus:
        try:
            loaded = self._load()
            if isinstance(loaded, Deferred):
                loaded = await loaded
            old = self._current()
            new = self._keep(old, loaded.config)
            plan = self._diff(old, new)
            await maybeDeferred(self._apply, new, plan)
        except ConfigError as error:
            return self._rejected(str(error), error.problems)
        except OSError as error:
            return self._rejected(f"the configuration cannot be read: {error}")
        except Exception as error:  # the edge of a floor: whatever it was, the old configuration stays
            self._log.failure("while loading the configuration", Failure())
            return self._rejected(f"{type(error).__name__}: {error}")
        for warning in loaded.warnings:
            self._log.warn("configuration: {problem}", problem=str(warning))
        news = ConfigReloaded(plan.added, plan.removed, plan.restarted, plan.retuned)
        self._log.info("configuration reloaded: {changes}", changes=_in_words(news))
        self._bus.publish(news)
        return ReloadStatus(True, self._clock.seconds(), warnings=tuple(loaded.warnings))

    def _rejected(self, message: str, problems: tuple[Problem, ...] = ()) -> ReloadStatus:
        self._log.warn("new configuration rejected, keeping the previous one: {message}", message=message)
        self._bus.publish(ConfigRejected(message))
        return ReloadStatus(False, self._clock.seconds(), message, problems)


def _in_words(news: ConfigReloaded) -> str:
    """What happened to which models, for a log."""
    told = (
        ("added", news.added),
        ("removed", news.removed),
        ("restarting", news.restarted),
        ("settings changed", news.retuned),
    )
    return "; ".join(f"{word}: {', '.join(names)}" for word, names in told if names) or "no model changed"
