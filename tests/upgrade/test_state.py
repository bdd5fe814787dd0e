"""The state that one program hands over to the next."""

import json

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config.endpoints import Endpoint
from llamaswap.errors import FailureRecord
from llamaswap.routing.memory_leases import HandedLease, LeaseRequest
from llamaswap.scheduling.memory import Device, GpuShare, Ledger, MemoryNeed
from llamaswap.scheduling.memory_leases import HeldMemory
from llamaswap.servers.server_snapshot import ServerSnapshot
from llamaswap.upgrade.state import HandedJob, IdleConnection, UpgradeState, pack, unpack

SERVED = ServerSnapshot(
    model="owl/7b",
    pid=12,
    start=345,
    mark="token.1",
    port=5801,
    proxy="http://127.0.0.1:5801",
    endpoint=Endpoint("http", "127.0.0.1", 5801, "/v1", "a=b"),
    argv=("server", "--port", "5801"),
    env=("KEY=geheim",),
    cmd_stop="",
    started_at=1.25,
    ready_at=2.5,
    load_seconds=(1.25, 3.0),
    output=7,
    tail=b"\xff\x00 bytes\n",
    idle_since=9.75,
)
STATE = UpgradeState(
    servers=(SERVED, evolve(SERVED, model="b", output=None, port=None)),
    connections=(IdleConnection(9, 2, b"GET / HT"), IdleConnection(10, 10)),
    keeper=(99, 8),
    profile="quiet",
    pinned=("b",),
    logs={"proxy": b"one\n", "model:b": b"\xe2\x82"},
    count=3,
    ailing=(FailureRecord("c", "digest", 4, 1234.5, "it ended", "last words\n"),),
    memory=Ledger(
        {"ram": Device(100, 1, 2, "firefox (pid 9)"), "gpu0": Device(50)},
        {"b": MemoryNeed(5, ((GpuShare(3), GpuShare(4, "gpu0")), ()), "carried", False)},
        {"b": {"ram": 5}},
        {"b": 2.5},
        hold=3.0,
        pressed=frozenset({"ram"}),
    ),
    leases=(
        HandedLease(
            "train-1",
            LeaseRequest("train", 5, 6, 2, 60.0, 77),
            HeldMemory({"gpu0": 3, "gpu1": 3, "ram": 5}, {"gpu0": 9}),
            12.5,
        ),
    ),
    jobs=(HandedJob("anna", "videos", "video_1", "a", "alias", 2.5),),
)


class StateTests(SynchronousTestCase):
    def test_packed_state_is_unpacked(self):
        self.assertEqual(unpack(pack(STATE)), STATE)
        self.assertEqual(unpack(pack(UpgradeState())), UpgradeState())

    def test_unknown_fields_of_a_later_program_are_left_out(self):
        document = json.loads(pack(STATE))
        document["novelty"] = document["servers"][0]["novelty"] = 1
        self.assertEqual(unpack(json.dumps(document).encode()), STATE)

    def test_missing_fields_of_an_earlier_program_have_their_defaults(self):
        document = json.loads(pack(STATE))
        for name in ("profile", "pinned", "logs", "count", "keeper", "ailing", "memory", "leases", "jobs"):
            del document[name]
        self.assertEqual(unpack(json.dumps(document).encode()).count, 0)

    def test_unreadable_state_raises_value_error(self):
        for data in (
            b"",
            b"[]",
            b"{}",
            b'{"format": 99}',
            b'{"format": 1, "servers": [{}]}',
            b'{"format": 1, "count": "x"}',
        ):
            self.assertRaises(ValueError, unpack, data)

    def test_descriptors_are_all_that_must_stay_open(self):
        self.assertEqual(sorted(STATE.descriptors), [7, 8, 9, 10])

    def test_secrets_are_not_in_the_repr(self):
        self.assertNotIn("geheim", repr(STATE))
