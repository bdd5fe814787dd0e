"""The folder of what outlasts a restart, and the environment of Ray's processes."""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.cluster.ray_node import ClusterFolder, NotInitialized, environment


class ClusterFolderTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = ClusterFolder(Path(self.mktemp()))

    def test_number_of_a_front_is_greater_than_before_although_the_clock_was_set_back(self) -> None:
        self.assertEqual([self.folder.next_front(now) for now in (100, 50, 60, 200)], [100, 101, 102, 200])

    def test_damaged_token_is_an_error_that_says_what_to_do(self) -> None:
        for text in (b"", b"short", b"\xff" * 40, b"t" * 20 + b"\0"):
            self.folder.prepare()
            self.folder.token_file.write_bytes(text)
            error = self.assertRaises(NotInitialized, self.folder.token)
            self.assertIn(f"{self.folder.token_file} does not hold a token: delete it", str(error))
            self.assertRaises(NotInitialized, self.folder.keep_token)
        self.assertEqual(self.folder.keep_token("t" * 20), "t" * 20)
        self.assertFalse(self.folder.is_exposed())
        self.folder.token_file.chmod(0o640)
        self.assertTrue(self.folder.is_exposed())

    def test_file_that_cannot_be_written_leaves_nothing_in_the_folder(self) -> None:
        (self.folder.path / "known.json").mkdir(parents=True)
        for _ in range(2):
            self.assertRaises(OSError, self.folder.write, "known.json", "{}")
        self.assertEqual([one.name for one in self.folder.path.iterdir()], ["known.json"])

    def test_token_of_join_does_not_reach_the_servers_of_models(self) -> None:
        given = {"LLAMASWAP_HOSTS_TOKEN": "secret", "RAY_AUTH_TOKEN": "secret", "HOME": "/home/user"}
        made = environment(given, self.folder)
        self.assertEqual(made["HOME"], "/home/user")
        self.assertNotIn("secret", made.values())
