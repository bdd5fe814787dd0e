from twisted.trial.unittest import TestCase

from llamaswap.version import Build
from llamaswap.web.app import make_site
from llamaswap.web.surface import gate_of, make_surface
from tests.web.doubles import Client, Echo, FakeFleet, World, with_keys


class SurfaceTests(TestCase):
    def test_every_group_of_the_table_is_there_and_the_gate_follows_the_configuration(self):
        world = World(FakeFleet(with_keys("k")))
        surface = make_surface(
            router=world.fleet,
            bus=world.bus,
            clock=world.clock,
            wall=lambda: 1.0,
            build=Build("9"),
            gate=gate_of(world.fleet),
            book=world.book,
            inflight=world.inflight,
            activity=world.activity,
            captures=world.captures,
            machine=world.machine,
            hardware=lambda: None,
            meters=lambda: b"",
            history=world.history,
            files=world.files,
            model_routes=Echo(b"m"),
            passthrough=Echo(b"u"),
            comfyui=Echo(b"c"),
        )
        site = make_site(surface.admin, clock=world.clock)

        def ask(path):
            client = Client(site, path, headers=[("x-api-key", "k")])
            answer = client.answer()
            client.leave()
            return answer

        self.assertEqual(Client(site, "/running").answer().status, 401)
        for route in (
            "/running",
            "/v1/models",
            "/api/events",
            "/api/config/status",
            "/api/loadtest",
            "/api/openapi.json",
        ):
            self.assertEqual(ask(route).status, 200, route)
        expected = {"performance": True, "hardware": False, "captures": True, "store": False}
        self.assertEqual(ask("/api/features").json, {**expected, "config_edit": False, "loadtest": False})
        stream = Client(site, "/logs/stream", headers=[("x-api-key", "k")])
        surface.close()
        self.assertTrue(stream.answer().ended)
