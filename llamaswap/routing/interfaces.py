"""What the router needs from others, what it shows of itself, and what the layers above use of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from attrs import frozen
from twisted.internet.defer import Deferred

from llamaswap.config import Config
from llamaswap.routing.leases import Lease, PendingLease
from llamaswap.scheduling.selectors import TargetChoice as TargetChoice  # web/ takes these two from here
from llamaswap.scheduling.state import Verdict as Verdict
from llamaswap.servers.supervisor_protocol import ServerStatus


class MemoryReclaim(Protocol):
    """Says when the memory of a stopped server can be used again."""

    def wait_for_reclaim(self, model: str) -> Deferred[None] | None:
        """Fires when `model` may start, after a bounded time in any case; None: it may start now."""

    def loading(self, model: str) -> None:
        """A start begins."""

    def loaded(self, model: str) -> None:
        """The start succeeded."""

    def stopped(self, model: str) -> None:
        """No process of the model is left."""


class Admission(Protocol):
    """The router as the data path uses it; its methods are described there."""

    @property
    def config(self) -> Config: ...
    @property
    def profile(self) -> str | None: ...
    def choose(self, selector_id: str) -> TargetChoice: ...
    def lease(self, model: str) -> Lease | None: ...
    def request(
        self, model: str, *, on_position: Callable[[int], None] | None = None, origin: str = ""
    ) -> PendingLease: ...
    def supersede(
        self, waiting: PendingLease, *, on_position: Callable[[int], None] | None = None
    ) -> PendingLease | None: ...
    def state(self, model: str) -> str: ...
    def status(self, model: str) -> ServerStatus: ...


@frozen
class WaitingRequest:
    """One waiting request. `position` is its 1-based position in the queue, 0 if its model is being loaded."""

    number: int
    model: str
    position: int
    age: float
    priority: int


@frozen
class HealthSnapshot:
    """The ages of the oldest waiting request (None if none waits) and of the last decision, in seconds, and counts."""

    oldest_waiter: float | None
    last_decision: float
    waiting: int
    serving: int
    loading: int
