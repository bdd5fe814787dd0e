"""Upgrades in place: what is handed over, and how the way there is gone."""

import contextlib
import json
import os
import signal
import socket

from attrs import define, evolve, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ProcessTerminated
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config.endpoints import Endpoint
from llamaswap.errors import FailureRecord
from llamaswap.proxy.listen import ListenAddress
from llamaswap.servers.server_snapshot import ServerSnapshot
from llamaswap.upgrade import coordinator
from llamaswap.upgrade.coordinator import (
    BETWEEN,
    CUT_SECONDS,
    FLUSH_SECONDS,
    LAST_TRY,
    PATIENCE,
    TRY,
    IdleConnection,
    InheritedState,
    Upgrade,
    UpgradeState,
)

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
)


class StateTests(SynchronousTestCase):
    def test_what_was_written_is_read(self):
        self.assertEqual(coordinator.unpack(coordinator.pack(STATE)), STATE)
        self.assertEqual(coordinator.unpack(coordinator.pack(UpgradeState())), UpgradeState())

    def test_what_a_later_program_adds_does_not_trouble_this_one(self):
        document = json.loads(coordinator.pack(STATE))
        document["novelty"] = document["servers"][0]["novelty"] = 1
        self.assertEqual(coordinator.unpack(json.dumps(document).encode()), STATE)

    def test_what_an_earlier_one_did_not_know_is_at_its_default(self):
        document = json.loads(coordinator.pack(STATE))
        for name in ("profile", "pinned", "logs", "count", "keeper", "ailing"):
            del document[name]
        self.assertEqual(coordinator.unpack(json.dumps(document).encode()).count, 0)

    def test_what_cannot_be_read_is_a_value_error(self):
        for data in (b"", b"[]", b"{}", b'{"format": 99}', b'{"format": 1, "servers": [{}], "connections": []}'):
            self.assertRaises(ValueError, coordinator.unpack, data)

    def test_everything_that_must_stay_open_is_named(self):
        self.assertEqual(sorted(STATE.descriptors), [7, 8, 9, 10])

    def test_it_crosses_by_descriptor_and_the_notice_is_taken_down(self):
        here, there = socket.socketpair()
        self.addCleanup(there.close)
        deposited = coordinator.write_memfd(coordinator.pack(STATE))
        environ = {coordinator.INHERIT: f"{here.fileno()}:{deposited}:[::1]:80", "PATH": "/bin"}
        self.assertEqual(coordinator.inherited(environ), InheritedState(here.detach(), "[::1]:80", STATE))
        self.assertEqual(environ, {"PATH": "/bin"})
        self.assertRaises(OSError, os.fstat, deposited)
        self.assertIsNone(coordinator.inherited(environ))

    def test_a_state_that_cannot_be_used_still_leaves_the_socket(self):
        here, there = socket.socketpair()
        self.addCleanup(there.close)
        self.addCleanup(here.close)
        deposited = coordinator.write_memfd(b"{")
        found = coordinator.inherited({coordinator.INHERIT: f"{here.fileno()}:{deposited}::80"})
        self.assertEqual((found.listening, found.where, found.state), (here.fileno(), ":80", None))
        self.assertTrue(found.problem)

    def test_secrets_do_not_show(self):
        self.assertNotIn("geheim", repr(STATE))


class BecomeTests(SynchronousTestCase):
    def test_a_program_that_cannot_be_executed_changes_nothing(self):
        here, there = socket.socketpair()
        self.addCleanup(here.close)
        self.addCleanup(there.close)
        state = UpgradeState(connections=(IdleConnection(there.fileno(), 1),))
        before = len(os.listdir("/proc/self/fd"))
        self.assertRaises(OSError, coordinator.exec_new_process, ["/no/such/python"], {}, ":80", here.fileno(), state)
        self.assertFalse(os.get_inheritable(here.fileno()) or os.get_inheritable(there.fileno()))
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)

    def become(self, during):
        """Become another program, with something done at the moment of it; returns who was executed."""
        executed, ended = [], []
        here, there = socket.socketpair()
        self.addCleanup(here.close)
        self.addCleanup(there.close)

        def execve(word, words, environ):
            executed.append(word)
            self.dispositions = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
            raise OSError("not really")

        def pack(state):
            during()
            return b"{}"

        before = signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
        self.addCleanup(signal.signal, signal.SIGTERM, before)
        self.patch(coordinator, "pack", pack)
        self.patch(os, "execve", execve)
        with contextlib.suppress(OSError):
            coordinator.exec_new_process(["python"], {}, ":80", here.fileno(), UpgradeState(), lambda: bool(ended))
        return executed

    def test_who_asks_for_the_end_just_before_is_not_forgotten_by_the_new_program(self):
        self.assertEqual(self.become(lambda: os.kill(os.getpid(), signal.SIGTERM)), [])

    def test_who_asks_for_the_end_until_the_new_program_listens_to_it_ends_it(self):
        self.assertEqual(self.become(lambda: None), ["python"])
        self.assertEqual(self.dispositions, [signal.SIG_DFL, signal.SIG_DFL])
        self.assertNotIn(signal.getsignal(signal.SIGTERM), (signal.SIG_DFL, signal.SIG_IGN))


