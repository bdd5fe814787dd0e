"""The memory of the machine and of the models: what is free, who uses the rest, and what each model needs."""

from __future__ import annotations

from typing import Protocol

from attrs import define, field, frozen

from llamaswap.web.admin_request import AdminRequest, JsonObject, Response, json_answer
from llamaswap.web.route import Route, RouteTable


@frozen
class ModelMemory:
    """What one model uses of a device. `source` is `measured`, how the need of a loading model is known, or `lease`; a
    `squeezed` server made itself smaller to fit."""

    model: str
    mib: int
    source: str
    squeezed: bool = False


@frozen
class DeviceMemory:
    """A device: `ram`, `gpu0`, `gpu1` and so on. `foreign_mib` is used by other programs, the largest is
    `foreign_by`."""

    device: str
    name: str
    total_mib: int
    free_mib: int
    reserve_mib: int
    foreign_mib: int
    foreign_by: str
    models: list[ModelMemory] = field(factory=list)


@frozen
class NeedDocument:
    """What a model is expected to use: RAM, and for each GPU that it is spread over a size. `samples` were measured,
    `p95_mib` is the 95th percentile of their sums."""

    ram_mib: int
    gpus: list[list[int]]
    source: str
    samples: int
    p95_mib: int | None
    load_seconds: float | None


@frozen
class MemoryDocument:
    """The memory. `gpus` of a need lists alternatives, the preferred one first; `advice` are sentences."""

    mode: str
    devices: list[DeviceMemory] = field(factory=list)
    needs: dict[str, NeedDocument] = field(factory=dict)
    advice: list[str] = field(factory=list)


class MemorySource(Protocol):
    """Knows the memory."""

    def document(self) -> JsonObject:
        """A `MemoryDocument`; it is asked on the reactor's thread and must not block."""


route = RouteTable("memory", Route)


@define(eq=False)
class MemoryEndpoints:
    """/api/memory."""

    source: MemorySource

    @route("GET", "/api/memory", answer=MemoryDocument)
    def memory(self, call: AdminRequest) -> Response:
        """The memory of each device, what each model uses and needs, and what `routing.memory` would make possible."""
        return json_answer(self.source.document())
