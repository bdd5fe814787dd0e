"""The doubles that tests of several packages share: a router, its leases, supervisors, the status of a server, and the
client of outgoing requests. `tests/test_doubles.py` compares their methods with those of the real classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping

from attrs import Factory, define, field
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import Clock

from llamaswap.config import Config, Model
from llamaswap.config.endpoints import Endpoint
from llamaswap.errors import (
    FailureRecord,
    LlamaswapError,
    ModelUnloaded,
    NoTarget,
    RequestError,
    ShuttingDown,
    StartFailed,
    Superseded,
    UnknownModel,
)
from llamaswap.http_client import HttpResponse, RequestFailed
from llamaswap.routing.interfaces import HealthSnapshot, TargetChoice, WaitingRequest, WaitStatus
from llamaswap.routing.leases import Lease, PendingLease, ProcessInstance
from llamaswap.scheduling.effects import StartSwap, Ticket
from llamaswap.scheduling.memory import Ledger
from llamaswap.scheduling.state import Decision
from llamaswap.servers.server_snapshot import ServerSnapshot
from llamaswap.servers.supervisor_protocol import ServerStatus, SupervisorListener


def server_status(model: str, state: str = "ready", **changes: object) -> ServerStatus:
    """The status of a server that became ready at 3.0, after 2.0 seconds."""
    facts = {
        "pid": 4711,
        "port": 5800,
        "started_at": 1.0,
        "ready_at": 3.0,
        "last_error": None,
        "load_seconds": (2.0,),
        "cmd": ("serve", "--api-key", "sesame"),
        "endpoint": Endpoint("http", "127.0.0.1", 5800),
    }
    return ServerStatus(model, state, **{**facts, **changes})


@define(eq=False)
class FakeLease(Lease):
    """A lease of a server that the test plays."""

    releases: int = field(default=0, init=False)
    stalled_since: list[float | None] = field(factory=list, init=False)

    @property
    def process(self) -> ProcessInstance:
        """The server's process: a test sets its `lost` and `unloaded`."""
        return self._process

    def release(self) -> None:
        self.releases += 1
        super().release()

    def reader_stalled(self, since: float | None) -> None:
        self.stalled_since.append(since)


@define(eq=False)
class FakePendingLease(PendingLease):
    """A request that a test grants with `grant` or refuses with `settle`."""

    cancelled: bool = field(default=False, init=False)
    settled: bool = field(default=False, init=False)
    lease: FakeLease | None = field(default=None, init=False)

    def cancel(self) -> None:
        self.cancelled = True
        super().cancel()

    def settle(self, outcome: Lease | RequestError) -> None:
        self.settled = True
        super().settle(outcome)

    def grant(self, *, lost: bool = False) -> FakeLease:
        process = ProcessInstance(Endpoint("http", "127.0.0.1", 9001), 1, lost)
        self.lease = FakeLease(Ticket(self.number, self.model, 0.0), process, None)
        self.settle(self.lease)
        return self.lease


