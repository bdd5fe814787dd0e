"""The model routes: from a request's head to a server's request."""

from __future__ import annotations

import gzip
import json
import os
from base64 import b64encode
from functools import partial
from hashlib import sha256

import zstandard
from attrs import evolve
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import ApiKey, Endpoint, Peer, Secret, Selector
from llamaswap.config.policies import RouterSettings
from llamaswap.config.policies.groups import Group
from llamaswap.config.schema.routing import EvictionSettings, Routing
from llamaswap.errors import (
    ClientGone,
    NoTarget,
)
from llamaswap.observe.worker import at_once
from llamaswap.proxy.bodies import PiecesBody
from llamaswap.proxy.exchange import RequestHead
from llamaswap.proxy.incoming_body import SpooledBody
from llamaswap.servers.environment import for_servers
from llamaswap.web.auth import Authenticator
from llamaswap.web.inference import is_model_path
from llamaswap.web.request_content import FORM_LIMIT, JOINED_LIMIT, read_content
from llamaswap.web.upstream_request import UpstreamRequests
from llamaswap.wire.byte_budget import ByteBudget
from llamaswap.wire.json_members import LARGE
from tests.web.doubles import texts
from tests.web.pipeline import JSON, ArrivingBody, Stage, config, model

CHAT = b"/v1/chat/completions"
MINE = ((b"Host", b"me"), (b"X-Forwarded-For", b"9"), (b"Authorization", b"Bearer mine"), (b"x-api-key", b"mine"))
FORM = (b"Content-Type", b"application/x-www-form-urlencoded")


def message(sink) -> str:
    return sink.json["error"]["message"]


class RouteTests(SynchronousTestCase):
    def test_the_pipeline_serves_its_own_methods_and_paths_only(self):
        for method, path in (
            (b"POST", CHAT),
            (b"POST", b"/v/embeddings"),
            (b"POST", b"/audioapi/v1/tasks/run"),
            (b"POST", b"/sdapi/v1/img2img"),
            (b"GET", b"/props"),
            (b"HEAD", b"/v1/audio/voices"),
            (b"POST", b"/v1/audio/voices"),
        ):
            self.assertTrue(is_model_path(method, path), path)
        for method, path in ((b"GET", CHAT), (b"POST", b"/props"), (b"POST", b"/v1/models"), (b"POST", CHAT + b"/")):
            self.assertFalse(is_model_path(method, path), path)


