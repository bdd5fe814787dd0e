import re

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from llamaswap.config import ApiKey
from llamaswap.config.schema import CorsSettings, SecuritySettings
from llamaswap.config.secret import Secret
from llamaswap.observe.accesslog import AccessLog
from llamaswap.web import app
from llamaswap.web.auth import Authenticator, HostCheck
from llamaswap.web.openapi import ALL_METHODS, PATH_VARIABLE
from llamaswap.web.route_table import ROUTES
from llamaswap.wire.model_routes import MODEL_ROUTES
from tests.web.doubles import LOOPBACK, Client, FakeFiles, World, envelope, example_config, example_router, with_keys


class RoutingTests(TestCase):
    def test_health_is_a_plain_ok(self):
        """http T001"""
        answer = World().ask("/health")
        self.assertEqual((answer.status, answer.body), (200, b"OK"))
        self.assertEqual(answer.headers["content-type"], "text/plain; charset=utf-8")
        self.assertNotIn("server", answer.headers)
        self.assertIn("date", answer.headers)

    def test_every_get_answers_head_without_a_body(self):
        answer = World().ask("/health", "HEAD")
        self.assertEqual((answer.status, answer.body), (200, b""))
        self.assertEqual(answer.headers["content-length"], "2")

    def test_a_wrong_method_names_the_right_ones_even_without_a_key(self):
        """http T003, http T015"""
        world = World(example_router(with_keys("k")))
        answer = world.ask("/health", "POST")
        self.assertEqual((answer.status, answer.body), (405, b"Method Not Allowed\n"))
        self.assertEqual(answer.headers["allow"], "GET, HEAD")
        answer = world.ask("/v1/audio/voices", "DELETE")
        self.assertEqual((answer.status, answer.headers["allow"]), (405, "GET, HEAD, POST"))
        self.assertEqual(world.ask("/v1/chat/completions").headers["allow"], "POST")

    def test_allow_names_exactly_the_methods_that_a_path_serves(self):
        world = World()
        for path in sorted({PATH_VARIABLE.sub("x", route.rule) for route in ROUTES}):
            answers = {}
            for method in (*ALL_METHODS, "HEAD"):
                client = world.open(path, method)
                answers[method] = client.answer()
                client.leave()
            refused = {method for method, answer in answers.items() if answer.status == 405}
            for method in refused:
                self.assertEqual(set(answers[method].headers["allow"].split(", ")), set(answers) - refused, path)

    def test_an_unknown_path_is_a_plain_404_whatever_the_client_accepts(self):
        """http T004, http T033"""
        world = World(example_router(with_keys("k")))
        for method in ("GET", "POST"):
            answer = world.ask("/nope", method, [("Accept", "application/json")])
            self.assertEqual((answer.status, answer.body), (404, b"404 page not found\n"))
            self.assertEqual(answer.headers["x-content-type-options"], "nosniff")

    def test_paths_without_a_route_stay_unrouted(self):
        for path in ("/api/models", "/v1", "/api"):
            self.assertEqual(World().ask(path).status, 404, path)

    def test_a_path_of_a_route_is_known_in_every_spelling(self):
        for path in (b"/api/models/unload", b"//api/models/unload", b"/%61pi/./models/unload/", b"/x/../api/config"):
            self.assertTrue(app.has_route(path), path)
        for path in (b"/v9/invented", b"//v9/invented", b"/apis"):
            self.assertFalse(app.has_route(path), path)

    def test_a_slash_at_the_end_of_a_path_changes_nothing(self):
        for path in ("/health", "/running", "/v1/models", "/api/version"):
            self.assertEqual(World().ask(path + "/").body, World().ask(path).body, path)
        answer = World().ask("/v1/chat/completions/", "POST")
        self.assertEqual(answer.body, b"model POST /v1/chat/completions/")

    def test_the_root_leads_to_the_ui(self):
        """http T005, http T007"""
        self.assertEqual(World().ask("/").headers["location"], "/ui")
        self.assertEqual(World().ask("/").status, 302)
        self.assertEqual(World().ask("/upstream").headers["location"], "/ui/models")
        self.assertEqual(World().ask("/ui?x=1").headers["location"], "/ui/?x=1")

    def test_request_to_upstream_without_a_model_is_redirected_to_the_passthrough(self):
        """http T008"""
        answer = World().ask("/upstream", "POST")
        self.assertEqual((answer.status, answer.headers["location"], answer.body), (307, "/upstream/", b""))
        self.assertEqual(World().ask("/upstream/", "POST").body, b"upstream POST /upstream/")

    def test_model_routes_and_passthrough_get_the_raw_target(self):
        world = World()
        self.assertEqual(world.ask("/v1/chat/completions", "POST").body, b"model POST /v1/chat/completions")
        self.assertEqual(world.ask("/upstream/a%2Fb//x?q=%2F").body, b"upstream GET /upstream/a%2Fb//x?q=%2F")
        self.assertEqual(world.ask("/comfyui/a%2Fb", "PUT").body, b"upstream PUT /comfyui/a%2Fb")

    def test_comfyui_is_redirected_to_its_folder(self):
        """http T120"""
        answer = World().ask("/comfyui?t=1")
        self.assertEqual((answer.status, answer.headers["location"]), (301, "/comfyui/?t=1"))
        self.assertEqual(World().ask("/comfyui", "POST").status, 308)

    def test_a_host_header_that_is_no_name_breaks_nothing(self):
        self.assertIn(World().ask("/health", host="a..b").status, (200, 400))


