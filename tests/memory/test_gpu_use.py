"""The memory that processes use of GPUs: NVIDIA's library, the kernel's drivers, and the fake boards of tests."""

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.fake_boards import FakeBoard, fake_boards
from llamaswap.memory.drm_use import DrmUse, fdinfo_use, kfd_use
from llamaswap.memory.nvidia_use import ListedUse, NvidiaUse
from llamaswap.nvml import NvmlLibrary
from llamaswap.observe.gpu_sources import usual
from tests.memory.doubles import MIB, ProcessNvml, write_tree

VISIBLE = (7, 8, 9).__contains__


class NvidiaTests(SynchronousTestCase):
    def test_process_in_several_lists_counts_once(self):
        nvml = ProcessNvml([{7: 500 * MIB, 8: 100 * MIB}, {}], [{8: 120 * MIB}, {9: MIB}])
        use = NvidiaUse(NvmlLibrary(lambda: nvml), VISIBLE)
        self.assertEqual(use.read(), {0: ListedUse({7: 500, 8: 120}), 1: ListedUse({9: 1})})
        use.read()
        self.assertEqual(nvml.open, 1)
        use.library.close()
        use.library.close()
        self.assertEqual(nvml.open, 0)

    def test_list_without_sizes_is_not_complete(self):
        for unknown in (None, 2**64 - 1):
            nvml = ProcessNvml([{7: MIB, 8: unknown}])
            self.assertEqual(
                NvidiaUse(NvmlLibrary(lambda nvml=nvml: nvml), VISIBLE).read(), {0: ListedUse({7: 1}, complete=False)}
            )

    def test_processes_outside_of_a_container_are_left_out(self):
        nvml = ProcessNvml([{7: MIB, 4000: 9 * MIB}])
        self.assertEqual(NvidiaUse(NvmlLibrary(lambda: nvml), VISIBLE).read(), {0: ListedUse({7: 1}, complete=False)})

    def test_driver_that_fails_is_asked_again_later(self):
        nvml = ProcessNvml([{7: MIB}])
        use = NvidiaUse(NvmlLibrary(lambda: nvml), VISIBLE)
        nvml.broken = True
        self.assertEqual((use.read(), nvml.open), ({}, 0))
        nvml.broken = False
        self.assertEqual(use.read(), {0: ListedUse({7: 1})})

    def test_missing_binding_is_not_imported_again(self):
        tries = []

        def missing():
            tries.append(1)
            raise ImportError("pynvml")

        use = NvidiaUse(NvmlLibrary(missing))
        self.assertEqual((use.read(), use.read(), len(tries)), ({}, {}, 1))


AMD = """pos:\t0
drm-driver:\tamdgpu
drm-client-id:\t{}
drm-pdev:\t0000:03:00.0
drm-memory-vram:\t{} KiB
drm-memory-gtt: \t10240 KiB
drm-resident-vram:\t1 KiB
"""
XE = """drm-driver:\txe
drm-client-id:\t4
drm-pdev:\t0000:04:00.0
drm-total-vram0:\t900 MiB
drm-resident-vram0:\t2 MiB
drm-resident-vram1:\t3 MiB
drm-resident-system:\t1024 KiB
drm-resident-gtt:\t0
"""


class DrmTests(SynchronousTestCase):
    def setUp(self):
        self.root = Path(self.mktemp()).absolute()

    def test_open_devices_of_processes_are_added_up(self):
        write_tree(
            self.root,
            {
                "7/fd/0": "->/dev/null",
                "7/fd/3": "->/dev/dri/renderD128",
                "7/fd/4": "->/dev/dri/renderD128",
                "7/fd/5": "->/dev/dri/renderD129",
                "8/fd/3": "->/dev/dri/renderD128",
                "7/fdinfo/0": "pos: 0",
                "7/fdinfo/3": AMD.format(1, 20480),
                "7/fdinfo/4": AMD.format(1, 20480),
                "7/fdinfo/5": XE,
                "8/fdinfo/3": AMD.format(2, 1024),
            },
        )
        used = fdinfo_use([7, 8, 9], self.root)
        self.assertEqual(used.boards, {"0000:03:00.0": 21 * MIB, "0000:04:00.0": 5 * MIB})
        self.assertEqual(used.host, 21 * MIB)
        self.assertEqual(fdinfo_use([9], self.root), DrmUse())

    def test_compute_driver_lists_all_processes(self):
        write_tree(
            self.root,
            {
                "topology/nodes/0/gpu_id": "0",
                "topology/nodes/1/gpu_id": "51000",
                "topology/nodes/1/properties": "gfx_target_version 110000\nlocation_id 768\ndomain 0\n",
                "proc/7/vram_51000": f"{30 * MIB}",
                "proc/8/vram_51000": "0",
                "proc/8/vram_9": "5",
            },
        )
        self.assertEqual(kfd_use(self.root), {"0000:03:00.0": {7: 30 * MIB}})
        self.assertEqual(kfd_use(self.root / "missing"), {})


class FakeBoardTests(SynchronousTestCase):
    def test_fake_boards_are_read_as_gpus(self):
        root = Path(self.mktemp()).absolute()
        write_tree(root, {"0/total": "1000", "0/41": "300", "0/42": "50", "gpu1/total": "500", "notes": "x"})
        self.assertEqual(fake_boards(str(root)), [FakeBoard(0, 1000, {41: 300, 42: 50}), FakeBoard(1, 500, {})])
        (source,) = usual("linux", {"LLAMASWAP_FAKE_BOARDS": str(root)})
        shown = [(reading.id, reading.mem_used_mb, reading.mem_total_mb) for reading in source.read()]
        self.assertEqual(shown, [(0, 350, 1000), (1, 0, 500)])
