"""The activity table in a file that is locked, gone or corrupt."""

import os
import sqlite3
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.observe import store as store_module
from llamaswap.observe.file_store import RETRY_DELAY, FileStore
from llamaswap.observe.query import ActivityFilter, ActivityQuery
from tests.observe.test_store import row


class FileStoreTests(SynchronousTestCase):
    def setUp(self):
        self.patch(store_module, "LOCK_TIMEOUT", 0.01)
        self.path = os.path.abspath(self.mktemp())
        self.now = 0.0
        self.said, self.renumbered = [], []
        self.store = self.opened()

    def opened(self, keep=100):
        store = FileStore(
            self.path,
            keep,
            say=self.said.append,
            renumbered=lambda: self.renumbered.append(1),
            seconds=lambda: self.now,
            stamp=lambda: "20260102-030405",
        )
        self.addCleanup(store.close)
        return store

    def models(self, store=None):
        page = (store or self.store).ask(lambda table: table.page(ActivityQuery(descending=False)))
        return [(found.id, found.model) for found in page.rows]

    def lock(self):
        """Another program keeps the file to itself."""
        other = sqlite3.connect(self.path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        self.addCleanup(other.close)
        return other

    def in_file(self):
        """What the file holds, as another program sees it."""
        with sqlite3.connect(self.path) as other:
            found = other.execute("SELECT id, model_id FROM activity ORDER BY id").fetchall()
        other.close()
        return found

    def test_rows_are_in_the_file(self):
        self.store.insert([row("a"), row("b")])
        self.assertEqual(self.in_file(), [(1, "a"), (2, "b")])
        self.assertEqual((self.models(), self.store.problem, self.said), ([(1, "a"), (2, "b")], "", []))

    def test_locked_file_loses_no_row_and_questions_are_answered(self):
        self.store.insert([row("a")])
        other = self.lock()
        [late] = self.store.insert([row("b")])
        self.assertEqual((late.id, self.models()), (2, [(1, "a"), (2, "b")]))
        self.assertIn("locked", self.store.problem)
        self.assertEqual(len(self.said), 1)
        self.assertEqual(self.store.ask(lambda table: table.stats(ActivityFilter()))["total_requests"], 2)
        other.execute("ROLLBACK")
        self.store.insert([row("c")])
        self.assertEqual(self.in_file(), [(1, "a")])
        self.now += RETRY_DELAY
        self.store.insert([row("d")])
        self.assertEqual(self.in_file(), [(1, "a"), (2, "b"), (3, "c"), (4, "d")])
        self.assertEqual((self.store.problem, self.renumbered), ("", []))
        self.assertIn("in use again", self.said[1])

    def test_rows_get_other_ids_if_another_program_wrote_meanwhile(self):
        self.store.insert([row("a")])
        other = self.lock()
        self.store.insert([row("b")])
        other.execute(
            "INSERT INTO activity (ts_created, model_id, req_path, resp_content_type) VALUES (1, 'x', '', '')"
        )
        other.execute("COMMIT")
        self.now += RETRY_DELAY
        self.assertEqual(self.models(), [(1, "a"), (2, "x"), (3, "b")])
        self.assertEqual(self.renumbered, [1])

    def test_file_that_cannot_be_opened_is_used_later(self):
        self.path = os.path.join(self.path, "db")
        store = self.opened()
        store.insert([row("a")])
        self.assertEqual(self.models(store), [(1, "a")])
        self.assertIn("unable to open", store.problem)
        os.mkdir(os.path.dirname(self.path))
        self.now += RETRY_DELAY
        store.insert([row("b")])
        self.assertEqual(self.in_file(), [(1, "a"), (2, "b")])

    def test_corrupt_file_is_renamed_and_a_new_one_begins(self):
        Path(self.path).write_bytes(b"no database at all " * 1000)
        self.store.insert([row("a")])
        self.assertEqual((self.in_file(), self.models(), self.store.problem), ([(1, "a")], [(1, "a")], ""))
        aside = Path(f"{self.path}.corrupt-20260102-030405")
        self.assertTrue(aside.read_bytes().startswith(b"no database"))
        self.assertIn(str(aside), self.said[0])

    def test_file_that_becomes_corrupt_keeps_the_newest_rows(self):
        self.store.insert([row("a"), row("b")])
        self.store.close()
        Path(self.path).write_bytes(b"x" * 100_000)
        self.assertEqual(self.models(), [(1, "a"), (2, "b")])
        self.store.insert([row("c")])
        self.assertEqual(self.in_file(), [(1, "a"), (2, "b"), (3, "c")])

    def test_refused_question_does_not_mark_the_file_as_unusable(self):
        self.store.insert([row("a")])
        wanted = ActivityQuery(ActivityFilter(((" OR ".join(["id = 1"] * 2000), ()),)))
        with self.assertRaises(sqlite3.OperationalError):
            self.store.ask(lambda table: table.page(wanted))
        self.assertEqual((self.store.problem, self.said), ("", []))

    def test_memory_is_bounded_while_the_file_is_locked(self):
        store = self.opened(keep=3)
        store.insert([row("a")])
        self.lock()
        for number in range(10):
            store.insert([row(f"m{number}")])
        self.assertEqual([model for _, model in self.models(store)], ["m7", "m8", "m9"])

    def test_rows_lost_at_the_end_are_logged(self):
        self.store.insert([row("a")])
        self.lock()
        self.store.insert([row("b")])
        self.store.close()
        self.assertIn("1 rows of activity are lost", self.said[-1])
