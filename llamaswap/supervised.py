"""What the router asks of one model's server, whoever supervises it; and what stands around a supervisor.

Something that has to happen before a start or a stop, and that decides nothing, is an `Around`: it looks like the
supervisor inside it, and does its part in between.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from attrs import define
from twisted.internet.defer import Deferred

from llamaswap.config.endpoints import Endpoint
from llamaswap.config.schema import Model
from llamaswap.errors import StartFailed
from llamaswap.supervise.adopt import Served


class Status(Protocol):
    """What is known about one model's server now."""

    @property
    def model(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def pid(self) -> int | None: ...
    @property
    def port(self) -> int | None: ...
    @property
    def started_at(self) -> float | None: ...
    @property
    def ready_at(self) -> float | None: ...
    @property
    def last_error(self) -> str | None: ...
    @property
    def load_seconds(self) -> Sequence[float]: ...
    @property
    def cmd(self) -> Sequence[str]: ...
    @property
    def endpoint(self) -> Endpoint | None: ...
    @property
    def asleep_since(self) -> float | None: ...
    @property
    def wake_seconds(self) -> Sequence[float]: ...


class Supervised(Protocol):
    """One model's server. `state` is advisory; decisions are made from what the listener is told."""

    @property
    def state(self) -> str: ...

    def ensure_ready(self) -> Deferred[Endpoint]:
        """Fires when the server is ready; fails with a RequestError. Waits out a stop that is under way."""

    def stop(self, grace: float | None = None) -> Deferred[None]:
        """Never fails; fires when no process is left (or what is left was declared lost)."""

    def sleep(self, grace: float | None = None) -> Deferred[bool]:
        """Never fails; fires with whether the server sleeps now. Otherwise it is gone, as by `stop`."""

    def preflight(self, ours: Collection[int] = ()) -> StartFailed | None:
        """Why a start would fail at once; asked before anything is stopped for it. `ours` are ports that servers of
        other models have now and may give back."""

    def log_tail(self) -> str:
        """The last lines of what the server said since it was last started."""

    def retune(self, model: Model) -> None:
        """The next start uses this definition."""

    def handover(self) -> Served | None:
        """What another program in our place needs to go on with the server; None where it is not ready or asleep."""

    def adopt(self, served: Served) -> bool:
        """Begin with a server that is ready or asleep; returns whether it is what would be started now. OSError."""

    def status(self) -> Status: ...

    def close(self) -> object:
        """Never start again."""


class Listener(Protocol):
    """Whom a supervisor tells. It may do so in the middle of its own business: nothing is asked of it before later."""

    def state_changed(self, model: str, old: str, new: str) -> None: ...

    def exited(self, model: str, exit_status: int | None, expected: bool) -> None: ...


SupervisorFactory = Callable[[Model, Listener], Supervised]


@define(eq=False)
class Around:
    """A supervisor around another: every call goes on to the one inside."""

    _inner: Supervised

    @property
    def state(self) -> str:
        return self._inner.state

    def ensure_ready(self) -> Deferred[Endpoint]:
        return self._inner.ensure_ready()

    def stop(self, grace: float | None = None) -> Deferred[None]:
        return self._inner.stop(grace)

    def sleep(self, grace: float | None = None) -> Deferred[bool]:
        return self._inner.sleep(grace)

    def preflight(self, ours: Collection[int] = ()) -> StartFailed | None:
        return self._inner.preflight(ours)

    def log_tail(self) -> str:
        return self._inner.log_tail()

    def retune(self, model: Model) -> None:
        self._inner.retune(model)

    def handover(self) -> Served | None:
        return self._inner.handover()

    def adopt(self, served: Served) -> bool:
        return self._inner.adopt(served)

    def status(self) -> Status:
        return self._inner.status()

    def close(self) -> object:
        return self._inner.close()


_check: type[Supervised] = Around
