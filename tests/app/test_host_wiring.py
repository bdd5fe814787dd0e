"""The hosts for the API and the metrics."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from twisted.internet.defer import succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.app.host_wiring import HostParts
from llamaswap.cluster.known_host import KnownHost
from llamaswap.cluster.ray_node import ClusterFolder
from llamaswap.config import Config, Model
from llamaswap.config.endpoints import Endpoint
from llamaswap.config.schema.hosts import Hosts, Place
from llamaswap.observe.exposition import render
from llamaswap.scheduling.hosts import HostFacts
from llamaswap.scheduling.memory import Device, Ledger
from llamaswap.web.hosts_api import DeviceDocument


class DocumentTests(SynchronousTestCase):
    def build(self, **changes: object) -> HostParts:
        """The parts of a router with the models `a` on nas and `b` here."""
        folder = ClusterFolder(Path(self.mktemp()))
        folder.keep_token()
        folder.write("head.json", '{"address": "10.0.0.5", "port": 6399}')
        context = SimpleNamespace(reactor=Clock(), child_environ={}, environ={})
        models = {name: Model(name, cmd="serve", place=Place((host,))) for name, host in (("a", "nas"), ("b", "here"))}
        facts = {
            "": HostFacts("", Ledger({"ram": Device(100, foreign=5)})),
            "nas": HostFacts("nas", missing={"a": "a.gguf", "b": "b.gguf"}),
        }
        router = SimpleNamespace(config=Config(models=models), hosts=facts, missed_hosts=(), running=tuple)
        vars(router).update(changes)
        ask, run = SimpleNamespace(get=None), lambda work: succeed(work())
        return HostParts(context, Hosts(state=str(folder.path)), lambda: router, ask, run)

    def test_document_says_what_a_host_lacks_for_a_model_that_may_run_there(self) -> None:
        parts = self.build()
        self.assertEqual(parts.document().findings, ["nas lacks a.gguf (needed by a)"])
        self.assertEqual(parts.document().hosts[0].devices, [DeviceDocument("ram", "", 100, 5)])

    def test_machine_that_joined_under_the_name_of_another_one_is_named(self) -> None:
        """It was left out without a word; the names are those of the machines if nothing else is given."""
        parts = self.build()
        one = KnownHost("nas", Endpoint("http", "10.0.0.6", 6400), {}, addresses=["10.0.0.7", "10.0.0.6"])
        parts.manager.hosts = {"nas": one}
        self.assertEqual(
            parts.document().findings[0], "10.0.0.7 has joined as nas too and is not used: join it with another --name"
        )

    def test_metrics_say_where_models_run_and_how_long_ago_a_host_answered(self) -> None:
        running = [SimpleNamespace(model=name) for name in ("a", "b")]
        parts = self.build(running=lambda: running, host_of={"a": "nas", "b": ""}.get)
        nas = KnownHost("nas", Endpoint("http", "10.0.0.6", 6400), {}, seen=0.0)
        parts.manager.hosts = {"nas": nas, "new": KnownHost("new", Endpoint("http", "10.0.0.7", 6400), {})}
        parts.context.reactor.advance(2.5)
        lines = render(parts.families()).decode().splitlines()
        for line in (
            'llamaswap_host_seen_seconds{host="nas"} 2.5',
            'llamaswap_host_model{host="nas",model="a"} 1',
            'llamaswap_host_model{host="here",model="b"} 1',
        ):
            self.assertIn(line, lines)
        self.assertNotIn('host_seen_seconds{host="new"}', "\n".join(lines))
