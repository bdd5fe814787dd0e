"""The hosts for the API: what they lack for models that may run there."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from twisted.internet.defer import succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.app.host_wiring import HostParts
from llamaswap.cluster.ray_node import ClusterFolder
from llamaswap.config import Config, Model
from llamaswap.config.schema.hosts import Hosts, Place
from llamaswap.scheduling.hosts import HostFacts
from llamaswap.scheduling.memory import Device, Ledger
from llamaswap.web.hosts_api import DeviceDocument


class DocumentTests(SynchronousTestCase):
    def test_document_says_what_a_host_lacks_for_a_model_that_may_run_there(self) -> None:
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
        ask, run = SimpleNamespace(get=None), lambda work: succeed(work())
        parts = HostParts(context, Hosts(state=str(folder.path)), lambda: router, ask, run)
        self.assertEqual(parts.document().findings, ["nas lacks a.gguf (needed by a)"])
        self.assertEqual(parts.document().hosts[0].devices, [DeviceDocument("ram", "", 100, 5)])
