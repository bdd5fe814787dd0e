"""The hosts as the front knows them: who is online, when one is offline, and what is told about that."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from attrs import Factory, define, evolve
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError, ConnectionRefusedError
from twisted.internet.error import TimeoutError as NoAnswer
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.cluster.agent_protocol import EngineState, HostState, state_document
from llamaswap.cluster.hosts import HostManager
from llamaswap.cluster.ray_client import RayAway
from llamaswap.cluster.ray_node import ClusterFolder
from llamaswap.config.endpoints import Endpoint
from llamaswap.config.schema.hosts import Hosts
from llamaswap.config.steps import StepRequest
from llamaswap.discover.missing import NeededFiles
from llamaswap.errors import HostRefused
from llamaswap.http_client import HttpResponse
from llamaswap.scheduling.hosts import FailedStart, HostFacts
from llamaswap.scheduling.memory import Device, Ledger
from tests.cluster.test_agent_protocol import STATE

NODE = {"host": "nas", "alive": True, "address": "10.0.0.2", "port": 6400, "labels": {"gpu": "x"}}


@define(eq=False)
class FakeRay:
    """Ray with these nodes. `asked` has the calls."""

    nodes: list[dict[str, object]] = Factory(list)
    connected: bool = True
    problem: str = ""
    hung: bool = False
    away: bool = False
    asked: list[tuple[str, dict[str, object]]] = Factory(list)

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass

    def call(self, command: type, *, limit: float = 1.0, **given: object) -> Deferred[object]:
        self.asked.append((command.__name__, given))
        done: Deferred[object] = Deferred()
        if self.away:
            done.errback(RayAway("the process for Ray ended"))
        elif not self.hung:
            done.callback({"nodes": self.nodes, "names": ["a#5.1", "b#4.9"]})
        return done


@define(eq=False)
class World:
    """A manager, and what it published, saw and asked."""

    folder: Path
    clock: Clock = Factory(Clock)
    ray: FakeRay = Factory(FakeRay)
    published: list[Mapping[str, HostFacts]] = Factory(list)
    seen: list[tuple[str, Mapping[str, EngineState]]] = Factory(list)
    asked: list[tuple[str, Deferred[HttpResponse]]] = Factory(list)
    told: list[tuple[str, Deferred[HttpResponse]]] = Factory(list)
    connecting: list[Deferred[int]] = Factory(list)
    manager: HostManager = Factory(lambda self: self.build(), takes_self=True)

    def build(self) -> HostManager:
        return HostManager(
            self.clock,
            self.ask,
            self.connect,
            self.ray,
            ClusterFolder(self.folder),
            "token",
            5,
            lambda: Hosts(unseen=4.0, grace=60.0),
            self.published.append,
            self,
        )

    def ask(
        self, endpoint: Endpoint, path: str, limit: float, headers: Mapping[str, str], how: StepRequest | None = None
    ) -> Deferred[HttpResponse]:
        waiting: Deferred[HttpResponse] = Deferred()
        waiting.addTimeout(limit, self.clock, onTimeoutCancel=lambda result, limit: _late(result))
        (self.told if path == "/needs" else self.asked).append((path, waiting))
        return waiting

    def connect(
        self, endpoint: Endpoint, path: str | None, limit: float, how: StepRequest | None = None
    ) -> Deferred[int]:
        self.connecting.append(Deferred())
        return self.connecting[-1].addTimeout(limit, self.clock)

    def host_seen(self, host: str, state: HostState) -> None:
        self.seen.append((host, state.engines))

    def reservations(self) -> set[str]:
        return {"a#5.1"}

    def answer(self, status: int = 200, **changes: object) -> None:
        """The host answers the last question."""
        body = json.dumps(state_document(evolve(STATE, **changes))).encode()
        self.asked[-1][1].callback(HttpResponse(status, body))

    def online(self) -> bool:
        return self.published[-1]["nas"].online

    def joined(self) -> World:
        self.ray.nodes = [dict(NODE)]
        self.manager.open()
        self.clock.advance(1.0)
        self.clock.advance(0.0)
        self.answer()
        return self


def _late(result: object) -> object:
    raise NoAnswer(string="late")


class HostManagerTests(SynchronousTestCase):
    def scene(self) -> World:
        return World(Path(self.mktemp()))

    def test_host_of_ray_is_asked_and_published_after_its_engines_were_seen(self) -> None:
        world = self.scene().joined()
        facts = world.published[-1]["nas"]
        self.assertEqual((facts.online, facts.labels, facts.ledger), (True, {"gpu": "x"}, STATE.ledger))
        self.assertEqual(world.seen, [("nas", STATE.engines)])
        self.assertIn(("EnsureAgent", {"host": "nas"}), world.ray.asked)
        self.assertIn("front=5", world.asked[-1][0])

    def test_host_has_the_memory_that_can_be_reserved_there(self) -> None:
        """More was loaded than `hosts join --ram` offers: the reservation failed, and no model was evicted."""
        for size, expected in ((1000, Device(100, 0, 10)), (40, Device(40)), (95, Device(95, 0, 5))):
            world = self.scene()
            world.ray.nodes = [{**NODE, "sizes": {"ram": size}}]
            world.manager.open()
            world.clock.pump([1.0, 0.0])
            world.answer(ledger=Ledger({"ram": Device(100, 0, 10), "gpu0": Device(7)}))
            devices = world.published[-1]["nas"].ledger.devices
            self.assertEqual(devices, {"ram": expected, "gpu0": Device(7)})

    def test_host_whose_connection_is_cut_is_asked_at_once_and_offline_when_it_refuses(self) -> None:
        world = self.scene().joined()
        world.clock.advance(0.1)
        world.asked[-1][1].errback(ConnectError(string="closed"))
        self.assertTrue(world.online())
        self.assertTrue(world.published[-1]["nas"].unreachable)
        world.clock.advance(0.01)
        world.asked[-1][1].errback(ConnectionRefusedError())
        self.assertFalse(world.online())
        self.assertFalse(world.published[-1]["nas"].unreachable)

    def test_host_that_answers_again_is_not_cut_off(self) -> None:
        world = self.scene().joined()
        world.clock.advance(0.1)
        world.asked[-1][1].errback(ConnectError(string="closed"))
        world.clock.advance(0.01)
        world.answer()
        self.assertEqual((world.online(), world.published[-1]["nas"].unreachable), (True, False))

    def test_silent_host_is_offline_after_unseen_and_online_when_it_answers(self) -> None:
        world = self.scene().joined()
        world.clock.pump([0.1] * 38)
        self.assertTrue(world.online())
        world.clock.pump([0.1] * 10)
        self.assertFalse(world.online())
        world.clock.advance(0.5)
        world.answer()
        self.assertTrue(world.online())

    def test_hosts_have_not_vanished_when_this_program_stood_still(self) -> None:
        """A front that was suspended loaded the models of its hosts a second time, and cut their streams."""
        for asked in (True, False):
            world = self.scene().joined()
            if asked:
                world.clock.advance(0.1)
            world.clock.advance(60.0)
            self.assertTrue(world.online())
            world.clock.pump([0.1] * 39)
            self.assertTrue(world.online())
            world.clock.pump([0.1] * 10)
            self.assertFalse(world.online())

    def test_host_whose_node_is_dead_is_offline_although_it_is_only_silent(self) -> None:
        for refused in (False, True):
            world = self.scene().joined()
            world.clock.advance(0.1)
            world.ray.nodes[0]["alive"] = False
            world.clock.advance(1.0)
            if refused:
                world.connecting[-1].errback(ConnectionRefusedError())
            else:
                world.clock.advance(0.9)
            self.assertFalse(world.online())
            self.assertEqual(world.manager.hosts["nas"].problem, "its node died")
            world.clock.pump([0.1] * 50)
            self.assertEqual(world.manager.hosts["nas"].problem, "it does not answer")

    def test_host_whose_node_is_dead_has_its_servers_as_long_as_something_there_accepts_connections(self) -> None:
        """After the end of a node its agent lives for up to a second, and its servers for two more. A second process of
        a model ran beside them, in another place."""
        world = self.scene().joined()
        world.clock.advance(0.1)
        world.ray.nodes[0]["alive"] = False
        for _ in range(3):
            world.clock.advance(1.0)
            world.connecting[-1].callback(0)
            self.assertTrue(world.online())
            world.answer(number=8)
            self.assertEqual(world.manager.hosts["nas"].seen, world.clock.seconds())
            world.clock.advance(0.05)
        world.clock.advance(1.0)
        world.connecting[-1].errback(ConnectionRefusedError())
        self.assertFalse(world.online())

    def test_host_that_joined_with_another_port_has_its_servers_until_nothing_is_left_at_the_old_one(self) -> None:
        world = self.scene().joined()
        world.ray.nodes[0]["port"] = 6500
        world.clock.advance(1.0)
        world.connecting[-1].callback(0)
        self.assertTrue(world.online())
        world.clock.advance(1.0)
        world.connecting[-1].errback(ConnectionRefusedError())
        self.assertFalse(world.online())
        world.clock.advance(1.0)
        world.clock.advance(0.0)
        world.answer()
        self.assertEqual((world.manager.hosts["nas"].endpoint.port, world.online()), (6500, True))

    def test_other_machine_of_the_same_name_is_known_although_ray_lists_it_first(self) -> None:
        world = self.scene().joined()
        world.ray.nodes[0] |= {"address": "10.0.0.9", "addresses": ["10.0.0.9", "10.0.0.2"]}
        world.clock.advance(1.0)
        host = world.manager.hosts["nas"]
        self.assertEqual((host.endpoint.host, host.addresses), ("10.0.0.2", ["10.0.0.9", "10.0.0.2"]))

    def test_host_whose_guardian_still_ends_its_servers_is_online(self) -> None:
        """The agent was killed while a model loaded; its process and the next one on another host overlapped."""
        world = self.scene().joined()
        world.clock.advance(0.1)
        world.asked[-1][1].errback(ConnectError(string="closed"))
        world.clock.pump([0.1] * 20)  # connected, and never answered
        self.assertTrue(world.online())
        world.asked[-1][1].errback(ConnectError(string="closed"))
        world.clock.advance(0.01)
        world.asked[-1][1].errback(ConnectionRefusedError())
        self.assertFalse(world.online())

    def test_host_of_a_newer_front_or_with_another_token_is_offline(self) -> None:
        for status, reason in ((409, "a newer front uses it"), (401, "another token")):
            world = self.scene().joined()
            world.clock.advance(0.1)
            world.answer(status)
            self.assertFalse(world.online())
            self.assertIn(reason, world.manager.hosts["nas"].problem)

    def test_host_at_whose_address_another_one_listens_is_offline_and_says_which(self) -> None:
        world = self.scene().joined()
        self.assertIn("&host=nas", world.asked[-1][0])
        world.clock.advance(0.1)
        world.asked[-1][1].callback(HttpResponse(421, b'{"error": "the agent of box listens at its address"}'))
        self.assertFalse(world.online())
        self.assertIn("the agent of box listens at its address", world.manager.hosts["nas"].problem)
        self.assertIn("--port", world.manager.hosts["nas"].problem)

    def test_reservation_that_nothing_uses_is_released_after_a_while(self) -> None:
        world = self.scene().joined()
        released = lambda: [given["name"] for name, given in world.ray.asked if name == "Release"]
        world.clock.pump([1.0] * 3)
        self.assertEqual(released(), [])
        world.clock.pump([1.0] * 3)
        self.assertEqual(
            released(), ["b#4.9"], "the memory of a host must not be taken for a minute after a front died"
        )

    def test_reservation_that_ends_while_ray_is_away_is_released_when_it_is_back(self) -> None:
        world = self.scene().joined()
        released = lambda: sum(given.get("name") == "c#5.2" for name, given in world.ray.asked if name == "Release")
        world.ray.connected, world.ray.away = False, True
        world.manager.reservations.release("c#5.2")
        world.clock.pump([1.0] * 3)
        self.assertEqual(released(), 1)
        world.ray.connected, world.ray.away = True, False
        world.clock.advance(1.0)
        self.assertEqual(released(), 2)
        world.clock.pump([1.0] * 3)
        self.assertEqual(released(), 2)

    def test_known_hosts_are_asked_before_ray_answers(self) -> None:
        world = self.scene().joined()
        world.manager.close()
        later = World(world.folder)
        later.ray.connected = False
        later.manager.open()
        later.clock.advance(0.0)
        later.answer()
        self.assertTrue(later.online())

    def test_host_that_an_earlier_program_knew_is_awaited_until_it_answers_refuses_or_is_late(self) -> None:
        for how in ("answers", "refuses", "is late"):
            world = self.scene().joined()
            world.manager.close()
            later = World(world.folder)
            later.manager.open()
            self.assertTrue(later.published[-1]["nas"].awaited)
            later.clock.advance(0.0)
            if how == "answers":
                later.answer()
            elif how == "refuses":
                later.asked[-1][1].errback(ConnectionRefusedError())
            else:
                later.clock.pump([1.0] * 3)
            self.assertFalse(later.published[-1]["nas"].awaited, how)
            self.assertFalse(later.manager.awaits_hosts)

    def test_model_that_a_host_could_not_start_is_not_tried_there_for_a_while(self) -> None:
        world = self.scene().joined()
        world.manager.cannot_start("nas", "a", "no such file")
        facts = world.published[-1]["nas"]
        self.assertEqual((facts.missing, facts.failed), (STATE.missing, {"a": FailedStart("no such file", 31.0)}))
        world.clock.advance(31.0)
        world.manager.drain("nas", False)
        self.assertEqual(world.published[-1]["nas"].failed, {})

    def test_host_that_leaves_is_drained(self) -> None:
        world = self.scene().joined()
        world.clock.advance(0.1)
        world.answer(number=9, leaving=True)
        self.assertTrue(world.published[-1]["nas"].drained)

    def test_host_is_told_what_models_need_there_and_what_it_has_is_published(self) -> None:
        world = self.scene()
        world.manager.files = lambda host: {"a": NeededFiles("serve", (f"/{host}/a.gguf",))}
        world.joined()
        self.assertEqual(len(world.told), 1)
        world.told[0][1].errback(ConnectError(string="closed"))
        world.clock.advance(0.1)
        world.answer(number=9, missing={"a": "/nas/a.gguf"}, cached=frozenset("b"))
        self.assertEqual(len(world.told), 2)
        facts = world.published[-1]["nas"]
        self.assertEqual((facts.missing, facts.cached_models), ({"a": "/nas/a.gguf"}, {"b"}))
        world.told[1][1].callback(HttpResponse(200, b"{}"))
        world.manager.reconfigured()
        self.assertEqual(len(world.told), 3)

    def test_drained_hosts_stay_drained_over_a_restart(self) -> None:
        world = self.scene().joined()
        world.manager.drain("nas", True)
        self.assertTrue(world.published[-1]["nas"].drained)
        self.assertRaises(KeyError, world.manager.drain, "other", True)
        later = World(world.folder).joined()
        self.assertTrue(later.published[-1]["nas"].drained)

    def test_host_whose_answer_breaks_something_is_offline_and_asked_again(self) -> None:
        for body in (b"[" * 100_000, b'{"number": 1e999}', json.dumps({**state_document(STATE), "number": 1e999})):
            world = self.scene().joined()
            world.clock.advance(0.1)
            asked = len(world.asked)
            world.asked[-1][1].callback(HttpResponse(200, body if isinstance(body, bytes) else body.encode()))
            self.assertFalse(world.online())
            world.clock.advance(1.0)
            self.assertGreater(len(world.asked), asked)

    def test_host_is_asked_again_after_an_error_of_what_hears_its_state(self) -> None:
        world = self.scene().joined()
        world.clock.advance(0.1)
        world.seen = None  # type: ignore[assignment]  # `host_seen` fails
        world.answer(number=8)
        self.assertFalse(world.online())
        self.assertEqual(len(self.flushLoggedErrors(AttributeError)), 1)
        world.seen = []
        world.clock.advance(0.5)
        world.answer(number=9)
        self.assertTrue(world.online())

    def test_cancelled_request_to_an_agent_is_not_a_host_that_is_away(self) -> None:
        world = self.scene().joined()
        telling = Deferred.fromCoroutine(world.manager.tell("nas", "a", "start", {}))
        telling.cancel()
        self.failureResultOf(telling, CancelledError)

    def test_nodes_are_not_listed_again_while_ray_does_not_answer(self) -> None:
        world = self.scene().joined()
        world.ray.hung = True
        before = len(world.ray.asked)
        world.clock.pump([1.0] * 10)
        self.assertEqual([name for name, _ in world.ray.asked[before:]].count("ListNodes"), 1)

    def test_host_whose_node_is_dead_stays_offline_although_its_agent_still_answers(self) -> None:
        world = self.scene().joined()
        world.clock.advance(0.1)
        world.ray.nodes[0]["alive"] = False
        world.clock.advance(1.0)
        world.connecting[-1].errback(ConnectionRefusedError())
        world.clock.advance(0.5)
        world.answer(number=8)
        self.assertFalse(world.online())
        world.ray.nodes[0]["alive"] = True
        world.clock.advance(1.0)
        world.answer(number=9)
        self.assertTrue(world.online())

    def test_host_that_was_away_for_a_day_is_forgotten(self) -> None:
        world = self.scene().joined()
        world.ray.nodes[0]["alive"] = False
        world.clock.advance(1.0)
        world.connecting[-1].errback(ConnectionRefusedError())
        self.assertIn("nas", world.published[-1])
        world.clock.advance(24 * 3600.0)
        world.clock.advance(1.0)
        self.assertEqual((list(world.published[-1]), list(world.manager.hosts)), ([""], []))
        self.assertEqual(ClusterFolder(world.folder).document("known.json"), {})

    def test_refusal_of_an_agent_has_a_bound_and_the_token_is_not_printed(self) -> None:
        world = self.scene().joined()
        telling = Deferred.fromCoroutine(world.manager.tell("nas", "a", "start", {}))
        world.asked[-1][1].callback(HttpResponse(422, json.dumps({"error": "x" * 100_000}).encode()))
        self.assertLess(len(str(self.failureResultOf(telling, HostRefused).value)), 5000)
        world.manager.token = "sesame"
        self.assertNotIn("sesame", repr(world.manager))
