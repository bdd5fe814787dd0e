"""The machine's accelerators, found once in every way that works, and merged by PCI address.

Everything here blocks: for a worker's thread.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType

from attrs import asdict, evolve, frozen

from llamaswap.observe.amd import file_number, file_text, rocm_rows
from llamaswap.observe.command_output import NotInstalled, Programs
from llamaswap.observe.nvidia import supported, text
from llamaswap.wire.byte_budget import MIB

_NVIDIA_FIELDS = "index,name,pci.bus_id,memory.total,driver_version,power.limit,compute_cap"
_VENDORS = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}


@frozen
class Accelerator:
    """One device; None is unknown. `pci` identifies it."""

    pci: str
    vendor: str | None = None
    model: str | None = None
    architecture: str | None = None
    memory_kind: str = "unknown"
    capacity_bytes: int | None = None
    driver: str | None = None
    driver_version: str | None = None
    power_limit_watts: float | None = None

    def document(self, index: int) -> dict[str, object]:
        """The element of the snapshot's `accelerators`."""
        return {
            "index": index,
            "kind": "gpu",
            "vendor": self.vendor,
            "model": self.model,
            "architecture": self.architecture,
            "memory": {"kind": self.memory_kind, "capacity_bytes": self.capacity_bytes},
            "driver": {"name": self.driver, "version": self.driver_version} if self.driver else None,
            "power_limit_watts": self.power_limit_watts,
        }


def pci_address(raw: str) -> str:
    """`00000000:3B:00.0` and `0000:3b:00.0` are one address."""
    match = re.fullmatch(r"0*([0-9a-f]{4}):([0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f])", raw.strip().lower())
    return f"{match[1]}:{match[2]}" if match else raw.strip().lower()


def nvidia_architecture(capability: str) -> str | None:
    """The name of the generation with this compute capability, None if it is not known here."""
    match = re.fullmatch(r"(\d+)\.(\d+)", capability.strip())
    if match is None:
        return None
    major, minor = int(match[1]), int(match[2])
    exact = {(7, 0): "Volta", (7, 2): "Volta", (7, 5): "Turing", (8, 9): "Ada Lovelace"}
    exact.update({(8, lesser): "Ampere" for lesser in (0, 6, 7)})
    whole = {2: "Fermi", 3: "Kepler", 5: "Maxwell", 6: "Pascal", 9: "Hopper", 10: "Blackwell"}
    whole.update({11: "Blackwell", 12: "Blackwell"})
    return exact.get((major, minor)) or whole.get(major)


def by_nvml(nvml: ModuleType) -> list[Accelerator]:
    """Found through the driver's library; `nvml` is the imported binding."""
    nvml.nvmlInit()
    try:
        driver = text(nvml.nvmlSystemGetDriverVersion())
        return [_nvml_device(nvml, index, driver) for index in range(nvml.nvmlDeviceGetCount())]
    finally:
        nvml.nvmlShutdown()


def _nvml_device(nvml: ModuleType, index: int, driver: str) -> Accelerator:
    device = nvml.nvmlDeviceGetHandleByIndex(index)
    capability = supported(nvml, lambda: nvml.nvmlDeviceGetCudaComputeCapability(device))
    limit = supported(nvml, lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(device))
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


def by_nvidia_smi(programs: Programs) -> list[Accelerator]:
    """Found through nvidia-smi."""
    found = []
    listed = programs.output("nvidia-smi", f"--query-gpu={_NVIDIA_FIELDS}", "--format=csv,noheader,nounits")
    for line in listed.splitlines():
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


def by_rocm_smi(programs: Programs) -> list[Accelerator]:
    """Found through rocm-smi. If it fails it is asked for less, because older ones do not know all options."""
    options = ("-i", "--showmeminfo", "vram", "--showproductname", "--showbus", "--csv")
    try:
        answer = programs.output("rocm-smi", *options, "--showdriverversion", "--showmaxpower")
    except OSError:
        answer = programs.output("rocm-smi", *options)
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
    """Found in the kernel's files, which know less and need no program. Only cards with a render node count."""
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
    """The architectures of AMD devices, from the topology of the compute driver."""
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
    """One device per address, sorted by it: a later one fills in what an earlier one does not know."""
    known: dict[str, Accelerator] = {}
    for device in found:
        before = known.get(device.pci)
        if before is None:
            known[device.pci] = device
            continue
        later = asdict(device)
        unknown = [name for name, value in asdict(before).items() if value in (None, "unknown")]
        known[device.pci] = evolve(before, **{name: later[name] for name in unknown})
    return [known[pci] for pci in sorted(known)]


def find_all(
    programs: Programs, nvml: Callable[[], ModuleType], sys: Path = Path("/sys")
) -> tuple[list[Accelerator], list[str]]:
    """All accelerators, and the errors on the way (for the debug log)."""
    errors: list[str] = []

    def attempt(finder: Callable[[], Sequence[Accelerator]]) -> Sequence[Accelerator]:
        try:
            return finder()
        except NotInstalled:
            return ()
        except Exception as error:  # a broken driver must not hide the devices of others
            errors.append(f"{type(error).__name__}: {error}")
            return ()

    found = list(attempt(lambda: by_nvml(nvml())) or attempt(lambda: by_nvidia_smi(programs)))
    found += attempt(lambda: by_rocm_smi(programs))
    found += attempt(lambda: by_drm(sys / "class/drm"))
    # A node only fills in what a card does not know.
    cards = {device.pci for device in found}
    found += [device for device in attempt(lambda: by_kfd(sys / "class/kfd/kfd/topology/nodes")) if device.pci in cards]
    return merged(found), errors


def _decimal(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def _scaled(value: str, unit: int) -> int | None:
    number = _decimal(value)
    return None if number is None else int(number) * unit
