"""The ways in which a model may use the GPUs of the machine, and the record of an estimate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import frozen

from llamaswap.config.schema.memory import GpuChoice
from llamaswap.scheduling.memory import RAM, Device, GpuShare, MemoryNeed

MIB = 1024 * 1024
# Variables with which an engine is shown a part of the GPUs only; they number them, unless they hold unique IDs.
VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GGML_VK_VISIBLE_DEVICES")


@frozen
class Part:
    """MiB that an engine needs of a device for one purpose."""

    device: str
    purpose: str
    size: int


@frozen
class Estimate:
    """What a model is expected to use, why, and of what the preferred way to use the GPUs consists."""

    need: MemoryNeed
    why: str
    parts: tuple[Part, ...] = ()


@frozen
class Spread:
    """Some GPUs that a model uses together: their names, empty where llamaswap chooses, and the memory of each."""

    names: tuple[str, ...]
    totals: tuple[int, ...]


def gpu_names(devices: Mapping[str, Device]) -> list[str]:
    """The GPUs of a machine whose size is known, by number."""
    known = (name for name, device in devices.items() if name != RAM and device.total > 0)
    return sorted(known, key=lambda name: (len(name), name))


def visible(devices: Mapping[str, Device], environment: Mapping[str, str]) -> dict[str, Device]:
    """The GPUs that a server sees, in its order."""
    gpus = {name: devices[name] for name in gpu_names(devices)}
    for variable in VISIBLE:
        if variable not in environment:
            continue
        words = [word.strip() for word in environment[variable].split(",")]
        if not words[0] or words[0] == "-1":
            return {}
        if all(word.isdigit() for word in words):
            gpus = {f"gpu{word}": gpus[f"gpu{word}"] for word in words if f"gpu{word}" in gpus}
    return gpus


def spreads(choice: GpuChoice, gpus: Mapping[str, Device]) -> list[Spread]:
    """The ways to use the GPUs, the preferred one first; none without a GPU.

    If llamaswap chooses, a model uses as few as it fits on; if it does not choose, the engine takes all that it sees.
    """
    if choice.ids:
        gpus = {f"gpu{number}": gpus[f"gpu{number}"] for number in choice.ids if f"gpu{number}" in gpus}
    if not gpus:
        return []
    if choice.auto or choice.count:
        totals = sorted((device.total for device in gpus.values()), reverse=True)
        counts = range(1, len(gpus) + 1) if choice.auto else [min(choice.count, len(gpus))]
        return [Spread(("",) * count, tuple(totals[:count])) for count in counts]
    return [Spread(tuple(gpus), tuple(device.total for device in gpus.values()))]


def shares(spread: Spread, sizes: Sequence[int]) -> tuple[GpuShare, ...]:
    """An option of a need: MiB for each GPU of the spread, without those that are not used."""
    return tuple(GpuShare(size, name) for name, size in zip(spread.names, sizes, strict=True) if size > 0)


def mib(size: float) -> int:
    """Bytes as MiB, rounded up."""
    return -int(-size // MIB)
