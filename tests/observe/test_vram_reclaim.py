"""Memory that comes back late, on boards that a test writes."""

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.observe.gpus import GpuReading
from llamaswap.observe.vram_reclaim import LOOK, VramReclaim


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
        for _ in range(round(seconds / LOOK)):
            self.clock.advance(LOOK)


class ReclaimTests(SynchronousTestCase):
    def test_a_start_waits_until_the_memory_of_the_evicted_is_back(self):
        """reliability R17, core W30"""
        here = Boards()
        here.load("big", 6000)
        here.reclaim.gone("big")
        back = here.reclaim.wait_for_reclaim("next")
        here.wait(2.0)
        self.assertNoResult(back)
        here.used[0] = 700
        here.wait(0.1)
        self.successResultOf(back)

    def test_what_a_model_took_is_known_while_it_is_loaded(self):
        here = Boards()
        self.assertIsNone(here.reclaim.share("big"))
        here.load("big", 6000)
        self.assertEqual(here.reclaim.share("big"), 6000)
        here.reclaim.gone("big")
        self.assertIsNone(here.reclaim.share("big"))

    def test_memory_that_is_back_already_costs_one_look(self):
        here = Boards()
        here.load("big", 6000)
        here.used[0] = 500
        here.reclaim.gone("big")
        self.successResultOf(here.reclaim.wait_for_reclaim("next"))
        self.assertEqual(here.asked, 3)

    def test_the_wait_has_an_end_and_the_log_says_what_is_missing(self):
        """reliability R19"""
        here = Boards()
        here.load("big", 6000, board=1)
        here.reclaim.gone("big")
        back = here.reclaim.wait_for_reclaim("next")
        here.wait(9.8)
        self.assertNoResult(back)
        here.wait(0.4)
        self.successResultOf(back)

    def test_half_of_it_is_enough_once_nothing_moves_any_more(self):
        here = Boards()
        here.load("big", 6000)
        here.reclaim.gone("big")
        back = here.reclaim.wait_for_reclaim("next")
        here.used[0] = 2500
        here.wait(0.9)
        self.assertNoResult(back)
        here.wait(0.4)
        self.successResultOf(back)

    def test_without_boards_nobody_waits(self):
        here = Boards(boards=0)
        here.reclaim.loading("big")
        here.reclaim.loaded("big")
        here.reclaim.gone("big")
        self.assertIsNone(here.reclaim.wait_for_reclaim("next"))

    def test_a_model_that_lives_in_the_machines_memory_is_not_waited_for(self):
        here = Boards()
        here.load("small", 20)
        here.reclaim.gone("small")
        self.assertIsNone(here.reclaim.wait_for_reclaim("next"))

    def test_two_models_that_load_at_once_are_not_told_apart(self):
        here = Boards()
        here.reclaim.loading("one")
        here.reclaim.loading("two")
        here.used[0] += 6000
        here.reclaim.loaded("one")
        here.reclaim.loaded("two")
        here.reclaim.gone("one")
        self.assertIsNone(here.reclaim.wait_for_reclaim("next"))

    def test_a_cap_of_nothing_switches_it_off(self):
        here = Boards(longest=0.0)
        here.load("big", 6000)
        here.reclaim.gone("big")
        self.assertIsNone(here.reclaim.wait_for_reclaim("next"))

    def test_what_went_long_ago_is_not_waited_for(self):
        here = Boards()
        here.load("big", 6000)
        here.reclaim.gone("big")
        here.clock.advance(11.0)
        self.assertIsNone(here.reclaim.wait_for_reclaim("next"))

    def test_readings_that_end_end_the_wait(self):
        here = Boards()
        here.load("big", 6000)
        here.reclaim.gone("big")
        back = here.reclaim.wait_for_reclaim("next")
        here.used.clear()
        here.wait(0.1)
        self.successResultOf(back)

    def test_a_driver_that_hangs_keeps_no_model_from_loading(self):
        here = Boards()
        here.load("big", 6000)
        here.reclaim.gone("big")
        here.reclaim.read = Deferred
        with capturedLogs() as events:
            back = here.reclaim.wait_for_reclaim("next")
            here.wait(9.9)
            self.assertNoResult(back)
            here.wait(1.2)
            self.successResultOf(back)
        self.assertIn("loading next although", formatEvent(events[-1]))

    def test_a_reading_that_fails_fails_no_start(self):
        here = Boards()
        here.load("big", 6000)
        here.reclaim.gone("big")
        here.reclaim.read = lambda: 1 / 0
        self.successResultOf(here.reclaim.wait_for_reclaim("next"))
        here.reclaim.loading("next")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_nothing_is_kept_of_models_that_are_gone(self):
        here = Boards()
        for number in range(50):
            here.load(f"model-{number}", 1000)
            here.used[0] = 500
            here.reclaim.gone(f"model-{number}")
            here.reclaim.wait_for_reclaim("next")
        self.assertEqual((here.reclaim._shares, here.reclaim._loading, here.reclaim._pending), ({}, {}, {}))
