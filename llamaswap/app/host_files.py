"""Finds out again and again which programs, files and cached weights of models a machine has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from attrs import Factory, define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaswap.discover.missing import NeededFiles, lacking
from llamaswap.discover.page_cache import mostly_cached
from llamaswap.servers.readahead import weights

LOOK_INTERVAL = 10.0  # seconds between the end of a look and the next one

log = Logger()
Found = tuple[dict[str, str], frozenset[str]]


def look(needs: Mapping[str, NeededFiles]) -> Found:
    """What this machine lacks for each model, and the models whose weights are in its page cache. Reads the disk."""
    missing = lacking(needs)
    files: dict[str, list[Path]] = {
        model: weights(["", *need.paths]) for model, need in needs.items() if model not in missing
    }
    return missing, frozenset(model for model, found in files.items() if found and mostly_cached(found))


@define(eq=False)
class HostFiles:
    """What this machine has for models. `run` does work on a thread; `changed` is called when a look found a change."""

    clock: IReactorTime
    run: Callable[[Callable[[], Found]], Deferred[Found]]
    changed: Callable[[], None]
    look: Callable[[Mapping[str, NeededFiles]], Found] = look
    missing: Mapping[str, str] = field(factory=dict, init=False)
    cached: frozenset[str] = field(default=frozenset(), init=False)
    _needs: Mapping[str, NeededFiles] = field(default=Factory(dict), init=False)
    _looking: bool = field(default=False, init=False)
    _again: IDelayedCall | None = field(default=None, init=False)
    _closed: bool = field(default=False, init=False)

    def need(self, needs: Mapping[str, NeededFiles]) -> None:
        """These models may run here."""
        self._needs = needs
        self._look()

    def _look(self) -> None:
        if self._again is not None and self._again.active():
            self._again.cancel()
        if self._looking or self._closed:  # one at a time: a disk may hang
            return
        self._looking, needs = True, self._needs
        self.run(lambda: self.look(needs)).addCallbacks(self._looked, self._failed, callbackArgs=(needs,))

    def _looked(self, found: Found, needs: Mapping[str, NeededFiles]) -> None:
        self._looking = False
        if self._closed:
            return
        if needs is not self._needs:
            self._look()
            return
        self._again = self.clock.callLater(LOOK_INTERVAL, self._look)
        if found != (self.missing, self.cached):
            self.missing, self.cached = found
            self.changed()

    def _failed(self, failure: Failure) -> None:
        self._looking = False
        log.failure("looking for the files of models failed", failure)
        if not self._closed:
            self._again = self.clock.callLater(LOOK_INTERVAL, self._look)

    def close(self) -> None:
        """Stop looking."""
        self._closed = True
        if self._again is not None and self._again.active():
            self._again.cancel()
