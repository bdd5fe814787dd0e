"""The eviction policies: groups and the matrix."""

from __future__ import annotations

from attrs import fields
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import Group
from llamaswap.config.matrix import compile_sets
from llamaswap.config.policies import POLICIES, RouterSettings
from llamaswap.config.policies.groups import DEFAULT_GROUP, GroupEviction
from llamaswap.config.policies.matrix import MatrixEviction
from tests.config.loading import ABC, LoadCase


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

    def test_persistent_group_is_protected_from_other_groups_only(self) -> None:
        """core V63"""
        evict = groups(keep=Group(persistent=True, members=("f", "g")), other=Group(members=("a",)))
        self.assertEqual(evict("a", ("f",)), ())
        self.assertEqual(evict("g", ("f",)), ("f",))

    def test_target_of_a_group_that_is_not_exclusive_evicts_no_other_groups(self) -> None:
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

    def test_model_that_left_the_configuration_counts_as_ungrouped(self) -> None:
        evict = groups(g=Group(members=("a",)))
        self.assertEqual(evict("a", ("gone",)), ("gone",))

    def test_group_policy_explains_its_answer(self) -> None:
        evict = groups(g=Group(members=("a",)), h=Group(swap=False, exclusive=False, members=("b",)))
        self.assertEqual(evict.explain("a", ()), "group g (swap, exclusive)")
        self.assertEqual(evict.explain("b", ()), "group h")


class MatrixTests(SynchronousTestCase):
    def test_matrix_policy_decides_and_explains_its_answer(self) -> None:
        evict = MatrixEviction(compile_sets([("one", "a & b"), ("two", "a & c")], {}, "abcd", {"c": 3}))
        self.assertEqual(evict("a", ("b", "c")), ("b",))
        self.assertEqual(evict.explain("a", ("b", "c")), "matrix set two (a & c) with a, c, cost 1")
        self.assertEqual(evict.explain("d", ("b",)), "matrix: in no set, runs alone")


class PoliciesTests(SynchronousTestCase):
    def test_each_policy_has_a_field_for_its_settings(self) -> None:
        self.assertEqual({policy.section for policy in POLICIES.values()}, {one.name for one in fields(RouterSettings)})

    def test_policy_says_why_targets_of_a_selector_conflict(self) -> None:
        evict = groups(pair=Group(members=("a", "b")), both=Group(swap=False, members=("c", "d")))
        self.assertIn("must have swap: false", evict.conflict(("a", "b")))
        self.assertIn("share one group", evict.conflict(("a", "c")))
        self.assertIn("e is not in a group", evict.conflict(("c", "e")))
        self.assertEqual(evict.conflict(("c", "d")), "")
        matrix = MatrixEviction(compile_sets([("one", "a & b")], {}, "abc", {}))
        self.assertEqual(matrix.conflict(("a", "b")), "")
        self.assertIn("a, c are not in one", matrix.conflict(("a", "c")))


class CheckTests(LoadCase):
    def test_faulty_matrix_does_not_hide_faults_of_selectors_and_profiles(self) -> None:
        text = ABC + "matrix: {sets: {one: ant & nope}}\nselectors: {s: {strategy: warm, targets: [ghost]}}\n"
        self.err(text + "profiles: {p: {pins: {}}}", "'nope'", "'ghost'", "profile 'p'", thorough=True)
