"""The machine we run on, described once: taken on a worker's thread after the listener is up.

Must not know who shows it. Files and programs are parameters, so that any machine can be described in a test.
"""

from __future__ import annotations

import platform
import re
import shutil
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from llamaswap.observe.accelerators import Accelerator, find_all
from llamaswap.observe.command_output import Command, run
from llamaswap.observe.log_format import rfc3339nano
from llamaswap.observe.nvidia import binding
from llamaswap.observe.worker import RunBlocking

log = Logger()

_ARCHITECTURES = {"amd64": "x86_64", "x86_64": "x86_64", "arm64": "arm64", "aarch64": "arm64"}
_ARCHITECTURES.update({"armv7l": "armv7", "ppc64le": "ppc64le", "riscv64": "riscv64", "s390x": "s390x"})
_FAMILIES = {"Linux": "linux", "Darwin": "macos", "Windows": "windows", "FreeBSD": "freebsd"}
_CONTAINERS = ("docker", "podman", "lxc", "lxc-libvirt", "systemd-nspawn", "rkt", "container-other")
_CGROUP_LIMITS = ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes")


def _uname() -> tuple[str, str, str]:
    known = platform.uname()
    return known.system, known.machine, known.release


def _memory() -> int:
    import psutil  # on the worker's thread: listening need not wait for it

    return int(psutil.virtual_memory().total)


def _counts() -> tuple[int | None, int | None]:
    import psutil

    return psutil.cpu_count(logical=False), psutil.cpu_count(logical=True)


@frozen
class HardwareProbe:
    """How the machine is asked. `uname` gives (system, machine, release)."""

    root: Path = Path("/")
    command: Command = run
    find: Callable[[str], str | None] = shutil.which
    uname: Callable[[], tuple[str, str, str]] = _uname
    nvml: Callable[[], Any] = binding
    memory: Callable[[], int] = _memory
    counts: Callable[[], tuple[int | None, int | None]] = _counts


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def operating_system(means: HardwareProbe) -> dict[str, Any]:
    """Family, distribution, version and kernel."""
    system, _, release = means.uname()
    family = _FAMILIES.get(system, "other")
    told = dict(
        re.findall(r'^([A-Z_]+)="?(.*?)"?$', _read(means.root / "etc/os-release"), re.MULTILINE)
        if system != "Darwin"
        else ()
    )
    version = told.get("VERSION_ID") or (platform.mac_ver()[0] if family == "macos" else "") or None
    shown: dict[str, Any] = {
        "family": family,
        "name": told.get("NAME") or ("macOS" if family == "macos" else system) or None,
        "version": version,
        "kernel": release or None,
    }
    if family == "other" and system:
        shown["raw_family"] = system
    return shown


def environment(means: HardwareProbe) -> dict[str, Any]:
    """Bare metal, container, virtual machine or WSL, as far as can be told."""
    system, _, release = means.uname()
    kind, name = "unknown", None
    if "microsoft" in release.lower():
        kind, name = "wsl", "WSL"
    elif (means.root / ".dockerenv").exists():
        kind, name = "container", "docker"
    elif (means.root / "run/.containerenv").exists():
        kind, name = "container", "podman"
    elif system == "Linux" and (detect := means.find("systemd-detect-virt")):
        try:
            raw = means.command([detect], 5.0).strip()
        except OSError:
            # It exits with 1 when it finds nothing, and says so.
            return {"kind": "native", "name": None, "version": None}
        kind, name = ("container" if raw in _CONTAINERS else "wsl" if raw == "wsl" else "virtual_machine"), raw
    elif system == "Darwin" and (sysctl := means.find("sysctl")):
        kind = _mac_environment(means.command, sysctl)
    return {"kind": kind, "name": name, "version": None}


def _mac_environment(command: Command, sysctl: str) -> str:
    try:
        return "virtual_machine" if command([sysctl, "-n", "kern.hv_vmm_present"], 5.0).strip() == "1" else "native"
    except OSError:
        return "unknown"


