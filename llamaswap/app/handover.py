"""The service as an upgrade sees it: how it comes to rest, what it hands over, and how it begins with what it got.

The way there is `upgrade`'s affair; here is only what each part of the service has to do with it.
"""

from __future__ import annotations

import os
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from attrs import define
from twisted.internet.task import deferLater
from twisted.logger import Logger

from llamaswap.config.files import fingerprint
from llamaswap.servers.termination import end_unwanted
from llamaswap.upgrade.coordinator import IdleConnection, UpgradeHost, UpgradeState

if TYPE_CHECKING:
    from llamaswap.app.service import LlamaSwap

REST = 2.0  # seconds the last children and the last lines are waited for; few take that long
LOOK = 0.005

log = Logger("llamaswap.upgrade.coordinator")


@define(eq=False)
class ServiceHandover:
    """The parts of a running service, for `Upgrade`."""

    service: LlamaSwap
    _held: bool = False
    _watched: bool = False

    def calm(self) -> bool:
        """Whether no request is under way, and each server is ready or down."""
        return not self.service.dispatcher.active and self.service.router.settled

    def still(self) -> bool:
        """Whether besides no connection has anything to send or to finish."""
        return self.calm() and not self.service.front.busy

    def hold(self) -> None:
        """Connections wait in the backlog, or unread."""
        self._held = True
        port: Any = self.service.port
        port.stopReading()
        self.service.front.hold()

    def release(self) -> None:
        """Everything goes on."""
        if not self._held:
            return
        self._held = False
        port: Any = self.service.port
        port.startReading()
        self.service.front.release()
        self.service.streams.resume()
        self.service.launcher.warm()
        if self._watched:
            self._watched = False
            self.service.machine.start()

    def end_feeds(self) -> None:
        """Feeds are asked for again by whoever wants them."""
        self.service.streams.end_all()

    def cut(self) -> None:
        """Requests lose their connection, servers that are being loaded are stopped."""
        router = self.service.router
        self.service.front.cut_busy()
        under_way = [status.model for status in router.running() if status.state != "ready"]
        if under_way:
            router.unload(under_way).addErrback(lambda failure: log.failure("unload", failure))

    async def flush(self) -> None:
        """The store, standard output, and no child left: nobody would fetch it, and a hook would lose its pipes."""
        service = self.service
        if service.machine.enabled:
            self._watched = True
            await service.machine.stop()
        spare = service.launcher.rest()
        await service.activity.flush()
        deadline = service.reactor.seconds() + REST
        writing = lambda: not (service.stdout.idle and service.log_files.idle)
        while (spare is not None and spare.status is None) or service.hooks.busy or writing():
            if service.reactor.seconds() >= deadline:
                return
            await deferLater(service.reactor, LOOK)

    def configured(self) -> Hashable:
        """The files' names, times and sizes."""
        settings = self.service.settings
        return tuple(sorted(fingerprint(settings.config, settings.config_dir).items()))

    def collect(self) -> tuple[int, UpgradeState]:
        """What there is now."""
        service = self.service
        port: Any = service.port
        connections = [IdleConnection(one.fileno(), int(one.family), early) for one, early in service.front.handover()]
        return port.fileno(), UpgradeState(
            servers=tuple(service.router.handover.snapshots()),
            connections=tuple(connections),
            keeper=service.guardian.handover(),
            profile=service.router.profile,
            pinned=tuple(sorted(service.router.pinned)),
            logs=service.book.histories(),
            count=service.upgrade.count + 1,
            ailing=tuple(service.router.failures()),
        )


_check: type[UpgradeHost] = ServiceHandover


def take_over(service: LlamaSwap, state: UpgradeState) -> None:
    """Begin with what an earlier program of this process had. What cannot be taken over is ended or left out, and said;
    nothing keeps the service from running."""
    router = service.router
    try:
        if state.keeper is not None:
            service.guardian.adopt(*state.keeper)
    except Exception:  # its pipe is closed with us, and another is started with the next child
        log.failure("the process guardian could not be taken over")
    if state.profile in router.config.profiles:
        router.select_profile(state.profile)
    for model in state.pinned:
        if model in router.config.models:
            router.pin(model)
    router.handover.restore_failures(state.ailing)
    for served in router.handover.adopt(state.servers):
        log.warn("stopping {model}: it is no longer configured", model=served.model)
        router.delay_starts_until(
            end_unwanted(served, service.reactor, service.launcher, service.book.writer(served.model))
        )
    for one in state.connections:
        try:
            service.front.adopt(service.reactor, one.descriptor, one.family, one.early)
        except Exception:  # one client's trouble must not cost the others
            log.failure("a client connection could not be taken over")
    log.info(
        "upgraded in place: pid {pid}, {models} with their servers, {clients} connections",
        pid=os.getpid(),
        models=", ".join(status.model for status in router.running()) or "no models",
        clients=len(state.connections),
    )
