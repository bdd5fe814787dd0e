import re
from http.client import responses

from twisted.internet.address import IPv4Address
from twisted.trial.unittest import TestCase

from llamaswap.errors import ConfigError, Problem
from llamaswap.events import ConfigRejected, ConfigReloaded
from llamaswap.web.config_api import MAX_CONFIG_BYTES
from llamaswap.web.configfile import Impact, ImpactModels, ProblemDocument
from tests.web.doubles import LOOPBACK, FakeFiles, World, example_router, with_keys

TEXT = "apiKeys: [k-secret]\npeers:\n  a: {proxy: x}\n  b:\n    apiKey: one-1\n  c:\n    apiKey: two-2\n"
KEY = [("x-api-key", "k-secret")]


class ShowTests(TestCase):
    def test_the_text_is_shown_with_masked_secrets_and_a_tag(self):
        world = World(example_router(with_keys("k-secret")), files=FakeFiles(TEXT))
        answer = world.ask("/api/config", headers=KEY)
        for secret in ("k-secret", "one-1", "two-2"):
            self.assertNotIn(secret, answer.text)
        self.assertEqual(answer.headers["content-type"], "application/yaml; charset=utf-8")
        again = world.ask("/api/config", headers=[*KEY, ("If-None-Match", answer.headers["etag"])])
        self.assertEqual(again.status, 304)

    def test_schema_and_reload_status_are_served(self):
        world = World()
        self.assertIn("properties", world.ask("/api/config/schema").json)
        self.assertEqual(world.ask("/api/config/status").json["result"], "started")
        world.bus.publish(ConfigRejected("line 3"))
        status = world.ask("/api/config/status").json
        self.assertEqual((status["result"], status["message"]), ("rejected", "line 3"))
        world.bus.publish(ConfigReloaded(added=("x",)))
        self.assertEqual(world.ask("/api/config/status").json["touched"]["added"], ["x"])


class CheckTests(TestCase):
    def test_validation_of_a_good_text_names_the_models_it_would_change(self):
        odd = ProblemDocument.of(Problem("odd"))
        world = World(files=FakeFiles(answer=Impact([odd], ImpactModels(["same"], ["new"], ["old"]))))
        answer = world.ask("/api/config/validate", "POST", body=b"models: {}")
        self.assertTrue(answer.json["valid"])
        self.assertEqual(answer.json["impact"], {"restart": ["same"], "add": ["new"], "remove": ["old"]})
        self.assertEqual(answer.json["warnings"][0]["message"], "odd")

    def test_validation_of_a_bad_text_names_the_place_of_the_mistake(self):
        error = ConfigError([Problem("no", "models.x.cmd", "f.yaml", 3)])
        world = World(files=FakeFiles(answer=error))
        [problem] = world.ask("/api/config/validate", "POST", body=b"x").json["errors"]
        self.assertEqual((problem["path"], problem["line"], problem["message"]), ("models.x.cmd", 3, "no"))
        self.assertEqual(world.ask("/api/config/validate", "POST", body=b"\xff").status, 400)

    def test_client_that_may_not_edit_learns_of_no_file_whether_it_exists(self):
        """Without keys a client on another machine gets 403 for an edit, but could ask about any path."""
        world = World(files=FakeFiles(editable=True))
        elsewhere = IPv4Address("TCP", "192.0.2.7", 50000)
        for peer in (elsewhere, LOOPBACK):
            world.ask("/api/config/validate", "POST", body=b"models: {}", peer=peer)
        with_key = World(example_router(with_keys("k-secret")), files=world.files)
        with_key.ask("/api/config/validate", "POST", KEY, b"models: {}", peer=elsewhere)
        self.assertEqual(world.files.looked, [False, True, True])

    def test_text_beyond_the_limit_is_refused_with_the_limit(self):
        answer = World().ask("/api/config/validate", "POST", body=b"#" * (MAX_CONFIG_BYTES + 1))
        self.assertEqual(answer.status, 413)
        self.assertIn(str(MAX_CONFIG_BYTES), answer.text)


