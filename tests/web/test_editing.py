from twisted.trial.unittest import TestCase

from llamaswap.bus import ConfigRejected, ConfigReloaded
from llamaswap.errors import ConfigError, Problem
from llamaswap.web.editing import Checked
from tests.web.doubles import FakeFiles, FakeFleet, World, with_keys

TEXT = "apiKeys: [k-secret]\npeers:\n  a: {proxy: x}\n  b:\n    apiKey: one-1\n  c:\n    apiKey: two-2\n"
KEY = [("x-api-key", "k-secret")]


class ShowTests(TestCase):
    def test_the_text_is_shown_with_masked_secrets_and_a_tag(self):
        world = World(FakeFleet(with_keys("k-secret")), files=FakeFiles(TEXT))
        answer = world.ask("/api/config", headers=KEY)
        for secret in ("k-secret", "one-1", "two-2"):
            self.assertNotIn(secret, answer.text)
        self.assertEqual(answer.headers["content-type"], "application/yaml; charset=utf-8")
        again = world.ask("/api/config", headers=[*KEY, ("If-None-Match", answer.headers["etag"])])
        self.assertEqual(again.status, 304)

    def test_schema_and_status_are_told(self):
        world = World()
        self.assertIn("properties", world.ask("/api/config/schema").json)
        self.assertEqual(world.ask("/api/config/status").json["result"], "started")
        world.bus.publish(ConfigRejected("line 3"))
        status = world.ask("/api/config/status").json
        self.assertEqual((status["result"], status["message"]), ("rejected", "line 3"))
        world.bus.publish(ConfigReloaded(added=("x",)))
        self.assertEqual(world.ask("/api/config/status").json["touched"]["added"], ["x"])


class CheckTests(TestCase):
    def test_a_good_text_tells_what_it_would_touch(self):
        world = World(files=FakeFiles(answer=Checked((Problem("odd"),), ("new",), ("old",), ("same",))))
        answer = world.ask("/api/config/validate", "POST", body=b"models: {}")
        self.assertTrue(answer.json["valid"])
        self.assertEqual(answer.json["impact"], {"restart": ["same"], "add": ["new"], "remove": ["old"]})
        self.assertEqual(answer.json["warnings"][0]["message"], "odd")

    def test_a_bad_text_tells_where(self):
        error = ConfigError([Problem("no", "models.x.cmd", "f.yaml", 3)])
        world = World(files=FakeFiles(answer=error))
        [problem] = world.ask("/api/config/validate", "POST", body=b"x").json["errors"]
        self.assertEqual((problem["path"], problem["line"], problem["message"]), ("models.x.cmd", 3, "no"))
        self.assertEqual(world.ask("/api/config/validate", "POST", body=b"\xff").status, 400)


class ReplaceTests(TestCase):
    def world(self, **more):
        return World(FakeFleet(with_keys("k-secret")), files=FakeFiles(TEXT, editable=True, **more))

    def put(self, world, body, tag):
        return world.ask("/api/config", "PUT", [*KEY, ("If-Match", tag)], body)

    def test_it_needs_the_operators_word(self):
        world = World()
        self.assertEqual(world.ask("/api/config", "PUT", body=b"models: {}").status, 403)
        self.assertEqual(world.files.written, [])

    def test_an_edit_of_an_old_text_is_refused(self):
        world = self.world()
        self.assertEqual(world.ask("/api/config", "PUT", KEY, b"x").status, 428)
        self.assertEqual(self.put(world, b"x", '"other"').status, 412)
        self.assertEqual(world.files.written, [])

    def test_masked_secrets_come_back_in_their_places(self):
        world = self.world()
        shown = world.ask("/api/config", headers=KEY)
        edited = shown.text.replace("proxy: x", "proxy: y").encode()
        answer = self.put(world, edited, shown.headers["etag"])
        self.assertEqual(answer.status, 200)
        self.assertEqual(world.files.written, [TEXT.replace("proxy: x", "proxy: y")])
        self.assertNotEqual(answer.headers["etag"], shown.headers["etag"])

    def test_a_mask_that_is_not_ours_is_refused(self):
        world = self.world()
        tag = world.ask("/api/config", headers=KEY).headers["etag"]
        self.assertEqual(self.put(world, b"peers:\n  z:\n    other: ***\n", tag).status, 400)

    def test_a_text_that_cannot_be_loaded_is_not_written(self):
        world = self.world(answer=ConfigError([Problem("no")]))
        tag = world.ask("/api/config", headers=KEY).headers["etag"]
        self.assertEqual(self.put(world, b"x", tag).status, 422)
        self.assertEqual(world.files.written, [])
