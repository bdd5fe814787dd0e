"""A router without servers, an admin surface around it, and a client that speaks to it over memory."""

import json
from operator import attrgetter
from pathlib import Path

from attrs import asdict, define, field
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.resource import Resource

from llamaswap.config import ApiKey, Capabilities, Config, Filters, Model, Peer, Profile, Secret, Selector
from llamaswap.discover.config_writer import ScanResult
from llamaswap.events import EventBus
from llamaswap.observe import activity as observed
from llamaswap.observe.captures import Captures
from llamaswap.observe.history import SwapHistory
from llamaswap.observe.key_usage import KeyUsage
from llamaswap.observe.logs import LogRegistry
from llamaswap.observe.store import ActivityStore
from llamaswap.proxy.peers import Health
from llamaswap.version import Build
from llamaswap.web import app, route_table
from llamaswap.web.activity import ActivityEndpoints
from llamaswap.web.auth import Authenticator, HostCheck
from llamaswap.web.config_api import ConfigEndpoints
from llamaswap.web.config_history import VersionEntry
from llamaswap.web.configfile import Impact, ImpactModels
from llamaswap.web.discovery import DiscoveryEndpoints
from llamaswap.web.event_fanout import EventFanout
from llamaswap.web.event_stream import EventEndpoints
from llamaswap.web.hub_api import HubEndpoints
from llamaswap.web.listing import ListingEndpoints
from llamaswap.web.llama_router import LlamaRouterEndpoints, encoded
from llamaswap.web.lmstudio import LmStudioEndpoints
from llamaswap.web.loadtest import LoadTests
from llamaswap.web.logs import LogEndpoints
from llamaswap.web.mcp import McpEndpoints
from llamaswap.web.mcp_servers import ChatToolEndpoints
from llamaswap.web.memory_api import MemoryDocument, MemoryEndpoints
from llamaswap.web.model_list import ModelListEndpoints
from llamaswap.web.models import ModelEndpoints
from llamaswap.web.ollama import OllamaEndpoints
from llamaswap.web.ollama_models import OllamaModelEndpoints
from llamaswap.web.openapi import OpenApi
from llamaswap.web.peers import PeerEndpoints
from llamaswap.web.processes import ProcessEndpoints
from llamaswap.web.profiles import ProfileEndpoints
from llamaswap.web.proxy_routes import ProxyRoutes
from llamaswap.web.reload_record import ReloadRecord
from llamaswap.web.secret_masking import known_secrets, masked_text
from llamaswap.web.streaming_response import StreamingResponses
from llamaswap.web.system import SystemEndpoints
from llamaswap.web.ui import UiFiles
from llamaswap.web.usage import UsageEndpoints
from llamaswap.wire import openai
from tests.doubles import FakeRouter

LOOPBACK = IPv4Address("TCP", "127.0.0.1", 50000)


def example_config(**more):
    """The configuration most tests speak about."""
    models = {
        "alpha": Model(
            "alpha",
            cmd="serve --port 5800",
            proxy="http://localhost:5800",
            name="Alpha",
            description=" first ",
            aliases=("al",),
            metadata={"tier": "gold", "architecture": "x"},
            capabilities=Capabilities(inputs=("text", "image"), outputs=("text",), tools=True, context=8192),
        ),
        "beta": Model(
            "beta",
            aliases=("beta:hot",),
            filters=Filters(set_params_by_id={"beta:hot": {"temperature": 1.5}}),
        ),
        "org": Model("org"),
        "org/gamma": Model("org/gamma", unlisted=True),
        "whisper": Model("whisper"),
    }
    given = {
        "models": models,
        "peers": {
            "lab": Peer("lab", proxy="http://10.0.0.5:7000/base", models=("delta", "org2/eps")),
            "den": Peer("den", proxy="http://10.0.0.6:7000", models=("delta", "zeta")),
        },
        "selectors": {"pick": Selector("pick", strategy="pin", targets=("beta:hot", "lab/delta"))},
        "profiles": {"work": Profile(pins={"chat": "alpha", "org": "", "pool/x": "org/gamma"})},
    }
    return Config(**{**given, **more})


def texts(*keys):
    """Keys that are mere texts, as an Authenticator takes them."""
    found = tuple(ApiKey(Secret(key)) for key in keys)
    return lambda: found


def with_keys(*keys):
    return example_config(api_keys=tuple(ApiKey(Secret(key)) for key in keys))


def example_router(config=None, states=None, **more):
    """A router with the example's configuration, if no other is given."""
    return FakeRouter(config or example_config(), states or {}, **more)


