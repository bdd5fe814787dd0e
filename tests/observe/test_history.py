"""Residency and swaps."""

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.events import EventBus, StateChanged, SwapBegan, SwapEnded
from llamaswap.observe import history as module
from llamaswap.observe.history import SwapHistory, SwapOrigin
from llamaswap.observe.logs import LogMonitor


class HistoryTests(SynchronousTestCase):
    def setUp(self):
        self.now = 0.0
        self.bus = EventBus(on_error=self.fail)
        self.make()

    def make(self):
        self.log = LogMonitor("owl")
        self.history = SwapHistory(wall=lambda: self.now, log=lambda model: self.log)
        self.history.listen(self.bus)

    def tell(self, at, event):
        self.now = at
        self.bus.publish(event)

    def swap(self):
        self.tell(1, StateChanged("hen", "stopped", "ready"))
        self.tell(10, SwapBegan(7, "owl", ("hen",), "request", 0.0))
        self.tell(10, StateChanged("hen", "ready", "stopping"))
        self.tell(11, StateChanged("hen", "stopping", "stopped"))
        self.tell(11, StateChanged("owl", "stopped", "starting"))
        self.tell(13, StateChanged("owl", "starting", "ready"))

    def told(self, **span):
        return [
            (part["model"], part["state"], part["t0"][17:], (part["t1"] or "")[17:], part["reason"], part["swap_id"])
            for part in self.history.residency(**span)
        ]

    def test_swap_makes_intervals_of_both_models(self):
        self.swap()
        self.assertEqual(
            self.told(),
            [
                ("hen", "ready", "01Z", "10Z", "", None),
                ("hen", "stopping", "10Z", "11Z", "evicted for owl", 7),
                ("owl", "starting", "11Z", "13Z", "request", 7),
                ("owl", "ready", "13Z", "", "request", 7),
            ],
        )

    def test_trigger_and_exit_code_of_a_swap_are_kept(self):
        self.tell(1, SwapBegan(1, "owl", (), "", 0.0, "request:17"))
        self.tell(2, SwapBegan(2, "hen", (), "", 0.0, "preload"))
        self.tell(3, SwapBegan(3, "jay", (), "", 0.0))
        self.tell(4, SwapEnded(2, "hen", "no", 0.0, {}, -9))
        jay, hen, owl = self.history.swaps()
        self.assertEqual(owl.trigger, SwapOrigin("request", "17"))
        self.assertEqual((hen.trigger, jay.trigger), (SwapOrigin("preload"), SwapOrigin("unknown")))
        self.assertEqual((hen.exit_code, owl.exit_code), (-9, None))

    def test_interval_of_a_stopping_server_has_the_reason(self):
        self.tell(1, StateChanged("hen", "stopped", "ready"))
        self.tell(2, StateChanged("hen", "ready", "stopping", "idle"))
        self.assertEqual(self.told()[-1][4], "idle")

    def test_residency_lists_intervals_that_overlap_the_span(self):
        self.swap()
        self.assertEqual([part[:2] for part in self.told(since=12.0)], [("owl", "starting"), ("owl", "ready")])
        self.assertEqual([part[:2] for part in self.told(until=5.0)], [("hen", "ready")])

    def test_successful_swap_has_its_phases(self):
        self.swap()
        self.tell(13, SwapEnded(7, "owl", None, 0.0, {"queued": 2.0, "stop": 1.0, "start": 2.0}))
        (swap,) = self.history.swaps()
        self.assertEqual((swap.id, swap.model, swap.evicted, swap.error), (7, "owl", ["hen"], None))
        self.assertEqual(
            [(phase.name, phase.start[17:], phase.end[17:]) for phase in swap.phases],
            [("queued", "08Z", "10Z"), ("stop", "10Z", "11Z"), ("start", "11Z", "13Z")],
        )
        self.assertEqual(self.history.swap(7), evolve(swap, log_tail=""))
        self.assertIsNone(self.history.swap(8))

    def test_failed_swap_keeps_the_end_of_the_log(self):
        self.swap()
        self.log.write(b"x" * 9000 + b"last line")
        self.tell(13, SwapEnded(7, "owl", "exited", 0.0, {}))
        swap = self.history.swap(7)
        self.assertEqual((swap.error, len(swap.log_tail)), ("exited", 4096))
        self.assertTrue(swap.log_tail.endswith("last line"))

    def test_failed_swap_keeps_only_its_own_part_of_the_log(self):
        self.log.write(b"an earlier load failed\n")
        for number, text in ((7, b"no such file\n"), (8, b"")):
            self.tell(10, SwapBegan(number, "owl", (), "request", 0.0))
            self.log.write(text)
            self.tell(13, SwapEnded(number, "owl", "exited", 0.0, {}))
            self.assertEqual(self.history.swap(number).log_tail, text.decode())

    def test_states_after_a_swap_are_not_attributed_to_it(self):
        self.swap()
        self.tell(13, SwapEnded(7, "owl", None, 0.0))
        self.tell(20, StateChanged("owl", "ready", "stopping"))
        self.assertEqual(self.told()[-1][4:], ("", None))

    def test_clock_set_back_makes_no_negative_interval(self):
        self.tell(10, StateChanged("hen", "stopped", "ready"))
        self.tell(5, StateChanged("hen", "ready", "stopped"))
        self.assertEqual(self.told()[0][2:4], ("10Z", "10Z"))

    def test_intervals_and_swaps_are_bounded(self):
        self.patch(module, "MAX_INTERVALS", 3)
        self.patch(module, "MAX_SWAPS", 2)
        self.make()
        for number in range(10):
            self.tell(number, SwapBegan(number, "owl", (), "r", 0.0))
            self.tell(number, StateChanged("owl", "stopped", "ready"))
            self.tell(number, StateChanged("owl", "ready", "stopped"))
        self.assertEqual((len(self.history.residency()), len(self.history.swaps())), (3, 2))
        self.assertEqual([swap.id for swap in self.history.swaps(1)], [9])
