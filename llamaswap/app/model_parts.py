"""The parts that run models: the router, their servers, and the peers that have further models."""

from __future__ import annotations

import os
import secrets
import shlex
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from llamaswap.app.settings import ServiceContext, record_path
from llamaswap.config import Config, Model, Peer
from llamaswap.config.command_line import split
from llamaswap.events import PeersChanged, StateChanged, SwapBegan
from llamaswap.http_client import HttpClient
from llamaswap.observe.gpu_sources import usual as gpu_sources
from llamaswap.observe.gpus import GpuReader, GpuReading
from llamaswap.observe.logs import LogRegistry
from llamaswap.observe.vram_reclaim import VramReclaim
from llamaswap.observe.worker import WorkerThread
from llamaswap.proxy.fastpath.lazy_tls import enable_tls
from llamaswap.proxy.peers import PeerDirectory
from llamaswap.proxy.pool import Pool
from llamaswap.routing.memory_leases import MemoryLeases
from llamaswap.routing.router import Router
from llamaswap.servers import hooks, slots
from llamaswap.servers.capabilities import CapabilityDirectory
from llamaswap.servers.guardian_client import GuardianClient
from llamaswap.servers.launcher import Launcher
from llamaswap.servers.orphans import ChildRecordFile
from llamaswap.servers.prepared_supervisor import PreparedSupervisor
from llamaswap.servers.readahead import ReadAhead
from llamaswap.servers.server_request import SocketRequest
from llamaswap.servers.supervisor import Supervisor
from llamaswap.servers.supervisor_protocol import Supervised, SupervisorListener
from llamaswap.web.secret_masking import known_secrets, masked_command

if TYPE_CHECKING:
    from llamaswap.app.host_wiring import HostParts

log = Logger()

RECORD_DELAY = 0.1  # seconds from a server's end to its removal from the record; the next server starts meanwhile
WARM_DELAY = 0.02  # seconds from a server's readiness, when waiting requests are served, to the next spare process


class ModelParts:
    """The parts that run models, for a configuration; `registry` has the log of each model.

    `child_record` is the path of `record_file`, which names our servers for the next start. `ask` sends the servers
    small requests. `driver_thread` is for calls into drivers, `disk_thread` for reading files ahead.
    """

    router: Router  # made after the parts that read its configuration later

    def __init__(self, context: ServiceContext, config: Config, registry: LogRegistry) -> None:
        reactor, bus = context.reactor, context.bus
        current = lambda: self.router.config
        self.driver_thread = WorkerThread("watcher", reactor)
        self.disk_thread = WorkerThread("reader", reactor)
        self.guardian = guardian = GuardianClient(reactor, context.child_environ)
        self.child_record = record_path(context.settings.listen, context.environ)
        self.record_file = ChildRecordFile(
            self.child_record,
            guardian_pid=lambda: guardian.pid,
            later=lambda write: reactor.callLater(RECORD_DELAY, write),
        )
        self.launcher = Launcher(
            reactor,
            reactor,
            context.child_environ,
            uuid.uuid4().hex,
            watchers=(guardian, self.record_file),
            secrets=lambda: known_secrets(current()),
        )
        self.ask, send = SocketRequest(reactor), HttpClient(reactor)
        self.pool = Pool(reactor)
        self.hooks = hooks.HookRunner(reactor, lambda: current().hooks, self.launcher, send)
        self.slots = slots.SlotStore(reactor, send, lambda path: self.driver_thread(lambda: _remove(path)))
        self.gpus = GpuReader(gpu_sources(sys.platform, context.environ), reactor.seconds)
        self.memory = VramReclaim(self.read_gpus, reactor, lambda: current().routing.scheduler.settings.fifo.reclaim)

        self.hosts = self._host_parts(context, config)

        supervise = lambda model, listener: self._supervisor(model, listener, registry.model(model.id).write)
        self.router = Router(config, supervise, reactor, bus, self.memory)
        self.leases = MemoryLeases(self.router, reactor, lambda: secrets.token_hex(4))
        self.read_ahead = ReadAhead(self.disk_thread, lambda model: _command(current(), model), reactor.seconds)
        changed = lambda: bus.publish(PeersChanged())

        def learned(peers: Mapping[str, Peer]) -> None:
            self.router.update_peers(peers)
            changed()

        self.peers = PeerDirectory(reactor, send=send, wall=time.time, config=current, learned=learned, changed=changed)
        self.capabilities = CapabilityDirectory(
            reactor, self.ask.get, bus, lambda model: current().models.get(model), self.router.status
        )
        self.hooks.listen(bus)
        bus.subscribe(StateChanged, self._server_changed)
        bus.subscribe(SwapBegan, self._swap_began)

    def _supervisor(
        self, model: Model, listener: SupervisorListener, write: Callable[[bytes], None]
    ) -> PreparedSupervisor:
        supervisor: Supervised = Supervisor(model, launcher=self.launcher, ask=self.ask, log=write, listener=listener)
        if self.hosts is not None:
            supervisor = self.hosts.servers.placed(model, listener, supervisor)
        preparations = (hooks.HookPreparation(model.id, self.hooks), slots.SlotPreparation(model, self.slots))
        return PreparedSupervisor(supervisor, preparations)

    def _host_parts(self, context: ServiceContext, config: Config) -> HostParts | None:
        if config.hosts is None:
            return None
        from llamaswap.app.host_wiring import HostParts  # here, because one host needs nothing of it

        return HostParts(context, config.hosts, lambda: self.router, self.ask, self.disk_thread)

    def read_gpus(self) -> Deferred[Sequence[GpuReading]]:
        """The present readings of the GPUs, taken on the driver thread."""
        if self.router.config.performance.disabled:
            return succeed(())
        return self.driver_thread(self.gpus.read)

    def slot_cache(self, model: str) -> dict[str, object]:
        """The state of a model's saved slots, for the API."""
        return self.slots.document(self.router.config.models[model])

    def _server_changed(self, event: StateChanged) -> None:
        why = f" ({event.why})" if event.why else ""
        log.debug("{model}: {old} -> {new}{why}", model=event.model, old=event.old, new=event.new, why=why)
        if event.new == "starting":
            self.read_ahead.end(event.model)
            command = masked_command(self.router.status(event.model).cmd, known_secrets(self.router.config))
            log.debug("{model}: executing start command: {command}", model=event.model, command=shlex.join(command))
        if event.new == "ready":
            self.launcher.warm(WARM_DELAY)
        if event.new == "stopped" and (endpoint := self.router.status(event.model).endpoint) is not None:
            self.pool.forget(endpoint)  # another server may listen on the same port next

    def _swap_began(self, event: SwapBegan) -> None:
        """Prepare the start while the evicted models stop."""
        if event.evicted:
            self.launcher.warm()
            self.read_ahead.begin(event.model)


def enable_tls_if_needed(config: Config) -> None:
    """Load TLS if a server or a peer of the configuration is reached by it."""
    endpoints = [model.endpoint for model in config.models.values()]
    endpoints += [peer.endpoint for peer in config.peers.values()]
    if any(endpoint is not None and endpoint.scheme == "https" for endpoint in endpoints):
        enable_tls()


def _command(config: Config, model: str) -> Sequence[str]:
    """The words of a model's command; empty if the model or its command cannot be used."""
    definition = config.models.get(model)
    try:
        return split(definition.cmd) if definition is not None else ()
    except ValueError:
        return ()


def _remove(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)
