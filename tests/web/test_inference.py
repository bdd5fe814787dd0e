"""The model routes, from a request's head to the end of its answer."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.errors import (
    BadUpstream,
    ClientGone,
    ModelUnloaded,
    NoTarget,
    StartFailed,
    TooManyRequests,
    UpstreamTruncated,
    UpstreamUnreachable,
)
from llamaswap.web.inference import is_model_path
from tests.web.pipeline import JSON, ArrivingBody, Stage

CHAT = b"/v1/chat/completions"
MULTIPART = (b"Content-Type", b"multipart/form-data; boundary=XX")
FORM = (b"Content-Type", b"application/x-www-form-urlencoded")


def upload(model: str = "alpha", last: bool = False) -> bytes:
    named = b'--XX\r\nContent-Disposition: form-data; name="model"\r\n\r\n' + model.encode() + b"\r\n"
    file = b'--XX\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + b"\x00\xff" * 50 + b"\r\n"
    return (file + named if last else named + file) + b"--XX--\r\n"


def message(sink) -> str:
    return sink.json["error"]["message"]


class Routes(SynchronousTestCase):
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


class NamingTheModel(SynchronousTestCase):
    def setUp(self):
        self.stage = Stage()

    def refused(self, asked, status: int, text: str):
        self.assertEqual((asked.sink.status, asked.sink.ending), (status, "finished"))
        self.assertEqual(message(asked.sink), text)
        self.assertEqual(asked.done, [None])
        self.assertEqual(self.stage.relay.carried, [])

    def test_an_alias_leads_to_its_model_and_the_body_stays(self):
        """http T035"""
        self.stage.post({"model": "al"})
        self.assertEqual(self.stage.carriage.upstream.name, "alpha")
        self.assertEqual(self.stage.carriage.sent, b'{"model":"al"}')
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
        self.assertEqual(json.loads(self.stage.carriage.sent), {"model": "beta-up", "top_k": 7})

    def test_the_query_names_the_model_of_an_empty_post(self):
        """http T041"""
        self.stage.ask(b"POST", b"/v1/completions?model=alpha")
        self.assertEqual(self.stage.carriage.head.target, b"/v1/completions?model=alpha")

    def test_get_routes_read_the_query(self):
        """http T043, T044, T045"""
        self.stage.ask(b"GET", b"/v1/audio/voices?model=alpha")
        self.assertEqual(self.stage.carriage.head.target, b"/v1/audio/voices?model=alpha")
        self.refused_stage(b"/v1/audio/voices", "no model id could be identified")
        self.refused_stage(b"/sdapi/v1/loras?model=ghost", "no router for requested model")

    def refused_stage(self, target: bytes, text: str):
        self.stage = Stage()
        self.refused(self.stage.ask(b"GET", target), 404, text)

    def test_a_number_names_a_model(self):
        """http T047"""
        self.stage.post(b'{"model":42}')
        self.assertEqual(self.stage.carriage.upstream.name, "42")

    def test_the_first_model_member_counts(self):
        """http T048"""
        self.stage.post(b'{"model":"alpha","model":"org"}')
        self.assertEqual(self.stage.carriage.upstream.name, "alpha")

    def test_a_charset_does_not_hide_json(self):
        """http T052"""
        self.stage.ask(
            b"POST", b"/v1/embeddings", b'{"model":"alpha"}', (b"Content-Type", b"Application/JSON; charset=utf-8")
        )
        self.assertEqual(self.stage.carriage.upstream.name, "alpha")

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
            self.assertEqual(stage.carriage.head.target, forwarded)
            self.assertEqual(stage.witness.facts.path, path.decode().partition("?")[0])
            self.assertEqual(stage.witness.facts.stored_path, forwarded.decode().partition("?")[0])

    def test_an_urlencoded_form_names_a_model_and_is_not_filtered(self):
        self.stage.ask(b"POST", CHAT, b"model=beta&temperature=1", FORM)
        self.assertEqual(self.stage.carriage.sent, b"model=beta&temperature=1")

    def test_a_key_is_asked_for_before_anything_is_read(self):
        self.stage.keys = {b"authorization": b"Bearer k-1"}
        asked = self.stage.post({"model": "alpha"})
        self.assertEqual(asked.sink.status, 401)
        self.assertEqual(asked.sink.header(b"www-authenticate"), b'Basic realm="llama-swap"')
        self.assertEqual(self.stage.router.asked, [])

    def test_the_accepted_key_does_not_reach_a_server_but_other_credentials_do(self):
        self.stage.keys = {b"authorization": b"Bearer k-1"}
        self.stage.post({"model": "alpha"}, CHAT, (b"Authorization", b"Bearer k-1"), (b"X-Api-Key", b"theirs"))
        self.assertIsNone(self.stage.carriage.header(b"authorization"))
        self.assertEqual(self.stage.carriage.header(b"x-api-key"), b"theirs")

    def test_anthropic_callers_find_the_type_that_their_client_reads(self):
        asked = self.stage.post({"model": "ghost"}, b"/v1/messages")
        self.assertEqual(asked.sink.json["type"], "error")

    def test_a_body_that_never_comes_ends_quietly(self):
        class Lost(ArrivingBody):
            def hold(self, limit):
                from twisted.internet.defer import fail

                return fail(ClientGone())

        asked = self.stage.ask(b"POST", CHAT, Lost(), JSON)
        asked.leave()
        self.assertEqual(asked.done, [None])
        self.assertFalse(asked.sink.started)


class Uploads(SynchronousTestCase):
    TRANSCRIBE = b"/v1/audio/transcriptions"

    def setUp(self):
        self.stage = Stage()

    def test_an_upload_is_forwarded_byte_for_byte(self):
        """http T049"""
        self.stage.ask(b"POST", self.TRANSCRIBE, upload(), MULTIPART)
        self.assertEqual(self.stage.carriage.sent, upload())
        self.assertIsNone(self.stage.witness.facts.body)

    def test_the_model_is_asked_for_before_the_upload_is_complete(self):
        body = ArrivingBody()
        self.stage.ask(b"POST", self.TRANSCRIBE, body, MULTIPART)
        self.assertEqual(self.stage.router.asked, [])
        body.feed(upload()[:100])
        self.assertEqual(len(self.stage.router.asked), 1)
        self.assertIs(self.stage.carriage.body, body)
        self.assertEqual(body.stops, 1)

    def test_a_model_behind_the_file_is_found(self):
        body = ArrivingBody()
        self.stage.ask(b"POST", self.TRANSCRIBE, body, MULTIPART)
        body.feed(upload(last=True))
        self.assertEqual(len(self.stage.router.asked), 1)

    def test_an_upload_without_a_model_or_boundary_is_refused(self):
        """http T051"""
        for kind, text in (
            (MULTIPART, upload().replace(b"model", b"other")),
            ((JSON[0], b"multipart/form-data"), upload()),
        ):
            stage = Stage()
            asked = stage.ask(b"POST", self.TRANSCRIBE, text, kind)
            self.assertEqual((asked.sink.status, message(asked.sink)), (404, "no model id could be identified"))

    def test_a_configured_model_name_is_put_into_the_form_in_place(self):
        for last in (False, True):
            stage = Stage()
            body = ArrivingBody()
            stage.ask(b"POST", self.TRANSCRIBE, body, MULTIPART)
            text = upload("whisper", last)
            for start in range(0, len(text), 7):
                body.feed(text[start : start + 7])
            body.length = len(text)
            body.end()
            self.assertEqual(stage.carriage.sent, upload("whisper-v3", last))
            self.assertEqual(stage.carriage.body.length, len(text) + 3)
            self.assertEqual(stage.witness.facts.model, "whisper")
            self.assertEqual(self.streamed(stage.carriage.body), upload("whisper-v3", last))

    def streamed(self, body) -> bytes:
        class Taker:
            taken = b""
            ended = 0

            def body_data(self, data):
                assert data
                self.taken += data

            def body_ended(self):
                self.ended += 1

        taker = Taker()
        source, body.source = body.source, ArrivingBody()
        body.start(taker)
        for byte in source.arrived:
            body.source.feed(bytes([byte]))
        body.source.end()
        self.assertEqual(taker.ended, 1)
        return taker.taken

    def test_the_querys_model_wins_and_the_body_is_not_read(self):
        body = ArrivingBody()
        self.stage.ask(b"POST", self.TRANSCRIBE + b"?model=alpha", body, MULTIPART)
        self.assertIs(self.stage.carriage.body, body)
        self.assertIsNone(body.consumer)


class Rewriting(SynchronousTestCase):
    def setUp(self):
        self.stage = Stage()

    def test_filters_of_the_model_apply(self):
        """http T056"""
        self.stage.post({"model": "beta", "temperature": 0.2, "stream": False, "x": 1})
        self.assertEqual(self.stage.carriage.sent, b'{"model":"beta-up","x":1,"top_k":7}')
        self.assertEqual(self.stage.witness.facts.body, b'{"model":"beta-up","x":1,"top_k":7}')

    def test_filters_of_the_requested_name_apply(self):
        """http T057"""
        self.stage.post({"model": "beta:hot", "temperature": 0.2})
        sent = json.loads(self.stage.carriage.sent)
        self.assertEqual(sent, {"model": "beta-up", "top_k": 9, "temperature": 1.5})

    def test_an_untouched_body_keeps_its_bytes(self):
        """http T060"""
        text = b'{ "model" : "alpha" , "seed":12345678901234567890 }'
        self.stage.post(text)
        self.assertIs(self.stage.carriage.sent, text)

    def test_a_qualified_peer_is_asked_by_its_own_name(self):
        """http T061"""
        self.stage.post({"model": "lab/delta", "seed": 1, "n": 2}, CHAT, (b"Host", b"me"), (b"X-Forwarded-For", b"9"))
        carriage = self.stage.carriage
        self.assertEqual(carriage.sent, b'{"model":"delta","n":2}')
        self.assertEqual(carriage.head.target, b"/base/v1/chat/completions")
        self.assertEqual(carriage.header(b"authorization"), b"Bearer pk-lab")
        self.assertEqual(carriage.header(b"x-api-key"), b"pk-lab")
        self.assertEqual(carriage.header(b"host"), b"10.0.0.5:7000")
        self.assertIsNone(carriage.header(b"x-forwarded-for"))
        self.assertEqual(self.stage.router.asked, [])
        self.assertEqual(self.stage.witness.facts.model, "lab/delta")

    def test_a_bare_peer_name_is_sent_unchanged(self):
        """http T063"""
        self.stage.post({"model": "zeta"}, CHAT, (b"Authorization", b"Bearer mine"))
        self.assertEqual(self.stage.carriage.sent, b'{"model":"zeta"}')
        self.assertEqual(self.stage.carriage.header(b"authorization"), b"Bearer mine")
        self.assertEqual(self.stage.carriage.upstream.endpoint.host, "10.0.0.6")

    def test_a_bare_name_of_two_peers_is_nobodys(self):
        asked = self.stage.post({"model": "delta"})
        self.assertEqual(asked.sink.status, 404)

    def test_a_selector_is_replaced_by_its_target_as_written(self):
        """http T064"""
        asked = self.stage.post({"model": "pick", "temperature": 0.1})
        sent = json.loads(self.stage.carriage.sent)
        self.assertEqual(sent, {"model": "beta-up", "top_k": 9, "temperature": 1.5})
        facts = self.stage.witness.facts
        self.assertEqual((facts.model, facts.metadata), ("beta", {"fifo_priority": "0", "selector": "pick"}))
        (choice,) = self.stage.router.choices
        self.assertEqual(choice.released, 0)
        self.stage.carriage.begin()
        self.stage.carriage.end()
        self.assertEqual((choice.released, asked.done), (1, [None]))

    def test_a_selector_without_a_target_is_said(self):
        """http T075"""
        self.stage.router.no_target = NoTarget("S", 'selector "S" has no available spillover targets')
        asked = self.stage.post({"model": "pick"})
        self.assertEqual(asked.sink.status, 503)
        self.assertEqual(message(asked.sink), 'selector "S" has no available spillover targets')

    def test_a_profile_replaces_the_name_first(self):
        """http T068"""
        self.stage.router.profile = "work"
        self.stage.post({"model": "chat"})
        self.assertEqual(self.stage.carriage.sent, b'{"model":"alpha"}')

    def test_a_disabled_pin_is_no_model(self):
        """http T069"""
        self.stage.router.profile = "work"
        asked = self.stage.post({"model": "org"})
        self.assertEqual((asked.sink.status, message(asked.sink)), (404, "no model id could be identified"))

    def test_a_profile_rewrites_forms_and_queries_where_they_name_the_model(self):
        """The Go program answers the form with 404."""
        self.stage.router.profile = "work"
        self.stage.ask(b"POST", CHAT, b"b=1&model=chat&c=%7e", FORM)
        self.assertEqual(self.stage.carriage.sent, b"b=1&model=alpha&c=%7e")
        stage = Stage(profile="work")
        stage.ask(b"GET", b"/props?z=1&model=pool%2Fx&a=%7e")
        self.assertEqual(stage.carriage.head.target, b"/props?z=1&model=org%2Fgamma&a=%7e")

    def test_a_filter_that_cannot_apply_is_recorded_as_500(self):
        from llamaswap.config import Filters
        from tests.web.pipeline import config, model

        stage = Stage(config=config(models=[model("bad", filters=Filters(strip_params=("a*",)))]))
        asked = stage.post({"model": "bad"})
        self.assertEqual(asked.sink.status, 500)
        self.assertIn("error stripping parameter a* from request", message(asked.sink))
        self.assertEqual(stage.witness.heads[0][0], 500)


class Serving(SynchronousTestCase):
    def setUp(self):
        self.stage = Stage()

    def test_a_request_is_carried_to_the_leases_server_and_the_lease_given_back(self):
        asked = self.stage.post({"model": "alpha"}, CHAT, (b"Accept-Encoding", b"br, gzip"))
        carriage, lease = self.stage.carriage, self.stage.router.asked[0].lease
        self.assertEqual(carriage.upstream.endpoint.port, 9001)
        self.assertEqual(carriage.header(b"x-forwarded-for"), b"1.2.3.4")
        self.assertEqual(carriage.header(b"accept-encoding"), b"gzip")
        carriage.begin(b"{}", headers=[(b"X-Req", b"7"), (b"Keep-Alive", b"x")])
        self.assertEqual(lease.released, 0)
        carriage.end()
        self.assertEqual((lease.released, asked.done, asked.sink.ending), (1, [None], "finished"))
        self.assertEqual(asked.sink.header(b"x-req"), b"7")
        self.assertIsNone(asked.sink.header(b"keep-alive"))
        witness = self.stage.witness
        self.assertEqual((witness.body, witness.endings), (b"{}", [("complete", None)]))
        self.assertEqual(self.stage.dispatcher.active, 0)

    def test_facts_say_who_asked_for_what_and_when(self):
        self.stage.post({"model": "al", "stream": True}, b"/v1/completions", (b"X-Forwarded-For", b"9.9.9.9, 8.8.8.8"))
        facts = self.stage.witness.facts
        self.assertEqual(
            (facts.id, facts.method, facts.model, facts.requested, facts.remote_ip, facts.streaming),
            ("1", "POST", "alpha", "al", "9.9.9.9", True),
        )
        self.assertEqual((facts.started, facts.timestamp, facts.tracked, facts.metered), (99.5, 999_999.5, True, True))

    def test_a_get_is_tracked_and_not_metered(self):
        self.stage.ask(b"GET", b"/props?model=alpha", b"", (b"Accept-Encoding", b"br"))
        facts = self.stage.witness.facts
        self.assertEqual((facts.tracked, facts.metered), (True, False))
        self.assertEqual(self.stage.carriage.header(b"accept-encoding"), b"br")

    def test_a_refusal_is_told_at_once_in_json(self):
        """http T100"""
        self.stage.router.refusal = TooManyRequests("alpha", 1)
        asked = self.stage.post({"model": "alpha", "stream": True}, CHAT, (b"Accept", b"text/plain"))
        self.assertEqual((asked.sink.status, asked.sink.header(b"retry-after")), (429, b"1"))
        self.assertEqual(asked.sink.json["error"]["code"], "concurrency_limit")

    def test_a_failed_start_is_told_with_its_cause(self):
        """http T091"""
        self.stage.router.auto = False
        asked = self.stage.post({"model": "beta"})
        self.stage.router.asked[0].granted.errback(StartFailed("beta", "upstream command exited prematurely"))
        self.assertEqual(asked.sink.status, 500)
        self.assertEqual(message(asked.sink), "unspecific error: upstream command exited prematurely")

    def test_an_unload_ends_the_wait(self):
        self.stage.router.auto = False
        asked = self.stage.post({"model": "beta"})
        self.stage.router.asked[0].granted.errback(ModelUnloaded("beta"))
        self.assertEqual(asked.sink.status, 500)

    def test_a_broken_connection_to_a_living_server_is_a_502_with_a_body(self):
        asked = self.stage.post({"model": "alpha"})
        self.stage.carriage.result.errback(UpstreamUnreachable("alpha", "connection refused", sent=False))
        self.stage.clock.advance(1)
        self.assertEqual((asked.sink.status, message(asked.sink)), (502, "alpha: connection refused"))
        self.assertEqual(len(self.stage.router.asked), 1)
        self.assertEqual(self.stage.clock.getDelayedCalls(), [])

    def test_a_server_that_died_before_its_first_byte_is_replaced_once(self):
        asked = self.stage.post({"model": "alpha"})
        first = self.stage.router.asked[0].lease
        first.lost = True
        self.stage.carriage.result.errback(UpstreamUnreachable("alpha", "connection reset"))
        self.assertEqual(first.released, 1)
        again = self.stage.relay.carried[1]
        self.assertEqual(again.sent, b'{"model":"alpha"}')
        again.begin(b"{}")
        again.end()
        self.assertEqual((asked.sink.status, asked.sink.ending), (200, "finished"))
        self.assertEqual(self.stage.router.asked[1].lease.released, 1)

    def test_a_server_whose_exit_is_heard_of_late_is_replaced_too(self):
        self.stage.post({"model": "alpha"})
        self.stage.carriage.result.errback(UpstreamUnreachable("alpha", "connection reset"))
        self.stage.clock.advance(0.02)
        self.stage.router.asked[0].lease.lost = True
        self.stage.clock.advance(0.1)
        self.assertEqual(len(self.stage.relay.carried), 2)

    def test_a_request_that_kills_its_server_twice_gets_an_error(self):
        asked = self.stage.post({"model": "alpha"})
        for turn in (0, 1):
            self.stage.router.asked[turn].lease.lost = True
            self.stage.relay.carried[turn].result.errback(UpstreamUnreachable("alpha", "connection reset"))
        self.assertEqual((asked.sink.status, len(self.stage.relay.carried)), (502, 2))
        self.assertEqual([acquisition.lease.released for acquisition in self.stage.router.asked], [1, 1])

    def test_a_body_that_is_gone_is_not_sent_again(self):
        body = ArrivingBody(replayable=False)
        asked = self.stage.ask(b"POST", b"/v1/audio/transcriptions", body, MULTIPART)
        body.feed(upload())
        self.stage.router.asked[0].lease.lost = True
        self.stage.carriage.result.errback(UpstreamUnreachable("alpha", "connection reset"))
        self.assertEqual((asked.sink.status, len(self.stage.relay.carried)), (502, 1))

    def test_what_is_no_http_is_a_502(self):
        asked = self.stage.post({"model": "alpha"})
        self.stage.carriage.result.errback(BadUpstream("alpha", "garbage"))
        self.assertEqual(asked.sink.status, 502)

    def test_a_peer_that_is_down_says_so_in_the_clients_form(self):
        """http T099"""
        asked = self.stage.post({"model": "zeta"}, CHAT, (b"Accept", b"text/plain"))
        upstream = self.stage.carriage.upstream
        self.stage.carriage.result.errback(UpstreamUnreachable(upstream.where, "refused"))
        self.assertEqual((asked.sink.status, asked.sink.body), (502, b"llama-swap: peer proxy error: refused"))

    def test_peers_are_refused_while_closing(self):
        self.stage.dispatcher.close()
        asked = self.stage.post({"model": "zeta"})
        self.assertEqual(asked.sink.status, 500)
        self.assertEqual(message(asked.sink), "unspecific error: peer proxy is shutting down")

    def test_our_own_fault_is_a_500_and_a_traceback_in_the_log(self):
        def broken(*_, **__):
            raise RuntimeError("secret")

        self.stage.relay.carry = broken
        asked = self.stage.post({"model": "alpha"})
        self.assertEqual((asked.sink.status, message(asked.sink)), (500, "internal error"))
        self.assertEqual(self.stage.router.asked[0].lease.released, 1)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)


class BreakingOff(SynchronousTestCase):
    """After the head: nobody may take what came for the whole."""

    def setUp(self):
        self.stage = Stage()

    def events(self, asked) -> list[bytes]:
        """The payload of the chunks that the client received; every chunk must be whole."""
        found, rest = [], asked.sink.body
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            data, rest = rest[: int(size, 16)], rest[int(size, 16) :]
            self.assertTrue(rest.startswith(b"\r\n"))
            rest = rest[2:]
            found.append(data)
        return found

    def test_a_chunked_event_stream_gets_an_error_event_and_is_cut(self):
        """http T103 (the Go program ends it like a complete one)"""
        asked = self.stage.post({"model": "alpha", "stream": True})
        self.stage.carriage.begin(b"data: 1\n\n", kind=b"text/event-stream")
        self.stage.carriage.result.errback(UpstreamTruncated("alpha", "connection lost"))
        *_, last = self.events(asked)
        self.assertEqual(json.loads(last.removeprefix(b"data: "))["error"]["code"], "bad_gateway")
        self.assertEqual(asked.sink.ending, "aborted")
        self.assertEqual(self.stage.witness.endings[0][0], "truncated")
        self.assertEqual(self.stage.router.asked[0].lease.released, 1)

    def test_nothing_is_put_inside_a_broken_chunk(self):
        asked = self.stage.post({"model": "alpha", "stream": True})
        self.stage.carriage.begin(b"data: 1\n\n", kind=b"text/event-stream")
        asked.exchange.sink.write(b"20\r\ndata: 2")
        before = asked.sink.body
        self.stage.carriage.result.errback(UpstreamTruncated("alpha", "connection lost"))
        self.assertEqual((asked.sink.body, asked.sink.ending), (before, "aborted"))

    def test_a_stream_that_we_frame_gets_its_event_plain(self):
        asked = self.stage.post({"model": "alpha"}, b"/v1/messages")
        self.stage.carriage.begin(b"data: {", kind=b"text/event-stream", raw=False)
        self.stage.carriage.result.errback(UpstreamTruncated("alpha", "connection lost"))
        self.assertIn(b'data: {\n\nevent: error\ndata: {"type":"error"', asked.sink.body)
        self.assertEqual(asked.sink.ending, "aborted")

    def test_any_other_answer_is_cut(self):
        asked = self.stage.post({"model": "alpha"})
        self.stage.carriage.begin(b'{"a":')
        before = asked.sink.body
        self.stage.carriage.result.errback(UpstreamTruncated("alpha", "connection lost"))
        self.assertEqual((asked.sink.body, asked.sink.ending), (before, "aborted"))


class Leaving(SynchronousTestCase):
    """The client goes: the slot is free and the server's connection closed at once."""

    def setUp(self):
        self.stage = Stage()

    def test_while_it_waits(self):
        self.stage.router.auto = False
        asked = self.stage.post({"model": "beta"})
        asked.leave()
        self.assertTrue(self.stage.router.asked[0].cancelled)
        self.assertEqual((asked.done, asked.sink.started), ([None], False))
        self.assertEqual(self.stage.witness.endings[0][0], "gone")

    def test_a_grant_that_comes_too_late_is_given_back(self):
        self.stage.router.auto = False
        asked = self.stage.post({"model": "beta"})
        asked.leave()
        self.assertEqual(self.stage.router.asked[0].grant().released, 1)
        self.assertEqual(self.stage.relay.carried, [])

    def test_before_the_request_was_even_read(self):
        stage = Stage()
        body = ArrivingBody()
        asked = stage.ask(b"POST", b"/v1/audio/transcriptions", body, MULTIPART)
        asked.leave()
        body.consumer.body_lost()
        self.assertEqual(asked.done, [None])

    def test_while_the_loading_text_is_shown(self):
        self.stage.router.auto = self.stage.router.ready = False
        asked = self.stage.post({"model": "alpha", "stream": True})
        asked.leave()
        self.assertEqual(self.stage.clock.getDelayedCalls(), [])
        self.assertNotIn(b"Done!", asked.sink.body)
        self.assertTrue(self.stage.router.asked[0].cancelled)

    def test_while_the_server_works(self):
        asked = self.stage.post({"model": "alpha"})
        asked.leave()
        self.assertTrue(self.stage.carriage.stopped)
        self.assertEqual(self.stage.router.asked[0].lease.released, 1)
        self.assertEqual(self.stage.witness.endings[0][0], "gone")

    def test_while_the_answer_streams(self):
        asked = self.stage.post({"model": "alpha", "stream": True})
        self.stage.carriage.begin(b"data: 1\n\n", kind=b"text/event-stream")
        asked.leave()
        self.assertEqual(self.stage.router.asked[0].lease.released, 1)
        self.assertEqual(asked.sink.ending, "")

    def test_while_a_dead_server_is_looked_into(self):
        asked = self.stage.post({"model": "alpha"})
        self.stage.carriage.result.errback(UpstreamUnreachable("alpha", "reset"))
        asked.leave()
        self.assertEqual(self.stage.clock.getDelayedCalls(), [])
        self.assertEqual((asked.done, self.stage.witness.endings[0][0]), ([None], "gone"))


