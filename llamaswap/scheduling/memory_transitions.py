"""Transitions for the sake of memory: other readings, memory that other programs need, models that ran out of it, and
too many suspended ones."""

from __future__ import annotations

from math import inf

from attrs import define

from llamaswap.scheduling.effects import Effect
from llamaswap.scheduling.memory import RAM, Ledger
from llamaswap.scheduling.memory_planner import HELD, occupants
from llamaswap.scheduling.state import ActiveSwap, Phase, RequestStage
from llamaswap.scheduling.transitions import Transitions

ENLARGEMENT = 1.15  # how much more a model is given after it ran out of memory
MAX_ENLARGEMENT = 2.0  # of the need in all, because a server may have been killed for another reason


@define(eq=False)
class MemoryTransitions(Transitions):
    """The part of the scheduler that reacts to the memory. It acts only if memory decides."""

    def memory_changed(self, ledger: Ledger, now: float) -> list[Effect]:
        """The use of the memory, or what models need of it, has changed."""
        self.ledger = ledger
        self._note_use(ledger, "", now)
        if self.rules.by_memory:
            self._reschedule(now)
        return self._take_effects()

    def _note_use(self, ledger: Ledger, host: str, now: float) -> None:
        """The memory of a host was measured."""
        for name, used in ledger.used.items():
            server = self.servers_on(host).get(name)
            if server is not None and server.phase is Phase.SUSPENDED:
                server.suspended_size = used.get(RAM, 0)
        if self.rules.by_memory:
            for device in ledger.pressed:
                self._relieve(device, now, host)

    def _enlarge(self, model: str) -> None:
        """The model ran out of memory: its need is taken as larger until its definition changes or llamaswap ends."""
        self.enlarged[model] = min(self.enlarged.get(model, 1.0) * ENLARGEMENT, MAX_ENLARGEMENT)

    def _load_alone_next(self, swap: ActiveSwap, now: float) -> bool:
        """After a load that ran out of memory, load the model for the same requests once more, without other models.

        False if it had been alone, or nothing can be evicted: then its requests are refused.
        """
        self._enlarge(swap.model)
        host = self.models[swap.model].host
        others = [one for one in occupants(self, swap.model, (), now, host) if one.cost < inf]
        if swap.model in self.alone or not others or not self.rules.by_memory:
            return False
        self.alone[swap.model] = swap.restore
        self._stop([self.models[swap.model]], "failed")
        for entry in swap.waiters.values():
            entry.stage = RequestStage.QUEUED
            self._enqueue(entry)
        self._reschedule(now)
        return True

    def _limit_suspended(self) -> None:
        """Stop the models that have been suspended longest, if too many are."""
        if not self.rules.fifo.max_asleep:
            return
        suspended = [server for server in self.models.values() if server.phase is Phase.SUSPENDED]
        surplus = len(suspended) - self.rules.fifo.max_asleep
        if surplus > 0:
            unpinned = [server for server in suspended if server.model not in self.rules.pinned]
            unpinned.sort(key=lambda server: server.idle_since or 0.0)
            self._stop(unpinned[:surplus], "asleep")

    def _relieve(self, device: str, now: float, host: str) -> None:
        """Evict the cheapest unused model that uses this device, because other programs need its memory."""
        idle = [
            (one.cost, one.model)
            for one in occupants(self, "", (), now, host)
            if one.sizes is not None and one.sizes.get(device) and 0.0 < one.cost < HELD
        ]
        if idle and not any(server.phase is Phase.STOPPING for server in self.servers_on(host).values()):
            server = self.models[min(idle)[1]]
            if device == RAM:  # a suspended server may keep its weights there
                self._stop([server], "memory")
            else:
                self._suspend_or_stop(server, "memory")