def cpu(means: HardwareProbe) -> dict[str, Any]:
    """Vendor, model and counts."""
    text = _read(means.root / "proc/cpuinfo")

    def field(*names: str) -> str | None:
        for name in names:
            match = re.search(rf"^{name}\s*:\s*(.+)$", text, re.MULTILINE)
            if match:
                return match[1].strip()
        return None

    model = field("model name", "Model", "cpu model")
    vendor = field("vendor_id", "CPU implementer")
    if model is None and means.uname()[0] == "Darwin" and (sysctl := means.find("sysctl")):
        try:
            model = means.command([sysctl, "-n", "machdep.cpu.brand_string"], 5.0).strip() or None
        except OSError:
            model = None
        vendor = "Apple" if model and model.startswith("Apple") else vendor
    sockets = len(set(re.findall(r"^physical id\s*:\s*(\d+)", text, re.MULTILINE)))
    physical, logical = means.counts()
    return {
        "vendor": {"GenuineIntel": "Intel", "AuthenticAMD": "AMD", "0x41": "ARM"}.get(vendor or "", vendor),
        "model": model,
        "socket_count": sockets or None,
        "physical_core_count": physical,
        "logical_thread_count": logical,
    }


def memory_capacity(means: HardwareProbe) -> int | None:
    """What is installed, as far as the kernel tells, within what our control group may use."""
    # MemTotal leaves out what the kernel took at boot; the zones' present pages do not.
    zones = re.split(r"^Node", _read(means.root / "proc/zoneinfo"), flags=re.MULTILINE)
    present = sum(
        int(match[1])
        for zone in zones
        if not re.match(r"\s*\d+, zone\s+Device", zone)
        and (match := re.search(r"^\s+present\s+(\d+)", zone, re.MULTILINE))
    )
    capacity = max(means.memory(), present * 4096 if _pages_are_4k(means) else 0)
    for limit in _CGROUP_LIMITS:
        told = _read(means.root / limit).strip()
        if told.isdigit():
            capacity = min(capacity, int(told)) if capacity else int(told)
            break
    return capacity or None


def _pages_are_4k(means: HardwareProbe) -> bool:
    # True for x86-64 and most others; where pages may be larger the zones are left out of the sum.
    return means.uname()[1].lower() in ("x86_64", "amd64")


def describe(means: HardwareProbe, *, version: str, at: float) -> dict[str, Any]:
    """The whole snapshot. Blocks for as long as the programs asked take."""
    system, machine, _ = means.uname()
    architecture = {"name": _ARCHITECTURES.get(machine.lower(), "other"), "raw_name": machine or None}
    capacity = memory_capacity(means)
    processor = cpu(means)
    found, troubles = find_all(command=means.command, nvml=means.nvml, find=means.find, sys=means.root / "sys")
    if system == "Darwin" and architecture["name"] == "arm64":
        # An Apple chip is its own GPU, and all memory is its.
        found = [Accelerator("", "Apple", processor["model"], memory_kind="unified", capacity_bytes=capacity)]
    for trouble in troubles:
        log.debug("hardware: {trouble}", trouble=trouble)
    return {
        "schema_version": 1,
        "captured_at": rfc3339nano(datetime.fromtimestamp(at, timezone.utc)),
        "capture": {
            "scope": "inference_host",
            "method": "detected",
            "detector": {"name": "llamaswap", "version": version},
        },
        "architecture": architecture,
        "operating_system": operating_system(means),
        "environment": environment(means),
        "cpu": processor,
        "memory": {"capacity_bytes": capacity},
        "accelerators": [device.document(index) for index, device in enumerate(found)],
    }


class Hardware:
    """Takes the snapshot once, in the background, and keeps it; `snapshot()` is None until then, or if it failed."""

    def __init__(
        self, *, run: RunBlocking, wall: Callable[[], float], version: str, means: HardwareProbe | None = None
    ) -> None:
        self._run = run
        self._wall = wall
        self._version = version
        self._means = means or HardwareProbe()
        self._taken: Mapping[str, Any] | None = None

    def take(self) -> Deferred[None]:
        """Ask the machine; call it after the port is open. Never fails."""
        taken = self._run(lambda: describe(self._means, version=self._version, at=self._wall()))
        return taken.addCallbacks(self._keep, lambda failure: log.failure("hardware detection failed", failure=failure))

    def _keep(self, snapshot: dict[str, Any]) -> None:
        self._taken = snapshot
        log.debug("hardware: {count} accelerators", count=len(snapshot["accelerators"]))

    def snapshot(self) -> Mapping[str, Any] | None:
        """The document of GET /api/hardware."""
        return self._taken
