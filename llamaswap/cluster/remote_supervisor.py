"""Supervises a model's server on another host: the same interface as for a server on this machine.

The agent there starts and stops it; what happens to it comes with the host's state. A host that is offline has no
servers: a stop ends at once, and if the host comes back with a server, `RemoteServers` adopts it or has it stopped.
"""

from __future__ import annotations

from collections.abc import Collection, Coroutine, Mapping
from hashlib import sha256
from typing import Any

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaswap.cluster.agent_client import AgentEnded, HostAway
from llamaswap.cluster.agent_protocol import EngineState, StateVersion, stop_identity
from llamaswap.cluster.hosts import HostManager
from llamaswap.cluster.ray_client import RayAway
from llamaswap.config.endpoints import Endpoint
from llamaswap.config.schema.model import Model
from llamaswap.errors import HostRefused, LlamaswapError, ModelUnloaded, ShuttingDown, StartFailed
from llamaswap.scheduling.effects import StartSwap
from llamaswap.servers.server_snapshot import ServerSnapshot
from llamaswap.servers.supervisor_protocol import ServerStatus, Supervised, SupervisorListener

STOPPED, STARTING, READY, STOPPING = "stopped", "starting", "ready", "stopping"
RAY_PAUSE = 0.5  # seconds between two looks at whether Ray is back
RAY_LIMIT = 60.0  # seconds that a load waits for Ray
STOP_MARGIN = 15.0  # seconds beyond the grace after which the agent should have stopped a server
STOP_RETRY = 1.0  # seconds between two requests to stop
TIMES_KEPT = 20

log = Logger()


def digest_of(model: Model) -> str:
    """Stands for a definition; equal for those that start the same server."""
    return sha256(repr(sorted(model.portable().items())).encode("utf-8", "replace")).hexdigest()


def reservation_name(model: str, identity: tuple[int, int]) -> str:
    """The name of what is reserved for a process of a model."""
    return f"{model}#{identity[0]}.{identity[1]}"


