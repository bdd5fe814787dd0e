"""One model's own server is reachable under its name, byte for byte."""

from __future__ import annotations

from twisted.internet.address import IPv4Address
from twisted.internet.defer import succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource
from twisted.web.server import Site

from llamaswap.config import Compat, Profile
from llamaswap.config.patterns import PathPattern
from llamaswap.config.schema import UpstreamSettings
from llamaswap.proxy.exchange import RequestHead
from llamaswap.proxy.server_factory import ProxyServerFactory
from llamaswap.proxy.twisted_web_adapter import SiteContent
from llamaswap.web.passthrough import Destination, destination, resource
from llamaswap.wire.headers import ResponseHeaders
from tests.web.pipeline import JSON, ArrivingBody, Stage, config, model

UPGRADE = ((b"Connection", b"Upgrade"), (b"Upgrade", b"websocket"))


def message(asked) -> str:
    return asked.sink.json["error"]["message"]


class PathTests(SynchronousTestCase):
    def where(self, path: bytes, profile: str | None = None, **more):
        found = destination(path, config(**more), profile)
        return (found.name, found.rest) if found is not None else None

    def test_the_longest_name_wins(self):
        """http T113"""
        self.assertEqual(self.where(b"org/gamma/x"), ("org/gamma", b"/x"))
        self.assertEqual(self.where(b"org/gamm/x"), ("org", b"/gamm/x"))

    def test_an_encoded_slash_in_the_name_is_one_and_elsewhere_stays(self):
        """http T115, T116"""
        self.assertEqual(self.where(b"org%2Fgamma/api/a%2Fb"), ("org/gamma", b"/api/a%2Fb"))
        self.assertEqual(self.where(b"org%2fgamma%2Fapi"), ("org/gamma", b"/api"))
        self.assertEqual(self.where(b"alpha/api/w%252Fx"), ("alpha", b"/api/w%252Fx"))
        self.assertEqual(self.where(b"alpha/%C3%A4/"), ("alpha", b"/%C3%A4/"))

    def test_empty_segments_belong_to_no_name(self):
        self.assertEqual(self.where(b"org//gamma/x"), ("org/gamma", b"/x"))
        self.assertEqual(self.where(b"alpha//x"), ("alpha", b"//x"))

    def test_a_bare_name_leaves_nothing(self):
        self.assertEqual(self.where(b"al"), ("al", b""))
        self.assertEqual(self.where(b"al/"), ("al", b"/"))

    def test_selectors_and_unknown_names_lead_nowhere(self):
        """http T065"""
        for path in (b"pick/v1/chat/completions", b"", b"/", b"ghost/x", b"delta/x"):
            self.assertIsNone(self.where(path), path)

    def test_peers_are_found_by_both_spellings(self):
        """http T117"""
        self.assertEqual(self.where(b"lab/delta/v1/models"), ("lab/delta", b"/v1/models"))
        self.assertEqual(self.where(b"zeta/app.js"), ("zeta", b"/app.js"))

    def test_a_pin_takes_the_place_of_the_longest_prefix(self):
        """http T069, T071, core V89"""
        self.assertEqual(self.where(b"chat", "work"), ("alpha", b""))
        self.assertEqual(self.where(b"chat/a%2Fb", "work"), ("alpha", b"/a%2Fb"))
        self.assertEqual(self.where(b"pool/x/y", "work"), ("org/gamma", b"/y"))
        self.assertEqual(self.where(b"chat/", "work"), ("alpha", b"/"))
        self.assertEqual(self.where(b"chat//", "work"), ("alpha", b"//"))
        self.assertIsNone(self.where(b"org/x", "work"))
        self.assertIsNone(self.where(b"chat", None))
        self.assertEqual(self.where(b"chatty/x", "work"), None)
        both = {"two": Profile(pins={"pool": "alpha", "pool/x": "beta"})}
        self.assertEqual(self.where(b"pool/x/v1/y", "two", profiles=both), ("beta", b"/v1/y"))
        self.assertEqual(self.where(b"pool/z/v1/y", "two", profiles=both), ("alpha", b"/z/v1/y"))

    def test_a_destination_is_a_value(self):
        self.assertEqual(Destination("a", b"/", "b"), Destination("a", b"/", "b"))


