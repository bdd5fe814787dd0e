"""What a model is expected to use, as it was learned."""

from __future__ import annotations

from llamaswap.config.schema.model import Model
from llamaswap.memory.footprints import Footprint
from llamaswap.scheduling.memory import RAM, GpuShare, MemoryNeed, Sizes

ANY_GPU = "any"  # in a footprint any0, any1 and so on are the GPUs that llamaswap chose, the fullest one first


def learned_need(known: Footprint) -> MemoryNeed | None:
    """The need by a footprint; None if nothing was learned. What was carried over is not firm."""
    if not known.sizes:
        return None
    shares = tuple(
        GpuShare(size, "" if device.startswith(ANY_GPU) else device)
        for device, size in sorted(known.sizes.items())
        if device != RAM and size
    )
    source = "carried" if known.carried else "learned"
    return MemoryNeed(known.sizes.get(RAM, 0), (shares,), source, firm=not known.carried)


def need_elsewhere(definition: Model) -> MemoryNeed | None:
    """The need of a model whose server is on another machine, which uses no memory here; None for other models."""
    endpoint = definition.endpoint
    return MemoryNeed() if endpoint is not None and not endpoint.on_this_machine else None


def anonymous(sizes: Sizes) -> dict[str, int]:
    """Sizes without the numbers of the GPUs, which differ from load to load if llamaswap chooses them."""
    gpus = sorted((size for device, size in sizes.items() if device != RAM), reverse=True)
    ram = {RAM: sizes[RAM]} if RAM in sizes else {}
    return {**ram, **{f"{ANY_GPU}{rank}": size for rank, size in enumerate(gpus)}}


def total_of(need: MemoryNeed) -> int:
    """MiB of GPU memory in the preferred option."""
    return sum(share.size for share in need.options[0])
