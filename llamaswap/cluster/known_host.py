"""What the front knows of one host."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from attrs import define, evolve, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from llamaswap.cluster.agent_protocol import HostState
from llamaswap.config.endpoints import Endpoint
from llamaswap.http_client import HttpResponse
from llamaswap.scheduling.hosts import FailedStart, HostFacts
from llamaswap.scheduling.memory import Device, MemoryNeed


@define(eq=False)
class KnownHost:
    """One host. `alive`: whether Ray lists its node as alive, None before the first list. `seen` is when its agent last
    answered; `awaited`: an earlier program knew it, and it has not answered yet; `unreachable`: see `HostFacts`.
    `sizes` are what can be reserved there, in MiB by device: `join` may offer less than there is.
    `addresses` are those of all machines that have joined under its name."""

    name: str
    endpoint: Endpoint
    labels: Mapping[str, str]
    alive: bool | None = None
    online: bool = False
    awaited: bool = False
    unreachable: bool = False
    sizes: Mapping[str, int] = field(factory=dict)
    addresses: Sequence[str] = ()
    seen: float | None = None
    known_since: float = 0.0
    problem: str = "it has not answered yet"
    state: HostState | None = None
    failed: dict[str, FailedStart] = field(factory=dict)
    asking: Deferred[HttpResponse] | None = None
    timer: IDelayedCall | None = None
    ensured: bool = False
    needs_sent: bool = False
    declared: tuple[set[str], Mapping[str, MemoryNeed]] | None = None
    facts: HostFacts | None = None

    @property
    def devices(self) -> dict[str, Device]:
        """Its memory, as far as it can be reserved. What other programs use of the rest does not count."""
        if self.state is None:
            return {}
        return {name: _offered(one, self.sizes.get(name, one.total)) for name, one in self.state.ledger.devices.items()}

    def stop_asking(self) -> None:
        """Cancel the request for its state, whose failure then says nothing about the host."""
        asking, self.asking = self.asking, None
        if asking is not None:
            asking.cancel()

    def present_facts(
        self, now: float, drained: bool, needs: Callable[[Mapping[str, Device]], Mapping[str, MemoryNeed]]
    ) -> HostFacts:
        """What the scheduler is to know of it. `needs` are those that the configuration has for such devices."""
        self.failed = {model: one for model, one in self.failed.items() if one.until > now}
        facts = HostFacts(
            self.name,
            labels=self.labels,
            online=self.online,
            drained=drained,
            awaited=self.awaited,
            unreachable=self.unreachable,
            failed=self.failed,
        )
        if self.state is None:
            return facts
        devices = self.state.ledger.devices
        if self.declared is None or self.declared[0] != set(devices):
            self.declared = set(devices), needs(devices)
        return evolve(
            facts,
            ledger=evolve(
                self.state.ledger, devices=self.devices, needs={**self.state.ledger.needs, **self.declared[1]}
            ),
            drained=drained or self.state.leaving,
            missing=self.state.missing,
            cached_models=self.state.cached,
        )


def _offered(device: Device, size: int) -> Device:
    """A device of which models can use so much."""
    beside = device.total - size
    if beside <= 0:
        return device
    reserve = max(0, device.reserve - max(0, beside - device.foreign))
    return evolve(device, total=size, reserve=reserve, foreign=max(0, device.foreign - beside))
