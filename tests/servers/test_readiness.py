"""Asking whether a server is ready: how often, what counts, what goes over the wire."""

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError, ConnectionDone, TimeoutError
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config.endpoints import Endpoint
from llamaswap.config.steps import StepRequest
from llamaswap.http_client import BODY_LIMIT, HttpResponse
from llamaswap.servers.port_ownership import PortOwner, Verdict, is_local
from llamaswap.servers.readiness import (
    Readiness,
    pause_after,
)
from llamaswap.servers.server_request import SocketRequest
from tests.servers.doubles import REFUSED, Asked

HERE = Endpoint("http", "127.0.0.1", 5800)
OURS = Verdict(PortOwner.OURS)


class Asking:
    def __init__(self, answer, verdict=OURS, path="/health"):
        self.work = (0, 0)
        self.clock, self.asked, self.passed, self.failed = Clock(), Asked(answer), [], []
        self.readiness = Readiness(
            clock=self.clock,
            send=self.asked,
            endpoint=HERE,
            path=path,
            timeout=15.0,
            longest=150.0,
            work=lambda: self.work,
            find_owner=lambda: verdict,
            passed=lambda: self.passed.append(self.clock.seconds()),
            failed=self.failed.append,
            name="kiwi",
        )
        self.readiness.start()

    def wait(self, seconds):
        for _ in range(round(seconds / 0.005)):
            self.clock.advance(0.005)


class RhythmTests(SynchronousTestCase):
    def test_probes_are_frequent_at_first_and_never_more_than_a_tenth_apart(self):
        self.assertEqual([pause_after(at) for at in (0, 0.4, 0.6, 1.9)], [0.01, 0.01, 0.025, 0.025])
        self.assertTrue(all(pause_after(at) <= pause_after(at + 1) <= 0.1 for at in range(200)))
        self.assertEqual(pause_after(100), 0.1)

    def test_output_prompts_a_probe_but_a_flood_does_not_prompt_many(self):
        asking = Asking(503)
        asking.wait(3.0)
        before = len(asking.asked.questions)
        for _ in range(100):
            asking.readiness.hint()
            asking.clock.advance(0.0001)
        self.assertLessEqual(len(asking.asked.questions) - before, 1)
        asking.wait(0.1)
        asking.readiness.hint()
        asking.clock.advance(0.05)
        self.assertGreaterEqual(len(asking.asked.questions) - before, 2)

    def test_line_that_announces_the_server_prompts_a_probe_at_once(self):
        asking = Asking(503)
        asking.wait(0.1)
        before = len(asking.asked.questions)
        asking.clock.advance(0.002)
        asking.readiness.hint(b"INFO: Application startup complete.\n")
        asking.clock.advance(0)
        self.assertEqual(len(asking.asked.questions) - before, 1)
        for _ in range(20):  # not for each of a flood of them
            asking.readiness.hint(b"already listening")
            asking.clock.advance(0.0001)
        self.assertLessEqual(len(asking.asked.questions) - before, 2)

    def test_output_during_a_probe_prompts_the_next_one(self):
        asking = Asking(None)
        asking.wait(0.3)
        [pending] = asking.asked.pending
        asking.readiness.hint(b"server is listening")
        asking.asked.answer = 200
        pending.callback(503)
        asking.clock.advance(0)
        self.assertEqual(len(asking.asked.questions), 2)

    def test_probe_limit_grows_with_its_timeouts_to_five_seconds(self):
        asking = Asking(TimeoutError("slow"))
        asking.wait(1.0)
        limits = [limit for _, _, limit in asking.asked.questions if limit < 15.0]
        self.assertEqual(limits[:5], [1.0, 2.0, 4.0, 5.0, 5.0])

    def test_cancelled_check_leaves_no_probe_and_no_timer(self):
        for answer in (200, 503, None):
            asking = Asking(answer)
            asking.wait(1.0)
            asking.readiness.cancel()
            self.assertEqual(asking.clock.getDelayedCalls(), [])

    def test_silent_probe_is_cancelled_at_the_timeout(self):
        asking = Asking(None)
        asking.wait(15.1)
        self.assertEqual(len(asking.failed), 1)
        self.assertTrue(asking.asked.pending[0].called)