class ForwardTests(SynchronousTestCase):
    def setUp(self):
        self.stage = Stage()

    def test_client_that_waits_for_100_continue_is_answered_before_its_body_is_read(self):
        expecting = (b"Expect", b"100-Continue")
        passthrough = self.stage.passthrough
        for method, target, headers, answer in (
            (b"POST", b"/upstream/alpha/x", [expecting], True),
            (b"PUT", b"/comfyui/x", [expecting], True),
            (b"POST", b"/upstream/alpha/x", [], False),
            (b"OPTIONS", b"/upstream/alpha/x", [expecting], False),
            (b"POST", b"/api/x", [expecting], False),
        ):
            self.assertEqual(passthrough.is_expecting(RequestHead(method, target, headers)), answer, target)
        for target, status in ((b"/upstream/ghost/x", 404), (b"/comfyui/x", 404)):
            asked = self.stage.ask(b"POST", target, ArrivingBody(9), expecting, serve=passthrough.serve)
            self.assertEqual(asked.sink.status, status)

    def test_a_bare_model_is_sent_to_its_folder(self):
        """http T112"""
        for method, target, status, location in (
            (b"GET", b"/upstream/alpha", 301, b"/upstream/alpha/"),
            (b"POST", b"/upstream/al?x=1", 308, b"/upstream/al/?x=1"),
            (b"HEAD", b"/upstream/org%2Fgamma", 301, b"/upstream/org/gamma/"),
        ):
            sink = self.stage.upstream(method, target).sink
            self.assertEqual((sink.status, sink.header(b"location")), (status, location))

    def test_pinned_name_is_served_by_the_pinned_model_and_stays_in_the_address(self):
        """http T071, where the redirect names the pinned model: a browser keeps it after the profile has changed"""
        self.stage.router.profile = "work"
        sink = self.stage.upstream(b"GET", b"/upstream/chat?q=1").sink
        self.assertEqual(sink.header(b"location"), b"/upstream/chat/?q=1")
        self.assertEqual(
            self.stage.upstream(b"GET", b"/upstream/pool%2Fx").sink.header(b"location"), b"/upstream/pool/x/"
        )
        self.stage.upstream(b"POST", b"/upstream/chat/v1/chat/completions", b'{"model":"chat"}', JSON)
        forwarding = self.stage.forwarding
        self.assertEqual((self.stage.router.asked[0].model, forwarding.head.target), ("alpha", b"/v1/chat/completions"))
        self.assertEqual(forwarding.sent, b'{"model":"chat"}')

    def test_redirect_of_a_pinned_name_leads_to_its_model_if_two_models_replace_each_other(self):
        swapped = config(profiles={"swap": Profile(pins={"alpha": "whisper", "whisper": "alpha"})})
        self.stage.router.config, self.stage.router.profile = swapped, "swap"
        location = self.stage.upstream(b"GET", b"/upstream/alpha").sink.header(b"location")
        self.stage.upstream(b"GET", location)
        self.assertEqual(self.stage.router.asked[0].model, "whisper")

    def test_an_unknown_model_is_not_found_and_not_recorded(self):
        """http T008, T065"""
        for target in (b"/upstream/", b"/upstream/pick/v1/chat/completions", b"/upstream/ghost/x"):
            asked = self.stage.upstream(b"POST", target, b"{}", JSON)
            self.assertEqual((asked.sink.status, message(asked)), (404, "model not found"))
        self.assertEqual(self.stage.witnesses.seen, [])

    def test_the_key_is_asked_for_first(self):
        self.stage.keys = {b"x-api-key": b"k"}
        self.assertEqual(self.stage.upstream(b"GET", b"/upstream/alpha").sink.status, 401)
        self.stage.upstream(b"GET", b"/upstream/alpha/", b"", (b"X-Api-Key", b"k"))
        self.assertIsNone(self.stage.forwarding.header(b"x-api-key"))

    def test_path_and_query_are_forwarded_raw(self):
        """http T115"""
        self.stage.upstream(b"POST", b"/upstream/org%2Fgamma/api/a%2Fb?p=1&&q", b"x")
        self.assertEqual(self.stage.forwarding.head.target, b"/api/a%2Fb?p=1&&q")
        self.assertEqual(self.stage.forwarding.upstream.name, "org/gamma")
        self.assertEqual(self.stage.router.asked[0].model, "org/gamma")

    def test_a_peer_gets_its_own_base(self):
        """http T117"""
        self.stage.upstream(b"GET", b"/upstream/lab/delta/v1/models")
        self.assertEqual(self.stage.forwarding.head.target, b"/base/v1/models")
        self.assertEqual(self.stage.router.asked, [])

    def test_bodies_are_not_filtered_and_model_paths_are_metered(self):
        """http T119"""
        text = b'{"model":"beta","temperature":1}'
        self.stage.upstream(b"POST", b"/upstream/beta/v1/chat/completions", text, JSON)
        self.assertEqual(self.stage.forwarding.sent, text)
        facts = self.stage.witness.facts
        self.assertEqual((facts.path, facts.stored_path), ("/v1/chat/completions",) * 2)
        self.assertEqual((facts.tracked, facts.metered, facts.captured_body), (True, True, text))

    def test_other_paths_are_neither_tracked_nor_metered(self):
        """http T119"""
        self.stage.upstream(b"POST", b"/upstream/beta/probe", b"{}", JSON)
        self.assertEqual(self.stage.witnesses.seen, [])
        self.assertIs(self.stage.forwarding.body, self.stage.forwarding.exchange.body)

    def test_a_get_of_a_model_path_is_tracked_only_and_a_post_of_a_get_path_metered_only(self):
        self.stage.router.states["alpha"] = "ready"
        self.stage.upstream(b"GET", b"/upstream/alpha/props")
        self.stage.upstream(b"POST", b"/upstream/alpha/props", b"{}")
        self.assertEqual(
            [(each.facts.tracked, each.facts.metered) for each in self.stage.witnesses.seen],
            [(True, False), (False, True)],
        )

    def test_no_loading_text_is_shown(self):
        """http T108"""
        stage = Stage(auto=False, ready=False)
        text = b'{"model":"alpha","stream":true}'
        asked = stage.upstream(b"POST", b"/upstream/alpha/v1/chat/completions", text, JSON)
        self.assertFalse(asked.sink.started)
        self.assertEqual(len(stage.router.asked), 1)
        self.assertTrue(stage.witness.facts.streaming)

    def test_a_qualified_peers_body_names_the_peers_own_model(self):
        for body, kind, sent in (
            (b'{"model":"lab/delta","n":1}', JSON, b'{"model":"delta","n":1}'),
            (b'{"model":"other"}', JSON, b'{"model":"other"}'),
            (b"model=lab%2Fdelta", (b"Content-Type", b"application/x-www-form-urlencoded"), b"model=delta"),
            (b"lab/delta", (b"Content-Type", b"text/plain"), b"lab/delta"),
        ):
            stage = Stage()
            stage.upstream(b"POST", b"/upstream/lab/delta/v1/completions?a=1", body, kind)
            self.assertEqual(stage.forwarding.sent, sent)
            self.assertEqual(stage.forwarding.head.target, b"/base/v1/completions?a=1")

    def test_an_ignored_path_does_not_start_its_model(self):
        ignoring = UpstreamSettings(ignore_paths=(PathPattern.compile(r"\.js$"),))
        stage = Stage(config=config(upstream=ignoring))
        asked = stage.upstream(b"GET", b"/upstream/alpha/app.js?x")
        self.assertEqual(asked.sink.status, 409)
        self.assertEqual(message(asked), "model alpha is not loaded; path matches upstream.ignorePaths")
        stage.upstream(b"GET", b"/upstream/zeta/app.js")
        stage.router.states["alpha"] = "ready"
        stage.upstream(b"GET", b"/upstream/alpha/app.js")
        self.assertEqual([each.upstream.name for each in stage.forwarder.forwarded], ["peer proxy error", "alpha"])

    def test_a_monitors_probe_does_not_start_its_model(self):
        """A watched model would never stay unloaded."""
        for path in (b"health", b"metrics", b"models", b"props", b"slots"):
            asked = self.stage.upstream(b"GET", b"/upstream/alpha/" + path)
            self.assertEqual(asked.sink.status, 409, path)
        self.assertIn("/upstream/alpha/ does", message(asked))
        self.assertEqual(self.stage.router.asked, [])
        self.stage.upstream(b"GET", b"/upstream/alpha/")
        self.assertEqual(len(self.stage.router.asked), 1)

    def test_a_websocket_is_carried_as_an_upgrade(self):
        """http T104"""
        self.stage.upstream(b"GET", b"/upstream/alpha/ws", b"", *UPGRADE)
        self.assertEqual(self.stage.forwarding.header(b"upgrade"), b"websocket")
        self.assertEqual(len(self.stage.router.asked), 1)

    def test_an_ignored_websocket_needs_a_ready_model(self):
        """http T105"""
        asked = self.stage.upstream(b"GET", b"/upstream/sock/ws", b"", *UPGRADE)
        self.assertEqual(asked.sink.status, 409)
        self.stage.router.states["sock"] = "ready"
        self.stage.upstream(b"GET", b"/upstream/sock/ws", b"", *UPGRADE)
        self.assertIsNone(self.stage.forwarding.observer)
        self.assertEqual(self.stage.router.asked, [])


