"""The description of the machine."""

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.kernel_files import pci_address
from llamaswap.observe.accelerators import (
    Accelerator,
    by_drm,
    by_kfd,
    by_nvidia_smi,
    by_rocm_smi,
    find_all,
    merged,
    nvidia_architecture,
)
from llamaswap.observe.command_output import Programs
from llamaswap.observe.hardware import Hardware, HardwareProbe, describe, environment, memory_capacity
from tests.observe.doubles import at_once
from tests.observe.test_gpus import FakeNvml


def nothing():
    raise ImportError("no binding")


class Folder(SynchronousTestCase):
    def setUp(self):
        self.root = Path(self.mktemp()).absolute()
        self.root.mkdir()

    def write(self, path, text):
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def probe(
        self, command=None, installed=(), system="Linux", machine="x86_64", release="6.1", nvml=nothing, memory=0
    ):
        def failing(argv, seconds):
            raise OSError("no such program")

        class Probe(HardwareProbe):
            def uname(self):
                return system, machine, release

            def memory(self):
                return memory

            def counts(self):
                return 4, 8

        programs = Programs(lambda name: name if name in installed else None, command or failing)
        return Probe(self.root, programs, nvml)


class TestHost(Folder):
    def test_unknown_machine_is_described_with_nulls(self):
        told = describe(self.probe(system="Plan9", machine="mips"), version="1.2", at=0.0)
        self.assertEqual(told["architecture"], {"name": "other", "raw_name": "mips"})
        self.assertEqual(told["operating_system"]["raw_family"], "Plan9")
        self.assertEqual(told["cpu"]["model"], None)
        self.assertEqual((told["memory"], told["accelerators"]), ({"capacity_bytes": None}, []))
        self.assertEqual((told["schema_version"], told["captured_at"]), (1, "1970-01-01T00:00:00Z"))
        self.assertEqual(told["capture"]["detector"], {"name": "llamaswap", "version": "1.2"})

    def test_linux_host_is_described_from_its_files(self):
        self.write("etc/os-release", 'NAME="Debian GNU/Linux"\nVERSION_ID="12"\n')
        cpu = "vendor_id\t: GenuineIntel\nmodel name\t: Xeon\nphysical id\t: {}\n\n"
        self.write("proc/cpuinfo", cpu.format(0) + cpu.format(1) + cpu.format(0))
        told = describe(self.probe(machine="aarch64", memory=2**30), version="", at=0.0)
        self.assertEqual(
            told["operating_system"],
            {"family": "linux", "name": "Debian GNU/Linux", "version": "12", "kernel": "6.1"},
        )
        self.assertEqual(
            told["cpu"],
            {
                "vendor": "Intel",
                "model": "Xeon",
                "socket_count": 2,
                "physical_core_count": 4,
                "logical_thread_count": 8,
            },
        )
        self.assertEqual((told["architecture"]["name"], told["memory"]["capacity_bytes"]), ("arm64", 2**30))

    def test_environment_is_detected(self):
        self.assertEqual(environment(self.probe(release="5.15-microsoft-standard"))["kind"], "wsl")
        self.assertEqual(environment(self.probe())["kind"], "unknown")
        detect = {"installed": ("systemd-detect-virt",)}
        self.assertEqual(environment(self.probe(**detect))["kind"], "native")
        told = environment(self.probe(command=lambda argv, seconds: "kvm\n", **detect))
        self.assertEqual((told["kind"], told["name"]), ("virtual_machine", "kvm"))
        self.assertEqual(environment(self.probe(command=lambda *_: "lxc", **detect))["kind"], "container")
        mac = self.probe(system="Darwin", installed=("sysctl",), command=lambda *_: "0\n")
        self.assertEqual(environment(mac)["kind"], "native")
        self.write(".dockerenv", "")
        self.assertEqual(environment(self.probe())["name"], "docker")

    def test_memory_is_limited_by_the_control_group(self):
        zones = (
            "Node 0, zone DMA\n  pages free 1\n        present  1000\nNode 0, zone   Device\n        present  9999\n"
        )
        self.write("proc/zoneinfo", zones)
        self.assertEqual(memory_capacity(self.probe(memory=100)), 4_096_000)
        self.assertEqual(memory_capacity(self.probe(memory=5_000_000)), 5_000_000)
        self.write("sys/fs/cgroup/memory.max", "max\n")
        self.assertEqual(memory_capacity(self.probe()), 4_096_000)
        self.write("sys/fs/cgroup/memory.max", "1000\n")
        self.assertEqual(memory_capacity(self.probe()), 1000)

    def test_apple_chip_is_listed_as_a_gpu(self):
        def command(argv, seconds):
            return "Apple M3\n" if "machdep.cpu.brand_string" in argv else "0\n"

        probe = self.probe(system="Darwin", machine="arm64", installed=("sysctl",), command=command, memory=2**34)
        (gpu,) = describe(probe, version="", at=0.0)["accelerators"]
        self.assertEqual((gpu["vendor"], gpu["model"]), ("Apple", "Apple M3"))
        self.assertEqual(gpu["memory"], {"kind": "unified", "capacity_bytes": 2**34})

    def test_failed_detection_leaves_no_snapshot(self):
        hardware = Hardware(run=at_once, wall=lambda: 0.0, version="1", probe=self.probe())
        self.assertIsNone(hardware.snapshot)
        self.successResultOf(hardware.take())
        self.assertEqual(hardware.snapshot["schema_version"], 1)

        def broken():
            raise OSError("broken")

        failing = Hardware(run=at_once, wall=broken, version="1", probe=self.probe())
        self.successResultOf(failing.take())
        self.assertEqual((failing.snapshot, len(self.flushLoggedErrors(OSError))), (None, 1))


