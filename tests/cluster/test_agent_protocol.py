"""What an agent tells a front: states are read back as they were, and what is malformed is refused."""

from __future__ import annotations

import json

from attrs import asdict
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.cluster.agent_protocol import EngineState, HostState, Malformed, agent_config, state_document, state_of
from llamaswap.cluster.remote_supervisor import digest_of
from llamaswap.config import ConfigText, load
from llamaswap.scheduling.memory import Device, GpuShare, Ledger, MemoryNeed

STATE = HostState(
    "one",
    7,
    3,
    Ledger(
        {"ram": Device(100), "gpu0": Device(200, 10, 20, "game")},
        {"a": MemoryNeed(5, ((GpuShare(30, "gpu0"),),), "learned")},
        {"a": {"gpu0": 31}},
        {"a": 2.5},
    ),
    {"a": EngineState(3, 4, "ready", "digest", "", None, "", 12.0, 2.5, "serve", {"gpu0": 30})},
    {"gpu0": "Card"},
    {"b": "/m/b.gguf"},
    frozenset("a"),
)


class StateTests(SynchronousTestCase):
    def test_state_is_read_back_as_it_was(self) -> None:
        self.assertEqual(state_of(json.dumps(state_document(STATE)).encode()), STATE)

    def test_malformed_states_are_refused(self) -> None:
        good = state_document(STATE)
        engine = {"front": 1, "generation": 2, "state": "flying", "digest": ""}
        for wrong in (
            b"[]",
            b"{",
            b"[" * 100_000,
            json.dumps({**good, "number": "x"}).encode(),
            json.dumps({**good, "number": 1e999}).encode(),
            json.dumps({**good, "incarnation": "\ud800"}).encode(),
            json.dumps({**good, "engines": {"a": {**asdict(STATE.engines["a"]), "up": float("nan")}}}).encode(),
            json.dumps({**good, "ledger": {**good["ledger"], "hold": float("inf")}}).encode(),
            json.dumps({**good, "engines": {"a": engine}}).encode(),
            json.dumps({**good, "engines": {"a": {**asdict(STATE.engines["a"]), "sizes": [1]}}}).encode(),
            json.dumps({**good, "missing": {"a": 1}}).encode(),
            json.dumps({**good, "cached": {"a": 1}}).encode(),
            json.dumps({**good, "names": {str(number): "" for number in range(65)}}).encode(),
        ):
            self.assertRaises(Malformed, state_of, wrong)


class DefinitionTests(SynchronousTestCase):
    def test_agent_starts_the_same_server_on_a_port_of_its_own(self) -> None:
        text = (
            "macros: {folder: /models}\nmodels: {a: {cmd: 'serve ${folder}/a.gguf --port ${PORT} --gpu ${GPUS}', "
            "gpus: [1], env: [X=1], checkEndpoint: /ok, memory: 2GiB}}"
        )
        model = load([ConfigText("front.yaml", text)], {}).config.models["a"]
        there = load([agent_config({"a": model.portable()})], {}).config.models["a"]
        self.assertEqual(there.cmd, f"serve /models/a.gguf --port {there.port} --gpu 1")
        self.assertEqual(there.proxy, f"http://localhost:{there.port}")
        self.assertEqual((there.env, there.check_endpoint, there.memory), (model.env, "/ok", model.memory))
        self.assertEqual(digest_of(model), digest_of(model.with_port(1234)))
