"""Bytes that many requests share."""

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.wire.byte_budget import ByteBudget


class ByteBudgetTests(SynchronousTestCase):
    def test_budget_never_gives_more_than_its_bound(self):
        budget = ByteBudget("memory", lambda used: 10)
        self.assertEqual([budget.take(6), budget.take(5), budget.take(4)], [True, False, True])
        budget.give_back(6)
        self.assertEqual((budget.used, budget.left), (4, 6))

    def test_full_budget_names_its_limit(self):
        budget = ByteBudget("disk", lambda used: 0, lambda: "folder /tmp")
        self.assertIn("disk (folder /tmp)", str(budget.full()))
