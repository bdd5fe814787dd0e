"""The document of /api/memory, from what the monitor and the learner know."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from attrs import asdict, define

from llamaswap.config.routing import eviction_of
from llamaswap.config.schema.routing import Routing
from llamaswap.memory.monitor import MemoryMonitor
from llamaswap.routing.memory_leases import MemoryLease
from llamaswap.scheduling.memory import RAM, Device, Ledger, MemoryNeed
from llamaswap.scheduling.memory_advice import advice
from llamaswap.web.memory_api import DeviceMemory, MemoryDocument, ModelMemory, NeedDocument

MEASURED = "measured"


@define(eq=False)
class MemoryReport:
    """Makes the document; `device_name` names a device, `routing` are the rules in force. `leases` hold memory for
    other programs, `with_leases` takes what they use from the use of other programs."""

    monitor: MemoryMonitor
    device_name: Callable[[str], str]
    routing: Callable[[], Routing]
    leases: Callable[[], Sequence[MemoryLease]]
    with_leases: Callable[[Ledger], Ledger]

    def document(self) -> dict[str, object]:
        """A `MemoryDocument`."""
        limited = self.monitor.devices()
        known = ((model, self.monitor.known_need(model, limited)) for model in sorted(self.monitor.models()))
        needs = {model: need for model, need in known if need is not None}
        devices = self.with_leases(Ledger(limited)).devices
        return asdict(
            MemoryDocument(
                self.routing().memory.mode,
                [self._device(name, device, needs) for name, device in devices.items()],
                {model: self._need(model, need) for model, need in needs.items()},
                self._advice(Ledger(limited, needs, load_seconds=self.monitor.ledger.load_seconds)),
            )
        )

    def _advice(self, ledger: Ledger) -> list[str]:
        routing = self.routing()
        return advice(ledger, eviction_of(routing.router)) if routing.memory.mode == "advise" else []

    def _device(self, name: str, device: Device, needs: Mapping[str, MemoryNeed]) -> DeviceMemory:
        found = self.monitor.use.devices[name]
        models = []
        for view in self.monitor.servers():
            if view.is_lease:
                continue
            use = self.monitor.use.models.get(view.model)
            settled = use is not None and (view.is_ready or view.suspended)
            size, source = (use.sizes.get(name, 0), MEASURED) if use is not None else (0, MEASURED)
            need = needs.get(view.model)
            if not settled and need is not None:
                size, source = _share(need, name), need.source
            if size:
                models.append(ModelMemory(view.model, size, source, self._squeezed(view.model)))
        held = ((lease.model, lease.sizes.get(name, 0)) for lease in self.leases())
        models += [ModelMemory(model, size, "lease") for model, size in held if size]
        free = min(found.total - found.used, device.total - device.foreign - sum(row.mib for row in models))
        return DeviceMemory(
            device=name,
            name=self.device_name(name),
            total_mib=device.total,
            free_mib=max(0, free),  # of the budget, if there is one
            reserve_mib=device.reserve,
            foreign_mib=device.foreign,
            foreign_by=device.foreign_by,
            models=models,
        )

    def _squeezed(self, model: str) -> bool:
        known = self.monitor.learner.footprints.get(model)
        return known is not None and known.squeezed

    def _need(self, model: str, need: MemoryNeed) -> NeedDocument:
        known = self.monitor.learner.footprints.get(model)
        return NeedDocument(
            ram_mib=need.ram,
            gpus=[[share.size for share in option] for option in need.options],
            source=need.source,
            samples=known.n if known is not None else 0,
            p95_mib=sum(known.p95.values()) if known is not None and known.p95 else None,
            load_seconds=known.load_seconds if known is not None else None,
        )


def _share(need: MemoryNeed, device: str) -> int:
    """MiB that a model is expected to use of a device, as far as it is known which one it uses."""
    if device == RAM:
        return need.ram
    return sum(share.size for share in need.options[0] if share.device == device)
