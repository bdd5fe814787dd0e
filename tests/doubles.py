"""Doubles for the rooms below the router: servers that start and stop when a test says so, or after so many seconds.

A stand-in supervisor keeps to what a real one promises: waiters are told on a later turn, a start waits for a stop
that is under way, a stop ends a start.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping

from attrs import Factory, define, field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import Clock

from llamaswap.config import Model
from llamaswap.config.endpoints import Endpoint
from llamaswap.errors import ModelUnloaded, ShuttingDown, StartFailed
from llamaswap.http_client import HttpResponse, RequestFailed, SendRequest
from llamaswap.servers.server_snapshot import ServerSnapshot
from llamaswap.servers.supervisor_protocol import Supervised, SupervisorListener


@frozen
class FakeStatus:
    model: str
    state: str
    pid: int | None = None
    port: int | None = None
    started_at: float | None = None
    ready_at: float | None = None
    last_error: str | None = None
    load_seconds: tuple[float, ...] = ()
    cmd: tuple[str, ...] = ()
    endpoint: Endpoint | None = None
    asleep_since: float | None = None
    wake_seconds: tuple[float, ...] = ()


class NoMemoryReclaim:
    """Observes no memory: every model may start at once."""

    def wait_for_reclaim(self, model: str) -> None:
        return None

    def loading(self, model: str) -> None: ...

    def loaded(self, model: str) -> None: ...

    def stopped(self, model: str) -> None: ...


@define(eq=False)
class FakeSupervisor:
    """A server that is ready `load` seconds after its start and gone `exit` seconds after its stop.

    With None it waits to be told: `become_ready`, `become_stopped`. `stubborn` ones go only when their grace is over.
    """

    model: Model
    listener: SupervisorListener
    clock: Clock
    load: float | None = 0.0
    exit: float | None = 0.0
    stubborn: bool = False
    failure: Exception | None = None
    unstartable: StartFailed | None = None
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
    cleanings: list[Deferred[None]] = field(factory=list, init=False)
    _dozing: bool = field(default=False, init=False)
    _for_ready: list[Deferred[Endpoint]] = field(factory=list, init=False)
    _for_stop: list[Deferred[None]] = field(factory=list, init=False)
    _doomed: list[Deferred[Endpoint]] = field(factory=list, init=False)
    _call: IDelayedCall | None = field(default=None, init=False)

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint("http", "127.0.0.1", 5800 + self.spawned)

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
        return self.unstartable

    def log_tail(self) -> str:
        return self.said

    def set_definition(self, model: Model) -> None:
        self.model = model
        self.retuned += 1

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

    def status(self) -> FakeStatus:
        endpoint = self.endpoint
        return FakeStatus(
            self.model.id,
            self.state,
            port=endpoint.port,
            started_at=self.started_at,
            endpoint=endpoint,
            asleep_since=self.asleep_since,
        )

    def close(self) -> None:
        self.closed = True

    # -- what a test may say -------------------------------------------------------------------------------

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

    # -- its own business ----------------------------------------------------------------------------------

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


_check: type[Supervised] = FakeSupervisor


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


_sends: SendRequest = SentRequests()