class CorsTests(TestCase):
    def test_a_preflight_is_answered_on_any_path_without_a_key(self):
        """http T009, http T013"""
        world = World(example_router(with_keys("k")))
        for path in ("/does/not/exist", "/upstream/alpha/x"):
            answer = world.ask(path, "OPTIONS", [("Access-Control-Request-Headers", "X-A, bad header, X-B")])
            self.assertEqual((answer.status, answer.body), (204, b""))
            self.assertEqual(answer.headers["access-control-allow-headers"], "X-A, X-B")
            self.assertEqual(answer.headers["access-control-allow-origin"], "*")
            self.assertEqual(answer.headers["access-control-max-age"], "86400")
            self.assertNotIn("content-length", answer.headers)  # a 204 has none

    def test_a_page_of_another_site_reads_the_listing_and_errors_but_no_prompts_of_a_server_without_keys(self):
        origin = [("Origin", "http://a.b")]
        for path in ("/v1/models/ghost", "/nope", "/unload", "/health"):
            answer = World().ask(path, "POST" if path == "/unload" else "GET", headers=origin)
            self.assertEqual(answer.headers["access-control-allow-origin"], "*", path)
        for path in ("/running", "/api/metrics", "/logs", "/api/captures/1"):
            answer = World().ask(path, headers=origin)
            self.assertNotIn("access-control-allow-origin", answer.headers, path)

    def test_a_page_of_another_site_reads_every_response_of_a_server_with_keys(self):
        world = World(example_router(with_keys("k")))
        for more, status in (([], 401), ([("x-api-key", "k")], 200)):
            answer = world.ask("/running", headers=[("Origin", "http://a.b"), *more])
            self.assertEqual((answer.status, answer.headers["access-control-allow-origin"]), (status, "*"))
        self.assertNotIn("access-control-allow-origin", world.ask("/running").headers)


