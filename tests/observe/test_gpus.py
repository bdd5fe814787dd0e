"""GPU sources and the choice between them."""

import plistlib
from pathlib import Path
from types import SimpleNamespace

from twisted.python.filepath import FilePath
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.nvml import NvmlLibrary
from llamaswap.observe.accelerators import by_nvml
from llamaswap.observe.amd import read_amdgpu, read_rocm_smi
from llamaswap.observe.command_output import Programs
from llamaswap.observe.gpu_sources import read_ioreg
from llamaswap.observe.gpus import RETRY_DELAY, GpuReader, GpuReading
from llamaswap.observe.nvidia import read_nvidia_smi, read_nvml

MIB = 1024 * 1024


class Fake:
    """A source that does what the test says."""

    def __init__(self, name, *answers):
        self.name = name
        self.answers = list(answers)
        self.closed = 0

    def read(self):
        answer = self.answers.pop(0) if self.answers else OSError("no more")
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self):
        self.closed += 1


ONE = [GpuReading(0, "gpu")]


class ChoiceTests(SynchronousTestCase):
    def test_first_source_that_works_is_kept(self):
        broken, good = Fake("a", OSError("no")), Fake("b", ONE, ONE)
        gpus = GpuReader([broken, good], lambda: 0.0)
        self.assertEqual([gpus.read(), gpus.read()], [ONE, ONE])
        self.assertEqual((broken.closed, good.closed), (1, 0))

    def test_source_that_stops_working_is_replaced(self):
        first, second = Fake("a", ONE, OSError("died"), OSError("still")), Fake("b", ONE)
        gpus = GpuReader([first, second], lambda: 0.0)
        gpus.read()
        self.assertEqual(gpus.read(), ONE)

    def test_machine_without_gpus_is_searched_seldom(self):
        now = [0.0]
        source = Fake("a", [], [], ONE)
        gpus = GpuReader([source], lambda: now[0])
        self.assertEqual([gpus.read(), gpus.read()], [(), ()])
        self.assertEqual(len(source.answers), 2)
        now[0] = RETRY_DELAY
        gpus.read()
        self.assertEqual(len(source.answers), 1)

    def test_rest_closes_the_source(self):
        source = Fake("a", ONE)
        gpus = GpuReader([source], lambda: 0.0)
        gpus.close()
        gpus.read()
        gpus.close()
        self.assertEqual(source.closed, 1)


class NvmlError(Exception):
    pass


class FakeNvml:
    """As much of the binding as is used; device 1 supports little."""

    NVMLError = NvmlError
    NVML_TEMPERATURE_GPU = 0
    NVML_FI_DEV_MEMORY_TEMP = 82
    NVML_SUCCESS = 0

    def __init__(self):
        self.open = 0

    def nvmlInit(self):
        self.open += 1

    def nvmlShutdown(self):
        self.open -= 1

    def nvmlSystemGetDriverVersion(self):
        return "570.1"

    def nvmlDeviceGetCount(self):
        return 2

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetName(self, device):
        return b"NVIDIA H200" if device == 0 else "small"

    def nvmlDeviceGetUUID(self, device):
        return f"GPU-{device}"

    def nvmlDeviceGetMemoryInfo(self, device):
        return SimpleNamespace(total=1000 * MIB, used=250 * MIB)

    def _supported(self, device, value):
        if device:
            raise NvmlError("not supported")
        return value

    def nvmlDeviceGetUtilizationRates(self, device):
        return self._supported(device, SimpleNamespace(gpu=42))

    def nvmlDeviceGetTemperature(self, device, sensor):
        return self._supported(device, 55)

    def nvmlDeviceGetFieldValues(self, device, fields):
        return [SimpleNamespace(nvmlReturn=device, value=SimpleNamespace(uiVal=61))]

    def nvmlDeviceGetFanSpeed(self, device):
        raise NvmlError("no fan")

    def nvmlDeviceGetPowerUsage(self, device):
        return self._supported(device, 123456)

    def nvmlDeviceGetCudaComputeCapability(self, device):
        return self._supported(device, (9, 0))

    def nvmlDeviceGetEnforcedPowerLimit(self, device):
        return self._supported(device, 700000)

    def nvmlDeviceGetPciInfo(self, device):
        return SimpleNamespace(busId=f"00000000:{device}B:00.0")


