"""The admin site: its groups of endpoints, wired to the service's parts.

It is here and not in `web`, because the parts come from every layer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from pathlib import Path
from socket import gethostname

from attrs import frozen
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred

from llamaswap.app.log_output import LogParts
from llamaswap.app.model_parts import ModelParts
from llamaswap.app.observability import ObservabilityParts
from llamaswap.app.settings import ServiceContext, ServiceControl, sources_of
from llamaswap.discover.config_writer import ScanResult
from llamaswap.discover.disk import ShouldStop
from llamaswap.liveness.watchdog import Watchdog
from llamaswap.observe.worker import WorkerThread
from llamaswap.version import build as build_info
from llamaswap.web import activity as activity_routes
from llamaswap.web import peers as peers_routes
from llamaswap.web.app import Admin
from llamaswap.web.auth import Authenticator, HostCheck, machine_names
from llamaswap.web.config_api import ConfigEndpoints
from llamaswap.web.configfile import ConfigFile
from llamaswap.web.discovery import DiscoveryEndpoints
from llamaswap.web.event_fanout import EventFanout
from llamaswap.web.event_stream import EventEndpoints
from llamaswap.web.inference import Inference
from llamaswap.web.listing import ListingEndpoints
from llamaswap.web.loadtest import Generator, LoadTests
from llamaswap.web.logs import LogEndpoints
from llamaswap.web.models import ModelEndpoints
from llamaswap.web.openapi import OpenApi
from llamaswap.web.passthrough import Passthrough, resource
from llamaswap.web.processes import ProcessEndpoints
from llamaswap.web.profiles import ProfileEndpoints
from llamaswap.web.proxy_routes import ProxyRoutes
from llamaswap.web.route_table import ROUTES
from llamaswap.web.streaming_response import StreamingResponses
from llamaswap.web.system import SystemEndpoints
from llamaswap.web.ui import UiFiles

ANY_ADDRESS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}  # and how a local client reaches it


@frozen(eq=False)
class AdminWiring:
    """Makes the admin site from the service's parts. `config_thread` reads and writes the configuration,
    `discovery_thread` looks for models; a network folder that hangs must not keep the others waiting."""

    context: ServiceContext
    control: ServiceControl
    logs: LogParts
    models: ModelParts
    observability: ObservabilityParts
    watchdog: Watchdog
    streams: StreamingResponses
    inference: Inference
    passthrough: Passthrough
    config_thread: WorkerThread
    discovery_thread: WorkerThread

    def admin(self, keys: Authenticator, load_tests: LoadTests) -> Admin:
        """The Klein side: one object for each group of routes."""
        seen, router, reactor = self.observability, self.models.router, self.context.reactor
        config = lambda: router.config
        config_file = self._config_file()
        groups = [
            ProxyRoutes(
                resource(self.inference.serve, reactor),
                resource(self.passthrough.serve_upstream, reactor),
                resource(self.passthrough.serve_comfyui, reactor),
            ),
            ListingEndpoints(router, time.time, self.models.peers, self.models.capabilities.of),
            ProcessEndpoints(router),
            LogEndpoints(self.logs.registry, config, self.streams),
            ProfileEndpoints(router),
            peers_routes.PeerEndpoints(config, self.models.peers),
            UiFiles(Path(__file__).parent.with_name("web") / "ui_dist", router),
            self._events(),
            activity_routes.ActivityEndpoints(seen.activity, seen.captures, seen.inflight, self.streams),
            self._models(),
            self._system(load_tests),
            ConfigEndpoints(config_file, config, self.context.bus, self.config_thread),
            DiscoveryEndpoints(
                lambda: config_file.editable, config, self._scan, self.discovery_thread, reactor, self._own_ports
            ),
            load_tests,
            OpenApi(ROUTES, build_info()),
        ]
        return Admin(groups, keys, HostCheck(machine_names(gethostname()), lambda: config().allowed_hosts))

    def loopback_sender(self) -> Generator | None:
        """Sends the requests of load tests over the loopback interface, as any client would; None if that cannot work:
        the service listens on a unix socket, or with a certificate that is not checked here."""
        listen = self.context.settings.listen
        if listen.address is None or listen.secure:
            return None
        senders: list[Generator] = []

        def send(path: str, body: bytes, chunk: Callable[[bytes], None], /) -> Deferred[int]:
            if not senders:
                from twisted.web.client import Agent, HTTPConnectionPool  # slow to import, and rarely needed

                from llamaswap.web.loopback_client import LoopbackClient

                pool = HTTPConnectionPool(self.context.reactor, persistent=False)
                senders.append(LoopbackClient(Agent(self.context.reactor, pool=pool), self._own_url, self._own_key))
            return senders[0](path, body, chunk)

        return send

    def _config_file(self) -> ConfigFile:
        settings = self.context.settings
        return ConfigFile(
            path=Path(settings.config) if settings.config else None,
            environ=self.context.environ,
            config=lambda: self.models.router.config,
            sources=lambda: sources_of(settings),
            reload=lambda: self.context.reactor.callFromThread(self.control.reload),
            allowed=settings.allow_config_edit,
        )

    def _events(self) -> EventEndpoints:
        seen, router = self.observability, self.models.router
        return EventEndpoints(
            router,
            self.context.bus,
            self.logs.registry,
            seen.inflight,
            seen.activity,
            self.streams,
            self.models.peers,
            seen.machine,
            EventFanout(self.context.reactor),
            self.models.capabilities.of,
        )

    def _models(self) -> ModelEndpoints:
        seen, router = self.observability, self.models.router
        return ModelEndpoints(
            router,
            seen.inflight,
            seen.history,
            self.logs.registry,
            self.context.reactor,
            stall=self.watchdog.document,
            vram=self.models.memory.share,
            slot_cache=self.models.slot_cache,
            capabilities=self.models.capabilities.of,
        )

    def _system(self, load_tests: LoadTests) -> SystemEndpoints:
        seen, settings = self.observability, self.context.settings

        def features() -> dict[str, bool]:
            return {
                "performance": seen.machine.enabled,
                "hardware": seen.hardware.snapshot is not None,
                "config_edit": settings.allow_config_edit and bool(settings.config),
                "captures": seen.captures.enabled,
                "store": self.models.router.config.store is not None,
                "loadtest": load_tests.send is not None,
            }

        return SystemEndpoints(
            build_info(),
            seen.machine,
            lambda: seen.hardware.snapshot,
            seen.metrics.render,
            features,
            self.control.upgrade_status,
        )

    def _own_url(self) -> bytes:
        address = self.control.bound_address()
        assert isinstance(address, (IPv4Address, IPv6Address))  # else there is no sender
        host = ANY_ADDRESS.get(address.host, address.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{address.port}".encode()

    def _own_ports(self) -> tuple[int, ...]:
        address = self.control.bound_address()
        return (address.port,) if isinstance(address, (IPv4Address, IPv6Address)) else ()

    def _own_key(self) -> bytes | None:
        keys = self.models.router.config.api_keys
        return keys[0].value.encode() if keys else None

    def _scan(self, ports: Collection[int], should_stop: ShouldStop) -> ScanResult:
        """What this machine has; called on the discovery thread."""
        from llamaswap.discover.scan import scan  # rarely needed

        environ = self.context.environ
        home = Path(environ.get("HOME") or "/nonexistent")
        return scan(home, environ, skip=ports, ollama=True, should_stop=should_stop)
