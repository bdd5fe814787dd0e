"""The interface between the router and the supervisor of one model's server."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from attrs import frozen
from twisted.internet.defer import Deferred

from llamaswap.config.endpoints import Endpoint
from llamaswap.config.schema.model import Model
from llamaswap.errors import StartFailed
from llamaswap.scheduling.effects import StartSwap
from llamaswap.servers.server_snapshot import ServerSnapshot


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
    """The supervisor of one model's server. `state` is for showing; decisions follow from the listener's calls."""

    @property
    def state(self) -> str: ...

    def ensure_ready(self) -> Deferred[Endpoint]:
        """Fires when the server is ready; it is started if necessary, after the end of a stop.

        Fails with StartFailed, ModelUnloaded (stopped meanwhile) or ShuttingDown, and then the process is gone.
        Cancelling ends the wait, not the start.
        """

    def stop(self, grace: float | None = None) -> Deferred[None]:
        """Fires when no process of the server is left, or those left were given up; never fails.

        `grace` in seconds between SIGTERM and SIGKILL; the model's `unload_timeout` by default.
        """

    def clean_up(self) -> Deferred[None]:
        """Run the stop command of a stopped server, for a container that may be left of it; never fails.

        A command with ${PID} in it needs a process, and does not run.
        """

    def suspend(self, grace: float | None = None) -> Deferred[bool]:
        """Release the memory. Fires with whether the server is suspended, otherwise it is stopped; never fails.

        A server that starts is stopped; only a ready one can be suspended.
        """

    def preflight(self, ours: Collection[int] = ()) -> StartFailed | None:
        """Why a start would fail at once; the router asks before it stops other models for it.

        A port that llamaswap cannot exchange must be free, or be one of `ours`: those of other models' servers.
        """

    def log_tail(self) -> str:
        """The last lines of output since the last start."""

    def set_definition(self, model: Model) -> None:
        """The next start uses this definition; a running server stays as it is."""

    def set_place(self, start: StartSwap) -> None:
        """The next start is that of this effect, on its `host`; it is called only if there are several hosts."""

    def snapshot(self) -> ServerSnapshot | None:
        """What a new program in this process needs to keep the server; None if it is neither ready nor suspended."""

    def adopt(self, served: ServerSnapshot) -> bool:
        """Continue with a server that runs already. Returns whether the present definition would start the same.

        Raises OSError if it is not a child of this process.
        """

    def status(self) -> ServerStatus: ...

    def close(self) -> object:
        """Stop the server and never start it again."""


class SupervisorListener(Protocol):
    """Hears of a server's events, in the middle of the supervisor's work: it must not call the supervisor at once."""

    def state_changed(self, model: str, old: str, new: str) -> None: ...

    def exited(self, model: str, exit_status: int | None, expected: bool) -> None: ...


SupervisorFactory = Callable[[Model, SupervisorListener], Supervised]
