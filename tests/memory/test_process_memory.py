"""The memory of processes and control groups, from files of the kernel."""

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.memory.cgroup import ControlGroups
from llamaswap.memory.process_memory import RamUse, largest_process, program_of, ram_of
from tests.memory.doubles import MIB, write_tree

STATUS = "Name:\towl\nVmRSS:\t  409600 kB\nRssAnon:\t{} kB\nRssFile:\t  307200 kB\nRssShmem:\t{} kB\nVmSwap:\t{} kB\n"


class KernelFiles(SynchronousTestCase):
    def setUp(self):
        self.root = Path(self.mktemp()).absolute()

    def write(self, **files):
        write_tree(self.root, files)


class ProcessTests(KernelFiles):
    def test_memory_of_a_process_is_what_is_not_in_files(self):
        write_tree(self.root, {"self/comm": "x", "7/status": STATUS.format(102400, 0, 10)})
        self.assertEqual(ram_of([7, 8], self.root), RamUse(100 * MIB, 10 * 1024))

    def test_weights_that_are_locked_in_memory_count(self):
        locked = "VmLck:\t  204800 kB\n"
        write_tree(self.root, {"self/comm": "x", "7/status": locked + STATUS.format(102400, 0, 0)})
        self.assertEqual(ram_of([7], self.root), RamUse(300 * MIB, 0))

    def test_shared_memory_of_several_processes_counts_once(self):
        write_tree(
            self.root,
            {
                "self/comm": "x",
                "7/status": STATUS.format(1024, 20480, 0),
                "8/status": STATUS.format(2048, 10240, 0),
                "9/status": "Name:\tkernel thread\n",
            },
        )
        self.assertEqual(ram_of([7, 8, 9], self.root), RamUse(23 * MIB, 0))

    def test_memory_is_known_without_proc(self):
        """psutil answers there; the process of this test has some megabytes."""
        import os

        used = ram_of([os.getpid(), 2**30], self.root / "missing")
        self.assertGreater(used.resident, 5 * MIB)

    def test_largest_process_is_found_by_its_own_memory(self):
        pages = {"3/statm": "900 900 800", "4/statm": "500 500 100", "5/statm": "800 800 0", "6/statm": ""}
        write_tree(self.root, {**pages, "4/comm": "firefox\n"})
        self.assertEqual(largest_process({5}, self.root), 4)
        self.assertEqual(largest_process({3, 4, 5}, self.root), None)
        self.assertEqual((program_of(4, self.root), program_of(99, self.root)), ("firefox", ""))


class GroupTests(KernelFiles):
    def groups(self, files):
        write_tree(self.root, files)
        return ControlGroups(self.root / "cgroup", self.root / "proc")

    def test_container_is_measured_by_its_group(self):
        groups = self.groups(
            {
                "cgroup/cgroup.controllers": "memory",
                "cgroup/system.slice/owl.scope/memory.stat": f"anon {50 * MIB}\nfile {9 * MIB}\nshmem {2 * MIB}\n",
                "cgroup/system.slice/owl.scope/memory.swap.current": f"{MIB}\n",
                "cgroup/system.slice/owl.scope/cgroup.procs": "20\n21\n",
                "cgroup/system.slice/owl.scope/inner/cgroup.procs": "22\n",
                "cgroup/system.slice/llamaswap.service/cgroup.procs": "1\n",
                "proc/20/cgroup": "0::/system.slice/owl.scope\n",
                "proc/self/cgroup": "0::/system.slice/llamaswap.service\n",
                "proc/30/cgroup": "0::/../elsewhere\n",
            }
        )
        folder = groups.folder_of(20)
        self.assertEqual(folder, self.root / "cgroup/system.slice/owl.scope")
        self.assertEqual(groups.processes(folder), {20, 21, 22})
        self.assertEqual(groups.ram_of(folder), RamUse(52 * MIB, MIB))
        self.assertTrue(groups.is_apart(folder))
        self.assertFalse(groups.is_apart(groups.folder_of("self")))
        self.assertFalse(groups.is_apart(self.root / "cgroup/system.slice"))
        self.assertFalse(groups.is_apart(self.root / "cgroup"))
        self.assertIsNone(groups.folder_of(30))
        self.assertIsNone(groups.ram_of(self.root / "cgroup/system.slice"))

    def test_smallest_limit_of_the_groups_above_counts(self):
        groups = self.groups(
            {
                "cgroup/cgroup.controllers": "memory",
                "cgroup/a.slice/memory.max": f"{100 * MIB}",
                "cgroup/a.slice/memory.current": f"{60 * MIB}",
                "cgroup/a.slice/memory.stat": f"anon 1\ninactive_file {10 * MIB}\nactive_file {20 * MIB}\n",
                "cgroup/a.slice/b.service/memory.max": "max",
                "proc/self/cgroup": "0::/a.slice/b.service\n",
            }
        )
        self.assertEqual(groups.limit(), (100 * MIB, 70 * MIB))

    def test_older_interface_is_read_too(self):
        files = {
            "memory.limit_in_bytes": f"{80 * MIB}",
            "memory.usage_in_bytes": f"{50 * MIB}",
            "memory.stat": f"rss 1\ntotal_rss {5 * MIB}\ntotal_shmem {MIB}\ntotal_swap 0\n"
            f"total_inactive_file {10 * MIB}\ntotal_active_file 0\n",
            "cgroup.procs": "5\n",
        }
        groups = self.groups(
            {
                **{f"cgroup/memory/docker/abc/{name}": text for name, text in files.items()},
                "cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
                "proc/5/cgroup": "9:name=systemd:/\n4:memory:/docker/abc\n0::/\n",
                "proc/self/cgroup": "4:memory:/docker/abc\n",
            }
        )
        folder = groups.folder_of(5)
        self.assertEqual(groups.ram_of(folder), RamUse(6 * MIB, 0))
        self.assertEqual(groups.limit(), (80 * MIB, 40 * MIB))

    def test_machine_without_groups_has_no_limit(self):
        groups = self.groups({"proc/self/cgroup": ""})
        self.assertIsNone(groups.limit())
        self.assertIsNone(groups.folder_of("self"))
