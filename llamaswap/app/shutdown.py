"""The end of the service: Draining, then StoppingServers, then Closing, within one deadline.

Each phase ends with an event (the last request, the last process, the last write) or when its time is up. A second
signal ends the wait of a phase at once.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import cast

from attrs import define, field
from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.defer import TimeoutError as TimeIsUp
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger

from llamaswap.app.ollama_listener import OllamaListener
from llamaswap.app.parts import ServiceParts

SERVERS_TIMEOUT = 12.0  # seconds for stopping the servers, after the requests had `drainTimeout`
CLOSE_TIMEOUT = 2.0  # seconds that disks and drivers have at least for their pending work
STOP_TIMEOUT = 1.0  # seconds that the servers have at least

log = Logger("llamaswap.app.service")


class ShutdownPhase(Enum):
    """How far the shutdown is."""

    RUNNING = "running"
    DRAINING = "draining"
    STOPPING_SERVERS = "stopping servers"
    CLOSING = "closing"
    DONE = "done"


@define(eq=False)
class Shutdown:
    """One shutdown of the service's parts. `port` gives the listening port, `ollama` is the second one; `requested` is
    set by the first signal, before the reactor hears of it."""

    parts: ServiceParts
    port: Callable[[], IListeningPort | None]
    ollama: OllamaListener
    phase: ShutdownPhase = field(default=ShutdownPhase.RUNNING, init=False)
    requested: bool = field(default=False, init=False)
    _hurried: bool = field(default=False, init=False)
    _waiting: Deferred[None] | None = field(default=None, init=False)

    async def run(self) -> None:
        """Go through all phases. Never waits longer than the deadline and `CLOSE_TIMEOUT`."""
        clock, models = self.parts.context.reactor, self.parts.models
        drained = clock.seconds() + models.router.config.drain_timeout
        deadline = drained + SERVERS_TIMEOUT
        self.phase = ShutdownPhase.DRAINING
        await self._stop_accepting()
        await self._wait(self.parts.web.proxy.when_idle(), drained)
        self.phase = ShutdownPhase.STOPPING_SERVERS
        await self._stop_servers(max(STOP_TIMEOUT, deadline - clock.seconds()))
        await self._wait(models.hooks.when_idle(), deadline)  # what follows an unload follows this one too
        self.phase = ShutdownPhase.CLOSING
        closing = Deferred.fromCoroutine(self._close())
        closing.addTimeout(max(CLOSE_TIMEOUT, min(SERVERS_TIMEOUT, deadline - clock.seconds())), clock)
        try:
            await closing
        except Exception as error:
            log.error("giving up on pending disk or driver work: {error!r}", error=error)
        self.phase = ShutdownPhase.DONE

    def hurry(self) -> None:
        """Wait for no request any more, as a second signal asks."""
        if self._hurried or self.phase is ShutdownPhase.DONE:
            return
        self._hurried = True
        log.warn("second signal received: shutting down without draining")
        if self._waiting is not None:
            self._waiting.cancel()

    async def _wait(self, done: Deferred[None], until: float) -> None:
        """Wait for `done` until that time, or until a second signal."""
        clock = self.parts.context.reactor
        self._waiting = done.addTimeout(max(0.0, until - clock.seconds()), clock)
        if self._hurried:
            done.cancel()
        try:
            await done
        except (TimeIsUp, CancelledError):
            pass
        finally:
            self._waiting = None

    async def _stop_accepting(self) -> None:
        """Take no further work: close the listening socket, refuse waiting requests, end the feeds."""
        models, web = self.parts.models, self.parts.web
        log.info("shutting down: {count} requests in progress", count=web.proxy.active)
        models.slots.closing = True
        self.parts.reloader.stop()
        self.parts.watchdog.stop()
        models.peers.stop()
        models.router.drain()
        port = self.port()
        if web.agent is not None:
            cast(FileDescriptor, port).stopReading()  # a refused connection tells the front that no server is left here
        elif port is not None:
            await maybeDeferred(port.stopListening)
        await self.ollama.close()
        web.streams.end_all()
        if web.load_tests is not None:
            web.load_tests.close()
        if web.downloads is not None:
            web.downloads.close()
        web.factory.drain()

    async def _stop_servers(self, seconds: float) -> None:
        """Stop all servers within `seconds`, and then close what is still connected."""
        models, web = self.parts.models, self.parts.web
        web.proxy.close()
        models.leases.close()
        await models.router.shutdown(seconds)
        self.parts.observability.inflight.cancel_all()  # requests to peers
        web.factory.abort()
        models.pool.close()
        if models.hosts is not None:
            models.hosts.close()
        if web.agent is not None:
            web.agent.close()
        models.launcher.close()
        models.record_file.close()
        models.guardian.close()

    async def _close(self) -> None:
        """Close the store and end the threads."""
        await self.parts.observability.close()
        await self.parts.memory.close()
        await self.parts.models.driver_thread.close()
        await self.parts.models.disk_thread.close()
