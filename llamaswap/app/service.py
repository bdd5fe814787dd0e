"""The service: its parts, started and ended in order.

Start: it listens first (if the port is taken, the program ends before any server runs), then ends the servers that an
earlier run left (no model is loaded beside them), then preloads; optional work (the machine's monitor, a spare
process) follows. End: see `app.shutdown`.
"""

from __future__ import annotations

import gc
import linecache
import os
import signal
from collections.abc import Mapping
from typing import cast

from twisted.application.service import MultiService
from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort
from twisted.logger import LogEvent, Logger, globalLogPublisher
from twisted.python.failure import Failure

from llamaswap import early_signals
from llamaswap.app.handover import ServiceHandover, take_over
from llamaswap.app.late_modules import keep_late_modules
from llamaswap.app.model_parts import enable_tls_if_needed
from llamaswap.app.ollama_listener import OllamaListener, listen_address
from llamaswap.app.parts import ServiceParts
from llamaswap.app.settings import (
    IServiceReactor,
    ServiceContext,
    ServiceSettings,
    listening_endpoint,
    sources_of,
)
from llamaswap.app.shutdown import Shutdown
from llamaswap.app.startup_log import announce, give_up, log_missing
from llamaswap.app.systemd import SystemdNotifier, child_environment
from llamaswap.app.upgrade_coordinator import Upgrade
from llamaswap.config import LoadedConfig, load
from llamaswap.config import files as config_files
from llamaswap.discover import missing
from llamaswap.events import EventBus
from llamaswap.proxy.fastpath.memory_trim import configure_malloc
from llamaswap.proxy.listen import refusal
from llamaswap.servers.orphans import sweep
from llamaswap.upgrade import program
from llamaswap.upgrade.program import InheritedState

log = Logger("llamaswap.app.service")

# A request leaves no reference cycles, so collecting young objects as often as by default is a tenth of the work for
# nothing. The oldest ones are looked at as often as by default: connections to the site do leave cycles.
GC_THRESHOLD = (10_000, 20, 10)


