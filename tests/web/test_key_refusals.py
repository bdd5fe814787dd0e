"""Wrong, expired, exhausted and out-of-scope keys through every route and dialect: each is refused in the right words,
and nothing of a key appears in any log line, capture, row, error or metric."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from hashlib import sha256

from attrs import evolve
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import ApiKey, Secret
from llamaswap.config.schema.keys import Budget
from llamaswap.errors import ModelsKept, WaitedTooLong
from llamaswap.observe.accesslog import AccessLog
from llamaswap.observe.activity import ActivityLog
from llamaswap.observe.captures import Captures
from llamaswap.observe.inflight import InflightRequests
from llamaswap.observe.key_usage import KeyUsage
from llamaswap.observe.metrics import Metrics
from llamaswap.observe.store import ActivityStore
from llamaswap.web.access_log import AccessLogger
from llamaswap.web.auth import Authenticator
from llamaswap.web.route_table import ROUTES
from llamaswap.wire.model_routes import MODEL_ROUTES
from llamaswap.wire.openai import speaks_ollama
from tests.web.doubles import World, at_once, example_config, example_router
from tests.web.pipeline import Stage, config, model

NOW = 1_000_000.0


def key(text, name, **more):
    return ApiKey(Secret("sha256:" + sha256(text.encode()).hexdigest()), name, **more)


EXPIRED = key("sk-Expired-7f3a", "expired-name", expires=NOW - 1)
EXHAUSTED = key("sk-Exhausted-91bc", "exhausted-name", scopes=("infer",), budget=Budget(1000, 86400.0))
HURRIED = key("sk-Hurried-44de", "hurried-name", scopes=("infer",), rpm=1)
TALKER = key("sk-Talker-e77a", "talker-name", scopes=("infer",), tpm=50)
BUSY = key("sk-Busy-2f6d", "busy-name", scopes=("infer",), max_parallel=1, rpm=9)
READER = key("sk-Reader-c0de", "reader-name", scopes=("read",))
CHILD = key("sk-Child-5150", "child-name", scopes=("infer",), models=("org*",))
KEYS = (EXPIRED, EXHAUSTED, HURRIED, TALKER, BUSY, READER, CHILD, ApiKey(Secret("sk-Plain-aa11")))
TEXTS = ("sk-Expired-7f3a", "sk-Exhausted-91bc", "sk-Hurried-44de", "sk-Talker-e77a", "sk-Busy-2f6d")
TEXTS += ("sk-Reader-c0de", "sk-Child-5150", "sk-Plain-aa11")
SECRETS = (*TEXTS, "sk-Wrong-0bad", *(each.digest.hex() for each in KEYS))

CASES = (
    ("sk-Wrong-0bad", 401, "unauthorized", "invalid or missing API key"),
    ("", 401, "unauthorized", "invalid or missing API key"),
    ("sk-Expired-7f3a", 401, "key_expired", "expired-name has expired"),
    ("sk-Reader-c0de", 403, "scope", "reader-name has no scope infer"),
    ("sk-Child-5150", 403, "model_not_allowed", "child-name may not use beta; it may use: org*"),
    ("sk-Exhausted-91bc", 429, "insufficient_quota", "1000 tokens in one day"),
    ("sk-Hurried-44de", 429, "rate_limit_exceeded", "1 request in a minute"),
    ("sk-Talker-e77a", 429, "rate_limit_exceeded", "50 tokens in a minute"),
    ("sk-Busy-2f6d", 429, "rate_limit_exceeded", "1 request at the same time"),
)


def presented(text):
    """Each way to present a key."""
    raw = text.encode()
    yield (b"Authorization", b"Bearer " + raw)
    yield (b"X-Api-Key", raw)
    yield (b"Authorization", b"Basic " + b64encode(b"someone:" + raw))


class Lines:
    def __init__(self):
        self.written = []

    def line(self, level, text):
        self.written.append(text)


class RefusalTests(SynchronousTestCase):
    def setUp(self):
        self.events = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)
        self.stage = Stage()
        self.stage.router.config = config(api_keys=KEYS)
        gate = Authenticator(lambda: KEYS, lambda: NOW)
        self.stage.inference.authenticate = self.stage.passthrough.authenticate = gate
        self.usage = KeyUsage(lambda: NOW)
        self.usage.retune(KEYS)
        self.metrics = Metrics()
        self.store = ActivityStore(None, 100_000)
        clock = Clock()
        self.activity = ActivityLog(self.store, Captures(5), at_once, clock, lambda: NOW, stored=self.metrics.stored)
        self.inflight = InflightRequests(clock, self.metrics.finished)
        self.shown = []
        self.inflight.subscribe(lambda document: self.shown.append(json.dumps(document)))
        self.stage.handler.observers = (self.usage, self.inflight, self.activity)
        self.lines = Lines()
        self.access = AccessLogger(AccessLog(self.lines), clock)
        self.usage.remember("exhausted-name", NOW - 7200, 1000)
        self.usage.meter("hurried-name").requests.add(NOW, 1)
        self.usage.meter("talker-name").tokens.add(NOW, 50)
        self.usage.meter("busy-name").running = 1

    def ask(self, method, target, header, body=b"", serve=None):
        json_sent = body.startswith(b"{")
        kind = (b"Content-Type", b"application/json" if json_sent else b"application/x-www-form-urlencoded")
        asked = self.stage.ask(method, target, body, kind, header, serve=serve)
        self.access(asked.exchange, asked.sink.status, len(asked.sink.body))
        return asked.sink

    def assert_refused(self, sink, target, status, code, words):
        self.assertEqual((sink.status, sink.ending), (status, "finished"), target)
        document = sink.json
        if speaks_ollama(target.decode()):
            self.assertIn(words, document["error"])
        else:
            self.assertEqual(document["error"]["code"], code, target)
            self.assertIn(words, document["error"]["message"])
            self.assertEqual(document.get("type"), "error" if b"/messages" in target else None)
        self.assertEqual(sink.header(b"www-authenticate") is not None, status == 401)
        self.assertEqual(sink.header(b"retry-after") is not None, status == 429)
        self.assertEqual(any(name.startswith(b"x-ratelimit-") for name, _ in sink.headers), status == 429)
        self.assert_clean(repr(sink.headers) + repr(sink.body))

    def assert_clean(self, text):
        for secret in SECRETS:
            self.assertNotIn(secret, text)
            self.assertNotIn(b64encode(f"someone:{secret}".encode()).decode(), text)

    def test_every_model_route_refuses_in_its_dialect_and_nothing_of_a_key_is_recorded(self):
        body = json.dumps({"model": "beta", "messages": [{"role": "user", "content": "hello"}]}).encode()
        requests = 0
        for _ in range(12):
            for route in MODEL_ROUTES:
                path = route.path.encode()
                target = path + b"?model=beta" if route.body == "query" else path
                sent = {"query": b"", "form": b"model=beta&prompt=x"}.get(route.body, body)
                for text, *expected in CASES:
                    if route.path == "/v1/batches" and route.method == "POST" and expected[0] == 429:
                        expected = (403, "scope", "limits or rules, which do not apply to what is in a batch")
                    for header in presented(text):
                        self.assert_refused(self.ask(route.method.encode(), target, header, sent), target, *expected)
                        requests += 1
        self.assertGreater(requests, 10_000)
        self.assertEqual(self.stage.forwarder.forwarded, [])
        self.assertEqual(self.usage.meter("exhausted-name").running, 0)
        self.assert_nothing_recorded("exhausted-name", "hurried-name")

    def test_the_passthrough_refuses_the_same(self):
        for text, status, code, words in CASES:
            for header in presented(text):
                target = b"/upstream/beta/v1/chat/completions"
                sink = self.ask(b"POST", target, header, b'{"model":"beta"}', self.stage.passthrough.serve)
                self.assert_refused(sink, target, status, code, words)
        self.assert_nothing_recorded("exhausted-name")

    def assert_nothing_recorded(self, *names):
        self.successResultOf(self.activity.flush())
        rows = self.store.after(evolve(self.everything()), 0, 100_000)
        self.assertTrue(rows)
        limited = {"exhausted-name", "hurried-name", "talker-name", "busy-name"}
        self.assertLessEqual({row.key for row in rows}, limited)
        for name in names:
            self.assertIn(name, {row.key for row in rows})
            self.assertTrue(any(line.endswith(f"key={name}") for line in self.lines.written))
        for row in rows:
            self.assertEqual(row.resp_status_code, 429)
            self.assert_clean(json.dumps(self.activity.document(row)))
            capture = self.successResultOf(self.activity.capture(row.id))
            self.assert_clean(repr(capture))
        self.assert_clean("\n".join(self.lines.written))
        self.assert_clean("\n".join(self.shown))
        self.assert_clean(self.metrics.render().decode())
        self.assert_clean("\n".join(repr(event) for event in self.events))
        self.assertIn(b'llamaswap_key_requests_total{key="exhausted-name",code="429"}', self.metrics.render())

    def everything(self):
        from llamaswap.observe.query import ActivityFilter

        return ActivityFilter()

    def test_a_key_with_room_is_served_and_told_how_much_is_left(self):
        self.usage.retune([evolve(EXHAUSTED, budget=Budget(5000, 86400.0)), *KEYS[:1], *KEYS[2:]])
        self.ask(b"POST", b"/v1/chat/completions", (b"X-Api-Key", b"sk-Exhausted-91bc"), b'{"model":"beta"}')
        self.assertEqual(self.stage.router.asked[0].model, "beta")
        left = dict(self.stage.forwarding.exchange.added_headers)
        self.assertEqual(left[b"x-ratelimit-limit-tokens"], b"5000")
        self.assertEqual(left[b"x-ratelimit-remaining-tokens"], b"3993")

    def test_loading_stream_tells_how_much_is_left(self):
        self.stage.router.auto = self.stage.router.ready = False
        body = b'{"model":"alpha","stream":true}'
        sink = self.ask(b"POST", b"/v1/chat/completions", (b"X-Api-Key", b"sk-Hurried-44de"), body)
        self.assertEqual(sink.status, 429)
        self.usage.retune([evolve(HURRIED, rpm=9)])
        sink = self.ask(b"POST", b"/v1/chat/completions", (b"X-Api-Key", b"sk-Hurried-44de"), body)
        self.assertEqual(sink.header(b"content-type"), b"text/event-stream")
        self.assertEqual(sink.header(b"x-ratelimit-remaining-requests"), b"7")

    def test_long_name_of_a_model_is_cut_in_the_refusal(self):
        body = json.dumps({"model": "x" * 5000}).encode()
        sink = self.ask(b"POST", b"/v1/chat/completions", (b"X-Api-Key", b"sk-Child-5150"), body)
        self.assertLess(len(sink.body), 500)


class NamesOfOthersTests(SynchronousTestCase):
    """Refusals, lists and answers of tools name only the models that the key may use."""

    def setUp(self):
        self.stage = Stage()
        self.stage.router.config = config(api_keys=KEYS)
        self.stage.inference.authenticate = Authenticator(lambda: KEYS, lambda: NOW)

    def refused(self, error, text="sk-Child-5150", **more):
        self.stage.router.refusal = error
        body = json.dumps({"model": "org", "prompt": "x", **more}).encode()
        path = b"/api/generate" if more else b"/v1/messages"
        sink = self.stage.ask(b"POST", path, body, (b"X-Api-Key", text.encode())).sink
        found = sink.json["error"]
        return (sink.status, found if isinstance(found, str) else found["message"])

    def test_a_refusal_names_no_kept_model_that_the_key_may_not_use(self):
        pinned = ModelsKept("org", "cannot load org", ("beta", "org/gamma"), "is pinned")
        large = ModelsKept("org", "cannot load org, which needs 4.0 GiB", ("beta", "alpha"))
        waited = WaitedTooLong("org", 60.0, ("beta",))
        for more in ({}, {"stream": False}):
            self.assertEqual(self.refused(pinned, **more), (409, "cannot load org: org/gamma, another model is pinned"))
            _, words = self.refused(large, **more)
            self.assertEqual(words, "cannot load org, which needs 4.0 GiB: other models cannot be evicted")
            status, words = self.refused(waited, **more)
            self.assertEqual((status, "beta" in words, "for another model" in words), (503, False, True))
        self.assertIn("cannot load org: beta, org/gamma is pinned", self.refused(pinned, "sk-Plain-aa11")[1])

    def test_a_copy_of_a_model_that_the_key_may_use_is_named(self):
        copy = model("beta.r2", replica_of="org")
        self.stage.router.config = config(api_keys=KEYS, models=[copy])
        self.assertIn(
            "beta.r2, another model", self.refused(ModelsKept("org", "cannot load org", ("beta.r2", "beta")))[1]
        )

    def test_a_listed_selector_has_only_the_targets_that_the_key_may_use(self):
        child = key("sk-Child-5150", "child", models=("pick", "lab/*"))
        world = World(example_router(example_config(api_keys=(child,))))
        rows = world.ask("/v1/models", "GET", [("X-Api-Key", "sk-Child-5150")]).json["data"]
        found = {row["id"]: row["meta"]["llamaswap"].get("targets") for row in rows}
        self.assertEqual(found["pick"], ["lab/delta"])


class AdminRefusalTests(SynchronousTestCase):
    def test_every_admin_route_refuses_keys_without_its_scope(self):
        world = World(example_router(example_config(api_keys=KEYS)))
        asked = 0
        for route in ROUTES:
            if route.key != "checked":
                continue
            path = re.sub("<[^>]*>", "1", route.rule)
            method = route.methods[0] if route.methods else "GET"
            for text, status in (
                ("sk-Wrong-0bad", 401),
                ("sk-Expired-7f3a", 401),
                ("sk-Child-5150", None if route.scope == "any" else 403),
                ("sk-Reader-c0de", None if route.scope in ("any", "read") else 403),
            ):
                if status is None:
                    continue
                with self.subTest(route=route.name, key=text):
                    answer = world.ask(path, method, [("X-Api-Key", text), ("Accept", "application/json")])
                    self.assertEqual(answer.status, status)
                    for secret in SECRETS:
                        self.assertNotIn(secret, answer.text + repr(answer.headers))
                    asked += 1
        self.assertGreater(asked, 150)
