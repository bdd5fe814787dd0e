"""What the router asks of one model's server, whoever supervises it; and what stands around a supervisor.

Something that has to happen before a start or a stop, and that decides nothing, is a `SupervisorDecorator`: it looks
like the supervisor inside it, and does its part in between. What happens before a server goes is a
`PreStopDecorator`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol, TypeVar

from attrs import define, field, frozen
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaswap.config.endpoints import Endpoint
from llamaswap.config.schema import Model
from llamaswap.errors import ModelUnloaded, StartFailed
from llamaswap.servers.server_snapshot import ServerSnapshot

T = TypeVar("T")
log = Logger()


@frozen
class ServerStatus:
    """How one model's server is now. Times are on the clock's scale; `load_seconds` are the last loads, oldest first.

    `asleep_since` is set while the server is suspended: it is shown as stopped then, but has a process, and
    `wake_seconds` are its last resumes.
    """

    model: str
    state: str
    pid: int | None = None
    port: int | None = None
    started_at: float | None = None
    ready_at: float | None = None
    last_error: str | None = ""
    load_seconds: Sequence[float] = ()
    cmd: Sequence[str] = ()
    endpoint: Endpoint | None = None
    asleep_since: float | None = None
    wake_seconds: Sequence[float] = ()


class Supervised(Protocol):
    """One model's server. `state` is advisory; decisions are made from what the listener is told."""

    @property
    def state(self) -> str: ...

    def ensure_ready(self) -> Deferred[Endpoint]:
        """Fires when the server is ready; fails with a RequestError. Waits out a stop that is under way."""

    def stop(self, grace: float | None = None) -> Deferred[None]:
        """Never fails; fires when no process is left (or what is left was declared lost)."""

    def clean_up(self) -> Deferred[None]:
        """Run the stop command of a server that is not up, for what may be left of it; never fails."""

    def sleep(self, grace: float | None = None) -> Deferred[bool]:
        """Never fails; fires with whether the server sleeps now. Otherwise it is gone, as by `stop`."""

    def preflight(self, ours: Collection[int] = ()) -> StartFailed | None:
        """Why a start would fail at once; asked before anything is stopped for it. `ours` are ports that servers of
        other models have now and may give back."""

    def log_tail(self) -> str:
        """The last lines of what the server said since it was last started."""

    def retune(self, model: Model) -> None:
        """The next start uses this definition."""

    def handover(self) -> ServerSnapshot | None:
        """What another program in our place needs to go on with the server; None where it is not ready or asleep."""

    def adopt(self, served: ServerSnapshot) -> bool:
        """Begin with a server that is ready or asleep; returns whether it is what would be started now. OSError."""

    def status(self) -> ServerStatus: ...

    def close(self) -> object:
        """Never start again."""


class SupervisorListener(Protocol):
    """Whom a supervisor tells. It may do so in the middle of its own business: nothing is asked of it before later."""

    def state_changed(self, model: str, old: str, new: str) -> None: ...

    def exited(self, model: str, exit_status: int | None, expected: bool) -> None: ...


SupervisorFactory = Callable[[Model, SupervisorListener], Supervised]


@define(eq=False)
class SupervisorDecorator:
    """A supervisor around another: every call goes on to the one inside."""

    _inner: Supervised

    @property
    def state(self) -> str:
        return self._inner.state

    def ensure_ready(self) -> Deferred[Endpoint]:
        return self._inner.ensure_ready()

    def stop(self, grace: float | None = None) -> Deferred[None]:
        return self._inner.stop(grace)

    def clean_up(self) -> Deferred[None]:
        return self._inner.clean_up()

    def sleep(self, grace: float | None = None) -> Deferred[bool]:
        return self._inner.sleep(grace)

    def preflight(self, ours: Collection[int] = ()) -> StartFailed | None:
        return self._inner.preflight(ours)

    def log_tail(self) -> str:
        return self._inner.log_tail()

    def retune(self, model: Model) -> None:
        self._inner.retune(model)

    def handover(self) -> ServerSnapshot | None:
        return self._inner.handover()

    def adopt(self, served: ServerSnapshot) -> bool:
        return self._inner.adopt(served)

    def status(self) -> ServerStatus:
        return self._inner.status()

    def close(self) -> object:
        return self._inner.close()


_check: type[Supervised] = SupervisorDecorator


@define(eq=False)
class PreStopDecorator(SupervisorDecorator):
    """Has something done for a ready server before it goes: once, whoever wants it gone meanwhile.

    Until that is over the supervisor inside does not know, and would give away a server that is about to go. So who
    wants it ready then waits, and gets the next one.
    """

    _wishes: int = field(default=0, init=False)  # how often it was asked to go
    _going: int = field(default=0, init=False)  # those of them that have not come to their end
    _saying: Deferred[None] | None = field(default=None, init=False)

    def _start(self) -> Deferred[Endpoint]:
        """`ensure_ready`, when no farewell is under way."""
        return self._inner.ensure_ready()

    def _before_stop(self, grace: float | None) -> Deferred[None] | None:
        """What is to be waited for; None where there is nothing."""
        return None

    def _before_sleep(self) -> Deferred[None] | None:
        """The same for a server that is put to sleep."""
        return None

    @property
    def _stays(self) -> bool:
        """Whether there is a server that answers, and that nobody has asked to go."""
        return self._inner.state == "ready" and not self._going

    def ensure_ready(self) -> Deferred[Endpoint]:
        """Wait until a server that goes has been told, then have it started anew."""
        return self._start() if self._saying is None else Deferred.fromCoroutine(self._start_after(self._saying))

    async def _start_after(self, saying: Deferred[None]) -> Endpoint:
        wishes = self._wishes
        await _forked(saying)
        if wishes != self._wishes:
            raise ModelUnloaded(self._inner.status().model)
        return await self._start()

    def stop(self, grace: float | None = None) -> Deferred[None]:
        """After the farewell, if there is to be one."""
        return self._leave(lambda: self._before_stop(grace), lambda: self._inner.stop(grace))

    def sleep(self, grace: float | None = None) -> Deferred[bool]:
        """The same."""
        return self._leave(self._before_sleep, lambda: self._inner.sleep(grace))

    def _leave(self, before: Callable[[], Deferred[None] | None], go: Callable[[], Deferred[T]]) -> Deferred[T]:
        self._wishes += 1
        if self._stays:
            self._saying = before()
            if self._saying is not None:
                self._saying.addErrback(lambda failure: log.failure("before a server goes", failure))
                self._saying.addCallback(self._said)
        going = go() if self._saying is None else _forked(self._saying).addCallback(lambda _: go())
        self._going += 1
        return going.addBoth(self._left)

    def _said(self, _: None) -> None:
        self._saying = None

    def _left(self, result: T | Failure) -> T | Failure:
        self._going -= 1
        return result


def _forked(saying: Deferred[None]) -> Deferred[None]:
    """One more who waits for it, in turn."""
    waiter: Deferred[None] = Deferred()
    saying.addCallback(waiter.callback)
    return waiter