class ModelNameTests(SynchronousTestCase):
    def setUp(self):
        self.stage = Stage()

    def refused(self, asked, status: int, text: str):
        self.assertEqual((asked.sink.status, asked.sink.ending), (status, "finished"))
        self.assertEqual(message(asked.sink), text)
        self.assertEqual(asked.done, [None])
        self.assertEqual(self.stage.forwarder.forwarded, [])

    def test_an_alias_leads_to_its_model_and_the_body_stays(self):
        """http T035"""
        self.stage.post({"model": "al"})
        self.assertEqual(self.stage.forwarding.upstream.name, "alpha")
        self.assertEqual(self.stage.forwarding.sent, b'{"model":"al"}')
        self.assertEqual(self.stage.router.asked[0].model, "alpha")

    def test_a_request_without_a_model_is_answered_and_not_recorded(self):
        """http T036, T037"""
        for body in (b"{}", b'{"model":""}', b"not-json", b'[{"model":"alpha"}]'):
            self.refused(self.stage.post(body), 404, "no model id could be identified")
        self.assertEqual(self.stage.witnesses.seen, [])

    def test_an_unknown_model_is_recorded(self):
        """http T038, T039"""
        asked = self.stage.post({"model": "ghost"}, CHAT, (b"Accept", b"text/html"))
        self.assertEqual(asked.sink.header(b"content-type"), b"text/html")
        self.assertIn(b"<p>no router for requested model</p>", asked.sink.body)
        witness = self.stage.witness
        self.assertEqual((witness.facts.model, witness.heads[0][0], witness.endings[0][0]), ("ghost", 404, "refused"))

    def test_json_without_a_content_type_is_json(self):
        """http T040"""
        self.stage.ask(b"POST", b"/v1/completions", b' {"model":"beta","temperature":1}')
        self.assertEqual(json.loads(self.stage.forwarding.sent), {"model": "beta-up", "top_k": 7})

    def test_the_query_names_the_model_of_an_empty_post(self):
        """http T041"""
        self.stage.ask(b"POST", b"/v1/completions?model=alpha")
        self.assertEqual(self.stage.forwarding.head.target, b"/v1/completions?model=alpha")

    def test_get_routes_read_the_query(self):
        """http T043, T044, T045"""
        self.stage.ask(b"GET", b"/v1/audio/voices?model=alpha")
        self.assertEqual(self.stage.forwarding.head.target, b"/v1/audio/voices?model=alpha")
        self.refused_stage(b"/v1/audio/voices", "no model id could be identified")
        self.refused_stage(b"/sdapi/v1/loras?model=ghost", "no router for requested model")

    def refused_stage(self, target: bytes, text: str):
        self.stage = Stage()
        self.refused(self.stage.ask(b"GET", target), 404, text)

    def test_a_number_names_a_model(self):
        """http T047"""
        self.stage.post(b'{"model":42}')
        self.assertEqual(self.stage.forwarding.upstream.name, "42")

    def test_the_first_model_member_counts(self):
        """http T048"""
        self.stage.post(b'{"model":"alpha","model":"org"}')
        self.assertEqual(self.stage.forwarding.upstream.name, "alpha")

    def test_a_charset_does_not_hide_json(self):
        """http T052"""
        self.stage.ask(
            b"POST", b"/v1/embeddings", b'{"model":"alpha"}', (b"Content-Type", b"Application/JSON; charset=utf-8")
        )
        self.assertEqual(self.stage.forwarding.upstream.name, "alpha")

    def test_prefixes_are_taken_off_when_forwarding(self):
        """http T053, T055"""
        for path, forwarded in (
            (b"/v/embeddings", b"/embeddings"),
            (b"/audioapi/v1/tasks/run?x=1", b"/v1/tasks/run?x=1"),
            (b"/rerank", b"/rerank"),
            (b"/v1/reranking", b"/v1/reranking"),
        ):
            stage = Stage()
            stage.post({"model": "alpha"}, path)
            self.assertEqual(stage.forwarding.head.target, forwarded)
            self.assertEqual(stage.witness.facts.path, path.decode().partition("?")[0])
            self.assertEqual(stage.witness.facts.stored_path, forwarded.decode().partition("?")[0])

    def test_an_urlencoded_form_names_a_model_and_is_not_filtered(self):
        self.stage.ask(b"POST", CHAT, b"model=beta&temperature=1", FORM)
        self.assertEqual(self.stage.forwarding.sent, b"model=beta&temperature=1")

    def test_a_key_is_asked_for_before_anything_is_read(self):
        self.stage.keys = {b"authorization": b"Bearer k-1"}
        asked = self.stage.post({"model": "alpha"})
        self.assertEqual(asked.sink.status, 401)
        self.assertEqual(asked.sink.header(b"www-authenticate"), b'Basic realm="llama-swap"')
        self.assertEqual(self.stage.router.asked, [])

    def test_key_in_several_headers_reaches_neither_server_nor_peer_nor_capture(self):
        self.stage.inference.authenticate = Authenticator(texts("k-1"))
        basic = b"Basic " + b64encode(b"anyone:k-1")
        for name in ("alpha", "lab/delta"):
            for authorization in (b"Bearer k-1", basic):
                headers = ((b"Authorization", authorization), (b"X-Api-Key", b"k-1"), (b"Api-Key", b"k-1"))
                self.stage.post({"model": name}, CHAT, *headers)
                sent = self.stage.forwarder.forwarded[-1].head.headers
                self.assertEqual([name for name, value in sent if b"k-1" in value or value == basic], [])
        for witness in self.stage.witnesses.seen:
            self.assertEqual([name for name, value in witness.facts.headers if b"k-1" in value or value == basic], [])
        self.assertEqual(len(self.stage.witnesses.seen), 4)

    def test_a_key_that_proxy_and_engine_share_reaches_the_engine(self):
        """An engine started with its own --api-key, or with LLAMA_API_KEY, answers 401 without it."""
        shared = [
            model("flag", cmd="llama-server --api-key k-1"),
            model("list", cmd="vllm serve m --api-key=k-0,k-1"),
            model("quoted", cmd="sh -c 'serve --api-key \"k-1\"'"),
            model("variable", env=("LLAMA_API_KEY=k-1",)),
            model("always", cmd="serve --api-key-file keys", forward_key="always"),
            model("never", cmd="llama-server --api-key k-1", forward_key="never"),
            model("longer", cmd="llama-server --api-key k-10"),
        ]
        self.stage.router.config = config(models=shared)
        self.stage.inference.authenticate = Authenticator(texts("k-1"))
        for each in shared:
            self.stage.post({"model": each.id}, CHAT, (b"Authorization", b"Bearer k-1"))
            passed = None if each.id in ("never", "longer") else b"Bearer k-1"
            self.assertEqual(self.stage.forwarder.forwarded[-1].head.first(b"authorization"), passed, each.id)

    def test_a_key_in_the_environment_that_a_server_gets_reaches_it(self):
        environ = {"PATH": "/usr/bin", "VLLM_ARGS": "--api-key k-1", "SERVER_ARGS": "--api-key k-2"}
        self.stage.handler.upstream_requests = UpstreamRequests(partial(for_servers, environ))
        self.stage.inference.authenticate = Authenticator(texts("k-1", "k-2"))
        self.stage.router.config = config(models=[model("inherits"), model("clean", env_policy="clean")])
        for name, key, sent in (
            ("inherits", b"k-1", b"k-1"),
            ("inherits", b"k-2", b"k-2"),
            ("clean", b"k-1", b"k-1"),
            ("clean", b"k-2", None),
        ):
            self.stage.post({"model": name}, CHAT, (b"x-api-key", key))
            self.assertEqual(self.stage.forwarder.forwarded[-1].head.first(b"x-api-key"), sent, (name, key))

    def test_a_key_that_was_taken_out_of_the_servers_environment_does_not_reach_them(self):
        self.stage.handler.upstream_requests = UpstreamRequests(partial(for_servers, {"LLAMASWAP_KEY": "k-1"}))
        self.stage.inference.authenticate = Authenticator(texts("k-1"))
        self.stage.router.config = config(models=[model("alpha")], api_keys=(ApiKey(Secret("k-1")),))
        self.stage.post({"model": "alpha"}, CHAT, (b"Authorization", b"Bearer k-1"))
        self.assertIsNone(self.stage.forwarding.header(b"authorization"))

    def test_a_variable_with_a_key_that_is_known_by_its_digest_does_not_reach_the_servers(self):
        digest = "sha256:" + sha256(b"sk-1").hexdigest().upper()
        given = {"KEY": "sk-1", "OTHER": "sk-2", "ODD": "\udcff"}
        self.assertEqual(for_servers(given, "inherit", [digest]), {"OTHER": "sk-2", "ODD": "\udcff"})

    def test_a_key_reaches_a_peer_without_a_key_of_its_own(self):
        closed = Peer("closed", models=("m",), endpoint=Endpoint("http", "10.0.0.7", 7000), forward_key="never")
        self.stage.router.config = config(peers={"closed": closed})
        self.stage.inference.authenticate = Authenticator(texts("k-1"))
        for name, sent in (("den/zeta", b"Bearer k-1"), ("lab/delta", b"Bearer pk-lab"), ("closed/m", None)):
            self.stage.post({"model": name}, CHAT, (b"Authorization", b"Bearer k-1"))
            self.assertEqual(self.stage.forwarder.forwarded[-1].head.first(b"authorization"), sent, name)
        self.stage.router.config = config(forward_key="never")
        self.stage.post({"model": "den/zeta"}, CHAT, (b"Authorization", b"Bearer k-1"))
        self.assertIsNone(self.stage.forwarder.forwarded[-1].head.first(b"authorization"))

    def test_the_accepted_key_does_not_reach_a_server_but_other_credentials_do(self):
        self.stage.keys = {b"authorization": b"Bearer k-1"}
        self.stage.post({"model": "alpha"}, CHAT, (b"Authorization", b"Bearer k-1"), (b"X-Api-Key", b"theirs"))
        self.assertIsNone(self.stage.forwarding.header(b"authorization"))
        self.assertEqual(self.stage.forwarding.header(b"x-api-key"), b"theirs")

    def test_anthropic_callers_find_the_type_that_their_client_reads(self):
        asked = self.stage.post({"model": "ghost"}, b"/v1/messages")
        self.assertEqual(asked.sink.json["type"], "error")

    def test_a_body_that_never_comes_ends_quietly(self):
        class Lost(ArrivingBody):
            def read_all(self, limit):
                from twisted.internet.defer import fail

                return fail(ClientGone())

        asked = self.stage.ask(b"POST", CHAT, Lost(), JSON)
        asked.leave()
        self.assertEqual(asked.done, [None])
        self.assertFalse(asked.sink.started)