class AllowedOriginsTests(TestCase):
    """`security.cors.allowOrigins` names the origins."""

    chat, other = "https://chat.example", "https://evil.example"

    def world(self, *origins, **more):
        cors = CorsSettings(tuple(origins or (self.chat,)), **more)
        return World(example_router(example_config(security=SecuritySettings(cors))))

    def test_listed_origin_reads_every_answer_and_another_one_none(self):
        world = self.world()
        for path in ("/v1/models", "/v1/models/ghost", "/nope", "/running", "/health", "/logs", "/api/captures/1"):
            for origin, allowed in ((self.chat, self.chat), (self.other, None), ("null", None)):
                client = world.open(path, headers=[("Origin", origin), ("Accept-Encoding", "gzip")])
                head = client.received.partition(b"\r\n\r\n")[0].decode().lower().split("\r\n")
                client.leave()
                allowing = [line for line in head if line.startswith("access-control-allow-origin")]
                expected = [] if allowed is None else [f"access-control-allow-origin: {allowed}"]
                self.assertEqual(allowing, expected, path)
                self.assertEqual(head.count("vary: origin"), 1, path)

    def test_answer_without_an_origin_says_that_it_varies_with_it(self):
        answer = self.world().ask("/health")
        self.assertEqual(answer.headers.get("vary"), "Origin")
        self.assertNotIn("access-control-allow-origin", answer.headers)

    def test_preflight_of_an_origin_that_is_not_listed_is_refused(self):
        world = self.world(allow_headers=("X-Mine", "Authorization"), max_age=60.0)
        asked = ("Access-Control-Request-Headers", "X-Other")
        answer = world.ask("/v1/chat/completions", "OPTIONS", [("Origin", self.chat), asked])
        self.assertEqual(answer.status, 204)
        self.assertEqual(answer.headers["access-control-allow-origin"], self.chat)
        self.assertEqual(answer.headers["access-control-allow-headers"], "X-Mine, Authorization")
        self.assertEqual((answer.headers["access-control-max-age"], answer.headers["vary"]), ("60", "Origin"))
        answer = world.ask("/v1/chat/completions", "OPTIONS", [("Origin", self.other), asked])
        self.assertEqual(answer.status, 403)
        self.assertFalse([name for name in answer.headers if name.startswith("access-control")])

    def test_listed_origin_may_not_change_anything(self):
        world = self.world()
        self.assertEqual(world.ask("/api/models/unload", "POST", [("Origin", self.chat)]).status, 403)
        self.assertEqual(world.router.unloaded, [])

    def test_listing_obeys_allowed_hosts_if_origins_are_listed(self):
        security = SecuritySettings(CorsSettings((self.chat,)))
        world = World(example_router(example_config(security=security, allowed_hosts=("models.example.net",))))
        self.assertEqual(world.ask("/v1/models", host="evil.example").status, 403)
        self.assertEqual(world.ask("/v1/models", host="models.example.net").status, 200)


class GateTests(TestCase):
    def test_open_routes_need_no_key_and_others_do(self):
        """http T028, http T029, http T032"""
        world = World(example_router(with_keys("k-1", "k-2")))
        for path in ("/health", "/wol-health", "/", "/ui", "/ui/", "/ui/models", "/upstream", "/readyz"):
            self.assertNotEqual(world.ask(path).status, 401, path)
        for path in ("/running", "/running?api_key=k-1", "/logs", "/comfyui", "/api/profiles"):
            self.assertEqual(world.ask(path).status, 401, path)
        answer = world.ask("/running", headers=[("Accept", "text/plain")])
        self.assertEqual(answer.body, b"llama-swap: unauthorized: invalid or missing API key")
        self.assertEqual(answer.headers["www-authenticate"], 'Basic realm="llama-swap"')
        self.assertEqual(world.ask("/running", headers=[("Authorization", "Bearer k-2")]).status, 200)

    def test_another_sites_page_cannot_stop_models(self):
        world = World()
        refused = [
            ("/unload", "GET", [("Sec-Fetch-Site", "cross-site")]),
            ("/api/models/unload", "POST", [("Origin", "http://evil.example")]),
            ("/api/profiles/active", "PUT", [("Origin", "null")]),
        ]
        for path, method, headers in refused:
            self.assertEqual(world.ask(path, method, headers).status, 403, path)
        self.assertEqual(world.router.unloaded, [])
        self.assertEqual(world.ask("/api/models/unload", "POST", [("Origin", "http://here:8080")]).status, 200)

    def test_an_image_tag_of_another_page_does_not_unload(self):
        world = World()
        for header in (
            ("Sec-Fetch-Site", "same-site"),
            ("Referer", "http://evil.example/page"),
            ("Accept", "image/avif,image/webp,*/*;q=0.8"),
        ):
            self.assertEqual(world.ask("/unload", "GET", [header]).status, 403, header)
        self.assertEqual(world.router.unloaded, [])
        self.assertEqual(world.ask("/unload", "GET", []).status, 200)