class ReplaceTests(TestCase):
    def world(self, **more):
        return World(example_router(with_keys("k-secret")), files=FakeFiles(TEXT, editable=True, **more))

    def put(self, world, body, tag):
        return world.ask("/api/config", "PUT", [*KEY, ("If-Match", tag)], body)

    def test_edit_is_refused_unless_the_operator_allows_it(self):
        world = World()
        self.assertEqual(world.ask("/api/config", "PUT", body=b"models: {}").status, 403)
        self.assertEqual(world.files.written, [])

    def test_edit_of_an_old_text_is_refused(self):
        world = self.world()
        self.assertEqual(world.ask("/api/config", "PUT", KEY, b"x").status, 428)
        self.assertEqual(self.put(world, b"x", '"other"').status, 412)
        self.assertEqual(world.files.written, [])

    def test_status_line_of_a_refused_edit_has_the_reason_phrase(self):
        """twisted.web knows neither of these statuses: it wrote `428 Unknown Status`."""
        tag = self.world().ask("/api/config", headers=KEY).headers["etag"]
        for headers, status in ((KEY, 428), ([*KEY, ("If-Match", tag)], 422)):
            world = self.world(answer=ConfigError([Problem("broken")]))
            client = world.open("/api/config", "PUT", headers, b"x")
            self.assertEqual(client.received.partition(b"\r\n")[0].decode(), f"HTTP/1.1 {status} {responses[status]}")

    def test_tag_without_its_quotes_is_known(self):
        world = self.world()
        tag = world.ask("/api/config", headers=KEY).headers["etag"].strip('"')
        self.assertEqual(world.ask("/api/config", headers=[*KEY, ("If-None-Match", tag)]).status, 304)
        self.assertEqual(self.put(world, b"x", tag[1:]).status, 412)
        self.assertEqual(self.put(world, b"x", "").status, 412)
        self.assertEqual(self.put(world, b"models: {}", tag).status, 200)

    def test_a_tag_that_a_proxy_made_weak_or_put_among_others_is_known(self):
        """nginx does that where it compresses: every edit through it was refused as one of an old text."""
        world = self.world()
        tag = world.ask("/api/config", headers=KEY).headers["etag"]
        self.assertEqual(world.ask("/api/config", headers=[*KEY, ("If-None-Match", f'"x", W/{tag}')]).status, 304)
        self.assertEqual(self.put(world, b"x", 'W/"other"').status, 412)
        self.assertEqual(self.put(world, b"models: {}", f"W/{tag}").status, 200)
        self.assertEqual(world.files.written, ["models: {}"])

    def test_masked_secrets_come_back_in_their_places(self):
        world = self.world()
        shown = world.ask("/api/config", headers=KEY)
        edited = shown.text.replace("proxy: x", "proxy: y").encode()
        answer = self.put(world, edited, shown.headers["etag"])
        self.assertEqual(answer.status, 200)
        self.assertEqual(world.files.written, [TEXT.replace("proxy: x", "proxy: y")])
        self.assertNotEqual(answer.headers["etag"], shown.headers["etag"])

    COMMANDS = (
        "apiKeys: [k-secret]\nmodels:\n  a:\n    cmd: serve --api-key one-1 --port 1\n"
        "    # cmd: serve --api-key one-1\n"
        "  b:\n    cmd: serve --hf-token two-2\n  c:\n    cmd: serve --hf-token three-3\n"
    )

    def edited(self, old, new):
        """The status, and what is written, where one replaces this pattern in what was shown of the commands."""
        world = World(example_router(with_keys("k-secret")), files=FakeFiles(self.COMMANDS, editable=True))
        shown = world.ask("/api/config", headers=KEY)
        for secret in ("k-secret", "one-1", "two-2", "three-3"):
            self.assertNotIn(secret, shown.text)
        self.assertRegex(shown.text, old)
        answer = self.put(world, re.sub(old, new, shown.text, count=1).encode(), shown.headers["etag"])
        return answer.status, world.files.written

    def test_a_line_with_a_secret_can_be_edited_beside_it(self):
        self.assertEqual(
            self.edited(r"(--api-key \S+) --port 1", r"--verbose \1 --port 2"),
            (200, [self.COMMANDS.replace("--api-key one-1 --port 1", "--verbose --api-key one-1 --port 2")]),
        )

    def test_a_secret_in_a_comment_is_not_lost(self):
        self.assertEqual(self.edited("--port 1", "--port 1"), (200, [self.COMMANDS]))

    def test_secret_goes_with_its_line_where_two_entries_change_places(self):
        swapped = self.COMMANDS.replace("two-2", "x").replace("three-3", "two-2").replace("x", "three-3")
        self.assertEqual(
            self.edited(r"(serve --hf-token \S+)((?s:.*))(serve --hf-token \S+)", r"\3\2\1"), (200, [swapped])
        )

    def test_text_that_was_shown_before_another_client_saved_keeps_its_secrets(self):
        before = "apiKeys:\n  - key: k-secret\n    name: carl\n"
        now = "apiKeys:\n  - key: k-anna\n    name: anna\n  - key: k-secret\n    name: carl\n"
        world = World(example_router(with_keys("k-secret")), files=FakeFiles(before, editable=True))
        shown = world.ask("/api/config", headers=KEY)
        world.files.text = now
        tag = world.ask("/api/config", headers=KEY).headers["etag"]
        self.assertEqual(self.put(world, shown.body + b"# mine\n", tag).status, 200)
        self.assertEqual(world.files.written, [before + "# mine\n"])

    def test_mask_without_a_secret_behind_it_is_refused(self):
        for mask in (b"***", b"***0000abcd"):
            world = self.world()
            tag = world.ask("/api/config", headers=KEY).headers["etag"]
            answer = self.put(world, b"peers:\n  z:\n    other: " + mask + b"\n", tag)
            self.assertEqual(answer.status, 400)
            self.assertIn("line 3", answer.text)
            self.assertEqual(world.files.written, [])

    def test_stars_that_hide_nothing_are_saved(self):
        text = 'models:\n  a:\n    name: "*** best ***"\n'
        world = World(example_router(with_keys("k-secret")), files=FakeFiles(text, editable=True))
        shown = world.ask("/api/config", headers=KEY)
        self.assertEqual(self.put(world, shown.body + b"# ***\n", shown.headers["etag"]).status, 200)
        self.assertEqual(world.files.written, [text + "# ***\n"])

    def test_short_secret_that_looks_like_part_of_a_mask_leaves_masks_whole(self):
        text = "apiKeys: [" + ", ".join(f'"{number:04x}"' for number in range(0, 65536, 131)) + "]\n"
        world = World(example_router(with_keys("k-secret")), files=FakeFiles(text, editable=True))
        shown = world.ask("/api/config", headers=KEY)
        self.assertEqual(self.put(world, shown.body + b"# more\n", shown.headers["etag"]).status, 200)
        self.assertEqual(world.files.written, [text + "# more\n"])

    def test_a_text_that_cannot_be_loaded_is_not_written(self):
        world = self.world(answer=ConfigError([Problem("no")]))
        tag = world.ask("/api/config", headers=KEY).headers["etag"]
        self.assertEqual(self.put(world, b"x", tag).status, 422)
        self.assertEqual(world.files.written, [])


