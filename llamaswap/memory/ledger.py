"""The ledger's devices by the operator's settings, and when a ledger differs from the one before."""

from __future__ import annotations

from collections.abc import Iterator

from llamaswap.config.schema.memory import GPU, MemorySettings
from llamaswap.memory.measure import DeviceUse
from llamaswap.scheduling.memory import RAM, Device, Ledger

SMALL = 16  # MiB; smaller differences of a size are never a change
RELATIVE = 0.01


def limited(name: str, use: DeviceUse, foreign: int, settings: MemorySettings) -> Device:
    """A device with the operator's settings.

    A budget is the memory of all models together: it becomes the total, and what foreign programs use or has to stay
    free counts only as far as it leaves less than the budget.
    """
    kind = RAM if name == RAM else GPU
    reserve = settings.reserve.get(name, settings.reserve.get(kind, 0))
    budget = settings.budget.get(name, settings.budget.get(kind))
    if budget is None or budget >= use.total:
        return Device(use.total, reserve, foreign, use.foreign_by)
    beside = use.total - budget
    return Device(budget, max(0, reserve - max(0, beside - foreign)), max(0, foreign - beside), use.foreign_by)


def differs(old: Ledger, new: Ledger) -> bool:
    """Whether a ledger differs from another so much that decisions may."""
    before, after = dict(_figures(old)), dict(_figures(new))
    return before.keys() != after.keys() or any(
        abs(size - before[name]) > max(SMALL, RELATIVE * size) for name, size in after.items()
    )


def _figures(ledger: Ledger) -> Iterator[tuple[tuple[object, ...], float]]:
    """Everything in a ledger that may change a little, by what makes it another thing if it changes at all."""
    for name, device in ledger.devices.items():
        yield ("total", name, device.total, device.reserve), 0
        yield ("foreign", name), device.foreign
    for model, need in ledger.needs.items():
        yield ("need", model, need.source, need.firm, len(need.options)), need.ram
        for at, option in enumerate(need.options):
            for place, share in enumerate(option):
                yield ("share", model, at, place, share.device), share.size
    for model, sizes in ledger.used.items():
        for name, size in sizes.items():
            yield ("used", model, name), size
    for model, seconds in ledger.load_seconds.items():
        yield ("load", model), SMALL * seconds  # a second is a change
    yield ("hold", ledger.hold), 0
    yield ("pressed", ledger.pressed), 0