def spellings(path):
    """Other ways to write a path, and whether they mean the same."""
    head, _, tail = path[1:].partition("/")
    letter = f"%{ord(head[0]):02x}"
    yield f"/{letter}{path[2:]}", True
    yield f"/{letter.upper()}{path[2:]}", True
    yield f"/{path}", True
    yield path.replace("/", "//"), True
    yield f"/.{path}", True
    yield f"/x/..{path}", True
    yield f"/x/%2e%2E{path}", True
    yield f"/ui/..{path}", True
    yield f"/..{path}", True
    yield f"{path}?model=", True
    if tail:
        yield f"/{head}%2F{tail}", False
        yield f"/{head}%2f{tail}", False
        yield f"/{head}%252F{tail}", False
    yield f"/%2F{path[1:]}", False
    yield f"/upstream/..{path}", False
    yield f"/upstream/%2e%2e{path}", False
    yield f"/comfyui/..{path}", False


CHANGING = [
    (method, re.sub("<[^>]+>", "alpha", route.rule))
    for route in ROUTES
    if route.changes_state
    for method in {*route.methods, *(("HEAD",) if "GET" in route.methods else ())}
]


class SpellingTests(TestCase):
    def ask(self, method, path, *headers):
        """The status, and what the router and the files went through."""
        world = World(files=FakeFiles(editable=True, kept={"alpha": "models: {}\n"}))
        before = repr((world.router, world.files))
        body = b"" if method in ("GET", "HEAD") else b"{}"
        host = dict(headers).get("Host", "here:8080")
        sent = [("If-Match", "*"), *(header for header in headers if header[0] != "Host")]
        answer = world.ask(path, method, sent, body, host=host)
        return answer.status, repr((world.router, world.files)) != before, answer.body

    def test_route_that_is_not_a_get_counts_as_changing_state_unless_it_says_otherwise(self):
        harmless = {route.rule for route in ROUTES if not route.changes_state and route.methods != ("GET",)}
        models = {route.path for route in MODEL_ROUTES}
        jobs = {f"/v1/{kind}/<rest:job>" for kind in ("videos", "files", "batches")} | {"/v1/responses/<rest:response>"}
        expected = {"/upstream", "/upstream/<rest:path>", "/comfyui", "/comfyui/<rest:path>", "/api/show", *jobs}
        self.assertEqual(harmless - models, expected)
        self.assertTrue({("GET", "/unload"), ("HEAD", "/unload"), ("GET", "/models/unload")} <= set(CHANGING))

    def test_a_get_that_does_what_a_changing_route_does_is_guarded_like_it(self):
        changing = {route.handler for route in ROUTES if route.changes_state}
        unguarded = [route.name for route in ROUTES if route.handler in changing and not route.changes_state]
        self.assertEqual(unguarded, [])

    def test_no_spelling_of_a_changing_path_passes_for_another_sites_page(self):
        for method, path in CHANGING:
            for spelling, same in [(path, True), (f"{path}/", True), *spellings(path)]:
                for foreign in (("Sec-Fetch-Site", "cross-site"), ("Origin", "http://evil.example")):
                    status, changed, body = self.ask(method, spelling, foreign)
                    with_guard = status == 403
                    if same:
                        self.assertTrue(with_guard, (method, spelling, status))
                    elif not spelling.startswith(("/upstream/", "/comfyui/")):
                        self.assertEqual(status, 404, (method, spelling))
                    else:
                        self.assertTrue(body.startswith(b"upstream ") or method == "HEAD", spelling)
                    self.assertFalse(changed, (method, spelling))

    def test_every_spelling_means_the_same_to_a_tool(self):
        for method, path in CHANGING:
            plain = self.ask(method, path)[:2]
            for spelling, same in spellings(path):
                if same and "?" not in spelling:
                    self.assertEqual(self.ask(method, spelling)[:2], plain, (method, spelling))
        self.assertEqual(self.ask("GET", "/%75nload")[:2], (200, True))
        self.assertEqual(self.ask("PUT", "/%61pi/config")[:2], (200, True))

    def test_requests_that_once_passed_for_another_sites_page_are_refused(self):
        foreign = [("Sec-Fetch-Site", "cross-site")]
        for method, path, headers, status in (
            ("PUT", "/api/config", foreign, 403),
            ("PUT", "/%61pi/config", foreign, 403),
            ("POST", "/%61pi/models/load/alpha", foreign, 403),
            ("GET", "/unload/", foreign, 403),
            ("GET", "/%75nload", foreign, 403),
            ("GET", "/models/unload/", foreign, 403),
            ("POST", "/models/unload/", foreign, 403),
            ("POST", "/api%2Fmodels/unload", foreign, 404),  # not a path of ours
            ("GET", "/unload", [("Sec-Fetch-Site", "same-site")], 403),
            ("GET", "/unload", [("Accept", "image/avif,image/webp,*/*;q=0.8")], 403),
            ("PUT", "/api/config", [("Host", "evil.example:8080"), ("Sec-Fetch-Site", "same-origin")], 403),
        ):
            self.assertEqual(self.ask(method, path, *headers)[:2], (status, False), (method, path, headers))

    def test_an_encoded_slash_stays_inside_a_models_name(self):
        world = World()
        self.assertEqual(world.ask("/api/models/load/org%2Fgamma", "POST").status, 202)
        self.assertEqual(world.ask("/%61pi//models/load/org%2fgamma", "POST").status, 202)
        self.assertEqual(world.router.loaded, ["org/gamma", "org/gamma"])
        self.assertEqual(world.ask("/api/models/load/org%252Fgamma", "POST").status, 404)

    def test_bytes_that_are_not_utf8_are_an_unknown_name(self):
        self.assertEqual(World().ask("/api/models/load/%FF", "POST").status, 404)
        self.assertEqual(World().ask("/%FF").status, 404)


