"""Apple GPUs, read with ioreg, which is part of the system. Blocks: for a worker's thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llamaswap.observe.command_output import Programs
from llamaswap.observe.gpus import GpuReading, GpuSource
from llamaswap.wire.byte_budget import MIB


def _memory() -> int:
    import psutil  # here, because few machines have such a GPU

    return int(psutil.virtual_memory().total)


class AppleGpu(GpuSource):
    """Reads the IO registry. Temperature and power need root there and stay 0."""

    name = "ioreg"

    def __init__(self, programs: Programs | None = None, memory: Callable[[], int] = _memory) -> None:
        self._programs = programs or Programs()
        self._memory = memory

    def read(self) -> Sequence[GpuReading]:
        # -a writes a property list; the plain form is for people.
        found = self._programs.output("ioreg", "-r", "-c", "IOAccelerator", "-d", "1", "-a")
        import plistlib  # here, because it imports an XML parser

        devices = plistlib.loads(found.encode()) if found.strip() else []
        readings = []
        for index, device in enumerate(devices):
            stats = device.get("PerformanceStatistics") or {}
            model = device.get("model", "Apple GPU")
            readings.append(
                GpuReading(
                    id=index,
                    name=model.decode("utf-8", "replace").strip("\0") if isinstance(model, bytes) else str(model),
                    gpu_util_pct=stats.get("Device Utilization %") or 0,
                    # The GPU shares the machine's memory.
                    mem_used_mb=int(stats.get("In use system memory") or 0) // MIB,
                    mem_total_mb=self._memory() // MIB,
                )
            )
        return readings
