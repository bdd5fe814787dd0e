"""Doubles for the pipeline's tests: a forwarder, a client and observers, which the test plays."""

from __future__ import annotations

import json

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock

from llamaswap.config import Compat, Config, Endpoint, Filters, Model, Peer, Profile, Secret, Selector
from llamaswap.errors import BodyTooLarge, ClientGone, UpstreamDeclined
from llamaswap.proxy.bodies import BytesBody
from llamaswap.proxy.exchange import Exchange, RequestHead
from llamaswap.proxy.loading import REMARKS, LoadingStream
from llamaswap.proxy.response_framer import ResponseFramer
from llamaswap.web.error_response import ErrorSender
from llamaswap.web.errors import render, unauthorized
from llamaswap.web.head_facts import Authenticated
from llamaswap.web.inference import Inference
from llamaswap.web.key_access import OPEN
from llamaswap.web.passthrough import Passthrough
from llamaswap.web.proxy_handler import ProxyHandler
from llamaswap.wire.headers import ResponseHeaders, to_client
from tests.doubles import FakeRouter

JSON = (b"Content-Type", b"application/json")


def model(id: str, **more) -> Model:
    return Model(id=id, endpoint=Endpoint("http", "127.0.0.1", 9000), **more)


def config(**more) -> Config:
    """The baseline of the test vectors."""
    by_id = {"beta:hot": {"temperature": 1.5, "top_k": 9}}
    models = [
        model("alpha", name="Alpha", aliases=("al",), send_loading_state=True),
        model(
            "beta",
            use_model_name="beta-up",
            aliases=("beta:hot",),
            filters=Filters(strip_params=("stream", "temperature"), set_params={"top_k": 7}, set_params_by_id=by_id),
        ),
        model("org"),
        model("org/gamma", unlisted=True),
        model("whisper", use_model_name="whisper-v3"),
        model("sock", compat=Compat(ignore_websockets=True)),
        model("42"),
        *more.pop("models", ()),
    ]
    lab = Endpoint("http", "10.0.0.5", 7000, "/base")
    den = Endpoint("http", "10.0.0.6", 7000)
    filters = Filters(strip_params=("seed",))
    return Config(
        models={each.id: each for each in models},
        peers={
            "lab": Peer("lab", api_key=Secret("pk-lab"), models=("delta", "org2/eps"), filters=filters, endpoint=lab),
            "den": Peer("den", models=("delta", "zeta"), endpoint=den),
            **more.pop("peers", {}),
        },
        selectors={
            "pick": Selector("pick", strategy="pin", targets=("beta:hot", "lab/delta")),
            "safe": Selector("safe", strategy="failover", targets=("lab/delta", "beta:hot", "zeta")),
        },
        profiles=more.pop("profiles", {"work": Profile(pins={"chat": "alpha", "org": "", "pool/x": "org/gamma"})}),
        **more,
    )


class Outcome(Deferred):
    """Like a Future: cancelling it may name the error it fails with."""

    def __init__(self, forwarding):
        super().__init__()
        self.forwarding = forwarding

    def cancel(self, error=None):
        if not self.called:
            self.forwarding.stopped = True
            self.errback(error or CancelledError())


@define(eq=False)
class Forwarding:
    """One request that was sent to a server or peer; the test plays the server."""

    exchange: Exchange
    upstream: object
    head: RequestHead
    body: object
    observer: object
    answered: bool
    decline: object = ()
    reader: object = None
    passing: object = None
    result: Deferred = None
    stopped: bool = False

    @property
    def sent(self) -> bytes:
        """The request body as the server gets it."""
        found = []
        self.body.read_all(1 << 30).addCallback(found.append)
        return found[0]

    def header(self, name: bytes):
        return self.head.first(name)

    def begin(self, *data: bytes, status: int = 200, kind: bytes = b"application/json", raw: bool = True, headers=()):
        """The server's head and some data arrive."""
        if status in self.decline:
            self.result.errback(UpstreamDeclined("there", status))
            return
        head = to_client([(b"Content-Type", kind), *headers], chunked=raw)
        self.observer.response_head(status, head)
        if not self.answered:
            self.exchange.sink.head(status, b"", head, raw=raw)
        for piece in data:
            self.more(piece, raw=raw and not self.answered)

    def more(self, piece: bytes, raw: bool = True):
        self.observer.response_data(piece)
        self.exchange.sink.write(b"%x\r\n%b\r\n" % (len(piece), piece) if raw else piece)

    def end(self):
        self.exchange.sink.finish()
        self.result.callback(None)


@define(eq=False, slots=False)
class FakeForwarder:
    forwarded: list = field(factory=list)

    def forward(self, exchange, upstream, *, head, body, observer=None, decline=(), reader=None, passing=None):
        started = exchange.sink.started
        forwarding = Forwarding(exchange, upstream, head, body, observer, started, decline, reader, passing)
        forwarding.result = Outcome(forwarding)
        self.forwarded.append(forwarding)

        def left():
            if not forwarding.result.called:
                forwarding.stopped = True
                forwarding.result.errback(ClientGone())

        exchange.on_gone(left)
        return forwarding.result


