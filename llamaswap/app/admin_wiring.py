"""The admin site: its groups of endpoints, wired to the service's parts.

It is here and not in `web`, because the parts come from every layer. The first request for the site imports this module
and all the endpoints.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from functools import cache, partial
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING

from attrs import field, frozen
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.web.resource import IResource

from llamaswap.app.model_pull import CommandPuller, hub_document
from llamaswap.app.settings import sources_of
from llamaswap.discover.config_writer import ScanResult
from llamaswap.discover.disk import ShouldStop
from llamaswap.http_client import HttpClient
from llamaswap.observe.worker import WorkerThread
from llamaswap.version import running
from llamaswap.web import activity as activity_routes
from llamaswap.web import peers as peers_routes
from llamaswap.web.admin_request import AdminRequest
from llamaswap.web.app import Admin, AdminSite
from llamaswap.web.auth import HostCheck, machine_names
from llamaswap.web.config_api import ConfigEndpoints
from llamaswap.web.configfile import ConfigFile
from llamaswap.web.discovery import DiscoveryEndpoints
from llamaswap.web.event_fanout import EventFanout
from llamaswap.web.event_stream import EventEndpoints
from llamaswap.web.hosts_api import HostEndpoints
from llamaswap.web.hub_api import HubEndpoints
from llamaswap.web.lease_api import LeaseEndpoints
from llamaswap.web.listing import ListingEndpoints
from llamaswap.web.llama_router import LlamaRouterEndpoints, encoded
from llamaswap.web.lmstudio import LmStudioEndpoints
from llamaswap.web.loadtest import Generator, LoadTests
from llamaswap.web.logs import LogEndpoints
from llamaswap.web.mcp import McpEndpoints
from llamaswap.web.mcp_servers import ChatToolEndpoints
from llamaswap.web.memory_api import MemoryEndpoints
from llamaswap.web.model_list import ModelListEndpoints
from llamaswap.web.models import ModelEndpoints
from llamaswap.web.ollama import OllamaEndpoints
from llamaswap.web.ollama_models import OllamaModelEndpoints
from llamaswap.web.openapi import OpenApi
from llamaswap.web.passthrough import resource
from llamaswap.web.processes import ProcessEndpoints
from llamaswap.web.profiles import ProfileEndpoints
from llamaswap.web.proxy_routes import ProxyRoutes
from llamaswap.web.route_table import ROUTES
from llamaswap.web.secret_masking import known_secrets, masked_text
from llamaswap.web.system import SystemEndpoints
from llamaswap.web.ui import UiFiles
from llamaswap.web.usage import UsageEndpoints

if TYPE_CHECKING:
    from llamaswap.app.parts import ServiceParts
    from llamaswap.app.web_parts import WebParts
    from llamaswap.web.loopback_client import LoopbackClient

ANY_ADDRESS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}  # and how a local client reaches it


@frozen(eq=False)
class AdminWiring:
    """Makes the admin site from the service's parts."""

    parts: ServiceParts
    web: WebParts
    load_tests: LoadTests = field(init=False)
    downloads: HubEndpoints = field(init=False)

    @load_tests.default
    def _load_tests(self) -> LoadTests:
        config = lambda: self.parts.models.router.config
        return LoadTests(config, self.parts.context.reactor, self._loopback_sender())

    @downloads.default
    def _downloads(self) -> HubEndpoints:
        context = self.parts.context
        config_file = self._config_file()
        return HubEndpoints(
            allowed=lambda: config_file.editable,
            config=lambda: self.parts.models.router.config,
            hub=partial(hub_document, context.child_environ),
            run=WorkerThread("hub", context.reactor),
            puller=CommandPuller(context.reactor, context.child_environ),
            estimate=self.parts.memory.estimate_command,
        )

    def site(self) -> AdminSite:
        """The site, with its Klein app."""
        web = self.web
        return AdminSite(self._admin(), self.parts.context.reactor, web.access, web.memory, web.disk)

    def _admin(self) -> Admin:
        """The Klein side: one object for each group of routes."""
        context, router, seen = self.parts.context, self.parts.models.router, self.parts.observability
        reactor, config_file = context.reactor, self._config_file()
        config = lambda: router.config
        # Its own thread: a network folder that hangs must not delay other work.
        discovery_thread = WorkerThread("discovery", reactor)
        model_routes = resource(self.web.inference.serve, reactor)
        groups = [
            ProxyRoutes(
                model_routes,
                resource(self.web.passthrough.serve, reactor),
            ),
            *self._model_groups(model_routes),
            SystemEndpoints(
                running(),
                seen.machine,
                hardware=lambda: seen.hardware.snapshot,
                metrics_page=seen.metrics.render,
                features=lambda: self._features(),
                upgrade=context.upgrade_status,
                ollama_version=lambda call: config().ollama.version if self._for_ollama(call) else None,
            ),
            *self._memory_groups(),
            LeaseEndpoints(self.parts.models.leases, router, reactor),
            ConfigEndpoints(config_file, config, self.web.reloads, self.parts.config_thread),
            DiscoveryEndpoints(
                allowed=lambda: config_file.editable,
                config=config,
                scan=self._scan,
                run=discovery_thread,
                clock=reactor,
                own_ports=self._own_ports,
            ),
            OllamaModelEndpoints(
                config_file,
                config,
                self.parts.config_thread,
                self.web.streams,
                CommandPuller(reactor, context.child_environ),
                reactor,
                model_routes,
            ),
            self.downloads,
            ChatToolEndpoints(config, HttpClient(reactor)),
            self.load_tests,
            OpenApi(ROUTES, running()),
        ]
        hosts = HostCheck(machine_names(gethostname()), lambda: config().allowed_hosts)
        return Admin(groups, self.web.keys, hosts, lambda: config().security.cors, self._without_secrets)

    def _without_secrets(self, text: str) -> str:
        """The text with the configured secrets masked."""
        return masked_text(text, known_secrets(self.parts.models.router.config))

    def _for_ollama(self, call: AdminRequest) -> bool:
        """Whether a request came to the address for Ollama's clients."""
        port = self.parts.context.ollama_port()
        return port is not None and call.local_port == port

    def _memory_groups(self) -> list[object]:
        """What shows the memory of this machine and of other hosts."""
        models = self.parts.models
        return [
            MemoryEndpoints(self.parts.memory.report),
            HostEndpoints(models.hosts, models.router.load_lost_elsewhere),
        ]

    def _model_groups(self, model_routes: IResource) -> list[object]:
        """What shows the models, their requests and their logs."""
        context, models, seen = self.parts.context, self.parts.models, self.parts.observability
        router, registry, capabilities = models.router, self.parts.logs.registry, models.capabilities.of
        config = lambda: router.config
        listing = ListingEndpoints(router, time.time, models.peers, capabilities)
        processes = ProcessEndpoints(router, lambda: "" if models.hosts is None else models.hosts.problem)
        usage = UsageEndpoints(config, seen.activity, seen.key_usage)
        details = ModelEndpoints(
            router,
            seen.inflight,
            seen.history,
            registry,
            context.reactor,
            stall=self.parts.watchdog.document,
            vram=models.memory.share,
            slot_cache=models.slot_cache,
            capabilities=capabilities,
        )
        file_thread = WorkerThread("model files", context.reactor)
        return [
            ModelListEndpoints(router, file_thread, context.reactor, capabilities),
            listing,
            processes,
            usage,
            details,
            McpEndpoints(listing, details, processes, usage, registry, running()),
            LmStudioEndpoints(listing),
            LlamaRouterEndpoints(router, context.bus, self.web.streams, EventFanout(context.reactor, encoded)),
            OllamaEndpoints(router, listing, self.parts.memory.report, model_routes, time.time),
            LogEndpoints(registry, config, self.web.streams),
            ProfileEndpoints(router),
            peers_routes.PeerEndpoints(config, models.peers),
            UiFiles(Path(__file__).parent.with_name("web") / "ui_dist", router, self._for_ollama),
            EventEndpoints(
                router,
                context.bus,
                registry,
                seen.inflight,
                seen.activity,
                self.web.streams,
                models.peers,
                seen.machine,
                EventFanout(context.reactor),
                capabilities,
            ),
            activity_routes.ActivityEndpoints(seen.activity, seen.inflight, self.web.streams),
        ]

    def _loopback_sender(self) -> Generator | None:
        """Sends the requests of load tests over the loopback interface, as any client would; None if that cannot work:
        the service listens on a unix socket, or with a certificate that is not checked here."""
        reactor, listen = self.parts.context.reactor, self.parts.context.settings.listen
        if listen.address is None or listen.secure:
            return None

        @cache
        def client() -> LoopbackClient:
            from twisted.web.client import Agent, HTTPConnectionPool  # slow to import, and rarely needed

            from llamaswap.web.loopback_client import LoopbackClient

            agent = Agent(reactor, pool=HTTPConnectionPool(reactor, persistent=False))
            return LoopbackClient(agent, self._own_url, self._own_key)

        return lambda path, body, chunk: client()(path, body, chunk)

    def _config_file(self) -> ConfigFile:
        context = self.parts.context
        settings = context.settings
        return ConfigFile(
            path=Path(settings.config) if settings.config else None,
            environ=context.environ,
            config=lambda: self.parts.models.router.config,
            sources=lambda: sources_of(settings),
            reload=lambda: context.reactor.callFromThread(context.reload),
            allowed=settings.allow_config_edit,
        )

    def _features(self) -> dict[str, bool]:
        seen, settings = self.parts.observability, self.parts.context.settings
        return {
            "performance": seen.machine.enabled,
            "hardware": seen.hardware.snapshot is not None,
            "config_edit": settings.allow_config_edit and bool(settings.config),
            "captures": seen.captures.enabled,
            "store": self.parts.models.router.config.store is not None,
            "loadtest": self.load_tests.send is not None,
        }

    def _own_url(self) -> bytes:
        address = self.parts.context.bound_address()
        assert isinstance(address, (IPv4Address, IPv6Address))  # else there is no sender
        host = ANY_ADDRESS.get(address.host, address.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{address.port}".encode()

    def _own_ports(self) -> tuple[int, ...]:
        address = self.parts.context.bound_address()
        return (address.port,) if isinstance(address, (IPv4Address, IPv6Address)) else ()

    def _own_key(self) -> bytes | None:
        keys = self.parts.models.router.config.api_keys
        usable = (key.plain for key in keys if key.plain and not key.limited and not key.models)
        return next((key.encode() for key in usable), None)

    def _scan(self, ports: Collection[int], should_stop: ShouldStop) -> ScanResult:
        """What this machine has; called on the discovery thread."""
        from llamaswap.discover.scan import scan  # rarely needed

        environ = self.parts.context.environ
        home = Path(environ.get("HOME") or "/nonexistent")
        return scan(home, environ, skip=ports, ollama=True, should_stop=should_stop)
