"""What the watchdog sees of the models, and the small requests to a server that may hang."""

import json

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectError, ConnectionRefusedError, TimeoutError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import Compat, Config, Model
from llamaswap.config.endpoints import Endpoint
from llamaswap.config.schema.model import HangDetection
from llamaswap.config.steps import StepRequest
from llamaswap.liveness.watched_models import GPU_TIMEOUT, WatchedModels, settings_of
from llamaswap.observe.gpus import GpuReading
from llamaswap.observe.inflight import InflightRequests
from tests.doubles import FakeRouter, server_status

HERE = Endpoint("http", "127.0.0.1", 5800, "/base")


class WatchedModelsTests(SynchronousTestCase):
    def models(self, answer=None, endpoint=HERE, pid=None, gpus=None, **settings):
        self.sent, self.clock = [], Clock()

        def send(endpoint, path, limit, how):
            self.sent.append((endpoint, path, limit, how))
            return answer

        status = server_status("kiwi", endpoint=endpoint, pid=pid)
        router = FakeRouter(Config(models={"kiwi": Model("kiwi", **settings)}), statuses={"kiwi": status})
        return WatchedModels(self.clock, router, InflightRequests(self.clock), send, lambda: gpus, lambda model: 7)

    def asks_token(self, answer, **known):
        asking = self.models(answer, **known).answers_request("kiwi", 30.0)
        return Deferred.fromCoroutine(asking)

    def asks_page(self, answer, model="kiwi", **known):
        return Deferred.fromCoroutine(self.models(answer, **known).answers_health_check(model, 30.0))

    def test_token_probe_asks_for_one_token_within_the_limit(self):
        for settings, name in (({}, "kiwi"), ({"use_model_name": "kiwi-7b"}, "kiwi-7b")):
            self.asks_token(Deferred(), **settings)
            [(endpoint, path, limit, how)] = self.sent
            self.assertEqual((endpoint, path, limit, how.method), (HERE, "/v1/chat/completions", 30.0, "POST"))
            asked = json.loads(how.body)
            self.assertEqual((asked["model"], asked["max_tokens"]), (name, 1))

    def test_page_probe_asks_for_the_page(self):
        self.asks_page(Deferred(), check_endpoint=" /up ")
        self.assertEqual(self.sent, [(HERE, "/up", 30.0, StepRequest("GET", "/up"))])

    def test_model_without_a_health_check_is_not_asked_for_it(self):
        self.assertFalse(self.successResultOf(self.asks_page(Deferred(), check_endpoint="none")))
        self.assertEqual(self.sent, [])

    def test_any_response_shows_that_the_server_works(self):
        for status in (200, 404, 503):
            self.assertTrue(self.successResultOf(self.asks_token(succeed(status))))

    def test_silence_and_a_refused_connection_do_not(self):
        for error in (TimeoutError(), ConnectionRefusedError(), ConnectError()):
            self.assertFalse(self.successResultOf(self.asks_token(fail(error))))

    def test_model_without_a_server_or_a_definition_is_not_asked(self):
        self.assertTrue(self.successResultOf(self.asks_token(None, endpoint=None)))
        self.assertTrue(self.successResultOf(self.asks_page(None, model="gone")))
        self.assertTrue(self.successResultOf(self.asks_page(None, endpoint=None, check_endpoint="none")))
        self.assertEqual(self.sent, [])

    def test_sample_has_the_printed_bytes_and_the_busiest_gpu(self):
        def sample(gpus, pid=2**22 + 1, model="kiwi"):
            return Deferred.fromCoroutine(self.models(gpus=gpus, pid=pid).sample(model))

        boards = [GpuReading(0, "a", gpu_util_pct=3), GpuReading(1, "b", gpu_util_pct=40)]
        found = self.successResultOf(sample(succeed(boards)))
        self.assertEqual((found.printed, found.gpu, found.leader), (7, 40, 2**22 + 1))
        self.assertIsNone(self.successResultOf(sample(succeed(boards), pid=None)))
        self.assertIsNone(self.successResultOf(sample(succeed(boards), model="gone")))
        waiting = sample(Deferred())
        self.assertNoResult(waiting)
        self.clock.advance(GPU_TIMEOUT)
        self.assertEqual(self.successResultOf(waiting).gpu, 0.0)

    def test_websocket_server_is_watched_only_if_configured(self):
        sockets = Compat(ignore_websockets=True)
        self.assertEqual(settings_of(Model("a")), HangDetection())
        self.assertIsNone(settings_of(Model("a", compat=sockets)))
        self.assertEqual(
            settings_of(Model("a", compat=sockets, stall=HangDetection(after=60.0))), HangDetection(after=60.0)
        )
        self.assertIsNone(settings_of(Model("a", stall=HangDetection(after=0.0))))
