"""The part of the router that knows leases of memory, which stand among the models without being configured."""

from __future__ import annotations

from collections.abc import Collection

from attrs import define, field
from twisted.internet.defer import Deferred, succeed

from llamaswap.config.endpoints import Endpoint
from llamaswap.config.schema.model import Model
from llamaswap.errors import StartFailed
from llamaswap.routing.effect_performer import EffectPerformer
from llamaswap.routing.leases import ProcessInstance
from llamaswap.routing.managed_model import ManagedModel
from llamaswap.scheduling.effects import StartSwap
from llamaswap.scheduling.memory import Ledger, MemoryNeed
from llamaswap.scheduling.memory_leases import HeldMemory, ledger_with, rules_with
from llamaswap.scheduling.rules import rules_of
from llamaswap.servers.server_snapshot import ServerSnapshot
from llamaswap.servers.supervisor_protocol import ServerStatus

NOWHERE = Endpoint("http", "localhost", 0)


@define(eq=False)
class LeaseSupervisor:
    """Stands for the server of a lease, which has none: its program is started and ended by a client.

    It is shown as stopped, so that it is not listed among the servers.
    """

    model: str
    state: str = field(default="stopped", init=False)

    def ensure_ready(self) -> Deferred[Endpoint]:
        return succeed(NOWHERE)

    def stop(self, grace: float | None = None) -> Deferred[None]:
        return succeed(None)

    def clean_up(self) -> Deferred[None]:
        return succeed(None)

    def suspend(self, grace: float | None = None) -> Deferred[bool]:
        return succeed(False)

    def preflight(self, ours: Collection[int] = ()) -> StartFailed | None:
        return None

    def log_tail(self) -> str:
        return ""

    def set_definition(self, model: Model) -> None:
        pass

    def set_place(self, start: StartSwap) -> None:
        pass

    def snapshot(self) -> ServerSnapshot | None:
        return None

    def adopt(self, served: ServerSnapshot) -> bool:
        return False

    def status(self) -> ServerStatus:
        return ServerStatus(self.model, self.state)

    def close(self) -> None:
        pass


@define(eq=False)
class LeasingRouter(EffectPerformer):
    """Adds leases to the rules and to the ledger. `pinned` are the ids of pinned models."""

    pinned: frozenset[str] = field(default=frozenset(), init=False)
    _ledger: Ledger = field(factory=lambda: Ledger({}), init=False)
    _lease_needs: dict[str, MemoryNeed] = field(factory=dict, init=False)
    _held: dict[str, HeldMemory] = field(factory=dict, init=False)

    def memory_changed(self, ledger: Ledger) -> None:
        """Memory is used or needed in another way. It decides only with `routing.memory: on`."""
        self._ledger = ledger
        self._ledger_changed()

    @property
    def ledger(self) -> Ledger:
        """The present ledger, with the leases."""
        return self.with_leases(self._ledger)

    def with_leases(self, ledger: Ledger) -> Ledger:
        """A ledger with the leases that there are."""
        return ledger_with(ledger, self._lease_needs, self._held)

    def _ledger_changed(self) -> None:
        self._perform(self._scheduler.memory_changed(self.ledger, self._clock.seconds()))

    def _change_rules(self, pinned: frozenset[str], stale: Collection[str] = ()) -> None:
        self.pinned = pinned
        rules = rules_with(rules_of(self.config, pinned), self._lease_needs)
        self._perform(self._scheduler.rules_changed(rules, stale, self._clock.seconds()))

    def add_memory_lease(self, name: str, need: MemoryNeed) -> None:
        """Requests may ask for a lease of this name."""
        self._lease_needs[name] = need
        self._models[name] = ManagedModel(Model(name), LeaseSupervisor(name))
        self._ledger_changed()
        self._change_rules(self.pinned)

    def memory_lease_granted(self, name: str) -> HeldMemory:
        """The request for a lease was granted. Returns the memory that it holds; none if memory does not decide."""
        foreign = {device: one.foreign for device, one in self.ledger.devices.items()}
        held = HeldMemory(self._scheduler.state_of(name).memory or {}, foreign)
        self._hold(name, held)
        return held

    def adopt_memory_lease(self, name: str, need: MemoryNeed, held: HeldMemory) -> None:
        """Begin with a lease that the program before an upgrade had granted; the next request for it is granted."""
        self.add_memory_lease(name, need)
        now = self._clock.seconds()
        effects = self._scheduler.adopted(name, now, now, now)
        self._models[name].process = ProcessInstance(NOWHERE, self._scheduler.state_of(name).generation)
        self._hold(name, held)
        self._perform(effects)

    def _hold(self, name: str, held: HeldMemory) -> None:
        self._held[name] = held
        self._ledger_changed()

    def remove_memory_lease(self, name: str) -> None:
        """A lease has ended: its memory is for others."""
        self._held.pop(name, None)
        if self._lease_needs.pop(name, None) is not None:
            self._models[name].configured = False
            self._change_rules(self.pinned)
            self._ledger_changed()
            if name in self._models:
                self.swaps.forget_removed(self._models[name])

    def _servers(self) -> list[str]:
        """The models with servers: all but the leases."""
        return [name for name in self._models if name not in self._lease_needs]
