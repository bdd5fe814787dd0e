"""Wires in memory: a client's, a server's, and a world with both and the proxy between them."""

from __future__ import annotations

from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from llamaswap.config.endpoints import Endpoint
from llamaswap.proxy.exchange import RequestHead
from llamaswap.proxy.forward import RequestForwarder
from llamaswap.proxy.pool import Pool
from llamaswap.proxy.server_factory import ProxyServerFactory
from llamaswap.proxy.task import Task
from llamaswap.proxy.twisted_web_adapter import SiteContent, exchange_from_request
from llamaswap.proxy.upstream import NO_TIMEOUTS, UpstreamTarget
from llamaswap.wire.headers import to_local

POST = b"POST /v1/chat/completions?a=%2F HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
GET = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
KEPT = b"HTTP/1.1 200 OK\r\nServer: uvicorn\r\nContent-Length: 2\r\n\r\nok"
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class Wire(StringTransport):
    """A transport that remembers how it was treated. Closing is reported by `settle` or `lose`, not by itself."""

    def __init__(self):
        super().__init__()
        self.aborted = False
        self.half_closed = False
        self.side = None

    def abortConnection(self):
        self.aborted = True
        self.disconnecting = True

    def loseWriteConnection(self):
        self.half_closed = True

    def unregisterProducer(self):
        self.producer = None  # as real transports do, for every caller

    def setTcpNoDelay(self, enabled):
        self.no_delay = enabled

    def setTcpKeepAlive(self, enabled):
        self.keep_alive = enabled

    @property
    def closing(self):
        return self.disconnecting

    @property
    def paused(self):
        return self.producerState == "paused"

    def fill(self):
        """Act as a transport whose buffer is full."""
        if self.producer is not None:
            self.producer.pauseProducing()

    def drain(self):
        if self.producer is not None:
            self.producer.resumeProducing()

    def give(self, data):
        """The far end sent this."""
        self.side.dataReceived(data)

    def lose(self, clean=True):
        """The connection is lost."""
        producer, self.producer = self.producer, None
        if producer is not None:
            producer.stopProducing()
        self.side.connectionLost(Failure(ConnectionDone() if clean else ConnectionLost()))

    def took(self):
        """What was written since the last look."""
        data = self.value()
        self.clear()
        return data


class _Page(Resource):
    isLeaf = True

    def __init__(self, handler, clock):
        super().__init__()
        self._handler, self._clock = handler, clock

    def render(self, request):
        self._handler(exchange_from_request(request, self._clock))
        return NOT_DONE_YET

    render_GET = render_POST = render


class Notes:
    """An observer that keeps what it heard."""

    def __init__(self):
        self.heads, self.body = [], b""

    def response_head(self, status, headers):
        self.heads.append((status, headers.items))

    def response_data(self, data):
        self.body += data


class World:
    """A client, an entrance, the proxy and servers. `entrance` is "direct" or "klein"."""

    def __init__(
        self,
        entrance="direct",
        timeouts=None,
        host="127.0.0.1",
        decline=(),
        reader=None,
        **options,
    ):
        self.clock = MemoryReactorClock()
        self.pool = Pool(self.clock)
        self.forwarder = RequestForwarder(self.clock, self.pool)
        self.upstream = UpstreamTarget(Endpoint("http", host, 9000), timeouts or NO_TIMEOUTS, name="owl")
        self.exchanges, self.outcomes, self.errors, self.results = [], [], [], []
        self.notes = Notes()
        self.decline = decline
        self.reader = reader
        self.write_final = b""
        self.handler = self.forward
        self.site_calls = []
        self.factory = None
        if entrance == "direct":
            self.factory = ProxyServerFactory(
                lambda head: head.path.startswith(b"/v1/"), self._handle, self.site(), self.clock, **options
            )
            self._build = self.factory.buildProtocol
        else:
            page = _Page(self._handle, self.clock)
            factory = ProxyServerFactory(lambda head: False, self._handle, self.site_of(page), self.clock)
            self._build = factory.buildProtocol

    def site(self):
        world = self

        class Plain(Resource):
            isLeaf = True

            def render(self, request):
                world.site_calls.append((request.uri, request.content.read()))
                if request.uri.startswith(b"/wait"):
                    world.waiting = request
                    return NOT_DONE_YET
                if request.uri.startswith(b"/through"):
                    world.forward(exchange_from_request(request, world.clock))
                    return NOT_DONE_YET
                request.setHeader(b"Content-Type", b"text/plain")
                return b"site:" + request.uri

            render_GET = render_POST = render

        return self.site_of(Plain())

    def site_of(self, page):
        site = Site(page, reactor=self.clock, parsePOSTFormSubmission=False)
        site.getContentFile = lambda length: SiteContent(self.clock, length)
        return site

    def _handle(self, exchange):
        self.exchanges.append(exchange)
        return self.handler(exchange)

    def forward(self, exchange):
        head = exchange.head
        result = self.forwarder.forward(
            exchange,
            self.upstream,
            head=RequestHead(head.method, head.target, to_local(head.headers, socket_address=""), head.version),
            body=exchange.body,
            observer=self.notes,
            decline=self.decline,
            reader=self.reader,
        )
        self.results.append(result)

        async def through():
            try:
                self.outcomes.append(await result)
            except Exception as error:
                self.errors.append(error)
                if not exchange.gone:
                    if self.write_final:
                        exchange.sink.write_final(self.write_final, exchange.last)
                    exchange.sink.abort()

        return Task(through())

    def client(self):
        """A new client connection."""
        wire = Wire()
        wire.side = self._build(None)
        wire.side.makeConnection(wire)
        return wire

    def told(self):
        """The errors so far, comparable."""
        return [repr(error) for error in self.errors]

    @property
    def dials(self):
        return len(self.clock.tcpClients)

    def server(self, number=-1):
        """Let the latest (or that) connection attempt succeed."""
        factory = self.clock.tcpClients[number][2]
        wire = Wire()
        wire.side = factory.buildProtocol(None)
        wire.side.makeConnection(wire)
        return wire
