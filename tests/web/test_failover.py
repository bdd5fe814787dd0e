"""A selector of the strategy failover: one target after the other, as long as the client saw nothing."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import Selector
from llamaswap.errors import StartFailed, TooManyRequests, UpstreamTruncated, UpstreamUnreachable
from tests.web.pipeline import ArrivingBody, Stage, config
from tests.web.test_proxy_handler import MULTIPART, message, upload

REFUSED = UpstreamUnreachable("there", "connection refused", sent=False)


class FailoverTests(SynchronousTestCase):
    """`safe` has the targets lab/delta (a peer's), beta:hot (ours) and zeta (the other peer's, by its bare name)."""

    def setUp(self):
        self.stage = Stage()

    def ask(self, **more):
        return self.stage.post({"model": "safe", "seed": 1, "temperature": 0.2, **more})

    @property
    def last(self):
        return self.stage.forwarder.forwarded[-1]

    def finish(self):
        self.last.begin(b"{}")
        self.last.end()

    @property
    def hosts(self):
        return [forwarding.upstream.endpoint.host for forwarding in self.stage.forwarder.forwarded]

    def metadata(self):
        return self.stage.witness.facts.metadata

    def test_the_first_target_that_answers_is_the_only_one_asked(self):
        asked = self.ask()
        self.finish()
        self.assertEqual((self.hosts, asked.sink.status), (["10.0.0.5"], 200))
        self.assertEqual(self.metadata(), {"selector": "safe"})

    def test_a_target_that_cannot_be_reached_is_followed_by_the_next(self):
        asked = self.ask()
        self.last.result.errback(REFUSED)
        self.finish()
        self.assertEqual((self.hosts, asked.sink.status), (["10.0.0.5", "127.0.0.1"], 200))
        expected = {"selector": "safe", "failover": "lab/delta,beta:hot", "fifo_priority": "0"}
        self.assertEqual(self.metadata(), expected)

    def test_each_target_gets_the_body_with_its_own_filters_only(self):
        self.ask()
        first = json.loads(self.last.sent)
        self.last.result.errback(REFUSED)
        second = json.loads(self.last.sent)
        self.last.begin(status=503)
        third = json.loads(self.last.sent)
        self.assertEqual(first, {"model": "delta", "temperature": 0.2})
        self.assertEqual(second, {"model": "beta-up", "seed": 1, "temperature": 1.5, "top_k": 9})
        self.assertEqual(third, {"model": "zeta", "seed": 1, "temperature": 0.2})

    def test_each_peer_gets_its_own_key_only(self):
        self.ask()
        self.assertEqual(self.last.header(b"authorization"), b"Bearer pk-lab")
        self.last.begin(status=503)
        self.last.begin(status=503)
        self.assertIsNone(self.last.header(b"authorization"))

    def test_429_502_and_503_of_a_target_are_not_passed_on_while_another_is_left(self):
        for status in (429, 502, 503):
            self.setUp()
            asked = self.ask()
            self.last.begin(b"no", status=status)
            self.last.begin(b"no", status=status)
            self.assertFalse(asked.sink.started)
            self.assertEqual(self.stage.witness.heads, [])
            self.finish()
            self.assertEqual((self.hosts, asked.sink.status), (["10.0.0.5", "127.0.0.1", "10.0.0.6"], 200))
            self.assertEqual(self.metadata(), {"selector": "safe", "failover": "lab/delta,beta:hot,zeta"})

    def test_the_answer_of_the_last_target_is_passed_on_whatever_it_is(self):
        asked = self.ask()
        self.last.begin(status=503)
        self.last.begin(status=503)
        self.last.begin(b"busy", status=503)
        self.last.end()
        self.assertEqual((asked.sink.status, asked.sink.ending, len(self.hosts)), (503, "finished", 3))

    def test_failure_of_the_last_target_is_the_response(self):
        asked = self.ask()
        for _ in range(3):
            self.last.result.errback(UpstreamUnreachable("peer proxy error", "connection refused", sent=False))
            self.stage.clock.advance(0.1)
        self.assertEqual((asked.sink.status, message(asked.sink)), (502, "peer proxy error: connection refused"))
        self.assertEqual(self.stage.witness.endings[0][0], "refused")

    def test_any_other_status_is_an_answer(self):
        for status in (400, 404, 500, 504):
            self.setUp()
            asked = self.ask()
            self.last.begin(b"{}", status=status)
            self.last.end()
            self.assertEqual((asked.sink.status, self.hosts), (status, ["10.0.0.5"]))

    def test_nothing_is_tried_after_the_first_byte(self):
        asked = self.ask()
        self.last.begin(b"{")
        self.last.result.errback(UpstreamTruncated("there", "reset"))
        self.assertEqual((asked.sink.ending, len(self.hosts)), ("aborted", 1))

    def test_a_local_model_that_is_full_or_cannot_start_is_followed_by_the_next(self):
        for refusal in (TooManyRequests("beta", 1), StartFailed("beta", "upstream command exited prematurely")):
            self.setUp()
            self.stage.router.refusal = refusal
            asked = self.ask()
            self.last.result.errback(REFUSED)
            self.finish()
            self.assertEqual((self.hosts, asked.sink.status), (["10.0.0.5", "10.0.0.6"], 200))

    def test_a_request_of_an_unloaded_model_is_not_taken_to_the_next_target(self):
        self.select("alpha", "beta")
        asked = self.ask()
        lease = self.stage.router.asked[0].lease
        lease.process.unloaded = lease.process.lost = True
        self.last.result.errback(UpstreamUnreachable("alpha", "connection reset"))
        self.assertEqual((asked.sink.status, len(self.stage.router.asked)), (503, 1))

    def test_target_that_no_peer_has_listed_yet_is_skipped(self):
        self.select("lab/later", "alpha")
        asked = self.ask()
        self.finish()
        self.assertEqual((self.hosts, asked.sink.status), (["127.0.0.1"], 200))

    def select(self, *targets):
        self.stage = Stage(config=config())
        chosen = Selector("safe", strategy="failover", targets=targets)
        self.stage.router.config.selectors["safe"] = chosen

    def test_a_peer_that_did_not_answer_a_moment_ago_is_asked_last(self):
        """A machine that is off would cost every request the whole time that dialling may take."""
        self.stage.inference.avoided = lambda peer: peer == "lab"
        asked = self.ask()
        self.last.begin(status=503)
        self.last.begin(status=503)
        self.finish()
        self.assertEqual((self.hosts, asked.sink.status), (["127.0.0.1", "10.0.0.6", "10.0.0.5"], 200))
        self.assertEqual(self.metadata()["failover"], "beta:hot,zeta,lab/delta")

    def test_the_loading_text_waits_for_the_last_target_as_it_ends_the_choice(self):
        self.select("alpha", "lab/delta")
        self.stage.router.auto = self.stage.router.ready = False
        asked = self.ask(stream=True)
        self.assertFalse(asked.sink.started)
        self.stage.router.asked[0].settle(StartFailed("alpha", "no"))
        self.finish()
        self.assertEqual((asked.sink.status, asked.sink.body), (200, b"2\r\n{}\r\n"))

    def test_a_local_target_is_not_loaded_after_a_peer_if_the_request_forbids_loading(self):
        self.select("lab/delta", "alpha")
        self.stage.post({"model": "safe"}, b"/v1/chat/completions?autoload=false")
        self.last.result.errback(REFUSED)
        self.assertEqual((self.stage.router.asked, len(self.hosts)), ([], 1))

    def test_the_loading_text_is_shown_if_the_last_target_has_it(self):
        self.select("lab/delta", "alpha")
        self.stage.router.auto = self.stage.router.ready = False
        asked = self.ask(stream=True)
        self.last.result.errback(REFUSED)
        self.assertIn(b"llama", asked.sink.body)
        asked.leave()

    def test_the_record_names_the_target_that_answered(self):
        self.ask()
        self.assertEqual(self.stage.witness.facts.model, "lab/delta")
        self.last.result.errback(REFUSED)
        facts = self.stage.witness.facts
        self.assertEqual((facts.model, facts.requested), ("beta", "beta:hot"))
        self.assertGreater(self.stage.witness.retargets, 0)

    def test_client_that_leaves_between_two_targets_is_not_served(self):
        asked = self.ask()
        asked.leave()
        self.assertEqual((self.hosts, self.stage.witness.endings[0][0]), (["10.0.0.5"], "gone"))

    def test_a_cancelled_request_is_not_taken_to_the_next(self):
        self.ask()
        self.stage.witness.facts.cancel()
        self.assertEqual((self.hosts, self.stage.witness.endings[0][0]), (["10.0.0.5"], "cancelled"))

    def test_an_upload_is_sent_again_to_the_next(self):
        self.select("lab/delta", "whisper")
        body = NotedBody()
        self.stage.ask(b"POST", b"/v1/audio/transcriptions", body, MULTIPART)
        body.feed(upload("safe", last=True))
        body.end()
        self.assertIn(b"\r\n\r\ndelta\r\n", self.last.sent)
        self.last.body.start(Sink(), keep=False)
        self.assertNotIn(False, body.keeps)
        self.last.result.errback(REFUSED)
        self.assertIn(b"\r\n\r\nwhisper-v3\r\n", self.last.sent)
        self.assertEqual(self.last.sent.count(b"\x00\xff"), 50)

    def test_a_form_and_a_query_name_each_target_in_turn(self):
        self.stage.ask(b"GET", b"/v1/audio/voices?model=safe&x=1")
        self.last.result.errback(REFUSED)
        self.last.begin(status=503)
        targets = [forwarding.head.target for forwarding in self.stage.forwarder.forwarded]
        self.assertEqual(
            targets,
            [
                b"/base/v1/audio/voices?model=delta&x=1",
                b"/v1/audio/voices?model=beta%3Ahot&x=1",
                b"/v1/audio/voices?model=zeta&x=1",
            ],
        )

    def test_other_strategies_take_what_comes(self):
        self.stage.post({"model": "pick"})
        self.assertEqual(self.last.decline, ())
        asked = self.stage.post({"model": "lab/delta"})
        self.last.begin(status=503)
        self.last.end()
        self.assertEqual(asked.sink.status, 503)


class NotedBody(ArrivingBody):
    """Remembers whether it was allowed to forget."""

    def __init__(self):
        super().__init__()
        self.keeps = []

    def start(self, consumer, *, keep=True):
        self.keeps.append(keep)
        return super().start(consumer, keep=keep)


class Sink:
    def body_data(self, data):
        pass

    def body_ended(self):
        pass

    def body_failed(self, error):
        pass


class PeerNewsTests(SynchronousTestCase):
    """Whoever keeps the peers' health hears what requests find."""

    def setUp(self):
        self.stage = Stage()
        self.heard = []
        self.stage.handler.peer_answered = lambda peer, error: self.heard.append((peer, error))
        self.stage.post({"model": "zeta"})

    def test_response_marks_a_peer_as_up(self):
        self.stage.forwarding.begin(b"{}", status=500)
        self.stage.forwarding.end()
        self.assertEqual(self.heard, [("den", None)])

    def test_failed_connection_marks_a_peer_as_down(self):
        self.stage.forwarding.result.errback(REFUSED)
        self.assertEqual(self.heard, [("den", "connection refused")])

    def test_slow_peer_stays_as_it_is(self):
        self.stage.forwarding.result.errback(UpstreamUnreachable("there", "no answer within 60 s", sent=True))
        self.assertEqual(self.heard, [])
