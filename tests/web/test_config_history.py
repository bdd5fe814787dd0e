import json
import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.observe.log_format import local_time, rfc3339
from llamaswap.web.config_history import ConfigHistory, VersionSource


class VersionsTests(SynchronousTestCase):
    def setUp(self):
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.path = self.folder / "config.yaml"
        self.now = 1000.0

    def versions(self, **bounds):
        return ConfigHistory(self.path, lambda: self.now, **bounds)

    def like(self, mode=0o600):
        """The status of a configuration file with this mode."""
        self.path.touch()
        self.path.chmod(mode)
        return self.path.stat()

    def keep(self, versions, *texts, mode=0o600):
        for text in texts:
            self.now += 1
            versions.keep(text.encode(), self.like(mode), VersionSource("saved"))

    def test_versions_stand_newest_first_with_their_facts(self):
        versions = self.versions()
        versions.keep(b"one", self.like(), VersionSource("found"))
        self.now += 5
        versions.keep(b"two", self.like(), VersionSource("restored", "10.0.0.7", "x" * 999, "earlier"))
        two, one = versions.all()
        self.assertEqual((one.time, one.size, one.why), (rfc3339(local_time(1000.0)), 3, "found"))
        self.assertEqual((two.why, two.restored_from, two.address), ("restored", "earlier", "10.0.0.7"))
        self.assertEqual((two.time, len(two.agent)), (rfc3339(local_time(1005.0)), 200))
        self.assertEqual(versions.read(two.id), b"two")

    def test_the_same_text_again_is_one_version_and_a_text_that_returned_is_another(self):
        versions = self.versions()
        self.keep(versions, "one", "one", "two", "one")
        self.assertEqual([versions.read(version.id) for version in versions.all()], [b"one", b"two", b"one"])

    def test_a_clock_that_was_turned_back_does_not_mix_the_order(self):
        versions = self.versions()
        self.keep(versions, "one")
        self.now -= 500
        self.keep(versions, "two")
        self.assertEqual(versions.read(versions.all()[0].id), b"two")

    def test_oldest_versions_are_removed_beyond_the_number(self):
        versions = self.versions(max_versions=3)
        self.keep(versions, *"abcdef")
        self.assertEqual([versions.read(version.id) for version in versions.all()], [b"f", b"e", b"d"])
        self.assertEqual(len(json.loads((versions.folder / "index.json").read_text())), 3)

    def test_oldest_versions_are_removed_beyond_the_size_but_never_the_last_two(self):
        versions = self.versions(max_bytes=10)
        self.keep(versions, "aaaa", "bbbb", "cccc")
        self.assertEqual([version.size for version in versions.all()], [4, 4])
        self.keep(versions, "d" * 50)
        self.assertEqual([version.size for version in versions.all()], [50, 4])

    def test_version_that_a_full_disk_cut_short_is_not_listed(self):
        versions = self.versions()
        self.keep(versions, "one")

        def full(descriptor):
            os.truncate(descriptor, 1)
            raise OSError(28, "No space left on device")

        patched = self.patch(os, "fsync", full)
        self.assertRaises(OSError, self.keep, versions, "two")
        patched.restore()
        self.assertEqual([versions.read(version.id) for version in versions.all()], [b"one"])

    def test_versions_are_readable_only_by_readers_of_the_file(self):
        versions = self.versions()
        self.keep(versions, "one", mode=0o640)
        [one] = versions.all()
        self.assertEqual(os.stat(versions.folder / one.id).st_mode & 0o777, 0o640)
        for folder in (versions.folder, versions.folder.parent):
            self.assertEqual(os.stat(folder).st_mode & 0o777, 0o700)

    def test_version_name_from_a_request_never_becomes_a_path(self):
        versions = self.versions()
        self.keep(versions, "one")
        self.path.write_text("secret")
        for name in ("../../config.yaml", "index.json", "", ".", versions.all()[0].id + "/../index.json"):
            self.assertIsNone(versions.read(name))

    def test_a_folder_that_leads_elsewhere_is_not_written_to(self):
        elsewhere = Path(self.mktemp())
        elsewhere.mkdir()
        (self.folder / ".llamaswap").symlink_to(elsewhere.resolve())
        self.assertRaises(OSError, self.keep, self.versions(), "one")
        self.assertRaises(OSError, self.keep, self.versions(), "one")

    def test_history_in_a_folder_that_others_may_write_to_is_refused_with_the_remedy(self):
        versions = self.versions()
        self.keep(versions, "one")
        versions.folder.chmod(0o770)
        error = self.assertRaises(OSError, self.keep, versions, "two")
        self.assertIn("can be written by other users and is not used; remove their right with chmod go-w", str(error))
        self.assertRaises(OSError, versions.all)
        self.assertEqual(len([name for name in os.listdir(versions.folder) if name != "index.json"]), 1)

    def test_history_keeps_the_mode_of_the_file_whatever_the_umask_is(self):
        previous = os.umask(0o077)
        self.addCleanup(os.umask, previous)
        versions = self.versions()
        self.keep(versions, "one", mode=0o644)
        [one] = versions.all()
        self.assertEqual(os.stat(versions.folder / one.id).st_mode & 0o777, 0o644)

    def test_version_that_the_index_does_not_know_is_listed(self):
        versions = self.versions()
        self.keep(versions, "one", "two")
        newest = versions.all()[0].id
        for damage in ("no json", "[]", json.dumps({newest: 7}), json.dumps({newest: {"why": 7}})):
            (versions.folder / "index.json").write_text(damage)
            self.assertEqual([version.why for version in versions.all()], ["unknown", "unknown"])
        self.keep(versions, "three")
        self.assertEqual([version.why for version in versions.all()], ["saved", "unknown", "unknown"])

    def test_missing_folder_has_no_versions(self):
        self.assertEqual(self.versions().all(), [])

    def test_newest_version_that_the_file_holds_is_in_force(self):
        versions = self.versions()
        self.keep(versions, "one", "two", "one")
        self.assertEqual([version.in_force for version in versions.beside(b"one")], [True, False, False])
        self.assertEqual([version.in_force for version in versions.beside(b"two")], [False, True, False])
        self.assertEqual([version.in_force for version in versions.beside(b"other")], [False, False, False])
