"""A description of the machine, made once, on a worker's thread, after the port is open.

Files and programs are parameters, so that a test can describe any machine. This module must not know who shows the
description.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from types import ModuleType

from attrs import Factory, define, field, frozen
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from llamaswap.kernel_files import file_text, machine_memory
from llamaswap.nvml import binding
from llamaswap.observe.accelerators import Accelerator, find_all
from llamaswap.observe.command_output import NotInstalled, Programs
from llamaswap.observe.log_format import rfc3339nano
from llamaswap.observe.worker import RunBlocking

log = Logger()

Document = dict[str, object]
_ARCHITECTURES = {name: name for name in ("x86_64", "arm64", "ppc64le", "riscv64", "s390x")}
_ARCHITECTURES |= {"amd64": "x86_64", "aarch64": "arm64", "armv7l": "armv7"}
_FAMILIES = {"Linux": "linux", "Darwin": "macos", "Windows": "windows", "FreeBSD": "freebsd"}
_CONTAINERS = ("docker", "podman", "lxc", "lxc-libvirt", "systemd-nspawn", "rkt", "container-other")
_CGROUP_LIMITS = ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes")


@frozen
class HardwareProbe:
    """The sources of the description."""

    root: Path = Path("/")
    programs: Programs = Factory(Programs)
    nvml: Callable[[], ModuleType] = binding

    def uname(self) -> tuple[str, str, str]:
        """System, machine and release."""
        known = platform.uname()
        return known.system, known.machine, known.release

    def memory(self) -> int:
        """Bytes of memory that the kernel manages."""
        return machine_memory()[0]

    def counts(self) -> tuple[int | None, int | None]:
        """Cores and threads."""
        import psutil

        return psutil.cpu_count(logical=False), psutil.cpu_count(logical=True)

    def output(self, program: str, *arguments: str) -> str | None:
        """The output of a program; "" if it fails, None if it is not installed."""
        try:
            return self.programs.output(program, *arguments).strip()
        except NotInstalled:
            return None
        except OSError:
            return ""


def operating_system(probe: HardwareProbe) -> Document:
    """Family, distribution, version and kernel."""
    system, _, release = probe.uname()
    family = _FAMILIES.get(system, "other")
    release_file = dict(re.findall(r'^([A-Z_]+)="?(.*?)"?$', file_text(probe.root / "etc/os-release"), re.MULTILINE))
    raw = {"raw_family": system} if family == "other" and system else {}
    return {
        "family": family,
        "name": release_file.get("NAME") or ("macOS" if family == "macos" else system) or None,
        "version": release_file.get("VERSION_ID") or (platform.mac_ver()[0] if family == "macos" else "") or None,
        "kernel": release or None,
        **raw,
    }


def environment(probe: HardwareProbe) -> Document:
    """Bare metal, container, virtual machine or WSL, as far as the system shows it."""
    system, _, release = probe.uname()
    kind, name = "unknown", None
    if "microsoft" in release.lower():
        kind, name = "wsl", "WSL"
    elif (probe.root / ".dockerenv").exists():
        kind, name = "container", "docker"
    elif (probe.root / "run/.containerenv").exists():
        kind, name = "container", "podman"
    elif system == "Linux" and (detected := probe.output("systemd-detect-virt")) is not None:
        # On bare metal it exits with 1.
        kind, name = "container" if detected in _CONTAINERS else "virtual_machine", detected or None
        kind = {"": "native", "wsl": "wsl"}.get(detected, kind)
    elif system == "Darwin":
        virtual = probe.output("sysctl", "-n", "kern.hv_vmm_present")
        kind = {"1": "virtual_machine"}.get(virtual, "native") if virtual else "unknown"
    return {"kind": kind, "name": name, "version": None}


def cpu(probe: HardwareProbe) -> Document:
    """Vendor, model and counts."""
    text = file_text(probe.root / "proc/cpuinfo")

    def field(*names: str) -> str | None:
        for name in names:
            match = re.search(rf"^{name}\s*:\s*(.+)$", text, re.MULTILINE)
            if match:
                return match[1].strip()
        return None

    model = field("model name", "Model", "cpu model")
    vendor = field("vendor_id", "CPU implementer")
    if model is None and probe.uname()[0] == "Darwin":
        model = probe.output("sysctl", "-n", "machdep.cpu.brand_string") or None
        vendor = "Apple" if model and model.startswith("Apple") else vendor
    sockets = len(set(re.findall(r"^physical id\s*:\s*(\d+)", text, re.MULTILINE)))
    physical, logical = probe.counts()
    return {
        "vendor": {"GenuineIntel": "Intel", "AuthenticAMD": "AMD", "0x41": "ARM"}.get(vendor or "", vendor),
        "model": model,
        "socket_count": sockets or None,
        "physical_core_count": physical,
        "logical_thread_count": logical,
    }


def memory_capacity(probe: HardwareProbe) -> int | None:
    """Bytes of installed memory as far as the kernel knows, at most those that our control group may use."""
    # MemTotal lacks the memory that the kernel took at boot; the present pages of the zones contain it.
    zones = re.split(r"^Node", file_text(probe.root / "proc/zoneinfo"), flags=re.MULTILINE)
    present = sum(
        int(match[1])
        for zone in zones
        if not re.match(r"\s*\d+, zone\s+Device", zone)
        and (match := re.search(r"^\s+present\s+(\d+)", zone, re.MULTILINE))
    )
    capacity = max(probe.memory(), present * 4096 if _pages_are_4k(probe) else 0)
    limits = [file_text(probe.root / path) for path in _CGROUP_LIMITS]
    limit = next((int(text) for text in limits if text.isdigit()), capacity)
    return min(capacity or limit, limit) or None


def _pages_are_4k(probe: HardwareProbe) -> bool:
    # On other architectures pages may be larger; the zones are then left out of the sum.
    return probe.uname()[1].lower() in ("x86_64", "amd64")


def describe(probe: HardwareProbe, *, version: str, at: float) -> Document:
    """The whole description. Blocks until the programs that it runs have ended."""
    system, machine, _ = probe.uname()
    architecture = {"name": _ARCHITECTURES.get(machine.lower(), "other"), "raw_name": machine or None}
    capacity = memory_capacity(probe)
    processor = cpu(probe)
    found, errors = find_all(probe.programs, probe.nvml, probe.root / "sys")
    if system == "Darwin" and architecture["name"] == "arm64":
        # The GPU is a part of an Apple chip, and uses the machine's memory.
        found = [
            Accelerator(
                "", "Apple", str(processor["model"] or "") or None, memory_kind="unified", capacity_bytes=capacity
            )
        ]
    for error in errors:
        log.debug("hardware: {error}", error=error)
    return {
        "schema_version": 1,
        "captured_at": rfc3339nano(datetime.fromtimestamp(at, timezone.utc)),
        "capture": {
            "scope": "inference_host",
            "method": "detected",
            "detector": {"name": "llamaswap", "version": version},
        },
        "architecture": architecture,
        "operating_system": operating_system(probe),
        "environment": environment(probe),
        "cpu": processor,
        "memory": {"capacity_bytes": capacity},
        "accelerators": [device.document(index) for index, device in enumerate(found)],
    }


@define(eq=False)
class Hardware:
    """Makes the description once, in the background. `snapshot` is None before that, and if it failed."""

    run: RunBlocking
    wall: Callable[[], float]
    version: str
    probe: HardwareProbe = field(factory=HardwareProbe)
    snapshot: Document | None = field(default=None, init=False)

    def take(self) -> Deferred[None]:
        """Describe the machine; to be called after the port is open. The Deferred never fails."""
        taken = self.run(lambda: describe(self.probe, version=self.version, at=self.wall()))
        return taken.addCallbacks(self._keep, lambda failure: log.failure("hardware detection failed", failure=failure))

    def _keep(self, snapshot: Document) -> None:
        self.snapshot = snapshot
