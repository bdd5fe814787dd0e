"""Which accelerators the machine has: found once, by every way that works, merged by PCI address.

All blocking; for a worker's thread. Each finder takes its means as parameters and returns nothing where
they do not work.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from attrs import asdict, evolve, frozen

from llamaswap.observe.amd import file_number, file_text, rocm_rows
from llamaswap.observe.command_output import Command
from llamaswap.observe.nvidia import text
from llamaswap.wire.byte_budget import MIB

LIMIT = 5.0  # seconds for each program
_NVIDIA_FIELDS = "index,name,pci.bus_id,memory.total,driver_version,power.limit,compute_cap"
_VENDORS = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}


@frozen
class Accelerator:
    """One device; None is unknown. `pci` only serves to recognise it."""

    pci: str
    vendor: str | None = None
    model: str | None = None
    architecture: str | None = None
    memory_kind: str = "unknown"
    capacity_bytes: int | None = None
    driver: str | None = None
    driver_version: str | None = None
    power_limit_watts: float | None = None

    def document(self, index: int) -> dict[str, Any]:
        """The element of the snapshot's `accelerators`."""
        driver = {"name": self.driver, "version": self.driver_version} if self.driver else None
        return {
            "index": index,
            "kind": "gpu",
            "vendor": self.vendor,
            "model": self.model,
            "architecture": self.architecture,
            "memory": {"kind": self.memory_kind, "capacity_bytes": self.capacity_bytes},
            "driver": driver,
            "power_limit_watts": self.power_limit_watts,
        }


def pci_address(raw: str) -> str:
    """`00000000:3B:00.0` and `0000:3b:00.0` are one address."""
    match = re.fullmatch(r"0*([0-9a-f]{4}):([0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f])", raw.strip().lower())
    return f"{match[1]}:{match[2]}" if match else raw.strip().lower()


def nvidia_architecture(capability: str) -> str | None:
    """The generation's name of a compute capability, None for one not known here."""
    match = re.fullmatch(r"(\d+)\.(\d+)", capability.strip())
    if match is None:
        return None
    major, minor = int(match[1]), int(match[2])
    exact = {(7, 0): "Volta", (7, 2): "Volta", (7, 5): "Turing", (8, 9): "Ada Lovelace"}
    exact.update({(8, lesser): "Ampere" for lesser in (0, 6, 7)})
    whole = {2: "Fermi", 3: "Kepler", 5: "Maxwell", 6: "Pascal", 9: "Hopper", 10: "Blackwell"}
    whole.update({11: "Blackwell", 12: "Blackwell"})
    return exact.get((major, minor)) or whole.get(major)


def by_nvml(nvml: Any) -> list[Accelerator]:
    """Through the driver's library (the binding, imported)."""
    nvml.nvmlInit()
    try:
        driver = text(nvml.nvmlSystemGetDriverVersion())
        return [_nvml_device(nvml, index, driver) for index in range(nvml.nvmlDeviceGetCount())]
    finally:
        nvml.nvmlShutdown()


def _nvml_device(nvml: Any, index: int, driver: str) -> Accelerator:
    device = nvml.nvmlDeviceGetHandleByIndex(index)

    def value(ask: Callable[[Any], Any]) -> Any:
        try:
            return ask(device)
        except nvml.NVMLError:
            return None

    capability = value(nvml.nvmlDeviceGetCudaComputeCapability)
    limit = value(nvml.nvmlDeviceGetEnforcedPowerLimit)
    return Accelerator(
        pci=pci_address(text(nvml.nvmlDeviceGetPciInfo(device).busId)),
        vendor="NVIDIA",
        model=text(nvml.nvmlDeviceGetName(device)),
        architecture=None if capability is None else nvidia_architecture("{}.{}".format(*capability)),
        memory_kind="dedicated",
        capacity_bytes=int(nvml.nvmlDeviceGetMemoryInfo(device).total),
        driver="nvidia",
        driver_version=driver,
        power_limit_watts=None if limit is None else limit / 1000,
    )


def by_nvidia_smi(program: str, command: Command) -> list[Accelerator]:
    """Through nvidia-smi."""
    found = []
    asked = command([program, f"--query-gpu={_NVIDIA_FIELDS}", "--format=csv,noheader,nounits"], LIMIT)
    for line in asked.splitlines():
        columns = [column.strip() for column in line.split(",")]
        if len(columns) != 7:
            continue
        _, name, pci, memory, version, limit, capability = columns
        found.append(
            Accelerator(
                pci=pci_address(pci),
                vendor="NVIDIA",
                model=name,
                architecture=nvidia_architecture(capability),
                memory_kind="dedicated",
                capacity_bytes=_scaled(memory, MIB),
                driver="nvidia",
                driver_version=version or None,
                power_limit_watts=_decimal(limit),
            )
        )
    return found


