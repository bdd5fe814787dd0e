"""Keys with scopes and models, through the admin site and the model routes."""

import json

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import ApiKey, Filters, Secret
from llamaswap.config.schema.filters import Bounds
from llamaswap.config.schema.routing import Selector
from llamaswap.web.auth import Authenticator
from llamaswap.web.errors import HttpError
from llamaswap.web.head_facts import facts_of
from tests.web.doubles import World, example_config, example_router
from tests.web.pipeline import Stage, config

CHILD = ApiKey(Secret("sk-child"), "child", models=("be*", "pick"), scopes=("infer",))
READER = ApiKey(Secret("sk-reader"), "reader", scopes=("read",))
ADMIN = ApiKey(Secret("sk-admin"), "admin", scopes=("admin",))
KEYS = (CHILD, READER, ADMIN)


class AdminScopeTests(SynchronousTestCase):
    def setUp(self):
        self.world = World(example_router(example_config(api_keys=KEYS)))

    def status(self, path, key, method="GET"):
        return self.world.ask(path, method, [("x-api-key", key)]).status

    def test_each_scope_opens_its_routes(self):
        for path, method, child, reader, admin in (
            ("/v1/models", "GET", 200, 200, 200),
            ("/metrics", "GET", 403, 200, 200),
            ("/api/queue", "GET", 403, 200, 200),
            ("/api/config", "GET", 403, 200, 200),
            ("/api/models/load/alpha", "POST", 403, 403, 202),
            ("/api/models/unload", "POST", 403, 403, 200),
        ):
            for key, status in (("sk-child", child), ("sk-reader", reader), ("sk-admin", admin), ("sk-wrong", 401)):
                with self.subTest(path=path, key=key):
                    self.assertEqual(self.status(path, key, method), status)

    def test_a_refusal_names_the_key_and_the_scope(self):
        answer = self.world.ask("/metrics", headers=[("x-api-key", "sk-child")])
        self.assertEqual(answer.json["error"]["code"], "scope")
        self.assertIn("the API key child has no scope read", answer.text)
        self.assertNotIn("sk-child", answer.text)

    def test_the_listing_shows_what_the_key_may_use(self):
        def names(key):
            answer = self.world.ask("/v1/models", headers=[("x-api-key", key)])
            return [record["id"] for record in answer.json["data"]]

        self.assertEqual(names("sk-child"), ["beta", "pick"])
        self.assertIn("alpha", names("sk-admin"))
        self.assertEqual(self.status("/v1/models/beta", "sk-child"), 200)
        self.assertEqual(self.status("/v1/models/beta:hot", "sk-child"), 200)
        self.assertEqual(self.status("/v1/models/alpha", "sk-child"), 404)

    def test_the_listing_shows_the_other_name_that_a_key_may_use(self):
        """A key for an alias saw no model at all."""
        keys = (ApiKey(Secret("sk-kid"), "kid", models=("al", "beta:hot"), scopes=("infer",)), ADMIN)
        self.world = World(example_router(example_config(api_keys=keys)))
        for path, member, name in (
            ("/v1/models", "data", "id"),
            ("/api/v0/models", "data", "id"),
            ("/api/tags", "models", "name"),
        ):
            answer = self.world.ask(path, headers=[("x-api-key", "sk-kid")])
            self.assertEqual([row[name] for row in answer.json[member]], ["al", "beta:hot"], path)

    def test_keys_without_scopes_open_everything(self):
        self.world = World(example_router(example_config(api_keys=(ApiKey(Secret("sk-1"), "one"),))))
        self.assertEqual(self.status("/api/models/load/alpha", "sk-1", "POST"), 202)


