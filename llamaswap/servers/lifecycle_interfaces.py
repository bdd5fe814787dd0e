"""The inputs and actions of the state machine of a server, and the callers that wait for it.

`lifecycle.py` has its states and transitions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Protocol, runtime_checkable

from attrs import Factory, define, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from llamaswap.config.endpoints import Endpoint
from llamaswap.errors import LlamaswapError, ModelUnloaded, ShuttingDown


class Inputs(Protocol):
    """The events and wishes of a server."""

    def want_ready(self, waiter: Deferred[Endpoint]) -> None:
        """A caller needs the server. `waiter` gets the endpoint or the error."""

    def want_stopped(self, waiter: Deferred[None], grace: float) -> None:
        """A caller wants the server stopped; `waiter` fires when no process of it is left."""

    def want_cleaned(self, waiter: Deferred[None]) -> None:
        """The stop command of a stopped server has to run; `waiter` fires when the command has ended."""

    def want_suspended(self, waiter: Deferred[None], grace: float) -> None:
        """A caller needs the server's memory. `waiter` fires when it is suspended, or stopped within `grace`."""

    def suspended(self) -> None:
        """The server has released its memory."""

    def suspended_and_wanted(self) -> None:
        """The same, and a caller waits for the server to be ready: it is resumed."""

    def suspend_failed(self) -> None:
        """The steps that suspend the server failed or took too long."""

    def resume_failed(self) -> None:
        """The steps that resume the server failed, or it did not become ready in time. A restart follows."""

    def probe_passed(self) -> None:
        """The server answers its readiness check."""

    def start_failed(self, error: Callable[[], LlamaswapError]) -> None:
        """The server could not be started, or not in time. `error` is called when all its output has arrived."""

    def port_lost(self, error: Callable[[], LlamaswapError]) -> None:
        """The server exited at once because another process has its port; a start on another port may succeed."""

    def exited(self, error: Callable[[], LlamaswapError]) -> None:
        """The server's process ended; `error` tells those who wait for it to be ready how."""

    def drained(self) -> None:
        """No process of the server is left, or those left were given up."""

    def drained_and_wanted(self) -> None:
        """The same, and a caller waits for the server to be ready: it starts again."""

    def adopted(self) -> None:
        """The server is ready: the previous program of this process started it."""

    def adopted_suspended(self) -> None:
        """The server is suspended: the previous program of this process started it."""


# -- the data of the states --------------------------------------------------------------------------------


@frozen
class StateTask:
    """What runs during a state. `abandon` ends its timers and requests and leaves the process alone.

    A stop out of this state gives the process `max_grace` seconds at most, and one because the state's task failed
    `failure_grace`.
    """

    abandon: Callable[[], None] = lambda: None
    max_grace: float = math.inf
    failure_grace: float = 0.0


@runtime_checkable
class StopInProgress(Protocol):
    """The stop of one process."""

    def begin(self, grace: float) -> None: ...

    def shorten_grace(self, grace: float) -> None:
        """A caller wants the process to be gone within `grace` seconds."""

    def proceed(self) -> None:
        """The process has exited."""


@define(eq=False)
class LifecycleWaiters:
    """The waiting Deferreds of `model`. A Deferred that its owner has cancelled is left out.

    Each fires on a later turn of the reactor, never inside an input of the machine, because its callbacks may call an
    input. `closed` is set when the server is stopped for good.
    """

    clock: IReactorTime
    model: str
    closed: bool = False
    _for_ready: list[Deferred[Endpoint]] = Factory(list)
    _for_stop: list[Deferred[None]] = Factory(list)
    _failed: list[tuple[Deferred[Endpoint], Callable[[], LlamaswapError]]] = Factory(list)

    @property
    def wanted(self) -> bool:
        """Whether a caller waits for the server to be ready."""
        return bool(self._for_ready)

    def add_ready(self, waiter: Deferred[Endpoint]) -> None:
        self._for_ready.append(waiter)

    def add_stop(self, waiter: Deferred[None]) -> None:
        self._for_stop.append(waiter)

    def ready(self, endpoint: Endpoint) -> None:
        """Give the endpoint to all that wait for it."""
        waiting, self._for_ready = self._for_ready, []
        for waiter in waiting:
            self._later(waiter, partial(waiter.callback, endpoint))

    def fail_when_stopped(self, error: Callable[[], LlamaswapError]) -> None:
        """Those that wait for readiness now get `error` when the process is gone and its memory is free."""
        self._failed += [(waiter, error) for waiter in self._for_ready]
        self._for_ready = []

    def abort(self) -> None:
        """Those that wait for readiness now will learn why the model was stopped."""
        kind = ShuttingDown if self.closed else ModelUnloaded
        self.fail_when_stopped(lambda: kind(self.model))

    def stopped(self) -> None:
        """The server is down: answer those that wanted this, and those whose start failed."""
        failed, self._failed = self._failed, []
        for waiter, error in failed:
            self._fail(waiter, error())
        stopped, self._for_stop = self._for_stop, []
        for done in stopped:
            self._later(done, partial(done.callback, None))

    def refuse(self, waiter: Deferred[Endpoint]) -> None:
        """The server is not started any more."""
        self._fail(waiter, ShuttingDown(self.model))

    def _fail(self, waiter: Deferred[Endpoint], error: LlamaswapError) -> None:
        self._later(waiter, partial(waiter.errback, error))

    def _later(self, waiter: Deferred[Endpoint] | Deferred[None], fire: Callable[[], None]) -> None:
        self.clock.callLater(0, lambda: None if waiter.called else fire())


class Actions(Protocol):
    """What the machine calls. An action may call an input only on a later turn of the reactor."""

    @property
    def waiters(self) -> LifecycleWaiters: ...

    def begin_start(self) -> StateTask:
        """Start the process and its readiness checks; on another port if the last process lost its port."""

    def endpoint(self) -> Endpoint:
        """Where the running server listens."""

    def begin_suspend(self, grace: float) -> StateTask:
        """Suspend the server, or stop it within `grace` if that fails."""

    def begin_resume(self) -> StateTask:
        """Resume a suspended server and check its readiness."""

    def terminate(self) -> StopInProgress:
        """The stop of the present process, which is made if it does not exist."""

    def show(self, state: str) -> None:
        """The state as others see it is now `state`."""
