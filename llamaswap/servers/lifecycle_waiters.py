"""The callers that wait for one model's server to be ready, or to be stopped.

Each Deferred fires on a later turn of the reactor, never inside an input of the machine, because its callbacks may call
an input.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from attrs import Factory, define
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from llamaswap.config.endpoints import Endpoint
from llamaswap.errors import LlamaswapError, ModelUnloaded, ShuttingDown


@define(eq=False)
class LifecycleWaiters:
    """The waiting Deferreds of `model`. A Deferred that its owner has cancelled is left out.

    `closed` is set when the server is stopped for good.
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
        error = ShuttingDown(self.model) if self.closed else ModelUnloaded(self.model)
        self.fail_when_stopped(lambda: error)

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
