"""The machine's samples."""

import json

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.observe.exposition import render
from llamaswap.observe.gpus import GpuReader, GpuReading
from llamaswap.observe.machine import ASKED_SECONDS, MachineMonitor, NetworkCounts, SystemReading, read_system, thinned
from tests.observe.doubles import Later, at_once

SYSTEM = SystemReading((10.5, 20.0), 8192, 4096, 1024, 0, 0, 0.5, 0.25, 0.125, (NetworkCounts("eth0", 7, 8),))


class Source:
    name = "fake"

    def __init__(self):
        self.reads = self.closes = 0

    def read(self):
        self.reads += 1
        return [GpuReading(0, 'A "B"', mem_used_mb=1, mem_total_mb=4)]

    def close(self):
        self.closes += 1


class MachineTests(SynchronousTestCase):
    def make(self, run=at_once, **options):
        self.clock = Clock()
        self.source = Source()
        self.wanted = True
        return MachineMonitor(
            run=run,
            clock=self.clock,
            wall=self.clock.seconds,
            every=5.0,
            gpus=GpuReader([self.source], self.clock.seconds),
            wanted=lambda: self.wanted,
            **{"read": lambda: SYSTEM, **options},
        )

    def test_samples_are_null_before_the_first_and_empty_after_the_last(self):
        """http T164"""
        machine = self.make()
        self.assertEqual(machine.samples(), {"enabled": True, "sys_stats": None, "gpu_stats": None})
        self.assertEqual(machine.samples(after=1.0), {"enabled": True, "sys_stats": [], "gpu_stats": []})
        self.assertEqual(list(machine.families()), [])
        self.assertFalse(machine.enabled)

    def test_samples_come_oldest_first_and_can_begin_after_a_time(self):
        machine = self.make()
        machine.start()
        machine.start()
        self.clock.pump([5, 5])
        told = machine.samples()
        self.assertEqual([stat["timestamp"][17:] for stat in told["sys_stats"]], ["00Z", "05Z", "10Z"])
        self.assertEqual(len(told["gpu_stats"]), 3)
        self.assertEqual(len(machine.samples(after=5.0)["sys_stats"]), 1)
        self.assertEqual(
            json.loads(json.dumps(told["sys_stats"][0])),
            {
                "timestamp": "1970-01-01T00:00:00Z",
                "cpu_util_per_core": [10.5, 20.0],
                "mem_total_mb": 8192,
                "mem_used_mb": 4096,
                "mem_free_mb": 1024,
                "swap_total_mb": 0,
                "swap_used_mb": 0,
                "load_avg_1": 0.5,
                "load_avg_5": 0.25,
                "load_avg_15": 0.125,
                "net_io": [{"name": "eth0", "bytes_recv": 7, "bytes_sent": 8}],
            },
        )
        self.assertEqual(told["gpu_stats"][0]["mem_util_pct"], 25.0)
        self.successResultOf(machine.stop())
        self.assertEqual((self.clock.getDelayedCalls(), machine.enabled), ([], False))

    def test_samples_of_an_hour_are_kept(self):
        machine = self.make()
        machine.start()
        self.clock.pump([5] * 800)
        self.assertEqual(len(machine.samples()["sys_stats"]), 720)
        machine.retune(60.0)
        self.assertEqual(len(machine.samples()["sys_stats"]), 60)
        self.assertEqual(len(machine.samples(max_points=7)["sys_stats"]), 7)

    def test_gpus_are_not_read_while_no_model_runs_and_no_client_asks(self):
        machine = self.make()
        self.wanted = False
        machine.start()
        self.clock.pump([5] * 12)
        self.assertEqual(self.source.reads, 0)
        machine.samples()
        self.clock.advance(5)
        self.assertEqual(self.source.reads, 1)
        self.clock.pump([5] * (int(ASKED_SECONDS) // 5 + 3))
        self.assertEqual(self.source.reads, 11)
        self.assertGreater(self.source.closes, 0)

    def test_listener_gets_each_sample_and_has_the_gpus_read(self):
        machine = self.make()
        self.wanted = False
        machine.start()
        heard = []
        leave = machine.subscribe(heard.append)
        self.clock.advance(5)
        self.assertEqual([stat["timestamp"][17:] for stat in heard[0]["sys_stats"]], ["05Z"])
        self.assertEqual(len(heard[0]["gpu_stats"]), 1)
        leave()
        leave()
        self.clock.advance(5)
        self.assertEqual((len(heard), machine.samples(after=5.0)["gpu_stats"]), (1, []))

    def test_failing_listener_disturbs_neither_sampling_nor_other_listeners(self):
        machine = self.make()
        machine.start()
        heard = []
        machine.subscribe(lambda document: 1 / 0)
        machine.subscribe(heard.append)
        self.clock.pump([5, 5])
        self.assertEqual((len(heard), len(self.flushLoggedErrors(ZeroDivisionError))), (2, 2))

    def test_slow_driver_makes_samples_rarer(self):
        run = Later()
        machine = self.make(run=run)
        machine.start()
        self.clock.pump([5] * 10)
        self.assertEqual(len(run.waiting), 1)
        run.step()
        self.clock.advance(5)
        self.assertEqual(len(run.waiting), 1)

    def test_failing_sample_is_logged_and_the_next_is_taken(self):
        answers = [OSError("proc is gone"), SYSTEM]

        def read():
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        machine = self.make(read=read)
        machine.start()
        self.clock.advance(5)
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)
        self.assertEqual(len(machine.samples()["sys_stats"]), 1)

    def test_metric_families_show_the_newest_sample(self):
        """http T165"""
        machine = self.make()
        machine.start()
        lines = render(machine.families()).decode().splitlines()
        for line in (
            "llamaswap_memory_total_bytes 8589934592",
            'llamaswap_cpu_util_percent{core="0"} 10.5',
            'llamaswap_cpu_util_percent{core="1"} 20',
            'llamaswap_load_average{interval="15m"} 0.125',
            'llamaswap_network_bytes_total{interface="eth0",direction="sent"} 8',
            'llamaswap_gpu_memory_used_bytes{id="0",name="A \\"B\\""} 1048576',
            "# TYPE llamaswap_network_bytes_total counter",
        ):
            self.assertIn(line, lines)

    def test_this_machine_can_be_read(self):
        found = read_system()
        self.assertGreater(found.mem_total_mb, 0)
        self.assertTrue(all(0 <= share <= 100 for share in found.cpu_util_per_core))


class ThinningTests(SynchronousTestCase):
    def test_thinned_points_are_spread_and_end_with_the_last(self):
        self.assertEqual(thinned(list(range(10)), 3), [3, 6, 9])
        self.assertEqual(thinned([1, 2], 5), [1, 2])
        self.assertEqual(thinned([1, 2], None), [1, 2])
