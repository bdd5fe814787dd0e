"""Memory that comes back late, on boards that a test writes."""

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.observe.gpus import GpuReading
from llamaswap.observe.vram_reclaim import POLL_INTERVAL, VramReclaim


class Boards:
    """Two boards and a reclaim that reads them."""

    def __init__(self, longest=10.0, boards=2):
        self.clock = Clock()
        self.used = dict.fromkeys(range(boards), 500)
        self.asked = 0
        self.reclaim = VramReclaim(self.read, self.clock, lambda: longest)

    def read(self):
        self.asked += 1
        return succeed(
            [GpuReading(board, "board", mem_used_mb=used, mem_total_mb=24000) for board, used in self.used.items()]
        )

    def load(self, model, amount, board=0):
        self.reclaim.loading(model)
        self.used[board] += amount
        self.reclaim.loaded(model)

    def wait(self, seconds):
        for _ in range(round(seconds / POLL_INTERVAL)):
            self.clock.advance(POLL_INTERVAL)


class ReclaimTests(SynchronousTestCase):
    def test_start_waits_until_the_memory_of_the_evicted_model_is_free(self):
        """reliability R17, core W30"""
        here = Boards()
        here.load("big", 6000)
        here.reclaim.stopped("big")
        back = here.reclaim.wait_for_reclaim("next")
        here.wait(2.0)
        self.assertNoResult(back)
        here.used[0] = 700
        here.wait(0.1)
        self.successResultOf(back)

    def test_memory_of_a_loaded_model_is_known(self):
        here = Boards()
        self.assertIsNone(here.reclaim.share("big"))
        here.load("big", 6000)
        self.assertEqual(here.reclaim.share("big"), 6000)
        here.reclaim.stopped("big")
        self.assertIsNone(here.reclaim.share("big"))

    def test_memory_that_is_free_already_costs_one_reading(self):
        here = Boards()
        here.load("big", 6000)
        here.used[0] = 500
        here.reclaim.stopped("big")
        self.successResultOf(here.reclaim.wait_for_reclaim("next"))
        self.assertEqual(here.asked, 3)

    def test_wait_ends_after_its_time_and_the_log_names_the_missing_memory(self):
        """reliability R19"""
        here = Boards()
        here.load("big", 6000, board=1)
        here.reclaim.stopped("big")
        back = here.reclaim.wait_for_reclaim("next")
        here.wait(9.8)
        self.assertNoResult(back)
        here.wait(0.4)
        self.successResultOf(back)

    def test_half_of_the_memory_is_enough_if_readings_are_steady(self):
        here = Boards()
        here.load("big", 6000)
        here.reclaim.stopped("big")
        back = here.reclaim.wait_for_reclaim("next")
        here.used[0] = 2500
        here.wait(0.9)
        self.assertNoResult(back)
        here.wait(0.4)
        self.successResultOf(back)

    def test_start_does_not_wait_without_gpus(self):
        here = Boards(boards=0)
        here.reclaim.loading("big")
        here.reclaim.loaded("big")
        here.reclaim.stopped("big")
        self.assertIsNone(here.reclaim.wait_for_reclaim("next"))

    def test_model_without_gpu_memory_is_not_waited_for(self):
        here = Boards()
        here.load("small", 20)
        here.reclaim.stopped("small")
        self.assertIsNone(here.reclaim.wait_for_reclaim("next"))

    def test_memory_of_models_that_load_together_is_unknown(self):
        here = Boards()
        here.reclaim.loading("one")
        here.reclaim.loading("two")
        here.used[0] += 6000
        here.reclaim.loaded("one")
        here.reclaim.loaded("two")
        here.reclaim.stopped("one")
        self.assertIsNone(here.reclaim.wait_for_reclaim("next"))

    def test_limit_of_zero_disables_the_wait(self):
        here = Boards(longest=0.0)
        here.load("big", 6000)
        here.reclaim.stopped("big")
        self.assertIsNone(here.reclaim.wait_for_reclaim("next"))

    def test_memory_of_a_model_stopped_long_ago_is_not_waited_for(self):
        here = Boards()
        here.load("big", 6000)
        here.reclaim.stopped("big")
        here.clock.advance(11.0)
        self.assertIsNone(here.reclaim.wait_for_reclaim("next"))

    def test_wait_ends_if_there_are_no_readings_any_more(self):
        here = Boards()
        here.load("big", 6000)
        here.reclaim.stopped("big")
        back = here.reclaim.wait_for_reclaim("next")
        here.used.clear()
        here.wait(0.1)
        self.successResultOf(back)

    def test_hanging_driver_does_not_block_a_load(self):
        here = Boards()
        here.load("big", 6000)
        here.reclaim.stopped("big")
        here.reclaim.read = Deferred
        with capturedLogs() as events:
            back = here.reclaim.wait_for_reclaim("next")
            here.wait(9.9)
            self.assertNoResult(back)
            here.wait(1.2)
            self.successResultOf(back)
        self.assertIn("loading next although", formatEvent(events[-1]))

    def test_failing_reading_does_not_fail_a_start(self):
        here = Boards()
        here.load("big", 6000)
        here.reclaim.stopped("big")
        here.reclaim.read = lambda: 1 / 0
        self.successResultOf(here.reclaim.wait_for_reclaim("next"))
        here.reclaim.loading("next")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_shares_of_stopped_models_are_dropped(self):
        here = Boards()
        for number in range(50):
            here.load(f"model-{number}", 1000)
            here.used[0] = 500
            here.reclaim.stopped(f"model-{number}")
            here.reclaim.wait_for_reclaim("next")
        self.assertEqual([here.reclaim.share(f"model-{number}") for number in range(50)], [None] * 50)
        self.assertIsNone(here.reclaim.wait_for_reclaim("next"))