class Cancelling(SynchronousTestCase):
    """An operator ends a request whose client is still there."""

    def setUp(self):
        self.stage = Stage()

    def cancel(self):
        self.stage.witness.facts.cancel()
        self.stage.witness.facts.cancel()

    def test_a_waiting_request_is_answered_empty(self):
        self.stage.router.auto = False
        asked = self.stage.post({"model": "beta"})
        self.cancel()
        self.assertTrue(self.stage.router.asked[0].cancelled)
        self.assertEqual((asked.sink.status, asked.sink.body, asked.sink.ending), (200, b"", "finished"))
        self.assertEqual(self.stage.witness.endings[0][0], "cancelled")

    def test_a_request_without_an_answer_yet_is_a_502(self):
        asked = self.stage.post({"model": "alpha"})
        self.cancel()
        self.assertTrue(self.stage.carriage.stopped)
        self.assertEqual((asked.sink.status, asked.sink.ending), (502, "finished"))
        self.assertEqual(self.stage.router.asked[0].lease.released, 1)

    def test_a_stream_is_cut_and_says_why(self):
        """http T156 (the Go program ends it like a complete one)"""
        asked = self.stage.post({"model": "alpha", "stream": True})
        self.stage.carriage.begin(b"data: 1\n\n", kind=b"text/event-stream")
        self.cancel()
        self.assertIn(b"request cancelled", asked.sink.body)
        self.assertEqual(asked.sink.ending, "aborted")

    def test_a_finished_request_does_not_mind(self):
        self.stage.post({"model": "alpha"})
        self.stage.carriage.begin(b"{}")
        self.stage.carriage.end()
        self.cancel()
        self.assertEqual(len(self.stage.witness.endings), 1)


