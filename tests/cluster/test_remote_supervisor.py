"""The supervisor of a server on another host: its states follow what the host tells."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import Factory, define, evolve
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.cluster.agent_client import AgentEnded, HostAway
from llamaswap.cluster.agent_protocol import CommandResult, EngineState, StateVersion
from llamaswap.cluster.ray_client import RayAway
from llamaswap.cluster.remote_supervisor import RemoteSupervisor
from llamaswap.config import Model
from llamaswap.config.endpoints import Endpoint
from llamaswap.errors import HostRefused, ModelUnloaded, StartFailed
from llamaswap.scheduling.effects import StartSwap

READY = EngineState(5, 1, "ready", load_seconds=2.0)


@define(eq=False)
class FakeHosts:
    """Hosts that do what they are told. `told` are the requests, `kept` the reservations."""

    front: int = 5
    online: bool = True
    away: bool = False
    full: str = ""
    refusal: Exception | None = None
    told: list[tuple[str, str]] = Factory(list)
    kept: list[str] = Factory(list)
    unable: list[str] = Factory(list)
    pending: list[Deferred[None]] = Factory(list)
    slow: bool = False
    runs: bool = True

    @property
    def reservations(self) -> FakeHosts:
        return self

    @property
    def ray(self) -> FakeHosts:
        return self

    def is_online(self, host: str) -> bool:
        return self.online

    def engine_endpoint(self, host: str, model: str, identity: tuple[int, int]) -> Endpoint:
        return Endpoint("http", host, 6400, f"/engine/{identity[0]}.{identity[1]}/{model}", token="t")

    async def tell(self, host: str, model: str, what: str, document: Mapping[str, object]) -> CommandResult:
        self.told.append((host, what))
        if self.slow and what == "start":
            self.pending.append(Deferred())
            await self.pending[-1]
        if self.refusal is not None:
            raise self.refusal
        return CommandResult(StateVersion("first", 1), self.runs)

    async def reserve(self, name: str, host: str, sizes: Mapping[str, int]) -> str:
        if self.away:
            raise RayAway("Ray is away")
        if not self.full:
            self.kept.append(name)
        return self.full

    def release(self, name: str) -> None:
        if name in self.kept:
            self.kept.remove(name)

    def cannot_start(self, host: str, model: str, why: str) -> None:
        self.unable.append(why)


class RemoteSupervisorTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock, self.hosts = Clock(), FakeHosts()
        self.events: list[object] = []
        self.server = RemoteSupervisor(Model("a", cmd="serve", unload_timeout=1.0), self.hosts, self.clock, self)

    def hear(self, engine: EngineState | None, number: int = 1) -> None:
        self.server.heard(engine, StateVersion("first", number))

    def state_changed(self, model: str, old: str, new: str) -> None:
        self.events.append(new)

    def exited(self, model: str, exit_status: int | None, expected: bool) -> None:
        self.events.append(("exited", exit_status))

    def begin(self) -> list[object]:
        self.server.set_place(StartSwap(1, "a", (), "test", 0.0, gpus=("gpu0",), host="nas", sizes={"gpu0": 7}))
        found: list[object] = []
        self.server.ensure_ready().addBoth(lambda result: found.append(getattr(result, "value", result)))
        self.clock.advance(0.0)
        return found

    def ready(self) -> list[object]:
        found = self.begin()
        self.hear(READY)
        self.clock.advance(0.0)
        return found

    def test_server_is_reserved_started_and_ready_when_its_host_says_so(self) -> None:
        found = self.begin()
        self.assertEqual((self.hosts.told, self.hosts.kept, found), ([("nas", "start")], ["a#5.1"], []))
        self.hear(None, 0)  # told before the host knew of it
        self.hear(READY)
        self.clock.advance(0.0)
        self.assertEqual(found, [Endpoint("http", "nas", 6400, "/engine/5.1/a", token="t")])
        self.assertEqual((self.events, self.server.status().load_seconds), (["starting", "ready"], (2.0,)))

    def test_memory_that_ray_has_not_makes_the_model_be_decided_about_again(self) -> None:
        self.hosts.full = "Ray has no room"
        [error] = self.begin()
        self.assertIsInstance(error, HostRefused)
        self.assertEqual((self.hosts.told, self.hosts.unable), ([], ["Ray has no room"]))

    def test_start_waits_while_ray_is_away(self) -> None:
        self.hosts.away = True
        found = self.begin()
        self.clock.pump([0.5] * 20)
        self.assertEqual((found, self.hosts.told), ([], []))
        self.hosts.away = False
        self.clock.advance(0.5)
        self.assertEqual(self.hosts.told, [("nas", "start")])

    def test_start_on_a_host_that_refuses_or_whose_agent_has_ended_is_decided_about_again(self) -> None:
        """Another host may take it: its requests must not fail because an agent has just died."""
        for refusal, reason in ((HostRefused("a", "nas", "no file"), "no file"), (AgentEnded("ended"), "ended")):
            self.setUp()
            self.hosts.refusal = refusal
            [error] = self.begin()
            self.assertIsInstance(error, HostRefused)
            self.assertEqual(self.hosts.unable, [reason])
            self.assertEqual((self.server.state, self.hosts.kept), ("stopped", []))

    def test_agent_that_is_cut_off_during_a_start_has_no_second_process_before_the_first_one_has_ended(self) -> None:
        """It may have started the server before it was killed, and its guardian needs two seconds to end that."""
        for end in ("the agent has ended", "the host is offline", "the agent has no such process"):
            self.setUp()
            self.hosts.refusal = HostAway("the connection closed")
            found = self.begin()
            self.assertEqual((self.hosts.unable, self.hosts.told[-1]), (["the connection closed"], ("nas", "stop")))
            self.clock.pump([0.5] * 3)
            self.hear(None)  # of which it is not known whether it was told before the start arrived
            self.assertEqual((self.server.state, found, self.hosts.kept), ("stopping", [], ["a#5.1"]), end)
            if end == "the agent has ended":
                self.hosts.refusal = AgentEnded("refused")
            elif end == "the host is offline":
                self.hosts.online = False
                self.server.lost()
            else:
                self.hosts.refusal, self.hosts.runs = None, False
            self.clock.pump([0.5] * 3)
            self.assertIsInstance(found[0], HostRefused, end)
            self.assertEqual((self.server.state, self.hosts.kept), ("stopped", []))

    def test_stop_does_not_end_by_what_the_host_told_before_the_start_arrived(self) -> None:
        """The server would be started elsewhere while the host starts it."""
        self.hosts.slow = True
        self.begin()
        stopped = self.server.stop()
        self.hear(None, 0)
        self.clock.advance(0.0)
        self.assertNoResult(stopped)
        self.hear(None)
        self.clock.advance(0.0)
        self.successResultOf(stopped)

    def test_stop_ends_when_a_restarted_agent_answers_it(self) -> None:
        self.ready()
        self.hosts.runs = False
        stopped = self.server.stop()
        self.clock.advance(0.0)
        self.successResultOf(stopped)

    def test_exit_is_reported_and_the_reservation_released(self) -> None:
        self.ready()
        self.hear(evolve(READY, state="stopped", error="crashed", exit_status=7, tail="last words"))
        self.assertEqual(self.events[-1], ("exited", 7))
        self.assertEqual((self.server.log_tail(), self.hosts.kept), ("last words", []))

    def test_agent_that_was_restarted_has_no_server_any_more(self) -> None:
        self.ready()
        self.hear(None)
        self.assertEqual(self.events[-1], ("exited", None))

    def test_accepted_start_that_the_host_never_shows_fails(self) -> None:
        found = self.begin()
        for _ in range(3):
            self.hear(None)
        self.clock.advance(0.0)
        self.assertIsInstance(found[0], StartFailed)

    def test_stop_ends_when_the_host_says_so(self) -> None:
        self.ready()
        stopped = self.server.stop()
        self.assertNoResult(stopped)
        self.hear(evolve(READY, state="stopping"))
        self.assertNoResult(stopped)
        self.hear(None)
        self.clock.advance(0.0)
        self.successResultOf(stopped)
        self.assertEqual(self.hosts.told[-1], ("nas", "stop"))

    def test_stop_on_an_offline_host_ends_at_once(self) -> None:
        self.ready()
        self.hosts.online = False
        stopped = self.server.stop()
        self.clock.advance(0.0)
        self.successResultOf(stopped)

    def test_stop_is_given_up_in_time(self) -> None:
        self.ready()
        stopped = self.server.stop()
        self.clock.pump([1.0] * 17)
        self.successResultOf(stopped)
        self.assertGreater(len(self.hosts.told), 10)
        self.assertEqual(len(self.flushLoggedErrors()), 0)

    def test_start_that_is_unwanted_fails_with_model_unloaded(self) -> None:
        found = self.begin()
        self.server.stop()
        self.clock.advance(0.0)
        self.assertIsInstance(found[0], ModelUnloaded)

    def test_stop_during_the_request_to_start_waits_until_the_host_has_no_server(self) -> None:
        self.hosts.slow = True
        found = self.begin()
        stopped = self.server.stop()
        self.clock.advance(0.0)
        self.assertNoResult(stopped)
        self.assertIsInstance(found[0], ModelUnloaded)
        self.assertEqual((self.events, self.hosts.told[-1]), (["starting", "stopping"], ("nas", "stop")))
        self.hear(None)
        self.clock.advance(0.0)
        self.successResultOf(stopped)

    def test_server_that_is_wanted_again_while_it_stops_is_started_when_it_has_stopped(self) -> None:
        """A reload restarts a model that is loading; its requests waited forever."""
        self.ready()
        stopped = self.server.stop()
        self.server.set_place(StartSwap(8, "a", (), "test", 0.0, gpus=("gpu0",), host="nas", sizes={"gpu0": 7}))
        found: list[object] = []
        self.server.ensure_ready().addBoth(found.append)
        self.assertEqual(self.server.state, "stopping")
        self.hear(None)
        self.clock.advance(0.0)
        self.successResultOf(stopped)
        self.assertEqual((self.server.state, self.server.identity), ("starting", (5, 8)))
        self.hear(evolve(READY, generation=8))
        self.clock.advance(0.0)
        self.assertEqual(len(found), 1)

    def test_start_that_waits_for_a_stop_fails_when_the_server_is_stopped_again(self) -> None:
        self.ready()
        self.server.stop()
        found: list[object] = []
        self.server.ensure_ready().addErrback(lambda failure: found.append(failure.value))
        self.server.stop()
        self.clock.advance(0.0)
        self.assertIsInstance(found[0], ModelUnloaded)
        self.hear(None)
        self.assertEqual(self.server.state, "stopped")

    def test_start_that_failed_does_not_disturb_the_next_one(self) -> None:
        self.hosts.slow = True
        self.begin()
        self.hear(evolve(READY, state="stopped", error="crashed"))
        self.clock.advance(0.0)
        self.assertEqual(self.server.state, "stopped")
        self.begin()
        if not self.hosts.pending[0].called:
            self.hosts.pending[0].errback(HostAway("silent"))
        self.assertEqual(self.server.state, "starting")
