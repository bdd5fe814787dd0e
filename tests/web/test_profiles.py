from twisted.trial.unittest import TestCase

from tests.web.doubles import World, envelope, example_config, example_router


class ProfileTests(TestCase):
    def choose(self, body, world=None):
        return (world or World()).ask("/api/profiles/active", "PUT", body=body)

    def test_profiles_are_listed_with_their_pins(self):
        expected = {
            "active": None,
            "profiles": [
                {"id": "work", "description": "", "pins": {"chat": "alpha", "org": "", "pool/x": "org/gamma"}}
            ],
        }
        self.assertEqual(World().ask("/api/profiles").json, expected)
        nothing = World(example_router(example_config(profiles={})))
        self.assertEqual(nothing.ask("/api/profiles").body, b'{"active":null,"profiles":[]}\n')

    def test_profile_is_chosen_and_left(self):
        """http T066, http T073, http T067"""
        world = World()
        self.assertEqual(self.choose(b'{"name":"work","x":1} trailing', world).body, b'{"active":"work"}\n')
        self.assertEqual(world.router.profile, "work")
        again = self.choose(b'{"name":"work"}', world)
        self.assertEqual((again.status, again.json), (200, {"active": "work"}))
        for body in (b'{"name":null}', b'{"name":""}'):
            self.assertEqual(self.choose(body, world).json, {"active": None})
        self.assertIsNone(world.router.profile)

    def test_invalid_choice_of_a_profile_is_refused(self):
        """http T072"""
        world = World(example_router(profile="work"))
        cases = [
            (b'{"name":"nope"}', 404, 'profile "nope" not found'),
            (b'{"name":5}', 400, "profile name must be a string or null"),
            (b"{}", 400, "profile name is required"),
            (b"null", 400, "profile name is required"),
            (b"[]", 400, "invalid profile request"),
            (b"{", 400, "invalid profile request"),
            (b"", 400, "invalid profile request"),
        ]
        for body, status, message in cases:
            answer = self.choose(body, world)
            self.assertEqual((answer.status, answer.json), (status, envelope(status, message)), body)
        self.assertEqual(world.router.profile, "work")
