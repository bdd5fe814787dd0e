"""Apple GPUs through ioreg, which is part of the system. Blocks; belongs to a worker's thread."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from typing import Any

from llamaswap.observe.command_output import Command, run
from llamaswap.observe.gpus import GpuReading
from llamaswap.wire.byte_budget import MIB

IOREG_LIMIT = 5.0  # seconds


def _memory() -> int:
    import psutil  # only where there is such a GPU

    return int(psutil.virtual_memory().total)


class AppleGpu:
    """Asks the IO registry. Temperature and power need root there and stay 0."""

    name = "ioreg"

    def __init__(
        self,
        find: Callable[[str], str | None] = shutil.which,
        command: Command = run,
        memory: Callable[[], int] = _memory,
    ) -> None:
        self._find = find
        self._command = command
        self._memory = memory

    def read(self) -> Sequence[GpuReading]:
        program = self._find("ioreg")
        if program is None:
            raise OSError("ioreg is not installed")
        # -a writes a property list: the plain form is not made for programs.
        found = self._command([program, "-r", "-c", "IOAccelerator", "-d", "1", "-a"], IOREG_LIMIT)
        import plistlib  # brings a parser for XML: only where there is such a GPU

        devices: list[dict[str, Any]] = plistlib.loads(found.encode()) if found.strip() else []
        readings = []
        for index, device in enumerate(devices):
            stats = device.get("PerformanceStatistics") or {}
            model = device.get("model", "Apple GPU")
            readings.append(
                GpuReading(
                    id=index,
                    name=model.decode("utf-8", "replace").strip("\0") if isinstance(model, bytes) else str(model),
                    gpu_util_pct=stats.get("Device Utilization %") or 0,
                    # The memory is the machine's: what the GPU has taken of it, of all there is.
                    mem_used_mb=int(stats.get("In use system memory") or 0) // MIB,
                    mem_total_mb=self._memory() // MIB,
                )
            )
        return readings

    def close(self) -> None:
        """Nothing is held."""
