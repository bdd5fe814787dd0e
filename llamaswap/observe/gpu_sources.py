"""The GPU sources that are worth trying on this kind of machine, best first."""

from __future__ import annotations

from llamaswap.observe.amd import Amdgpu, RocmSmi
from llamaswap.observe.apple import AppleGpu
from llamaswap.observe.gpus import GpuSource
from llamaswap.observe.nvidia import NvidiaSmi, Nvml


def usual(platform: str) -> list[GpuSource]:
    """`platform` is sys.platform."""
    return [AppleGpu()] if platform == "darwin" else [Nvml(), NvidiaSmi(), RocmSmi(), Amdgpu()]
