import json
from types import MappingProxyType

from attrs import evolve
from twisted.internet.defer import fail, succeed
from twisted.trial.unittest import TestCase

from llamaswap.http_client import HttpResponse, RequestFailed
from llamaswap.web.mcp_servers import MESSAGE_LIMIT
from tests.web.doubles import World, example_config, example_router, with_keys

RESULT = {"jsonrpc": "2.0", "id": 1, "result": {"tools": []}}


class McpTests(TestCase):
    def world(self, *answers, config=None):
        self.sent = []
        left = list(answers)

        def send(method, url, *, timeout, body=None, headers=MappingProxyType({})):
            self.sent.append((method, url, json.loads(body), dict(headers)))
            answer = left.pop(0)
            return fail(answer) if isinstance(answer, Exception) else succeed(answer)

        config = config or example_config()
        config = evolve(config, ui=evolve(config.ui, mcp_servers={"files": "http://127.0.0.1:9/mcp"}))
        return World(example_router(config), send=send)

    def post(self, here, message, name="files", headers=()):
        headers = [("content-type", "application/json"), *headers]
        return here.ask(f"/api/mcp/{name}", "POST", headers, json.dumps(message).encode())

    def test_servers_are_listed_by_name(self):
        self.assertEqual(self.world().ask("/api/mcp").json, {"servers": ["files"]})

    def test_message_is_passed_on_with_its_session(self):
        here = self.world(HttpResponse(200, json.dumps(RESULT).encode(), {"mcp-session-id": "s-1"}))
        answer = self.post(here, {"id": 1, "method": "tools/list"}, headers=[("mcp-session-id", "s-0")])
        self.assertEqual(answer.json, RESULT)
        self.assertEqual(answer.headers["mcp-session-id"], "s-1")
        [(method, url, message, headers)] = self.sent
        self.assertEqual((method, url, message["method"]), ("POST", "http://127.0.0.1:9/mcp", "tools/list"))
        self.assertEqual(headers["mcp-session-id"], "s-0")
        self.assertIn("text/event-stream", headers["Accept"])

    def test_response_is_found_among_the_events_of_a_stream(self):
        note = {"jsonrpc": "2.0", "method": "notifications/progress"}
        body = f"event: message\r\ndata: {json.dumps(note)}\r\n\r\ndata: {json.dumps(RESULT)}\r\n\r\n".encode()
        here = self.world(HttpResponse(200, body, {"content-type": "text/event-stream; charset=utf-8"}))
        self.assertEqual(self.post(here, {"id": 1}).json, RESULT)

    def test_response_in_an_event_may_contain_line_separators_of_unicode(self):
        result = {"jsonrpc": "2.0", "id": 1, "result": {"text": "a\u2028b\x85c"}}
        body = f"data: {json.dumps(result, ensure_ascii=False)}\n\n".encode()
        here = self.world(HttpResponse(200, body, {"content-type": "text/event-stream"}))
        self.assertEqual(self.post(here, {"id": 1}).json, result)

    def test_notification_is_answered_with_an_empty_object(self):
        self.assertEqual(self.post(self.world(HttpResponse(202, b"")), {"method": "x"}).json, {})

    def test_server_that_fails_is_a_bad_gateway_that_names_it(self):
        failures = (RequestFailed("connection refused"), HttpResponse(500, b"broken"), HttpResponse(200, b"<html>"))
        for failure in failures:
            answer = self.post(self.world(failure), {"id": 1})
            self.assertEqual(answer.status, 502)

    def test_session_that_the_server_has_ended_is_told_apart_from_a_server_that_fails(self):
        ended = self.post(self.world(HttpResponse(404, b"")), {"id": 1}, headers=[("mcp-session-id", "s-0")])
        self.assertEqual(ended.status, 404)
        self.assertEqual(self.post(self.world(HttpResponse(404, b"")), {"id": 1}).status, 502)

    def test_unknown_server_and_message_that_is_too_long_are_refused(self):
        self.assertEqual(self.post(self.world(), {}, name="other").status, 404)
        self.assertEqual(self.post(self.world(), {"x": "y" * MESSAGE_LIMIT}).status, 413)
        self.assertEqual(self.post(self.world(), [1]).status, 400)

    def test_key_is_asked_for(self):
        self.assertEqual(self.post(self.world(config=with_keys("k")), {}).status, 401)
