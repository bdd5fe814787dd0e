"""GET /api/discover: what this machine has that a configuration could use, each with the text to use it.

Looking is slow work on disks and ports, so it is done on a thread, one search at a time, and bounded in time and
number. It tells paths and programs, so only where the operator lets the configuration be edited - which is also the
only place where the answer is of use.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaswap.config import Config
from llamaswap.config.command_line import split
from llamaswap.discover.config_writer import (
    FoundModel,
    FoundServer,
    ScanResult,
    engine_entry,
    model_entry,
    server_entry,
    unique,
)
from llamaswap.discover.disk import ShouldStop
from llamaswap.observe.worker import RunBlocking
from llamaswap.web.admin_request import AdminRequest, Response, json_answer
from llamaswap.web.errors import HttpError
from llamaswap.web.route import RouteTable

LONGEST = 5.0  # seconds of looking; a page waits that long, and an hour of models is found in one
PATIENCE = 10.0  # seconds until a client is told that a disk hangs: the search notices its own end only between files
MOST = 200  # models told; a page that shows more is no help
FRESH = 5.0  # seconds that an answer is good for: a page that is loaded anew does not search anew

LOOPBACK = frozenset(("localhost", "127.0.0.1", "::1"))

log = Logger()


@define(eq=False)
class DiscoveryEndpoints:
    """`survey` looks (on the thread of `run`) until it is asked to stop, past the ports it is given."""

    allowed: Callable[[], bool]
    config: Callable[[], Config]
    survey: Callable[[Collection[int], ShouldStop], ScanResult]
    run: RunBlocking
    clock: IReactorTime
    own_ports: Callable[[], Collection[int]] = tuple
    _found: tuple[float, ScanResult] | None = field(default=None, init=False)
    _waiting: list[Deferred[ScanResult]] | None = field(default=None, init=False)

    async def show(self, call: AdminRequest) -> Response:
        """Models, engines and servers, each with its YAML."""
        if not self.allowed():
            raise HttpError(
                403, "discovery requires configuration editing, which is disabled; start with --allow-config-edit"
            )
        found = await self._look()
        config = self.config()
        engines = [
            {"name": name, "path": path, "yaml": engine_entry(name, path)} for name, path in found.engines.items()
        ]
        told = {
            "models": list(_models(found.models[:MOST], config)),
            "engines": engines,
            "servers": list(_servers(found.servers, config)),
            "complete": found.complete and len(found.models) <= MOST,
        }
        return json_answer(told)

    def _look(self) -> Deferred[ScanResult]:
        """What is found by the search under way, or by one that begins now; an answer of a moment ago does too."""
        waiter: Deferred[ScanResult] = Deferred(lambda _: self._left(waiter))
        now = self.clock.seconds()
        if self._found is not None and now - self._found[0] < FRESH:
            waiter.callback(self._found[1])
            return waiter
        overdue = self.clock.callLater(PATIENCE, self._overdue, waiter)
        waiter.addBoth(_settled, overdue)
        if self._waiting is not None:
            self._waiting.append(waiter)
            return waiter
        self._waiting = [waiter]
        ports = {*self.own_ports(), *_ports(self.config())}
        until = now + LONGEST
        looking = self.run(lambda: self.survey(ports, lambda: self.clock.seconds() > until))
        looking.addBoth(self._looked)
        return waiter

    def _looked(self, found: ScanResult | Failure) -> None:
        waiting, self._waiting = self._waiting or [], None
        if isinstance(found, Failure):
            log.failure("looking around", found)
            for waiter in waiting:
                waiter.errback(HttpError(500, f"discovery failed: {found.getErrorMessage()}"))
            return
        self._found = (self.clock.seconds(), found)
        for waiter in waiting:
            waiter.callback(found)

    def _overdue(self, waiter: Deferred[ScanResult]) -> None:
        self._left(waiter)
        waiter.errback(HttpError(503, "discovery takes too long: a disk or a network folder does not answer"))

    def _left(self, waiter: Deferred[ScanResult]) -> None:
        if self._waiting is not None and waiter in self._waiting:
            self._waiting.remove(waiter)


def _settled(result: Any, overdue: IDelayedCall) -> Any:
    if overdue.active():
        overdue.cancel()
    return result


def _models(found: Iterable[FoundModel], config: Config) -> Iterable[Mapping[str, Any]]:
    used = {word: model.id for model in config.models.values() for word in _words(model.cmd) if "/" in word}
    for name, model in unique(found, _names(config)):
        yield {
            "name": name,
            "note": model.note,
            "command": list(model.words),
            "bytes": model.bytes,
            "usable": model.active,
            "configured_as": next((used[word] for word in model.words[1:] if word in used), None),
            "section": "models",
            "yaml": model_entry(name, model),
        }


def _servers(found: Iterable[FoundServer], config: Config) -> Iterable[Mapping[str, Any]]:
    used = {_place(peer.proxy): peer.id for peer in config.peers.values()}
    taken = set(config.peers)
    for server in found:
        name = next(iter(unique([FoundModel(server.name, ())], taken)))[0]
        taken.add(name)
        yield {
            "name": name,
            "url": server.url,
            "models": list(server.models),
            "configured_as": used.get(_place(server.url)),
            "section": "peers",
            "yaml": server_entry(name, server),
        }


def _names(config: Config) -> set[str]:
    """Every name a new model must not have."""
    aliases = (alias for model in config.models.values() for alias in model.aliases)
    return {*config.models, *aliases, *config.selectors}


def _words(command: str) -> Sequence[str]:
    try:
        return split(command)
    except ValueError:  # it cannot be started, so it uses nothing
        return ()


def _place(url: str) -> str:
    return url.rstrip("/").replace("//localhost:", "//127.0.0.1:")


def _ports(config: Config) -> set[int]:
    """Ports of our own servers: what answers there is no discovery."""
    endpoints = (model.endpoint for model in config.models.values())
    return {place.port for place in endpoints if place is not None and place.host in LOOPBACK}


_table = RouteTable(DiscoveryEndpoints, "config")
ROUTES = (
    _table.get("/api/discover", DiscoveryEndpoints.show, "What this machine has to configure", schema="Discovered"),
)
