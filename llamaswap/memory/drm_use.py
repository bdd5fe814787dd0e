"""The memory that processes use of AMD's and Intel's GPUs, as the kernel's drivers say.

The display drivers count it for each open device (fdinfo), AMD's compute driver for each process (KFD); neither sees
all of what the other one counts. Blocks: for a worker's thread.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from attrs import Factory, frozen

from llamaswap.kernel_files import file_number, file_text, kfd_address, kfd_properties, pci_address

KIB = 1024
_UNITS = {"": 1, "KiB": KIB, "MiB": KIB * KIB, "GiB": KIB**3}
_MEMORY = re.compile(r"^drm-(?:resident|memory)-([a-z]+\d*):\s*(\d+) ?(\w*)$", re.MULTILINE)
_BOARD_REGIONS = ("vram", "local")
_HOST_REGIONS = ("gtt", "system")


@frozen
class DrmUse:
    """Bytes of boards by their PCI address, and bytes of the machine's memory that a driver holds for them."""

    boards: dict[str, int] = Factory(dict)
    host: int = 0


def fdinfo_use(pids: Iterable[int], proc: Path = Path("/proc")) -> DrmUse:
    """What the open devices of these processes use. A device that several of them inherited counts once."""
    boards: dict[str, int] = {}
    host = 0
    seen = set()
    for pid in pids:
        for text in _device_files(proc / str(pid)):
            client = re.search(r"^drm-client-id:\s*(\d+)$", text, re.MULTILINE)
            address = re.search(r"^drm-pdev:\s*(\S+)$", text, re.MULTILINE)
            if client is None or address is None or (address[1], client[1]) in seen:
                continue
            seen.add((address[1], client[1]))
            board = pci_address(address[1])
            regions: dict[str, int] = {}  # a kernel may write a region in both spellings, as resident and as memory
            for name, size, unit in _MEMORY.findall(text):
                regions[name] = max(regions.get(name, 0), int(size) * _UNITS.get(unit, 1))
            boards[board] = boards.get(board, 0) + _sum(regions, _BOARD_REGIONS)
            host += _sum(regions, _HOST_REGIONS)
    return DrmUse({board: size for board, size in boards.items() if size}, host)


def _sum(regions: dict[str, int], kinds: tuple[str, ...]) -> int:
    return sum(size for name, size in regions.items() if name.rstrip("0123456789") in kinds)


def _device_files(process: Path) -> Iterable[str]:
    try:
        names = os.listdir(process / "fd")
    except OSError:
        return
    for name in names:
        try:
            target = os.readlink(process / "fd" / name)
        except OSError:
            continue
        if target.startswith("/dev/dri/"):
            yield file_text(process / "fdinfo" / name)


def kfd_use(root: Path = Path("/sys/class/kfd/kfd")) -> dict[str, dict[int, int]]:
    """{PCI address: {process: bytes}} of AMD's compute driver, of all processes; empty without it."""
    addresses = {}
    for node in root.glob("topology/nodes/*"):
        number = int(file_number(node / "gpu_id"))
        if number:
            addresses[number] = kfd_address(kfd_properties(node))
    found: dict[str, dict[int, int]] = {address: {} for address in addresses.values()}
    for path in root.glob("proc/*/vram_*"):
        address = addresses.get(int(path.name.removeprefix("vram_")))
        size = int(file_number(path))
        if address is not None and size and path.parent.name.isdigit():
            found[address][int(path.parent.name)] = size
    return found