class HistoryTests(TestCase):
    OLD = TEXT.replace("k-secret", "k-earlier").replace("proxy: x", "proxy: w")
    FIRST = "1700000000000-00000000"

    def world(self, **more):
        now = "1700000001000-11111111"
        files = FakeFiles(TEXT, **{"editable": True, **more}, kept={self.FIRST: self.OLD, now: TEXT})
        return World(example_router(with_keys("k-secret")), files=files)

    def restore(self, world, *headers, version=FIRST):
        return world.ask(f"/api/config/history/{version}/restore", "POST", [*KEY, *headers])

    def test_versions_are_listed_newest_first_with_the_one_in_force(self):
        versions = self.world().ask("/api/config/history", headers=KEY).json["versions"]
        self.assertEqual([version["in_force"] for version in versions], [True, False])
        self.assertEqual(
            (versions[1]["id"], versions[1]["why"], versions[1]["size"]), (self.FIRST, "saved", len(self.OLD))
        )

    def test_key_in_an_earlier_text_is_masked_too(self):
        answer = self.world().ask(f"/api/config/history/{self.FIRST}", headers=KEY)
        self.assertEqual(answer.status, 200)
        for secret in ("k-earlier", "one-1", "two-2"):
            self.assertNotIn(secret, answer.text)
        self.assertIn("proxy: w", answer.text)

    def test_restored_text_is_complete_and_its_version_names_the_client(self):
        world = self.world()
        tag = world.ask("/api/config", headers=KEY).headers["etag"]
        answer = self.restore(world, ("If-Match", tag), ("User-Agent", "curl/8"), ("X-Forwarded-For", "10.0.0.7"))
        self.assertEqual(answer.status, 200)
        self.assertIn("impact", answer.json)
        self.assertEqual(world.files.written, [self.OLD])
        self.assertEqual(world.files.authors, [("10.0.0.7", "curl/8", self.FIRST)])

    def test_restore_follows_the_rules_of_an_edit(self):
        world = self.world()
        self.assertEqual(self.restore(world).status, 428)
        self.assertEqual(self.restore(world, ("If-Match", '"other"')).status, 412)
        self.assertEqual(self.restore(world, ("If-Match", "*"), ("Sec-Fetch-Site", "cross-site")).status, 403)
        self.assertEqual(self.restore(world, ("If-Match", "*"), ("Origin", "http://evil.example")).status, 403)
        self.assertEqual(self.restore(world, ("If-Match", "*"), version="1700000000000-ffffffff").status, 404)
        refused = self.world(answer=ConfigError([Problem("no", "models.x.cmd", "f.yaml", 3)]))
        answer = self.restore(refused, ("If-Match", "*"))
        self.assertEqual((answer.status, answer.json["errors"][0]["line"]), (422, 3))
        self.assertEqual(world.files.written + refused.files.written, [])

    def test_history_is_refused_unless_the_operator_allows_edits(self):
        world = self.world(editable=False)
        self.assertEqual(world.ask("/api/config/history", headers=KEY).status, 403)
        self.assertEqual(world.ask(f"/api/config/history/{self.FIRST}", headers=KEY).status, 403)
        self.assertEqual(self.restore(world, ("If-Match", "*")).status, 403)

    def test_history_needs_a_key(self):
        self.assertEqual(self.world().ask("/api/config/history").status, 401)


class FreshSecretTests(TestCase):
    def test_a_key_that_is_in_the_file_but_not_in_force_yet_is_masked(self):
        world = World(example_router(with_keys("k-secret")), files=FakeFiles("apiKeys: [k-tomorrow]\n", editable=True))
        shown = world.ask("/api/config", headers=KEY)
        self.assertNotIn("k-tomorrow", shown.text)
        headers = [*KEY, ("If-Match", shown.headers["etag"])]
        self.assertEqual(world.ask("/api/config", "PUT", headers, b"# more\n" + shown.body).status, 200)
        self.assertEqual(world.files.written, ["# more\napiKeys: [k-tomorrow]\n"])
