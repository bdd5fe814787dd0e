"""Configuration files on disk."""

import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config.files import FileWatch, read_sources, store_problem
from llamaswap.errors import ConfigError


class SourceTests(SynchronousTestCase):
    def setUp(self):
        self.folder = Path(self.mktemp())
        self.folder.mkdir()

    def put(self, name, text="a: 1"):
        (self.folder / name).write_text(text)
        return str(self.folder / name)

    def test_file_comes_before_the_folder_in_byte_order(self):
        """config T141"""
        single = str(self.folder / "sub")
        os.mkdir(single)
        single = self.put("sub/single.yaml")
        self.put("b.yml"), self.put("a.yaml"), self.put("Z.yaml"), self.put("c.txt")
        found = [os.path.basename(source.path) for source in read_sources(single, str(self.folder))]
        self.assertEqual(found, ["single.yaml", "Z.yaml", "a.yaml", "b.yml"])

    def test_error_names_the_missing_file(self):
        self.assertIn(
            "no configuration sources", str(self.assertRaises(ConfigError, read_sources, None, str(self.folder)))
        )
        path = self.put("a.yaml")
        self.assertIn("also present", str(self.assertRaises(ConfigError, read_sources, path, str(self.folder))))
        self.assertIn("-config-dir", str(self.assertRaises(ConfigError, read_sources, None, "/no/such")))
        self.assertIn("/no/such.yaml", str(self.assertRaises(ConfigError, read_sources, "/no/such.yaml", None)))

    def test_watched_file_counts_as_changed_on_change_and_return_only(self):
        """config T148"""
        path = self.put("a.yaml")
        watch = FileWatch(path, None)
        self.assertEqual([watch.changed(), watch.changed()], [False, False])
        status = os.stat(path)
        self.put("a.yaml", "longer: text")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        self.assertEqual([watch.changed(), watch.changed()], [True, False])
        os.remove(path)
        self.assertEqual([watch.changed(), watch.changed()], [False, False])
        self.put("a.yaml", "longer: text")
        self.assertEqual([watch.changed(), watch.changed()], [True, False])

    def test_file_that_is_being_rewritten_is_not_loaded_while_empty(self):
        path = self.put("a.yaml")
        for watch in (FileWatch(path, None), FileWatch(None, str(self.folder))):
            watch.changed()
            self.put("a.yaml", "")
            self.assertFalse(watch.changed())
            self.put("a.yaml", "b: 2222")
            self.assertEqual([watch.changed(), watch.changed()], [True, False])

    def test_file_that_stays_empty_is_loaded(self):
        watch = FileWatch(self.put("a.yaml"), str(self.folder))
        watch.changed()
        self.put("a.yaml", "")
        self.assertEqual([watch.changed(), watch.changed(), watch.changed()], [False, True, False])

    def test_new_empty_file_does_not_delay_other_changes(self):
        self.put("a.yaml")
        watch = FileWatch(None, str(self.folder))
        watch.changed()
        self.put("b.yaml", "")
        self.put("a.yaml", "b: 2222")
        self.assertTrue(watch.changed())

    def test_watched_folder_only_counts_configuration_files(self):
        """config T149"""
        self.put("a.yaml")
        watch = FileWatch(None, str(self.folder))
        watch.changed()
        self.put("b.yaml")
        self.assertTrue(watch.changed())
        self.put("b.txt")
        self.assertFalse(watch.changed())
        os.remove(self.folder / "b.yaml")
        self.assertTrue(watch.changed())
        os.remove(self.folder / "a.yaml")
        self.assertFalse(watch.changed())
        self.put("a.yaml")
        self.assertTrue(watch.changed())

    def test_store_needs_a_writable_place(self):
        self.assertEqual(store_problem(str(self.folder)), "is a directory")
        self.assertIsNone(store_problem(str(self.folder / "new.db")))
        self.assertIn("not writable", store_problem(str(self.folder / "no" / "new.db")))
