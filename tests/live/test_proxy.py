"""The proxy over real loopback sockets: who leaves is noticed, who is slow slows the other, TLS in front."""

from __future__ import annotations

import socket
from pathlib import Path

from attrs import evolve
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from llamaswap.config.endpoints import Endpoint
from llamaswap.errors import ClientGone, UpstreamUnreachable
from llamaswap.proxy.exchange import RequestHead
from llamaswap.proxy.fastpath.direct_connect import LoopbackConnection
from llamaswap.proxy.fastpath.direct_write import unsent_bytes
from llamaswap.proxy.forward import RequestForwarder
from llamaswap.proxy.pool import Pool
from llamaswap.proxy.server_factory import ProxyServerFactory
from llamaswap.proxy.task import Task
from llamaswap.proxy.twisted_web_adapter import SiteContent, exchange_from_request
from llamaswap.proxy.upstream import NO_TIMEOUTS, UpstreamTarget
from llamaswap.wire.headers import to_local
from tests.live.product import within

PROMPT = 0.1  # seconds
POST = b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi"
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n"


def is_free(port):
    with socket.socket() as bound:
        try:
            bound.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class Side(Protocol):
    """An end of a connection that keeps what it got and says when something happens."""

    def __init__(self):
        self.got, self.total, self.keep = b"", 0, True
        self.made, self.lost = Deferred(), Deferred()
        self._wanted = []

    def connectionMade(self):
        self.made.callback(self)

    def dataReceived(self, data):
        self.total += len(data)
        if self.keep:
            self.got += data
        for item in list(self._wanted):
            if item[0] in self.got:
                self._wanted.remove(item)
                item[1].callback(self)

    def until(self, words):
        result = Deferred()
        if words in self.got:
            result.callback(self)
        else:
            self._wanted.append((words, result))
        return result

    def connectionLost(self, reason):
        self.lost.callback(reason.type)  # the class: a Failure would fail the waiter


