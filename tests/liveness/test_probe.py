"""The liveness probe of a server that may hang."""

import json

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectError, ConnectionRefusedError, TimeoutError
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config.endpoints import Endpoint
from llamaswap.config.steps import StepRequest
from llamaswap.liveness.probe import page, responds, token

HERE = Endpoint("http", "127.0.0.1", 5800, "/base")


class LivenessProbeTests(SynchronousTestCase):
    def probe(self, answer):
        self.sent = []

        def send(endpoint, path, limit, how):
            self.sent.append((endpoint, path, limit, how))
            return answer

        return responds(send, HERE, token("kiwi"), 30.0)

    def test_token_probe_asks_for_one_token_within_the_limit(self):
        self.probe(Deferred())
        [(endpoint, path, limit, how)] = self.sent
        self.assertEqual((endpoint, path, limit, how.method), (HERE, "/v1/chat/completions", 30.0, "POST"))
        asked = json.loads(how.body)
        self.assertEqual((asked["model"], asked["max_tokens"]), ("kiwi", 1))

    def test_page_probe_asks_for_the_page(self):
        self.assertEqual(page("/health"), StepRequest("GET", "/health"))

    def test_any_response_shows_that_the_server_works(self):
        for status in (200, 404, 503):
            self.assertTrue(self.successResultOf(self.probe(succeed(status))))

    def test_silence_and_a_refused_connection_do_not(self):
        for error in (TimeoutError(), ConnectionRefusedError(), ConnectError()):
            self.assertFalse(self.successResultOf(self.probe(fail(error))))