class RewriteTests(SynchronousTestCase):
    def setUp(self):
        self.stage = Stage()

    def test_filters_of_the_model_apply(self):
        """http T056"""
        self.stage.post({"model": "beta", "temperature": 0.2, "stream": False, "x": 1})
        self.assertEqual(self.stage.forwarding.sent, b'{"model":"beta-up","x":1,"top_k":7}')
        self.assertEqual(self.stage.witness.facts.captured_body, b'{"model":"beta-up","x":1,"top_k":7}')

    def test_filters_of_the_requested_name_apply(self):
        """http T057"""
        self.stage.post({"model": "beta:hot", "temperature": 0.2})
        sent = json.loads(self.stage.forwarding.sent)
        self.assertEqual(sent, {"model": "beta-up", "top_k": 9, "temperature": 1.5})

    def test_an_untouched_body_keeps_its_bytes(self):
        """http T060"""
        text = b'{ "model" : "alpha" , "seed":12345678901234567890 }'
        self.stage.post(text)
        self.assertIs(self.stage.forwarding.sent, text)

    def test_a_qualified_peer_is_asked_by_its_own_name(self):
        """http T061, core V93"""
        self.stage.post({"model": "lab/delta", "seed": 1, "n": 2}, CHAT, *MINE)
        forwarding = self.stage.forwarding
        self.assertEqual(forwarding.sent, b'{"model":"delta","n":2}')
        self.assertEqual(forwarding.head.target, b"/base/v1/chat/completions")
        self.assertEqual(forwarding.header(b"authorization"), b"Bearer pk-lab")
        self.assertEqual(forwarding.header(b"x-api-key"), b"pk-lab")
        self.assertEqual(forwarding.header(b"host"), b"10.0.0.5:7000")
        self.assertIsNone(forwarding.header(b"x-forwarded-for"))
        self.assertEqual(self.stage.router.asked, [])
        self.assertEqual(self.stage.witness.facts.model, "lab/delta")

    def test_a_model_of_ours_wins_over_a_peers_of_the_same_name(self):
        """core V92"""
        self.stage = Stage(config=config(models=[model("zeta")]))
        self.stage.post({"model": "zeta"})
        self.assertEqual(self.stage.forwarding.upstream.endpoint.host, "127.0.0.1")

    def test_a_bare_peer_name_is_sent_unchanged(self):
        """http T063"""
        self.stage.post({"model": "zeta"}, CHAT, (b"Authorization", b"Bearer mine"))
        self.assertEqual(self.stage.forwarding.sent, b'{"model":"zeta"}')
        self.assertEqual(self.stage.forwarding.header(b"authorization"), b"Bearer mine")
        self.assertEqual(self.stage.forwarding.upstream.endpoint.host, "10.0.0.6")

    def test_name_that_two_peers_offer_is_unknown_without_a_peer(self):
        asked = self.stage.post({"model": "delta"})
        self.assertEqual(asked.sink.status, 404)

    def test_a_selector_is_replaced_by_its_target_as_written(self):
        """http T064, core V85"""
        asked = self.stage.post({"model": "pick", "temperature": 0.1})
        sent = json.loads(self.stage.forwarding.sent)
        self.assertEqual(sent, {"model": "beta-up", "top_k": 9, "temperature": 1.5})
        facts = self.stage.witness.facts  # of a request that runs: the in-flight list shows them
        self.assertEqual((facts.model, facts.metadata), ("beta", {"fifo_priority": "0", "selector": "pick"}))
        self.assertEqual(self.stage.router.released, [])
        self.stage.forwarding.begin()
        self.stage.forwarding.end()
        self.assertEqual((self.stage.router.released, asked.done), (["pick"], [None]))

    def test_selector_without_a_target_gets_503(self):
        """http T075"""
        self.stage.router.no_target = NoTarget("S", 'selector "S" has no available spillover targets')
        asked = self.stage.post({"model": "pick"})
        self.assertEqual(asked.sink.status, 503)
        self.assertEqual(message(asked.sink), 'selector "S" has no available spillover targets')

    def test_a_profile_replaces_the_name_first(self):
        """http T068"""
        self.stage.router.profile = "work"
        self.stage.post({"model": "chat"})
        self.assertEqual(self.stage.forwarding.sent, b'{"model":"alpha"}')

    def test_a_disabled_pin_is_no_model(self):
        """http T069"""
        self.stage.router.profile = "work"
        asked = self.stage.post({"model": "org"})
        self.assertEqual((asked.sink.status, message(asked.sink)), (404, "no model id could be identified"))

    def test_a_profile_rewrites_forms_and_queries_where_they_name_the_model(self):
        """The Go program answers the form with 404."""
        self.stage.router.profile = "work"
        self.stage.ask(b"POST", CHAT, b"b=1&model=chat&c=%7e", FORM)
        self.assertEqual(self.stage.forwarding.sent, b"b=1&model=alpha&c=%7e")
        stage = Stage(profile="work")
        stage.ask(b"GET", b"/sdapi/v1/loras?z=1&model=pool%2Fx&a=%7e")
        self.assertEqual(stage.forwarding.head.target, b"/sdapi/v1/loras?z=1&model=org%2Fgamma&a=%7e")

    def test_unclosed_json_body_that_a_filter_adds_to_is_answered_400(self):
        stage = Stage()
        asked = stage.post(b'{"model":"beta","x":')
        self.assertEqual(asked.sink.status, 400)
        self.assertIn(b"cut off or malformed", asked.sink.body)

    def test_large_urlencoded_form_is_refused_with_its_limit(self):
        asked = Stage().ask(b"POST", CHAT, b"&" * (FORM_LIMIT + 1) + b"model=beta", FORM)
        self.assertEqual(asked.sink.status, 413)
        self.assertIn(str(FORM_LIMIT).encode(), asked.sink.body)

    def test_announced_form_that_is_too_large_is_refused_before_it_arrives(self):
        asked = Stage().ask(b"POST", b"/v1/audio/transcriptions", ArrivingBody(FORM_LIMIT + 1), FORM)
        self.assertEqual(asked.sink.status, 413)

    def test_large_json_body_is_cut_by_the_worker(self):
        stage, works = Stage(), []
        waiting = Deferred()

        def run(work):
            works.append(work)
            return waiting if len(works) == 1 else succeed(work())

        stage.inference.run = run
        stage.post(b'{"model":"beta","x":"' + b"x" * LARGE + b'"}')
        self.assertEqual(stage.router.asked, [])
        waiting.callback(works[0]())
        self.assertEqual(stage.forwarding.upstream.name, "beta")
        self.assertEqual(len(works), 3)  # one to cut it, one to apply the filters, one to render the result

    def test_very_large_json_body_is_edited_without_being_joined(self):
        """Joining 190 MB stopped every stream for 0.3 s."""
        text = b'{"model":"beta","x":"' + b"x" * JOINED_LIMIT + b'"}'
        body = SpooledBody(Clock(), len(text), changed=lambda: None, continue_=lambda: None)
        head = RequestHead(b"POST", CHAT, [JSON], (1, 1))
        reading = Deferred.fromCoroutine(read_content(head, body, wants_json=True))
        body.arrived(text)
        body.finished()
        content = self.successResultOf(reading)
        content.rename("owl")
        source = self.successResultOf(Deferred.fromCoroutine(content.body(body, at_once)))
        self.assertIsInstance(source, PiecesBody)
        self.assertEqual(self.successResultOf(source.read_all(len(text))), text.replace(b"beta", b"owl"))

    def test_a_filter_that_cannot_apply_is_recorded_as_500(self):
        from llamaswap.config import Filters
        from tests.web.pipeline import config, model

        stage = Stage(config=config(models=[model("bad", filters=Filters(strip_params=("a*",)))]))
        asked = stage.post({"model": "bad"})
        self.assertEqual(asked.sink.status, 500)
        self.assertIn("error stripping parameter a* from request", message(asked.sink))
        self.assertEqual(stage.witness.heads[0][0], 500)

    def test_client_whose_array_stands_where_a_rule_needs_an_object_gets_400(self):
        from llamaswap.config import Filters
        from tests.web.pipeline import config, model

        rules = Filters(set_params={"chat_template_kwargs.enable_thinking": False})
        stage = Stage(config=config(models=[model("strict", filters=rules)]))
        asked = stage.post({"model": "strict", "chat_template_kwargs": ["x"]})
        self.assertEqual(asked.sink.status, 400)
        self.assertIn("chat_template_kwargs.enable_thinking", message(asked.sink))


