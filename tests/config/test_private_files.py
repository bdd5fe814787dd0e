import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config.private_files import UnsafePath, create, private_folder


class PrivateFolderTests(SynchronousTestCase):
    def setUp(self):
        self.path = Path(self.mktemp())

    def opened(self, **how):
        with private_folder(self.path, **how) as folder:
            return folder.names()

    def test_folder_is_made_for_our_user_alone(self):
        self.assertEqual(self.opened(make=True), [])
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o700)

    def test_folders_above_a_made_one_cannot_be_changed_by_other_users_without_a_umask(self):
        self.addCleanup(os.umask, os.umask(0))
        self.path = self.path / "state" / "llamaswap"
        self.opened(make=True)
        above = [folder.stat().st_mode & 0o777 for folder in (self.path, self.path.parent, self.path.parent.parent)]
        self.assertEqual(above, [0o700, 0o755, 0o755])

    def test_folder_of_another_user_is_refused_with_what_is_wrong_and_what_to_do(self):
        self.opened(make=True)
        other = os.geteuid() + 1
        error = self.assertRaises(UnsafePath, self.opened, uid=other)
        self.assertIn(f"{self.path} belongs to user {os.geteuid()}, not to user {other} and is not used", str(error))
        self.assertIn(f"delete it, or give it to the user that runs llamaswap (chown {other})", str(error))

    def test_link_to_a_folder_is_followed_only_where_links_are_allowed_and_ours(self):
        target = Path(self.mktemp())
        target.mkdir(mode=0o700)
        self.path.symlink_to(target.resolve())
        self.assertRaises(UnsafePath, self.opened)
        self.assertEqual(self.opened(links=True), [])

    def test_file_of_another_user_is_not_read(self):
        with private_folder(self.path, make=True) as folder:
            folder.write("record", b"x")
            self.assertEqual(folder.read("record"), b"x")
        other = os.geteuid() + 1
        # The folder is ours again for `other` only in the check of the file.
        with private_folder(self.path) as folder:
            stranger = type(folder)(folder.path, folder.descriptor, other)
            self.assertRaises(UnsafePath, stranger.read, "record")

    def test_fifo_in_place_of_a_file_neither_blocks_nor_is_read(self):
        with private_folder(self.path, make=True) as folder:
            os.mkfifo(self.path / "record")
            self.assertRaises(UnsafePath, folder.read, "record")

    def test_failed_write_leaves_the_old_content_and_no_rest(self):
        with private_folder(self.path, make=True) as folder:
            (self.path / "record").mkdir()
            self.assertRaises(OSError, folder.write, "record", b"x")
            self.assertEqual(folder.names(), ["record"])


class CreateTests(SynchronousTestCase):
    def test_file_takes_the_mode_of_another_and_never_a_wider_one(self):
        like, path = Path(self.mktemp()), Path(self.mktemp())
        like.touch()
        like.chmod(0o640)
        create(path, b"x", like.stat())
        self.assertEqual(path.stat().st_mode & 0o777, 0o640)
        create(path, b"x")
        self.assertEqual(path.stat().st_mode & 0o777, 0o600)

    def test_group_that_cannot_be_given_gets_no_right(self):
        like, path = Path(self.mktemp()), Path(self.mktemp())
        like.touch()
        like.chmod(0o640)

        def refuse(*_):
            raise PermissionError(1, "Operation not permitted")

        self.patch(os, "fchown", refuse)
        found = list(like.stat())
        found[5] += 1  # another group
        create(path, b"x", os.stat_result(found))
        self.assertEqual(path.stat().st_mode & 0o777, 0o600)
