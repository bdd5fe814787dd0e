"""AMD GPUs, read with rocm-smi or from the amdgpu driver's files. Both block: for a worker's thread."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from llamaswap.observe.command_output import Programs
from llamaswap.observe.gpus import GpuReading, GpuSource
from llamaswap.observe.nvidia import number
from llamaswap.wire.byte_budget import MIB


class RocmSmi(GpuSource):
    """Runs rocm-smi for each reading."""

    name = "rocm-smi"

    def __init__(self, programs: Programs | None = None) -> None:
        self._programs = programs or Programs()

    def read(self) -> Sequence[GpuReading]:
        options = ("-i", "-P", "-t", "-f", "-u", "--showmemuse", "--showmeminfo", "vram", "--showproductname", "--csv")
        return parse_rocm(self._programs.output("rocm-smi", *options))


def rocm_rows(text: str) -> Iterable[dict[str, str]]:
    """The rows of a csv by column name, without rows that have more or fewer columns than the header."""
    rows = [row for row in csv.reader(text.splitlines()) if row]
    header = next((row for row in rows if row[0].strip().lower() == "device"), None)
    if header is None:
        return
    names = [name.strip() for name in header]
    for row in rows[rows.index(header) + 1 :]:
        if len(row) == len(names):
            yield dict(zip(names, (value.strip() for value in row), strict=True))


def parse_rocm(text: str) -> list[GpuReading]:
    """The readings of a rocm-smi csv, by its columns' names, in whatever order they come."""
    readings = []
    for row in rocm_rows(text):
        card = re.fullmatch(r"card(\d+)", row["device"])
        if card is None:
            continue
        readings.append(
            GpuReading(
                id=int(card[1]),
                name=_rocm_name(row),
                uuid=row.get("GUID", ""),
                temp_c=number(row.get("Temperature (Sensor edge) (C)", "")),
                vram_temp_c=number(row.get("Temperature (Sensor memory) (C)", "")),
                gpu_util_pct=number(row.get("GPU use (%)", "")),
                mem_used_mb=int(number(row.get("VRAM Total Used Memory (B)", ""))) // MIB,
                mem_total_mb=int(number(row.get("VRAM Total Memory (B)", ""))) // MIB,
                fan_speed_pct=number(row.get("Fan speed (%)", "")),
                power_draw_w=number(
                    row.get("Current Socket Graphics Package Power (W)")
                    or row.get("Average Graphics Package Power (W)")
                    or ""
                ),
            )
        )
    return readings


def _rocm_name(row: Mapping[str, str]) -> str:
    name = row.get("Card Series") or row.get("Device Name") or "AMD GPU"
    version = row.get("GFX Version")
    return f"{name} {row['device']}" + (f" ({version})" if version else "")


class Amdgpu(GpuSource):
    """Reads the amdgpu driver's files; needs no program and wakes no GPU."""

    name = "amdgpu"

    def __init__(self, root: Path = Path("/sys/class/drm")) -> None:
        self._root = root

    def read(self) -> Sequence[GpuReading]:
        readings = []
        for card in sorted(self._root.glob("card[0-9]*")):
            device = card / "device"
            total = file_number(device / "mem_info_vram_total")
            if not re.fullmatch(r"card\d+", card.name) or not total:
                continue
            sensors = _sensors(device)
            readings.append(
                GpuReading(
                    id=int(card.name[4:]),
                    name=file_text(device / "product_name") or f"AMD GPU {card.name}",
                    uuid=file_text(device / "unique_id"),
                    temp_c=sensors.get("edge", 0.0),
                    vram_temp_c=sensors.get("mem", 0.0),
                    gpu_util_pct=file_number(device / "gpu_busy_percent"),
                    mem_used_mb=int(file_number(device / "mem_info_vram_used")) // MIB,
                    mem_total_mb=int(total) // MIB,
                    fan_speed_pct=round(sensors.get("fan", 0.0), 1),
                    power_draw_w=sensors.get("power", 0.0),
                )
            )
        return readings


def file_text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def file_number(path: Path) -> float:
    return number(file_text(path))


def _sensors(device: Path) -> dict[str, float]:
    """Degrees by label, watts as `power`, percent as `fan`, of the device's first hwmon."""
    found: dict[str, float] = {}
    for monitor in sorted(device.glob("hwmon/hwmon*"))[:1]:
        for label in sorted(monitor.glob("temp*_label")):
            found[file_text(label)] = file_number(label.with_name(label.name.replace("label", "input"))) / 1000
        found.setdefault("edge", file_number(monitor / "temp1_input") / 1000)
        power = file_number(monitor / "power1_average") or file_number(monitor / "power1_input")
        found["power"] = power / 1_000_000
        found["fan"] = file_number(monitor / "pwm1") / 255 * 100
    return found
