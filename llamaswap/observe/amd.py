"""AMD GPUs, read with rocm-smi or from the amdgpu driver's files. Both block: for a worker's thread."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from llamaswap.kernel_files import file_number, file_text, number, pci_address
from llamaswap.observe.command_output import Programs
from llamaswap.observe.gpus import GpuReading
from llamaswap.wire.byte_budget import MIB

_ROCM_OPTIONS = (
    *("-i", "-P", "-t", "-f", "-u", "--showbus"),
    *("--showmemuse", "--showmeminfo", "vram", "--showproductname", "--csv"),
)


def rocm_cards(text: str) -> Iterator[dict[str, str]]:
    """The cards of a rocm-smi csv, by column name; without rows that have more or fewer columns than the header."""
    rows = [row for row in csv.reader(text.splitlines()) if row]
    names: list[str] = []
    for row in rows:
        columns = [value.strip() for value in row]
        if not names and columns[0].lower() == "device":
            names = ["device", *columns[1:]]
        elif len(columns) == len(names) and re.fullmatch(r"card\d+", columns[0]):
            yield dict(zip(names, columns, strict=True))


def read_rocm_smi(programs: Programs) -> list[GpuReading]:
    """The readings of rocm-smi. Columns are found by their names, because their order differs between versions."""
    return [_rocm_reading(row) for row in rocm_cards(programs.output("rocm-smi", *_ROCM_OPTIONS))]


def _rocm_reading(row: Mapping[str, str]) -> GpuReading:
    def value(*names: str) -> float:
        return number(next((row[name] for name in names if row.get(name)), ""))

    name = row.get("Card Series") or row.get("Device Name") or "AMD GPU"
    version = row.get("GFX Version")
    return GpuReading(
        id=int(row["device"].removeprefix("card")),
        name=f"{name} {row['device']}" + (f" ({version})" if version else ""),
        uuid=row.get("GUID", ""),
        temp_c=value("Temperature (Sensor edge) (C)"),
        vram_temp_c=value("Temperature (Sensor memory) (C)"),
        gpu_util_pct=value("GPU use (%)"),
        mem_used_mb=int(value("VRAM Total Used Memory (B)")) // MIB,
        mem_total_mb=int(value("VRAM Total Memory (B)")) // MIB,
        fan_speed_pct=value("Fan speed (%)"),
        power_draw_w=value("Current Socket Graphics Package Power (W)", "Average Graphics Package Power (W)"),
        pci=pci_address(row.get("PCI Bus", "")),
    )


def drm_cards(root: Path) -> Iterator[tuple[int, Path]]:
    """The number and the device's folder of each card that the kernel lists in `root`, without its connectors."""
    cards = (card.name.removeprefix("card") for card in root.glob("card[0-9]*"))
    for index in sorted(int(card) for card in cards if card.isdigit()):
        yield index, root / f"card{index}" / "device"


def read_amdgpu(root: Path = Path("/sys/class/drm")) -> list[GpuReading]:
    """The readings in the amdgpu driver's files; needs no program and wakes no GPU.

    The GPUs are numbered as ROCR_VISIBLE_DEVICES numbers them, because the kernel's cards also include other displays.
    """
    readings: list[GpuReading] = []
    for card, device in drm_cards(root):
        total = file_number(device / "mem_info_vram_total")
        if not total:
            continue
        sensors = _sensors(device)
        readings.append(
            GpuReading(
                id=len(readings),
                name=file_text(device / "product_name") or f"AMD GPU card{card}",
                uuid=file_text(device / "unique_id"),
                temp_c=sensors.get("edge", 0.0),
                vram_temp_c=sensors.get("mem", 0.0),
                gpu_util_pct=file_number(device / "gpu_busy_percent"),
                mem_used_mb=int(file_number(device / "mem_info_vram_used")) // MIB,
                mem_total_mb=int(total) // MIB,
                fan_speed_pct=round(sensors.get("fan", 0.0), 1),
                power_draw_w=sensors.get("power", 0.0),
                pci=pci_address(device.resolve().name),
            )
        )
    return readings


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
