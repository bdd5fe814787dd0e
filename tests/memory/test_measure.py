"""Who uses the machine's memory."""

from pathlib import Path

from attrs import evolve
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.memory.cgroup import ControlGroups
from llamaswap.memory.containers import serving_process
from llamaswap.memory.drm_use import DrmUse
from llamaswap.memory.measure import LargestForeign, MeasuredServer, Measurer
from llamaswap.memory.nvidia_use import ListedUse
from llamaswap.memory.process_memory import RamUse
from llamaswap.observe.gpus import GpuReading
from tests.memory.doubles import MIB, write_tree

PROGRAMS = {7: "llama-server", 8: "worker", 20: "vllm", 90: "blender", 91: "firefox"}
OWL = MeasuredServer("owl", 7)


class Machine(SynchronousTestCase):
    """A machine with 1000 MiB of RAM, of which 400 are in use, and programs of known sizes."""

    def setUp(self):
        self.clock = Clock()
        self.root = Path(self.mktemp()).absolute()
        self.readings = []
        self.listed = {}
        self.kfd = {}
        self.drm = DrmUse()
        self.sizes = {7: 100, 8: 20, 20: 50}
        self.swapped = {}
        self.children = {7: [8]}
        self.outside = None
        self.added = {}
        self.searches = []

    def measurer(self):
        def search(ours):
            self.searches.append(set(ours))
            return max(set(PROGRAMS) - set(ours), default=None)

        return Measurer(
            listed=lambda: self.listed,
            family=lambda pid: self.children.get(pid, ()),
            outside=lambda server, family: self.outside,
            difference=lambda model: self.added.get(model),
            foreign=LargestForeign(self.clock.seconds, search),
            groups=ControlGroups(self.root / "cgroup", self.root / "proc"),
            kfd=lambda: self.kfd,
            fdinfo=lambda pids: self.drm,
            ram=lambda pids: RamUse(
                sum(self.sizes.get(pid, 0) for pid in pids) * MIB, sum(self.swapped.get(pid, 0) for pid in pids) * MIB
            ),
            available=lambda: (1000 * MIB, 600 * MIB),
            program=lambda pid: PROGRAMS.get(pid, ""),
        )

    def measure(self, *servers):
        return self.measurer().measure(servers or [OWL], self.readings)


class RamTests(Machine):
    def test_server_uses_what_its_processes_use_and_the_rest_is_foreign(self):
        found = self.measure()
        self.assertEqual((found.models["owl"].sizes, found.models["owl"].source), ({"ram": 120}, "process"))
        ram = found.devices["ram"]
        self.assertEqual((ram.total, ram.used, ram.foreign, ram.foreign_by), (1000, 400, 280, "firefox (pid 91)"))

    def test_swapped_memory_is_needed_and_not_in_use(self):
        self.swapped = {7: 40}
        found = self.measure()
        self.assertEqual((found.models["owl"].sizes["ram"], found.devices["ram"].foreign), (160, 280))

    def test_servers_that_use_more_than_is_in_use_leave_no_negative_rest(self):
        self.sizes[7] = 900
        self.assertEqual(self.measure().devices["ram"].foreign, 0)

    def test_limit_of_the_control_group_is_the_memory_there_is(self):
        write_tree(
            self.root,
            {
                "cgroup/cgroup.controllers": "memory",
                "cgroup/memory.max": f"{500 * MIB}",
                "cgroup/memory.current": f"{200 * MIB}",
                "proc/self/cgroup": "0::/\n",
            },
        )
        ram = self.measure().devices["ram"]
        self.assertEqual((ram.total, ram.used, ram.foreign), (500, 200, 80))

    def test_largest_foreign_process_is_searched_every_ten_seconds(self):
        measurer = self.measurer()
        for seconds in (0, 2, 2, 6):
            self.clock.advance(seconds)
            measurer.measure([OWL], ())
        self.assertEqual(len(self.searches), 2)
        self.assertTrue({7, 8} <= self.searches[0])


class ContainerTests(Machine):
    def setUp(self):
        super().setUp()
        self.outside = 20
        self.server = evolve(OWL, port=5800)

    def container(self):
        write_tree(
            self.root,
            {
                "cgroup/cgroup.controllers": "memory",
                "cgroup/box/memory.stat": f"anon {300 * MIB}\nshmem 0\n",
                "cgroup/box/cgroup.procs": "20\n",
                "cgroup/ours/cgroup.procs": "7\n",
                "proc/20/cgroup": "0::/box\n",
                "proc/7/cgroup": "0::/ours\n",
                "proc/self/cgroup": "0::/ours\n",
            },
        )

    def test_container_is_measured_by_its_group_and_its_client_beside_it(self):
        self.container()
        self.readings = [GpuReading(0, "board", mem_used_mb=500, mem_total_mb=1000)]
        self.listed = {0: ListedUse({20: 450})}
        use = self.measure(self.server).models["owl"]
        self.assertEqual((use.sizes, use.source), ({"ram": 420, "gpu0": 450}, "cgroup"))

    def test_process_outside_without_a_group_of_its_own_is_measured_itself(self):
        use = self.measure(self.server).models["owl"]
        self.assertEqual((use.sizes, use.source), ({"ram": 170}, "process"))

    def test_process_outside_is_searched_once_for_each_server(self):
        asked = []
        measurer = self.measurer()
        measurer.outside = lambda server, family: asked.append(server.pid)
        measurer.measure([OWL], ())
        self.assertEqual(asked, [])
        measurer.measure([self.server], ())
        measurer.measure([self.server], ())
        self.assertEqual(asked, [7])
        measurer.measure([evolve(self.server, pid=8)], ())
        self.assertEqual(asked, [7, 8])


