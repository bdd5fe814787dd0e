"""The part of the router that hears of other hosts."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import define

from llamaswap.errors import HostVanished
from llamaswap.routing.leases import Lease
from llamaswap.routing.leasing_router import LeasingRouter
from llamaswap.scheduling.hosts import HostFacts, vanished


@define(eq=False)
class HostsRouter(LeasingRouter):
    """Loses what runs on hosts that vanish."""

    def hosts_changed(self, hosts: Mapping[str, HostFacts]) -> None:
        """These hosts are known now, by name, "" being this machine; see `HostTransitions.hosts_changed`.

        The leases of what runs on a host that is not online any more are lost.
        """
        cut: list[tuple[Lease, HostVanished]] = []
        for host in vanished(self._scheduler.hosts, hosts):
            models = sorted(self._scheduler.servers_on(host))
            for model in models:
                self._models[model].mark_lost()
                cut += [(lease, HostVanished(model, host)) for lease in self._remote.pop(model, ())]
            self._log.warn("host {host} vanished with {models}", host=host, models=", ".join(models) or "no models")
        self._mark_unreachable(hosts)
        missed, now = self._scheduler.missed, self._clock.seconds()
        self._perform(self._scheduler.hosts_changed(hosts, now), now)
        for lease, error in cut:
            if lease.interrupt is not None:
                lease.interrupt(error)
        if self._scheduler.missed - missed:
            self._log.error(
                "{hosts} vanished at once, more than half of the hosts: what they ran is not loaded elsewhere until "
                "most of them are back or an operator loads it",
                hosts=", ".join(sorted(self._scheduler.missed)),
            )

    def _mark_unreachable(self, hosts: Mapping[str, HostFacts]) -> None:
        """Tell the leases of what runs on a host whether it may have ended."""
        for host, facts in hosts.items():
            before = self._scheduler.hosts.get(host)
            if before is not None and before.unreachable != facts.unreachable:
                for model in self._scheduler.servers_on(host):
                    process = self._models[model].process
                    if process is not None:
                        process.unreachable = facts.unreachable

    def load_lost_elsewhere(self) -> None:
        """An operator wants what ran on vanished hosts loaded elsewhere, although more than half of them vanished."""
        now = self._clock.seconds()
        self._perform(self._scheduler.load_lost_elsewhere(now), now)
