"""What runs on a host that is seen: adopted if it may run there and nowhere else, stopped otherwise."""

from __future__ import annotations

from types import SimpleNamespace

from attrs import Factory, define
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.cluster.agent_protocol import EngineState
from llamaswap.cluster.remote_servers import RemoteServers
from llamaswap.config import Config, Model
from llamaswap.config.schema.hosts import Place
from llamaswap.servers.server_snapshot import ServerSnapshot
from tests.cluster.test_remote_supervisor import FakeHosts

READY = EngineState(4, 1, "ready")


@define(eq=False)
class FakeHostRouter:
    """A router with one model. `adopted` are the models that it took over."""

    config: Config
    elsewhere: bool = False
    adopted: list[str] = Factory(list)

    @property
    def swaps(self) -> object:
        return SimpleNamespace(adopt=self.adopt)

    def adopt(self, servers: list[ServerSnapshot]) -> None:
        self.adopted += [server.model for server in servers]

    def has_process(self, model: str) -> bool:
        return self.elsewhere


class SeenHostTests(SynchronousTestCase):
    def seen(self, place: Place, model: str = "a", elsewhere: bool = False) -> tuple[list[str], list[tuple[str, str]]]:
        """(what is adopted, what the host is told) when a server of this model is ready on `nas`."""
        router = FakeHostRouter(Config(models={"a": Model("a", cmd="serve", place=place)}), elsewhere)
        servers = RemoteServers(Clock(), lambda: router)
        servers.hosts = hosts = FakeHosts()
        servers.host_seen("nas", {model: READY})
        return router.adopted, hosts.told

    def test_server_that_may_run_there_is_adopted(self) -> None:
        for place in (Place(), Place(("other", "nas"))):
            self.assertEqual(self.seen(place), (["a"], []))

    def test_server_that_runs_elsewhere_or_has_another_place_now_is_stopped(self) -> None:
        self.assertEqual(self.seen(Place(), elsewhere=True), ([], [("nas", "stop")]))
        self.assertEqual(self.seen(Place(), model="removed"), ([], [("nas", "stop")]))
        self.assertEqual(self.seen(Place(("other",))), ([], [("nas", "stop")]))
