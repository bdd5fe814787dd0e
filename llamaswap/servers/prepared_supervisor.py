"""A supervisor whose loads and stops wait for preparations: hooks, and the saving of slots."""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import TypeVar

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaswap.config.endpoints import Endpoint
from llamaswap.config.schema.model import Model
from llamaswap.errors import ModelUnloaded, StartFailed
from llamaswap.scheduling.effects import StartSwap
from llamaswap.servers.server_snapshot import ServerSnapshot
from llamaswap.servers.supervisor_protocol import ServerStatus, Supervised

T = TypeVar("T")
_log = Logger()


class Preparation:
    """What has to be done around the loads and stops of one model; a subclass overrides what it needs."""

    async def before_load(self) -> None:
        """The server is about to be started or resumed."""

    async def after_load(self, status: ServerStatus) -> None:
        """The server has been started; requests wait."""

    async def before_stop(self, status: ServerStatus, grace: float | None) -> None:
        """A ready server is about to be stopped."""

    async def before_suspend(self) -> None:
        """A ready server is about to be suspended."""

    def set_definition(self, model: Model) -> None:
        """The definition of the model has changed."""


@define(eq=False)
class PreparedSupervisor:
    """Runs `preparations` around the loads and stops of the supervisor inside.

    A stop is prepared once, however many callers want it. Until that is over the supervisor inside does not know of the
    stop, so a request for the model waits here and gets the next server.
    """

    _inner: Supervised
    _preparations: Sequence[Preparation]
    _stop_wishes: int = field(default=0, init=False)
    _stops: int = field(default=0, init=False)  # those of the wishes that have not ended
    _stop_preparation: Deferred[None] | None = field(default=None, init=False)

    @property
    def state(self) -> str:
        return self._inner.state

    def ensure_ready(self) -> Deferred[Endpoint]:
        return self._inner.ensure_ready() if self._stays else Deferred.fromCoroutine(self._load())

    def stop(self, grace: float | None = None) -> Deferred[None]:
        prepare = lambda one, status: one.before_stop(status, grace)
        return self._end(prepare, lambda: self._inner.stop(grace))

    def suspend(self, grace: float | None = None) -> Deferred[bool]:
        return self._end(lambda one, status: one.before_suspend(), lambda: self._inner.suspend(grace))

    def clean_up(self) -> Deferred[None]:
        return self._inner.clean_up()

    def preflight(self, ours: Collection[int] = ()) -> StartFailed | None:
        return self._inner.preflight(ours)

    def log_tail(self) -> str:
        return self._inner.log_tail()

    def set_definition(self, model: Model) -> None:
        self._inner.set_definition(model)
        for one in self._preparations:
            one.set_definition(model)

    def set_place(self, start: StartSwap) -> None:
        self._inner.set_place(start)

    def snapshot(self) -> ServerSnapshot | None:
        return self._inner.snapshot()

    def adopt(self, served: ServerSnapshot) -> bool:
        return self._inner.adopt(served)

    def status(self) -> ServerStatus:
        return self._inner.status()

    def close(self) -> object:
        return self._inner.close()

    @property
    def _stays(self) -> bool:
        """Whether the server is ready and no caller wants it stopped."""
        return self._inner.state == "ready" and not self._stops

    async def _load(self) -> Endpoint:
        wishes = self._stop_wishes

        async def wait_for(step: Coroutine[object, object, None] | Deferred[None]) -> None:
            await step
            if wishes != self._stop_wishes:  # unloaded meanwhile: nothing is started
                raise ModelUnloaded(self._inner.status().model)

        if self._stop_preparation is not None:
            await wait_for(_after(self._stop_preparation))
        for one in self._preparations:
            await wait_for(one.before_load())
        resumes = self._inner.status().asleep_since is not None
        endpoint = await self._inner.ensure_ready()
        for one in () if resumes else self._preparations:
            await wait_for(one.after_load(self._inner.status()))
        return endpoint

    def _end(
        self,
        prepare: Callable[[Preparation, ServerStatus], Coroutine[object, object, None]],
        end: Callable[[], Deferred[T]],
    ) -> Deferred[T]:
        self._stop_wishes += 1
        if self._stays:
            self._stop_preparation = preparation = Deferred.fromCoroutine(self._prepare_stop(prepare))
            preparation.addCallback(self._stop_prepared)
        ending = (
            end() if self._stop_preparation is None else _after(self._stop_preparation).addCallback(lambda _: end())
        )
        self._stops += 1
        return ending.addBoth(self._ended)

    async def _prepare_stop(
        self, prepare: Callable[[Preparation, ServerStatus], Coroutine[object, object, None]]
    ) -> None:
        for one in self._preparations:
            try:
                await prepare(one, self._inner.status())
            except Exception:  # the server has to be stopped whatever happens here
                _log.failure("the stop of {model} could not be prepared", model=self._inner.status().model)

    def _stop_prepared(self, _: None) -> None:
        self._stop_preparation = None

    def _ended(self, result: T | Failure) -> T | Failure:
        self._stops -= 1
        return result


def _after(preparation: Deferred[None]) -> Deferred[None]:
    """Fires when the preparation has ended; callers in the order in which they came."""
    waiter: Deferred[None] = Deferred()
    preparation.addCallback(waiter.callback)
    return waiter


_check: type[Supervised] = PreparedSupervisor