class DnsRebindingTests(TestCase):
    def test_page_whose_name_resolves_to_this_server_changes_nothing(self):
        files = FakeFiles("models: {}\n", editable=True)
        world = World(files=files)
        own = [("Origin", "http://evil.example:8080"), ("Sec-Fetch-Site", "same-origin"), ("If-Match", "*")]
        answer = world.ask("/api/config", "PUT", own, b"models: {}\n", host="evil.example:8080")
        self.assertEqual(answer.status, 403)
        self.assertIn("allowedHosts", answer.text)
        self.assertEqual(world.ask("/unload", host="evil.example").status, 403)
        self.assertEqual(world.ask("/api/models/unload", "POST", host="evil.example").status, 403)
        self.assertEqual((files.written, world.router.unloaded), ([], []))
        self.assertEqual(world.ask("/running", host="evil.example").status, 200)

    def test_management_api_is_read_under_allowed_hosts_only_if_they_are_set_and_no_key_is(self):
        reads = ("/api/models/alpha", "/logs", "/running", "/api/peers")
        foreign = "evil.example:8080"
        for path in reads:
            self.assertEqual(World().ask(path, host=foreign).status, 200, path)
            world = World(example_router(example_config(allowed_hosts=("models.example.net",))))
            self.assertEqual(world.ask(path, host=foreign).status, 403, path)
            for host in ("models.example.net", "here:8080", "127.0.0.1:8080"):
                self.assertEqual(world.ask(path, host=host).status, 200, path)
        self.assertEqual(world.ask("/v1/models", host=foreign).status, 200)
        self.assertEqual(world.ask("/health", host=foreign).status, 200)
        keyed = example_config(allowed_hosts=("models.example.net",), api_keys=(ApiKey(Secret("k")),))
        answer = World(example_router(keyed)).ask("/running", headers=[("X-Api-Key", "k")], host=foreign)
        self.assertEqual(answer.status, 200)

    def test_host_listed_in_allowed_hosts_may_change_state(self):
        world = World(example_router(example_config(allowed_hosts=("models.example.net",))))
        self.assertEqual(world.ask("/unload", host="models.example.net").status, 200)


