"""The plain poll loop on the reactor it was written for."""

import itertools
import socket
import subprocess
import sys
from unittest.mock import patch

from twisted.internet.tcp import Connection
from twisted.python import log
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.proxy.fastpath import epoll
from llamaswap.proxy.fastpath.epoll import ProxyReactor, install


class Received:
    def __init__(self):
        self.data, self.reasons = b"", []

    def dataReceived(self, data):
        self.data += data
        if data == b"raise":
            raise RuntimeError("a protocol's fault")

    def connectionLost(self, reason):
        self.reasons.append(reason.type.__name__)


class PollTests(SynchronousTestCase):
    if not sys.platform.startswith("linux"):
        skip = "epoll is Linux's"

    def setUp(self):
        self.reactor = ProxyReactor()
        self.addCleanup(self.reactor._poller.close)
        near, self.far = socket.socketpair()
        self.addCleanup(self.far.close)
        self.received = Received()
        self.wire = Connection(near, self.received, self.reactor)
        self.wire.connected = 1
        self.wire.startReading()

    def test_bytes_are_delivered_and_sent(self):
        self.far.send(b"hello")
        self.wire.write(b"back")
        self.reactor.doIteration(0.5)
        self.reactor.doIteration(0)
        self.assertEqual((self.received.data, self.far.recv(10)), (b"hello", b"back"))

    def test_end_of_a_connection_is_reported(self):
        self.far.close()
        self.reactor.doIteration(0.5)
        self.assertEqual(len(self.received.reasons), 1)

    def test_fault_of_a_protocol_costs_its_own_connection(self):
        self.far.send(b"raise")
        self.reactor.doIteration(0.5)
        self.assertEqual(len(self.received.reasons), 1)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_quiet_poll_returns(self):
        self.reactor.doIteration(0)
        self.assertEqual(self.received.data, b"")

    def test_calls_run_when_they_are_due(self):
        ran = []
        self.reactor.seconds = lambda: 100.0 + len(ran)
        self.reactor.callLater(0.5, ran.append, "later")
        self.reactor.callLater(0, ran.append, "now")
        self.reactor.callFromThread(ran.append, "from a thread")
        self.reactor.runUntilCurrent()
        self.assertEqual(ran, ["from a thread", "now", "later"])
        self.reactor.runUntilCurrent()  # nothing is left
        self.assertEqual((len(ran), self.reactor.getDelayedCalls()), (3, []))

    def test_cancelled_calls_are_dropped_though_none_is_due(self):
        self.reactor.callLater(1000, self.fail)
        calls = [self.reactor.callLater(1000, self.fail) for _ in range(200)]
        self.reactor.runUntilCurrent()
        for call in calls:
            call.cancel()
        self.reactor.runUntilCurrent()
        self.assertEqual(len(self.reactor._pendingTimedCalls), 1)

    def test_a_fault_is_logged_with_the_name_of_its_connection(self):
        logged = []
        log.addObserver(logged.append)
        self.addCleanup(log.removeObserver, logged.append)
        self.far.send(b"raise")
        self.reactor.doIteration(0.5)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual([event["system"] for event in logged if event.get("isError")], [self.wire.logPrefix()])

    def test_a_fault_of_the_loop_itself_is_logged_and_the_loop_goes_on(self):
        faults, poll = [RuntimeError("a fault of the loop")], self.reactor.doPoll

        def broken(timeout):
            if faults:
                raise faults.pop()
            poll(timeout)

        self.reactor.callLater(0.01, self.reactor.stop)
        with patch.object(self.reactor, "doPoll", broken):
            self.reactor.run(installSignalHandlers=False)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_a_reactor_that_was_installed_before_stays(self):
        before = object()
        with patch.dict(sys.modules, {"twisted.internet.reactor": before}):
            install()
            self.assertIs(sys.modules["twisted.internet.reactor"], before)


class PollOrderTests(SynchronousTestCase):
    """Streams under way do not wait behind a crowd of clients."""

    if not sys.platform.startswith("linux"):
        skip = "epoll is Linux's"

    def setUp(self):
        class FromServer(Connection):
            """Stands for a connection that we made."""

        self.patch(epoll, "SERVERS", (FromServer,))
        self.server_kind = FromServer
        self.reactor = ProxyReactor()
        self.addCleanup(self.reactor._poller.close)
        self.reactor.seconds = lambda: next(self.time)
        self.time = itertools.repeat(0.0)
        self.heard = []

    def connection(self, name, kind=Connection):
        near, far = socket.socketpair()
        self.addCleanup(near.close)
        self.addCleanup(far.close)

        class Told(Received):
            def dataReceived(told, data):
                self.heard.append(name)
                super().dataReceived(data)

        wire = kind(near, Told(), self.reactor)
        wire.connected = 1
        wire.startReading()
        return far

    def test_bytes_of_servers_are_read_first(self):
        clients = [self.connection(f"client {number}") for number in range(3)]
        server = self.connection("server", self.server_kind)
        for far in (*clients, server):
            far.send(b"x")
        self.reactor.doIteration(0.5)
        self.assertEqual(self.heard, ["server", "client 0", "client 1", "client 2"])

    def test_long_round_is_cut_and_each_connection_is_served_before_one_is_served_twice(self):
        self.time = itertools.count()
        clients = [self.connection(str(number)) for number in range(4)]
        server = self.connection("server", self.server_kind)
        for far in clients:
            far.send(b"x")
        for _ in range(4):
            server.send(b"y")
            clients[0].send(b"more")  # one that always has something to say
            self.reactor.doIteration(0.5)
        self.assertEqual([name for name in self.heard if name == "server"], ["server"] * 4)
        self.assertEqual([name for name in self.heard if name != "server"], ["0", "1", "2", "3"])

    def test_end_of_a_server_and_fault_of_a_protocol_are_reported(self):
        fault, end = self.connection("fault", self.server_kind), self.connection("end", self.server_kind)
        fault.send(b"raise")
        end.close()
        self.reactor.doIteration(0.5)
        self.reactor.doIteration(0)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual([wire for wire in self.reactor.getReaders() if isinstance(wire, Connection)], [])


class InstallTests(SynchronousTestCase):
    if not sys.platform.startswith("linux"):
        skip = "epoll is Linux's"

    def reactor_of(self, *words):
        """The name of the reactor's class under `twist WORDS llamaswap`."""
        code = (
            "import sys; from twisted.application.twist._options import TwistOptions\n"
            "options = TwistOptions(); options.parseOptions(sys.argv[1:] + ['llamaswap'])\n"
            "print(type(options['reactor']).__name__)"
        )
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout.strip()

    def test_twist_runs_the_service_on_it_unless_another_is_named(self):
        self.assertEqual(self.reactor_of(), "ProxyReactor")
        self.assertEqual(self.reactor_of("--reactor=poll"), "PollReactor")