class ModelScopeTests(SynchronousTestCase):
    def setUp(self):
        keys = KEYS
        self.stage = Stage()
        self.stage.router.config = config(api_keys=keys)
        self.stage.inference.authenticate = self.stage.passthrough.authenticate = Authenticator(lambda: keys)

    def post(self, name, key=b"sk-child", path=b"/v1/chat/completions"):
        return self.stage.post({"model": name}, path, (b"x-api-key", key)).sink

    def test_a_model_outside_the_keys_list_is_refused_whether_it_exists_or_not(self):
        for name in ("alpha", "al", "ghost", "lab/delta", "safe"):
            sink = self.post(name)
            self.assertEqual((sink.status, sink.json["error"]["code"]), (403, "model_not_allowed"))
            self.assertIn(f"may not use {name}; it may use: be*, pick", sink.json["error"]["message"])
        self.assertEqual(self.stage.forwarder.forwarded, [])
        self.assertEqual(self.post("alpha", path=b"/v1/messages").json["type"], "error")

    def test_a_name_or_what_it_leads_to_may_be_allowed(self):
        for name in ("beta", "beta:hot", "pick"):
            self.post(name)
        self.assertEqual([each.upstream.name for each in self.stage.forwarder.forwarded], ["beta"] * 3)
        self.assertEqual({each.observer.key_name for each in self.stage.forwarder.forwarded}, {"child"})

    def test_a_model_that_was_reached_by_an_allowed_selector_stays_closed_by_its_own_name(self):
        given = evolve(self.stage.router.config, selectors={"pick": Selector("pick", "pin", targets=("alpha",))})
        self.stage.router.config = given
        self.post("pick")
        self.assertEqual(len(self.stage.forwarder.forwarded), 1)
        self.assertEqual(self.post("alpha").status, 403)

    def test_a_key_without_the_scope_infer_reaches_no_model(self):
        self.assertEqual(self.post("beta", b"sk-reader").status, 403)

    def test_the_passthrough_has_the_same_limits(self):
        def get(path, key=b"sk-child"):
            return self.stage.upstream(b"GET", path, b"", (b"x-api-key", key)).sink

        self.assertEqual(get(b"/upstream/alpha/slots").status, 403)
        get(b"/upstream/beta/slots/1")
        self.assertEqual(self.stage.forwarding.upstream.name, "beta")

    def peer(self, path, body=b"", kind=b"application/json", method=b"POST", serve="ask", key=b"sk-child"):
        """What a peer gets of a key for one of its models: (path and query, body), or the status of the refusal."""
        keys = (evolve(CHILD, models=("lab/delta", "zeta")), ADMIN)
        self.stage = Stage()
        self.stage.router.config = config(api_keys=keys)
        self.stage.inference.authenticate = self.stage.passthrough.authenticate = Authenticator(lambda: keys)
        headers = ((b"Content-Type", kind), (b"x-api-key", key))
        asked = getattr(self.stage, serve)(method, path, body, *headers)
        if not self.stage.forwarder.forwarded:
            return asked.sink.status
        return self.stage.forwarding.head.target, self.stage.forwarding.sent

    def test_a_peer_reads_no_other_model_than_the_one_that_was_checked(self):
        target, sent = self.peer(b"/v1/chat/completions?model=delta", b'{"model":"zeta","model":"delta"}')
        self.assertTrue(target.endswith(b"/v1/chat/completions?model=zeta"), target)
        self.assertEqual(sent, b'{"model":"zeta","model":"zeta"}')

    def test_a_peer_is_asked_for_no_other_model_at_its_address(self):
        upstream, chat = b"/upstream/lab/delta", b"/v1/chat/completions"
        for body in (b'{"model":"eps"}', b'{"model":"delta","model":"eps"}', b'{"model":"","model":"eps"}'):
            _, sent = self.peer(upstream + chat, body, serve="upstream")
            self.assertEqual(set(json.loads(sent).values()), {"delta"})
        self.assertEqual(self.peer(upstream + chat, b'{"model":"eps"}', b"text/plain", serve="upstream"), 403)
        target, _ = self.peer(upstream + b"/props?model=eps", method=b"GET", serve="upstream")
        self.assertTrue(target.endswith(b"/props?model=delta"), target)

    def test_a_key_without_the_scope_admin_reaches_only_the_model_routes_of_a_peer(self):
        """Its own key for the peer was sent with requests such as /api/models/unload."""
        for method, path in ((b"POST", b"/api/models/unload"), (b"GET", b"/api/config"), (b"GET", b"/logs")):
            self.assertEqual(self.peer(b"/upstream/lab/delta" + path, method=method, serve="upstream"), 403)
        self.assertEqual(self.peer(b"/v1/keys", b'{"model":"lab/delta"}'), 403)
        target, _ = self.peer(b"/v1/keys", b'{"model":"lab/delta"}', key=b"sk-admin")
        self.assertTrue(target.endswith(b"/v1/keys"), target)

    def test_a_key_with_limits_reaches_no_page_that_is_not_counted(self):
        keys = (evolve(CHILD, rpm=3), ADMIN)
        self.stage.passthrough.authenticate = Authenticator(lambda: keys)
        sink = self.stage.upstream(
            b"POST", b"/upstream/beta/completion-of-its-own", b"{}", (b"x-api-key", b"sk-child")
        ).sink
        self.assertEqual(sink.status, 403)
        self.assertIn("only use the routes that name a model", sink.json["error"]["message"])

    def test_a_key_that_expires_is_refused_although_its_head_is_known(self):
        now = [0.0]
        keys = (evolve(CHILD, expires=5.0),)
        gate = Authenticator(lambda: keys, lambda: now[0])
        self.stage.inference.authenticate = gate
        asked = self.stage.post({"model": "beta"}, b"/v1/chat/completions", (b"x-api-key", b"sk-child"))
        now[0] = 5.0
        error = self.assertRaises(HttpError, facts_of, asked.exchange, self.stage.router.config, gate)
        self.assertEqual(error.status, 401)


