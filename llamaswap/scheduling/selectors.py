"""Selectors: one name for several models, and the choice among them.

A choice depends on the present states and reserves nothing but its own count: how many requests this selector has on
each target, which only `spillover` uses. Whether the chosen model can be loaded is decided by the scheduler.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field, frozen

from llamaswap.config.schema.routing import Selector
from llamaswap.errors import NoTarget

READY, STARTING = "ready", "starting"
STOPPING_STATES = ("stopping", "shutdown")

StateOf = Callable[[str], str | None]
"""Returns the state of a local target, and None for a peer's model."""


@frozen
class TargetChoice:
    """The chosen target as the selector spells it. `others` are the rest, best first, in case it fails.

    `release` is to be called once the request has ended; it is idempotent.
    """

    target: str
    release: Callable[[], None]
    others: tuple[str, ...] = ()


@define(eq=False)
class Chooser:
    """Chooses targets, and counts the requests of each selector on each target."""

    _counts: dict[tuple[str, str], int] = field(factory=dict, init=False)
    _last_chosen: dict[str, int] = field(factory=dict, init=False)

    def choose(self, selector: Selector, state_of: StateOf) -> TargetChoice:
        """Choose a target for one request; raises NoTarget."""
        if selector.strategy == "spillover":
            order = self._spillover(selector, state_of)
        elif selector.strategy == "warm":
            ranks = {READY: 0, STARTING: 1}
            order = sorted(selector.targets, key=lambda target: ranks.get(state_of(target) or "", 2))
        else:
            order = list(selector.targets)
        if not order:
            # Only spillover passes targets over; clients of the Go program know this sentence.
            raise NoTarget(selector.id, f'selector "{selector.id}" has no available spillover targets')
        return self._count(selector.id, order[0], tuple(order[1:]))

    def count(self, selector: str, target: str) -> int:
        """How many requests this selector has on this target."""
        return self._counts.get((selector, target), 0)

    def _count(self, selector: str, target: str, others: tuple[str, ...]) -> TargetChoice:
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

    def _spillover(self, selector: Selector, state_of: StateOf) -> list[str]:
        """Fill the active targets up to the threshold, then load another one, then share among all.

        Among equally busy targets the next after the last chosen one comes first.
        """
        active: list[str] = []
        inactive: list[str] = []
        for target in selector.targets:
            state, count = state_of(target), self.count(selector.id, target)
            if state not in STOPPING_STATES:
                (active if state in (READY, STARTING) or count else inactive).append(target)
        last = self._last_chosen.get(selector.id, -1)
        ranks = {target: (index - last - 1) % len(selector.targets) for index, target in enumerate(selector.targets)}
        active.sort(key=lambda target: (self.count(selector.id, target), ranks[target]))
        if active and self.count(selector.id, active[0]) < selector.settings.spillover:
            order = active + inactive
        else:
            order = inactive + active
        if order:
            self._last_chosen[selector.id] = selector.targets.index(order[0])
        return order
