"""What `routing.memory: on` would make possible, in words for an operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf

from llamaswap.scheduling.memory import Ledger, Occupant, place

MOST_NAMED = 6  # models in a sentence


def fitting_together(ledger: Ledger) -> tuple[str, ...]:
    """Models with known needs that fit into memory at the same time; those that load longest are tried first."""
    found: list[str] = []
    taken: dict[str, int] = {}
    for name in sorted(ledger.needs, key=lambda name: (-ledger.load_seconds.get(name, 0.0), name)):
        placement = place(ledger, name, [Occupant("", taken, inf)])
        if placement.sizes is not None and not placement.obstacle:
            found.append(name)
            for device, size in placement.sizes.items():
                taken[device] = taken.get(device, 0) + size
    return tuple(sorted(found))


def advice(ledger: Ledger, evict: Callable[[str, Sequence[str]], Sequence[str]]) -> list[str]:
    """Sentences about models that fit into memory together, but replace one another by `evict`, the present rules."""
    together = fitting_together(ledger)
    if not any(evict(name, [other for other in together if other != name]) for name in together):
        return []
    names = ", ".join(together[:MOST_NAMED]) + (" and more" if len(together) > MOST_NAMED else "")
    return [f"These models fit into memory together: {names}. To let them stay loaded, run: llamaswap memory enable"]