class WebsocketTests(SynchronousTestCase):
    UPGRADE = ((b"Connection", b"keep-alive, UpGrAdE"), (b"Upgrade", b"WebSocket"))

    def setUp(self):
        self.stage = Stage()

    def test_an_ignored_one_cannot_start_its_model(self):
        """http T105"""
        asked = self.stage.ask(b"GET", b"/props?model=sock", b"", *self.UPGRADE)
        self.assertEqual(asked.sink.status, 409)
        self.assertEqual(message(asked.sink), "model sock is not loaded; ignored websocket requests cannot start it")
        self.assertEqual((self.stage.router.asked, self.stage.witnesses.seen), ([], []))

    def test_an_ignored_one_counts_nowhere(self):
        self.stage.router.states["sock"] = "ready"
        self.stage.ask(b"GET", b"/props?model=sock", b"", *self.UPGRADE)
        self.assertEqual(self.stage.forwarding.upstream.endpoint.port, 5800)
        self.assertEqual(self.stage.forwarding.header(b"upgrade"), b"WebSocket")
        self.assertEqual((self.stage.router.asked, self.stage.witnesses.seen), ([], []))

    def test_any_other_is_a_request_like_all(self):
        self.stage.ask(b"GET", b"/sdapi/v1/loras?model=alpha", b"", *self.UPGRADE)
        self.assertEqual(len(self.stage.router.asked), 1)
        self.assertEqual(self.stage.forwarding.header(b"connection"), b"Upgrade")