@define(eq=False)
class FakeSink:
    """What the client saw."""

    status: int = 0
    headers: list = field(factory=list)
    raw: bool = False
    body: bytes = b""
    ending: str = ""
    producer: object = None
    started: bool = False
    framer: ResponseFramer | None = None
    last: bytes = b""
    backlog: int = 0

    def interim(self, status, reason, headers):
        pass

    def head(self, status, reason, headers, *, raw, data=b""):
        assert not self.started
        assert isinstance(headers, ResponseHeaders)
        self.started, self.status, self.headers, self.raw, self.body = True, status, headers.items, raw, data
        self.framer = ResponseFramer(RequestHead(b"POST", b"/", []), status, headers, raw=raw)

    def write(self, data):
        assert self.started and not self.ending
        self.body += data
        self.last = data

    def writer(self):
        return self.write

    def write_final(self, words, last):
        framed = self.framer.write_final(words, last or self.last)
        if framed:
            self.body += framed if self.raw else words

    def finish(self):
        assert not self.ending
        self.ending = "finished"

    def abort(self):
        self.ending = self.ending or "aborted"

    def unsent(self):
        return self.backlog

    def register_producer(self, producer):
        self.producer = producer

    def unregister_producer(self):
        self.producer = None

    def upgrade(self, status_line_and_head):
        assert not self.started
        self.started, self.status = True, 101

    @property
    def json(self):
        return json.loads(self.body)

    def header(self, name: bytes):
        for key, value in self.headers:
            if key.lower() == name:
                return value
        return None


@define(eq=False)
class ArrivingBody:
    """A body that arrives by hand: `feed`, then `end`. It keeps everything."""

    length: int | None = None
    replayable: bool = True
    arrived: bytes = b""
    ended: bool = False
    consumer: object = None
    stops: int = 0

    def read_all(self, limit):
        if len(self.arrived) > limit:
            return fail(BodyTooLarge(limit))
        return succeed(self.arrived) if self.ended else Deferred()

    def start(self, consumer, *, keep=True):
        self.consumer = consumer
        if self.arrived:
            consumer.body_data(self.arrived)
        if self.ended:
            consumer.body_ended()
        return self

    def feed(self, data):
        self.arrived += data
        if self.consumer is not None:
            self.consumer.body_data(data)

    def end(self):
        self.ended = True
        if self.consumer is not None:
            self.consumer.body_ended()

    def stopProducing(self):
        self.consumer = None
        self.stops += 1

    def pauseProducing(self):
        pass

    def resumeProducing(self):
        pass

    def close(self):
        pass


@define(eq=False)
class Witness:
    """An observer of one request."""

    facts: object
    heads: list = field(factory=list)
    body: bytes = b""
    endings: list = field(factory=list)
    grants: int = 0
    retargets: int = 0
    loading: list = field(factory=list)

    def granted(self):
        self.grants += 1

    def retargeted(self):
        self.retargets += 1

    def head(self, status, headers):
        self.heads.append((status, headers.items))

    def data(self, data):
        self.body += data
        self.loading.append(self.facts.loading)

    def ended(self, outcome, error):
        self.endings.append((outcome, error))


@define(eq=False)
class Witnesses:
    seen: list = field(factory=list)

    def open(self, request):
        self.seen.append(Witness(request))
        return self.seen[-1]


class Stage:
    """A pipeline with everything around it played by hand."""

    def __init__(self, **router) -> None:
        self.clock = Clock()
        self.clock.advance(100)
        self.router = FakeRouter(**{"config": config(), **router})
        self.forwarder = FakeForwarder()
        self.witnesses = Witnesses()
        self.keys: dict[bytes, bytes] = {}
        self.handler = ProxyHandler(
            router=self.router,
            forwarder=self.forwarder,
            errors=ErrorSender(render),
            observers=[self.witnesses],
            clock=self.clock,
            wall=lambda: 1_000_000.0,
            loading_stream=lambda model, write: LoadingStream(self.clock, model, write, min, REMARKS),
        )
        self.inference = Inference(self.router, self.handler, self.authenticate)
        self.passthrough = Passthrough(self.router, self.handler, self.authenticate, self.inference.jobs)

    def authenticate(self, head):
        if not self.keys:
            return Authenticated(frozenset(), OPEN)
        for name, key in self.keys.items():
            if head.first(name) == key:
                return Authenticated(frozenset([name]), OPEN)
        raise unauthorized()

    def ask(self, method: bytes, target: bytes, body=b"", *headers, serve=None) -> Asked:
        source = BytesBody(body) if isinstance(body, bytes) else body
        sink = FakeSink()
        exchange = Exchange(RequestHead(method, target, list(headers)), source, sink, "1.2.3.4", 99.5)
        serve = serve or self.inference.serve
        asked = Asked(self, exchange, sink)
        serve(exchange).addBoth(asked.done.append)
        return asked

    def post(self, body, path: bytes = b"/v1/chat/completions", *headers) -> Asked:
        """A JSON request."""
        if not isinstance(body, bytes):
            body = json.dumps(body, separators=(",", ":")).encode()
        return self.ask(b"POST", path, body, JSON, *headers)

    def upstream(self, method: bytes, target: bytes, body=b"", *headers) -> Asked:
        return self.ask(method, target, body, *headers, serve=self.passthrough.serve)

    def comfyui(self, method: bytes, target: bytes, body=b"", *headers) -> Asked:
        return self.ask(method, target, body, *headers, serve=self.passthrough.serve)

    @property
    def forwarding(self) -> Forwarding:
        """The one request that was sent to a server."""
        (forwarding,) = self.forwarder.forwarded
        return forwarding

    @property
    def witness(self) -> Witness:
        """The one request that was recorded."""
        (witness,) = self.witnesses.seen
        return witness


@define(eq=False)
class Asked:
    """A request under way: `sink` is what its client sees, `done` is filled when it was answered."""

    stage: Stage
    exchange: Exchange
    sink: FakeSink
    done: list = field(factory=list)

    def leave(self) -> None:
        """The client disconnects."""
        self.exchange.client_left()