class ServingProcessTests(SynchronousTestCase):
    def find(self, holder, argv=("podman", "run", "--name", "owl", "image"), answer="20\n"):
        self.asked = []

        def output(*words):
            self.asked.append(words)
            if isinstance(answer, Exception):
                raise answer
            return answer

        return serving_process(argv, 5800, {7, 8}, lambda port: holder, output)

    def test_holder_of_the_port_is_the_server(self):
        self.assertEqual(self.find((20, "vllm")), 20)
        self.assertIsNone(self.find((8, "llama-server")))
        self.assertEqual(self.asked, [])

    def test_container_behind_a_forwarder_is_asked_for_by_its_name(self):
        self.assertEqual(self.find((30, "docker-proxy")), 20)
        self.assertEqual(self.asked, [("podman", "inspect", "--format", "{{.State.Pid}}", "owl")])
        self.assertEqual(self.find(None, ("/usr/bin/docker", "run", "--name=owl", "image")), 20)
        self.assertIsNone(self.find(None, answer=OSError("no such container")))
        self.assertIsNone(self.find(None, answer="0"))

    def test_container_is_named_by_its_file(self):
        path = Path(self.mktemp())
        path.write_text("abc123\n")
        self.assertEqual(self.find(None, ("docker", "run", "--cidfile", str(path), "image")), 20)
        self.assertEqual(self.asked[0][-1], "abc123")

    def test_command_that_runs_no_container_is_not_asked_for(self):
        self.assertIsNone(self.find(None, ("llama-server", "--name", "owl")))
        self.assertIsNone(self.find(None, ("docker", "run", "image", "--name")))
        self.assertIsNone(self.find(None, ()))
        self.assertEqual(self.asked, [])


class BoardTests(Machine):
    def setUp(self):
        super().setUp()
        self.readings = [
            GpuReading(0, "board", mem_used_mb=800, mem_total_mb=1000),
            GpuReading(1, "board", mem_used_mb=10, mem_total_mb=1000),
        ]

    def test_listed_processes_are_ours_or_foreign(self):
        self.listed = {0: ListedUse({7: 300, 8: 100, 90: 250}), 1: ListedUse({})}
        found = self.measure()
        self.assertEqual(found.models["owl"].sizes, {"ram": 120, "gpu0": 400})
        board = found.devices["gpu0"]
        self.assertEqual(
            (board.total, board.used, board.foreign, board.foreign_by), (1000, 800, 400, "blender (pid 90)")
        )
        self.assertEqual((found.devices["gpu1"].foreign, found.devices["gpu1"].foreign_by), (10, ""))

    def test_load_that_nothing_else_explains_is_measured_by_the_board(self):
        """In a container the list has only processes that are not visible, or no sizes, or nothing."""
        self.added = {"owl": {0: 600, 1: 5}}
        for listed in ({0: ListedUse({}, complete=False)}, {0: ListedUse({})}, {}):
            self.listed = listed
            found = self.measure()
            self.assertEqual((found.models["owl"].sizes["gpu0"], found.models["owl"].source), (600, "board"))
            self.assertNotIn("gpu1", found.models["owl"].sizes)
            self.assertEqual(found.devices["gpu0"].foreign, 200)

    def test_load_of_a_foreign_program_is_not_taken_for_the_models(self):
        self.added = {"owl": {0: 600}}
        self.listed = {0: ListedUse({90: 650})}
        found = self.measure()
        self.assertEqual(found.models["owl"].sizes, {"ram": 120})
        self.assertEqual(found.devices["gpu0"].foreign, 800)

    def test_foreign_use_is_unknown_if_neither_list_nor_difference_is_there(self):
        self.assertIsNone(self.measure().devices["gpu0"].foreign)
        self.assertEqual(self.measurer().measure([], self.readings).devices["gpu0"].foreign, 800)

    def test_larger_number_of_the_two_amd_drivers_counts(self):
        self.readings = [GpuReading(1, "Radeon", mem_used_mb=800, mem_total_mb=1000, pci="0000:03:00.0")]
        self.kfd = {"0000:03:00.0": {7: 300 * MIB, 90: 200 * MIB}}
        self.drm = DrmUse({"0000:03:00.0": 100 * MIB}, 30 * MIB)
        found = self.measure()
        self.assertEqual(found.models["owl"].sizes, {"ram": 150, "gpu1": 300})
        self.assertEqual(found.devices["gpu1"].foreign, 500)
        self.drm = DrmUse({"0000:03:00.0": 400 * MIB})
        self.assertEqual(self.measure().models["owl"].sizes, {"ram": 120, "gpu1": 400})

    def test_board_that_shares_the_machines_memory_is_no_device_of_its_own(self):
        self.readings = [GpuReading(0, "GB10", mem_used_mb=400, mem_total_mb=1000, unified=True)]
        self.listed = {0: ListedUse({7: 200})}
        found = self.measure()
        self.assertEqual(list(found.devices), ["ram"])
        self.assertEqual((found.models["owl"].sizes, found.devices["ram"].foreign), ({"ram": 320}, 80))
