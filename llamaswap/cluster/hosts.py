"""The other hosts, as the front knows them: which of them answer, what runs there, and what the scheduler learns.

Each host's agent is asked for its state over HTTP, and keeps the request until something changes. A host is online as
long as it answers. If it refuses a connection, it is offline at once, because no server is left there then. If Ray says
that its node is dead, it is offline when it accepts no connection, else after `hosts.unseen`. Ray only lists the hosts;
without it the running models go on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol
from urllib.parse import quote

from attrs import define, evolve, field
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError, ConnectionRefusedError
from twisted.internet.error import TimeoutError as NoAnswer
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaswap.cluster import driver_protocol as protocol
from llamaswap.cluster.agent_client import CALL_LIMIT, Ask, HostAway, refusal, send_to_agent
from llamaswap.cluster.agent_protocol import CommandResult, HostState, Malformed, needs_document, state_of
from llamaswap.cluster.known_host import KnownHost
from llamaswap.cluster.ray_client import RayClient
from llamaswap.cluster.ray_node import ClusterFolder
from llamaswap.cluster.reservations import Reservations
from llamaswap.config.endpoints import Endpoint
from llamaswap.config.schema.hosts import HOST_NAME, Hosts
from llamaswap.config.steps import StepRequest
from llamaswap.discover.missing import NeededFiles
from llamaswap.http_client import HttpResponse
from llamaswap.scheduling.hosts import FailedStart, HostFacts
from llamaswap.scheduling.memory import Device, MemoryNeed
from llamaswap.servers.server_request import ServerRequest

LIST_INTERVAL = 1.0  # seconds between two lists of Ray's nodes
REACH_LIMIT = 0.9  # seconds for a connection to a host whose node is dead; below LIST_INTERVAL
STALL = 1.0  # seconds by which a time limit that is noticed late says that this program stood still
RETRY_DELAY = 0.5  # seconds between two attempts to reach an agent
FAILED_FOR = 30.0  # seconds for which a model is not tried again on a host that could not start it
MAX_HOSTS = 1000
AWAIT_LIMIT = 3.0  # seconds after the start for hosts that an earlier program knew: what they run must not start twice
FORGET_AFTER = 86400.0  # seconds that a host is kept that is away, such as a pod whose name does not come back
KNOWN_FILE, DRAINED_FILE = "known.json", "drained.json"

log = Logger()


class HostListener(Protocol):
    """Learns what runs on hosts: `RemoteServers`."""

    def host_seen(self, host: str, state: HostState) -> None:
        """A host has sent its state; the scheduler does not know it yet."""

    def reservations(self) -> set[str]:
        """The names of all reservations that are in use."""


@define(eq=False)
class HostManager:
    """Follows the hosts. `publish` gets the facts of all of them whenever they change; `listener` what runs
    there. `needs` are those that are in the configuration, on a host with these devices; `files` are what models need
    on the host of a name; `here` has the facts of this machine."""

    clock: IReactorTime
    ask: Ask
    connect: ServerRequest
    ray: RayClient
    folder: ClusterFolder
    token: str = field(repr=False)
    front: int
    settings: Callable[[], Hosts]
    publish: Callable[[Mapping[str, HostFacts]], None]
    listener: HostListener
    needs: Callable[[Mapping[str, Device]], Mapping[str, MemoryNeed]] = lambda devices: {}
    files: Callable[[str], Mapping[str, NeededFiles]] = lambda host: {}
    here: HostFacts = field(default=HostFacts(""), init=False)
    hosts: dict[str, KnownHost] = field(factory=dict, init=False)
    drained: set[str] = field(factory=set, init=False)
    superseded: bool = field(default=False, init=False)
    reservations: Reservations = field(init=False)
    _listing: Deferred[Any] | None = field(default=None, init=False)
    _lister: IDelayedCall | None = field(default=None, init=False)
    _awaiting: IDelayedCall | None = field(default=None, init=False)
    _closed: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.reservations = Reservations(self.clock, self.ray, self.listener.reservations)

    # -- begin and end -------------------------------------------------------------------------------------

    def open(self) -> None:
        """Ask the agents that the last front knew, and begin to follow Ray. Until they have answered, nothing is loaded
        that may run there."""
        listed = self.folder.document(DRAINED_FILE).get("hosts")
        self.drained = {name for name in listed if isinstance(name, str)} if isinstance(listed, list) else set()
        known = self.folder.document(KNOWN_FILE)
        for name, given in list(known.items())[:MAX_HOSTS]:
            if isinstance(given, dict) and isinstance(given.get("address"), str) and isinstance(given.get("port"), int):
                labels = given.get("labels")
                host = self._know(name, given["address"], given["port"], labels if isinstance(labels, dict) else {})
                host.awaited = True
        self._awaiting = self.clock.callLater(AWAIT_LIMIT, self._stop_awaiting_all)
        self._publish()
        self.ray.open()
        self._list()

    @property
    def awaits_hosts(self) -> bool:
        """Whether hosts that an earlier program knew have not answered yet."""
        return any(host.awaited for host in self.hosts.values())

    def _stop_awaiting_all(self) -> None:
        for host in self.hosts.values():
            host.awaited = False
        self._publish()

    def close(self) -> None:
        """Stop following the hosts; their models stay."""
        self._closed = True
        for timer in (self._lister, self._awaiting, *(host.timer for host in self.hosts.values())):
            if timer is not None and timer.active():
                timer.cancel()
        for host in self.hosts.values():
            host.stop_asking()
        self.ray.close()

    # -- Ray -----------------------------------------------------------------------------------------------

    def _list(self) -> None:
        self._lister = self.clock.callLater(LIST_INTERVAL, self._list)
        if self.ray.connected:
            if self._listing is None or self._listing.called:  # a Ray that hangs must not get more and more of them
                self._listing = self.ray.call(protocol.ListNodes, limit=5.0)
                self._listing.addCallbacks(self._listed, lambda _: None)
            self.reservations.tend(self.superseded)

    def _listed(self, answer: Mapping[str, Any]) -> None:
        changed = False
        for node in answer["nodes"][:MAX_HOSTS]:
            name, alive = str(node["host"]), bool(node["alive"])
            if not HOST_NAME.match(name) or (not alive and name not in self.hosts):
                continue
            host = self.hosts.get(name)
            where = str(node["address"]), int(node["port"])
            moved = host is not None and (host.endpoint.host, host.endpoint.port) != where
            if alive and moved and host is not None and host.online:
                host.addresses = node.get("addresses", ())
                self._require_connection(host, "it moved to another address")
                continue
            if alive and (host is None or moved):
                host = self._know(name, *where, node["labels"])
                changed = True
            assert host is not None
            host.alive, host.sizes, host.addresses = alive, node.get("sizes") or host.sizes, node.get("addresses", ())
            if not alive:
                host.ensured = False
                if host.online:
                    self._require_connection(host, "its node died")
            elif not host.ensured:
                host.ensured = True
                self.ray.call(protocol.EnsureAgent, host=name).addErrback(self._no_agent, host)
        for host in [one for one in self.hosts.values() if not one.online and not one.alive]:
            if self.clock.seconds() - (host.known_since if host.seen is None else host.seen) > FORGET_AFTER:
                self._forget(host)
                changed = True
        if changed:
            self._keep_known()
            self._publish(changed)

    def _require_connection(self, host: KnownHost, reason: str) -> None:
        """Ray says that a host is gone. As long as something there accepts connections, its servers may run, and their
        models must not be loaded elsewhere."""
        connecting = self.connect(host.endpoint, None, REACH_LIMIT)
        connecting.addErrback(lambda _: None if self._closed else self._offline(host, reason))

    def _no_agent(self, failure: Failure, host: KnownHost) -> None:
        host.ensured = False
        log.warn("the agent of {host} cannot be started: {error}", host=host.name, error=failure.getErrorMessage())

    def _know(self, name: str, address: str, port: int, labels: Mapping[str, str]) -> KnownHost:
        before = self.hosts.get(name)
        if before is not None:
            self._forget(before)
        endpoint = Endpoint("http", address, port, token=self.token)
        host = self.hosts[name] = KnownHost(name, endpoint, {str(k): str(v) for k, v in labels.items()})
        host.known_since = self.clock.seconds()
        host.timer = self.clock.callLater(0, self._ask, host, host.known_since)
        return host

    def _forget(self, host: KnownHost) -> None:
        """Ask a host no more."""
        if host.timer is not None and host.timer.active():
            host.timer.cancel()
        del self.hosts[host.name]
        host.stop_asking()

    def _keep_known(self) -> None:
        known = {
            host.name: {"address": host.endpoint.host, "port": host.endpoint.port, "labels": dict(host.labels)}
            for host in self.hosts.values()
        }
        self._write(KNOWN_FILE, known)

    def _write(self, name: str, document: object) -> None:
        try:
            self.folder.write(name, json.dumps(document))
        except OSError as error:
            log.error("{file} cannot be written: {error}", file=self.folder.path / name, error=error)

    # -- agents --------------------------------------------------------------------------------------------

    def _ask(self, host: KnownHost, due: float) -> None:
        """Ask a host for its state once, at `due`; the next time follows from the response."""
        if self._closed or self.hosts.get(host.name) is not host:
            return
        self._forgive_stall(host, due)
        unseen, now = self.settings().unseen, self.clock.seconds()
        number = host.state.number if host.state is not None and host.online else 0
        path = f"/state?after={number}&front={self.front}&grace={self.settings().grace}&wait={unseen / 3}"
        path += f"&host={quote(host.name, safe='')}"
        limit = max(0.5, unseen - (now - host.seen)) if host.online and host.seen is not None else min(5.0, unseen)
        host.asking = asking = self.ask(host.endpoint, path, limit, {})
        asking.addCallbacks(self._answered, self._silent, callbackArgs=(host,), errbackArgs=(host, now + limit))
        asking.addErrback(self._broken, host)

    def _again(self, host: KnownHost, delay: float) -> None:
        if not self._closed and self.hosts.get(host.name) is host:
            host.timer = self.clock.callLater(delay, self._ask, host, self.clock.seconds() + delay)

    def _answered(self, response: HttpResponse, host: KnownHost) -> None:
        host.asking = None
        if self._closed or self.hosts.get(host.name) is not host:
            return
        if response.status != 200:
            self._refused(response, host)
            self._again(host, RETRY_DELAY)
            return
        try:
            state = state_of(response.body)
        except Malformed as error:
            self._offline(host, str(error))
            self._again(host, RETRY_DELAY)
            return
        if host.state is not None and host.state.incarnation != state.incarnation:
            host.failed, host.needs_sent = {}, False
        if host.alive is False and not host.online and self.ray.connected:
            # It was lost a moment ago, and its agent ends with its node: it must not come back for that long.
            self._again(host, RETRY_DELAY)
            return
        host.seen, host.state, host.problem = self.clock.seconds(), state, ""
        self.listener.host_seen(host.name, state)
        if not host.online:
            log.info("host {host} is online", host=host.name)
        host.online, host.awaited, host.unreachable = True, False, False
        self._publish()
        self._send_needs(host)
        self._again(host, 0.05)  # a host whose state changes all the time must not keep the front busy

    def _send_needs(self, host: KnownHost) -> None:
        """Send a host once which programs and files models need there; its state then says which it has."""
        if host.needs_sent:
            return
        host.needs_sent = True

        def failed(failure: Failure) -> None:
            host.needs_sent = False  # they are sent again after its next answer

        document = json.dumps(needs_document(self.front, self.files(host.name)))
        self.ask(host.endpoint, "/needs", CALL_LIMIT, {}, StepRequest("POST", "/needs", document)).addErrback(failed)

    def _broken(self, failure: Failure, host: KnownHost) -> None:
        """An error of this program must not end the requests to a host, which would count as online forever."""
        log.failure("the state of host {host} could not be used", failure, host=host.name)
        self._again(host, RETRY_DELAY)
        self._offline(host, "its state could not be used; see the log of llamaswap")

    def _refused(self, response: HttpResponse, host: KnownHost) -> None:
        reason = f"its agent answered with status {response.status}"
        if response.status == 401:
            reason = "its agent has another token; join it again with the token of this machine"
        elif response.status == 421:
            reason = f"{refusal(response)}; join one of the two with another --port"
        elif response.status == 409:
            reason = "a newer front uses it"
            if not self.superseded:
                self.superseded = True
                log.error("another llamaswap, started later, uses {host}; stop one of the two", host=host.name)
        self._offline(host, reason)

    def _silent(self, failure: Failure, host: KnownHost, due: float) -> None:
        """An agent did not answer by `due`: if it was cut off it is asked at once, to see whether it is there."""
        cancelled, host.asking = host.asking is None, None
        if self._closed or self.hosts.get(host.name) is not host:
            return
        self._forgive_stall(host, due)
        lost = host.online and failure.check(ConnectError) and not failure.check(ConnectionRefusedError)
        late = host.seen is None or self.clock.seconds() - host.seen >= self.settings().unseen - 0.01
        if host.online and (failure.check(ConnectionRefusedError) or late):
            self._offline(host, "its agent ended" if not late else "its agent does not answer")
        elif lost:
            host.unreachable = True
            self._publish()
        elif not host.online and not cancelled:
            refused = failure.check(ConnectionRefusedError)
            why = "it does not answer" if failure.check(NoAnswer) else failure.getErrorMessage()
            host.problem = "its agent does not run" if refused else why
            if refused:
                self._stop_awaiting(host)
        self._again(host, 0.01 if lost and host.online else RETRY_DELAY)

    def _forgive_stall(self, host: KnownHost, due: float) -> None:
        """A host has `unseen` again if this program, which noticed `due` late, stood still: its answer may wait."""
        if host.online and self.clock.seconds() > due + STALL:
            host.seen = self.clock.seconds()

    def _offline(self, host: KnownHost, reason: str) -> None:
        host.problem = reason
        if not host.online:
            self._stop_awaiting(host)
            return
        host.online = host.unreachable = False
        log.warn("host {host} is offline: {reason}", host=host.name, reason=reason)
        host.stop_asking()
        self._publish()

    def _stop_awaiting(self, host: KnownHost) -> None:
        """Do not wait for a host any more: nothing of an earlier program runs there."""
        if host.awaited:
            host.awaited = False
            self._publish()

    # -- facts ---------------------------------------------------------------------------------------------

    def _publish(self, changed: bool = False) -> None:
        now = self.clock.seconds()
        for host in self.hosts.values():
            facts = host.present_facts(now, host.name in self.drained, self.needs)
            if facts != host.facts:
                host.facts, changed = facts, True
        if changed:
            self.publish(
                {
                    "": evolve(self.here, drained="" in self.drained),
                    **{host.name: host.facts for host in self.hosts.values() if host.facts is not None},
                }
            )

    def reconfigured(self) -> None:
        """The configuration has changed."""
        for host in self.hosts.values():
            host.declared, host.needs_sent = None, False
            host.failed = {}
            if host.online:
                self._send_needs(host)
        self._publish()

    def found_here(self, missing: Mapping[str, str], cached: frozenset[str]) -> None:
        """What this machine lacks for models, and which weights are in its page cache."""
        self.here = HostFacts("", missing=missing, cached_models=cached)
        self._publish(True)

    def drain(self, name: str, drained: bool) -> None:
        """Load nothing more on a host, or allow it again; "" is this machine. Raises KeyError."""
        if name and name not in self.hosts:
            raise KeyError(name)
        (self.drained.add if drained else self.drained.discard)(name)
        self._write(DRAINED_FILE, {"hosts": sorted(self.drained)})
        for host in self.hosts.values():
            host.facts = None
        self._publish()

    # -- what servers on hosts need ------------------------------------------------------------------------

    def is_online(self, name: str) -> bool:
        """Whether a host answers."""
        return name in self.hosts and self.hosts[name].online

    def engine_endpoint(self, name: str, model: str, identity: tuple[int, int]) -> Endpoint:
        """Where requests for this process of a model go. Raises KeyError."""
        path = f"/engine/{identity[0]}.{identity[1]}/{quote(model, safe='')}"
        return evolve(self.hosts[name].endpoint, path=path)

    async def tell(self, name: str, model: str, what: str, document: Mapping[str, object]) -> CommandResult:
        """Tell a host's agent to start or stop a model. Raises HostRefused or HostAway."""
        host = self.hosts.get(name)
        if host is None:
            raise HostAway(f"{name} is not known")
        return await send_to_agent(self.ask, host.endpoint, name, model, what, document)

    def cannot_start(self, name: str, model: str, why: str) -> None:
        """A host cannot start a model: it is not a candidate for a while, so that the next decision is another one."""
        host = self.hosts.get(name)
        if host is not None:
            host.failed = {**host.failed, model: FailedStart(why, self.clock.seconds() + FAILED_FOR)}
            self._publish()