class ReadOnlyRequestTests(SynchronousTestCase):
    """Monitors and pages read properties all the time; that must not load or evict a model."""

    def refused(self, method, target, body=b"", *headers):
        stage = Stage()
        asked = stage.ask(method, target, body, *headers)
        self.assertEqual((stage.router.asked, stage.forwarder.forwarded), ([], []))
        self.assertEqual(asked.sink.status, 409, target)
        return message(asked.sink) if method != b"HEAD" else ""

    def test_reading_props_or_slots_does_not_load_the_model(self):
        for path in (b"/props", b"/slots"):
            self.assertIn(f"GET {path.decode()} does not load it", self.refused(b"GET", path + b"?model=al"))
            self.refused(b"HEAD", path + b"?model=al")

    def test_head_of_any_model_route_does_not_load_the_model(self):
        self.refused(b"HEAD", b"/v1/audio/voices?model=alpha")

    def test_autoload_false_does_not_load_the_model(self):
        self.assertIn("autoload=false", self.refused(b"GET", b"/sdapi/v1/loras?model=alpha&autoload=false"))
        body = b'{"model":"alpha"}'
        self.refused(b"POST", b"/v1/chat/completions?autoload=False", body, (b"Content-Type", b"application/json"))

    def test_a_loaded_model_is_read(self):
        stage = Stage(states={"alpha": "ready"})
        stage.ask(b"GET", b"/slots?model=al")
        self.assertEqual(stage.forwarding.head.target, b"/slots?model=al")