@define(eq=False)
class FakeInflight:
    """A list that the test writes."""

    requests: list = field(factory=list)
    listeners: list = field(factory=list)
    cancelled: list = field(factory=list)
    counts: dict = field(factory=dict)
    snapshots: int = 0

    def snapshot(self):
        self.snapshots += 1
        return {"operation": "snapshot", **({"requests": self.requests} if self.requests else {})}

    def subscribe(self, listener):
        self.listeners.append(listener)
        return lambda: self.listeners.remove(listener) if listener in self.listeners else None

    def tell(self, event):
        for listener in list(self.listeners):
            listener(event)

    def cancel(self, request_id):
        self.cancelled.append(request_id)
        return request_id == "7"

    def by_model(self):
        return self.counts

    def by_server(self):
        return self.counts

    def busy(self):
        return self.counts


@define(eq=False)
class FakePeers:
    """Health that the test writes."""

    known: dict = field(factory=dict)

    def health(self, peer):
        return self.known.get(peer) or Health()


@define(eq=False)
class FakeMachine:
    """Samples that the test writes."""

    enabled: bool = True
    asked: list = field(factory=list)
    listeners: list = field(factory=list)

    def subscribe(self, listener):
        self.listeners.append(listener)
        return lambda: self.listeners.remove(listener)

    def samples(self, after=None, max_points=None):
        self.asked.append((after, max_points))
        nothing = None if after is None else []
        return {"enabled": True, "sys_stats": nothing, "gpu_stats": nothing}


@define(eq=False)
class FakeFiles:
    """A configuration file in memory."""

    text: str = "models: {}\n"
    editable: bool = False
    written: list = field(factory=list)
    answer: object = Impact([], ImpactModels([], [], []))
    kept: dict = field(factory=dict)
    authors: list = field(factory=list)
    looked: list = field(factory=list)

    def read(self):
        return self.text

    def check(self, text, *, find_missing=True):
        self.looked.append(find_missing)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def write(self, text, source):
        self.written.append(text)
        self.authors.append((source.address, source.agent, source.of))
        self.text = text

    def versions(self):
        return [
            VersionEntry(name, "2023-11-14T22:13:20Z", len(text), "saved", "", "", None, in_force=text == self.text)
            for name, text in reversed(self.kept.items())
        ]

    def version(self, identity):
        return self.kept.get(identity)


def at_once(work):
    """A worker without a thread."""
    return maybeDeferred(work)


class Echo(Resource):
    """Stands where inference is; says that it was reached."""

    isLeaf = True

    def __init__(self, name):
        super().__init__()
        self._name = name

    def render(self, request):
        return b"%s %s %s" % (self._name, request.method, request.uri)


def _raise(error):
    raise error


@define(eq=False)
class FakePuller:
    """Downloads that the test ends."""

    pulled: list = field(factory=list)
    removed: list = field(factory=list)
    cancelled: int = 0

    def pull(self, name, progress):
        self.pulled.append((name, progress, Deferred(self._cancel)))
        return self.pulled[-1][2]

    def _cancel(self, work):
        self.cancelled += 1

    def remove(self, repository, files):
        self.removed.append((repository, files))


class UnmeasuredMemory:
    """A memory source that knows nothing yet."""

    def document(self):
        return asdict(MemoryDocument("advise"))