@define(eq=False)
class RemoteSupervisor:
    """Supervises the server of `model` on the host that `set_place` named last; see `Supervised`."""

    model: Model
    hosts: HostManager
    clock: IReactorTime
    listener: SupervisorListener
    state: str = field(default=STOPPED, init=False)
    host: str = field(default="", init=False)
    identity: tuple[int, int] = field(default=(0, 0), init=False)
    _start: StartSwap | None = field(default=None, init=False)
    _endpoint: Endpoint | None = field(default=None, init=False)
    _waiters: list[Deferred[Endpoint]] = field(factory=list, init=False)
    _stop_waiters: list[Deferred[None]] = field(factory=list, init=False)
    _task: Deferred[None] | None = field(default=None, init=False)
    _stop_again: IDelayedCall | None = field(default=None, init=False)
    _stop_until: float = field(default=0.0, init=False)
    _told: bool = field(default=False, init=False)
    _seen: bool = field(default=False, init=False)
    _known: StateVersion | None = field(default=None, init=False)
    _failure: LlamaswapError | None = field(default=None, init=False)
    _started_at: float | None = field(default=None, init=False)
    _ready_at: float | None = field(default=None, init=False)
    _loads: tuple[float, ...] = field(default=(), init=False)
    _error: str = field(default="", init=False)
    _tail: str = field(default="", init=False)
    _command: str = field(default="", init=False)
    _closed: bool = field(default=False, init=False)

    # -- the router's calls --------------------------------------------------------------------------------

    def set_place(self, start: StartSwap) -> None:
        self._start = start

    def ensure_ready(self) -> Deferred[Endpoint]:
        if self.state == READY and self._endpoint is not None:
            return succeed(self._endpoint)
        waiter: Deferred[Endpoint] = Deferred(self._waiters_forget)
        self._waiters.append(waiter)
        if self._closed:
            self._settle(ShuttingDown())
        elif self.state == STOPPED:
            self._begin()
        return waiter

    def _waiters_forget(self, waiter: Deferred[Endpoint]) -> None:
        self._waiters.remove(waiter)

    def stop(self, grace: float | None = None) -> Deferred[None]:
        if self.state == STOPPED:
            return succeed(None)
        waiter: Deferred[None] = Deferred()
        self._stop_waiters.append(waiter)
        self._failure = None
        self._settle(ModelUnloaded(self.model.id))
        if self.state != STOPPING:
            self._begin_stop(self.model.unload_timeout if grace is None else grace)
        return waiter

    def suspend(self, grace: float | None = None) -> Deferred[bool]:
        return self.stop(grace).addCallback(lambda _: False)

    def clean_up(self) -> Deferred[None]:
        return self.stop()

    def preflight(self, ours: Collection[int] = ()) -> StartFailed | None:
        return None

    def log_tail(self) -> str:
        return self._tail

    def set_definition(self, model: Model) -> None:
        self.model = model

    def snapshot(self) -> ServerSnapshot | None:
        return None  # the next program finds it by the host's state

    def adopt(self, served: ServerSnapshot) -> bool:
        front, _, generation = served.mark.partition(".")
        self.host, self.identity = served.host, (int(front), int(generation))
        self._endpoint, self._loads = served.endpoint, served.load_seconds
        self._started_at, self._ready_at = served.started_at, served.ready_at
        self._told = self._seen = True
        self._show(READY)
        return served.proxy == digest_of(self.model)

    def status(self) -> ServerStatus:
        active = self.state != STOPPED
        return ServerStatus(
            model=self.model.id,
            state=self.state,
            port=self._endpoint.port if active and self._endpoint is not None else None,
            started_at=self._started_at if active else None,
            ready_at=self._ready_at if active else None,
            last_error=self._error,
            load_seconds=self._loads,
            cmd=(self._command,) if self._command else (),
            endpoint=self._endpoint if active else None,
        )

    def close(self) -> object:
        self._closed = True
        return self.stop(1.0)

    # -- the start -----------------------------------------------------------------------------------------

    def _begin(self) -> None:
        start = self._start
        assert start is not None, "the router names the place first"
        self.host, self.identity = start.host, (self.hosts.front, start.generation)
        self._error = self._tail = ""
        self._told = self._seen = False
        self._known = None
        self._started_at, self._ready_at = self.clock.seconds(), None
        self._show(STARTING)
        self._task = Deferred.fromCoroutine(self._run(start, self.identity))
        self._task.addErrback(self._not_started)

    async def _run(self, start: StartSwap, identity: tuple[int, int]) -> None:
        name, host = reservation_name(self.model.id, identity), start.host
        # Of a model of unknown size nothing is reserved: it is loaded alone, or memory does not decide.
        sizes = {f"{device}_mib": size for device, size in (start.sizes or {}).items() if size > 0}
        why = await self._reserved(name, host, sizes) if sizes else ""
        if why:
            raise HostRefused(self.model.id, host, why)
        document: dict[str, object] = {"front": identity[0], "generation": identity[1]}
        document |= {"definition": self.model.portable(), "digest": digest_of(self.model)}
        document["sizes"] = dict(start.sizes or {})
        self._told = True
        self._known = (await self.hosts.tell(host, self.model.id, "start", document)).version
        self._task = None

    async def _reserved(self, name: str, host: str, sizes: Mapping[str, int]) -> str:
        """Reserve memory; while Ray is away it is waited for, because what it holds must not be given twice."""
        until = self.clock.seconds() + RAY_LIMIT
        while True:
            try:
                return await self.hosts.ray.reserve(name, host, sizes)
            except RayAway as error:
                if self.clock.seconds() >= until:
                    raise StartFailed(self.model.id, f"{error}; what runs on other hosts goes on") from None
            pause: Deferred[None] = Deferred()
            timer = self.clock.callLater(RAY_PAUSE, pause.callback, None)
            try:
                await pause
            finally:
                if timer.active():
                    timer.cancel()

    def _not_started(self, failure: Failure) -> None:
        self._task = None
        if failure.check(CancelledError) or self.state != STARTING:
            return
        error = failure.value
        started = isinstance(error, HostAway) and not isinstance(error, AgentEnded)  # perhaps
        if isinstance(error, HostAway):  # as after the end of its agent, before the front has noticed that
            error = HostRefused(self.model.id, self.host, str(error))
        if isinstance(error, HostRefused):
            self.hosts.cannot_start(self.host, self.model.id, error.reason)
            # What is known of the host now has perhaps ended this start already.
            if self.state == STARTING and started:
                self._error, self._failure = str(error), error
                self._begin_stop(self.model.unload_timeout)
            elif self.state == STARTING:
                self._fail(error)
        elif isinstance(error, StartFailed):
            self._fail(error)
        else:
            log.failure("{model} could not be started on {host}", failure, model=self.model.id, host=self.host)
            self._fail(StartFailed(self.model.id, "an internal error of the proxy; see its log"))

    def _abandon_start(self) -> None:
        """What a start still waits for must not reach the host, or the next start, later."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    def _fail(self, error: LlamaswapError) -> None:
        """The start failed."""
        self._error = error.cause if isinstance(error, StartFailed) else str(error)
        if self._told:
            self._tell_once()
        self._settle(error)
        self._ended()

    # -- what the host says --------------------------------------------------------------------------------

    def heard(self, engine: EngineState | None, told: StateVersion) -> None:
        """The host of this server has told its state; None: it has no process of this identity."""
        if self.state == STOPPED:
            return
        self._seen = self._seen or engine is not None
        if not self._seen and (self._known is None or told.is_before(self._known)):
            return  # the host may have told this before it knew of the start
        if self.state == STOPPING:
            if engine is None or engine.state == STOPPED:
                self._ended()
            return
        if engine is not None and engine.command:
            self._command = engine.command
        if engine is None or engine.state == STOPPED:
            self._exited(engine)
        elif engine.state == READY and self.state == STARTING:
            self._ready_at = self.clock.seconds()
            self._loads = (*self._loads, engine.load_seconds)[-TIMES_KEPT:]
            self._endpoint = self.hosts.engine_endpoint(self.host, self.model.id, self.identity)
            self._show(READY)
            self._settle(self._endpoint)

    def _exited(self, engine: EngineState | None) -> None:
        self._error = engine.error if engine is not None else f"the agent of {self.host} was restarted"
        self._tail = engine.tail if engine is not None else ""
        if self.state == STARTING:
            self._fail(StartFailed(self.model.id, self._error, engine.exit_status if engine is not None else None))
            return
        self._tell_once()
        self._ended()
        self.listener.exited(self.model.id, engine.exit_status if engine is not None else None, False)

    def lost(self) -> None:
        """The host is offline."""
        if self.state == STOPPING:
            self._ended()

    # -- the stop ------------------------------------------------------------------------------------------

    def _begin_stop(self, grace: float) -> None:
        self._stop_until = self.clock.seconds() + STOP_MARGIN + grace
        self._show(STOPPING)
        self._abandon_start()
        self._tell_stop()

    def _tell_once(self) -> None:
        """The agent has nothing of this identity to keep."""
        ignore_failure(self._stop_there(self.identity))

    async def _stop_there(self, identity: tuple[int, int]) -> None:
        front, generation = stop_identity(self.hosts.front, identity)
        document = {"front": front, "generation": generation}
        try:
            result = await self.hosts.tell(self.host, self.model.id, "stop", document)
            known: StateVersion | None = result.version
            runs = result.runs
        except AgentEnded:
            known, runs = None, False
        if self.state == STOPPING and self.identity == identity:
            self._known = known
            if not runs:
                self._ended()

    def _tell_stop(self) -> None:
        """Tell the agent to stop the server, until it has, or is offline, or the time is up."""
        self._stop_again = None
        if self.state != STOPPING:
            return
        if not self._told or not self.hosts.is_online(self.host):
            self._ended()
        elif self.clock.seconds() >= self._stop_until:
            log.error("{host} has not stopped {model} in time", host=self.host, model=self.model.id)
            self._ended()
        else:
            self._stop_again = self.clock.callLater(STOP_RETRY, self._tell_stop)
            self._tell_once()

    def _ended(self) -> None:
        """The process has ended."""
        if self._stop_again is not None:
            self._stop_again.cancel()
            self._stop_again = None
        self.hosts.reservations.release(reservation_name(self.model.id, self.identity))
        self._show(STOPPED)
        self._abandon_start()
        waiters, self._stop_waiters = self._stop_waiters, []
        for waiter in waiters:
            self.clock.callLater(0, waiter.callback, None)
        failure, self._failure = self._failure, None
        if failure is not None:
            self._settle(failure)
        if self._waiters:  # it was wanted again while it stopped
            self._begin()

    def _settle(self, result: Endpoint | LlamaswapError) -> None:
        """Tell those that wait for the server, on the next turn."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            self.clock.callLater(0, _fire, waiter, result)

    def _show(self, state: str) -> None:
        old, self.state = self.state, state
        if old != state:
            self.listener.state_changed(self.model.id, old, state)


def _fire(waiter: Deferred[Endpoint], result: Endpoint | LlamaswapError) -> None:
    if waiter.called:
        return
    if isinstance(result, Endpoint):
        waiter.callback(result)
    else:
        waiter.errback(result)


def ignore_failure(telling: Coroutine[Deferred[Any], Any, object]) -> None:
    """Tell a host something that matters only if it is there."""
    Deferred.fromCoroutine(telling).addErrback(lambda failure: failure.trap(HostAway, HostRefused))


_check: type[Supervised] = RemoteSupervisor