class DefaultModelTests(SynchronousTestCase):
    def stage(self, states=(), **routing):
        return Stage(config=config(routing=Routing(**routing)), states=dict(states))

    def test_a_request_without_a_name_gets_the_default_model(self):
        stage = self.stage(default_model="al")
        stage.post({"messages": []})
        self.assertEqual((stage.forwarding.upstream.name, json.loads(stage.forwarding.sent)["model"]), ("alpha", "al"))

    def test_an_unknown_name_does_not_get_the_default_model(self):
        stage = self.stage(default_model="al")
        self.assertEqual(stage.post({"model": "ghost"}).sink.status, 404)

    def test_a_groups_name_means_its_loaded_member_or_else_the_first(self):
        settings = RouterSettings(groups={"chat": Group(members=("org", "alpha"))})
        for states, expected in ((), "org"), ([("alpha", "ready")], "alpha"):
            stage = self.stage(states, router=EvictionSettings(settings=settings))
            stage.post({"model": "chat"})
            self.assertEqual(stage.forwarding.upstream.name, expected)

    def test_an_alias_of_a_peer_goes_there_under_the_peers_name_for_it(self):
        lab = Peer("lab", models=("delta",), aliases={"quick": "delta"}, endpoint=Endpoint("http", "10.0.0.5", 7000))
        for name in ("quick", "hop"):
            selectors = {"hop": Selector("hop", strategy="pin", targets=("quick",))}
            stage = Stage(config=evolve(config(peers={"lab": lab}), selectors=selectors))
            stage.post({"model": name, "n": 1})
            self.assertEqual(stage.forwarding.upstream.endpoint.host, "10.0.0.5")
            self.assertEqual(json.loads(stage.forwarding.sent), {"model": "delta", "n": 1})
            self.assertEqual(stage.witness.facts.model, "quick")

    def tagged(self, states=()):
        """Two models share the tag small; the first of them is not the first by name."""
        models = [model("zed", tags=("coding", "small")), model("mid", tags=("small",))]
        return Stage(config=config(models=models), states=dict(states))

    def test_a_tag_means_a_loaded_model_with_it_or_else_the_first_in_the_configuration(self):
        for states, expected in ((), "zed"), ([("mid", "ready")], "mid"), ([("mid", "starting")], "zed"):
            stage = self.tagged(states)
            stage.post({"model": "small"})
            self.assertEqual(stage.forwarding.upstream.name, expected)

    def test_a_tag_is_a_name_also_on_a_path_that_no_route_has(self):
        stage = self.tagged()
        stage.inference.other_route = lambda path: False
        stage.post({"model": "coding"}, b"/v9/invented")
        self.assertEqual(stage.forwarding.upstream.name, "zed")

    def test_every_other_name_wins_over_a_tag(self):
        groups = EvictionSettings(settings=RouterSettings(groups={"g": Group(members=("org",))}))
        for name, expected in (
            ("whisper", "whisper"),
            ("al", "alpha"),
            ("pick", "beta"),
            ("delta", "peer proxy error"),
            ("g", "org"),
        ):
            stage = Stage(
                config=config(
                    models=[model("zed", tags=(name,))],
                    peers={"lab": Peer("lab")},
                    routing=Routing(router=groups),
                )
            )
            stage.post({"model": name})
            self.assertEqual(stage.forwarding.upstream.name, expected, name)

    def test_a_pin_wins_over_a_tag_while_its_profile_is_active(self):
        for profile, expected in (None, "zed"), ("work", "alpha"):
            stage = Stage(config=config(models=[model("zed", tags=("chat",))]))
            stage.router.profile = profile
            stage.post({"model": "chat"})
            self.assertEqual(stage.forwarding.upstream.name, expected)