class Loading(SynchronousTestCase):
    def setUp(self):
        self.stage = Stage(auto=False, ready=False)

    def test_a_stream_for_a_cold_model_begins_at_once(self):
        """http T107, core V95"""
        asked = self.stage.post({"model": "al", "stream": True})
        sink = asked.sink
        self.assertEqual((sink.status, sink.header(b"content-type")), (200, b"text/event-stream"))
        self.assertEqual(sink.header(b"cache-control"), b"no-cache")
        self.assertIn("━━━━━".encode(), sink.body)
        self.stage.clock.advance(0.1)
        self.stage.router.asked[0].grant()
        self.assertIn(b"Done! (", sink.body.replace(b'"}}]}\n\ndata: {"choices":[{"delta":{"reasoning_content":"', b""))
        carriage = self.stage.carriage
        self.assertTrue(carriage.answered)
        carriage.begin(b"data: real\n\n", kind=b"text/event-stream")
        carriage.end()
        self.assertTrue(sink.body.endswith(b"data: real\n\n"))
        self.assertEqual((sink.ending, sink.producer), ("finished", None))
        witness = self.stage.witness
        self.assertEqual(len(witness.heads), 1)
        self.assertEqual(witness.body, sink.body)
        self.assertEqual(self.stage.clock.getDelayedCalls(), [])

    def test_nothing_is_injected_elsewhere(self):
        """http T108"""
        for body, path in (
            ({"model": "alpha", "stream": False}, CHAT),
            ({"model": "alpha", "stream": True}, b"/v1/completions"),
            ({"model": "alpha", "stream": True}, b"/v/chat/completions"),
            ({"model": "org", "stream": True}, CHAT),
        ):
            stage = Stage(auto=False, ready=False)
            self.assertFalse(stage.post(body, path).sink.started, path)
        self.assertFalse(Stage().post({"model": "alpha", "stream": True}).sink.started)

    def test_a_failed_start_is_said_in_events_and_the_stream_ends(self):
        """http T109 (framed, so that clients can read it)"""
        asked = self.stage.post({"model": "alpha", "stream": True}, CHAT, (b"Accept", b"text/plain"))
        self.stage.router.asked[0].granted.errback(StartFailed("alpha", "upstream command exited prematurely"))
        *_, said, done, empty = asked.sink.body.split(b"\n\n")
        self.assertEqual((done, empty), (b"data: [DONE]", b""))
        error = json.loads(said.removeprefix(b"data: "))["error"]
        self.assertEqual(error["message"], "unspecific error: upstream command exited prematurely")
        self.assertEqual((asked.sink.status, asked.sink.ending), (200, "finished"))

    def test_a_place_in_the_queue_is_told(self):
        """http T111"""
        asked = self.stage.post({"model": "alpha", "stream": True})
        self.stage.router.asked[0].on_place(1)
        self.stage.clock.pump([0.05] * 60)
        text = asked.sink.body.replace(b'"}}]}\n\ndata: {"choices":[{"delta":{"reasoning_content":"', b"")
        self.assertIn(b"Queue position: #1", text)
        asked.leave()

    def test_a_refusal_comes_before_any_event(self):
        """http T100"""
        self.stage.router.refusal = TooManyRequests("alpha", 1)
        asked = self.stage.post({"model": "alpha", "stream": True})
        self.assertEqual(asked.sink.status, 429)

    def test_a_retry_goes_on_in_the_same_stream(self):
        asked = self.stage.post({"model": "alpha", "stream": True})
        self.stage.router.asked[0].grant(lost=True)
        self.stage.carriage.result.errback(UpstreamUnreachable("alpha", "reset"))
        self.stage.router.asked[1].grant()
        carriage = self.stage.relay.carried[1]
        self.assertTrue(carriage.answered)
        carriage.begin(b"data: real\n\n", kind=b"text/event-stream")
        carriage.end()
        self.assertEqual(asked.sink.ending, "finished")


class Websockets(SynchronousTestCase):
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
        self.assertEqual(self.stage.carriage.upstream.endpoint.port, 9002)
        self.assertEqual(self.stage.carriage.header(b"upgrade"), b"WebSocket")
        self.assertEqual((self.stage.router.asked, self.stage.witnesses.seen), ([], []))

    def test_any_other_is_a_request_like_all(self):
        self.stage.ask(b"GET", b"/props?model=alpha", b"", *self.UPGRADE)
        self.assertEqual(len(self.stage.router.asked), 1)
        self.assertEqual(self.stage.carriage.header(b"connection"), b"Upgrade")
