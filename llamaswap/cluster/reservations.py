"""What is reserved in Ray of the memory of hosts, and that each reservation ends, whatever fails meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attrs import define, field
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from llamaswap.cluster import driver_protocol as protocol
from llamaswap.cluster.ray_client import RayAway, RayClient

LIST_INTERVAL = 30.0  # seconds between two lists of the reservations
CONFIRM_INTERVAL = 5.0  # seconds until the next one, if nothing uses some of them
MAX_UNRELEASED = 10_000  # the next list finds the others


@define(eq=False)
class Reservations:
    """The reservations of this front; `used` are the names of those that it needs."""

    clock: IReactorTime
    ray: RayClient
    used: Callable[[], set[str]]
    _next_list: float = field(default=0.0, init=False)
    _unused: set[str] = field(factory=set, init=False)
    _unreleased: set[str] = field(factory=set, init=False)

    def release(self, name: str) -> None:
        """End a reservation. If Ray does not answer, it is asked again as soon as it does."""
        self.ray.call(protocol.Release, name=name).addErrback(self._not_released, name)

    def _not_released(self, failure: Failure, name: str) -> None:
        failure.trap(RayAway, protocol.RayError)
        if len(self._unreleased) < MAX_UNRELEASED:
            self._unreleased.add(name)

    def tend(self, superseded: bool) -> None:
        """Release what could not be released; at times, what earlier fronts have left too. To be called while Ray is
        connected; `superseded`: another front uses the hosts."""
        names, self._unreleased = self._unreleased, set()
        for name in sorted(names):
            self.release(name)
        if self.clock.seconds() >= self._next_list and not superseded:
            self._next_list = self.clock.seconds() + LIST_INTERVAL
            self.ray.call(protocol.ListReservations).addCallbacks(self._listed, lambda _: None)

    def _listed(self, answer: Mapping[str, Any]) -> None:
        """Release what is listed twice in a row and used by nothing: a front or the process for Ray died."""
        unused = {str(name) for name in answer["names"]} - self.used()
        for name in unused & self._unused:
            self.release(name)
        self._unused = unused - self._unused
        if self._unused:
            self._next_list = self.clock.seconds() + CONFIRM_INTERVAL