class OtherPathTests(SynchronousTestCase):
    """A POST that names a model reaches it, also on a path that no release of ours knows."""

    def setUp(self):
        self.stage = Stage()
        self.stage.inference.other_route = lambda path: path.startswith(b"/api/")

    def head(self, method, path):
        return RequestHead(method, path, [])

    def test_only_a_post_to_a_path_of_no_other_route_is_taken(self):
        takes = self.stage.inference.is_model_route
        self.assertTrue(takes(self.head(b"POST", b"/v9/invented")))
        self.assertFalse(takes(self.head(b"POST", b"/api/models/unload")))
        self.assertFalse(takes(self.head(b"GET", b"/v9/invented")))

    def test_a_json_body_or_a_form_names_the_model(self):
        self.stage.post({"model": "beta", "x": 1}, b"/v9/invented")
        form = b"model=al&text=x"
        self.stage.ask(b"POST", b"/v9/form", form, (b"Content-Type", b"application/x-www-form-urlencoded"))
        first, second = self.stage.forwarder.forwarded
        self.assertEqual((first.head.target, json.loads(first.sent)["model"]), (b"/v9/invented", "beta-up"))
        self.assertEqual((second.upstream.name, second.sent), ("alpha", form))

    def test_a_path_that_names_no_known_model_does_not_exist(self):
        for body in (b'{"model":"ghost"}', b"{}", b"", b"nonsense"):
            asked = self.stage.ask(b"POST", b"/v9/invented", body, (b"Content-Type", b"application/json"))
            self.assertEqual((asked.sink.status, asked.sink.body), (404, b"404 page not found\n"))
        self.assertEqual(self.stage.forwarder.forwarded, [])

    def test_without_a_key_no_such_path_exists_and_no_body_is_read(self):
        self.stage.inference.authenticate = Authenticator(texts("k-1"))
        asked = self.stage.ask(b"POST", b"/v9/invented", ArrivingBody(), JSON)
        self.assertEqual(asked.sink.status, 404)


