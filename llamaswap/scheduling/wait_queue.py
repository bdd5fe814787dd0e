"""The wait queue: the order of the requests that wait for a decision, and their positions.

Starved requests come first, in the order in which their fairness windows ended. The others follow by priority, then by
arrival. The queue knows nothing of models or servers.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator

from attrs import define, field

from llamaswap.scheduling.effects import QueuePosition
from llamaswap.scheduling.state import QueuedRequest


@define(eq=False)
class WaitQueue:
    """Requests in the order in which the scheduler decides about them. Iterating over a changing queue needs a copy."""

    _starved: list[QueuedRequest] = field(factory=list, init=False)
    _others: list[QueuedRequest] = field(factory=list, init=False)

    def __len__(self) -> int:
        return len(self._starved) + len(self._others)

    def __iter__(self) -> Iterator[QueuedRequest]:
        yield from self._starved
        yield from self._others

    def add(self, entry: QueuedRequest) -> None:
        """Queue a request that is not starved."""
        entry.position = 0
        insort(self._others, entry, key=_arrival_key)

    def remove(self, entry: QueuedRequest) -> None:
        """Take a request out of the queue."""
        (self._starved if entry.starved else self._others).remove(entry)

    def promote_starved(self, now: float) -> None:
        """Move the requests whose fairness window has ended before all others."""
        for entry in [entry for entry in self._others if entry.deadline <= now]:
            self._others.remove(entry)
            entry.starved = True
            insort(self._starved, entry, key=_starved_key)

    def renumber(self) -> list[QueuePosition]:
        """Update the 1-based positions; returns an effect for each one that changed."""
        moved = []
        for position, entry in enumerate(self, 1):
            if entry.position != position:
                entry.position = position
                moved.append(QueuePosition(entry.ticket, position))
        return moved


def _arrival_key(entry: QueuedRequest) -> tuple[int, int]:
    return -entry.ticket.priority, entry.ticket.number


def _starved_key(entry: QueuedRequest) -> tuple[float, int]:
    return entry.deadline, entry.ticket.number