@define(eq=False)
class FakeRouter:
    """A router without servers. `states` and `statuses` are what it reports of them.

    Requests are granted at once while `auto` is set; `refusal` refuses them; without `ready` they wait first. Loads
    and unloads return `work`, unloads `unloads` if it is set. `calls` has the operator's calls in their order.
    """

    config: Config = Factory(Config)
    states: dict[str, str] = Factory(dict)
    statuses: dict[str, ServerStatus] = Factory(dict)
    profile: str | None = None
    chosen_profile: str | None = None
    pinned: frozenset[str] = frozenset()
    auto: bool = True
    ready: bool = True
    refusal: RequestError | None = None
    no_target: NoTarget | None = None
    asked: list[FakePendingLease] = Factory(list)
    choices: list[TargetChoice] = Factory(list)
    released: list[str] = Factory(list)
    loaded: list[str] = Factory(list)
    unloaded: list[object] = Factory(list)
    hung: list[tuple[str, str]] = Factory(list)
    calls: list[tuple[object, ...]] = Factory(list)
    work: Deferred[None] | None = None
    unloads: Deferred[None] | None = None
    vitals: HealthSnapshot = Factory(lambda: HealthSnapshot(None, 0.0, 0, 0, 0))
    waiting: list[WaitingRequest] = Factory(list)
    broken: list[tuple[FailureRecord, float]] = Factory(list)
    left: dict[str, float] = Factory(dict)
    expected: Decision | None = None
    swaps: FakeSwaps = Factory(lambda: FakeSwaps())
    ledger: Ledger | None = None
    at: dict[str, str] = Factory(dict)
    outlook: WaitStatus = Factory(lambda: WaitStatus((), False, None))

    # -- requests ------------------------------------------------------------------------------------------

    def shown_host(self, model: str, expected: Decision | None = None) -> str | None:
        return self.at.get(model) or (expected.host if expected is not None and self.at else None)

    def lease(self, model: str, standing: tuple[int, float] = (0, 0.0)) -> Lease | None:
        if not (self.auto and self.ready and self.refusal is None):
            return None
        return self._pending(model, None).grant()

    def request(
        self,
        model: str,
        *,
        on_position: Callable[[int], None] | None = None,
        origin: str = "",
        standing: tuple[int, float] = (0, 0.0),
    ) -> PendingLease:
        pending = self._pending(model, on_position)
        pending.refusal, pending.ready = self.refusal, self.ready
        if self.refusal is not None:
            pending.settle(self.refusal)
        elif self.auto:
            pending.grant()
        return pending

    def _pending(self, model: str, on_position: Callable[[int], None] | None) -> FakePendingLease:
        self.asked.append(FakePendingLease(model, lambda: None, on_position, len(self.asked) + 1))
        return self.asked[-1]

    def keep_for(self, model: str, seconds: float) -> None:
        self.calls.append(("keep_for", model, seconds))

    def supersede(
        self, waiting: PendingLease, *, on_position: Callable[[int], None] | None = None
    ) -> PendingLease | None:
        if not isinstance(waiting, FakePendingLease) or waiting.settled:
            return None
        waiting.settle(Superseded(waiting.model))
        return self._pending(waiting.model, on_position)

    def choose(self, selector_id: str) -> TargetChoice:
        if self.no_target is not None:
            raise self.no_target
        first, *others = self.config.selectors[selector_id].targets
        self.choices.append(TargetChoice(first, lambda: self.released.append(selector_id), tuple(others)))
        return self.choices[-1]

    def choose_replica(self, model: str, *, loaded: bool = False) -> TargetChoice:
        found = self.config.copies(model)
        ready = tuple(name for name in found if loaded and self.state(name) == "ready")
        found = ready or found
        self.choices.append(TargetChoice(found[-1], lambda: self.released.append(model), found[:-1]))
        return self.choices[-1]

    # -- operators -----------------------------------------------------------------------------------------

    def load(self, model: str, origin: str = "manual") -> Deferred[None]:
        self.loaded.append(model)
        return self.work or succeed(None)

    def unload(self, models: Iterable[str] | None = None) -> Deferred[None]:
        self.unloaded.append(models)
        return self.unloads or self.work or succeed(None)

    def select_profile(self, name: str | None) -> None:
        self.profile = name

    def pin(self, model: str) -> None:
        self.pinned |= {model}

    def unpin(self, model: str) -> None:
        self.pinned -= {model}

    def drain(self, error: LlamaswapError | None = None) -> None:
        self.calls.append(("drain", error))

    def shutdown(self, deadline: float) -> Deferred[None]:
        self.calls.append(("shutdown", deadline))
        return succeed(None)

    def memory_changed(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def mark_hung(self, model: str, why: str) -> None:
        self.hung.append((model, why))

    # -- reports -------------------------------------------------------------------------------------------

    def state(self, model: str) -> str:
        return self.states.get(model, "stopped")

    def status(self, model: str) -> ServerStatus:
        if model not in self.config.models:
            raise UnknownModel(model)
        return self.statuses.get(model) or server_status(model, self.state(model))

    def running(self) -> list[ServerStatus]:
        return [server_status(name, state) for name, state in sorted(self.states.items()) if state != "stopped"]

    def failure(self, model: str) -> str:
        return self.status(model).last_error or ""

    def suspended(self) -> list[ServerStatus]:
        return [status for _, status in sorted(self.statuses.items()) if status.asleep_since is not None]

    def forecast(self, model: str) -> Decision:
        return self.expected or Decision(model, "load", ("beta",), ("org",), "group")

    def health(self) -> HealthSnapshot:
        return self.vitals

    def seconds_until_idle(self, model: str) -> float | None:
        return self.left.get(model)

    def queue(self) -> list[WaitingRequest]:
        return self.waiting

    def wait_status(self, model: str) -> WaitStatus:
        return self.outlook

    def failing(self) -> list[tuple[FailureRecord, float]]:
        return self.broken


@define(eq=False)
class FakeSwaps:
    """The part of a router that continues with the servers of an earlier program. `removed` are not configured."""

    removed: tuple[ServerSnapshot, ...] = ()
    adopted: list[ServerSnapshot] = Factory(list)
    failures: list[FailureRecord] = Factory(list)
    delays: list[Deferred[None]] = Factory(list)

    def adopt(self, snapshots: Iterable[ServerSnapshot]) -> list[ServerSnapshot]:
        self.adopted += snapshots
        return list(self.removed)

    def restore_failures(self, failures: Iterable[FailureRecord]) -> None:
        self.failures += failures

    def delay_starts_until(self, ended: Deferred[None], model: str = "") -> None:
        self.delays.append(ended)


class NoMemoryReclaim:
    """Observes no memory: every model may start at once."""

    def wait_for_reclaim(self, model: str) -> None:
        return None

    def loading(self, model: str) -> None: ...

    def loaded(self, model: str) -> None: ...

    def stopped(self, model: str) -> None: ...


@define(eq=False)
class FakeSupervisor:
    """A server that is ready `load` seconds after its start, and has exited `exit` seconds after its stop.

    With None a test calls `become_ready` and `become_stopped`. A `stubborn` server exits when its grace is over. As of
    the real one, waiters are called on a later turn, a start waits for the end of a stop, and a stop ends a start.
    """

    model: Model
    listener: SupervisorListener
    clock: Clock
    load: float | None = 0.0
    exit: float | None = 0.0
    stubborn: bool = False
    failure: Exception | None = None
    unstartable: StartFailed | None = None
    last_error: str = ""
    state: str = "stopped"
    spawned: int = 0
    graces: list[float | None] = Factory(list)
    asked_beside: list[set[int]] = Factory(list)
    said: str = ""
    closed: bool = False
    retuned: int = 0
    started_at: float | None = None
    sleepless: bool = False
    asleep_since: float | None = None
    wakes: int = 0
    cmd: tuple[str, ...] = ()
    token: str = field(default="", init=False)
    cleanings: list[Deferred[None]] = field(factory=list, init=False)
    places: list[tuple[str, tuple[str, ...], int]] = field(factory=list, init=False)
    _dozing: bool = field(default=False, init=False)
    _for_ready: list[Deferred[Endpoint]] = field(factory=list, init=False)
    _for_stop: list[Deferred[None]] = field(factory=list, init=False)
    _doomed: list[Deferred[Endpoint]] = field(factory=list, init=False)
    _call: IDelayedCall | None = field(default=None, init=False)

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint("http", "127.0.0.1", 5800 + self.spawned, token=self.token)

    def ensure_ready(self) -> Deferred[Endpoint]:
        waiter: Deferred[Endpoint] = Deferred()
        if self.closed:
            self._later(lambda: waiter.errback(ShuttingDown(self.model.id)))
        elif self.state == "ready":
            self._later(lambda: waiter.callback(self.endpoint))
        else:
            self._for_ready.append(waiter)
            if self.state == "stopped":
                self._start()
        return waiter

    def stop(self, grace: float | None = None) -> Deferred[None]:
        waiter: Deferred[None] = Deferred()
        self.graces.append(grace)
        if self.cleanings and not self.cleanings[-1].called:
            self.cleanings[-1].addCallback(waiter.callback)
            return waiter
        slept, self.asleep_since = self.asleep_since is not None, None
        if self.state == "stopped" and not slept:
            self._later(lambda: waiter.callback(None))
            return waiter
        self._dozing = False
        self._for_stop.append(waiter)
        self._doomed += self._for_ready
        self._for_ready = []
        if self.state != "stopping":
            self._cancel()
            if slept:
                self.state = "stopping"
            else:
                self._show("stopping")
            self._descend(grace)
        elif self.stubborn and grace is not None and self._remaining() > grace:
            self._cancel()
            self._descend(grace)
        return waiter

    def clean_up(self) -> Deferred[None]:
        """Takes until a test fires the Deferred."""
        self.cleanings.append(Deferred())
        return self.cleanings[-1]

    def suspend(self, grace: float | None = None) -> Deferred[bool]:
        """Takes as long as a stop; `sleepless` ones are gone then. A start is stopped, as is what stops already."""
        if self.asleep_since is not None:
            self._later(lambda: told.callback(True))
            told: Deferred[bool] = Deferred()
            return told
        dozing = (self.state == "ready" or self._dozing) and not self.sleepless
        stopped = self.stop(grace)
        self._dozing = dozing
        return stopped.addCallback(lambda _: self.asleep_since is not None)

    def preflight(self, ours: Collection[int] = ()) -> StartFailed | None:
        self.asked_beside.append(set(ours))
        if self.unstartable is not None:
            self.last_error = self.unstartable.cause
        return self.unstartable

    def log_tail(self) -> str:
        return self.said

    def set_definition(self, model: Model) -> None:
        self.model = model
        self.retuned += 1

    def set_place(self, start: StartSwap) -> None:
        self.places.append((start.host, start.gpus, start.generation))

    def snapshot(self) -> ServerSnapshot | None:
        if self.state != "ready" and self.asleep_since is None:
            return None
        here = self.endpoint
        return ServerSnapshot(
            model=self.model.id,
            pid=100,
            start=1,
            mark="mark",
            port=here.port,
            proxy=str(here),
            endpoint=here,
            argv=("server",),
            env=(),
            cmd_stop="",
            started_at=0.0,
            ready_at=0.0,
            load_seconds=(),
            output=None,
            asleep=self.asleep_since is not None,
        )

    def adopt(self, served: ServerSnapshot) -> bool:
        if served.pid < 0:
            raise ChildProcessError("no such child")
        if served.asleep:
            self.asleep_since = served.idle_since
            return served.argv == ("server",)
        self._show("ready")
        if served.pid == 1:
            self.state = "stopped"
            self.listener.exited(self.model.id, -9, False)
        return served.argv == ("server",)

    def status(self) -> ServerStatus:
        endpoint = self.endpoint
        return ServerStatus(
            self.model.id,
            self.state,
            port=endpoint.port,
            started_at=self.started_at,
            last_error=self.last_error,
            cmd=tuple(word.replace("${PORT}", str(endpoint.port)) for word in self.cmd),
            endpoint=endpoint,
            asleep_since=self.asleep_since,
        )

    def close(self) -> None:
        self.closed = True

    # -- for tests -----------------------------------------------------------------------------------------

    def become_ready(self) -> None:
        assert self.state == "starting"
        self._cancel()
        if self.failure is not None:
            error, waiting, self._for_ready = self.failure, self._for_ready, []
            self._show("stopped")
            for waiter in waiting:
                self._later(lambda waiter=waiter: waiter.errback(error))
            return
        self._show("ready")
        waiting, self._for_ready = self._for_ready, []
        for waiter in waiting:
            self._later(lambda waiter=waiter: waiter.callback(self.endpoint))

    def become_stopped(self) -> None:
        assert self.state == "stopping"
        self._cancel()
        if self._dozing:
            self._dozing = False
            self.asleep_since = self.clock.seconds()
        else:
            self.listener.exited(self.model.id, -15, True)
        self._show("stopped")
        doomed, self._doomed = self._doomed, []
        for aborted in doomed:
            self._later(lambda aborted=aborted: aborted.errback(ModelUnloaded(self.model.id)))
        stopped, self._for_stop = self._for_stop, []
        for done in stopped:
            self._later(lambda done=done: done.callback(None))
        if self._for_ready:
            self._start()

    def crash(self, status: int = -11) -> None:
        assert self.state in ("starting", "ready")
        self._cancel()
        was_ready = self.state == "ready"
        if not was_ready:
            self.failure = StartFailed(self.model.id, "upstream command exited prematurely", status)
            self.become_ready()
        else:
            self._show("stopped")
        self.listener.exited(self.model.id, status, False)

    def _start(self) -> None:
        if self.asleep_since is not None:
            self.asleep_since = None
            self.wakes += 1
        else:
            self.spawned += 1
        self.started_at = self.clock.seconds()
        self._show("starting")
        if self.load is not None:
            self._call = self.clock.callLater(self.load, self.become_ready)

    def _descend(self, grace: float | None) -> None:
        if self.stubborn:
            assert grace is not None
            self._call = self.clock.callLater(grace, self.become_stopped)
        elif self.exit is not None:
            self._call = self.clock.callLater(self.exit, self.become_stopped)

    def _remaining(self) -> float:
        return 0.0 if self._call is None else self._call.getTime() - self.clock.seconds()

    def _show(self, word: str) -> None:
        old, self.state = self.state, word
        self.listener.state_changed(self.model.id, old, word)

    def _later(self, call) -> None:
        self.clock.callLater(0, call)

    def _cancel(self) -> None:
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None


@define(eq=False)
class RecordingListener:
    """A SupervisorListener that keeps its calls."""

    states: list[tuple[str, str]] = Factory(list)
    exits: list[tuple[int | None, bool]] = Factory(list)

    def state_changed(self, model: str, old: str, new: str) -> None:
        self.states.append((old, new))

    def exited(self, model: str, exit_status: int | None, expected: bool) -> None:
        self.exits.append((exit_status, expected))


@define(eq=False)
class FakeFleet:
    """A supervisor factory that remembers what it made. `adjust` changes a supervisor as it is made."""

    clock: Clock
    made: dict[str, FakeSupervisor] = Factory(dict)
    defaults: dict[str, dict[str, object]] = Factory(dict)

    def __call__(self, model: Model, listener: SupervisorListener) -> FakeSupervisor:
        supervisor = FakeSupervisor(model, listener, self.clock, **self.defaults.get(model.id, {}))
        self.made[model.id] = supervisor
        return supervisor

    def __getitem__(self, model: str) -> FakeSupervisor:
        return self.made[model]

    @property
    def up(self) -> list[str]:
        """The models that have a process."""
        return sorted(name for name, one in self.made.items() if one.state != "stopped")

    def spawned(self) -> dict[str, int]:
        return {name: one.spawned for name, one in self.made.items() if one.spawned}


@define(eq=False)
class SentRequest:
    """One request of an `http_client`, answered by hand."""

    method: str
    url: str
    timeout: float
    body: bytes | None
    headers: Mapping[str, str]
    cancelled: bool = False
    response: Deferred[HttpResponse] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.response = Deferred(lambda _: setattr(self, "cancelled", True))

    def reply(self, document: object = None, *, status: int = 200) -> None:
        self.response.callback(HttpResponse(status, json.dumps(document).encode()))

    def fail(self, reason: str = "refused") -> None:
        self.response.errback(RequestFailed(reason))


@define(eq=False)
class SentRequests:
    """A SendRequest that keeps its requests."""

    requests: list[SentRequest] = field(factory=list)

    def __call__(
        self, method: str, url: str, *, timeout: float, body: bytes | None = None, headers: Mapping[str, str] = {}
    ) -> Deferred[HttpResponse]:
        self.requests.append(SentRequest(method, url, timeout, body, headers))
        return self.last.response

    @property
    def last(self) -> SentRequest:
        return self.requests[-1]
