"""The state of the Responses API over servers that have none."""

from __future__ import annotations

import json

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.web.errors import HttpError
from llamaswap.web.head_facts import Authenticated
from llamaswap.web.key_access import KeyAccess
from llamaswap.web.responses import (
    CONTINUED_LIMIT,
    DOCUMENT_LIMIT,
    LARGEST,
    LIFETIME,
    LONGEST_CHAIN,
    OWNER_LIMIT,
    TOTAL_LIMIT,
    ResponseStore,
    StoredResponse,
)
from tests.web.pipeline import Stage

PATH = b"/v1/responses"
KIND = b"application/json"
STREAM = b"text/event-stream"


def said(text):
    return {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}


def asked(text):
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


def event(kind, **members):
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **members})}\n\n".encode()


class StateTestCase(SynchronousTestCase):
    def setUp(self):
        self.stage = Stage(states={"alpha": "ready"})

    @property
    def last(self):
        return self.stage.forwarder.forwarded[-1]

    @property
    def sent(self):
        """The body that the server got last."""
        return json.loads(self.last.sent)

    def post(self, body, *headers):
        before = len(self.stage.forwarder.forwarded)
        self.asked = self.stage.post({"model": "alpha", **body}, PATH, *headers)
        return len(self.stage.forwarder.forwarded) > before

    def answer(self, identity, *output, code=200, **more):
        document = {"id": identity, "object": "response", "status": "completed", "output": list(output), **more}
        self.last.begin(json.dumps(document).encode(), status=code, raw=False)
        self.last.end()

    def exchange(self, identity, body, *output, **more):
        self.assertTrue(self.post(body))
        self.answer(identity, *output, **more)

    def get(self, path, method=b"GET", *headers):
        found = self.stage.ask(method, path, b"", *headers)
        self.assertEqual(found.done, [None])
        return found.sink.status, found.sink.json

    def refused(self):
        self.assertEqual(self.asked.done, [None])
        return self.asked.sink.status, self.asked.sink.json["error"]["code"]