class NvidiaTests(SynchronousTestCase):
    def test_nvml_reads_the_values_that_each_board_supports(self):
        nvml = FakeNvml()
        library = NvmlLibrary(lambda: nvml)
        full, little = read_nvml(library.open())
        self.assertEqual(full, GpuReading(0, "NVIDIA H200", "GPU-0", 55, 61, 42, 250, 1000, 0, 123.456))
        self.assertEqual(little, GpuReading(1, "small", "GPU-1", mem_used_mb=250, mem_total_mb=1000))
        self.assertEqual(full.mem_util_pct, 25.0)
        library.open()
        self.assertEqual(nvml.open, 1)
        library.close()
        library.close()
        self.assertEqual(nvml.open, 0)

    def test_board_without_memory_of_its_own_is_read_with_the_machines_memory(self):
        nvml = FakeNvml()

        def unsupported(device):
            raise NvmlError("not supported")

        nvml.nvmlDeviceGetMemoryInfo = unsupported
        first, _ = read_nvml(nvml, lambda: (1000 * MIB, 300 * MIB))
        self.assertEqual((first.mem_used_mb, first.mem_total_mb, first.unified), (700, 1000, True))
        self.assertEqual([device.memory_kind for device in by_nvml(nvml)], ["unified", "unified"])

    def test_nvidia_smi_of_a_board_without_memory_of_its_own_is_read_with_the_machines_memory(self):
        line = "0, NVIDIA GB10, GPU-a, 34, 7, [N/A], [N/A], [N/A], 76.5"
        programs = Programs(lambda name: name, lambda argv, seconds: line)
        (reading,) = read_nvidia_smi(programs, lambda: (1000 * MIB, 300 * MIB))
        self.assertEqual((reading.mem_used_mb, reading.mem_total_mb, reading.unified), (700, 1000, True))

    def test_missing_binding_is_an_error(self):
        def missing():
            raise ImportError("pynvml")

        self.assertRaises(ImportError, NvmlLibrary(missing).open)

    def test_lines_of_nvidia_smi_are_parsed(self):
        def read(line):
            return read_nvidia_smi(Programs(lambda name: name, lambda argv, seconds: line))

        line = "0, NVIDIA H200, GPU-a, 34, 7, 512, 143771, [N/A], 76.5"
        self.assertEqual(read(line), [GpuReading(0, "NVIDIA H200", "GPU-a", 34, 0, 7, 512, 143771, 0, 76.5)])
        for line in ("", "0, too, few", "x, a, b, 1, 2, 3, 4, 5, 6"):
            self.assertEqual(read(line), [])

    def test_nvidia_smi_is_run_for_each_reading(self):
        ran = []

        def command(argv, seconds):
            ran.append(argv)
            return "1, b, u1, 1, 2, 3, 4, 5, 6\nnot a reading\n0, a, u0, 1, 2, 3, 4, 5, 6\n"

        programs = Programs(lambda name: "/bin/" + name, command)
        self.assertEqual([reading.name for reading in read_nvidia_smi(programs)], ["b", "a"])
        read_nvidia_smi(programs)
        self.assertEqual([argv[0] for argv in ran], ["/bin/nvidia-smi"] * 2)

    def test_missing_nvidia_smi_is_an_error(self):
        self.assertRaises(OSError, read_nvidia_smi, Programs(lambda name: None))


