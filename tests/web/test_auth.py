from base64 import b64encode
from hashlib import sha256

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import ApiKey, Secret
from llamaswap.config.schema import CorsSettings
from llamaswap.proxy.exchange import RequestHead
from llamaswap.web.auth import (
    Authenticator,
    HostCheck,
    machine_names,
    preflight,
    refuse_cross_site,
    refuse_foreign_websocket,
)
from llamaswap.web.errors import HttpError
from tests.web.doubles import texts


def reader(**headers):
    values = {name.replace("_", "-").encode(): value.encode("latin-1") for name, value in headers.items()}
    return values.get


class Head:
    """A request head with these headers."""

    def __init__(self, *headers):
        self.headers = headers

    def first(self, name):
        return next((value for key, value in self.headers if key.lower() == name), None)


def carriers(gate, **headers):
    """The headers that carry a key, of a request with these headers."""
    head = Head(*((name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()))
    return gate(head).key_headers


AUTHORIZATION, X_API_KEY = frozenset([b"authorization"]), frozenset([b"x-api-key"])


def basic(text):
    return "Basic " + b64encode(text.encode()).decode()


GATE = Authenticator(texts("k-1", "k-2"))


class KeyTests(SynchronousTestCase):
    def refused(self, **headers):
        error = self.assertRaises(HttpError, GATE.admit, reader(**headers))
        self.assertEqual(error.status, 401)

    def test_request_without_configured_keys_is_admitted_with_all_its_headers(self):
        self.assertEqual(carriers(Authenticator(tuple), authorization="Bearer theirs"), frozenset())

    def test_each_way_to_present_a_key_is_known_and_reported(self):
        """http T019, http T020, http T021"""
        self.assertEqual(carriers(GATE, authorization="Bearer k-2"), AUTHORIZATION)
        self.assertEqual(carriers(GATE, authorization="bEARER k-2"), AUTHORIZATION)
        self.assertEqual(carriers(GATE, x_api_key="k-1"), X_API_KEY)
        self.assertEqual(carriers(GATE, authorization=basic("anyone:k-1")), AUTHORIZATION)

    def test_every_header_that_carries_a_key_is_named(self):
        names = carriers(GATE, authorization="Bearer k-1", x_api_key="k-1", api_key="k-2", accept="*/*")
        self.assertEqual(names, frozenset([b"authorization", b"x-api-key", b"api-key"]))
        names = carriers(GATE, authorization=basic("anyone:k-1"), x_api_key="k-2", x_forwarded_key="Bearer k-1")
        self.assertEqual(names, frozenset([b"authorization", b"x-api-key", b"x-forwarded-key"]))
        self.assertEqual(carriers(GATE, authorization="Bearer k-1", x_api_key="theirs"), AUTHORIZATION)

    def test_key_in_the_second_of_two_equal_headers_is_named(self):
        head = Head((b"X-Api-Key", b"theirs"), (b"x-api-key", b"k-1"), (b"Authorization", b"Bearer k-1"))
        self.assertEqual(GATE(head).key_headers, AUTHORIZATION | X_API_KEY)

    def test_key_that_equals_the_host_does_not_remove_the_host(self):
        self.assertEqual(carriers(Authenticator(texts("box")), host="box", x_api_key="box"), X_API_KEY)

    def test_configured_keys_are_read_again_when_they_change(self):
        keys = [texts("k-1")()]
        gate = Authenticator(lambda: keys[0])
        self.assertEqual(carriers(gate, x_api_key="k-1"), X_API_KEY)
        keys[0] = texts("k-2")()
        self.assertRaises(HttpError, gate.admit, reader(x_api_key="k-1"))
        self.assertEqual(carriers(gate, x_api_key="k-2"), X_API_KEY)
        keys[0] = ()
        self.assertEqual(carriers(gate), frozenset())

    def test_a_wrong_key_is_not_rescued_by_a_right_one(self):
        """http T023"""
        self.refused(authorization="Bearer wrong", x_api_key="k-1")
        self.refused(authorization=basic("u:wrong"), x_api_key="k-1")

    def test_basic_header_without_a_password_presents_no_key(self):
        """http T024, http T025"""
        for value in ("Basic %%%", basic("user:"), basic("nocolon"), "Bearer", "Digest x"):
            self.assertEqual(carriers(GATE, authorization=value, x_api_key="k-1"), X_API_KEY, value)

    def test_the_scheme_ends_at_the_first_space(self):
        """http T027"""
        self.refused(authorization="Bearer  k-1")

    def test_missing_or_nearly_right_key_is_refused(self):
        self.refused()
        self.refused(x_api_key="K-1")
        self.refused(x_api_key="k-1 ")

    def test_empty_configured_key_admits_no_request(self):
        self.assertRaises(HttpError, Authenticator(texts("")).admit, reader())

    def test_a_reload_changes_the_keys(self):
        keys = [texts("old")()]
        gate = Authenticator(lambda: keys[0])
        keys[0] = texts("new")()
        self.assertEqual(carriers(gate, x_api_key="new"), X_API_KEY)


CHILD = ApiKey(Secret("sha256:" + sha256(b"sk-child").hexdigest()), "child", models=("beta*",), scopes=("infer",))
READER = ApiKey(Secret("sk-reader"), "reader", scopes=("read",))
ADMIN = ApiKey(Secret("sk-admin"), "admin", scopes=("admin",))
OLD = ApiKey(Secret("sk-old"), "old", expires=1000.0)


class NamedKeyTests(SynchronousTestCase):
    def test_a_key_is_known_by_its_digest_and_its_headers_are_named(self):
        keys = (CHILD, ADMIN)
        head = Head((b"Authorization", b"Bearer sk-child"), (b"x-other", b"sk-admin"), (b"x-third", b"theirs"))
        found = Authenticator(lambda: keys)(head)
        self.assertEqual((found.access.name, found.key_headers), ("child", frozenset([b"authorization", b"x-other"])))
        digest = CHILD.value.encode()
        self.assertRaises(HttpError, Authenticator(lambda: keys).admit, {b"x-api-key": digest}.get)

    def test_scopes_count_for_keys_with_a_name_once_any_key_has_some(self):
        named = ApiKey(Secret("sk-named"), "named")
        for keys, scopes in (((named,), {"infer", "read", "admin"}), ((named, CHILD), {"infer"})):
            gate = Authenticator(lambda keys=keys: keys)
            self.assertEqual(gate.admit(reader(x_api_key="sk-named")).scopes, scopes)
        text = ApiKey(Secret("plain"))
        gate = Authenticator(lambda: keys)
        keys = (text, CHILD, ADMIN, READER)
        self.assertEqual(gate.admit(reader(x_api_key="plain")).scopes, {"infer", "read", "admin"})
        self.assertEqual(gate.admit(reader(x_api_key="sk-admin")).scopes, {"infer", "read", "admin"})
        self.assertEqual(gate.admit(reader(x_api_key="sk-reader")).scopes, {"read"})
        error = self.assertRaises(HttpError, gate, Head((b"x-api-key", b"sk-reader")))
        self.assertEqual((error.status, error.code), (403, "scope"))

    def test_an_expired_key_is_refused_from_its_moment_on(self):
        keys = (OLD,)
        gate = Authenticator(lambda: keys, lambda: now[0])
        now = [999.9]
        access = gate.admit(reader(x_api_key="sk-old"))
        now[0] = 1000.0
        for ask in (lambda: gate.admit(reader(x_api_key="sk-old")), lambda: gate.refuse_expired(access)):
            error = self.assertRaises(HttpError, ask)
            self.assertEqual((error.status, error.code), (401, "key_expired"))
            self.assertNotIn("sk-old", str(error))


class PreflightTests(SynchronousTestCase):
    def allowed(self, asked):
        return dict(preflight(reader(access_control_request_headers=asked), CorsSettings()))[
            b"Access-Control-Allow-Headers"
        ]

    def test_preflight_keeps_the_tokens_of_the_requested_headers_in_order(self):
        """http T011, http T012"""
        self.assertEqual(self.allowed("b@d"), b"")
        self.assertEqual(self.allowed("content-type,\tauthorization,,"), b"content-type, authorization")
        self.assertEqual(self.allowed("X-A, bad header, X-B"), b"X-A, X-B")
        self.assertEqual(self.allowed("X-A\r\nEvil: 1"), b"")

    def test_preflight_without_requested_headers_allows_the_usual_ones(self):
        self.assertIn(b"Authorization", self.allowed(""))


class CrossSiteTests(SynchronousTestCase):
    def passes(self, **headers):
        try:
            refuse_cross_site(reader(host="box:8080", **headers))
        except HttpError as error:
            self.assertEqual(error.status, 403)
            return False
        return True

    def test_requests_of_tools_and_of_the_ui_pass(self):
        self.assertTrue(self.passes())
        self.assertTrue(self.passes(accept="*/*"))
        self.assertTrue(self.passes(origin="http://box:8080"))
        self.assertTrue(self.passes(referer="http://box:8080/ui/models"))
        self.assertTrue(self.passes(sec_fetch_site="none"))

    def test_requests_of_other_sites_pages_are_refused(self):
        self.assertFalse(self.passes(origin="http://box:9090"))
        self.assertFalse(self.passes(origin="null"))
        self.assertFalse(self.passes(origin="http://[broken"))
        self.assertFalse(self.passes(sec_fetch_site="cross-site"))
        self.assertFalse(self.passes(sec_fetch_site="Same-Site"))
        self.assertFalse(self.passes(referer="https://evil.example/page"))
        self.assertFalse(self.passes(accept="image/avif,*/*"))

    def test_script_or_style_of_a_page_that_hides_its_address_is_refused_and_curl_passes(self):
        browser = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"
        for accept in ("*/*", "text/css,*/*;q=0.1", "audio/webm,audio/ogg,*/*;q=0.5", ""):
            self.assertFalse(self.passes(accept=accept, user_agent=browser), accept)
        page = "text/html,application/xhtml+xml,*/*;q=0.8"
        self.assertTrue(self.passes(accept=page, user_agent=browser))  # an address that was typed
        self.assertFalse(self.passes(accept=page, user_agent=browser, referer="http://evil.example/"))
        self.assertTrue(self.passes(accept="*/*", user_agent=browser, origin="http://box:8080"))
        self.assertTrue(self.passes(accept="*/*", user_agent="curl/8.5.0"))

    def test_request_behind_a_proxy_that_rewrites_host_passes_if_the_browser_says_same_origin(self):
        self.assertTrue(self.passes(origin="https://llm.lan", sec_fetch_site="same-origin"))


class ForeignWebsocketTests(SynchronousTestCase):
    UPGRADE = ((b"Host", b"box:8080"), (b"Connection", b"Upgrade"), (b"Upgrade", b"websocket"))

    def passes(self, *headers, origins=("https://chat.example",), upgrade=UPGRADE):
        try:
            refuse_foreign_websocket(RequestHead(b"GET", b"/upstream/m/ws", [*upgrade, *headers]), origins)
        except HttpError as error:
            self.assertEqual(error.status, 403)
            return False
        return True

    def test_websocket_of_a_page_that_is_not_listed_is_refused(self):
        for origin in (b"https://evil.example", b"null", b"http://box:9090", b"https://chat.example:8443", b""):
            self.assertFalse(self.passes((b"Origin", origin)), origin)
            self.assertFalse(self.passes((b"Origin", origin), (b"Sec-Fetch-Site", b"cross-site")), origin)
        self.assertFalse(self.passes((b"Origin", b"https://chat.example"), origins=()))

    def test_websockets_of_tools_own_pages_and_listed_origins_pass(self):
        self.assertTrue(self.passes())
        self.assertTrue(self.passes((b"Origin", b"https://chat.example")))
        self.assertTrue(self.passes((b"Origin", b"http://box:8080")))
        self.assertTrue(self.passes((b"Origin", b"https://llm.lan"), (b"Sec-Fetch-Site", b"same-origin")))
        self.assertTrue(self.passes((b"Origin", b"https://evil.example"), origins=("*",)))
        self.assertTrue(self.passes((b"Origin", b"https://evil.example"), upgrade=self.UPGRADE[:1]))


class HostCheckTests(SynchronousTestCase):
    def setUp(self):
        self.allowed = []
        self.check = HostCheck(machine_names("Box.lan"), lambda: self.allowed)

    def passes(self, host):
        try:
            self.check(reader(host=host))
        except HttpError as error:
            self.assertEqual(error.status, 403)
            self.assertIn("allowedHosts", error.message)
            return False
        return True

    def test_addresses_and_names_of_this_machine_pass(self):
        for host in (
            "127.0.0.1",
            "10.1.2.3:8080",
            "[::1]:8080",
            "[fe80::1]",
            "localhost:8080",
            "LocalHost.",
            "llama.localhost:1",
            "box:8080",
            "BOX.lan",
            "box.local",
        ):
            self.assertTrue(self.passes(host), host)

    def test_requests_of_tools_without_a_host_pass(self):
        self.assertIsNone(self.check(reader()))

    def test_hosts_similar_to_the_machines_name_are_refused(self):
        for host in (
            "evil.example",
            "evil.example:8080",
            "127.0.0.1.evil.example",
            "127.1",
            "localhost.evil.example",
            "notlocalhost",
            "box.evil.example",
            "box.lan.evil.example:80",
            "[evil.example]",
            "[::1].evil.example",
            "::1",
            "127.0.0.1@evil.example",
            "*",
            ":8080",
            "127.0.0.1:evil",
            "localhost:80:evil.example",
            "[::1%25evil.example]",
            "[::1].evil",
        ):
            self.assertFalse(self.passes(host), host)

    def test_hosts_in_allowed_hosts_pass_after_a_reload(self):
        self.assertFalse(self.passes("models.example.net"))
        self.allowed = ["Models.Example.net"]
        self.assertTrue(self.passes("models.example.net:443"))
        self.assertFalse(self.passes("x.models.example.net"))
        self.allowed = ["*"]
        self.assertTrue(self.passes("evil.example"))

    def test_machine_without_a_name_allows_no_names(self):
        self.assertEqual(machine_names(""), frozenset())
