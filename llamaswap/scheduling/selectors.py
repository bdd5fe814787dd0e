"""Selectors: one name for several models, and the choice among them.

A choice looks at how things stand now and reserves nothing but its own count: how many requests this selector has on
each target, which only `spillover` uses. Whether the chosen model then has room is the scheduler's business.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field, frozen

from llamaswap.config.schema import Selector
from llamaswap.errors import NoTarget

READY, STARTING = "ready", "starting"
LEAVING = ("stopping", "shutdown")


Look = Callable[[str], str | None]
"""The state word of a local target, None for a peer's model."""


@frozen
class TargetChoice:
    """The target chosen, as it is written in the selector. `others` are the rest, best first, should it fail.

    `release` is to be called once the request has ended; it is idempotent.
    """

    target: str
    release: Callable[[], None]
    others: tuple[str, ...] = ()


@define(eq=False)
class Chooser:
    """Chooses, and keeps the counts."""

    _counts: dict[tuple[str, str], int] = field(factory=dict, init=False)
    _turns: dict[str, int] = field(factory=dict, init=False)

    def choose(self, selector: Selector, look: Look) -> TargetChoice:
        """Choose a target for one request; raises NoTarget."""
        if selector.strategy == "spillover":
            order = self._spillover(selector, look)
        elif selector.strategy == "warm":
            order = _warm(selector, look)
        else:
            order = list(selector.targets)
        if not order:
            # Only spillover passes targets over; clients of the Go program know this sentence.
            raise NoTarget(selector.id, f'selector "{selector.id}" has no available spillover targets')
        return self._hold(selector.id, order[0], tuple(order[1:]))

    def count(self, selector: str, target: str) -> int:
        """How many requests this selector has on this target."""
        return self._counts.get((selector, target), 0)

    def _hold(self, selector: str, target: str, others: tuple[str, ...]) -> TargetChoice:
        key = selector, target
        self._counts[key] = self._counts.get(key, 0) + 1
        released = False

        def release() -> None:
            nonlocal released
            if not released:
                released = True
                self._counts[key] -= 1
                if not self._counts[key]:
                    del self._counts[key]

        return TargetChoice(target, release, others)

    def _spillover(self, selector: Selector, look: Look) -> list[str]:
        """Fill the active targets up to the threshold, then wake a cold one, then share among all."""
        active: list[str] = []
        cold: list[str] = []
        for target in selector.targets:
            state, count = look(target), self.count(selector.id, target)
            if state in LEAVING:
                continue
            (active if state in (READY, STARTING) or count else cold).append(target)
        turn = self._turns.get(selector.id, -1)
        places = {target: (at - turn - 1) % len(selector.targets) for at, target in enumerate(selector.targets)}
        # Among equally busy ones the next after the last chosen comes first.
        active.sort(key=lambda target: (self.count(selector.id, target), places[target]))
        if active and self.count(selector.id, active[0]) < selector.settings.spillover:
            order = active + cold
        else:
            order = cold + active
        if order:
            self._turns[selector.id] = selector.targets.index(order[0])
        return order


def _warm(selector: Selector, look: Look) -> list[str]:
    """The ready ones, then those being loaded, then the rest, each in the order written."""
    ranks = {READY: 0, STARTING: 1}
    return sorted(selector.targets, key=lambda target: ranks.get(look(target) or "", 2))