class Trials(Clock):
    """A reactor that starts the child in which new code is tried, and notes how it is signalled."""

    def spawnProcess(self, protocol, *args, **options):
        self.protocol, self.signals = protocol, []
        return self

    def signalProcess(self, name):
        self.signals.append(name)


class CheckTests(SynchronousTestCase):
    def test_the_end_of_the_service_leaves_no_child_that_still_tries_the_new_code(self):
        reactor = Trials()
        checking = Deferred.fromCoroutine(coordinator.check(reactor, ["python"], {}))
        checking.cancel()
        self.failureResultOf(checking, CancelledError)
        self.assertEqual(reactor.signals, ["KILL"])
        self.assertEqual(reactor.getDelayedCalls(), [])
        reactor.protocol.processEnded(Failure(ProcessTerminated(signal=9)))

    def test_a_child_that_does_not_come_up_in_time_is_killed(self):
        reactor = Trials()
        checking = Deferred.fromCoroutine(coordinator.check(reactor, ["python"], {}))
        reactor.advance(coordinator.CHECK_SECONDS)
        self.assertEqual(reactor.signals, ["KILL"])
        reactor.protocol.processEnded(Failure(ProcessTerminated(signal=9)))
        self.assertIn("within", self.successResultOf(checking))


@define(eq=False)
class FakeParts:
    """A service that is calm when a test says so."""

    clock: Clock
    calm_at: float = 0.0
    still_at: float = 0.0
    busy_between: tuple = ()
    cut_helps: bool = True
    cut_takes: float = 0.0
    disk_hangs: bool = False
    configuration: str = "as it was"
    deeds: list = field(factory=list)
    held: float = 0.0
    _since: float | None = None

    def calm(self):
        return self.clock.seconds() >= self.calm_at

    def still(self):
        return self.calm() and self.clock.seconds() >= self.still_at

    def hold(self):
        self.deeds.append("hold")
        self._since = self.clock.seconds()

    def release(self):
        self.deeds.append("release")
        if self._since is not None:
            self.held += self.clock.seconds() - self._since
            self._since = None

    def end_feeds(self):
        self.deeds.append("feeds")

    def cut(self):
        self.deeds.append("cut")
        if self.cut_helps:
            self.calm_at = self.still_at = self.clock.seconds() + self.cut_takes

    async def flush(self):
        self.deeds.append("flush")
        if self.disk_hangs:
            await Deferred()

    def configured(self):
        return self.configuration

    def collect(self):
        return 5, UpgradeState()


_check: type[coordinator.UpgradeHost] = FakeParts


