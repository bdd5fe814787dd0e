"""NVIDIA GPUs, read through NVML's Python binding (optional) or with nvidia-smi.

Both block: for a worker's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TypeVar

from attrs import evolve

from llamaswap.kernel_files import machine_memory, number
from llamaswap.observe.command_output import Programs
from llamaswap.observe.gpus import GpuReading
from llamaswap.wire.byte_budget import MIB

_FIELDS = "index,name,uuid,temperature.gpu,utilization.gpu,memory.used,memory.total,fan.speed,power.draw"

T = TypeVar("T")


def text(value: bytes | str) -> str:
    """A name from the binding, whose older releases returned bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def read_nvml(nvml: ModuleType, memory: Callable[[], tuple[int, int]] = machine_memory) -> list[GpuReading]:
    """The readings through the driver's library: a millisecond per GPU, without a process."""
    return [_nvml_reading(nvml, index, memory) for index in range(nvml.nvmlDeviceGetCount())]


def _nvml_reading(nvml: ModuleType, index: int, machine: Callable[[], tuple[int, int]]) -> GpuReading:
    device = nvml.nvmlDeviceGetHandleByIndex(index)

    def value(ask: Callable[[], T]) -> T | None:
        return supported(nvml, ask)

    memory = value(lambda: nvml.nvmlDeviceGetMemoryInfo(device))
    used, total = (int(memory.used) // MIB, int(memory.total) // MIB) if memory is not None else shared_memory(machine)
    rates = value(lambda: nvml.nvmlDeviceGetUtilizationRates(device))
    return GpuReading(
        id=index,
        name=text(nvml.nvmlDeviceGetName(device)),
        uuid=text(value(lambda: nvml.nvmlDeviceGetUUID(device)) or ""),
        temp_c=value(lambda: nvml.nvmlDeviceGetTemperature(device, nvml.NVML_TEMPERATURE_GPU)) or 0,
        vram_temp_c=value(lambda: _memory_temperature(nvml, device)) or 0,
        gpu_util_pct=rates.gpu if rates is not None else 0,
        mem_used_mb=used,
        mem_total_mb=total,
        fan_speed_pct=value(lambda: nvml.nvmlDeviceGetFanSpeed(device)) or 0,
        power_draw_w=(value(lambda: nvml.nvmlDeviceGetPowerUsage(device)) or 0) / 1000,
        unified=memory is None,
    )


def shared_memory(machine: Callable[[], tuple[int, int]]) -> tuple[int, int]:
    """MiB used, and in total, of a GPU without memory of its own: those of the machine."""
    total, available = machine()
    return (total - available) // MIB, total // MIB


def _memory_temperature(nvml: ModuleType, device: object) -> int:
    (field,) = nvml.nvmlDeviceGetFieldValues(device, [nvml.NVML_FI_DEV_MEMORY_TEMP])
    return int(field.value.uiVal) if field.nvmlReturn == nvml.NVML_SUCCESS else 0


def supported(nvml: ModuleType, ask: Callable[[], T]) -> T | None:
    """One value of a device, None if it does not support it: a board may lack a fan, a virtual GPU its power draw."""
    try:
        return ask()
    except nvml.NVMLError:
        return None


def nvidia_smi_rows(programs: Programs, fields: str) -> Iterator[list[str]]:
    """Runs nvidia-smi, and gives the values of these fields for each GPU. The first field is its index."""
    listed = programs.output("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits")
    for line in listed.splitlines():
        columns = [column.strip() for column in line.split(",")]
        if len(columns) == fields.count(",") + 1 and columns[0].isdigit():
            yield columns


def read_nvidia_smi(programs: Programs, memory: Callable[[], tuple[int, int]] = machine_memory) -> list[GpuReading]:
    """The readings by nvidia-smi, which takes longer than NVML: the driver may have to wake up."""
    readings = []
    for index, name, uuid, *columns in nvidia_smi_rows(programs, _FIELDS):
        temperature, busy, used, total, fan, power = map(number, columns)
        unified = not total  # it says [N/A]
        if unified:
            used, total = shared_memory(memory)
        reading = GpuReading(int(index), name, uuid, temperature, 0, busy, int(used), int(total), fan, power)
        readings.append(evolve(reading, unified=unified))
    return readings
