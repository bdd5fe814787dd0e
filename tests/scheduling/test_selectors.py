"""Which target a selector chooses."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import Selector
from llamaswap.config.schema.routing import SelectorSettings
from llamaswap.errors import NoTarget
from llamaswap.scheduling.selectors import Chooser


def selector(strategy: str, *targets: str, spillover: int = 1) -> Selector:
    return Selector("pub", strategy, targets, SelectorSettings(spillover))


def states(**known: str):
    """Targets with a slash belong to peers; local ones are stopped unless said otherwise."""
    return lambda target: None if "/" in target else known.get(target, "stopped")


class PinAndWarmTests(SynchronousTestCase):
    def test_pin_chooses_the_first_target_as_written(self) -> None:
        """core V85"""
        choice = Chooser().choose(selector("pin", "alias-a", "b"), states(b="ready"))
        self.assertEqual((choice.target, choice.others), ("alias-a", ("b",)))

    def test_warm_prefers_a_ready_target_then_a_starting_one_then_the_first(self) -> None:
        """core V80, http T076"""
        three = selector("warm", "a", "b", "c")
        chooser = Chooser()
        self.assertEqual(chooser.choose(three, states(a="starting", c="ready")).target, "c")
        self.assertEqual(chooser.choose(three, states(b="ready", c="ready")).target, "b")
        self.assertEqual(chooser.choose(three, states(a="starting", b="starting")).target, "a")
        self.assertEqual(chooser.choose(three, states()).target, "a")

    def test_other_targets_follow_in_order_of_preference(self) -> None:
        choice = Chooser().choose(selector("warm", "a", "b", "c"), states(b="starting", c="ready"))
        self.assertEqual((choice.target, choice.others), ("c", ("b", "a")))


class FailoverTests(SynchronousTestCase):
    def test_failover_keeps_the_written_order_whatever_is_loaded(self) -> None:
        choice = Chooser().choose(selector("failover", "rem/x", "a", "b"), states(b="ready"))
        self.assertEqual((choice.target, choice.others), ("rem/x", ("a", "b")))


class SpilloverTests(SynchronousTestCase):
    def test_stopped_targets_are_loaded_one_by_one(self) -> None:
        """core V81"""
        three = selector("spillover", "a", "b", "c", spillover=2)
        chooser = Chooser()
        targets = [chooser.choose(three, states()).target for _ in range(5)]
        self.assertEqual(targets, ["a", "a", "b", "b", "c"])

    def test_least_busy_ready_target_is_chosen(self) -> None:
        """core V81"""
        three = selector("spillover", "a", "b", "c", spillover=2)
        chooser = Chooser()
        ready = states(a="ready", b="ready", c="ready")
        targets = [chooser.choose(three, ready).target for _ in range(6)]
        self.assertEqual(targets, ["a", "b", "c", "a", "b", "c"])

    def test_peer_targets_count_as_inactive_once_their_requests_ended(self) -> None:
        """core V84"""
        two = selector("spillover", "rem/x", "rem/y")
        chooser = Chooser()
        first, second = chooser.choose(two, states()), chooser.choose(two, states())
        self.assertEqual((first.target, second.target), ("rem/x", "rem/y"))
        first.release()
        second.release()
        second.release()
        self.assertEqual(chooser.choose(two, states()).target, "rem/x")
        self.assertEqual(chooser.count("pub", "rem/y"), 0)

    def test_stopping_targets_are_passed_over(self) -> None:
        """http T075"""
        two = selector("spillover", "a", "b")
        self.assertEqual(Chooser().choose(two, states(a="stopping")).target, "b")
        with self.assertRaises(NoTarget) as caught:
            Chooser().choose(two, states(a="stopping", b="shutdown"))
        self.assertEqual(caught.exception.selector, "pub")
        self.assertEqual(str(caught.exception), 'selector "pub" has no available spillover targets')

    def test_least_busy_target_is_shared_if_all_are_full(self) -> None:
        two = selector("spillover", "a", "b")
        chooser = Chooser()
        ready = states(a="ready", b="ready")
        held = [chooser.choose(two, ready) for _ in range(4)]
        self.assertEqual([choice.target for choice in held], ["a", "b", "a", "b"])
        held[1].release()
        self.assertEqual(chooser.choose(two, ready).target, "b")

    def test_equally_busy_targets_take_turns(self) -> None:
        """http T075"""
        two = selector("spillover", "a", "b")
        chooser = Chooser()
        targets = []
        for _ in range(4):
            choice = chooser.choose(two, states(a="ready", b="ready"))
            targets.append(choice.target)
            choice.release()
        self.assertEqual(targets, ["a", "b", "a", "b"])

    def test_each_selector_counts_its_own_requests(self) -> None:
        chooser = Chooser()
        chooser.choose(selector("spillover", "a", "b"), states())
        other = Selector("own", "spillover", ("a", "b"), SelectorSettings(1))
        self.assertEqual(chooser.choose(other, states()).target, "a")