class RuleTests(SynchronousTestCase):
    """A key whose requests are changed by rules cannot send any to which they do not apply."""

    def setUp(self):
        rules = Filters(clamp_params={"top_k": Bounds(most=8)}, set_params={"user?": "kid"})
        self.keys = (evolve(CHILD, models=(), filters=rules, max_tokens=100), ADMIN)
        self.stage = Stage()
        self.stage.router.config = config(api_keys=self.keys)
        self.stage.inference.authenticate = self.stage.passthrough.authenticate = Authenticator(lambda: self.keys)

    def ask(self, body, key=b"sk-child", path=b"/v1/chat/completions", kind=b"application/json"):
        return self.stage.ask(b"POST", path, body, (b"Content-Type", kind), (b"x-api-key", key)).sink

    def test_the_rules_of_the_key_follow_those_of_the_model(self):
        self.ask(b'{"model":"beta","top_k":50,"max_tokens":4096}')
        sent = json.loads(self.stage.forwarding.sent)
        self.assertEqual(sent, {"model": "beta-up", "top_k": 7, "user": "kid", "max_tokens": 100})

    def test_a_large_body_is_bounded_too(self):
        self.ask(b'{"model":"alpha","top_k":50,"x":"%b"}' % (b"y" * 2_000_000))
        self.assertIn(b'"top_k":8', self.stage.forwarding.sent)

    def test_a_path_whose_bound_of_tokens_is_not_known_is_refused(self):
        for path, status in (
            (b"/invocations", 403),
            (b"/generate", 403),
            (b"/inference/v1/generate", 403),
            (b"/v1/chat/completions/", 0),  # forwarded
            (b"/v1/chat/completions/batch", 0),
            (b"/v1/embeddings", 0),
            (b"/tokenize", 0),
        ):
            sink = self.ask(b'{"model":"alpha","sampling_params":{"max_new_tokens":9999}}', path=path)
            self.assertEqual(sink.status, status, path)

    def test_a_key_without_rules_is_not_changed(self):
        self.ask(b'{"model":"alpha","top_k":50}', b"sk-admin")
        self.assertEqual(self.stage.forwarding.sent, b'{"model":"alpha","top_k":50}')

    def test_requests_beside_the_rules_are_refused(self):
        chat = b'{"messages":[],"top_k":50}'
        self.assertEqual(self.ask(chat, path=b"/v1/chat/completions?model=alpha", kind=b"text/plain").status, 403)
        self.assertEqual(self.ask(chat, path=b"/v1/chat/completions/?model=alpha", kind=b"text/plain").status, 403)
        headers = ((b"Content-Type", b"application/json"), (b"x-api-key", b"sk-child"))
        upstream = self.stage.upstream(b"POST", b"/upstream/alpha/v1/chat/completions", chat, *headers)
        self.assertEqual((upstream.sink.status, self.stage.forwarder.forwarded), (403, []))
