"""What models need of the machine's memory, and what the machine has: the records that eviction by memory decides with.

A device is "ram" or a GPU: "gpu0", "gpu1" and so on, by the number of its reading. Sizes are in MiB.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import Factory, frozen

RAM = "ram"
Sizes = Mapping[str, int]
"""MiB by device."""


@frozen
class GpuShare:
    """What a model needs of one GPU. `device` is empty if any GPU will do, which llamaswap then chooses."""

    size: int
    device: str = ""


@frozen
class MemoryNeed:
    """What a model is expected to use.

    `options` are ways to spread it over GPUs, the preferred one first; a model that uses no GPU has one empty option.
    `source` says how the need is known: declared, learned, carried, engine, gguf, safetensors or flag. `firm`: a model
    that needs more than the machine has is refused; a rough estimate is not enough for that.
    """

    ram: int = 0
    options: tuple[tuple[GpuShare, ...], ...] = ((),)
    source: str = "declared"
    firm: bool = True


@frozen
class Device:
    """The memory of a device. `reserve` stays free; `foreign` is used by programs that llamaswap did not start.

    `foreign_by` names the largest of them, for messages.
    """

    total: int
    reserve: int = 0
    foreign: int = 0
    foreign_by: str = ""


@frozen
class Ledger:
    """The machine's memory and its use. A model without a need is loaded alone.

    `used` is what running and suspended servers were measured to use, `load_seconds` how long a load usually takes.
    An idle model stays for `hold` seconds after its last response.
    """

    devices: Mapping[str, Device]
    needs: Mapping[str, MemoryNeed] = Factory(dict)
    used: Mapping[str, Sizes] = Factory(dict)
    load_seconds: Mapping[str, float] = Factory(dict)
    hold: float = 10.0
