"""The GPU sources that are worth trying on this kind of machine, and Apple's: its system has one program for them."""

from __future__ import annotations

from collections.abc import Callable

from llamaswap.kernel_files import machine_memory
from llamaswap.observe.amd import read_amdgpu, read_rocm_smi
from llamaswap.observe.command_output import Programs
from llamaswap.observe.gpus import GpuReading, GpuSource
from llamaswap.observe.nvidia import Nvml, read_nvidia_smi
from llamaswap.wire.byte_budget import MIB


def usual(platform: str) -> list[GpuSource]:
    """The sources, best first; `platform` is sys.platform."""
    programs = Programs()
    if platform == "darwin":
        return [GpuSource("ioreg", lambda: read_ioreg(programs))]
    nvml = Nvml()
    return [
        GpuSource("NVML", nvml.read, nvml.close),
        GpuSource("nvidia-smi", lambda: read_nvidia_smi(programs)),
        GpuSource("rocm-smi", lambda: read_rocm_smi(programs)),
        GpuSource("amdgpu", read_amdgpu),
    ]


def read_ioreg(programs: Programs, memory: Callable[[], tuple[int, int]] = machine_memory) -> list[GpuReading]:
    """The GPUs in the IO registry of macOS. Their temperature and power need root there and stay 0."""
    # -a writes a property list; the plain form is for people.
    found = programs.output("ioreg", "-r", "-c", "IOAccelerator", "-d", "1", "-a")
    import plistlib  # here, because it imports an XML parser

    readings = []
    for index, device in enumerate(plistlib.loads(found.encode()) if found.strip() else []):
        stats = device.get("PerformanceStatistics") or {}
        model = device.get("model", "Apple GPU")
        readings.append(
            GpuReading(
                id=index,
                name=model.decode("utf-8", "replace").strip("\0") if isinstance(model, bytes) else str(model),
                gpu_util_pct=stats.get("Device Utilization %") or 0,
                # The GPU shares the machine's memory.
                mem_used_mb=int(stats.get("In use system memory") or 0) // MIB,
                mem_total_mb=memory()[0] // MIB,
                unified=True,
            )
        )
    return readings