class EditingFromElsewhereTests(TestCase):
    REMOTE = IPv4Address("TCP", "192.168.1.7", 50000)

    def setUp(self):
        self.files = FakeFiles("models: {}\n", editable=True)

    def status(self, *forwarded, peer=LOOPBACK, router=None, more=()):
        world = World(router or example_router(), files=self.files)
        answer = world.ask("/api/config", "PUT", [("If-Match", "*"), *forwarded, *more], b"# new\n", peer=peer)
        if answer.status == 403:
            self.assertIn("apiKeys", answer.text)
        return answer.status

    def test_without_keys_another_machine_cannot_edit(self):
        self.assertEqual(self.status(peer=self.REMOTE), 403)
        # What a client says of itself does not make it local.
        self.assertEqual(self.status(("X-Forwarded-For", "127.0.0.1"), peer=self.REMOTE), 403)
        self.assertEqual(self.status(peer=IPv6Address("TCP", "fe80::1", 50000)), 403)
        self.assertEqual(self.status(peer=IPv6Address("TCP", "::ffff:10.0.0.1", 50000)), 403)
        world = World(files=self.files)
        restore = world.ask("/api/config/history/v1/restore", "POST", [("If-Match", "*")], peer=self.REMOTE)
        self.assertEqual(restore.status, 403)
        self.assertEqual(self.files.written, [])

    def test_without_keys_this_machine_can_edit(self):
        for peer in (
            LOOPBACK,
            IPv4Address("TCP", "127.8.9.1", 50000),
            IPv6Address("TCP", "::1", 50000),
            IPv6Address("TCP", "::ffff:127.0.0.1", 50000),
            UNIXAddress(None),
        ):
            self.assertEqual(self.status(peer=peer), 200, peer)
        self.assertEqual(self.status(("X-Forwarded-For", "127.0.0.1")), 200)

    def test_a_client_behind_a_proxy_on_this_machine_counts_as_remote(self):
        for forwarded in (
            [("X-Forwarded-For", "10.0.0.9")],
            [("X-Forwarded-For", "127.0.0.1, 10.0.0.9")],
            [("X-Forwarded-For", "10.0.0.9, 127.0.0.1")],
            [("X-Forwarded-For", "127.0.0.1"), ("X-Forwarded-For", "10.0.0.9")],
            [("X-Forwarded-For", "unknown")],
            [("X-Forwarded-For", "")],
            [("X-Real-IP", "10.0.0.9")],
            [("Forwarded", "for=127.0.0.1")],
            [("X-Forwarded-Proto", "https")],
            [("Via", "1.1 proxy")],
        ):
            for peer in (LOOPBACK, UNIXAddress(None)):
                self.assertEqual(self.status(*forwarded, peer=peer), 403, forwarded)
        self.assertEqual(self.files.written, [])

    def test_with_keys_a_client_that_has_one_can_edit_from_anywhere(self):
        router = example_router(with_keys("k-1"))
        self.assertEqual(self.status(peer=self.REMOTE, router=router, more=[("X-Api-Key", "k-1")]), 200)
        self.assertEqual(self.status(router=router), 401)


class FailureTests(TestCase):
    def test_internal_error_is_logged_and_not_described_to_the_client(self):
        world = World()
        world.router.vitals = None
        answer = world.ask("/readyz")
        self.assertEqual(answer.status, 500)
        self.assertEqual(answer.json, envelope(500, "internal error"))
        self.assertEqual(len(self.flushLoggedErrors(AttributeError)), 1)

    def test_a_client_that_leaves_does_not_stop_an_unload(self):
        world = World()
        cancelled = []
        world.router.work = Deferred(cancelled.append)
        client = world.open("/unload")
        self.assertEqual(client.received, b"")
        client.leave()
        self.assertEqual(cancelled, [])
        world.router.work.callback(None)


class AccessLogTests(TestCase):
    def test_a_line_is_written_for_served_requests_and_for_clients_that_left(self):
        lines = []

        class Lines:
            def wants(self, level):
                return True

            def line(self, level, text):
                lines.append(text)

        world = World(access=AccessLog(Lines()))
        world.ask("/running?x=1", headers=[("X-Forwarded-For", "9.9.9.9, 1.1.1.1"), ("User-Agent", "probe")])
        self.assertEqual(lines, ['Request 9.9.9.9 "GET /running HTTP/1.1" 200 15 "probe" 0s'])
        world.ask("/x/..//%72unning?y=//")
        self.assertIn('"GET /running HTTP/1.1" 200', lines.pop())
        world.router.work = Deferred()
        client = world.open("/unload")
        world.clock.advance(1.5)
        client.leave()
        self.assertIn('"GET /unload HTTP/1.1"', lines[1])


class AbsentGroupTests(TestCase):
    def test_routes_of_endpoints_without_an_object_are_not_found(self):
        site = app.AdminSite(app.Admin([], Authenticator(tuple), HostCheck()), World().clock)
        self.assertEqual(Client(site, "/api/loadtest").answer().status, 404)