class SlowServerTests(SynchronousTestCase):
    def slow(self, seconds):
        """A check whose server takes so many seconds to answer each request."""
        asking = Asking(503)
        clock, self.open, self.most_open = asking.clock, 0, 0

        def send(endpoint, path, limit):
            self.open += 1
            self.most_open = max(self.open, self.most_open)
            late = limit < seconds
            calls = []

            def end(fire, result):
                self.open -= 1
                fire(result)

            response = Deferred(lambda _: (calls[0].cancel(), end(lambda _: None, None)))
            fire, result = (response.errback, TimeoutError("slow")) if late else (response.callback, 200)
            calls.append(clock.callLater(min(limit, seconds), end, fire, result))
            return response

        asking.readiness.send = send
        return asking

    def test_health_check_that_takes_six_seconds_for_each_answer_is_waited_for(self):
        asking = self.slow(6.0)
        asking.wait(7.2)
        self.assertEqual(len(asking.passed), 1)
        self.assertEqual((self.open, self.most_open, asking.clock.getDelayedCalls()), (0, 2, []))

    def test_health_check_slower_than_the_timeout_fails_the_start(self):
        asking = self.slow(20.0)
        asking.wait(15.1)
        self.assertIn("health check timed out after 15s: GET /health got no answer", asking.failed[0])
        self.assertEqual((self.open, asking.clock.getDelayedCalls()), (0, []))

    def test_late_answer_of_a_loading_server_is_not_readiness(self):
        asking = Asking(None)
        asking.wait(0.1)
        [pending] = asking.asked.pending
        pending.errback(TimeoutError("slow"))
        patient = asking.asked.pending[1]
        patient.callback(503)
        asking.wait(1.0)
        self.assertEqual((asking.passed, asking.failed), ([], []))
        asking.asked.answer = 200
        asking.asked.pending[2].callback(503)
        asking.wait(1.0)
        self.assertEqual(len(asking.passed), 1)


class StoppedProxyTests(SynchronousTestCase):
    def test_proxy_that_was_stopped_for_25_seconds_does_not_fail_the_start(self):
        asking = Asking(503)
        asking.wait(2.0)
        asking.clock.advance(25.0)
        asking.wait(5.0)
        self.assertEqual(asking.failed, [])
        asking.asked.answer = 200
        asking.wait(0.2)
        self.assertEqual(len(asking.passed), 1)

    def test_timeout_counts_only_the_time_in_which_the_proxy_ran(self):
        asking = Asking(503)
        asking.wait(2.0)
        asking.clock.advance(25.0)
        asking.wait(10.9)
        self.assertEqual(asking.failed, [])
        asking.wait(2.2)
        self.assertEqual(len(asking.failed), 1)


class WordsTests(SynchronousTestCase):
    def test_lasting_404_names_the_setting_to_change(self):
        asking = Asking(404)
        asking.wait(15.1)
        self.assertEqual(
            asking.failed,
            [
                "health check timed out after 15s: GET /health answered 404; "
                "set checkEndpoint to a path that answers 200 once the server is ready"
            ],
        )

    def test_error_says_that_the_port_has_no_listener(self):
        asking = Asking(REFUSED)
        asking.wait(15.1)
        self.assertIn("nothing listens on 127.0.0.1:5800", asking.failed[0])

    def test_hosts_of_this_machine_are_local(self):
        self.assertTrue(all(is_local(host) for host in ("localhost", "127.0.0.1", "127.3.2.1", "::1", "0.0.0.0")))
        self.assertFalse(any(is_local(host) for host in ("10.0.0.1", "gpu.example", "12.7.0.0")))


class BelieveTests(SynchronousTestCase):
    def test_unknown_listener_is_accepted_and_foreign_one_never(self):
        unknown = Asking(200, Verdict(PortOwner.UNKNOWN))
        foreign = Asking(200, Verdict(PortOwner.FOREIGN, "pid 7 (other)"))
        unknown.wait(0.1)
        foreign.wait(14.9)
        self.assertEqual((len(unknown.passed), foreign.passed), (1, []))
        foreign.wait(0.2)
        self.assertIn("port 5800 is answered by pid 7 (other)", foreign.failed[0])


