"""What clients get while they wait for a model: notices, bounds, and what follows both."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import ApiKey, Secret, Selector
from llamaswap.errors import QueueFull, StartFailed, UpstreamTruncated, UpstreamUnreachable, WaitedTooLong
from llamaswap.routing.interfaces import WaitStatus
from llamaswap.web.head_facts import Authenticated
from llamaswap.web.key_access import access_of
from tests.web.pipeline import Stage, config

CHAT, MESSAGES, RESPONSES = b"/v1/chat/completions", b"/v1/messages", b"/v1/responses"
STREAM = b"text/event-stream"
NOTICE = b': llamaswap {"waiting_for":"beta"}\n\n'


class WaitingTestCase(SynchronousTestCase):
    def setUp(self):
        self.stage = Stage(auto=False, ready=False)

    def stream(self, path=CHAT, *headers, model="beta", **more):
        return self.stage.post({"model": model, "stream": True, **more}, path, *headers)

    @property
    def pending(self):
        return self.stage.router.asked[-1]

    @property
    def forwarding(self):
        return self.stage.forwarder.forwarded[-1]


class NoticeTests(WaitingTestCase):
    def test_a_short_wait_is_not_noticed(self):
        asked = self.stream()
        self.stage.clock.advance(1.9)
        self.assertFalse(asked.sink.started)
        self.pending.grant()
        self.forwarding.begin(b"data: 1\n\n", kind=STREAM, headers=[(b"X-Req", b"7")])
        self.assertEqual(asked.sink.header(b"x-req"), b"7")
        self.assertEqual(self.stage.clock.getDelayedCalls(), [])

    def test_the_servers_stream_follows_the_notices(self):
        asked = self.stream(CHAT, (b"Accept-Encoding", b"gzip"))
        self.stage.clock.advance(2)
        self.assertEqual((asked.sink.status, asked.sink.body), (200, NOTICE))
        self.assertEqual(asked.sink.header(b"content-type"), STREAM)
        self.pending.grant()
        self.assertIsNone(self.forwarding.header(b"accept-encoding"))
        self.forwarding.begin(b"data: 1\n\n", kind=STREAM, raw=False)
        self.forwarding.more(b"data: [DONE]\n\n", raw=False)
        self.forwarding.end()
        self.assertEqual(asked.sink.body, NOTICE + b"data: 1\n\ndata: [DONE]\n\n")
        self.assertEqual((asked.sink.ending, self.stage.witness.body), ("finished", b"data: 1\n\ndata: [DONE]\n\n"))
        self.assertEqual(self.stage.clock.getDelayedCalls(), [])

    def test_a_notice_has_the_position_the_load_and_the_eta(self):
        asked = self.stream()
        self.pending.on_position(3)
        self.stage.router.outlook = WaitStatus(("org",), False, 11.2)
        self.stage.clock.advance(2)
        facts = {"waiting_for": "beta", "queue_position": 3, "loading": ["org"], "eta": 12}
        self.assertEqual(json.loads(asked.sink.body.removeprefix(b": llamaswap ")), facts)
        self.assertEqual(asked.sink.header(b"x-llamaswap-queue-position"), b"3")
        self.stage.router.outlook = WaitStatus(("beta",), True, 4.0)
        self.stage.clock.advance(1)
        self.assertTrue(asked.sink.body.endswith(b': llamaswap {"waiting_for":"beta","loading":["beta"],"eta":4}\n\n'))

    def test_a_notice_names_no_model_that_the_key_may_not_use(self):
        access = access_of(ApiKey(Secret("x"), "child", models=("b*",)), ())
        self.stage.inference.authenticate = lambda head: Authenticated(frozenset(), access)
        self.stage.router.outlook = WaitStatus(("alpha", "bravo"), False, None)
        asked = self.stream()
        self.stage.clock.advance(2)
        self.assertIn(b'"loading":["bravo"]', asked.sink.body)

    def test_changes_are_noticed_once_a_second_at_most_and_the_same_every_five(self):
        asked = self.stream()
        self.stage.clock.pump([2] + [1] * 9)
        self.assertEqual(asked.sink.body, NOTICE * 2)
        for position in (5, 4, 3):
            self.pending.on_position(position)
        self.stage.clock.advance(1)
        self.assertEqual(asked.sink.body.count(b"queue_position"), 1)

    def test_a_client_that_does_not_read_gets_no_more(self):
        asked = self.stream()
        self.stage.clock.advance(2)
        asked.sink.backlog = 100
        self.stage.clock.pump([1] * 60)
        self.assertEqual(asked.sink.body, NOTICE)

    def test_only_requests_that_stream_text_get_notices(self):
        plain = self.stage.post({"model": "beta"})
        self.stage.clock.advance(60)
        speech = self.stream(b"/v1/audio/speech")
        peer = self.stream(CHAT, (b"X-Llamaswap-Hops", b"1"))
        self.stage.clock.advance(60)
        self.assertEqual([each.sink.started for each in (plain, speech, peer)], [False] * 3)

    def test_a_wait_of_0_turns_notices_off(self):
        self.stage = Stage(auto=False, ready=False, config=config(wait_notices=0.0))
        asked = self.stream()
        self.stage.clock.advance(60)
        self.assertFalse(asked.sink.started)

    def test_the_loading_stream_stays_alone(self):
        asked = self.stream(model="alpha")
        self.stage.clock.pump([1] * 10)
        self.assertIn(b"reasoning_content", asked.sink.body)
        self.assertNotIn(b": llamaswap", asked.sink.body)

    def test_a_client_that_leaves_ends_the_notices(self):
        asked = self.stream()
        self.stage.clock.advance(2)
        asked.leave()
        self.assertTrue(self.pending.cancelled)
        self.assertEqual(self.stage.clock.getDelayedCalls(), [])


class ErrorAfterNoticesTests(WaitingTestCase):
    def after(self, path, error, ending="finished"):
        asked = self.stream(path)
        self.stage.clock.advance(2)
        self.pending.settle(error)
        self.assertEqual((asked.sink.status, asked.sink.ending), (200, ending))
        return asked.sink.body.partition(b"\n\n" if path != MESSAGES else b"}}\n\n")[2]

    def test_an_error_of_the_wait_is_the_last_event_with_its_code(self):
        body = self.after(CHAT, WaitedTooLong("beta", 60.0))
        event, _, rest = body.partition(b"\n\n")
        self.assertEqual(json.loads(event.removeprefix(b"data: "))["error"]["code"], "queue_timeout")
        self.assertEqual(rest, b"data: [DONE]\n\n")
        self.assertEqual(self.stage.witness.heads[0][0], 503)

    def test_anthropics_clients_get_an_error_event_and_no_end_that_looks_whole(self):
        body = self.after(MESSAGES, StartFailed("beta", "upstream command exited prematurely"), "aborted")
        name, data = body.rstrip().split(b"\n")
        self.assertEqual((name, json.loads(data[6:])["type"]), (b"event: error", "error"))
        self.assertIn(b"exited prematurely", data)

    def test_the_responses_api_gets_its_flat_error_event(self):
        body = self.after(RESPONSES, WaitedTooLong("beta", 60.0), "aborted")
        self.assertEqual(json.loads(body.split(b"\n")[1][6:])["code"], "queue_timeout")

    def test_an_error_of_the_server_becomes_the_last_event(self):
        asked = self.stream()
        self.stage.clock.advance(2)
        self.pending.grant()
        self.forwarding.begin(b'{"error":{"message":"too', status=400, raw=False)
        self.forwarding.more(b' long","code":400}}', raw=False)
        self.forwarding.end()
        event = asked.sink.body[len(NOTICE) :].partition(b"\n\n")[0]
        self.assertEqual(json.loads(event[6:])["error"]["message"], "too long")
        self.assertEqual(self.stage.witness.heads[0][0], 400)

    def test_an_error_of_the_server_without_a_body_becomes_the_last_event(self):
        asked = self.stream()
        self.stage.clock.advance(2)
        self.pending.grant()
        self.forwarding.begin(status=500, raw=False)
        self.forwarding.end()
        self.assertIn(b"sent an error without a text", asked.sink.body)

    def test_a_huge_error_page_of_the_server_is_bounded(self):
        asked = self.stream()
        self.stage.clock.advance(2)
        self.pending.grant()
        self.forwarding.begin(status=500, kind=b"text/html", raw=False)
        for _ in range(100):
            self.forwarding.more(b"x" * 10_000, raw=False)
        self.forwarding.end()
        self.assertLess(len(asked.sink.body), 10_000)

    def test_a_document_of_a_server_that_does_not_stream_is_one_event(self):
        asked = self.stream()
        self.stage.clock.advance(2)
        self.pending.grant()
        self.forwarding.begin(b'{"id":\n', b"1}", raw=False)
        self.forwarding.end()
        self.assertEqual(asked.sink.body, NOTICE + b'data: {"id": 1}\n\ndata: [DONE]\n\n')

    def test_a_stream_that_breaks_off_ends_with_its_reason_and_a_reset(self):
        asked = self.stream()
        self.stage.clock.advance(2)
        self.pending.grant()
        self.forwarding.begin(b"data: 1\n\n", kind=STREAM, raw=False)
        self.forwarding.result.errback(UpstreamTruncated("beta", "connection lost"))
        self.assertIn(b"connection lost", asked.sink.body)
        self.assertEqual(asked.sink.ending, "aborted")


class SecondChanceTests(WaitingTestCase):
    def test_a_server_that_died_before_its_first_byte_is_replaced_after_notices(self):
        asked = self.stream()
        self.stage.clock.advance(2)
        lease = self.pending.grant(lost=True)
        self.forwarding.result.errback(UpstreamUnreachable("beta", "connection reset"))
        self.assertEqual((lease.releases, len(self.stage.router.asked)), (1, 2))
        self.stage.clock.advance(5)
        self.pending.grant()
        self.forwarding.begin(b"data: 1\n\n", kind=STREAM, raw=False)
        self.assertEqual(asked.sink.body, NOTICE * 2 + b"data: 1\n\n")

    def test_the_next_target_is_asked_after_notices(self):
        second = Selector("second", strategy="failover", targets=("beta", "lab/delta"))
        stage = self.stage = Stage(auto=False, ready=False)
        stage.router.config.selectors["second"] = second
        asked = self.stream(CHAT, (b"Accept-Encoding", b"gzip"), model="second")
        stage.clock.advance(2)
        self.pending.settle(StartFailed("beta", "upstream command exited prematurely"))
        self.assertEqual(self.forwarding.upstream.endpoint.host, "10.0.0.5")
        self.assertIsNone(self.forwarding.header(b"accept-encoding"))
        self.forwarding.begin(b"data: 1\n\n", kind=STREAM, raw=False)
        self.forwarding.end()
        self.assertEqual(asked.sink.body, NOTICE + b"data: 1\n\n")


class OllamaTests(WaitingTestCase):
    def chat(self, path=b"/api/chat", **more):
        return self.stage.post({"model": "beta", **more}, path)

    def lines(self, asked):
        return [json.loads(line) for line in asked.sink.body.splitlines()]

    def test_lines_without_text_precede_the_response(self):
        asked = self.chat(messages=[{"role": "user", "content": "hello"}])
        self.stage.router.outlook = WaitStatus(("beta",), True, 4.0)
        self.stage.clock.advance(2)
        self.assertEqual(asked.sink.header(b"content-type"), b"application/x-ndjson")
        [line] = self.lines(asked)
        self.assertEqual((line["message"]["content"], line["done"], line["llamaswap"]["eta"]), ("", False, 4))
        self.pending.grant()
        event = b'data: {"choices":[{"delta":{"content":"Hi"},"finish_reason":"stop"}]}\n\n'
        self.forwarding.begin(event, kind=STREAM, raw=False)
        self.forwarding.end()
        self.assertEqual([line["message"]["content"] for line in self.lines(asked)], ["", "Hi", ""])
        self.assertEqual(asked.sink.ending, "finished")

    def test_an_error_is_the_last_line(self):
        asked = self.chat(b"/api/generate", prompt="hello")
        self.stage.clock.advance(2)
        self.pending.settle(StartFailed("beta", "upstream command exited prematurely"))
        first, last = self.lines(asked)
        self.assertEqual((first["response"], asked.sink.status, asked.sink.ending), ("", 200, "finished"))
        self.assertEqual(last, {"error": "unspecific error: upstream command exited prematurely"})

    def test_a_load_without_a_prompt_ends_after_its_notices(self):
        asked = self.chat(messages=[])
        self.stage.clock.advance(2)
        self.pending.grant()
        self.assertEqual([line.get("done_reason") for line in self.lines(asked)], [None, "load"])
        self.assertEqual(asked.sink.ending, "finished")


class BoundTests(WaitingTestCase):
    def ask(self, path=CHAT, wait=b"wait=10", **more):
        return self.stage.post({"model": "beta", **more}, path, (b"Prefer", wait))

    def test_a_wait_over_the_clients_bound_is_refused_with_the_eta(self):
        asked = self.ask()
        self.stage.router.outlook = WaitStatus(("beta",), True, 41.5)
        self.stage.clock.advance(9.4)
        self.assertFalse(asked.sink.started)
        self.stage.clock.advance(0.1)  # the request came half a second before it began to wait
        self.assertEqual((asked.sink.status, asked.sink.header(b"retry-after")), (503, b"42"))
        self.assertEqual(asked.sink.header(b"preference-applied"), b"wait=10")
        self.assertEqual(asked.sink.json["error"]["code"], "wait_limit")
        self.assertIn("ready in about 42s", asked.sink.json["error"]["message"])
        self.assertTrue(self.pending.cancelled)

    def test_the_refusal_is_in_the_callers_dialect(self):
        messages, chat = self.ask(MESSAGES), self.ask(b"/api/chat", stream=False, messages=[{"role": "user"}])
        self.stage.clock.advance(10)
        self.assertEqual(messages.sink.json["type"], "error")
        self.assertIn("Prefer: wait", chat.sink.json["error"])

    def test_wait_0_takes_only_a_model_that_is_ready(self):
        asked = self.ask(wait=b"wait=0")
        self.stage.clock.advance(0)
        self.assertEqual((asked.sink.status, asked.sink.header(b"retry-after")), (503, b"5"))

    def test_a_grant_in_time_ends_the_bound(self):
        self.ask()
        self.pending.grant()
        self.assertEqual(self.stage.clock.getDelayedCalls(), [])

    def test_a_refusal_names_the_position_that_was_reached(self):
        asked = self.ask()
        self.pending.on_position(4)
        self.stage.clock.advance(10)
        self.assertEqual(asked.sink.header(b"x-llamaswap-queue-position"), b"4")

    def test_a_full_queue_names_the_next_position(self):
        self.stage.router.refusal = QueueFull("beta", 1000)
        asked = self.ask()
        self.assertEqual((asked.sink.status, asked.sink.header(b"x-llamaswap-queue-position")), (429, b"1001"))

    def test_the_next_target_is_asked_when_the_bound_is_reached(self):
        self.stage.router.config.selectors["second"] = Selector(
            "second", strategy="failover", targets=("beta", "lab/delta")
        )
        self.stage.post({"model": "second"}, CHAT, (b"Prefer", b"wait=1"))
        self.stage.clock.advance(1)
        self.assertEqual(self.forwarding.upstream.endpoint.host, "10.0.0.5")
