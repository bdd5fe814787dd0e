"""GET /api/discover: models, engines and servers of this machine that a configuration could use, each with its YAML.

A search reads disks and ports, so it runs on a thread, one at a time, and is bounded in time and number. Its result
contains paths and programs, so it is served only if the operator allows edits of the configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NoReturn

from attrs import define, field, frozen
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
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
from llamaswap.web.route import Route, RouteTable
from llamaswap.web.shield import shielded

SEARCH_TIME = 5.0  # seconds of a search; a page waits this long
DISK_TIMEOUT = 10.0  # seconds until a client gets an error: the search notices its end only between two files
MAX_MODELS = 200  # in one answer; a longer list does not help a reader
RESULT_LIFETIME = 5.0  # seconds during which a page that is loaded again gets the same result

LOOPBACK = frozenset(("localhost", "127.0.0.1", "::1"))

log = Logger()


@frozen
class DiscoveredModel:
    """A model on a disk of this machine."""

    name: str
    note: str
    command: list[str]
    bytes: int
    usable: bool
    configured_as: str | None
    section: str
    yaml: str


@frozen
class DiscoveredEngine:
    """A program that can serve models."""

    name: str
    path: str
    yaml: str


@frozen
class DiscoveredServer:
    """A running server that could be a peer."""

    name: str
    url: str
    models: list[str]
    configured_as: str | None
    section: str
    yaml: str


@frozen
class Discovered:
    """The result of a search; `complete` is false if it ended early or its list is cut."""

    models: list[DiscoveredModel]
    engines: list[DiscoveredEngine]
    servers: list[DiscoveredServer]
    complete: bool


route = RouteTable("config", Route)


@define(eq=False)
class DiscoveryEndpoints:
    """`scan` searches on the thread of `run` until it should stop, and skips the ports it is given."""

    allowed: Callable[[], bool]
    config: Callable[[], Config]
    scan: Callable[[Collection[int], ShouldStop], ScanResult]
    run: RunBlocking
    clock: IReactorTime
    own_ports: Callable[[], Collection[int]] = tuple
    _found: tuple[float, ScanResult] | None = field(default=None, init=False)
    _running: Deferred[ScanResult | HttpError] | None = field(default=None, init=False)
    _began: float = field(default=0.0, init=False)

    @route("GET", "/api/discover", answer=Discovered)
    async def show(self, call: AdminRequest) -> Response:
        """Models, engines and servers of this machine, each with its YAML."""
        if not self.allowed():
            raise HttpError(
                403, "discovery requires configuration editing, which is disabled; start with --allow-config-edit"
            )
        found = await self._search()
        if isinstance(found, HttpError):
            raise found
        config = self.config()
        document = Discovered(
            models=list(_models(found.models[:MAX_MODELS], config)),
            engines=[DiscoveredEngine(name, path, engine_entry(name, path)) for name, path in found.engines.items()],
            servers=list(_servers(found.servers, config)),
            complete=found.complete and len(found.models) <= MAX_MODELS,
        )
        return json_answer(document)

    def _search(self) -> Deferred[ScanResult | HttpError]:
        """The last result if it is recent, else that of the running search, or of a search that begins now."""
        now = self.clock.seconds()
        if self._found is not None and now - self._found[0] < RESULT_LIFETIME:
            return succeed(self._found[1])
        if self._running is None or self._running.called:
            ports = {*self.own_ports(), *_ports(self.config())}
            until = now + SEARCH_TIME
            search = self.run(lambda: self.scan(ports, lambda: self.clock.seconds() > until))
            self._running, self._began = search.addCallbacks(self._searched, _failed), now
        elif now - self._began >= DISK_TIMEOUT:  # later clients would only be added to those that wait for nothing
            return succeed(_too_long())
        return shielded(self._running, "discovery").addTimeout(DISK_TIMEOUT, self.clock, onTimeoutCancel=_disk_hangs)

    def _searched(self, found: ScanResult) -> ScanResult:
        self._found = (self.clock.seconds(), found)
        return found


def _failed(failure: Failure) -> HttpError:
    log.failure("discovery failed", failure)
    return HttpError(500, f"discovery failed: {failure.getErrorMessage()}")


def _disk_hangs(result: object, timeout: float) -> NoReturn:
    raise _too_long()


def _too_long() -> HttpError:
    return HttpError(503, "discovery takes too long: a disk or a network folder does not answer")


def _models(found: Iterable[FoundModel], config: Config) -> Iterator[DiscoveredModel]:
    used = {word: model.id for model in config.models.values() for word in _words(model.cmd) if "/" in word}
    for name, model in unique(found, names_in_use(config)):
        configured = next((used[word] for word in model.words[1:] if word in used), None)
        yield DiscoveredModel(
            name=name,
            note=model.note,
            command=list(model.words),
            bytes=model.bytes,
            usable=model.active,
            configured_as=configured,
            section="models",
            yaml=model_entry(name, model),
        )


def _servers(found: Iterable[FoundServer], config: Config) -> Iterator[DiscoveredServer]:
    used = {_address(peer.proxy): peer.id for peer in config.peers.values()}
    taken = set(config.peers)
    for server in found:
        name = next(iter(unique([FoundModel(server.name, ())], taken)))[0]
        taken.add(name)
        configured = used.get(_address(server.url))
        yield DiscoveredServer(name, server.url, list(server.models), configured, "peers", server_entry(name, server))


def names_in_use(config: Config) -> set[str]:
    """The names that a new model must not have."""
    aliases = (alias for model in config.models.values() for alias in model.aliases)
    return {*config.models, *aliases, *config.selectors}


def _words(command: str) -> Sequence[str]:
    try:
        return split(command)
    except ValueError:  # a command that cannot be started uses no file
        return ()


def _address(url: str) -> str:
    return url.rstrip("/").replace("//localhost:", "//127.0.0.1:")


def _ports(config: Config) -> set[int]:
    """The ports of the configured models' servers, which the search skips."""
    endpoints = (model.endpoint for model in config.models.values())
    return {each.port for each in endpoints if each is not None and each.host in LOOPBACK}