class _World:
    timeout = 20

    async def asyncSetUp(self):
        self.sides, self.arrivals = [], []
        self.errors = []
        self.upstream_port = await self.listen(Factory.forProtocol(self.new_side))
        self.pool = Pool(reactor)
        self.forwarder = RequestForwarder(reactor, self.pool)
        self.target = UpstreamTarget(
            Endpoint("http", "127.0.0.1", self.upstream_port.getHost().port), evolve(NO_TIMEOUTS, connect=5), name="owl"
        )
        self.port = await self.listen(self.entrance())
        self.clients = []

    def new_side(self):
        side = Side()
        self.sides.append(side)
        if self.arrivals:
            self.arrivals.pop(0).callback(side)
        return side

    async def listen(self, factory):
        return await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(factory)

    async def asyncTearDown(self):
        self.pool.close()
        for side in self.clients + self.sides:
            if side.transport is not None and not side.lost.called:
                side.transport.abortConnection()
                await side.lost
        await self.port.stopListening()
        await self.upstream_port.stopListening()
        await deferLater(reactor, 0.02, lambda: None)  # the forwarder's own connections are lost a turn later

    def run_live(self, scenario):
        async def whole():
            await self.asyncSetUp()
            try:
                await scenario()
            finally:
                await self.asyncTearDown()

        return Deferred.fromCoroutine(whole())

    def handle(self, exchange):
        received = exchange.head
        head = RequestHead(
            received.method, received.target, to_local(received.headers, socket_address=""), received.version
        )
        carried = self.forwarder.forward(exchange, self.target, head=head, body=exchange.body)

        async def through():
            try:
                await carried
            except Exception as error:
                self.errors.append(error)
                if not exchange.gone:
                    exchange.sink.abort()

        return Task(through())

    def server(self):
        result = Deferred()
        self.arrivals.append(result)
        return result

    async def client(self):
        side = await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", self.port.getHost().port), Side())
        self.clients.append(side)
        return side

    async def began(self, request=POST, until=b"hi"):
        arriving = self.server()
        client = await self.client()
        client.transport.write(request)
        server = await arriving
        await server.until(until)
        return client, server

    # -- behaviour of both entrances

    def test_client_leaving_before_the_answer_closes_the_server_promptly(self):
        async def scenario():
            for closed in within(PROMPT):
                client, server = await self.began()
                left = reactor.seconds()
                client.transport.abortConnection()
                await server.lost
                closed(reactor.seconds() - left)
                self.assertIsInstance(self.errors.pop(), ClientGone)

        return self.run_live(scenario)

    def test_server_of_this_machine_is_connected_to_at_once(self):
        async def scenario():
            arriving = self.server()
            connection = self.pool.connect_now(self.target)
            self.assertIsInstance(connection.wire, LoopbackConnection)
            server = await arriving
            await server.made
            self.assertEqual(connection.wire.getPeer().port, self.target.endpoint.port)
            self.assertEqual(connection.wire.getHost().port, server.transport.getPeer().port)
            connection.abort()
            await server.lost
            self.assertTrue(connection.closed)

        return self.run_live(scenario)

    def test_connection_that_is_not_there_at_once_takes_the_usual_way(self):
        async def scenario():
            with socket.socket() as bound:  # not listening
                bound.bind(("127.0.0.1", 0))
                for host in ("127.0.0.1", "localhost"):
                    target = evolve(self.target, endpoint=Endpoint("http", host, bound.getsockname()[1]))
                    self.assertIsNone(self.pool.connect_now(target))
                    try:
                        await self.pool.connect(target)
                    except UpstreamUnreachable as error:
                        self.assertEqual(error.cause, "connection refused")
                    else:
                        self.fail("connected to a port that does not listen")
            self.assertIsNone(self.pool.connect_now(evolve(self.target, endpoint=Endpoint("http", "::1", 9))))
            self.assertIsNone(self.pool.connect_now(evolve(self.target, endpoint=Endpoint("https", "127.0.0.1", 9))))

        return self.run_live(scenario)

    def test_client_leaving_mid_stream_closes_the_server_promptly(self):
        async def scenario():
            for closed in within(PROMPT):
                client, server = await self.began()
                server.transport.write(STREAM)
                await client.until(b"5\r\nfirst\r\n")
                left = reactor.seconds()
                client.transport.loseConnection()
                await server.lost
                closed(reactor.seconds() - left)

        return self.run_live(scenario)

    def test_slow_client_slows_the_server(self):
        async def scenario():
            client, server = await self.began()
            client.transport.pauseProducing()
            server.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 200000000\r\n\r\n")
            sent = 0
            for _ in range(100):
                if unsent_bytes(server.transport) > 4_000_000:
                    break
                server.transport.write(b"x" * 2_000_000)
                sent += 2_000_000
                await deferLater(reactor, 0.005, lambda: None)
            self.assertLess(sent, 60_000_000)
            client.transport.abortConnection()
            await server.lost

        return self.run_live(scenario)

    def test_truncated_answer_is_seen_as_one(self):
        async def scenario():
            client, server = await self.began()
            server.transport.write(STREAM)
            await client.until(b"first")
            server.transport.loseConnection()
            await client.lost
            self.assertNotIn(b"\r\n0\r\n", client.got)

        return self.run_live(scenario)

    def test_closed_port_is_unreachable(self):
        async def scenario():
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.target = UpstreamTarget(Endpoint("http", "localhost", free.getsockname()[1]), name="owl")
                client = await self.client()
                client.transport.write(POST)
                await client.lost
            self.assertIsInstance(self.errors[0], UpstreamUnreachable)
            self.assertFalse(self.errors[0].sent)

        return self.run_live(scenario)

    def test_tunnel_carries_much_both_ways(self):
        async def scenario():
            ask = b"GET /v1/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
            client, server = await self.began(ask, b"\r\n\r\n")
            server.transport.write(b"HTTP/1.1 101 Yes\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            await client.until(b"\r\n\r\n")
            client.keep = server.keep = False
            client.got = server.got = b""
            client.transport.write(b"c" * 3_000_000)
            server.transport.write(b"s" * 3_000_000)
            while client.total < 3_000_000 or server.total < 3_000_000:
                await deferLater(reactor, 0.01, lambda: None)
            server.transport.loseConnection()
            await client.lost

        return self.run_live(scenario)


class DirectEntranceTests(_World, TestCase):
    """Through the listening protocol."""

    def entrance(self):
        return ProxyServerFactory(lambda head: True, self.handle, Site(Resource(), reactor=reactor), reactor)

    def test_slow_server_slows_the_upload_and_leaving_is_noticed_all_the_same(self):
        async def scenario():
            head = b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\nhi"
            client, server = await self.began(head)
            server.transport.pauseProducing()
            sent = 0
            for _ in range(100):
                if unsent_bytes(client.transport) > 4_000_000:
                    break
                client.transport.write(b"x" * 2_000_000)
                sent += 2_000_000
                await deferLater(reactor, 0.005, lambda: None)
            self.assertLess(sent, 60_000_000)
            client.transport.abortConnection()
            await client.lost
            waited = 0.0
            while not self.errors and waited < 5:
                await deferLater(reactor, 0.05, lambda: None)
                waited += 0.05
            self.assertIsInstance(self.errors[0], ClientGone)

        return self.run_live(scenario)

    def test_malformed_address_is_not_resolved_by_the_reactor(self):
        """A resolver would take 127.0.0.256 for a name, and block while it asks for it."""

        async def scenario():
            target = evolve(self.target, endpoint=Endpoint("http", "127.0.0.256", self.target.endpoint.port))
            self.assertIsNone(self.pool.connect_now(target))

        return self.run_live(scenario)

    def test_port_that_does_not_listen_is_not_connected_to_itself(self):
        """The system tries the ports of its range in turn for our side, and so, in time, the one of the other side."""

        async def scenario():
            first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
            port = next(filter(is_free, range(first + 10_000, last, 2)))  # connect() prefers every second port
            target = evolve(self.target, endpoint=Endpoint("http", "127.0.0.1", port))
            for _ in range(2 * (last - first)):
                connection = self.pool.connect_now(target)
                if connection is not None:
                    connection.abort()
                    self.fail("our own socket is taken for the server's")

        return self.run_live(scenario)


class _Page(Resource):
    isLeaf = True

    def __init__(self, handle):
        super().__init__()
        self._handle = handle

    def render(self, request):
        self._handle(exchange_from_request(request, reactor))
        return NOT_DONE_YET


def _site(handle):
    site = Site(_Page(handle), reactor=reactor, parsePOSTFormSubmission=False)
    site.getContentFile = lambda length: SiteContent(reactor, length)
    return site


class KleinBehindFrontLive(_World, TestCase):
    """Through a request of twisted.web."""

    def entrance(self):
        return ProxyServerFactory(lambda head: False, self.handle, _site(self.handle), reactor)


class EncryptedEntranceTests(_World, TestCase):
    """Through the listening protocol, over TLS."""

    def entrance(self):
        return ProxyServerFactory(
            lambda head: head.path.startswith(b"/v1/"),
            self.handle,
            _site(self.handle),
            reactor,
        )

    async def listen(self, factory):
        if not isinstance(factory, ProxyServerFactory):
            return await super().listen(factory)
        from twisted.internet.endpoints import SSL4ServerEndpoint
        from twisted.internet.ssl import KeyPair

        own = KeyPair.generate(size=2048).selfSignedCert(1, CN="localhost")
        return await SSL4ServerEndpoint(reactor, 0, own.options(), interface="127.0.0.1").listen(factory)

    async def client(self):
        from twisted.internet.endpoints import SSL4ClientEndpoint
        from twisted.internet.ssl import CertificateOptions

        endpoint = SSL4ClientEndpoint(reactor, "127.0.0.1", self.port.getHost().port, CertificateOptions(verify=False))
        side = await connectProtocol(endpoint, Side())
        self.clients.append(side)
        return side

    def test_both_kinds_of_request_share_the_connection(self):
        async def scenario():
            client, server = await self.began()
            server.transport.write(b"HTTP/1.1 200 OK\r\nServer: uvicorn\r\nContent-Length: 3\r\n\r\none")
            await client.until(b"one")
            client.transport.write(b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n")
            await server.until(b"GET /page")
            server.transport.write(b"HTTP/1.1 200 OK\r\nServer: uvicorn\r\nContent-Length: 3\r\n\r\ntwo")
            await client.until(b"two")

        return self.run_live(scenario)

    def test_encrypted_server_that_is_not_trusted_is_unreachable(self):
        async def scenario():
            self.target = UpstreamTarget(
                Endpoint("https", "127.0.0.1", self.port.getHost().port),
                evolve(NO_TIMEOUTS, tls_handshake=5),
                name="den",
            )
            client = await self.client()
            client.transport.write(POST)
            await client.lost
            self.assertIsInstance(self.errors[0], UpstreamUnreachable)
            self.assertFalse(self.errors[0].sent)
            self.flushLoggedErrors()  # Twisted logs the refused certificate itself

        return self.run_live(scenario)
