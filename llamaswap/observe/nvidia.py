"""NVIDIA GPUs, read through NVML's Python binding (optional) or with nvidia-smi.

Both block: for a worker's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TypeVar

from llamaswap.observe.command_output import Programs
from llamaswap.observe.gpus import GpuReading, GpuSource
from llamaswap.wire.byte_budget import MIB

_FIELDS = "index,name,uuid,temperature.gpu,utilization.gpu,memory.used,memory.total,fan.speed,power.draw"

T = TypeVar("T")


def text(value: bytes | str) -> str:
    """A name from the binding, whose older releases returned bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


class Nvml(GpuSource):
    """Reads through the driver's library: a millisecond per GPU, without a process."""

    name = "NVML"

    def __init__(self, load: Callable[[], ModuleType] | None = None) -> None:
        self._load = load or binding
        self._nvml: ModuleType | None = None

    def _open(self) -> ModuleType:
        if self._nvml is None:
            nvml = self._load()
            nvml.nvmlInit()
            self._nvml = nvml
        return self._nvml

    def read(self) -> Sequence[GpuReading]:
        nvml = self._open()
        return [self._reading(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]

    def _reading(self, nvml: ModuleType, index: int) -> GpuReading:
        device = nvml.nvmlDeviceGetHandleByIndex(index)

        def value(ask: Callable[[], T]) -> T | None:
            return supported(nvml, ask)

        memory = nvml.nvmlDeviceGetMemoryInfo(device)
        rates = value(lambda: nvml.nvmlDeviceGetUtilizationRates(device))
        return GpuReading(
            id=index,
            name=text(nvml.nvmlDeviceGetName(device)),
            uuid=text(value(lambda: nvml.nvmlDeviceGetUUID(device)) or ""),
            temp_c=value(lambda: nvml.nvmlDeviceGetTemperature(device, nvml.NVML_TEMPERATURE_GPU)) or 0,
            vram_temp_c=value(lambda: _memory_temperature(nvml, device)) or 0,
            gpu_util_pct=rates.gpu if rates is not None else 0,
            mem_used_mb=int(memory.used) // MIB,
            mem_total_mb=int(memory.total) // MIB,
            fan_speed_pct=value(lambda: nvml.nvmlDeviceGetFanSpeed(device)) or 0,
            power_draw_w=(value(lambda: nvml.nvmlDeviceGetPowerUsage(device)) or 0) / 1000,
        )

    def close(self) -> None:
        if self._nvml is not None:
            nvml, self._nvml = self._nvml, None
            try:
                nvml.nvmlShutdown()
            except nvml.NVMLError:
                pass  # an unloaded driver has nothing to shut down


def _memory_temperature(nvml: ModuleType, device: object) -> int:
    (field,) = nvml.nvmlDeviceGetFieldValues(device, [nvml.NVML_FI_DEV_MEMORY_TEMP])
    return int(field.value.uiVal) if field.nvmlReturn == nvml.NVML_SUCCESS else 0


def supported(nvml: ModuleType, ask: Callable[[], T]) -> T | None:
    """One value of a device, None if it does not support it: a board may lack a fan, a virtual GPU its power draw."""
    try:
        return ask()
    except nvml.NVMLError:
        return None


def binding() -> ModuleType:
    """NVML's Python binding, which is optional: most machines have no NVIDIA GPU."""
    import pynvml  # type: ignore[import-untyped,import-not-found,unused-ignore]  # it ships no types

    return pynvml  # type: ignore[no-any-return,unused-ignore]


def number(value: str) -> float:
    """A column's number; `[N/A]` and other words are 0."""
    try:
        return float(value)
    except ValueError:
        return 0.0


def parse_line(line: str) -> GpuReading | None:
    """The reading in a line of nvidia-smi's csv, None if it has none."""
    columns = [column.strip() for column in line.split(",")]
    if len(columns) < 9 or not columns[0].isdigit():
        return None
    temperature, busy, used, total, fan, power = (number(column) for column in columns[3:9])
    return GpuReading(
        id=int(columns[0]),
        name=columns[1],
        uuid=columns[2],
        temp_c=temperature,
        gpu_util_pct=busy,
        mem_used_mb=int(used),
        mem_total_mb=int(total),
        fan_speed_pct=fan,
        power_draw_w=power,
    )


class NvidiaSmi(GpuSource):
    """Runs nvidia-smi for each reading, which takes longer than NVML: the driver may have to wake up."""

    name = "nvidia-smi"

    def __init__(self, programs: Programs | None = None) -> None:
        self._programs = programs or Programs()

    def read(self) -> Sequence[GpuReading]:
        listed = self._programs.output("nvidia-smi", f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits")
        return [reading for line in listed.splitlines() if (reading := parse_line(line)) is not None]