class EncodedBodyTests(SynchronousTestCase):
    """Clients may compress their requests: the model is found all the same, and the server gets plain JSON."""

    def ask(self, body, coding):
        stage = Stage()
        kind = (b"Content-Type", b"application/json")
        return stage, stage.ask(b"POST", b"/v1/chat/completions", body, kind, (b"Content-Encoding", coding))

    def test_the_model_is_found_and_the_body_sent_plain(self):
        text = b'{"model":"alpha","messages":[]}'
        for coding, body in ((b"gzip", gzip.compress(text)), (b"zstd", zstandard.ZstdCompressor().compress(text))):
            stage, _ = self.ask(body, coding)
            self.assertEqual(stage.forwarding.sent, text)
            self.assertIsNone(stage.forwarding.header(b"content-encoding"))

    def test_a_broken_or_exploding_body_is_a_bad_request(self):
        bomb = gzip.compress(bytes(50 << 20))
        for body in (b"junk", gzip.compress(b"{}")[:-3], bomb):
            stage, asked = self.ask(body, b"gzip")
            self.assertEqual((asked.sink.status, stage.forwarder.forwarded), (400, []))
            self.assertIn("cannot be decoded as gzip", message(asked.sink))

    def test_an_unknown_coding_is_left_to_the_server(self):
        stage, _ = self.ask(b'{"model":"alpha"}', b"identity")
        self.assertEqual(stage.forwarding.header(b"content-encoding"), b"identity")

    def test_a_body_that_may_become_large_is_decoded_beside_the_reactor(self):
        work, stage = [], Stage()

        def run(part):
            work.append(part)
            return maybeDeferred(part)

        stage.inference.run = run
        text = json.dumps({"model": "alpha", "x": os.urandom(20_000).hex()}).encode()
        stage.ask(b"POST", b"/v1/chat/completions", gzip.compress(text), JSON, (b"Content-Encoding", b"gzip"))
        self.assertEqual((len(work), stage.forwarding.sent), (1, text))

    def test_a_decoded_body_takes_its_memory_from_the_budget(self):
        stage, memory = Stage(), ByteBudget("memory", lambda used: 4 << 20)
        sent = gzip.compress(b'{"model":"alpha","x":"' + b"a" * (2 << 20) + os.urandom(20_000).hex().encode() + b'"}')
        body = SpooledBody(stage.clock, len(sent), changed=lambda: None, continue_=lambda: None, memory=memory)
        body.arrived(sent)
        body.finished()
        asked = stage.ask(b"POST", b"/v1/chat/completions", body, JSON, (b"Content-Encoding", b"gzip"))
        self.assertEqual((asked.sink.status, stage.forwarder.forwarded), (507, []))
        body.close()
        self.assertEqual(memory.used, 0)
