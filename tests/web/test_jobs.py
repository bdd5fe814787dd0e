"""Jobs: their requests go to the server that has them, and it stays while they run."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import ApiKey, Filters, Secret, Selector
from llamaswap.config.schema.keys import Budget
from llamaswap.errors import UpstreamUnreachable
from llamaswap.proxy.exchange import RequestHead
from llamaswap.web.head_facts import Authenticated
from llamaswap.web.jobs import CHECK_INTERVAL, HOLD_TIME, LIFETIME, MAX_JOBS, JobDirectory, job_path
from llamaswap.web.key_access import KeyAccess, access_of
from tests.web.pipeline import Stage, config, model

FORM = (b"Content-Type", b"multipart/form-data; boundary=b")
VIDEO = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nal\r\n--b--\r\n'


class JobTestCase(SynchronousTestCase):
    def setUp(self):
        self.stage = Stage(states={"alpha": "ready"})

    @property
    def last(self):
        return self.stage.forwarder.forwarded[-1]

    def answer(self, code=200, **document):
        self.last.begin(json.dumps(document).encode(), status=code, raw=False)
        self.last.end()

    def create(self, identity="video_1", status="queued", path=b"/v1/videos"):
        self.stage.ask(b"POST", path, VIDEO, FORM, (b"Accept-Encoding", b"gzip"))
        self.answer(id=identity, object="video", status=status)

    def ask(self, method, path, body=b"", *headers):
        """The request that the server gets; None and the status if it gets none."""
        before = len(self.stage.forwarder.forwarded)
        serve = self.stage.passthrough.serve if path.startswith(b"/upstream/") else None
        asked = self.stage.ask(method, path, body, *headers, serve=serve)
        return self.last if len(self.stage.forwarder.forwarded) > before else asked.sink.status

    def held(self):
        return sum(one.lease is not None and one.lease.releases == 0 for one in self.stage.router.asked)


class FollowTests(JobTestCase):
    def test_later_requests_go_to_the_server_that_has_the_job(self):
        self.create()
        self.assertIsNone(self.last.header(b"accept-encoding"))
        for method, path in (
            (b"GET", b"/v1/videos/video_1"),
            (b"HEAD", b"/v1/videos/video_1/content?variant=a"),
            (b"POST", b"/v1/videos/video_1/remix"),
        ):
            found = self.ask(method, path)
            self.assertEqual((found.upstream.name, found.head.target, found.head.method), ("alpha", path, method))
            self.answer(id="video_1", status="completed")

    def test_an_unknown_job_is_not_found_and_a_model_in_the_query_is_asked(self):
        self.assertEqual(self.ask(b"GET", b"/v1/videos/video_9"), 404)
        self.assertEqual(self.ask(b"GET", b"/v1/batches/video_1"), 404)
        found = self.ask(b"GET", b"/v1/videos/video_9?model=alpha")
        self.assertEqual((found.upstream.name, found.head.target), ("alpha", b"/v1/videos/video_9?model=alpha"))

    def test_reads_about_jobs_do_not_load_a_model(self):
        self.create(status="completed")
        self.stage.router.states["alpha"] = "stopped"
        for method, path in (
            (b"GET", b"/v1/videos/video_1"),
            (b"GET", b"/v1/videos/video_1/content"),
            (b"DELETE", b"/v1/videos/video_1"),
            (b"GET", b"/v1/videos?model=alpha"),
            (b"GET", b"/v1/videos/x?model=alpha"),
            (b"DELETE", b"/v1/files/x?model=alpha"),
        ):
            self.assertEqual(self.ask(method, path), 409, path)

    def test_a_server_that_exits_under_a_question_about_a_job_is_not_started_for_it(self):
        self.create(status="completed")
        asked = self.stage.ask(b"GET", b"/v1/videos/video_1", b"")
        self.stage.router.states["alpha"] = "stopped"
        self.stage.router.asked[-1].lease.process.lost = True
        before = len(self.stage.router.asked)
        self.last.result.errback(UpstreamUnreachable("alpha", "connection reset"))
        self.assertEqual((asked.sink.status, len(self.stage.router.asked)), (502, before))

    def test_a_model_in_the_query_is_asked_by_clients_that_always_name_a_content_type(self):
        kind = (b"Content-Type", b"application/json")
        for method, path in ((b"GET", b"/v1/videos"), (b"GET", b"/v1/files/x"), (b"DELETE", b"/v1/files/x")):
            found = self.ask(method, path + b"?model=alpha", b"", kind)
            self.assertEqual((found.upstream.name, found.sent), ("alpha", b""), path)

    def test_a_deleted_job_is_forgotten(self):
        self.create()
        self.ask(b"DELETE", b"/v1/videos/video_1")
        self.answer(id="video_1", deleted=True)
        self.assertEqual((self.ask(b"GET", b"/v1/videos/video_1"), self.held()), (404, 0))

    def test_a_page_of_another_site_deletes_no_job(self):
        self.create()
        foreign = (b"Sec-Fetch-Site", b"cross-site")
        self.assertEqual(self.ask(b"DELETE", b"/v1/videos/video_1", b"", foreign), 403)

    def test_a_new_job_of_an_old_one_is_followed(self):
        self.create(status="completed")
        self.ask(b"POST", b"/v1/videos/video_1/remix", b'{"prompt":"more"}', (b"Content-Type", b"application/json"))
        self.assertEqual(self.last.sent, b'{"prompt":"more"}')
        self.answer(id="video_2", status="queued")
        self.assertEqual(self.ask(b"GET", b"/v1/videos/video_2").upstream.name, "alpha")

    def test_a_batch_goes_to_the_server_that_has_its_file(self):
        self.create("file-1", "processed", b"/v1/files")
        asked = (b"POST", b"/v1/batches", b'{"input_file_id": "file-1"}', (b"Content-Type", b"application/json"))
        self.assertEqual(self.ask(*asked).upstream.name, "alpha")
        self.answer(id="batch_1", status="validating")
        self.assertEqual(self.ask(b"POST", b"/v1/batches/batch_1/cancel").upstream.name, "alpha")

    def test_a_job_of_a_selector_stays_at_the_server_that_was_chosen(self):
        selector = Selector("any", strategy="pin", targets=("beta", "alpha"))
        self.stage = Stage(config=config(), states={"alpha": "ready", "beta": "ready"})
        self.stage.router.config.selectors["any"] = selector
        self.stage.ask(b"POST", b"/v1/videos?model=any", b"")
        server = self.last.upstream.name
        self.answer(id="video_1", status="completed")
        self.assertEqual((server, self.ask(b"GET", b"/v1/videos/video_1").upstream.name), ("beta", "beta"))

    def test_a_job_of_a_peer_is_followed(self):
        self.stage.ask(b"POST", b"/v1/videos?model=lab/delta", b"")
        self.answer(id="video_1", status="queued")
        self.assertEqual(self.ask(b"GET", b"/v1/videos/video_1").upstream.endpoint.port, 7000)

    def test_a_job_of_a_replica_goes_to_that_replica(self):
        copy = model("alpha.r2", replica_of="alpha")
        self.stage = Stage(config=config(models=[copy]), states={"alpha": "starting", "alpha.r2": "ready"})
        self.stage.ask(b"POST", b"/v1/videos?model=alpha", b"")
        server = self.last.upstream.name
        self.answer(id="video_1", status="completed")
        self.stage.router.states.update({"alpha": "ready", "alpha.r2": "ready"})
        self.assertEqual(self.ask(b"GET", b"/v1/videos/video_1").upstream.name, server)

    def test_a_job_whose_model_was_removed_is_not_found(self):
        self.create(status="completed")
        del self.stage.router.config.models["alpha"]
        self.assertEqual(self.ask(b"GET", b"/v1/videos/video_1"), 404)

    def test_answers_without_a_job_are_not_recorded(self):
        for status, body in (
            (500, b'{"id":"video_1"}'),
            (200, b'{"id":7}'),
            (200, b"not json"),
            (200, b'{"id":"' + b"v" * 300 + b'"}'),
            (200, b'{"pad":"' + b"x" * 70_000 + b'","id":"video_1"}'),
        ):
            self.stage.ask(b"POST", b"/v1/videos", VIDEO, FORM)
            self.last.begin(body, status=status, raw=False)
            self.last.end()
        self.assertEqual((self.ask(b"GET", b"/v1/videos/video_1"), self.held()), (404, 0))
        self.assertEqual(self.ask(b"GET", b"/v1/videos/" + b"v" * 300), 404)

    def test_paths_that_are_no_job_paths_are_left_alone(self):
        for path in (b"/v1/videosx", b"/v1/videos//x", b"/v1/other/x", b"/videos/x"):
            self.assertIsNone(job_path(path), path)
        self.assertFalse(self.stage.inference.is_model_route(RequestHead(b"PUT", b"/v1/videos/x", [])))

    def test_a_created_job_is_followed_in_a_document_in_pieces(self):
        self.stage.ask(b"POST", b"/v1/videos", VIDEO, FORM)
        self.last.begin(b'{"id":"vid', b'eo_1","sta', b'tus":"queued"}', raw=False)
        self.last.end()
        self.assertEqual((self.ask(b"GET", b"/v1/videos/video_1").upstream.name, self.held()), ("alpha", 1))


class KeyTests(JobTestCase):
    def use(self, name, models=None, scopes=()):
        access = KeyAccess(name, models=models, key=ApiKey(name=name, scopes=scopes))
        self.stage.inference.authenticate = lambda head: Authenticated(frozenset(), access)
        self.stage.passthrough.authenticate = self.stage.inference.authenticate

    def listed(self, path=b"/v1/videos?model=alpha", **document):
        """The list that the client gets of a server's."""
        asked = self.stage.ask(b"GET", path, b"")
        self.answer(**document)
        return asked.sink

    def test_a_key_reaches_no_job_that_it_has_not_created_by_naming_its_model(self):
        self.create()
        self.use("other")
        for method in (b"GET", b"DELETE", b"POST"):
            for identity in (b"video_1", b"video_2"):
                self.assertEqual(self.ask(method, b"/v1/videos/" + identity + b"?model=alpha"), 404)
        self.use("parent", scopes=("admin",))
        self.assertEqual(self.ask(b"GET", b"/v1/videos/video_2?model=alpha").upstream.name, "alpha")

    def test_a_key_finds_only_its_own_jobs(self):
        self.use("anna")
        self.create()
        self.use("bert")
        for method in (b"GET", b"DELETE"):
            self.assertEqual(self.ask(method, b"/v1/videos/video_1"), 404)
        self.create()  # a server may use an ID twice, for another key
        self.ask(b"DELETE", b"/v1/videos/video_1")
        self.answer(deleted=True)
        self.use("anna")
        self.assertEqual(self.ask(b"GET", b"/v1/videos/video_1").upstream.name, "alpha")

    def test_a_key_with_the_scope_admin_and_one_that_is_a_mere_text_reach_the_jobs_of_all_keys(self):
        self.use("anna")
        self.create()
        for key in (("parent", None, ("admin",)), ("",)):
            self.use(*key)
            self.assertEqual(self.ask(b"GET", b"/v1/videos/video_1").upstream.name, "alpha")
            self.answer(id="video_1", status="completed")
        self.ask(b"DELETE", b"/v1/videos/video_1")
        self.answer(deleted=True)
        self.use("anna")
        self.assertEqual(self.ask(b"GET", b"/v1/videos/video_1"), 404)

    def test_a_list_has_only_the_jobs_of_its_key(self):
        self.use("anna")
        self.create("video_1")
        self.create("video_3")
        self.use("bert")
        self.create("video_2")
        everything = {
            "object": "list",
            "data": [{"id": name, "status": "queued"} for name in ("video_1", "video_2", "video_3", "video_9")],
            "first_id": "video_1",
            "last_id": "video_9",
            "has_more": True,
        }
        for name, expected in (("anna", ["video_1", "video_3"]), ("bert", ["video_2"]), ("carl", [])):
            self.use(name)
            sink = self.listed(**everything)
            self.assertEqual([row["id"] for row in sink.json["data"]], expected)
            ends = (sink.json["first_id"], sink.json["last_id"])
            self.assertEqual(ends, (expected[0], expected[-1]) if expected else (None, None))
            self.assertEqual((sink.json["has_more"], sink.ending, sink.raw), (True, "finished", True))
            self.assertEqual(int(sink.header(b"content-length")), len(sink.body))
        for key in (("parent", None, ("admin",)), ("",)):
            self.use(*key)
            self.assertEqual(self.listed(**everything).json, everything)

    def test_a_list_has_no_job_of_the_same_id_at_another_server(self):
        self.use("anna")
        self.stage.ask(b"POST", b"/v1/videos?model=lab/delta", b"")
        self.answer(id="video_1", status="completed")
        self.assertEqual(self.listed(data=[{"id": "video_1"}]).json["data"], [])
        found = self.listed(b"/v1/videos?model=lab/delta", data=[{"id": "video_1"}])
        self.assertEqual(found.json["data"], [{"id": "video_1"}])

    def test_a_list_that_cannot_be_read_is_not_passed_to_a_key(self):
        self.use("anna")
        for pieces in ((b"not json",), (b'{"data":[{"id":"', b"x" * (1 << 20), b'"}]}')):
            asked = self.stage.ask(b"GET", b"/v1/videos?model=alpha", b"")
            self.last.begin(*pieces, raw=False)
            self.last.end()
            self.assertEqual((asked.sink.status, asked.sink.ending), (502, "finished"))
        asked = self.stage.ask(b"GET", b"/v1/videos?model=alpha", b"")
        self.last.begin(b'{"error":"no such path"}', status=404, raw=False)
        self.last.end()
        self.assertEqual((asked.sink.status, asked.sink.body), (404, b'{"error":"no such path"}'))

    def test_a_batch_of_the_file_of_another_key_is_not_found(self):
        self.use("anna")
        self.create("file-1", "processed", b"/v1/files")
        kind = (b"Content-Type", b"application/json")
        self.use("bert")
        for body in (b'{"input_file_id":"file-1"}', b'{"input_file_id":"file-1","model":"alpha"}'):
            self.assertEqual(self.ask(b"POST", b"/v1/batches", body, kind), 404)

    def test_a_batch_names_the_file_of_another_key_in_no_way_that_a_server_could_read(self):
        self.use("anna")
        self.create("file-1", "processed", b"/v1/files")
        self.use("bert")
        self.create("file-2", "processed", b"/v1/files")
        json, form = b"application/json", b"application/x-www-form-urlencoded"
        for body, kind in (
            (b'{"input_file_id":"file-2","input_file_id":"file-1","model":"alpha"}', json),
            (b'{"input_file_id":"","input_file_id":"file-1","model":"alpha"}', json),
            (b'{"input_file_id":["file-1"],"model":"alpha"}', json),
            (b'{"input_file_id":"file-1"}', form),
        ):
            self.assertEqual(self.ask(b"POST", b"/v1/batches?model=alpha", body, (b"Content-Type", kind)), 400, body)

    def test_a_chat_that_names_the_file_of_another_key_is_not_served(self):
        self.use("anna")
        self.create("file-1", "processed", b"/v1/files")
        self.use("bert")
        self.create("file-2", "processed", b"/v1/files")
        kind, nested = (b"Content-Type", b"application/json"), b'{"model":"alpha","messages":[{"content":[%b]}]}'
        paths = (b"/v1/chat/completions", b"/v1/responses", b"/v1/messages", b"/upstream/alpha/v1/chat/completions")
        parts = (
            b'{"type":"file","file":{"file_id":"file-1"}}',
            b'{"file_id":"file-2","file_id" : "file-1"}',
            b'{"f\\u0069le\\u005Fid":"file\\u002d1"}',
            b'{"container":{"file_ids":[null, "file-2" , "file-1"]}}',
            b'{"file_id":' + b" " * 70_000 + b'"file-1"}',
            b'{"text":"' + b"x" * (1 << 18) + b'","file_id":"file-1"}',
            b'{"text":"' + b"x" * (1 << 20) + b'","file_id":"file-1"}',
        )
        for path in paths:
            for part in parts:
                self.assertEqual(self.ask(b"POST", path, nested % part, kind), 404, (path, part[:80]))
        by_query = b"/v1/chat/completions?model=alpha"
        self.assertEqual(self.ask(b"POST", by_query, b'{"file_id":"file-1"}'), 404)
        self.assertEqual(self.ask(b"POST", by_query, '{"file_id":"file-1"}'.encode("utf-16"), kind), 400)
        for coding in ("utf-16-le", "utf-16-be", "utf-32"):
            self.assertEqual(self.ask(b"POST", by_query, ' {"file_id":"file-1"}'.encode(coding), kind), 400)

    def test_a_file_of_another_key_is_not_reached_in_a_body_that_only_some_servers_read(self):
        self.use("anna")
        self.create("file-1", "processed", b"/v1/files")
        self.use("bert")
        chat, other, kind = b"/v1/chat/completions?model=alpha", b"/upstream/alpha/v1/answers", b"application/json"
        for path, body, *kinds in (
            (chat, b'{"FILE_ID":"file-1"}', kind),  # read by a server in Go, as the next two
            (chat, b'{"F\\u0049le_\\u0049d":"file-1"}', kind),
            (chat, '{"file_idſ":["file-1"]}'.encode(), kind),
            (other, b'{"file_id":"file-1"}', b"application/vnd.api+json"),
            (other, b'{"file_id":"file-1"}'),
            (other, b'[{"file_id":"file-1"}]', kind),
        ):
            headers = [(b"Content-Type", value) for value in kinds]
            self.assertEqual(self.ask(b"POST", path, body, *headers), 404, (path, body, kinds))

    def test_a_body_that_names_very_many_files_is_refused_before_all_are_looked_for(self):
        """Half a second for one of a megabyte, in which no other request went on."""
        self.use("anna")
        self.create("file-1", "processed", b"/v1/files")
        self.use("bert")
        kind = (b"Content-Type", b"application/json")
        for many in (b'"file_ids":[' + b"1," * 10_000 + b"1]", b",".join([b'"file_id":""'] * 10_000)):
            asked = self.ask(b"POST", b"/v1/chat/completions", b'{"model":"alpha",%b}' % many, kind)
            self.assertEqual(asked, 400)

    def test_bodies_that_name_no_file_are_sent_as_they_are_while_another_key_has_files(self):
        self.use("anna")
        self.create("file-1", "processed", b"/v1/files")
        self.use("bert")
        large = b'{"messages":[{"content":"' + b"x" * (2 << 20) + b'"}]}'
        for path, body, kind in (
            (b"/v1/audio/transcriptions?model=alpha", b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0", b"audio/wav"),
            (b"/upstream/alpha/v1/audio/transcriptions", b"RIFF" + bytes(2 << 20), b"audio/wav"),
            (b"/upstream/alpha/lora-adapters", b'[{"id":0,"scale":0.5}]', b"application/json"),
            (b"/upstream/alpha/v1/chat/completions", large, b"application/x-www-form-urlencoded"),  # of curl -d
        ):
            found = self.ask(b"POST", path, body, (b"Content-Type", kind))
            self.assertEqual((found.upstream.name, found.sent), ("alpha", body), path)

    def test_a_chat_names_own_files_and_those_that_no_other_key_has_made(self):
        self.use("anna")
        self.create("file-1", "processed", b"/v1/files")
        kind = (b"Content-Type", b"application/json")
        served = b'{"model":"alpha","a":{"file_id":"%b"},"b":"\\"file_id\\":\\"file-1\\"","c":["file_id","file-1"]}'
        for user, identity in (
            (("bert",), b"file-2"),
            (("anna",), b"file-1"),
            (("parent", None, ("admin",)), b"file-1"),
        ):
            self.use(*user)
            for path in (b"/v1/chat/completions", b"/upstream/alpha/v1/chat/completions"):
                found = self.ask(b"POST", path, served % identity, kind)
                self.assertEqual((found.upstream.name, found.sent), ("alpha", served % identity), path)
        self.use("bert")
        self.assertEqual(self.ask(b"GET", b"/upstream/alpha/v1/models", b"", kind).upstream.name, "alpha")
        self.assertEqual(self.ask(b"POST", b"/v1/videos", VIDEO, FORM).upstream.name, "alpha")

    def test_a_key_reaches_no_job_of_another_key_by_another_spelling_of_its_path(self):
        self.use("anna")
        self.create("video_1")
        self.use("bert")
        self.create("video_2")
        self.assertEqual(self.listed(b"/v1/videos/?model=alpha", data=[{"id": "video_1"}]).json["data"], [])
        for path in (
            b"/v1/videos/video_2/../video_1",
            b"/v1/videos/video_2/%2e%2E/video_1",
            b"/v1/videos/video_2%2f../video_1",
            b"/v1/videos/video_1/",
            b"/v1/videos//video_1",
            b"/v1//videos/video_1",
            b"/v1/./videos/video_1",
            b"/v1/%76ideos/video_1",
            b"/x/../v1/videos",
        ):
            self.assertEqual(self.ask(b"GET", path + b"?model=alpha"), 404, path)
            body = b'{"model":"alpha"}'
            self.assertEqual(self.ask(b"POST", path, body, (b"Content-Type", b"application/json")), 404, path)

    def test_a_key_reaches_no_job_of_another_key_at_the_address_of_its_server(self):
        def upstream(path):
            sink = self.stage.upstream(b"GET", b"/upstream/alpha" + path, b"").sink
            return sink.json["error"]["code"] if sink.status == 403 else sink.status or "forwarded"

        self.use("anna")
        self.create()
        paths = (b"/v1/videos", b"/v1/videos/video_1", b"/v1//videos", b"/v1/%76ideos/x", b"/sub/v1/files/x")
        self.stage.passthrough.authenticate = self.stage.inference.authenticate
        for path in paths:
            self.assertEqual(upstream(path), "scope", path)
        self.use("parent", scopes=("admin",))
        self.stage.passthrough.authenticate = self.stage.inference.authenticate
        for path in paths:
            self.assertEqual(upstream(path), "forwarded", path)
        self.use("anna")
        self.stage.passthrough.authenticate = self.stage.inference.authenticate
        self.assertEqual(upstream(b"/v1/models"), "forwarded")

    def test_a_key_with_limits_or_rules_begins_no_batch_and_with_a_token_limit_no_response_in_the_background(self):
        kind = (b"Content-Type", b"application/json")
        background = (b"POST", b"/v1/responses", b'{"model":"alpha","background":true}', kind)
        for limits, in_background in (
            ({"rpm": 3}, True),
            ({"max_tokens": 9}, True),
            ({"max_duration": 9.0}, True),
            ({"filters": Filters(strip_params=("seed",))}, True),
            ({"tpm": 9}, False),
            ({"budget": Budget(9, 60.0)}, False),
        ):
            access = access_of(ApiKey(Secret("sk-1"), "anna", **limits), ())
            self.stage.inference.authenticate = lambda head, access=access: Authenticated(frozenset(), access)
            self.assertEqual(self.ask(b"POST", b"/v1/batches", b'{"model":"alpha"}', kind), 403, limits)
            asked = self.ask(*background)
            self.assertEqual(asked != 403, in_background, limits)

    def test_a_response_continues_no_other_than_the_one_that_is_checked(self):
        body = b'{"model":"alpha","previous_response_id":"","previous_response_id":"resp_1"}'
        self.assertEqual(self.ask(b"POST", b"/v1/responses", body, (b"Content-Type", b"application/json")), 400)


class HoldTests(JobTestCase):
    """A server that forgets its jobs when it stops must not be stopped for another model in the middle of one."""

    def test_a_running_job_keeps_the_lease_of_the_request_that_began_it(self):
        self.create()
        self.assertEqual((len(self.stage.router.asked), self.held()), (1, 1))
        self.stage.clock.pump([CHECK_INTERVAL] * int(HOLD_TIME / CHECK_INTERVAL - 1))
        self.assertEqual(self.held(), 1)
        self.stage.clock.advance(CHECK_INTERVAL)
        self.assertEqual(self.held(), 0)

    def test_a_job_whose_model_was_removed_does_not_keep_its_server(self):
        """Requests for other models waited a minute for a job that no client could ask for."""
        self.create()
        del self.stage.router.config.models["alpha"]
        self.stage.clock.advance(CHECK_INTERVAL)
        self.assertEqual((self.held(), self.stage.clock.getDelayedCalls()), (0, []))

    def test_questions_about_a_running_job_are_served_with_its_lease(self):
        """With a concurrency limit of 1 they would wait for the job otherwise."""
        self.create()
        for _ in range(3):
            self.stage.clock.advance(HOLD_TIME - 1)
            self.ask(b"GET", b"/v1/videos/video_1")
            self.answer(id="video_1", status="in_progress")
        self.assertEqual((len(self.stage.router.asked), self.held()), (1, 1))
        self.ask(b"GET", b"/v1/videos/video_1/content")
        self.answer(404, error={})
        self.assertEqual(self.held(), 1)
        self.ask(b"GET", b"/v1/videos/video_1")
        self.answer(id="video_1", status="completed")
        self.assertEqual((self.held(), self.stage.clock.getDelayedCalls()), (0, []))
        self.ask(b"GET", b"/v1/videos/video_1/content")
        self.assertEqual(len(self.stage.router.asked), 2)

    def test_a_long_request_about_a_running_job_keeps_its_lease_to_the_end(self):
        self.create()
        self.stage.ask(b"GET", b"/v1/videos/video_1/content", b"")
        self.stage.clock.pump([CHECK_INTERVAL] * int(2 * HOLD_TIME / CHECK_INTERVAL))
        self.assertEqual(self.held(), 1)
        self.answer(204)
        self.assertEqual(self.held(), 1)
        self.stage.clock.advance(CHECK_INTERVAL)
        self.assertEqual(self.held(), 0)
        self.assertEqual(self.stage.router.asked[0].lease.releases, 1)

    def test_a_job_that_ends_under_a_long_request_keeps_its_lease_for_that(self):
        self.create()
        self.stage.ask(b"GET", b"/v1/videos/video_1/content", b"")
        long = self.last
        self.ask(b"GET", b"/v1/videos/video_1")
        self.answer(id="video_1", status="completed")
        self.assertEqual(self.held(), 1)
        long.begin(b"video", raw=False)
        long.end()
        self.assertEqual((self.held(), self.stage.clock.getDelayedCalls()), (0, []))
        self.assertEqual(self.stage.router.asked[0].lease.releases, 1)

    def test_a_late_answer_that_a_job_runs_holds_no_lease_that_was_given_up(self):
        self.create()
        self.stage.ask(b"GET", b"/v1/videos/video_1", b"")
        late = self.last
        self.ask(b"DELETE", b"/v1/videos/video_1")
        self.answer(id="video_1", deleted=True)
        late.begin(b'{"id":"video_1","status":"in_progress"}', raw=False)
        late.end()
        self.assertEqual((self.held(), self.stage.clock.getDelayedCalls()), (0, []))

    def test_a_lease_that_was_released_is_taken_again_by_the_next_question(self):
        self.create()
        self.stage.inference.jobs.release_leases()
        self.assertEqual((self.held(), self.stage.clock.getDelayedCalls()), (0, []))
        self.ask(b"GET", b"/v1/videos/video_1")
        self.answer(id="video_1", status="in_progress")
        self.assertEqual(self.held(), 1)

    def test_a_job_that_is_done_at_once_keeps_nothing(self):
        self.create(status="completed")
        self.assertEqual((self.held(), self.stage.clock.getDelayedCalls()), (0, []))

    def test_a_job_that_the_server_does_not_know_any_more_is_released(self):
        self.create()
        self.ask(b"GET", b"/v1/videos/video_1")
        self.answer(404, error={})
        self.assertEqual(self.held(), 0)

    def test_a_lease_of_a_server_that_has_exited_is_not_used(self):
        self.create()
        self.stage.router.asked[0].lease.process.lost = True
        self.ask(b"GET", b"/v1/videos/video_1")
        self.answer(id="video_1", status="queued")
        self.assertEqual((len(self.stage.router.asked), self.held()), (2, 1))

    def test_the_lease_of_a_server_that_was_unloaded_is_released_soon(self):
        """Otherwise the server counts as one that serves for a minute."""
        self.create()
        self.stage.router.asked[0].lease.process.lost = True
        self.stage.clock.advance(CHECK_INTERVAL)
        self.assertEqual((self.held(), self.stage.clock.getDelayedCalls()), (0, []))

    def test_a_client_that_leaves_while_its_job_begins_keeps_nothing(self):
        asked = self.stage.ask(b"POST", b"/v1/videos", VIDEO, FORM)
        asked.leave()
        self.assertEqual((self.held(), self.stage.clock.getDelayedCalls()), (0, []))

    def test_a_client_that_leaves_during_a_question_loses_nothing(self):
        self.create()
        self.stage.ask(b"GET", b"/v1/videos/video_1").leave()
        self.assertEqual(self.held(), 1)


class DirectoryTests(SynchronousTestCase):
    def setUp(self):
        self.stage = Stage()
        self.jobs = JobDirectory(self.stage.router, self.stage.clock)

    def has(self, *names, owner=""):
        access = KeyAccess(owner)
        return [self.jobs.find(access, "files", name) is not None for name in names]

    def add(self, *names, owner=""):
        for name in names:
            self.jobs.add(owner, "files", name, "alpha", "alpha")

    def test_the_jobs_that_were_not_asked_for_longest_are_forgotten(self):
        self.add(*map(str, range(MAX_JOBS)))
        self.assertEqual(self.has("0"), [True])
        self.add("last")
        self.assertEqual(self.has("0", "1", "2", "last"), [True, False, True, True])

    def test_a_key_that_creates_many_jobs_pushes_out_none_of_another_key(self):
        self.add("first", "second", owner="anna")
        self.add(*map(str, range(MAX_JOBS)), owner="bert")
        self.assertEqual(self.has("first", "second", owner="anna"), [True, True])
        self.assertEqual(self.has("0", "1", "2", owner="bert"), [False, False, True])
        self.add("third", owner="anna")
        self.assertEqual(self.has("first", "second", "third", owner="anna"), [True] * 3)
        self.assertEqual(self.has("2", "3", owner="bert"), [True, False])  # it was asked for just now

    def test_jobs_are_known_after_an_upgrade(self):
        self.add("one", owner="anna")
        self.stage.clock.advance(LIFETIME / 2)
        self.add("two", owner="bert")
        handed = self.jobs.hand_over()
        self.jobs = JobDirectory(self.stage.router, self.stage.clock)
        self.jobs.adopt(handed)
        self.assertEqual(self.jobs.hand_over(), handed)
        self.assertEqual(
            [self.has("one", "two", owner=name) for name in ("anna", "bert")], [[True, False], [False, True]]
        )
        self.jobs.adopt(handed)
        self.stage.clock.advance(LIFETIME / 2 + 1)
        self.assertEqual((self.has("one", owner="anna"), self.has("two", owner="bert")), ([False], [True]))

    def test_files_are_hidden_from_a_key_while_another_key_has_one(self):
        def hidden(*owners):
            return [self.jobs.hides_files(KeyAccess(owner)) for owner in owners]

        self.jobs.add("anna", "responses", "resp_1", "alpha", "alpha")
        self.assertEqual(hidden("anna", "bert"), [False, False])
        self.add("one", "two", "two", owner="anna")  # a server gave one ID twice
        self.assertEqual(hidden("anna", "bert"), [False, True])
        self.add("three", owner="bert")
        self.assertEqual(hidden("anna", "bert", "carl"), [True] * 3)
        for name in ("one", "two"):
            job = self.jobs.find(KeyAccess("anna"), "files", name)
            self.jobs.forget(job)
            self.jobs.forget(job)  # two requests deleted it
        self.assertEqual(hidden("anna", "bert", "carl"), [True, False, True])
        self.stage.clock.advance(LIFETIME + 1)
        self.jobs.add("anna", "responses", "resp_2", "alpha", "alpha")  # now the old file is dropped
        self.assertEqual(hidden("anna", "bert", "carl"), [False] * 3)

    def test_a_job_expires(self):
        self.add("old")
        self.stage.clock.advance(LIFETIME - 1)
        self.assertEqual(self.has("old"), [True])
        self.stage.clock.advance(LIFETIME + 1)
        self.assertEqual(self.has("old"), [False])
        self.add("new", owner="anna")  # now the old one is dropped
        self.assertEqual(self.jobs.servers("", "files"), {})
