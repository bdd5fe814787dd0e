"""What the kernel says of the machine: small files of /sys and /proc, the memory there is, addresses of devices.

Everything here may block for a moment: for a worker's thread.
"""

from __future__ import annotations

import re
from pathlib import Path


def file_text(path: Path) -> str:
    """The text of a file, without white space at its ends; "" if it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def number(value: str) -> float:
    """A number in a text; `[N/A]` and other words are 0."""
    try:
        return float(value)
    except ValueError:
        return 0.0


def file_number(path: Path) -> float:
    """The number in a file, 0 without one."""
    return number(file_text(path))


def machine_memory() -> tuple[int, int]:
    """Bytes of memory that the kernel manages, and those that programs could still get.

    Slow at first: the import takes longer than opening the port may.
    """
    import psutil

    memory = psutil.virtual_memory()
    return int(memory.total), int(memory.available)


def pci_address(raw: str) -> str:
    """`00000000:3B:00.0` and `0000:3b:00.0` are one address."""
    match = re.fullmatch(r"0*([0-9a-f]{4}):([0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f])", raw.strip().lower())
    return f"{match[1]}:{match[2]}" if match else raw.strip().lower()


def kfd_properties(node: Path) -> dict[str, int]:
    """The properties of a node of AMD's compute driver; `node` is its folder."""
    found = re.findall(r"^(\w+) +(\d+)$", file_text(node / "properties"), re.MULTILINE)
    return {name: int(value) for name, value in found}


def kfd_address(properties: dict[str, int]) -> str:
    """The PCI address of such a node."""
    domain, place = properties.get("domain", 0), properties.get("location_id", 0)
    return f"{domain:04x}:{place >> 8 & 0xFF:02x}:{place >> 3 & 0x1F:02x}.{place & 7:x}"
