"""Transitions of hosts: they join, change, are drained, vanish with what they ran, and come back.

Servers that ran before are adopted.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from attrs import define, evolve, field

from llamaswap.errors import UnknownModel
from llamaswap.scheduling.effects import Effect
from llamaswap.scheduling.hosts import HostFacts, vanished
from llamaswap.scheduling.memory import Ledger, Sizes
from llamaswap.scheduling.memory_transitions import MemoryTransitions
from llamaswap.scheduling.state import ModelState, Phase, RequestStage

VANISH_WINDOW = 30.0  # seconds; hosts that vanish within it have vanished at once
RETURN_WINDOW = 5.0  # seconds; when the network is back, its hosts do not all answer at the same moment


@define(eq=False)
class HostTransitions(MemoryTransitions):
    """The part of the scheduler that reacts to hosts."""

    _vanished: dict[str, float] = field(factory=dict, init=False)

    def hosts_changed(self, hosts: Mapping[str, HostFacts], now: float) -> list[Effect]:
        """These hosts are known now, by name; one that is absent, or not online, is gone with what it ran.

        What still runs on a host that is back has to be `adopted` before. Of this machine, "", only some facts count.
        """
        before = self.hosts
        here = evolve(hosts.get("") or HostFacts(""), ledger=self.ledger, online=True)
        self.hosts = {"": here, **{name: hosts[name] for name in sorted(hosts) if name}}
        self.awaited = frozenset(name for name, one in self.hosts.items() if one.awaited)
        for name in vanished(before, self.hosts):
            if not before[name].drained or self.servers_on(name):  # one that has left in order is not missed
                self._vanished[name] = now
            self._lose(name)
        self._count_missed(now)
        for name, facts in self.hosts.items():
            known = before.get(name)
            if facts is not known and name:
                self.rooms.pop(name, None)
                self._note_use(facts.ledger, name, now)
            if facts.drained and not (known is not None and known.drained):
                for server in [*self.servers_on(name).values()]:
                    self._replace_process(server, "host")
        self._reschedule(now)
        return self._take_effects()

    def load_lost_elsewhere(self, now: float) -> list[Effect]:
        """An operator wants what ran on vanished hosts loaded elsewhere, although more than half of them vanished."""
        self.missed, self.missed_until = frozenset(), inf
        self.lost.clear()
        self._reschedule(now)
        return self._take_effects()

    def adopted(
        self,
        model: str,
        ready_at: float,
        idle_since: float,
        now: float,
        suspended: bool = False,
        ttl: float | None = None,
        host: str = "",
        memory: Sizes | None = None,
    ) -> list[Effect]:
        """A server was ready, or suspended, before the scheduler was created, and unused since `idle_since`; or it is
        on a host that is back. `memory` is what was reserved for it there."""
        server = self.state_of(model)
        if model not in self.rules.models or server.phase is not Phase.STOPPED or self.shutdown_error is not None:
            return []
        self._generation += 1
        server.phase = Phase.SUSPENDED if suspended else Phase.READY
        server.memory = memory
        self._occupy(server, host)
        self.lost.pop(model, None)
        server.generation = self._generation
        server.ready_at = ready_at
        server.worked_at = idle_since
        server.ttl = ttl
        self._mark_idle(server, now, idle_since)
        if suspended:
            self._limit_suspended()
        return self._take_effects()

    def memory_changed(self, ledger: Ledger, now: float) -> list[Effect]:
        if self.hosts:
            self.rooms.pop("", None)
            self.hosts = {**self.hosts, "": evolve(self.hosts[""], ledger=ledger)}
        return super().memory_changed(ledger, now)

    def _online(self) -> set[str]:
        return {name for name, facts in self.hosts.items() if facts.online}

    def _lose(self, host: str) -> None:
        """A host vanished. Requests that wait for loads there are decided about again."""
        servers = [*self.servers_on(host).values()]
        for server in servers:
            if server.phase is not Phase.STOPPING and server.model in self.rules.models:
                self.lost[server.model] = host
            if server.phase is Phase.LOADING:
                for entry in self._abandon(self._load_of(server.model)):
                    entry.stage = RequestStage.QUEUED
                    self._enqueue(entry)
        self._stop([server for server in servers if server.phase in (Phase.READY, Phase.SUSPENDED)], "host")

    def _count_missed(self, now: float) -> None:
        """More than half of the hosts that vanish at once are missed, until most of them are back: perhaps it is this
        machine that has lost its network, and what they run goes on."""
        online = self._online()
        self.lost = {model: host for model, host in self.lost.items() if host not in online}
        recent = {name: at for name, at in self._vanished.items() if name not in online and now - at <= VANISH_WINDOW}
        self._vanished = recent
        missed = (self.missed - online).union(recent)
        if 2 * len(missed) > len(online) + len(missed):
            self.missed, self.missed_until = frozenset(missed), inf
        elif self.missed:
            self.missed_until = min(self.missed_until, now + RETURN_WINDOW)
            self.missed = self.missed - online if now < self.missed_until else frozenset()

    def _replace_process(self, server: ModelState, why: str = "reload") -> None:
        """The present process of a model runs an outdated definition, or on a host that it has to leave."""
        if server.phase is Phase.LOADING:
            for entry in self._abandon(self._load_of(server.model)):
                if server.model in self.rules.models:
                    entry.stage = RequestStage.QUEUED
                    self._enqueue(entry)
                else:
                    self._refuse(entry, UnknownModel(server.model))
        elif server.phase is Phase.READY and server.serving:
            server.stale = True
        elif server.phase in (Phase.READY, Phase.SUSPENDED) or server.suspending:
            self._stop([server], why)
        else:
            self._discard_unused(server)