def by_rocm_smi(program: str, command: Command) -> list[Accelerator]:
    """Through rocm-smi; older ones do not know all the questions, so fewer are asked when it fails."""
    base = [program, "-i", "--showmeminfo", "vram", "--showproductname", "--showbus", "--csv"]
    try:
        answer = command([*base, "--showdriverversion", "--showmaxpower"], LIMIT)
    except OSError:
        answer = command(base, LIMIT)
    version = re.search(r"Driver version[^\n]*\n[^,\n]*,([^,\n]+)", answer)
    return [
        Accelerator(
            pci=pci_address(row.get("PCI Bus", row["device"])),
            vendor="AMD",
            model=row.get("Card Series") or row.get("Device Name") or None,
            architecture=row.get("GFX Version") or None,
            memory_kind="dedicated",
            capacity_bytes=_scaled(row.get("VRAM Total Memory (B)", ""), 1),
            driver="amdgpu",
            driver_version=version[1].strip() if version else None,
            power_limit_watts=_decimal(row.get("Max Graphics Package Power (W)", "")),
        )
        for row in rocm_rows(answer)
        if re.fullmatch(r"card\d+", row["device"])
    ]


def by_drm(root: Path) -> list[Accelerator]:
    """Through the kernel's files: names less, needs nothing. Only cards with a render node count."""
    found = []
    for card in sorted(root.glob("card[0-9]*")):
        device = card / "device"
        if not re.fullmatch(r"card\d+", card.name) or not any(device.glob("drm/renderD*")):
            continue
        vram = int(file_number(device / "mem_info_vram_total"))
        driver = device / "driver"
        cap = max((file_number(path) for path in device.glob("hwmon/hwmon*/power1_cap")), default=0.0)
        found.append(
            Accelerator(
                pci=pci_address(device.resolve().name),
                vendor=_VENDORS.get(file_text(device / "vendor")),
                model=file_text(device / "product_name") or None,
                memory_kind="dedicated" if vram else "unknown",
                capacity_bytes=vram or None,
                driver=driver.resolve().name if driver.exists() else None,
                power_limit_watts=cap / 1_000_000 or None,
            )
        )
    return found


def by_kfd(root: Path) -> list[Accelerator]:
    """The compute driver's topology knows the architecture of AMD's."""
    found = []
    for node in sorted(root.glob("*/properties")):
        values = dict(line.split(None, 1) for line in file_text(node).splitlines() if len(line.split()) == 2)
        target, place = int(values.get("gfx_target_version", "0")), int(values.get("location_id", "0"))
        if not target:
            continue
        major, minor, step = target // 10_000, target // 100 % 100, target % 100
        domain = int(values.get("domain", "0"))
        found.append(
            Accelerator(
                pci=f"{domain:04x}:{place >> 8 & 0xFF:02x}:{place >> 3 & 0x1F:02x}.{place & 7:x}",
                vendor="AMD",
                architecture=f"gfx{major}{minor:x}{step:x}",
            )
        )
    return found


def merged(found: Iterable[Accelerator]) -> list[Accelerator]:
    """One of each address: what an earlier one does not know, a later one fills in. Sorted by address."""
    known: dict[str, Accelerator] = {}
    for device in found:
        before = known.get(device.pci)
        if before is None:
            known[device.pci] = device
            continue
        told, unknown = asdict(device), (None, "unknown")
        fill = {name: told[name] for name, value in asdict(before).items() if value in unknown}
        known[device.pci] = evolve(before, **fill)
    return [known[pci] for pci in sorted(known)]


def find_all(
    *,
    command: Command,
    nvml: Callable[[], Any],
    find: Callable[[str], str | None] = shutil.which,
    sys: Path = Path("/sys"),
) -> tuple[list[Accelerator], list[str]]:
    """Everything found, and what went wrong on the way (for the debug log)."""
    troubles: list[str] = []

    def attempt(finder: Callable[[], Sequence[Accelerator]]) -> Sequence[Accelerator]:
        try:
            return finder()
        except Exception as error:  # a broken driver hides its own devices, not the others'
            troubles.append(f"{type(error).__name__}: {error}")
            return ()

    found = list(attempt(lambda: by_nvml(nvml())))
    nvidia_smi, rocm_smi = find("nvidia-smi"), find("rocm-smi")
    if not found and nvidia_smi:
        found += attempt(lambda: by_nvidia_smi(nvidia_smi, command))
    if rocm_smi:
        found += attempt(lambda: by_rocm_smi(rocm_smi, command))
    found += attempt(lambda: by_drm(sys / "class/drm"))
    # Last, and only to fill in: a node without a card is not a device of its own.
    cards = {device.pci for device in found}
    found += [device for device in attempt(lambda: by_kfd(sys / "class/kfd/kfd/topology/nodes")) if device.pci in cards]
    return merged(found), troubles


def _decimal(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def _scaled(value: str, unit: int) -> int | None:
    number = _decimal(value)
    return None if number is None else int(number) * unit