class ComfyUiTests(SynchronousTestCase):
    def setUp(self):
        self.stage = Stage(config=config(models=[model("comfyui_auto", compat=Compat(ignore_websockets=True))]))

    def test_without_the_model_it_is_not_found(self):
        """http T120"""
        asked = Stage().comfyui(b"GET", b"/comfyui/")
        self.assertEqual((asked.sink.status, message(asked)), (404, "local model comfyui_auto not found"))

    def test_only_the_root_starts_it(self):
        """http T121"""
        for state in ("stopped", "starting"):
            self.stage.router.states["comfyui_auto"] = state
            asked = self.stage.comfyui(b"GET", b"/comfyui/api/prompt")
            self.assertEqual(asked.sink.status, 409)
            self.assertEqual(message(asked), "model comfyui_auto is not loaded; only /comfyui/ can start it")
        self.stage.comfyui(b"GET", b"/comfyui/?t=1")
        self.assertEqual(self.stage.forwarding.head.target, b"/?t=1")
        self.assertEqual(len(self.stage.router.asked), 1)

    def test_a_ready_one_serves_every_path_raw_and_unseen(self):
        """http T121"""
        self.stage.router.states["comfyui_auto"] = "ready"
        self.stage.comfyui(b"GET", b"/comfyui/api/u/a%2Fb.json")
        self.assertEqual(self.stage.forwarding.head.target, b"/api/u/a%2Fb.json")
        self.assertEqual(self.stage.witnesses.seen, [])

    def test_its_websockets_count_nowhere(self):
        self.stage.router.states["comfyui_auto"] = "ready"
        self.stage.comfyui(b"GET", b"/comfyui/ws?clientId=1", b"", *UPGRADE)
        self.assertEqual(self.stage.forwarding.head.target, b"/ws?clientId=1")
        self.assertEqual(self.stage.router.asked, [])

    def test_a_key_is_asked_for(self):
        """http T031"""
        self.stage.keys = {b"x-api-key": b"k"}
        self.assertEqual(self.stage.comfyui(b"GET", b"/comfyui/").sink.status, 401)


