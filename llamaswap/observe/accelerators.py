"""The machine's accelerators, found once in every way that works, and merged by PCI address.

Everything here blocks: for a worker's thread.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType

from attrs import asdict, evolve, frozen

from llamaswap.kernel_files import file_number, file_text, kfd_address, kfd_properties, number, pci_address
from llamaswap.observe.amd import drm_cards, rocm_cards
from llamaswap.observe.command_output import NotInstalled, Programs
from llamaswap.observe.nvidia import nvidia_smi_rows, supported, text
from llamaswap.wire.byte_budget import MIB

_NVIDIA_FIELDS = "index,name,pci.bus_id,memory.total,driver_version,power.limit,compute_cap"
_VENDORS = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}
# Compute capabilities, by name of the generation: whole ones, or those of one part of it.
_ARCHITECTURES = {
    "Fermi": ("2",),
    "Kepler": ("3",),
    "Maxwell": ("5",),
    "Pascal": ("6",),
    "Volta": ("7.0", "7.2"),
    "Turing": ("7.5",),
    "Ampere": ("8.0", "8.6", "8.7"),
    "Ada Lovelace": ("8.9",),
    "Hopper": ("9",),
    "Blackwell": ("10", "11", "12"),
}


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


def nvidia_architecture(capability: str) -> str | None:
    """The name of the generation with this compute capability, None if it is not known here."""
    wanted = {capability, capability.partition(".")[0]}
    return next((name for name, known in _ARCHITECTURES.items() if wanted.intersection(known)), None)


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
    memory = supported(nvml, lambda: nvml.nvmlDeviceGetMemoryInfo(device))
    return _nvidia(
        pci=text(nvml.nvmlDeviceGetPciInfo(device).busId),
        model=text(nvml.nvmlDeviceGetName(device)),
        capability="" if capability is None else "{}.{}".format(*capability),
        memory=int(memory.total) if memory is not None else 0,
        driver_version=driver,
        watts=(limit or 0) / 1000,
    )


def _nvidia(pci: str, model: str, capability: str, memory: int, driver_version: str, watts: float) -> Accelerator:
    return Accelerator(
        pci=pci_address(pci),
        vendor="NVIDIA",
        model=model,
        architecture=nvidia_architecture(capability),
        memory_kind="dedicated" if memory else "unified",
        capacity_bytes=memory or None,
        driver="nvidia",
        driver_version=driver_version or None,
        power_limit_watts=watts or None,
    )


def by_nvidia_smi(programs: Programs) -> list[Accelerator]:
    """The GPUs that nvidia-smi lists."""
    return [
        _nvidia(pci, name, capability, int(number(memory)) * MIB, version, number(limit))
        for _, name, pci, memory, version, limit, capability in nvidia_smi_rows(programs, _NVIDIA_FIELDS)
    ]


def by_rocm_smi(programs: Programs) -> list[Accelerator]:
    """The GPUs that rocm-smi lists. If it fails it is run with fewer options, because older versions lack some."""
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
            capacity_bytes=int(number(row.get("VRAM Total Memory (B)", ""))) or None,
            driver="amdgpu",
            driver_version=version[1].strip() if version else None,
            power_limit_watts=number(row.get("Max Graphics Package Power (W)", "")) or None,
        )
        for row in rocm_cards(answer)
    ]


def by_drm(root: Path) -> list[Accelerator]:
    """Found in the kernel's files, which know less and need no program. Only cards with a render node count."""
    found = []
    for _, device in drm_cards(root):
        if not any(device.glob("drm/renderD*")):
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
    for node in sorted(root.glob("*")):
        properties = kfd_properties(node)
        target = properties.get("gfx_target_version", 0)
        if not target:
            continue
        major, minor, step = target // 10_000, target // 100 % 100, target % 100
        architecture = f"gfx{major}{minor:x}{step:x}"
        found.append(Accelerator(kfd_address(properties), "AMD", architecture=architecture))
    return found


def merged(found: Iterable[Accelerator]) -> list[Accelerator]:
    """One device per address, sorted by it: a later one fills in what an earlier one does not know."""
    known: dict[str, Accelerator] = {}
    for device in found:
        before = known.setdefault(device.pci, device)
        unknown = {name for name, value in asdict(before).items() if value in (None, "unknown")}
        more = {name: value for name, value in asdict(device).items() if name in unknown}
        known[device.pci] = evolve(before, **more)
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
