"""AMD GPUs (and others LACT knows): the LACT daemon's socket, rocm-smi, or the amdgpu driver's files.

All block and belong to a worker's thread.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llamaswap.observe.command_output import Command, run
from llamaswap.observe.gpus import GpuReading
from llamaswap.observe.nvidia import number
from llamaswap.wire.byte_budget import MIB

DIAL, TALK = 2.0, 5.0  # seconds to reach the daemon, and for each answer
ROCM_LIMIT = 5.0  # seconds for rocm-smi: it wakes sleeping GPUs


class Lact:
    """Asks the LACT daemon over its socket, with a fresh connection for each reading."""

    name = "LACT"

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = tuple(paths)

    @classmethod
    def usual(cls, environ: Mapping[str, str], uid: int) -> Lact:
        """Where the daemon listens on this machine."""
        asked = environ.get("LACT_DAEMON_SOCKET_PATH", "")
        return cls([path for path in (asked, "/run/lactd.sock", f"/run/user/{uid}/lactd.sock") if path])

    def read(self) -> Sequence[GpuReading]:
        path = next((path for path in self._paths if os.path.exists(path)), None)
        if path is None:
            raise OSError("no LACT daemon")
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(DIAL)
            connection.connect(path)
            connection.settimeout(TALK)
            with connection.makefile("rwb") as stream:
                devices = _ask(stream, {"command": "list_devices"})
                readings = []
                for index, device in enumerate(devices):
                    stats = _ask(stream, {"command": "device_stats", "args": {"id": device["id"]}})
                    reading = lact_reading(index, device, stats)
                    if reading is not None:
                        readings.append(reading)
        return readings

    def close(self) -> None:
        """Nothing is held."""


def _ask(stream: Any, question: Mapping[str, Any]) -> Any:
    stream.write(json.dumps(question).encode() + b"\n")
    stream.flush()
    answer = json.loads(stream.readline() or b"{}")
    if answer.get("status") != "ok":
        raise OSError(f"LACT: {answer}")
    return answer.get("data")


def lact_reading(index: int, device: Mapping[str, Any], stats: Mapping[str, Any]) -> GpuReading | None:
    """One device's stats; None for one that does not tell the size of its memory."""
    vram = stats.get("vram") or {}
    if not vram.get("total"):
        return None
    temps = {str(key).lower(): _celsius(value) for key, value in (stats.get("temps") or {}).items()}
    edge = temps.get("edge") or temps.get("junction") or next(iter(temps.values()), 0.0)
    power = stats.get("power") or {}
    return GpuReading(
        id=index,
        name=str(device.get("name") or device["id"]),
        uuid=str(device["id"]),
        temp_c=edge,
        vram_temp_c=temps.get("mem") or temps.get("vram") or 0.0,
        gpu_util_pct=stats.get("busy_percent") or 0,
        mem_used_mb=int(vram.get("used") or 0) // MIB,
        mem_total_mb=int(vram["total"]) // MIB,
        fan_speed_pct=round(((stats.get("fan") or {}).get("pwm_current") or 0) / 255 * 100, 1),
        power_draw_w=power.get("average") or power.get("current") or 0,
    )


def _celsius(value: Any) -> float:
    current = value.get("current") if isinstance(value, dict) else value
    return float(current) if isinstance(current, (int, float)) else 0.0


class RocmSmi:
    """Runs rocm-smi for each reading."""

    name = "rocm-smi"

    def __init__(self, find: Callable[[str], str | None] = shutil.which, command: Command = run) -> None:
        self._find = find
        self._command = command

    def read(self) -> Sequence[GpuReading]:
        program = self._find("rocm-smi")
        if program is None:
            raise OSError("rocm-smi is not installed")
        argv = [program, "-i", "-P", "-t", "-f", "-u", "--showmemuse", "--showmeminfo", "vram", "--showproductname"]
        return parse_rocm(self._command([*argv, "--csv"], ROCM_LIMIT))

    def close(self) -> None:
        """Nothing is held."""


def rocm_rows(text: str) -> Iterable[dict[str, str]]:
    """The csv's rows by column name; a row with another number of columns than the header is left out."""
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


class Amdgpu:
    """Reads the amdgpu driver's files; needs no program and wakes nothing."""

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

    def close(self) -> None:
        """Nothing is held."""


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
