"""Memory that other programs were given: what it means for the rules, and how their use is counted once.

A lease stands in the scheduler for its program as a model does for its server: it is loaded when there is room, and
serves one request for as long as the program runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from attrs import Factory, evolve, frozen

from llamaswap.config.policies.eviction import Eviction
from llamaswap.scheduling.memory import Ledger, MemoryNeed, Sizes
from llamaswap.scheduling.rules import HERE_ONLY
from llamaswap.scheduling.state import ModelRules, Rules

LEASE = "lease:"  # how the name of every lease begins


@frozen
class HeldMemory:
    """The memory of a lease by device. `foreign` is what other programs used of each device when it was given."""

    sizes: Sizes = Factory(dict)
    foreign: Sizes = Factory(dict)


@frozen
class LeaseEviction:
    """A policy for models, beside which leases may run: only memory keeps them apart."""

    policy: Eviction
    leases: frozenset[str]

    def __call__(self, target: str, running: Sequence[str], /) -> tuple[str, ...]:
        if target in self.leases:
            return ()
        return self.policy(target, [name for name in running if name not in self.leases])

    def protects(self, model: str, target: str, /) -> bool:
        return model not in self.leases and self.policy.protects(model, target)

    def explain(self, target: str, running: Sequence[str], /) -> str:
        if target in self.leases:
            return "lease"
        return self.policy.explain(target, [name for name in running if name not in self.leases])

    def conflict(self, models: Sequence[str], /) -> str:
        return self.policy.conflict(models)


def rules_with(rules: Rules, leases: Iterable[str]) -> Rules:
    """The rules with these leases beside the models."""
    names = frozenset(leases)
    if not names:
        return rules
    models = {**rules.models, **dict.fromkeys(names, ModelRules(limit=1, is_lease=True, place=HERE_ONLY))}
    return evolve(rules, models=models, evict=LeaseEviction(rules.evict, names))


def ledger_with(ledger: Ledger, needs: Mapping[str, MemoryNeed], held: Mapping[str, HeldMemory]) -> Ledger:
    """The ledger with leases: `needs` of all of them, and what those hold that were granted.

    A lease uses what it was given, or more if its program was measured to. Programs that are not known to belong to a
    lease are foreign; but as far as foreign use has grown since a lease was given, it is taken for that of the lease.
    """
    if not needs:
        return ledger
    used = dict(ledger.used)
    foreign = {name: device.foreign for name, device in ledger.devices.items()}
    for name, lease in held.items():
        measured = ledger.used.get(name, {})
        for device in foreign:
            growth = foreign[device] - lease.foreign.get(device, 0)
            unused = lease.sizes.get(device, 0) - measured.get(device, 0)
            foreign[device] -= max(0, min(growth, unused))
        devices = {**lease.sizes, **measured}
        used[name] = {device: max(lease.sizes.get(device, 0), measured.get(device, 0)) for device in devices}
    return evolve(
        ledger,
        devices={name: evolve(device, foreign=foreign[name]) for name, device in ledger.devices.items()},
        needs={**ledger.needs, **needs},
        used=used,
    )