class RouteMapTests(SynchronousTestCase):
    """The seam by which a request of the Klein map becomes an exchange."""

    def test_a_request_below_the_resource_is_served_as_an_exchange(self):
        served = []

        def serve(exchange):
            served.append((exchange.head, self.successResultOf(exchange.body.read_all(10))))
            exchange.sink.head(200, b"OK", ResponseHeaders.of([(b"Content-Length", b"2")]), raw=True, data=b"hi")
            exchange.sink.finish()
            return succeed(None)

        root = Resource()
        root.putChild(b"upstream", resource(serve, Clock()))
        site = Site(root)
        site.getContentFile = lambda length: SiteContent(Clock(), length)
        factory = ProxyServerFactory(lambda head: False, serve, site, Clock())
        channel = factory.buildProtocol(IPv4Address("TCP", "1.2.3.4", 5))
        wire = StringTransport()
        channel.makeConnection(wire)
        channel.dataReceived(b"POST /upstream/a%2Fb/c?d HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")
        ((head, body),) = served
        self.assertEqual((head.method, head.target, body), (b"POST", b"/upstream/a%2Fb/c?d", b"abc"))
        self.assertTrue(wire.value().endswith(b"\r\n\r\nhi"))
        channel.connectionLost(Failure(ConnectionDone()))

    def test_passthrough_is_a_reverse_proxy_resource(self):
        from twisted.web.proxy import ReverseProxyResource

        self.assertIsInstance(resource(lambda exchange: succeed(None), Clock()), ReverseProxyResource)