class ContinueTests(StateTestCase):
    def test_a_request_that_continues_a_response_is_sent_with_the_whole_conversation(self):
        call = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"}
        result = {"type": "function_call_output", "call_id": "c1", "output": "rain"}
        self.exchange("resp_1", {"input": 'How is the "weather"? ö', "tools": []}, call)
        self.exchange("resp_2", {"input": [result], "previous_response_id": "resp_1"}, said("It rains."))
        self.assertTrue(self.post({"input": "And now?", "previous_response_id": "resp_2", "store": False}))
        expected = [asked('How is the "weather"? ö'), call, result, said("It rains."), asked("And now?")]
        self.assertEqual(self.sent, {"model": "alpha", "input": expected, "store": False})

    def test_a_response_can_be_continued_twice(self):
        self.exchange("resp_1", {"input": "one"}, said("1"))
        for text in ("left", "right"):
            self.post({"input": text, "previous_response_id": "resp_1"})
            self.assertEqual(self.sent["input"], [asked("one"), said("1"), asked(text)])

    def test_a_first_request_is_sent_as_it_is(self):
        body = b'{ "model": "alpha", "input": "hi", "store": true }'
        self.stage.post(body, PATH)
        self.assertEqual(self.last.sent, body)

    def test_an_unknown_response_is_an_error_that_says_what_to_do(self):
        self.assertFalse(self.post({"input": "x", "previous_response_id": "resp_9"}))
        self.assertEqual(self.refused(), (400, "previous_response_not_found"))
        self.assertIn("whole conversation", self.asked.sink.json["error"]["message"])

    def test_a_peer_may_know_the_response(self):
        self.asked = self.stage.post({"model": "lab/delta", "input": "x", "previous_response_id": "resp_9"}, PATH)
        self.assertEqual(self.sent["previous_response_id"], "resp_9")

    def test_a_response_that_is_not_to_be_stored_is_not(self):
        self.exchange("resp_1", {"input": "x", "store": False}, said("1"))
        self.assertFalse(self.post({"input": "y", "previous_response_id": "resp_1"}))
        self.assertEqual(self.get(PATH + b"/resp_1")[0], 404)

    def test_failures_and_cut_responses_are_not_stored(self):
        self.exchange("resp_1", {"input": "x"}, said("1"), code=500)
        self.exchange("resp_2", {"input": "x"}, said("1"), status="failed")
        self.exchange(7, {"input": "x"}, said("1"))
        self.exchange("r" * 300, {"input": "x"}, said("1"))
        self.post({"input": "x"})
        self.last.begin(b'{"id":"resp_3","output":[]}', raw=False)
        self.asked.leave()
        self.post({"input": "x"})
        self.last.begin(b'{"id":"resp_4","output":[', raw=False)
        self.last.end()
        for identity in (b"resp_1", b"resp_2", b"7", b"r" * 300, b"resp_3", b"resp_4"):
            self.assertEqual(self.get(PATH + b"/" + identity)[0], 404, identity)

    def test_an_encoded_answer_is_not_asked_for(self):
        self.post({"input": "x"}, (b"Accept-Encoding", b"gzip, br"))
        self.assertIsNone(self.last.header(b"accept-encoding"))

    def test_a_large_conversation_is_sent_whole(self):
        text = "x" * 3_000_000
        self.exchange("resp_1", {"input": text}, said("1"))
        self.assertTrue(self.post({"input": "y", "previous_response_id": "resp_1"}))
        self.assertEqual(self.sent["input"], [asked(text), said("1"), asked("y")])

    def test_a_body_too_large_to_be_kept_is_passed_on(self):
        self.exchange("resp_1", {"input": "x" * LARGEST}, said("1"))
        self.assertEqual(self.get(PATH + b"/resp_1")[0], 404)

    def test_the_memory_of_all_continued_conversations_is_bounded(self):
        self.exchange("resp_1", {"input": "x" * (LARGEST - 1000)}, said("1"))
        body = {"input": "y", "previous_response_id": "resp_1"}
        waiting = []
        while self.post(body):
            waiting.append(self.asked)
        self.assertEqual((len(waiting), self.refused()), (CONTINUED_LIMIT // LARGEST, (507, "no_room")))
        self.assertFalse(self.post({**body, "model": "ghost"}))
        waiting.pop().leave()
        self.stage.post({**body, "model": "ghost"}, PATH)
        self.assertTrue(self.post(body))
        while waiting:
            waiting.pop().leave()

    def test_a_conversation_that_is_too_large_is_refused(self):
        identity = ""
        for number in range(OWNER_LIMIT // LARGEST):
            body = {"input": "x" * (LARGEST - 1000), "previous_response_id": identity or None}
            self.exchange(f"resp_{number}", body, said("1"))
            identity = f"resp_{number}"
        self.assertFalse(self.post({"input": "y" * 5000, "previous_response_id": identity}))
        self.assertEqual(self.asked.sink.status, 413)

    def test_an_input_without_items_continues_with_what_there_is(self):
        self.exchange("resp_1", {"input": []}, said("1"))
        for body in ({}, {"input": []}, {"input": None}):
            self.post({**body, "previous_response_id": "resp_1"})
            self.assertEqual(self.sent["input"], [said("1")])

    def test_token_counts_of_an_input_are_another_route(self):
        self.stage.post({"model": "alpha", "input": "x"}, PATH + b"/input_tokens")
        self.assertEqual(self.last.head.target, PATH + b"/input_tokens")


class StreamTests(StateTestCase):
    def stream(self, *pieces):
        self.post({"input": "hi", "stream": True})
        self.last.begin(*pieces, kind=STREAM, raw=False)
        self.last.end()

    def test_the_last_event_of_a_stream_has_the_response(self):
        response = {"id": "resp_1", "status": "completed", "output": [said("hello")]}
        self.stream(
            event("response.created", response={"id": "resp_1", "status": "in_progress", "output": []}),
            event("response.output_text.delta", delta='"type":"response.completed"\n'),
            event("response.output_item.done", item=said("hello")),
            event("response.completed", response=response),
        )
        self.post({"input": "more", "previous_response_id": "resp_1"})
        self.assertEqual(self.sent["input"], [asked("hi"), said("hello"), asked("more")])
        self.assertEqual(self.get(PATH + b"/resp_1"), (200, {**response, "previous_response_id": None}))

    def test_a_client_continues_a_response_before_its_stream_has_ended(self):
        """Its last event says that it is complete; the end of the stream may come later."""
        self.post({"input": "hi", "stream": True})
        response = {"id": "resp_1", "status": "completed", "output": []}
        self.last.begin(event("response.created", response={}), event("x"), kind=STREAM, raw=False)
        self.last.more(event("response.completed", response=response), raw=False)
        self.assertTrue(self.post({"input": "more", "previous_response_id": "resp_1"}))

    def test_the_items_of_a_stream_count_if_its_last_event_has_none(self):
        done = {"id": "resp_1", "status": "incomplete", "output": []}
        items = [event("response.output_item.done", item=said(text)) for text in ("one", "two")]
        self.stream(*items, event("response.incomplete", response=done))
        self.post({"input": "more", "previous_response_id": "resp_1"})
        self.assertEqual(self.sent["input"][1:3], [said("one"), said("two")])

    def test_events_in_single_bytes_and_with_other_line_ends_are_read(self):
        response = {"id": "resp_1", "status": "completed", "output": [said("hello")]}
        whole = event("response.completed", response=response).replace(b"\n", b"\r\n") + b"data: [DONE]\r\n\r\n"
        self.stream(*(whole[place : place + 1] for place in range(len(whole))))
        self.assertEqual(self.get(PATH + b"/resp_1")[0], 200)

    def test_a_stream_without_its_end_is_not_stored(self):
        response = {"id": "resp_1", "status": "completed", "output": []}
        whole = event("response.completed", response=response)
        self.stream(event("response.created", response=response), whole[:-1])
        self.stream(b"data: nonsense\n\n", b"data: {\n\n", b"\n\n\n\n")
        self.assertEqual(self.get(PATH + b"/resp_1")[0], 404)

    def test_an_event_that_does_not_end_is_given_up(self):
        response = {"id": "resp_1", "status": "completed", "output": []}
        self.stream(b"data: " + b"x" * DOCUMENT_LIMIT, b"\n\n", event("response.completed", response=response))
        self.assertEqual(self.get(PATH + b"/resp_1")[0], 404)


class PathTests(StateTestCase):
    def conversation(self):
        self.exchange("resp_1", {"input": "one"}, said("1"))
        items = [{"role": "user", "content": "two"}, {"type": "message", "id": "mine", "role": "user", "content": "2"}]
        self.exchange("resp_2", {"input": items, "previous_response_id": "resp_1"}, said("2"))

    def test_a_response_is_read(self):
        self.conversation()
        status, found = self.get(PATH + b"/resp_2")
        self.assertEqual((status, found["id"], found["output"]), (200, "resp_2", [said("2")]))
        self.assertEqual(found["previous_response_id"], "resp_1")
        self.assertEqual(self.get(PATH + b"/resp_9")[0], 404)
        self.assertEqual(self.stage.witnesses.seen[2:], [])

    def test_a_response_is_deleted_and_then_not_continued(self):
        self.conversation()
        expected = (200, {"id": "resp_1", "object": "response", "deleted": True})
        self.assertEqual(self.get(PATH + b"/resp_1", b"DELETE"), expected)
        self.assertEqual(self.get(PATH + b"/resp_1", b"DELETE")[0], 404)
        self.assertFalse(self.post({"input": "x", "previous_response_id": "resp_2"}))
        self.assertEqual(self.refused(), (400, "previous_response_not_found"))
        self.assertEqual(self.get(PATH + b"/resp_2")[0], 200)

    def test_a_page_of_another_site_deletes_nothing(self):
        self.conversation()
        self.assertEqual(self.get(PATH + b"/resp_1", b"DELETE", (b"Origin", b"https://evil"))[0], 403)
        self.assertEqual(self.get(PATH + b"/resp_1")[0], 200)

    def test_input_items_are_listed_in_pages(self):
        self.conversation()
        status, found = self.get(PATH + b"/resp_2/input_items?order=asc")
        self.assertEqual((status, found["object"], found["has_more"]), (200, "list", False))
        self.assertEqual([one["role"] for one in found["data"]], ["user", "assistant", "user", "user"])
        self.assertEqual([one["type"] for one in found["data"]], ["message"] * 4)
        names = [one["id"] for one in found["data"]]
        self.assertEqual((found["first_id"], found["last_id"], len(set(names))), (names[0], names[-1], 4))
        _, page = self.get(PATH + b"/resp_2/input_items?limit=3")
        self.assertEqual(([one["id"] for one in page["data"]], page["has_more"]), (names[:0:-1], True))
        _, rest = self.get(PATH + f"/resp_2/input_items?limit=3&after={page['last_id']}".encode())
        self.assertEqual(([one["id"] for one in rest["data"]], rest["has_more"]), (names[:1], False))
        for query in (b"limit=0", b"limit=-5", b"limit=99999", b"limit=x", b"order=x", b"after=ghost"):
            self.assertEqual(self.get(PATH + b"/resp_2/input_items?" + query)[0], 200, query)

    def test_other_parts_are_not_found(self):
        self.conversation()
        for method, part in ((b"GET", b"/other"), (b"DELETE", b"/input_items"), (b"POST", b"/cancel"), (b"POST", b"")):
            self.assertEqual(self.get(PATH + b"/resp_2" + part, method)[0], 404, (method, part))

    def test_a_response_in_the_background_is_asked_of_its_server(self):
        self.exchange("resp_1", {"input": "x", "background": True}, status="queued")
        found = self.stage.ask(b"GET", PATH + b"/resp_1")
        self.assertEqual((self.last.head.target, self.last.upstream.name, found.done), (PATH + b"/resp_1", "alpha", []))
        self.answer("resp_1", said("done"))
        self.stage.ask(b"POST", PATH + b"/resp_1/cancel")
        self.assertEqual(self.last.head.target, PATH + b"/resp_1/cancel")


class KeyTests(StateTestCase):
    def use(self, name):
        self.stage.inference.authenticate = lambda head: Authenticated(frozenset(), KeyAccess(name))

    def test_a_key_cannot_read_or_continue_the_responses_of_another(self):
        self.use("anna")
        self.exchange("resp_1", {"input": "secret"}, said("1"))
        self.use("bert")
        for method, path in ((b"GET", b""), (b"GET", b"/input_items"), (b"DELETE", b"")):
            self.assertEqual(self.get(PATH + b"/resp_1" + path, method)[0], 404)
        self.assertFalse(self.post({"input": "x", "previous_response_id": "resp_1"}))
        self.assertEqual(self.refused()[0], 400)
        self.assertFalse(self.post({"input": "x", "previous_response_id": "resp_1", "model": "lab/delta"}))
        self.assertEqual(self.refused()[0], 400)
        self.exchange("resp_1", {"input": "other"}, said("2"))  # a server may use an ID twice
        self.use("anna")
        self.post({"input": "x", "previous_response_id": "resp_1"})
        self.assertEqual(self.sent["input"][0], asked("secret"))

    def test_a_key_is_needed_to_read_one(self):
        self.exchange("resp_1", {"input": "x"}, said("1"))
        del self.stage.inference
        self.stage = Stage()
        self.stage.keys[b"authorization"] = b"Bearer mine"
        self.assertEqual(self.get(PATH + b"/resp_1")[0], 401)


class StoreTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.store = ResponseStore(self.clock)

    def add(self, identity, size=10, owner="anna", previous=""):
        self.store.add(owner, identity, StoredResponse(b"d" * size, previous, b"", b""))

    def kept(self, *names, owner="anna"):
        return [name for name in names if self.store.find(owner, name) is not None]

    def test_the_bytes_of_a_key_are_bounded(self):
        names = [str(number) for number in range(OWNER_LIMIT // LARGEST)]
        self.add("other", owner="bert")
        for name in names:
            self.add(name, LARGEST)
        self.store.find("anna", "0")
        self.add("last")
        self.assertEqual(self.kept(*names, "last"), [name for name in names if name != "1"] + ["last"])
        self.assertEqual(self.kept("other", owner="bert"), ["other"])

    def test_the_bytes_of_all_keys_are_bounded(self):
        owners = [f"key{number}" for number in range(TOTAL_LIMIT // LARGEST + 2)]
        for owner in owners:
            self.add("one", LARGEST, owner)
        self.assertEqual([len(self.kept("one", owner=owner)) for owner in owners], [0, 0] + [1] * (len(owners) - 2))

    def test_a_response_that_is_too_large_is_not_kept(self):
        self.add("one")
        self.add("one", LARGEST + 1)
        self.assertEqual(self.kept("one"), [])

    def test_a_response_expires_when_it_is_not_used(self):
        self.add("one")
        self.add("two", previous="one")
        self.clock.advance(LIFETIME)
        self.assertEqual(len(self.store.chain("anna", "two")), 2)
        self.clock.advance(LIFETIME)
        self.assertEqual(len(self.store.chain("anna", "two")), 2)
        self.clock.advance(LIFETIME + 1)
        self.add("three")
        self.assertEqual(self.kept("one", "two", "three"), ["three"])
        self.clock.advance(LIFETIME + 1)
        self.assertEqual(self.kept("three"), [])

    def test_a_conversation_that_leads_to_itself_ends(self):
        self.add("one", previous="two")
        self.add("two", previous="one")
        self.assertRaises(HttpError, self.store.chain, "anna", "one")
        for number in range(LONGEST_CHAIN + 1):
            self.add(f"r{number}", previous=f"r{number - 1}" if number else "")
        self.assertEqual(len(self.store.chain("anna", f"r{LONGEST_CHAIN - 1}")), LONGEST_CHAIN)
        self.assertRaises(HttpError, self.store.chain, "anna", f"r{LONGEST_CHAIN}")
