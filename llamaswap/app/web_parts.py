"""The parts that serve requests: the listening factory, the model routes, and the admin site."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from functools import partial

from attrs import frozen

from llamaswap.app.admin_wiring import AdminWiring
from llamaswap.app.log_output import LogParts
from llamaswap.app.model_parts import ModelParts
from llamaswap.app.observability import ObservabilityParts
from llamaswap.app.settings import ServiceContext, ServiceControl
from llamaswap.liveness.watchdog import Watchdog
from llamaswap.observe.accesslog import AccessLog
from llamaswap.observe.worker import WorkerThread
from llamaswap.proxy.byte_budget import disk_budget, memory_budget
from llamaswap.proxy.exchange import Exchange, RequestHead
from llamaswap.proxy.forward import RequestForwarder
from llamaswap.proxy.loading import REMARKS, LoadingStream
from llamaswap.proxy.server_factory import ProxyServerFactory
from llamaswap.proxy.task import Task
from llamaswap.web import errors
from llamaswap.web.access_log import AccessLogger
from llamaswap.web.app import AdminSite, has_route
from llamaswap.web.auth import Authenticator, KeyRing
from llamaswap.web.error_response import ErrorSender
from llamaswap.web.errors import HttpError
from llamaswap.web.inference import Inference
from llamaswap.web.loadtest import LoadTests
from llamaswap.web.passthrough import Passthrough
from llamaswap.web.proxy_handler import ProxyHandler
from llamaswap.web.secret_masking import known_secrets, masked_text
from llamaswap.web.streaming_response import StreamingResponses
from llamaswap.web.upstream_request import UpstreamRequests
from llamaswap.wire.paths import FOREIGN

ADMIN_BODY_LIMIT = 16 * 1024 * 1024  # bytes; many times the largest configuration
UNAUTHENTICATED_BODY_LIMIT = 64 * 1024  # bytes of a body whose response is 401


@frozen(eq=False)
class WebParts:
    """The parts that serve requests. `factory` makes the client connections, `streams` are the open feeds."""

    streams: StreamingResponses
    proxy: ProxyHandler
    load_tests: LoadTests
    factory: ProxyServerFactory


def build_web(
    context: ServiceContext,
    control: ServiceControl,
    logs: LogParts,
    models: ModelParts,
    observability: ObservabilityParts,
    watchdog: Watchdog,
    config_thread: WorkerThread,
) -> WebParts:
    """The web parts around the others."""
    reactor, router = context.reactor, models.router
    keys = Authenticator(KeyRing(lambda: router.config.api_keys))
    parser = WorkerThread("parser", reactor)
    proxy = build_proxy(context, logs, models, observability, parser)
    inference = Inference(router, proxy, keys, models.peers.avoided, parser, has_route)
    passthrough = Passthrough(router, proxy, keys, parser)
    streams = StreamingResponses()
    wiring = AdminWiring(
        context=context,
        control=control,
        logs=logs,
        models=models,
        observability=observability,
        watchdog=watchdog,
        streams=streams,
        inference=inference,
        passthrough=passthrough,
        config_thread=config_thread,
        discovery_thread=WorkerThread("surveyor", reactor),
    )
    load_tests = LoadTests(lambda: router.config, reactor, wiring.loopback_sender())
    access, memory, disk = AccessLog(logs.formatter), memory_budget(), disk_budget()
    site = AdminSite(wiring.admin(keys, load_tests), reactor, access, memory, disk)

    def serve(exchange: Exchange) -> Task:
        served = passthrough if exchange.head.target.startswith(FOREIGN) else inference
        return served.serve(exchange)

    factory = ProxyServerFactory(
        lambda head: inference.is_model_route(head) or passthrough.is_expecting(head),
        serve,
        site,
        reactor,
        memory=memory,
        disk=disk,
        body_limit=lambda head: body_limit(keys, head),
        served=AccessLogger(access, reactor),
    )
    return WebParts(streams, proxy, load_tests, factory)


def build_proxy(
    context: ServiceContext,
    logs: LogParts,
    models: ModelParts,
    observability: ObservabilityParts,
    parser: WorkerThread,
) -> ProxyHandler:
    """The handler of requests to models and peers."""
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
        observers=(inflight, observability.activity),
        clock=reactor,
        wall=time.time,
        loading_stream=loading_stream,
        upstream_requests=UpstreamRequests(context.child_environ.values()),
        position_changed=queued,
        peer_answered=models.peers.heard,
        run=parser,
        debugging=lambda: logs.formatter.wants("debug"),
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