class WireTests(SynchronousTestCase):
    def ask(self, endpoint=HERE, path="/health", limit=1.0):
        reactor = MemoryReactorClock()
        asked = SocketRequest(reactor)(endpoint, path, limit)
        return reactor, asked

    def connect(self, reactor, number=-1):
        factory = reactor.tcpClients[number][2]
        protocol = factory.buildProtocol(IPv4Address("TCP", "127.0.0.1", 5800))
        transport = StringTransport()
        protocol.makeConnection(transport)
        return protocol, transport

    def test_probe_is_a_plain_get_that_closes_its_connection(self):
        reactor, asked = self.ask(Endpoint("http", "localhost", 5800, "/base", "k=v"), "/health?deep=1")
        protocol, transport = self.connect(reactor)
        head = transport.value().decode()
        self.assertTrue(head.startswith("GET /base/health?deep=1&k=v HTTP/1.1\r\nHost: localhost:5800\r\n"))
        self.assertIn("\r\nConnection: close\r\n", head)
        self.assertTrue(head.endswith("\r\n\r\n"))
        protocol.dataReceived(b"HTTP/1.1 20")
        self.assertNoResult(asked)
        protocol.dataReceived(b"4 No Content\r\n\r\n")
        self.assertEqual(self.successResultOf(asked), 204)
        protocol.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(reactor.getDelayedCalls(), [])

    def test_step_request_has_its_method_and_body(self):
        reactor = MemoryReactorClock()
        SocketRequest(reactor)(HERE, "/sleep?level=1", 1.0, StepRequest("POST", "/sleep?level=1"))
        head = self.connect(reactor)[1].value().decode()
        self.assertTrue(head.startswith("POST /sleep?level=1 HTTP/1.1\r\n"))
        self.assertIn("\r\nContent-Length: 0\r\n", head)
        SocketRequest(reactor)(HERE, "/rpc", 1.0, StepRequest("POST", "/rpc", '{"m": "é"}'))
        head = self.connect(reactor)[1].value().decode()
        self.assertIn("\r\nContent-Type: application/json\r\nContent-Length: 11\r\n", head)
        self.assertTrue(head.endswith('\r\n\r\n{"m": "é"}'))

    def get(self, *pieces):
        """The request's head, and the result once these pieces came and the connection was closed."""
        reactor = MemoryReactorClock()
        asked = SocketRequest(reactor).get(HERE, "/props", 1.0, {"Authorization": "Bearer k"})
        protocol, transport = self.connect(reactor)
        transport.abortConnection = transport.loseConnection
        for piece in pieces:
            protocol.dataReceived(piece)
        protocol.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(reactor.getDelayedCalls(), [])
        return transport.value().decode(), asked

    def test_whole_response_is_read_however_it_is_framed(self):
        for pieces in (
            (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe", b"llo"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n", b"0\r\n\r\n"),
            (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 200 OK\r\n\r\nhel", b"lo"),
        ):
            head, asked = self.get(*pieces)
            self.assertEqual(self.successResultOf(asked), HttpResponse(200, b"hello"))
            self.assertTrue(head.startswith("GET /props HTTP/1.1\r\n"))
            self.assertIn("\r\nAuthorization: Bearer k\r\n", head)

    def test_response_that_is_incomplete_or_too_long_is_an_error(self):
        for pieces in (
            (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe",),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n",),
            (b"HTTP/1.1 200 OK\r\n\r\n", b"x" * (BODY_LIMIT + 1)),
            (b"HTTP/1.1 banana\r\n",),
            (),
        ):
            self.failureResultOf(self.get(*pieces)[1], ConnectError)

    def test_interim_responses_are_skipped(self):
        reactor, asked = self.ask()
        protocol, _ = self.connect(reactor)
        protocol.dataReceived(
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\nX: y\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"
        )
        self.assertEqual(self.successResultOf(asked), 200)
        protocol.connectionLost(Failure(ConnectionDone()))

    def test_response_that_is_not_http_is_an_error(self):
        for data in (b"SSH-2.0-x\r\n", b"x" * 5000, b"HTTP/1.1 banana\r\n"):
            reactor, asked = self.ask()
            protocol, transport = self.connect(reactor)
            transport.abortConnection = lambda: None
            protocol.dataReceived(data)
            self.failureResultOf(asked, ConnectError)

    def test_connection_closed_without_a_response_is_an_error(self):
        reactor, asked = self.ask()
        protocol, _ = self.connect(reactor)
        protocol.connectionLost(Failure(ConnectionDone()))
        self.failureResultOf(asked, ConnectError)

    def test_silent_connection_is_aborted_at_the_limit(self):
        reactor, asked = self.ask(limit=1.0)
        _, transport = self.connect(reactor)
        aborted = []
        transport.abortConnection = lambda: aborted.append(True)
        reactor.advance(1.1)
        self.failureResultOf(asked, TimeoutError)
        self.assertEqual(aborted, [True])

    def test_localhost_is_tried_in_both_address_families(self):
        reactor, asked = self.ask(Endpoint("http", "localhost", 5800))
        reactor.tcpClients[0][2].clientConnectionFailed(None, Failure(REFUSED))
        self.assertEqual([client[0] for client in reactor.tcpClients], ["127.0.0.1", "::1"])
        protocol, _ = self.connect(reactor)
        protocol.dataReceived(b"HTTP/1.1 200 OK\r\n\r\n")
        self.assertEqual(self.successResultOf(asked), 200)
        protocol.connectionLost(Failure(ConnectionDone()))

    def test_probe_without_a_path_only_connects(self):
        reactor, asked = self.ask(path=None)
        _, transport = self.connect(reactor)
        self.assertEqual(self.successResultOf(asked), 0)
        self.assertEqual(transport.value(), b"")
        self.assertTrue(transport.disconnecting)
