"""Joins the other hosts with the router, the API and the metrics. It is made if the configuration has `hosts`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from llamaswap.app.host_files import Found, HostFiles
from llamaswap.app.settings import ServiceContext
from llamaswap.cluster.hosts import HostManager
from llamaswap.cluster.known_host import KnownHost
from llamaswap.cluster.ray_client import RayClient
from llamaswap.cluster.ray_node import ClusterFolder, environment
from llamaswap.cluster.remote_servers import RemoteServers
from llamaswap.config.schema.hosts import HERE, Hosts
from llamaswap.discover.missing import NeededFiles, host_findings, needed_files
from llamaswap.observe.exposition import MetricFamily
from llamaswap.routing.router import Router
from llamaswap.scheduling.hosts import HostFacts
from llamaswap.scheduling.memory import Device, Ledger, MemoryNeed
from llamaswap.servers.server_request import SocketRequest
from llamaswap.state_folder import state_folder
from llamaswap.web.hosts_api import DeviceDocument, HostDocument, HostsDocument
from llamaswap.wire.byte_budget import MIB

KNOWN_PAUSE = 0.05  # seconds between two looks at whether known hosts have answered

log = Logger()


def cluster_folder(hosts: Hosts, environ: Mapping[str, str]) -> ClusterFolder:
    """The folder of the token and the state."""
    return ClusterFolder(Path(hosts.state) if hosts.state else state_folder(environ) / "hosts")


class HostParts:
    """The parts for other hosts. Raises NotInitialized if this machine has no token."""

    def __init__(
        self,
        context: ServiceContext,
        hosts: Hosts,
        router: Callable[[], Router],
        ask: SocketRequest,
        run: Callable[[Callable[[], Found]], Deferred[Found]],
    ) -> None:
        self.context, self.router = context, router
        folder = cluster_folder(hosts, context.environ)
        token, (address, port) = folder.token(), folder.head()
        if folder.is_exposed():
            log.warn(
                "{file} can be read by other users of this machine, who could then run programs on all hosts: "
                "chmod 600 {file}",
                file=folder.token_file,
            )
        ray = RayClient(
            context.reactor,
            context.reactor,
            environment(context.child_environ, folder, head=True),
            f"{address}:{port}",
            True,
            lambda: None,
        )
        self.servers = RemoteServers(context.reactor, router)
        self.manager = HostManager(
            clock=context.reactor,
            ask=ask.get,
            connect=ask,
            ray=ray,
            folder=folder,
            token=token,
            front=folder.next_front(int(time.time() * 1000)),
            settings=lambda: router().config.hosts or hosts,
            publish=self._publish,
            listener=self.servers,
            needs=self._declared,
            files=self._files,
        )
        self.servers.hosts = self.manager
        self.here = HostFiles(context.reactor, run, self._found_here)

    def open(self) -> None:
        """Begin; what still runs on hosts that were known before is adopted before it could be loaded again."""
        self.manager.open()
        self.here.need(self._files(HERE))

    def reconfigured(self) -> None:
        """The configuration has changed."""
        self.manager.reconfigured()
        self.here.need(self._files(HERE))

    async def when_known(self) -> None:
        """Wait until the hosts that were known before have answered, or for some seconds."""
        while self.manager.awaits_hosts:
            await deferLater(self.context.reactor, KNOWN_PAUSE)

    def close(self) -> None:
        """End it."""
        self.here.close()
        self.manager.close()

    def _declared(self, devices: Mapping[str, Device]) -> Mapping[str, MemoryNeed]:
        from llamaswap.memory.estimate import declared_need  # here, as in `memory_wiring`

        return {
            name: declared_need(model.memory, model.gpus, devices)
            for name, model in self.router().config.models.items()
            if model.memory
        }

    def _files(self, host: str) -> Mapping[str, NeededFiles]:
        """What the models that may run on a host need there."""
        return {
            name: needed_files(model)
            for name, model in self.router().config.models.items()
            if not model.place.hosts or host in model.place.hosts
        }

    def _found_here(self) -> None:
        self.manager.found_here(self.here.missing, self.here.cached)

    def _publish(self, facts: Mapping[str, HostFacts]) -> None:
        before = {host for host, one in self.router().hosts.items() if one.online}
        self.router().hosts_changed(facts)
        self.servers.host_lost(sorted(host for host in before if host and not facts[host].online))

    @property
    def problem(self) -> str:
        """Why nothing new is loaded on other hosts now; "" if it can be."""
        ray = self.manager.ray
        if self.manager.superseded:
            return "another llamaswap, started later, uses the other hosts; stop one of the two"
        return f"nothing new is loaded on other hosts: {ray.problem}" if ray.problem else ""

    def drain(self, host: str, drained: bool) -> None:
        """Load nothing more on a host, or allow it again. Raises KeyError."""
        self.manager.drain("" if host == HERE else host, drained)

    def document(self) -> HostsDocument:
        """The hosts, for the API."""
        router, models = self.router(), self._models()
        ledger = router.hosts[""].ledger if "" in router.hosts else Ledger({})
        found = [
            HostDocument(
                HERE,
                online=True,
                drained="" in self.manager.drained,
                devices=_devices(ledger.devices, {}),
                models=models.get(HERE, []),
            )
        ]
        for name, host in sorted(self.manager.hosts.items()):
            state = host.state
            found.append(
                HostDocument(
                    name,
                    address=f"{host.endpoint.host}:{host.endpoint.port}",
                    online=host.online,
                    drained=host.facts is not None and host.facts.drained,
                    problem=host.problem or ("it leaves" if state is not None and state.leaving else ""),
                    seen_seconds=self._seen_seconds(host),
                    labels=dict(host.labels),
                    devices=[] if state is None else _devices(host.devices, state.names),
                    models=models.get(name, []),
                )
            )
        findings = [*self._duplicate_names(), *host_findings(router.config.models.values(), router.hosts)]
        return HostsDocument(found, self.problem, sorted(router.missed_hosts), findings)

    def _duplicate_names(self) -> Iterator[str]:
        for name, host in sorted(self.manager.hosts.items()):
            for other in sorted({*host.addresses} - {host.endpoint.host}):
                yield f"{other} has joined as {name} too and is not used: join it with another --name"

    def _models(self) -> dict[str, list[str]]:
        """The models that have a process, by host."""
        router = self.router()
        models: dict[str, list[str]] = {}
        for status in router.running():
            models.setdefault(router.host_of(status.model) or HERE, []).append(status.model)
        return models

    def _seen_seconds(self, host: KnownHost) -> float | None:
        """How long ago a host answered."""
        return None if host.seen is None else round(self.context.reactor.seconds() - host.seen, 1)

    def families(self) -> Iterator[MetricFamily]:
        """The hosts, for /metrics."""
        online = MetricFamily("gauge", "host_online", "Whether another host answers.", "host")
        seen = MetricFamily("gauge", "host_seen_seconds", "How long ago another host answered.", "host")
        memory = MetricFamily("gauge", "host_memory_bytes", "Memory of a device of another host.", "host", "device")
        for name, host in sorted(self.manager.hosts.items()):
            online.values[(name,)] = int(host.online)
            age = self._seen_seconds(host)
            if age is not None:
                seen.values[(name,)] = age
            for device, one in host.devices.items():
                memory.values[name, device] = one.total * MIB
        model = MetricFamily("gauge", "host_model", "1 for a model that has a process on a host.", "host", "model")
        model.values = {(host, name): 1 for host, names in self._models().items() for name in names}
        yield from (online, seen, memory, model)


def _devices(devices: Mapping[str, Device], names: Mapping[str, str]) -> list[DeviceDocument]:
    return [
        DeviceDocument(device, names.get(device, ""), memory.total, memory.foreign)
        for device, memory in sorted(devices.items())
    ]
