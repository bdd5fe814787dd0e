"""NVIDIA GPUs: NVML through its own Python binding (optional), else a long-lived nvidia-smi.

Both block and belong to a worker's thread.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import Any

from llamaswap.observe.gpus import GpuReading
from llamaswap.wire.byte_budget import MIB

FIRST_LINE = 5.0  # seconds a fresh nvidia-smi may take to say its first line: the driver may have to wake up
_FIELDS = "index,name,uuid,temperature.gpu,utilization.gpu,memory.used,memory.total,fan.speed,power.draw"


def text(value: Any) -> str:
    """The binding returned bytes in older releases."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


class Nvml:
    """Reads through the driver's library; about a millisecond for each GPU, no process."""

    name = "NVML"

    def __init__(self, load: Callable[[], Any] | None = None) -> None:
        self._load = load or binding
        self._nvml: Any = None

    def _open(self) -> Any:
        if self._nvml is None:
            nvml = self._load()
            nvml.nvmlInit()
            self._nvml = nvml
        return self._nvml

    def read(self) -> Sequence[GpuReading]:
        nvml = self._open()
        return [self._reading(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]

    def _reading(self, nvml: Any, index: int) -> GpuReading:
        device = nvml.nvmlDeviceGetHandleByIndex(index)

        def value(ask: Callable[[], Any]) -> Any:
            # A board without a fan, a virtual GPU without power: each value may be unsupported on its own.
            try:
                return ask()
            except nvml.NVMLError:
                return None

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
                pass  # a driver that was unloaded has nothing left to shut down


def _memory_temperature(nvml: Any, device: Any) -> int:
    (field,) = nvml.nvmlDeviceGetFieldValues(device, [nvml.NVML_FI_DEV_MEMORY_TEMP])
    return int(field.value.uiVal) if field.nvmlReturn == nvml.NVML_SUCCESS else 0


def binding() -> Any:
    # Optional: most machines have no NVIDIA GPU.
    import pynvml  # type: ignore[import-untyped,import-not-found,unused-ignore]  # it ships no types

    return pynvml


def number(value: str) -> float:
    """A column's number; `[N/A]` and other words are 0."""
    try:
        return float(value)
    except ValueError:
        return 0.0


def parse_line(line: str) -> GpuReading | None:
    """One line of nvidia-smi's csv, None for one that is not a reading."""
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


class NvidiaSmi:
    """One `nvidia-smi --loop`, its newest line of each GPU. Restarted when it died, ended when nobody wants it."""

    name = "nvidia-smi"

    def __init__(
        self,
        every: float,
        find: Callable[[str], str | None] = shutil.which,
        start: Callable[[list[str]], subprocess.Popen[str]] | None = None,
    ) -> None:
        self._loop = max(1, int(every))
        self._find = find
        self._start = start or _spawn
        self._process: subprocess.Popen[str] | None = None
        self._newest: dict[int, GpuReading] = {}
        self._said = threading.Event()

    def read(self) -> Sequence[GpuReading]:
        if self._process is not None and self._process.poll() is not None:
            self.close()
            raise OSError("nvidia-smi ended")
        if self._process is None:
            program = self._find("nvidia-smi")
            if program is None:
                raise OSError("nvidia-smi is not installed")
            argv = [program, f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits", "--loop", str(self._loop)]
            self._newest, self._said = {}, threading.Event()
            self._process = self._start(argv)
            threading.Thread(
                target=self._listen, args=(self._process, self._newest, self._said), name="nvidia-smi", daemon=True
            ).start()
            self._said.wait(FIRST_LINE)
        return [reading for _, reading in sorted(self._newest.copy().items())]

    @staticmethod
    def _listen(process: subprocess.Popen[str], newest: dict[int, GpuReading], said: threading.Event) -> None:
        for line in process.stdout or ():
            reading = parse_line(line)
            if reading is not None:
                newest[reading.id] = reading
                said.set()
        said.set()

    def close(self) -> None:
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()
            process.wait(FIRST_LINE)


def _spawn(argv: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace"
    )
