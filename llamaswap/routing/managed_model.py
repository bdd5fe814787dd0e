"""What the router keeps about one model, in one record."""

from __future__ import annotations

from hashlib import sha256

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from llamaswap.config.schema.model import Model
from llamaswap.routing.leases import ProcessInstance
from llamaswap.servers.supervisor_protocol import Supervised

STOPPED_STATES = ("stopped", "shutdown")
FAILURES = {"starting": "failed", "ready": "crash"}  # why a server ended that was not stopped, by its state before


@define(eq=False)
class ManagedModel:
    """A model of the configuration, or one that was removed from it (`configured` False) and still has a process.

    `config` is the definition for its next start, `process` its present process while that is ready, `stop_reason` why
    the process is being stopped, `pending_stops` how many stops and suspensions have not ended. `suspended` is set
    while the server is suspended. `earlier_log_tail` are the last lines of output of a failed start that happened
    before an upgrade in place.
    """

    config: Model
    supervisor: Supervised
    configured: bool = field(default=True, init=False)
    process: ProcessInstance | None = field(default=None, init=False)
    stop_reason: str = field(default="", init=False)
    pending_stops: int = field(default=0, init=False)
    suspended: bool = field(default=False, init=False)
    earlier_log_tail: str = field(default="", init=False)
    idle_deadline: float | None = field(default=None, init=False)
    idle_timer: IDelayedCall | None = field(default=None, init=False)
    stop_waiters: list[Deferred[None]] = field(factory=list, init=False)

    @property
    def stopped(self) -> bool:
        """Whether the supervisor shows the server as stopped; a suspended one is shown so too."""
        return self.supervisor.state in STOPPED_STATES

    @property
    def log_tail(self) -> str:
        """The last lines of the server's output."""
        return self.supervisor.log_tail() or self.earlier_log_tail

    @property
    def definition(self) -> str:
        """A digest that is equal for definitions that start the same server. It hides the environment's secrets."""
        parts = self.config.cmd, self.config.env, self.config.proxy
        return sha256(repr(parts).encode("utf-8", "replace")).hexdigest()

    def end_reason(self, state: str) -> str:
        """Why its server stops or has stopped, after this state. If it ended by itself, the scheduler hears later."""
        self.stop_reason = self.stop_reason or FAILURES.get(state, "")
        return self.stop_reason

    def mark_lost(self) -> None:
        """The present process has exited, or is about to be stopped as unusable: its leases are lost."""
        if self.process is not None:
            self.process.lost = True

    def cancel_idle_timer(self) -> None:
        """Cancel the pending call that would report the model as idle."""
        if self.idle_timer is not None:
            self.idle_timer.cancel()
            self.idle_timer = None
