"""What an upgrade does with the service's parts: how they come to rest, what is handed over, and how the new program
begins with it. When that happens is decided in `upgrade`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable

from attrs import define
from twisted.internet.abstract import FileDescriptor
from twisted.internet.task import deferLater
from twisted.logger import Logger

from llamaswap.app.ollama_listener import OllamaListener
from llamaswap.app.parts import ServiceParts
from llamaswap.config.files import fingerprint
from llamaswap.errors import BeingUpgraded
from llamaswap.servers.supervisor import end_unwanted
from llamaswap.upgrade.program import code_fingerprint
from llamaswap.upgrade.state import IdleConnection, UpgradeState

FLUSH_TIMEOUT = 2.0  # seconds that the last children and the last log lines are waited for; few take that long
RESPONSE_TIME = 0.2  # seconds for the responses of refused requests to go out before connections are closed
FLUSH_POLL = 0.005  # seconds between two looks whether they are done

log = Logger("llamaswap.app.upgrade_coordinator")


@define(eq=False)
class ServiceHandover:
    """The parts of a running service, for `Upgrade`. `port` gives the listening port, `ollama` is the second one;
    `count` is how many upgrades there were when the next program runs."""

    parts: ServiceParts
    port: Callable[[], object]
    ollama: OllamaListener
    count: int
    _held: bool = False
    _refusing: bool = False
    _monitored: bool = False
    _ray_closed: bool = False

    @property
    def drain_timeout(self) -> float:
        """Seconds that running requests get, as at the end of the service."""
        return self.parts.models.router.config.drain_timeout

    def idle(self) -> bool:
        """Whether no request is in progress, and each server is ready or down.

        A running job goes on at its server. Its lease is given up here, because no waiting request could use that.
        """
        if self.parts.web.proxy.active:
            return False
        self.parts.web.inference.jobs.release_leases()
        return self.parts.models.router.settled

    def responses_sent(self) -> bool:
        """Whether, in addition, no connection has anything left to send."""
        return self.idle() and not self.parts.web.factory.busy

    def hold(self) -> None:
        """Leave new connections in the kernel's queue, and accepted ones unread."""
        self._held = True
        self._listening_port.stopReading()
        self.ollama.pause()
        self.parts.web.factory.hold()

    def release(self) -> None:
        """Go on serving."""
        if not self._held:
            return
        self._held = False
        if self._refusing:
            self._refusing = False
            self.parts.models.router.resume()
            self.parts.web.proxy.reopen()
        self._listening_port.startReading()
        self.ollama.resume()
        self.parts.web.factory.release()
        self.parts.web.streams.resume()
        self.parts.models.launcher.warm()
        if self._monitored:
            self._monitored = False
            self.parts.observability.machine.start()
        if self._ray_closed and self.parts.models.hosts is not None:
            self._ray_closed = False
            self.parts.models.hosts.manager.ray.open()

    def end_feeds(self) -> None:
        """End the event and log streams; their clients connect again."""
        self.parts.web.streams.end_all()

    def busy_with(self) -> str:
        """What keeps the service from being idle, in words."""
        models = [f"{status.model} is {status.state}" for status in self.parts.models.router.running()]
        unready = [text for text in models if not text.endswith(" is ready")]
        return ", ".join([f"{self.parts.web.proxy.active} requests in progress", *unready])

    async def close_requests(self) -> None:
        """Answer waiting requests with 503, end running ones with an error event, and give up loads."""
        self._refusing = True
        self.parts.models.router.drain(BeingUpgraded())
        self.parts.web.proxy.close(BeingUpgraded())
        self.parts.observability.inflight.cancel_all()
        await deferLater(self.parts.context.reactor, RESPONSE_TIME)
        self.parts.web.factory.abort_busy()

    async def flush(self) -> None:
        """Write the store and the logs, and leave no child: the new program would not reap it, and a hook would lose
        its pipes."""
        parts = self.parts
        if parts.observability.machine.enabled:
            self._monitored = True
            await parts.observability.machine.stop()
        if parts.models.hosts is not None:
            self._ray_closed = True
            await parts.models.hosts.manager.ray.close()
        spare = parts.models.launcher.stop_spare()
        await parts.observability.activity.flush()
        await parts.memory.flush()
        deadline = parts.context.reactor.seconds() + FLUSH_TIMEOUT
        while (spare is not None and spare.status is None) or parts.models.hooks.busy or not parts.logs.idle:
            if parts.context.reactor.seconds() >= deadline:
                return
            await deferLater(parts.context.reactor, FLUSH_POLL)

    def fingerprint(self) -> Hashable:
        """The names, times and sizes of the configuration files and of the code."""
        settings = self.parts.context.settings
        return frozenset(fingerprint(settings.config, settings.config_dir).items()), code_fingerprint()

    def collect(self) -> tuple[int, UpgradeState]:
        """(descriptor of the listening socket, everything else)."""
        models, handover = self.parts.models, self.parts.web.factory.handover()
        connections = [IdleConnection(one.fileno(), int(one.family), early) for one, early in handover]
        return self._listening_port.fileno(), UpgradeState(
            servers=tuple(models.router.snapshots()),
            connections=tuple(connections),
            keeper=models.guardian.handover(),
            profile=models.router.chosen_profile,
            pinned=tuple(sorted(models.router.pinned)),
            logs=self.parts.logs.registry.histories(),
            count=self.count,
            ailing=tuple(models.router.failures()),
            memory=self.parts.memory.monitor.ledger,
            ollama=self.ollama.handover(),
            leases=models.leases.hand_over(),
            jobs=self.parts.web.inference.jobs.hand_over(),
        )

    @property
    def _listening_port(self) -> FileDescriptor:
        port = self.port()
        assert isinstance(port, FileDescriptor)  # as all of Twisted's ports; an upgrade begins after `startService`
        return port


def take_over(parts: ServiceParts, state: UpgradeState) -> None:
    """Begin with what the program before an upgrade had. What cannot be taken over is ended or left out, and logged;
    nothing keeps the service from running."""
    models = parts.models
    router = models.router
    try:
        if state.keeper is not None:
            models.guardian.adopt(*state.keeper)
    except Exception:  # its pipe is closed with us, and another one is started with the next child
        log.failure("the process guardian could not be taken over")
    if state.profile is not None and (not state.profile or state.profile in router.config.profiles):
        router.select_profile(state.profile)
    for model in state.pinned:
        if model in router.config.models:
            router.pin(model)
    router.swaps.restore_failures(state.ailing)
    if state.memory is not None:
        router.memory_changed(state.memory)
    for lease in state.leases:
        try:
            models.leases.adopt(lease)
        except Exception:  # its program runs on, but other models may be loaded beside it
            log.failure("the lease {lease} could not be taken over", lease=lease.id)
    for server in router.swaps.adopt(state.servers):
        log.warn("stopping {model}: it is no longer configured", model=server.model)
        output = parts.logs.registry.model(server.model).write
        router.swaps.delay_starts_until(end_unwanted(server, models.launcher, models.ask, output))
    for status in router.running():
        models.capabilities.ask_soon(status.model)
    parts.web.inference.jobs.adopt(state.jobs)
    for one in state.connections:
        try:
            parts.web.factory.adopt(parts.context.reactor, one.descriptor, one.family, one.early)
        except Exception:  # the other connections are taken over all the same
            log.failure("a client connection could not be taken over")
    log.info(
        "upgraded in place: pid {pid}, {models} with their servers, {clients} connections",
        pid=os.getpid(),
        models=", ".join(status.model for status in router.running()) or "no models",
        clients=len(state.connections),
    )