@define(eq=False, slots=False)
class World:
    """Everything the surface is built from, and the surface."""

    router: FakeRouter = field(factory=example_router)
    clock: Clock = field(factory=Clock)
    book: LogRegistry = field(factory=LogRegistry)
    streams: StreamingResponses = field(factory=StreamingResponses)
    ui: Path = Path("/nonexistent")
    access: object = None
    bus: EventBus = field(factory=lambda: EventBus(on_error=_raise))
    inflight: FakeInflight = field(factory=FakeInflight)
    machine: FakeMachine = field(factory=FakeMachine)
    files: FakeFiles = field(factory=FakeFiles)
    captures: Captures = field(factory=lambda: Captures(1))
    hardware: object = None
    page: bytes = b""
    generator: object = None
    store: ActivityStore = field(factory=ActivityStore)
    peers: object = field(factory=lambda: FakePeers())
    vram: dict = field(factory=dict)
    survey: object = lambda ports, enough: ScanResult()
    surveyor: object = at_once
    capabilities: object = attrgetter("capabilities")
    memory: object = None
    send: object = None
    hub: object = lambda path: []
    estimate: object = lambda command: succeed(None)
    puller: FakePuller = field(factory=lambda: FakePuller())
    build: Build = field(factory=lambda: Build("9"))

    def __attrs_post_init__(self):
        self.activity = observed.ActivityLog(
            store=self.store,
            captures=self.captures,
            run=at_once,
            clock=self.clock,
            wall=lambda: 1700000000.0,
        )
        self.key_usage = KeyUsage(lambda: 1700000000.0)
        self.key_usage.retune(self.router.config.api_keys)
        self.history = SwapHistory(wall=self.clock.seconds, log=self.book.model)
        self.history.listen(self.bus)
        self.events = EventEndpoints(
            self.router,
            self.bus,
            self.book,
            self.inflight,
            self.activity,
            self.streams,
            self.peers,
            self.machine,
            EventFanout(self.clock),
            self.capabilities,
        )
        self.router_events = LlamaRouterEndpoints(self.router, self.bus, self.streams, EventFanout(self.clock, encoded))
        self.config_endpoints = ConfigEndpoints(self.files, self.config, ReloadRecord(self.bus))
        self.loadtests = LoadTests(self.config, self.clock, self.generator)
        self.downloads = HubEndpoints(
            lambda: self.files.editable, self.config, self.hub, at_once, self.puller, self.estimate
        )
        self.discovery = DiscoveryEndpoints(
            lambda: self.files.editable, self.config, self.survey, self.surveyor, self.clock, lambda: (8080,)
        )

    def config(self):
        return self.router.config

    def groups(self):
        config, router = self.config, self.router
        listing = ListingEndpoints(router, lambda: 1700000000.5, self.peers, self.capabilities)
        memory = self.memory or UnmeasuredMemory()
        processes, usage = ProcessEndpoints(router), UsageEndpoints(config, self.activity, self.key_usage)
        details = ModelEndpoints(
            router,
            self.inflight,
            self.history,
            self.book,
            self.clock,
            vram=self.vram.get,
            capabilities=self.capabilities,
        )
        return [
            McpEndpoints(listing, details, processes, usage, self.book, Build("9")),
            processes,
            usage,
            details,
            ProxyRoutes(Echo(b"model"), Echo(b"upstream")),
            listing,
            LmStudioEndpoints(listing),
            self.router_events,
            OllamaEndpoints(router, listing, memory, Echo(b"model"), lambda: 1700000000.5),
            ProfileEndpoints(router),
            PeerEndpoints(config, self.peers),
            LogEndpoints(self.book, config, self.streams),
            UiFiles(self.ui, router),
            self.events,
            ActivityEndpoints(self.activity, self.inflight, self.streams),
            SystemEndpoints(
                self.build, self.machine, lambda: self.hardware, lambda: self.page, lambda: {"captures": True}
            ),
            MemoryEndpoints(memory),
            ModelListEndpoints(router, self.surveyor, self.clock, self.capabilities),
            self.config_endpoints,
            self.discovery,
            self.downloads,
            ChatToolEndpoints(config, self.send),
            OllamaModelEndpoints(self.files, config, at_once, self.streams, self.puller, self.clock, Echo(b"model")),
            self.loadtests,
            OpenApi(route_table.ROUTES, Build("9")),
        ]

    def site(self):
        keys = Authenticator(lambda: self.router.config.api_keys)
        hosts = HostCheck(frozenset({"here"}), lambda: self.router.config.allowed_hosts)
        hide = lambda text: masked_text(text, known_secrets(self.config()))
        admin = app.Admin(self.groups(), keys, hosts, lambda: self.config().security.cors, hide)
        site = app.AdminSite(admin, self.clock, self.access)
        site.startFactory = site.stopFactory = lambda: None
        return site

    def open(self, path, method="GET", headers=(), body=b"", host="here:8080", peer=LOOPBACK):
        """A client that has sent one request."""
        return Client(self.site(), path, method, headers, body, host, peer)

    def ask(self, path, method="GET", headers=(), body=b"", host="here:8080", peer=LOOPBACK):
        """The whole answer to one request that is answered at once."""
        client = self.open(path, method, headers, body, host, peer)
        answer = client.answer()
        client.leave()
        return answer


class Client:
    """One connection with one request."""

    def __init__(self, site, path, method="GET", headers=(), body=b"", host="here:8080", peer=LOOPBACK):
        self.transport = StringTransport(peerAddress=peer)
        self.transport.abortConnection = self.transport.loseConnection
        self.channel = site.buildProtocol(None)
        self.channel.makeConnection(self.transport)
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *(f"{name}: {value}" for name, value in headers)]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        self.channel.dataReceived("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    @property
    def received(self):
        return self.transport.value()

    def leave(self):
        self.channel.connectionLost(Failure(ConnectionLost()))

    def answer(self):
        return Answered(self.received)


class Answered:
    """A received answer taken apart; chunked bodies are joined."""

    def __init__(self, raw):
        head, _, rest = raw.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        self.status = int(lines[0].split()[1]) if lines[0] else 0
        self.headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(": ")
            self.headers[name.lower()] = value
        self.ended = True
        self.body = rest
        if self.headers.get("transfer-encoding") == "chunked":
            self.body, self.ended = dechunked(rest)

    @property
    def text(self):
        return self.body.decode()

    @property
    def json(self):
        return json.loads(self.body)


def dechunked(raw):
    parts = []
    while raw:
        size, _, raw = raw.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            return b"".join(parts), True
        parts.append(raw[:length])
        raw = raw[length + 2 :]
    return b"".join(parts), False


def envelope(status, message):
    """The error a client finds."""
    return openai.document(status, message)
