"""The ways to read GPUs that are worth trying on this kind of machine, best first."""

from __future__ import annotations

from collections.abc import Mapping

from llamaswap.observe.amd import Amdgpu, Lact, RocmSmi
from llamaswap.observe.apple import AppleGpu
from llamaswap.observe.gpus import GpuSource
from llamaswap.observe.nvidia import NvidiaSmi, Nvml


def usual(platform: str, environ: Mapping[str, str], uid: int, every: float) -> list[GpuSource]:
    """`platform` is sys.platform, `every` the seconds between readings."""
    if platform == "darwin":
        return [AppleGpu()]
    return [Lact.usual(environ, uid), Nvml(), NvidiaSmi(every), RocmSmi(), Amdgpu()]
