"""The GPU sources that are worth trying on this kind of machine, and Apple's: its system has one program for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from llamaswap.fake_boards import FAKE_BOARDS, fake_boards
from llamaswap.kernel_files import machine_memory
from llamaswap.nvml import NvmlLibrary
from llamaswap.observe.amd import read_amdgpu, read_rocm_smi
from llamaswap.observe.command_output import Programs
from llamaswap.observe.gpus import GpuReading, GpuSource
from llamaswap.observe.nvidia import read_nvidia_smi, read_nvml
from llamaswap.wire.byte_budget import MIB


def usual(platform: str, environ: Mapping[str, str] = MappingProxyType({})) -> list[GpuSource]:
    """The sources, best first; `platform` is sys.platform. Fake boards replace all others."""
    if FAKE_BOARDS in environ:
        return [GpuSource("fake boards", lambda: read_fake_boards(environ[FAKE_BOARDS]))]
    programs = Programs()
    if platform == "darwin":
        return [GpuSource("ioreg", lambda: read_ioreg(programs))]
    nvml = NvmlLibrary()
    return [
        GpuSource("NVML", lambda: read_nvml(nvml.open()), nvml.close),
        GpuSource("nvidia-smi", lambda: read_nvidia_smi(programs)),
        GpuSource("rocm-smi", lambda: read_rocm_smi(programs)),
        GpuSource("amdgpu", read_amdgpu),
    ]


def read_fake_boards(folder: str) -> list[GpuReading]:
    """The boards of tests."""
    return [
        GpuReading(board.id, "fake board", mem_used_mb=sum(board.processes.values()), mem_total_mb=board.total)
        for board in fake_boards(folder)
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
