"""The memory that each process uses of NVIDIA GPUs, through NVML. Blocks: for a worker's thread."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from attrs import define, field, frozen

from llamaswap.memory.process_memory import program_of
from llamaswap.nvml import NvmlLibrary
from llamaswap.wire.byte_budget import MIB

# A process may be in several lists, with the same number. Older bindings lack the last one.
_LISTS = (
    "nvmlDeviceGetComputeRunningProcesses",
    "nvmlDeviceGetGraphicsRunningProcesses",
    "nvmlDeviceGetMPSComputeRunningProcesses",
)
_UNKNOWN = 1 << 60  # bytes: a driver that does not know a size may give the largest number


@frozen
class ListedUse:
    """MiB of a GPU by process. `complete`: every process that uses it is visible here, and was listed with its size."""

    sizes: dict[int, int]
    complete: bool = True


@define(eq=False)
class NvidiaUse:
    """Asks the driver's library.

    In a container the library may list the numbers that processes have outside: those that are not `visible` are left
    out.
    """

    library: NvmlLibrary
    visible: Callable[[int], bool] = lambda pid: bool(program_of(pid))
    _missing: bool = field(default=False, init=False)

    def read(self) -> dict[int, ListedUse]:
        """The use of each GPU by its index; empty if NVML cannot be used. The first call opens the library."""
        if self._missing:
            return {}
        try:
            nvml = self.library.open()
            return {index: self._seen(_listed(nvml, index)) for index in range(nvml.nvmlDeviceGetCount())}
        except ImportError:
            self._missing = True
        except Exception:  # drivers fail in many ways; the next reading may work
            self.library.close()
        return {}

    def _seen(self, listed: ListedUse) -> ListedUse:
        sizes = {pid: size for pid, size in listed.sizes.items() if self.visible(pid)}
        return ListedUse(sizes, listed.complete and len(sizes) == len(listed.sizes))


def _listed(nvml: ModuleType, index: int) -> ListedUse:
    device = nvml.nvmlDeviceGetHandleByIndex(index)
    sizes: dict[int, int] = {}
    complete = False
    for name in _LISTS:
        try:
            processes = getattr(nvml, name)(device)
        except (nvml.NVMLError, AttributeError):
            continue
        complete = complete or name == _LISTS[0]
        for process in processes:
            used = process.usedGpuMemory  # None under WSL
            if used is None or used >= _UNKNOWN:
                complete = False
                break
            sizes[process.pid] = max(sizes.get(process.pid, 0), int(used) // MIB)
    return ListedUse(sizes, complete)
