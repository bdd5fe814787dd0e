"""The inputs and actions of the state machine of a server; `lifecycle.py` has its states and transitions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from attrs import frozen
from twisted.internet.defer import Deferred

from llamaswap.config.endpoints import Endpoint
from llamaswap.errors import LlamaswapError
from llamaswap.servers.lifecycle_waiters import LifecycleWaiters


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
