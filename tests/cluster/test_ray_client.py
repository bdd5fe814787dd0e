"""The front's side of the process that talks to Ray: when it counts as connected, and what a call fails with."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ProcessDone
from twisted.internet.task import Clock
from twisted.protocols.amp import AmpBox
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.cluster import driver_protocol as protocol
from llamaswap.cluster.ray_client import RayAway, RayClient


class FakeProcesses:
    """Starts nothing; `sent` is what the client wrote to the last process."""

    def __init__(self) -> None:
        self.started: list[Any] = []
        self.sent = bytearray()

    def spawnProcess(self, process: Any, *_: object, **__: object) -> FakeProcesses:
        self.started.append(process)
        process.makeConnection(self)
        return self

    def write(self, data: bytes) -> None:
        self.sent += data

    def writeSequence(self, pieces: list[bytes]) -> None:
        self.sent += b"".join(pieces)

    def signalProcess(self, name: str) -> None:
        self.ended()

    def ended(self) -> None:
        self.started[-1].processEnded(Failure(ProcessDone(0)))

    def answer(self, number: int) -> None:
        self.send(AmpBox(_answer=b"%x" % number, nodes=protocol.Document().toString([])))

    def send(self, box: AmpBox) -> None:
        self.started[-1].childDataReceived(1, box.serialize())


class RayClientTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock, self.processes = Clock(), FakeProcesses()
        self.ray = RayClient(self.clock, self.processes, {}, "10.0.0.5:6399", True, lambda: None)
        self.ray.open()

    def test_ray_that_starts_for_longer_than_a_call_waits_is_connected_in_the_end(self) -> None:
        self.clock.pump([1.0] * 45)
        self.assertFalse(self.ray.connected)
        self.processes.answer(2)
        self.assertTrue(self.ray.connected)
        self.ray.close()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_client_that_was_closed_for_an_upgrade_that_failed_starts_its_process_again(self) -> None:
        self.processes.answer(1)
        self.successResultOf(self.ray.close())
        self.assertFalse(self.ray.connected)
        self.ray.open()
        self.assertEqual(len(self.processes.started), 2)
        self.ray.open()
        self.assertEqual(len(self.processes.started), 2)

    def test_process_that_ends_while_ray_starts_is_started_once_more(self) -> None:
        self.processes.ended()
        self.clock.advance(1.0)
        self.assertEqual(len(self.processes.started), 2)

    def test_cancelled_call_is_not_a_ray_that_is_away(self) -> None:
        calling = self.ray.call(protocol.Release, name="a#5.1")
        calling.cancel()
        self.failureResultOf(calling, CancelledError)

    def test_process_that_does_not_answer_is_a_problem_until_it_does(self) -> None:
        self.processes.answer(1)
        self.assertEqual(self.ray.problem, "")
        calling = self.ray.call(protocol.ListNodes, limit=5.0)
        self.clock.advance(5.0)
        self.failureResultOf(calling, RayAway)
        self.assertIn("has not answered for 5 s", self.ray.problem)
        self.assertTrue(self.ray.connected)
        self.processes.answer(2)
        self.assertEqual(self.ray.problem, "")

    def test_memory_that_is_not_reserved_is_missing_only_if_ray_was_not_started_a_moment_ago(self) -> None:
        self.processes.answer(1)
        reserve = lambda: Deferred.fromCoroutine(self.ray.reserve("a#5.1", "nas", {"gpu0_mib": 5}))
        reserving = reserve()
        self.processes.send(AmpBox(_answer=b"2", reserved=b"False", why=b"full"))
        self.failureResultOf(reserving, RayAway)
        self.clock.advance(30.0)
        reserving = reserve()
        self.processes.send(AmpBox(_answer=b"3", reserved=b"False", why=b"full"))
        self.assertEqual(self.successResultOf(reserving), "full")
        reserving = reserve()
        self.processes.send(AmpBox(_error=b"4", _error_code=b"RAY", _error_description=b"timeout"))
        self.failureResultOf(reserving, RayAway)

    def test_call_without_an_answer_says_so(self) -> None:
        calling = self.ray.call(protocol.Release, name="a#5.1", limit=3.0)
        self.clock.advance(3.0)
        error = self.failureResultOf(calling, RayAway).value
        self.assertEqual(str(error), "Ray: has not answered in time")