class LlamaSwap(MultiService):
    """The running product.

    `reactor` is the real one (or a double with the same interfaces), `loaded` the first configuration, `inherited`
    what the program before an upgrade left, with its state `earlier` if that can be used. `observed` says that `twist`
    passes log events to `observe` already.
    """

    def __init__(
        self,
        reactor: IServiceReactor,
        settings: ServiceSettings,
        environ: Mapping[str, str],
        loaded: LoadedConfig,
        inherited: InheritedState | None = None,
    ) -> None:
        super().__init__()
        self.reactor = reactor
        self.settings = settings
        self.loaded = loaded
        self.inherited = inherited
        self.earlier = inherited.state if inherited is not None else None
        self.observed = False
        self.port: IListeningPort | None = None
        enable_tls_if_needed(loaded.config)
        bus = EventBus(lambda error: log.failure("an event listener failed", Failure(error)))
        self.notifier = SystemdNotifier.of(environ, reactor)
        context = ServiceContext(
            reactor,
            settings,
            environ,
            child_environment(environ),
            bus,
            reload=self.reload,
            bound_address=self.bound_address,
            ollama_port=lambda: self.ollama.number,
            upgrade_status=lambda: self.upgrade.document(),
        )
        given = self.earlier.ollama if self.earlier is not None else None
        self.ollama = OllamaListener(reactor, listen_address(loaded.config.ollama), given)
        self.parts = parts = ServiceParts(context, loaded.config)
        self.upgrade = self._build_upgrade(parts)
        self.shutdown = Shutdown(parts, lambda: self.port, self.ollama)

    def _build_upgrade(self, parts: ServiceParts) -> Upgrade:
        count = self.earlier.count if self.earlier is not None else 0
        words, where = program.command_line(), self.settings.listen.text
        return Upgrade(
            self.reactor,
            ServiceHandover(parts, lambda: self.port, self.ollama, count + 1),
            lambda: program.check(self.reactor, self.reactor, words, os.environ),
            lambda listening, state: program.exec_new_process(
                words, os.environ, where, listening, state, lambda: self.shutdown.requested
            ),
            count=count,
        )

    def observe(self, event: LogEvent) -> None:
        """Write one log event of the process."""
        self.parts.logs.observe(event)

    def bound_address(self) -> object:
        """The address of the listening socket; None before there is one."""
        return self.port.getHost() if self.port is not None else None

    # -- start ---------------------------------------------------------------------------------------------

    def startService(self) -> None:
        """Listen, or end the program with a message; everything else follows when the reactor runs."""
        super().startService()
        listen = self.settings.listen
        if self.earlier is not None:
            self.parts.logs.registry.remember(self.earlier.logs)
        endpoint = listening_endpoint(self.reactor, listen, self.inherited)
        outcome: list[IListeningPort | Failure] = []
        endpoint.listen(self.parts.web.factory).addBoth(outcome.append)
        for result in outcome:
            if isinstance(result, Failure):
                give_up(refusal(listen.text, result.value))
            self.port = result
        announce(self.settings, self.loaded, self.bound_address())
        self.ollama.open(self.parts.web.factory, self._ollama_refused)
        self.reactor.callWhenRunning(self._running)

    def _ollama_refused(self, where: str, error: BaseException) -> None:
        message = refusal(where, error, "does Ollama run? ollama.listen takes another address")
        if self.inherited is None:
            give_up(message)
        log.error("{message}", message=message)  # requests are being served: it goes on without

    def _running(self) -> None:
        self.notifier.ready("listening")
        self.notifier.start_watchdog(lambda: not self.parts.models.router.health().stalled)
        if not self.observed:
            globalLogPublisher.addObserver(self.observe)  # type: ignore[arg-type] # a method is callable
        self._handle_signals()
        if self.parts.models.hosts is not None:
            self.parts.models.hosts.open()  # before the first request is read
        if self.earlier is not None:
            take_over(self.parts, self.earlier)
        if self.settings.agent and self.port is not None:
            self.parts.models.guardian.hold(cast(FileDescriptor, self.port).fileno())
        linecache.clearcache()  # attrs leaves the source of each class it makes there: a megabyte
        configure_malloc()
        gc.collect()
        gc.freeze()  # what was made so far lives as long as the process: no need to look at it again
        gc.set_threshold(*GC_THRESHOLD)
        starting = Deferred.fromCoroutine(self._start())
        starting.addErrback(lambda failure: log.failure("the service did not start completely", failure))

    async def _start(self) -> None:
        models, observability = self.parts.models, self.parts.observability
        lost = self.inherited is not None and self.earlier is None
        if self.inherited is not None and lost:
            log.error("upgrade: the model servers could not be taken over: {problem}", problem=self.inherited.problem)
        if models.child_record is not None:
            sweeping = sweep(models.child_record, self.reactor, lost=os.getpid() if lost else 0)
            models.router.swaps.delay_starts_until(sweeping)
            for swept in await sweeping:
                outcome = "ended" if swept.gone else "could not end"
                log.warn("{outcome} an orphan of an earlier run: {model}", outcome=outcome, model=swept.record.model)
        if not self.running:
            return
        keeping = self.parts.config_thread(keep_late_modules)
        keeping.addErrback(lambda failure: log.failure("late imports will come from what is installed then", failure))
        models.launcher.warm()
        looking = models.disk_thread(lambda: missing.findings(list(self.loaded.config.models.values())))
        looking.addCallbacks(log_missing, lambda failure: log.failure("looking for missing files failed", failure))
        if not self.loaded.config.performance.disabled:
            observability.machine.start()
        self.parts.memory.start()
        if models.hosts is not None:
            await models.hosts.when_known()
        hardware = observability.hardware.take()
        self.parts.watchdog.start()
        if self.settings.watch:
            self.parts.reloader.watch()
        models.peers.retune()
        if self.inherited is None:
            await self.parts.memory.when_known()
            await models.router.preload()
        await hardware

    # -- signals -------------------------------------------------------------------------------------------

    def _handle_signals(self) -> None:
        """SIGHUP reloads, SIGUSR2 upgrades, SIGTERM and SIGINT end the service."""
        try:
            signal.signal(signal.SIGHUP, lambda *_: self.reactor.callFromThread(self.reload))
            signal.signal(signal.SIGUSR2, lambda *_: self.reactor.callFromThread(self._upgrade_requested))
            for number in (signal.SIGTERM, signal.SIGINT):
                # Not through Twisted's handlers: with them the process ends by the signal, not with status 0. And at
                # once, because an upgrade must see it before it replaces the program.
                signal.signal(number, lambda *_: self._stop_requested())
        except ValueError:  # not the main thread: the program that embeds the service handles signals
            return
        if early_signals.reload_requested():
            self.reactor.callFromThread(self.reload)

    def reload(self) -> None:
        """Load the configuration again, as SIGHUP asks."""
        self.notifier.reloading()
        done = self.parts.reloader.reload()
        done.addCallback(lambda _: self.notifier.ready(self._reload_status()))

    def _reload_status(self) -> str:
        status = self.parts.reloader.status
        good = status is None or status.ok
        return "listening" if good else "listening; the last configuration was rejected, the previous one is in use"

    def _upgrade_requested(self) -> None:
        if self.running:
            self.upgrade.request()

    def _stop_requested(self) -> None:
        if self.shutdown.requested:
            self.reactor.callFromThread(self.shutdown.hurry)
        else:
            self.shutdown.requested = True
            self.reactor.callFromThread(self.reactor.stop)

    # -- end -----------------------------------------------------------------------------------------------

    def stopService(self) -> Deferred[None]:
        """End the service; fires when everything has ended, at the latest at the deadline."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self.notifier.stopping()
        self.upgrade.cancel()
        await self.shutdown.run()
        log.info("shutdown complete")
        if not self.observed:
            globalLogPublisher.removeObserver(self.observe)  # type: ignore[arg-type] # the same
        self.parts.logs.close()


def build(
    reactor: IServiceReactor,
    settings: ServiceSettings,
    environ: Mapping[str, str],
    inherited: InheritedState | None = None,
) -> LlamaSwap:
    """The service for these settings. Raises ConfigError, or OSError and ValueError for unusable settings."""
    listening_endpoint(reactor, settings.listen, inherited)  # an unusable address is reported first
    loaded = load(sources_of(settings), environ, store_problem=config_files.store_problem)
    return LlamaSwap(reactor, settings, environ, loaded, inherited)
