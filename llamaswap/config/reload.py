"""Reload: load the configuration when its files change, and apply what differs.

After any failure the old configuration stays in use. Reading files and applying a configuration are parameters.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field, frozen
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaswap.config import Config
from llamaswap.config.diff import ConfigDiff, diff
from llamaswap.config.loader import LoadedConfig
from llamaswap.errors import ConfigError, Problem
from llamaswap.events import ConfigRejected, ConfigReloaded, EventBus

WATCH_INTERVAL = 2.0  # seconds between two checks of the files


@frozen
class ReloadStatus:
    """The outcome of the last reload: `ok` with `warnings`, or rejected for `problems`. `at` is the clock's time."""

    ok: bool
    at: float
    message: str = ""
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()


@define(eq=False, kw_only=True)
class Reloader:
    """Reloads on request, and with `watch()` whenever `changed` returns True.

    `current` returns the configuration in force, `load` the one on disk (raising ConfigError or OSError), `keep` adds
    what only the old one knows to the new one, `apply` puts the new one in force. All are called on the reactor's
    thread; `load` returns a Deferred, because a large file is read on another thread.
    """

    _clock: IReactorTime
    _bus: EventBus
    _current: Callable[[], Config]
    _load: Callable[[], Deferred[LoadedConfig]]
    _keep: Callable[[Config, Config], Config]
    _apply: Callable[[Config, ConfigDiff], object]
    _changed: Callable[[], bool]
    status: ReloadStatus | None = field(default=None, init=False)
    _waiting: list[Deferred[None]] = field(factory=list, init=False)
    _running: bool = field(default=False, init=False)
    _watch: LoopingCall | None = field(default=None, init=False)
    _log: Logger = field(factory=lambda: Logger("llamaswap.config.reload"), init=False, repr=False)

    def reload(self) -> Deferred[None]:
        """Load the files again; fires after that, also after a failure (see `status`). Never fails.

        A request during a reload is followed by another reload, so that no change is lost.
        """
        done: Deferred[None] = Deferred()
        self._waiting.append(done)
        if not self._running:
            self._running = True
            running = Deferred.fromCoroutine(self._run())
            running.addErrback(lambda failure: self._log.failure("reload", failure))
        return done

    def watch(self) -> None:
        """Check the files every two seconds from now on, for changes since now."""
        if self._watch is None:
            self._changed()
            self._watch = LoopingCall(lambda: self.reload() if self._changed() else None)
            self._watch.clock = self._clock
            watching = self._watch.start(WATCH_INTERVAL, now=False)
            watching.addErrback(lambda failure: self._log.failure("watching the configuration", failure))

    def stop(self) -> None:
        """Stop watching. Idempotent."""
        watch, self._watch = self._watch, None
        if watch is not None and watch.running:
            watch.stop()

    async def _run(self) -> None:
        try:
            while self._waiting:
                waiting, self._waiting = self._waiting, []
                self.status = await self._once()
                for done in waiting:
                    done.callback(None)
        finally:
            self._running = False

    async def _once(self) -> ReloadStatus:
        try:
            loaded = await maybeDeferred(self._load)
            old = self._current()
            new = self._keep(old, loaded.config)
            changes = diff(old, new)
            await maybeDeferred(self._apply, new, changes)
        except ConfigError as error:
            return self._rejected(str(error), error.problems)
        except OSError as error:
            return self._rejected(f"the configuration cannot be read: {error}")
        except Exception as error:  # whatever the error is, the old configuration stays in force
            self._log.failure("while loading the configuration", Failure())
            return self._rejected(f"{type(error).__name__}: {error}")
        for warning in loaded.warnings:
            self._log.warn("configuration: {problem}", problem=str(warning))
        news = ConfigReloaded(changes.added, changes.removed, changes.restarted, changes.retuned)
        self._log.info("configuration reloaded: {changes}", changes=_in_words(news))
        self._bus.publish(news)
        return ReloadStatus(True, self._clock.seconds(), warnings=tuple(loaded.warnings))

    def _rejected(self, message: str, problems: tuple[Problem, ...] = ()) -> ReloadStatus:
        self._log.warn("new configuration rejected, keeping the previous one: {message}", message=message)
        self._bus.publish(ConfigRejected(message))
        return ReloadStatus(False, self._clock.seconds(), message, problems)


def _in_words(news: ConfigReloaded) -> str:
    """The changes of models, for the log."""
    changes = (
        ("added", news.added),
        ("removed", news.removed),
        ("restarting", news.restarted),
        ("settings changed", news.retuned),
    )
    return "; ".join(f"{word}: {', '.join(names)}" for word, names in changes if names) or "no model changed"