class WayTests(SynchronousTestCase):
    def begin(self, problem="", fault=None, **parts):
        self.clock = Clock()
        self.parts = FakeParts(self.clock, **parts)
        self.became = []

        def become(listening, state):
            self.became.append(self.clock.seconds())
            self.parts.deeds.append("become")
            if fault is not None:
                raise fault

        self.problem, self.checks = problem, 0

        async def check():
            self.checks += 1
            return self.problem

        self.upgrade = Upgrade(self.clock, self.parts, check, become)
        self.upgrade.ask()

    def wait(self, seconds):
        for _ in range(round(seconds / 0.01)):
            self.clock.advance(0.01)

    def test_a_calm_service_is_held_flushed_and_replaced(self):
        self.begin()
        self.assertEqual(self.parts.deeds[:5], ["hold", "feeds", "flush", "become", "release"])

    def test_new_code_that_does_not_come_up_holds_nobody(self):
        self.begin(problem="the new code does not come up: ImportError")
        self.assertEqual(self.parts.deeds, [])
        told = self.upgrade.document()
        self.assertEqual((told["phase"], told["attempts"], told["count"]), ("idle", 1, 0))
        self.assertIn("ImportError", told["error"])
        self.flushLoggedErrors()

    def test_a_check_that_fails_in_an_unheard_of_way_is_told_too(self):
        self.clock = Clock()
        check = lambda: Deferred.fromCoroutine(self.fails())
        self.upgrade = Upgrade(self.clock, FakeParts(self.clock), check, lambda *_: None)
        self.upgrade.ask()
        self.assertEqual(self.upgrade.document()["error"], "out of luck")
        self.flushLoggedErrors(RuntimeError)

    async def fails(self):
        raise RuntimeError("out of luck")

    def test_requests_are_held_back_only_in_short_tries_while_one_lasts(self):
        self.begin(calm_at=30.0)
        self.wait(29.9)
        self.assertEqual(self.became, [])
        self.parts.release()
        self.assertLess(self.parts.held, 30.0 * TRY / BETWEEN + TRY)
        self.wait(0.2)
        self.assertEqual(len(self.became), 1)
        self.assertNotIn("cut", self.parts.deeds)

    def test_one_that_never_ends_is_cut_at_last(self):
        self.begin(calm_at=1e9)
        self.wait(PATIENCE + TRY + LAST_TRY - 1.0)
        self.assertEqual(self.became, [])
        self.wait(BETWEEN + 1.0)
        self.assertEqual(self.parts.deeds[-5:], ["cut", "feeds", "flush", "become", "release"])

    def test_who_asks_again_and_again_does_not_want_to_wait(self):
        self.begin(calm_at=1e9)
        self.wait(0.5)
        self.upgrade.ask()
        self.wait(0.1)
        self.assertEqual(self.became, [])
        self.upgrade.ask()
        self.wait(0.1)
        self.assertEqual(len(self.became), 1)
        self.assertIn("cut", self.parts.deeds)

    def test_asked_a_third_time_what_was_cut_is_waited_for_and_was_not_cut_for_nothing(self):
        self.begin(calm_at=1e9, cut_takes=3.0)
        for _ in range(3):
            self.wait(0.5)
            self.upgrade.ask()
        self.wait(4.0)
        self.assertEqual((len(self.became), self.upgrade.attempts), (1, 1))

    def test_a_connection_that_does_not_take_the_rest_of_its_answer_is_cut(self):
        self.begin(still_at=1e9)
        self.wait(TRY + 0.1)
        self.assertEqual(self.parts.deeds[:5], ["hold", "feeds", "cut", "flush", "become"])

    def test_servers_that_do_not_come_to_rest_leave_everything_as_it_was(self):
        self.begin(calm_at=1e9, cut_helps=False)
        self.wait(PATIENCE + BETWEEN + LAST_TRY + 3 * CUT_SECONDS)
        self.assertEqual(self.became, [])
        self.assertEqual(self.parts.deeds[-1], "release")
        self.assertIn("rest", self.upgrade.document()["error"])

    def test_a_configuration_that_became_unusable_while_it_waited_does_not_end_the_service(self):
        self.begin(calm_at=30.0)
        self.wait(10.0)
        self.parts.configuration = "half written"
        self.problem = "the new code does not come up: not a mapping"
        self.wait(30.0)
        self.assertEqual(self.became, [])
        self.assertEqual(self.parts.deeds[-1], "release")
        self.assertIn("not a mapping", self.upgrade.document()["error"])

    def test_a_configuration_that_became_another_while_it_waited_is_tried_with_the_new_code(self):
        self.begin(calm_at=30.0)
        self.wait(10.0)
        self.parts.configuration = "another one"
        self.wait(30.0)
        self.assertEqual((self.checks, len(self.became), self.upgrade.attempts), (2, 1, 1))

    def test_a_driver_or_a_disk_that_hangs_does_not_hold_everybody_for_ever(self):
        self.begin(disk_hangs=True)
        self.wait(FLUSH_SECONDS + 0.1)
        self.assertEqual(self.parts.deeds, ["hold", "feeds", "flush", "release"])
        self.assertIn("a disk or a driver", self.upgrade.document()["error"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_program_that_cannot_be_executed_leaves_everything_as_it_was(self):
        self.begin(fault=OSError(2, "No such file or directory"))
        self.assertEqual(self.parts.deeds[-1], "release")
        self.assertIn("No such file", self.upgrade.document()["error"])
        self.assertEqual(self.upgrade.document()["phase"], "idle")

    def test_the_end_of_the_service_ends_it(self):
        self.begin(calm_at=1e9)
        self.wait(0.5)
        self.upgrade.cancel()
        self.assertEqual(self.parts.deeds[-1], "release")
        self.assertEqual(self.upgrade.document()["error"], "")
        self.wait(PATIENCE)
        self.assertEqual(self.became, [])
        self.assertEqual(self.clock.getDelayedCalls(), [])


class AdoptingTests(SynchronousTestCase):
    def test_whatever_the_endpoint_asks_for_it_gets_the_socket_there_is(self):
        class Reactor:
            def __init__(self):
                self.adopted = []

            def adoptStreamPort(self, descriptor, family, factory):
                self.adopted.append((descriptor, family, factory))
                return "port"

        for text in ("127.0.0.1:8080", ":0", "tcp:80", "unix:/nowhere/x.sock", "systemd:domain=INET:index=0"):
            reactor = Reactor()
            with socket.socket() as there:
                there.bind(("127.0.0.1", 0))
                there.listen()
                descriptor = os.dup(there.fileno())
            listening = coordinator.Adopting(reactor, descriptor).endpoint(ListenAddress(text)).listen("factory")
            self.assertEqual(self.successResultOf(listening), "port")
            self.assertEqual(reactor.adopted, [(descriptor, socket.AF_INET, "factory")])
            self.assertRaises(OSError, os.fstat, descriptor)
