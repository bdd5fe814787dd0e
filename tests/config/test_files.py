"""Configuration files on disk."""

import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config.files import FileWatch, read_sources, store_problem
from llamaswap.errors import ConfigError


class Sources(SynchronousTestCase):
    def setUp(self):
        self.folder = Path(self.mktemp())
        self.folder.mkdir()

    def put(self, name, text="a: 1"):
        (self.folder / name).write_text(text)
        return str(self.folder / name)

    def test_the_file_goes_before_the_folder_in_byte_order(self):
        """config T141"""
        single = str(self.folder / "sub")
        os.mkdir(single)
        single = self.put("sub/single.yaml")
        self.put("b.yml"), self.put("a.yaml"), self.put("Z.yaml"), self.put("c.txt")
        found = [os.path.basename(source.path) for source in read_sources(single, str(self.folder))]
        self.assertEqual(found, ["single.yaml", "Z.yaml", "a.yaml", "b.yml"])

    def test_errors_name_what_is_missing(self):
        self.assertIn(
            "no configuration sources", str(self.assertRaises(ConfigError, read_sources, None, str(self.folder)))
        )
        path = self.put("a.yaml")
        self.assertIn("also present", str(self.assertRaises(ConfigError, read_sources, path, str(self.folder))))
        self.assertIn("-config-dir", str(self.assertRaises(ConfigError, read_sources, None, "/no/such")))
        self.assertIn("/no/such.yaml", str(self.assertRaises(ConfigError, read_sources, "/no/such.yaml", None)))

    def test_a_watched_file_fires_on_change_and_return_only(self):
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

    def test_a_file_that_is_just_being_written_anew_does_not_take_all_models_away(self):
        path = self.put("a.yaml")
        for watch in (FileWatch(path, None), FileWatch(None, str(self.folder))):
            watch.changed()
            self.put("a.yaml", "")
            self.assertFalse(watch.changed())
            self.put("a.yaml", "b: 2222")
            self.assertEqual([watch.changed(), watch.changed()], [True, False])

    def test_a_file_that_stays_empty_is_believed(self):
        watch = FileWatch(self.put("a.yaml"), str(self.folder))
        watch.changed()
        self.put("a.yaml", "")
        self.assertEqual([watch.changed(), watch.changed(), watch.changed()], [False, True, False])

    def test_a_new_file_that_is_empty_keeps_no_other_change_waiting(self):
        self.put("a.yaml")
        watch = FileWatch(None, str(self.folder))
        watch.changed()
        self.put("b.yaml", "")
        self.put("a.yaml", "b: 2222")
        self.assertTrue(watch.changed())

    def test_a_watched_folder_fires_for_its_kind_of_files(self):
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

    def test_a_store_needs_a_writable_place(self):
        self.assertEqual(store_problem(str(self.folder)), "is a directory")
        self.assertIsNone(store_problem(str(self.folder / "new.db")))
        self.assertIn("not writable", store_problem(str(self.folder / "no" / "new.db")))
