"""The servers of all models on other hosts: adopts what runs and stops what must not."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from llamaswap.cluster.agent_protocol import EngineState, HostState, stop_identity
from llamaswap.cluster.hosts import HostManager
from llamaswap.cluster.remote_supervisor import (
    READY,
    STOPPED,
    STOPPING,
    RemoteSupervisor,
    ignore_failure,
    reservation_name,
)
from llamaswap.config.endpoints import Endpoint
from llamaswap.config.schema.model import Model
from llamaswap.errors import StartFailed
from llamaswap.routing.router import Router
from llamaswap.scheduling.effects import StartSwap
from llamaswap.servers.server_snapshot import ServerSnapshot
from llamaswap.servers.supervisor_protocol import ServerStatus, Supervised, SupervisorListener

log = Logger()


@define(eq=False)
class PlacedSupervisor:
    """The supervisor of a model that may be on this machine, `here`, or on another host, `there`."""

    here: Supervised
    there: RemoteSupervisor
    _elsewhere: bool = field(default=False, init=False)

    @property
    def _now(self) -> Supervised:
        return self.there if self._elsewhere else self.here

    @property
    def state(self) -> str:
        return self._now.state

    def set_place(self, start: StartSwap) -> None:
        self._elsewhere = bool(start.host)
        self._now.set_place(start)

    def ensure_ready(self) -> Deferred[Endpoint]:
        return self._now.ensure_ready()

    def stop(self, grace: float | None = None) -> Deferred[None]:
        return self._now.stop(grace)

    def clean_up(self) -> Deferred[None]:
        return self._now.clean_up()

    def suspend(self, grace: float | None = None) -> Deferred[bool]:
        return self._now.suspend(grace)

    def preflight(self, ours: Collection[int] = ()) -> StartFailed | None:
        return self._now.preflight(ours)

    def log_tail(self) -> str:
        return self._now.log_tail()

    def set_definition(self, model: Model) -> None:
        self.here.set_definition(model)
        self.there.set_definition(model)

    def snapshot(self) -> ServerSnapshot | None:
        return self._now.snapshot()

    def adopt(self, served: ServerSnapshot) -> bool:
        self._elsewhere = bool(served.host)
        return self._now.adopt(served)

    def status(self) -> ServerStatus:
        return self._now.status()

    def close(self) -> object:
        self.there.close()
        return self.here.close()


_check: type[Supervised] = PlacedSupervisor


@define(eq=False)
class RemoteServers:
    """The servers on other hosts: tells their supervisors what happened, adopts what runs, stops what must not run."""

    clock: IReactorTime
    router: Callable[[], Router]
    hosts: HostManager = field(init=False)
    _supervisors: dict[str, RemoteSupervisor] = field(factory=dict, init=False)
    _leaving: dict[tuple[str, str], Deferred[None]] = field(factory=dict, init=False)

    def placed(self, model: Model, listener: SupervisorListener, here: Supervised) -> PlacedSupervisor:
        """The supervisor of a model, with this one for this machine."""
        there = self._supervisors[model.id] = RemoteSupervisor(model, self.hosts, self.clock, listener)
        return PlacedSupervisor(here, there)

    def host_seen(self, host: str, state: HostState) -> None:
        """See `HostListener`."""
        engines = state.engines
        for supervisor in list(self._supervisors.values()):
            if supervisor.host == host and supervisor.state != STOPPED:
                engine = engines.get(supervisor.model.id)
                ours = engine is not None and engine.identity == supervisor.identity
                supervisor.heard(engine if ours else None, state.version)
        unknown = {model: engine for model, engine in engines.items() if not self._is_known(host, model)}
        self._adopt(host, unknown)
        self._left(host, {model for model, engine in unknown.items() if engine.state != STOPPED})

    def reservations(self) -> set[str]:
        """See `HostListener`."""
        return {
            reservation_name(one.model.id, one.identity) for one in self._supervisors.values() if one.state != STOPPED
        }

    def host_lost(self, hosts: Sequence[str]) -> None:
        """These hosts are offline, and the router knows it."""
        for supervisor in list(self._supervisors.values()):
            if supervisor.host in hosts:
                supervisor.lost()
        for host in hosts:
            self._left(host, ())

    def _left(self, host: str, leaving: Collection[str]) -> None:
        """A host has no process any more of models that had to leave it, except these."""
        for place in [place for place in self._leaving if place[0] == host and place[1] not in leaving]:
            self._leaving.pop(place).callback(None)

    def _is_known(self, host: str, model: str) -> bool:
        supervisor = self._supervisors.get(model)
        return supervisor is not None and supervisor.host == host and supervisor.state != STOPPED

    def _adopt(self, host: str, engines: Mapping[str, EngineState]) -> None:
        """Adopt what is ready, may run on this host and has no process elsewhere; the rest must not run, and is not
        started elsewhere before it has ended."""
        router, now = self.router(), self.clock.seconds()
        for model, engine in engines.items():
            definition = router.config.models.get(model)
            allowed = definition is not None and (not definition.place.hosts or host in definition.place.hosts)
            if engine.state == READY and allowed and not router.has_process(model):
                log.info("{model} still runs on {host}: it is adopted", model=model, host=host)
                router.swaps.adopt([self._snapshot(host, model, engine, now)])
                continue
            if engine.state != STOPPED and (host, model) not in self._leaving:
                ended = self._leaving[host, model] = Deferred()
                router.swaps.delay_starts_until(ended, model)
            if engine.state == STOPPING:
                continue
            if engine.state != STOPPED:
                log.warn("{model} must not run on {host} any more: it is stopped", model=model, host=host)
            front, generation = stop_identity(self.hosts.front, engine.identity)
            document = {"front": front, "generation": generation}
            ignore_failure(self.hosts.tell(host, model, "stop", document))
            self.hosts.reservations.release(reservation_name(model, engine.identity))

    def _snapshot(self, host: str, model: str, engine: EngineState, now: float) -> ServerSnapshot:
        """An engine as what a process before this one left. The identity stands for its mark, the digest for its
        definition."""
        return ServerSnapshot(
            model=model,
            pid=0,
            start=0,
            mark=f"{engine.front}.{engine.generation}",
            port=None,
            proxy=engine.digest,
            endpoint=self.hosts.engine_endpoint(host, model, engine.identity),
            argv=(),
            env=(),
            cmd_stop="",
            started_at=now - engine.up - engine.load_seconds,
            ready_at=now - engine.up,
            load_seconds=(engine.load_seconds,) if engine.load_seconds else (),
            output=None,
            idle_since=now,
            host=host,
            memory=engine.sizes or None,
        )
