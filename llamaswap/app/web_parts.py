"""The parts that serve requests: the listening factory, the model routes, and the admin site."""

from __future__ import annotations

import gc
import random
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred

from llamaswap.observe.accesslog import AccessLog
from llamaswap.observe.worker import WorkerThread
from llamaswap.proxy.byte_budget import disk_budget, memory_budget
from llamaswap.proxy.exchange import Exchange, RequestHead
from llamaswap.proxy.forward import RequestForwarder
from llamaswap.proxy.loading import REMARKS, LoadingStream
from llamaswap.proxy.server_factory import ProxyServerFactory
from llamaswap.proxy.task import Task
from llamaswap.servers.environment import for_servers
from llamaswap.web import errors
from llamaswap.web.access_log import AccessLogger
from llamaswap.web.auth import Authenticator
from llamaswap.web.error_response import ErrorSender
from llamaswap.web.errors import HttpError
from llamaswap.web.inference import Inference
from llamaswap.web.passthrough import Passthrough
from llamaswap.web.proxy_handler import ProxyHandler
from llamaswap.web.reload_record import ReloadRecord
from llamaswap.web.secret_masking import known_secrets, masked_text
from llamaswap.web.streaming_response import StreamingResponses
from llamaswap.web.upstream_request import UpstreamRequests
from llamaswap.wire.paths import FOREIGN

if TYPE_CHECKING:
    from twisted.web.server import Site

    from llamaswap.app.agent import Agent
    from llamaswap.app.parts import ServiceParts
    from llamaswap.web.hub_api import HubEndpoints
    from llamaswap.web.loadtest import LoadTests

ADMIN_BODY_LIMIT = 16 * 1024 * 1024  # bytes; many times the largest configuration
UNAUTHENTICATED_BODY_LIMIT = 64 * 1024  # bytes of a body whose response is 401


class WebParts:
    """The parts that serve requests, around the others of `parts`. `factory` makes the client connections, `streams`
    are the open feeds.

    The admin site is made when the first request for it comes: its modules are a fifth of the start and 8 MB. They are
    imported on a thread, because models may be serving by then.
    """

    load_tests: LoadTests | None = None
    downloads: HubEndpoints | None = None

    def __init__(self, parts: ServiceParts) -> None:
        self._parts = parts
        reactor, models = parts.context.reactor, parts.models
        router = models.router
        self.keys = keys = Authenticator(lambda: router.config.api_keys)
        parser = WorkerThread("parser", reactor)
        self.proxy = build_proxy(parts, parser)
        self._has_route: Callable[[bytes], bool] = lambda path: True  # until the admin site's routes are known
        self.inference = inference = Inference(
            router, self.proxy, keys, models.peers.avoided, parser, lambda path: self._has_route(path)
        )
        self.passthrough = passthrough = Passthrough(router, self.proxy, keys, inference.jobs, parser)
        self.streams = StreamingResponses()
        self.reloads = ReloadRecord(parts.context.bus)
        self.access, self.memory, self.disk = AccessLog(parts.logs.formatter), memory_budget(), disk_budget()

        def serve(exchange: Exchange) -> Task:
            served = passthrough if exchange.head.target.startswith(FOREIGN) else inference
            return served.serve(exchange)

        routes: Callable[[RequestHead], bool] = lambda head: (
            inference.is_model_route(head) or passthrough.is_expecting(head)
        )
        handler: Callable[[Exchange], Task] = serve
        self.agent: Agent | None = None
        if parts.context.settings.agent:
            from llamaswap.app.agent import Agent, agent_token  # here, because one host needs nothing of it

            self.agent = Agent(parts, parts.context.settings.agent, agent_token(parts.context.environ).encode())
            routes, handler = lambda head: True, self.agent.serve

        self.factory = ProxyServerFactory(
            routes,
            handler,
            None,
            reactor,
            memory=self.memory,
            disk=self.disk,
            body_limit=lambda head: body_limit(keys, head),
            served=AccessLogger(self.access, reactor),
            origins=lambda: router.config.security.cors.allow_origins,
            load_site=self._load_site,
        )

    def _load_site(self) -> Deferred[Site]:
        imported = self._parts.config_thread(lambda: import_module("llamaswap.app.admin_wiring"))
        return imported.addCallback(lambda _: self._make_site())

    def _make_site(self) -> Site:
        from llamaswap.app.admin_wiring import AdminWiring
        from llamaswap.web.app import has_route

        wiring = AdminWiring(self._parts, self)
        self.load_tests, self.downloads, self._has_route = wiring.load_tests, wiring.downloads, has_route
        site = wiring.site()
        # Like what the start has made, it lives as long as the process. Not frozen, it makes a full collection take
        # 20 ms, and whenever a crowd of clients leaves there is one.
        gc.collect()
        gc.freeze()
        return site


def build_proxy(parts: ServiceParts, parser: WorkerThread) -> ProxyHandler:
    """The handler of requests to models and peers."""
    context, models, observability = parts.context, parts.models, parts.observability
    reactor, router, inflight = context.reactor, models.router, observability.inflight

    def loading_stream(model: str, write: Callable[[bytes], None]) -> LoadingStream:
        return LoadingStream(reactor, model, write, random.uniform, random.sample(REMARKS, len(REMARKS)))

    def queued(request: str, position: int) -> None:
        """A request waits behind others: its model's files are read ahead meanwhile."""
        inflight.phase(request, "queued", position)
        model = inflight.model(request)
        if model is not None and router.state(model) == "stopped":
            models.read_ahead.begin(model)

    return ProxyHandler(
        router=router,
        forwarder=RequestForwarder(reactor, models.pool),
        errors=ErrorSender(partial(errors.render, hide=lambda text: masked_text(text, known_secrets(router.config)))),
        observers=(observability.key_usage, inflight, observability.activity),
        clock=reactor,
        wall=time.time,
        loading_stream=loading_stream,
        upstream_requests=UpstreamRequests(partial(for_servers, context.child_environ)),
        position_changed=queued,
        peer_answered=models.peers.heard,
        run=parser,
        debugging=lambda: parts.logs.formatter.wants("debug"),
    )


def body_limit(keys: Authenticator, head: RequestHead) -> int:
    """The largest body in bytes of a request beside the model routes.

    The site reads a body before it checks the key, so a request without a valid key may only send a short one. The
    servers' own pages have no limit.
    """
    if not head.path.startswith(FOREIGN):
        return ADMIN_BODY_LIMIT
    try:
        keys.admit(head.first)
    except HttpError:
        return UNAUTHENTICATED_BODY_LIMIT
    return sys.maxsize
