"""The admin surface as this service has it: its groups of endpoints, wired to the service's parts.

Here, and not in `web`, because these parts are of every floor.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING, Any

from attrs import define
from twisted.internet.defer import Deferred

from llamaswap.discover.config_writer import ScanResult
from llamaswap.discover.disk import Enough
from llamaswap.proxy.exchange import RequestHead
from llamaswap.version import build as build_info
from llamaswap.web import activity as activity_routes
from llamaswap.web import passthrough
from llamaswap.web import peers as peers_routes
from llamaswap.web.app import Admin, routes
from llamaswap.web.auth import Authenticator, HostCheck, machine_names
from llamaswap.web.config_api import ConfigEndpoints
from llamaswap.web.configfile import ConfigFile
from llamaswap.web.discovery import DiscoveryEndpoints
from llamaswap.web.errors import HttpError
from llamaswap.web.event_stream import EventEndpoints
from llamaswap.web.listing import ListingEndpoints
from llamaswap.web.loadtest import Generator
from llamaswap.web.logs import LogEndpoints
from llamaswap.web.models import ModelEndpoints
from llamaswap.web.openapi import OpenApi
from llamaswap.web.processes import ProcessEndpoints
from llamaswap.web.profiles import ProfileEndpoints
from llamaswap.web.proxy_routes import ProxyRoutes
from llamaswap.web.reload_status import ReloadEvents
from llamaswap.web.system import SystemEndpoints
from llamaswap.web.ui import UiFiles

if TYPE_CHECKING:
    from llamaswap.app.service import LlamaSwap

ADMIN_BODY = 16 * 1024 * 1024  # bytes; many times the largest configuration
STRANGERS_BODY = 64 * 1024  # bytes of which a 401 is the answer


@define(eq=False)
class Surface:
    """Built with the service; what is asked of it is asked later."""

    service: LlamaSwap

    def admin(self, keys: Authenticator) -> Admin:
        """The Klein side: one object for each group of routes."""
        part = self.service
        config = lambda: part.router.config
        fleet, reactor = part.router, part.reactor
        ui_root = Path(__file__).parent.with_name("web") / "ui_dist"
        config_file = ConfigFile(
            path=Path(part.settings.config) if part.settings.config else None,
            environ=part.environ,
            config=config,
            sources=part.sources,
            reload=lambda: reactor.callFromThread(part.reload),
            allowed=part.settings.allow_config_edit,
        )
        groups = [
            ProxyRoutes(
                passthrough.resource(part.inference.serve, reactor),
                passthrough.resource(part.passthrough.serve_upstream, reactor),
                passthrough.resource(part.passthrough.serve_comfyui, reactor),
            ),
            ListingEndpoints(fleet, config, time.time, part.peers),
            ProcessEndpoints(fleet, config),
            LogEndpoints(part.book, config, part.streams),
            ProfileEndpoints(fleet, config),
            peers_routes.PeerEndpoints(config, part.peers),
            UiFiles(ui_root, fleet, config),
            EventEndpoints(
                *(fleet, config, part.bus, part.book, part.inflight, part.activity, part.streams, reactor),
                peers=part.peers,
                machine=part.machine,
            ),
            activity_routes.ActivityEndpoints(part.activity, part.captures, part.inflight, part.streams),
            ModelEndpoints(
                *(fleet, config, part.inflight, part.history, part.book, reactor),
                stall=part.watchdog.document,
                vram=part.memory.share,
                slot_cache=part.slot_cache,
            ),
            SystemEndpoints(
                build_info(),
                part.machine,
                part.hardware.snapshot,
                part.meters.render,
                self._features,
                part.upgrade.document,
            ),
            ConfigEndpoints(config_file, config, ReloadEvents(part.bus, time.time), part.configurer),
            DiscoveryEndpoints(
                lambda: config_file.editable, config, self._survey, part.surveyor, reactor, self._own_ports
            ),
            part.load_tests,
            OpenApi(routes, build_info()),
        ]
        return Admin(groups, keys, HostCheck(machine_names(gethostname()), lambda: config().allowed_hosts))

    def sends_to_itself(self) -> Generator | None:
        """How load tests reach us: over the loopback, through the front door like anybody. None where they cannot."""
        address = self.service.settings.listen.address
        if address is None or self.service.settings.listen.secure:
            return None  # no port that a client of ours could name, or a certificate it could not check
        senders: list[Generator] = []

        def send(path: str, body: bytes, chunk: Callable[[bytes], None], /) -> Deferred[int]:
            if not senders:
                from twisted.web.client import Agent, HTTPConnectionPool  # heavy, and rarely needed

                from llamaswap.web.loopback_client import LoopbackClient

                agent = Agent(self.service.reactor, pool=HTTPConnectionPool(self.service.reactor, persistent=False))
                senders.append(LoopbackClient(agent, self._own_url, self._own_key))
            return senders[0](path, body, chunk)

        return send

    def _own_url(self) -> bytes:
        bound: Any = self.service.port.getHost() if self.service.port is not None else None
        host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}.get(bound.host, bound.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{bound.port}".encode()

    def _own_ports(self) -> tuple[int, ...]:
        bound: Any = self.service.port.getHost() if self.service.port is not None else None
        return (bound.port,) if hasattr(bound, "port") else ()  # a unix socket has none

    def _survey(self, ports: Collection[int], enough: Enough) -> ScanResult:
        """What this machine has, on the surveyor's thread."""
        from llamaswap.discover.scan import survey  # rarely asked for

        home = Path(self.service.environ.get("HOME") or "/nonexistent")
        return survey(home, self.service.environ, skip=ports, ollama=True, enough=enough)

    def _own_key(self) -> bytes | None:
        keys = self.service.router.config.api_keys
        return keys[0].value.encode() if keys else None

    def _features(self) -> dict[str, bool]:
        part = self.service
        return {
            "performance": part.machine.enabled,
            "hardware": part.hardware.snapshot() is not None,
            "config_edit": part.settings.allow_config_edit and bool(part.settings.config),
            "captures": part.captures.enabled,
            "store": part.router.config.store is not None,
            "loadtest": part.load_tests.send is not None,
        }


def largest_body(keys: Authenticator, head: RequestHead) -> int:
    """How many bytes the body of a request beside the model routes may have. The site keeps a body before it looks at
    the key; a request without one gets little room, and only servers' own pages get as much as there is."""
    if not head.path.startswith((b"/upstream/", b"/comfyui/")):
        return ADMIN_BODY
    try:
        keys.admit(head.first)
    except HttpError:
        return STRANGERS_BODY
    return sys.maxsize
