from twisted.trial.unittest import TestCase

from llamaswap.version import Build
from tests.web.doubles import FakeMachine, World, envelope


class SystemTests(TestCase):
    def test_build_is_served(self):
        expected = {"version": "9", "commit": "abcd1234", "build_date": "unknown"}
        self.assertEqual(World().ask("/api/version").json, expected)

    def test_the_version_between_two_releases_is_one_that_clients_can_compare(self):
        """Open WebUI makes integers of the parts, without what follows a hyphen."""
        for version, shown in (("0.2.1.dev7", "0.2.1-dev7"), ("0.2.0rc1", "0.2.0-rc1"), ("0.2.0", "0.2.0"), ("0", "0")):
            world = World(build=Build(version))
            self.assertEqual(world.ask("/api/version").json["version"], shown)

    def test_machine_without_sampling_has_no_samples(self):
        """http T163, core V112"""
        world = World(machine=FakeMachine(enabled=False))
        answer = world.ask("/api/performance")
        self.assertEqual((answer.status, answer.json), (503, {"enabled": False}))
        answer = world.ask("/metrics")
        self.assertEqual((answer.status, answer.body), (503, b"# performance monitor not available\n"))

    def test_request_metrics_are_served_without_sampling_of_the_machine(self):
        world = World(machine=FakeMachine(enabled=False), page=b"llamaswap_requests_total 1\n")
        self.assertEqual(world.ask("/metrics").status, 200)

    def test_samples_are_served_from_a_given_time(self):
        """http T164"""
        world = World()
        nothing = {"enabled": True, "sys_stats": None, "gpu_stats": None}
        self.assertEqual(world.ask("/api/performance").json, nothing)
        self.assertEqual(world.ask("/api/performance?after=2026-01-01T00:00:00Z&max_points=5").json["sys_stats"], [])
        self.assertEqual(world.machine.asked, [(None, None), (1767225600.0, 5)])
        answer = world.ask("/api/performance?after=x")
        message = "invalid 'after' timestamp, use RFC3339 format"
        self.assertEqual((answer.status, answer.json), (400, envelope(400, message)))
        self.assertEqual(world.ask("/api/performance?max_points=0").status, 400)

    def test_metrics_are_a_page_for_prometheus(self):
        answer = World().ask("/metrics")
        self.assertEqual((answer.status, answer.body), (200, b""))
        self.assertEqual(answer.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8")

    def test_hardware_is_a_snapshot_or_unavailable(self):
        answer = World().ask("/api/hardware")
        self.assertEqual((answer.status, answer.json), (503, envelope(503, "hardware detection unavailable")))
        self.assertEqual(World(hardware={"schema_version": 1}).ask("/api/hardware").json, {"schema_version": 1})

    def test_an_upgrade_in_place_can_be_followed(self):
        self.assertEqual(World().ask("/api/upgrade").status, 200)

    def test_features_are_small_switches(self):
        self.assertEqual(World().ask("/api/features").json, {"captures": True})