class TestAccelerators(Folder):
    def test_compute_capability_names_the_architecture(self):
        """core V113"""
        names = {"8.9": "Ada Lovelace", "8.6": "Ampere", "9.0": "Hopper", "7.5": "Turing", "12.0": "Blackwell"}
        self.assertEqual({capability: nvidia_architecture(capability) for capability in names}, names)
        self.assertEqual([nvidia_architecture(odd) for odd in ("4.2", "8.8", "x", "")], [None] * 4)

    def test_pci_addresses_have_one_form(self):
        self.assertEqual(pci_address("00000000:3B:00.0"), pci_address("0000:3b:00.0"))

    def test_nvml_devices_are_described(self):
        nvml = FakeNvml()
        found, errors = find_all(Programs(lambda _: None), lambda: nvml, self.root)
        self.assertEqual(
            found[0].document(0),
            {
                "index": 0,
                "kind": "gpu",
                "vendor": "NVIDIA",
                "model": "NVIDIA H200",
                "architecture": "Hopper",
                "memory": {"kind": "dedicated", "capacity_bytes": 1000 * 2**20},
                "driver": {"name": "nvidia", "version": "570.1"},
                "power_limit_watts": 700.0,
            },
        )
        self.assertEqual((found[1].architecture, nvml.open, errors), (None, 0, []))

    def test_nvidia_smi_lists_devices_without_nvml(self):
        line = "0, NVIDIA H200, 00000000:0B:00.0, 143771, 570.1, 700.00, 9.0\nbroken\n"
        (found,) = by_nvidia_smi(Programs(lambda name: name, lambda argv, seconds: line))
        self.assertEqual((found.pci, found.architecture, found.power_limit_watts), ("0000:0b:00.0", "Hopper", 700.0))
        self.assertEqual(found.capacity_bytes, 143771 * 2**20)

    def test_older_rocm_smi_is_asked_with_fewer_options(self):
        def command(argv, seconds):
            if "--showmaxpower" in argv:
                raise OSError("unknown option")
            return "device,PCI Bus,Card Series,VRAM Total Memory (B)\ncard0,0000:03:00.0,Radeon,1024\n"

        (found,) = by_rocm_smi(Programs(lambda name: name, command))
        self.assertEqual((found.pci, found.model, found.capacity_bytes), ("0000:03:00.0", "Radeon", 1024))

    def test_devices_are_found_in_the_kernels_files(self):
        device = "devices/0000:03:00.0"
        self.write(f"{device}/vendor", "0x1002\n")
        self.write(f"{device}/mem_info_vram_total", "2048")
        self.write(f"{device}/hwmon/hwmon0/power1_cap", "200000000")
        self.write(f"{device}/drm/renderD128/dev", "")
        card = self.root / "class/drm/card0"
        card.mkdir(parents=True)
        (card / "device").symlink_to(self.root / device)
        (self.root / "class/drm/card1/device").mkdir(parents=True)
        (found,) = by_drm(self.root / "class/drm")
        self.assertEqual(
            found,
            Accelerator("0000:03:00.0", "AMD", None, None, "dedicated", 2048, None, None, 200.0),
        )
        self.write("nodes/0/properties", "cpu_cores_count 8\ngfx_target_version 0\n")
        self.write("nodes/1/properties", "gfx_target_version 110000\nlocation_id 768\ndomain 0\n")
        (node,) = by_kfd(self.root / "nodes")
        self.assertEqual((node.pci, node.architecture), ("0000:03:00.0", "gfx1100"))
        (both,) = merged([found, node])
        self.assertEqual((both.architecture, both.capacity_bytes), ("gfx1100", 2048))

    def test_broken_driver_does_not_hide_other_devices(self):
        found, errors = find_all(Programs(lambda name: name, lambda *_: ""), nothing, self.root)
        self.assertEqual((found, errors), ([], ["ImportError: no binding"]))
