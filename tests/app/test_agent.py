"""The agent: only the token opens it, and of two fronts or two decisions the older one changes nothing."""

from __future__ import annotations

import json
from types import SimpleNamespace

from attrs import Factory, define
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.app.agent import Agent
from llamaswap.cluster.agent_protocol import HostState, result_of, state_of, stop_identity
from llamaswap.config import Config
from llamaswap.config.diff import ConfigDiff
from llamaswap.errors import ShuttingDown
from llamaswap.events import EventBus
from llamaswap.proxy.bodies import BytesBody
from llamaswap.proxy.exchange import Exchange, RequestHead
from llamaswap.scheduling.memory import Ledger
from tests.doubles import server_status
from tests.web.pipeline import FakeSink

DEFINITION = {"cmd": "serve --port ${PORT}", "proxy": "http://localhost:${PORT}"}


@define(eq=False)
class FakeAgentRouter:
    """A router of one host: loads wait until the test fires them."""

    config: Config = Factory(Config)
    states: dict[str, str] = Factory(dict)
    problem: str = ""
    loads: list[tuple[str, Deferred[None]]] = Factory(list)
    unloads: list[str] = Factory(list)

    def start_problem(self, model: str) -> str:
        return self.problem

    def load(self, model: str, origin: str) -> Deferred[None]:
        self.loads.append((model, Deferred()))
        return self.loads[-1][1]

    def unload(self, models: list[str]) -> Deferred[None]:
        self.unloads += models
        return succeed(None)

    def state(self, model: str) -> str:
        return self.states.get(model, "stopped")

    def status(self, model: str) -> object:
        return server_status(model)

    def log_tail(self, model: str) -> str:
        return "the last line"


class AgentTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock, self.router = Clock(), FakeAgentRouter()
        memory = SimpleNamespace(monitor=SimpleNamespace(ledger=Ledger({})), names={})
        context = SimpleNamespace(reactor=self.clock, bus=EventBus(self.fail))
        models = SimpleNamespace(router=self.router, pool=None, disk_thread=lambda work: succeed(work()))
        parts = SimpleNamespace(context=context, models=models, memory=memory, apply=self.apply)
        self.agent = Agent(parts, "nas", b"sesame")
        self.addCleanup(self.agent.close)

    def apply(self, config: Config, changes: ConfigDiff) -> None:
        self.router.config, self.changes = config, changes

    def ask(self, method: str, target: str, document: object = None, token: bytes = b"sesame") -> FakeSink:
        head = RequestHead(method.encode(), target.encode(), [(b"X-Llamaswap-Host-Token", token)])
        body = b"" if document is None else json.dumps(document).encode()
        exchange = Exchange(head, BytesBody(body), FakeSink(), "10.0.0.5", 0.0)
        self.agent.serve(exchange)
        return exchange.sink

    def start(self, front: int, generation: int, definition: object = DEFINITION, model: str = "a") -> FakeSink:
        document = {
            "front": front,
            "generation": generation,
            "definition": definition,
            "digest": "d",
            "sizes": {"gpu0": 5},
        }
        return self.ask("POST", f"/models/{model}/start", document)

    def stop(self, front: int, generation: int) -> FakeSink:
        return self.ask("POST", "/models/a/stop", {"front": front, "generation": generation})

    def state(self, front: int = 1, after: int = 0) -> HostState:
        return state_of(self.ask("GET", f"/state?front={front}&grace=60&after={after}&wait=1").body)

    def ready(self) -> None:
        self.router.states["a"] = "ready"
        self.router.loads[-1][1].callback(None)

    def test_requests_without_the_token_are_refused(self) -> None:
        for target in ("/state?front=1&grace=60", "/engine/1.1/a/v1/models", "/ui/"):
            self.assertEqual(self.ask("GET", target, token=b"other").status, 401, target)
        self.assertEqual(self.agent.front, 0)

    def test_two_hosts_at_one_address_are_not_the_same_host_twice(self) -> None:
        self.assertEqual(self.ask("GET", "/state?front=1&grace=60&host=nas").status, 200)
        sink = self.ask("GET", "/state?front=2&grace=60&host=box")
        self.assertEqual((sink.status, self.agent.front), (421, 1))
        self.assertIn(b"the agent of nas", sink.body)

    def test_model_is_started_shown_and_stopped(self) -> None:
        self.assertEqual(self.start(1, 1).status, 200)
        self.assertIn("a", self.router.config.models)
        self.assertEqual(self.state().engines["a"].state, "starting")
        self.ready()
        engine = self.state().engines["a"]
        self.assertEqual((engine.state, engine.identity, engine.digest), ("ready", (1, 1), "d"))
        self.assertEqual(engine.sizes, {"gpu0": 5}, "the next front has to count what Ray holds for it")
        self.assertEqual(self.stop(1, 1).status, 200)
        self.assertEqual(self.state().engines, {})

    def test_older_decision_and_older_front_change_nothing(self) -> None:
        self.start(2, 5)
        self.ready()
        loads = len(self.router.loads)
        self.assertEqual(self.start(2, 4).status, 409)
        self.assertEqual(self.start(1, 9).status, 409)
        self.assertEqual(self.stop(1, 9).status, 409)
        self.assertEqual(self.ask("GET", "/state?front=1&grace=60").status, 409)
        self.assertEqual(self.stop(2, 4).status, 200)  # it has ended already, as far as that decision is concerned
        self.assertEqual((self.state(2).engines["a"].state, len(self.router.loads)), ("ready", loads))

    def test_start_that_arrives_after_its_stop_starts_nothing(self) -> None:
        """They come on two connections; the model has perhaps been started elsewhere since."""
        self.assertEqual(self.stop(2, 5).status, 200)
        self.assertEqual(self.start(2, 5).status, 409)
        self.assertEqual((self.router.loads, self.state(2).engines), ([], {}))
        self.assertEqual(self.start(2, 6).status, 200)

    def test_result_of_a_command_says_from_which_state_on_it_shows(self) -> None:
        before = self.state()
        told = result_of(self.start(1, 1).body)
        self.assertTrue(before.version.is_before(told.version) and told.runs)
        self.assertFalse(self.state().version.is_before(told.version))
        self.assertFalse(result_of(self.stop(1, 1).body).runs)

    def test_stop_of_what_an_earlier_front_started_stops_no_later_start(self) -> None:
        self.start(1, 70)
        self.stop(*stop_identity(2, (1, 70)))
        self.assertEqual((self.router.unloads[-1], self.state(2).engines), ("a", {}))
        self.assertEqual(self.start(2, 1).status, 200)

    def test_same_start_again_starts_nothing(self) -> None:
        self.start(1, 1)
        self.assertEqual(self.start(1, 1).status, 200)
        self.assertEqual(len(self.router.loads), 1)

    def test_load_that_the_end_of_the_agent_interrupts_has_not_failed(self) -> None:
        """Its requests got 500, although another host could load the model as soon as this agent had ended."""
        self.start(1, 1)
        self.router.loads[-1][1].errback(ShuttingDown())
        self.assertEqual(self.state().engines["a"].state, "starting")

    def test_newer_decision_replaces_the_process(self) -> None:
        self.start(1, 1)
        self.ready()
        self.assertEqual(self.start(1, 2).status, 200)
        self.assertEqual(self.router.unloads, ["a", "a"])
        self.assertEqual(self.state().engines["a"].identity, (1, 2))

    def test_start_of_another_model_leaves_the_process_and_the_port_of_the_first_one(self) -> None:
        self.start(1, 1, model="small")
        port = self.router.config.models["small"].port
        self.start(1, 2, model="brief")
        self.assertEqual((self.changes.restarted, self.changes.added), ((), ("brief",)))
        self.assertEqual(self.router.config.models["small"].port, port)
        self.assertNotEqual(self.router.config.models["brief"].port, port)

    def test_files_that_models_need_are_looked_for_and_what_is_missing_is_shown(self) -> None:
        there = self.mktemp()
        needs = {
            "a": {"program": "sh", "files": [__file__], "paths": []},
            "b": {"program": "sh", "files": [there], "paths": [there]},
            "c": {"program": "/nonexistent/serve", "files": [], "paths": []},
        }
        self.assertEqual(self.ask("POST", "/needs", {"front": 1, "models": needs}).status, 200)
        self.assertEqual(self.state().missing, {"b": there, "c": "/nonexistent/serve"})
        self.assertEqual(self.ask("POST", "/needs", {"front": 0, "models": {}}).status, 409)
        for wrong in ({}, {"front": 1, "models": {"a": {}}}, {"front": 1, "models": {"a": {**needs["a"], "files": 1}}}):
            self.assertEqual(self.ask("POST", "/needs", wrong).status, 400, wrong)

    def test_newer_front_finds_what_runs(self) -> None:
        self.start(1, 1)
        self.ready()
        self.assertEqual(self.state(2).engines["a"].identity, (1, 1))
        self.assertEqual(self.stop(2, 1).status, 200)

    def test_failed_start_says_why(self) -> None:
        self.start(1, 1)
        self.router.loads[-1][1].errback(ValueError("no such board"))
        engine = self.state().engines["a"]
        self.assertEqual((engine.state, engine.error, engine.tail), ("stopped", "no such board", "the last line"))

    def test_unusable_definitions_are_refused(self) -> None:
        self.router.problem = "serve: not found"
        self.assertEqual((self.start(1, 1).status, self.agent.engines), (422, {}))
        self.router.problem = ""
        for definition, status in (({"cmd": "a", "colour": 1, "proxy": "${X}"}, 422), ("text", 400), (None, 400)):
            self.assertEqual(self.start(1, 2, definition).status, status)
        self.assertEqual(self.ask("POST", "/models/a/start", {"front": 1}).status, 400)
        self.assertEqual(self.ask("GET", "/other").status, 404)

    def test_state_is_waited_for_until_it_changes(self) -> None:
        number = self.state().number
        sink = self.ask("GET", f"/state?front=1&grace=60&after={number}&wait=5")
        self.assertFalse(sink.started)
        self.start(1, 1)
        self.assertGreater(state_of(sink.body).number, number)

    def test_models_are_stopped_when_no_front_has_asked_for_the_grace(self) -> None:
        self.start(1, 1)
        self.ready()
        self.state()
        self.clock.pump([1.0] * 59)
        self.assertEqual(self.agent.engines["a"].state, "ready")
        self.clock.pump([1.0] * 3)
        self.assertEqual(self.agent.engines, {})

    def test_host_that_leaves_says_so_and_starts_nothing_more(self) -> None:
        self.start(1, 1)
        self.ready()
        self.assertEqual(json.loads(self.ask("POST", "/leave").body), {"models": ["a"]})
        self.assertTrue(self.state().leaving)
        self.assertEqual(self.start(1, 2, model="b").status, 422)
        self.stop(1, 1)
        self.assertEqual(json.loads(self.ask("POST", "/leave").body), {"models": []})

    def test_host_that_leaves_does_not_wait_long_for_a_front_that_is_away(self) -> None:
        self.start(1, 1)
        self.ready()
        self.ask("POST", "/leave")
        self.clock.pump([1.0] * 7)
        self.assertEqual(self.router.unloads[-1:], ["a"])

    def test_request_for_a_process_that_is_not_there_is_cut_so_that_the_front_looks_again(self) -> None:
        self.start(1, 1)
        self.ready()
        for target in ("/engine/1.2/a/v1/models", "/engine/1.1/b/v1/models"):
            self.assertEqual(self.ask("GET", target).ending, "aborted")