ROCM = """WARNING: AMD GPU device(s) is/are in a low-power state
device,GPU use (%),Device Name,GUID,Temperature (Sensor edge) (C),Temperature (Sensor memory) (C),\
VRAM Total Memory (B),VRAM Total Used Memory (B),\
Fan speed (%),Average Graphics Package Power (W),Card Series,GFX Version
card1,12,0x744c,31,41.0,50.0,25753026560,1048576000,15.5,33.0,Radeon RX 7900,gfx1100
card2,12,too,few
system,1,2,3,4,5,6,7,8,9,10,11
"""


class AmdTests(SynchronousTestCase):
    def test_rocm_columns_are_found_by_name(self):
        """core V111"""
        (reading,) = read_rocm_smi(Programs(lambda name: name, lambda argv, seconds: ROCM))
        self.assertEqual(
            reading, GpuReading(1, "Radeon RX 7900 card1 (gfx1100)", "31", 41, 50, 12, 1000, 24560, 15.5, 33)
        )
        self.assertEqual(read_rocm_smi(Programs(lambda name: name, lambda argv, seconds: "no table")), [])

    def test_rocm_smi_is_run_if_installed(self):
        ran = []

        def command(argv, seconds):
            ran.append(argv)
            return ROCM

        self.assertEqual(len(read_rocm_smi(Programs(lambda name: "/opt/" + name, command))), 1)
        self.assertEqual(ran[0][0], "/opt/rocm-smi")
        self.assertRaises(OSError, read_rocm_smi, Programs(lambda name: None, command))

    def test_amdgpu_files_are_read(self):
        root = FilePath(self.mktemp())
        device = root.child("card1").child("device")
        monitor = device.child("hwmon").child("hwmon3")
        monitor.makedirs()
        root.child("card1-DP-1").makedirs()
        root.child("card0").child("device").makedirs()
        for where, name, text in (
            (device, "mem_info_vram_total", "1048576000"),
            (device, "mem_info_vram_used", "104857600"),
            (device, "gpu_busy_percent", "33\n"),
            (monitor, "temp1_label", "edge"),
            (monitor, "temp1_input", "45000"),
            (monitor, "temp3_label", "mem"),
            (monitor, "temp3_input", "60000"),
            (monitor, "power1_average", "25000000"),
            (monitor, "pwm1", "51"),
        ):
            where.child(name).setContent(text.encode())
        (reading,) = read_amdgpu(Path(root.path))
        self.assertEqual(reading, GpuReading(0, "AMD GPU card1", "", 45, 60, 33, 100, 1000, 20.0, 25))

    def test_amd_gpus_are_numbered_like_those_of_rocm(self):
        root = Path(self.mktemp())
        for card, total in (("card0", ""), ("card2", "1048576000"), ("card10", "2097152000")):
            device = root / card / "device"
            device.mkdir(parents=True)
            if total:
                (device / "mem_info_vram_total").write_text(total)
        found = [(reading.id, reading.name, reading.mem_total_mb) for reading in read_amdgpu(root)]
        self.assertEqual(found, [(0, "AMD GPU card2", 1000), (1, "AMD GPU card10", 2000)])


class AppleTests(SynchronousTestCase):
    def test_apple_registry_is_read(self):
        devices = [
            {
                "model": b"Apple M3\0",
                "PerformanceStatistics": {"Device Utilization %": 12, "In use system memory": 5 * MIB},
            }
        ]
        found = plistlib.dumps(devices).decode()
        programs = Programs(lambda name: "/usr/sbin/" + name, lambda argv, seconds: found)
        expected = [GpuReading(0, "Apple M3", gpu_util_pct=12, mem_used_mb=5, mem_total_mb=100)]
        self.assertEqual(read_ioreg(programs, lambda: (100 * MIB, 0)), expected)
        self.assertEqual(read_ioreg(Programs(lambda name: "x", lambda argv, seconds: "")), [])
        self.assertRaises(OSError, read_ioreg, Programs(lambda name: None))
