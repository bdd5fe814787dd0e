"""What a server reports about its model is remembered, and never in the way."""

from __future__ import annotations

import json

from attrs import evolve
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import Capabilities, Endpoint, Model
from llamaswap.events import CapabilitiesFound, EventBus, StateChanged
from llamaswap.http_client import HttpResponse, RequestFailed
from llamaswap.servers.capabilities import ASK_DELAY, ASK_TIMEOUT, CapabilityDirectory
from tests.doubles import server_status

LLAMA = {"default_generation_settings": {"n_ctx": 4096}, "modalities": {"vision": True, "audio": False}}
VLLM = {"data": [{"id": "m", "max_model_len": 32768}, {"id": "m-lora", "max_model_len": 32768}]}


def _raise(error):
    raise error


class Scene:
    def __init__(self, **answers):
        self.clock = Clock()
        self.bus = EventBus(_raise)
        self.answers, self.asked, self.found = answers, [], []
        self.model = Model("m", cmd="serve --api-key k1,k2")
        self.state = "ready"
        self.bus.subscribe(CapabilitiesFound, self.found.append)
        self.models = {"m": self.model}
        self.directory = CapabilityDirectory(self.clock, self.get, self.bus, self.models.get, self.status)

    def status(self, name):
        endpoint = Endpoint("http", "127.0.0.1", 9000)
        return server_status(name, self.state, cmd=tuple(self.model.cmd.split()), endpoint=endpoint)

    def get(self, endpoint, path, limit, headers):
        self.asked.append((f"GET {path}", limit, headers))
        answer = self.answers.get(path.rpartition("/")[2], 404)
        if isinstance(answer, Deferred):
            return answer
        if isinstance(answer, Exception):
            return fail(answer)
        if isinstance(answer, int):
            return succeed(HttpResponse(answer, b"Not Found"))
        return succeed(HttpResponse(200, answer if isinstance(answer, bytes) else json.dumps(answer).encode()))

    def load(self):
        self.bus.publish(StateChanged("m", "starting", "ready"))
        self.clock.advance(ASK_DELAY)
        return self.known()

    def known(self, **configured):
        return self.directory.of(evolve(self.model, **configured))


class DiscoveredCapabilities(SynchronousTestCase):
    def test_context_and_modalities_of_llama_cpp_are_known_after_a_load(self):
        made = Scene(props=LLAMA)
        self.assertEqual(made.load(), Capabilities(inputs=("text", "image"), context=4096))
        self.assertEqual([asked[0] for asked in made.asked], ["GET /props"])
        self.assertEqual(made.asked[0][1:], (ASK_TIMEOUT, {"Authorization": "Bearer k1"}))
        self.assertEqual(made.found, [CapabilitiesFound("m")])

    def test_context_of_a_server_without_props_comes_from_its_model_list(self):
        self.assertEqual(Scene(models=VLLM).load(), Capabilities(context=32768))
        trained = {"data": [{"id": "m", "meta": {"n_ctx_train": 2048}}]}
        self.assertEqual(Scene(models=trained).load(), Capabilities(context=2048))

    def test_modalities_and_context_may_come_from_two_documents(self):
        made = Scene(props={"modalities": {"audio": True}}, models=VLLM)
        self.assertEqual(made.load(), Capabilities(inputs=("text", "audio"), context=32768))

    def test_configured_capabilities_win(self):
        made = Scene(props=LLAMA)
        made.load()
        configured = Capabilities(context=512, tools=True)
        self.assertEqual(
            made.known(capabilities=configured), Capabilities(inputs=("text", "image"), context=512, tools=True)
        )
        configured = Capabilities(outputs=("audio",))
        self.assertEqual(made.known(capabilities=configured), Capabilities(outputs=("audio",), context=4096))

    def test_answers_that_say_nothing_are_ignored(self):
        deep = b"[" * 100_000
        for answer in (
            {},
            [],
            b"<html>",
            deep,
            {"data": [{}, {"max_model_len": 5}]},
            {"data": [{"max_model_len": 1 << 40}]},
            {"data": [{"max_model_len": True}]},
            {"data": 7},
        ):
            made = Scene(props=answer, models=answer)
            self.assertEqual((made.load(), made.found), (Capabilities(), []))

    def test_server_that_fails_or_never_answers_changes_nothing(self):
        for answer in (RequestFailed("no response within 5 s"), Deferred(), 500):
            made = Scene(props=answer, models=answer)
            self.assertEqual((made.load(), made.found), (Capabilities(), []))

    def test_second_request_has_the_rest_of_the_time(self):
        waiting = Deferred()
        made = Scene(props=waiting)
        made.load()
        made.clock.advance(2)
        waiting.callback(HttpResponse(404, b""))
        self.assertEqual([asked[:2] for asked in made.asked], [("GET /props", 5.0), ("GET /v1/models", 3.0)])

    def test_server_that_stopped_meanwhile_is_not_asked(self):
        made = Scene(props=LLAMA)
        made.state = "stopping"
        made.load()
        self.assertEqual(made.asked, [])

    def test_capabilities_outlive_an_unload_but_not_a_new_command(self):
        made = Scene(props=LLAMA)
        made.load()
        made.bus.publish(StateChanged("m", "ready", "stopping"))
        made.bus.publish(StateChanged("m", "stopping", "stopped"))
        self.assertEqual(made.known().context, 4096)
        self.assertEqual(made.known(cmd="serve --other"), Capabilities())

    def test_server_of_an_earlier_command_is_not_asked(self):
        made = Scene(props=LLAMA)
        made.bus.publish(StateChanged("m", "starting", "ready"))
        made.models["m"] = evolve(made.model, cmd="serve --other")
        made.clock.advance(ASK_DELAY)
        self.assertEqual(made.asked, [])

    def test_change_is_announced_once(self):
        made = Scene(props=LLAMA)
        made.load()
        made.load()
        self.assertEqual(len(made.found), 1)
        made.answers["props"] = 500
        self.assertEqual(made.load().context, 4096)
