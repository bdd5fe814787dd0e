"""Who goes for whom: groups, and the matrix as a policy."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import Group
from llamaswap.config.matrix import compile_sets
from llamaswap.config.schema.routing import ROUTERS
from llamaswap.scheduling.policies import POLICIES
from llamaswap.scheduling.policies.groups import DEFAULT_GROUP, GroupEviction
from llamaswap.scheduling.policies.matrix import MatrixEviction


def groups(**members: Group) -> GroupEviction:
    return GroupEviction(members)


class GroupTests(SynchronousTestCase):
    def test_models_of_no_group_replace_one_another(self) -> None:
        """core V67"""
        evict = groups()
        self.assertEqual(evict("a", ("b", "c")), ("b", "c"))
        self.assertIn(DEFAULT_GROUP, evict.explain("a", ("b",)))

    def test_members_of_a_group_that_does_not_swap_live_together(self) -> None:
        """core V61"""
        evict = groups(g1=Group(members=("a", "b")), g2=Group(swap=False, exclusive=False, members=("c", "d")))
        self.assertEqual(evict("c", ("a",)), ())
        self.assertEqual(evict("d", ("a", "c")), ())
        self.assertEqual(evict("b", ("a", "c", "d")), ("a", "c", "d"))

    def test_persistent_shields_from_other_groups_only(self) -> None:
        """core V63"""
        evict = groups(keep=Group(persistent=True, members=("f", "g")), other=Group(members=("a",)))
        self.assertEqual(evict("a", ("f",)), ())
        self.assertEqual(evict("g", ("f",)), ("f",))

    def test_a_target_that_is_not_exclusive_leaves_other_groups_alone(self) -> None:
        evict = groups(shy=Group(exclusive=False, members=("a", "b")), loud=Group(members=("c",)))
        self.assertEqual(evict("a", ("b", "c")), ("b",))
        self.assertEqual(evict("c", ("a",)), ("a",))

    def test_three_kinds_of_groups_side_by_side(self) -> None:
        """config T109"""
        evict = groups(
            fast=Group(swap=False, exclusive=False, members=("ant", "bee")),
            keep=Group(persistent=True, swap=False, exclusive=False, members=("cat",)),
            pair=Group(members=("elk", "fox")),
        )
        self.assertEqual(evict("dog", ("ant", "cat")), ("ant",))
        self.assertEqual(evict("ant", ("dog",)), ())
        self.assertEqual(evict("bee", ("ant",)), ())
        self.assertEqual(evict("elk", ("fox",)), ("fox",))

    def test_what_left_the_configuration_counts_as_ungrouped(self) -> None:
        evict = groups(g=Group(members=("a",)))
        self.assertEqual(evict("a", ("gone",)), ("gone",))

    def test_it_says_why(self) -> None:
        evict = groups(g=Group(members=("a",)), h=Group(swap=False, exclusive=False, members=("b",)))
        self.assertEqual(evict.explain("a", ()), "group g (swap, exclusive)")
        self.assertEqual(evict.explain("b", ()), "group h")


class MatrixTests(SynchronousTestCase):
    def test_the_matrix_decides_and_says_why(self) -> None:
        evict = MatrixEviction(compile_sets([("one", "a & b"), ("two", "a & c")], {}, "abcd", {"c": 3}))
        self.assertEqual(evict("a", ("b", "c")), ("b",))
        self.assertEqual(evict.explain("a", ("b", "c")), "matrix set two (a & c) with a, c, cost 1")
        self.assertEqual(evict.explain("d", ("b",)), "matrix: in no set, runs alone")


class PoliciesTests(SynchronousTestCase):
    def test_every_policy_that_the_configuration_accepts_is_registered(self) -> None:
        self.assertEqual(tuple(POLICIES), ROUTERS)
