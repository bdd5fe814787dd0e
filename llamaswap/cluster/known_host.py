"""What the front knows of one host."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from llamaswap.cluster.agent_protocol import HostState
from llamaswap.config.endpoints import Endpoint
from llamaswap.http_client import HttpResponse
from llamaswap.scheduling.hosts import HostFacts
from llamaswap.scheduling.memory import MemoryNeed


@define(eq=False)
class KnownHost:
    """One host. `alive`: whether Ray lists its node as alive, None before the first list. `seen` is when its agent last
    answered."""

    name: str
    endpoint: Endpoint
    labels: Mapping[str, str]
    alive: bool | None = None
    online: bool = False
    seen: float | None = None
    known_since: float = 0.0
    problem: str = "it has not answered yet"
    state: HostState | None = None
    missing: dict[str, tuple[str, float]] = field(factory=dict)
    asking: Deferred[HttpResponse] | None = None
    timer: IDelayedCall | None = None
    ensured: bool = False
    declared: tuple[set[str], Mapping[str, MemoryNeed]] | None = None
    facts: HostFacts | None = None
