"""What runs on a host that is seen: adopted if it may run there and nowhere else, stopped otherwise."""

from __future__ import annotations

from types import SimpleNamespace

from attrs import Factory, define, evolve
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.cluster.agent_protocol import EngineState, HostState
from llamaswap.cluster.remote_servers import RemoteServers
from llamaswap.config import Config, Model
from llamaswap.config.schema.hosts import Place
from llamaswap.scheduling.memory import Ledger
from llamaswap.servers.server_snapshot import ServerSnapshot
from tests.cluster.test_remote_supervisor import FakeHosts

READY = EngineState(4, 1, "ready")


@define(eq=False)
class FakeHostRouter:
    """A router with one model. `adopted` are the models that it took over."""

    config: Config
    elsewhere: bool = False
    adopted: list[str] = Factory(list)
    delayed: list[tuple[str, Deferred[None]]] = Factory(list)

    @property
    def swaps(self) -> object:
        return SimpleNamespace(
            adopt=self.adopt, delay_starts_until=lambda ended, model: self.delayed.append((model, ended))
        )

    def adopt(self, servers: list[ServerSnapshot]) -> None:
        self.adopted += [server.model for server in servers]

    def has_process(self, model: str) -> bool:
        return self.elsewhere


def state(engines: dict[str, EngineState]) -> HostState:
    return HostState("first", 1, 5, Ledger({}), engines, {})


class SeenHostTests(SynchronousTestCase):
    def seen(self, place: Place, model: str = "a", elsewhere: bool = False) -> tuple[list[str], list[tuple[str, str]]]:
        """(what is adopted, what the host is told) when a server of this model is ready on `nas`."""
        router = FakeHostRouter(Config(models={"a": Model("a", cmd="serve", place=place)}), elsewhere)
        servers = RemoteServers(Clock(), lambda: router)
        servers.hosts = hosts = FakeHosts()
        servers.host_seen("nas", state({model: READY}))
        return router.adopted, hosts.told

    def test_server_that_may_run_there_is_adopted(self) -> None:
        for place in (Place(), Place(("other", "nas"))):
            self.assertEqual(self.seen(place), (["a"], []))

    def test_server_that_runs_elsewhere_or_has_another_place_now_is_stopped(self) -> None:
        self.assertEqual(self.seen(Place(), elsewhere=True), ([], [("nas", "stop")]))
        self.assertEqual(self.seen(Place(), model="removed"), ([], [("nas", "stop")]))
        self.assertEqual(self.seen(Place(("other",))), ([], [("nas", "stop")]))

    def test_model_is_started_nowhere_while_a_server_of_an_earlier_front_is_being_stopped(self) -> None:
        """A front was killed while a model loaded: the next one loaded it elsewhere beside that process."""
        for last in ({}, {"a": evolve(READY, state="stopped")}, None):
            router = FakeHostRouter(Config(models={"a": Model("a", cmd="serve")}))
            servers = RemoteServers(Clock(), lambda router=router: router)
            servers.hosts = FakeHosts()
            for now in ("starting", "stopping", "stopping"):
                servers.host_seen("nas", state({"a": evolve(READY, state=now)}))
                servers.host_seen("other", state({}))
            [(model, ended)] = router.delayed
            self.assertEqual((model, ended.called), ("a", False))
            servers.host_lost(["nas"]) if last is None else servers.host_seen("nas", state(last))
            self.assertTrue(ended.called)
