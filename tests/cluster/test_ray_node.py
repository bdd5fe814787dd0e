"""The folder of what outlasts a restart, and the environment of Ray's processes."""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.cluster.ray_node import ClusterFolder, environment


class ClusterFolderTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = ClusterFolder(Path(self.mktemp()))

    def test_number_of_a_front_is_greater_than_before_although_the_clock_was_set_back(self) -> None:
        self.assertEqual([self.folder.next_front(now) for now in (100, 50, 60, 200)], [100, 101, 102, 200])

    def test_token_of_join_does_not_reach_the_servers_of_models(self) -> None:
        given = {"LLAMASWAP_HOSTS_TOKEN": "secret", "RAY_AUTH_TOKEN": "secret", "HOME": "/home/user"}
        made = environment(given, self.folder)
        self.assertEqual(made["HOME"], "/home/user")
        self.assertNotIn("secret", made.values())
