"""The service: everything built, started in order, and ended in order.

Order of the start: listen (a taken port ends it before any server runs), then sweep what an earlier run left (no model
is loaded beside it), then preload; what is only nice to have (the machine's meters, a spare process) comes after the
listener. Order of the end: one ladder with one deadline, see `LlamaSwap.stopService`.
"""

from __future__ import annotations

import gc
import linecache
import os
import random
import signal
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from attrs import evolve
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import deferLater
from twisted.logger import ILogObserver, Logger, globalLogPublisher
from twisted.python.failure import Failure

from llamaswap import early_signals
from llamaswap.app.admin_wiring import Surface, largest_body
from llamaswap.app.handover import ServiceHandover, take_over
from llamaswap.app.settings import ServiceSettings, listening_endpoint, record_path, sources_of
from llamaswap.app.startup_log import LibraryErrors, announce, give_up, write_stdout
from llamaswap.app.systemd import SystemdNotifier, without_ours
from llamaswap.config import Config, ConfigText, LoadedConfig, Model, Peer, diff, load
from llamaswap.config import files as config_files
from llamaswap.config.command_line import split
from llamaswap.config.ports import keep
from llamaswap.config.reload import ReloadDiff as ReloadPlan
from llamaswap.config.reload import Reloader
from llamaswap.config.schema import HangDetection
from llamaswap.events import ActivityStored, EventBus, PeersChanged, StateChanged, SwapBegan, SwapEnded
from llamaswap.http_client import HttpClient
from llamaswap.liveness import sample
from llamaswap.liveness.probe import page, responds, token
from llamaswap.liveness.watchdog import OpenStream, OutputCounter, Watchdog, stall_of
from llamaswap.observe.accesslog import AccessLog
from llamaswap.observe.activity import ActivityLog
from llamaswap.observe.activity_row import ActivityRow
from llamaswap.observe.captures import Captures
from llamaswap.observe.file_store import FileStore
from llamaswap.observe.gpu_sources import usual as gpu_sources
from llamaswap.observe.gpus import GpuReader, GpuReading
from llamaswap.observe.hardware import Hardware
from llamaswap.observe.history import SwapHistory
from llamaswap.observe.inflight import InflightRequests
from llamaswap.observe.log_format import LogFormatter
from llamaswap.observe.logfiles import LogFileLimits as LogSettings
from llamaswap.observe.logfiles import LogFiles
from llamaswap.observe.logs import LogRegistry
from llamaswap.observe.machine import MachineMonitor
from llamaswap.observe.metrics import Metrics
from llamaswap.observe.store import ActivityStore
from llamaswap.observe.vram_reclaim import VramReclaim
from llamaswap.observe.worker import WorkerThread
from llamaswap.proxy.bodies import SiteContent
from llamaswap.proxy.byte_budget import disk_room, memory_room
from llamaswap.proxy.client_connection import ProxyServerFactory
from llamaswap.proxy.fastpath.lazy_tls import enable_tls
from llamaswap.proxy.forward import RequestForwarder
from llamaswap.proxy.listen import refusal
from llamaswap.proxy.peers import PeerDirectory
from llamaswap.proxy.pool import Pool
from llamaswap.routing.router import Router
from llamaswap.servers import hooks, slots
from llamaswap.servers.orphans import ChildRecordFile, GuardianClient, sweep
from llamaswap.servers.readahead import ReadAhead
from llamaswap.servers.server_request import SocketRequest, connector
from llamaswap.servers.spawn import Launcher
from llamaswap.servers.supervisor import Supervisor
from llamaswap.upgrade import coordinator
from llamaswap.upgrade.coordinator import InheritedState, Upgrade
from llamaswap.version import build as build_info
from llamaswap.web import errors
from llamaswap.web.access_log import AccessLogger
from llamaswap.web.app import make_site
from llamaswap.web.auth import Authenticator, KeyRing
from llamaswap.web.dispatch import Dispatcher
from llamaswap.web.inference import Inference
from llamaswap.web.loadtest import LoadTests
from llamaswap.web.passthrough import Passthrough
from llamaswap.web.processes import stalled
from llamaswap.web.secret_masking import known_secrets, masked_text
from llamaswap.web.streaming_response import StreamingResponses

log = Logger("llamaswap.app.service")

# A request leaves no cycles behind, so looking for some after every few of them is a tenth of the work for nothing.
GC_THRESHOLD = (10_000, 20, 50)
WARM_AFTER = (
    0.02  # seconds from a server's readiness, when those who waited for it are served, to the next spare process
)
DRAIN_LOOK = 0.02  # seconds between two looks whether the last request has ended
GPU_SECONDS = 5.0  # that a reading of the GPUs may take when a silent server is judged
LAST_WORK = 2.0  # seconds that disks and drivers have at least for what they still do
LAST_LINES = 1.0  # seconds that the last lines may take on their way to standard output
KEPT_FOR_SERVERS = 12.0  # seconds for stopping the servers, after the requests had `drainTimeout`


class LlamaSwap(MultiService):
    """The running product: its parts, wired once here, and the order in which they begin and end.

    `reactor` is the real one (or a double with the same interfaces), `loaded` the configuration to begin with.
    """

    def __init__(
        self,
        reactor: Any,
        settings: ServiceSettings,
        environ: Mapping[str, str],
        loaded: LoadedConfig,
        inherited: InheritedState | None = None,
    ) -> None:
        super().__init__()
        self.inherited = inherited
        self.reactor = reactor
        self.settings = settings
        self.environ = environ
        self.loaded = loaded
        if encrypted(loaded.config):
            enable_tls()
        self._port: IListeningPort | None = None
        self._hurry: Deferred[None] | None = None
        config = loaded.config
        wall = time.time

        # What is written.
        self.stdout = write_stdout()
        self.log_files = LogFiles(
            log_files_of(config), lambda problem: reactor.callFromThread(log.error, "{problem}", problem=problem)
        )
        self.book = LogRegistry(to_stdout=config.log_to_stdout, stdout=self.stdout, to_file=self.log_files.write)
        self.lines = LogFormatter(
            self.book.proxy.write,
            level=config.log_level,
            time_format=config.log_time_format,
            wall=wall,
            from_thread=lambda write, data: reactor.callFromThread(write, data),
            later=reactor.callLater,
        )
        self.observers: tuple[ILogObserver, ...] = (self.lines, LibraryErrors(self.lines))
        self.observed = False  # whether somebody passes log events to `log_observer`
        self.bus = EventBus(lambda error: log.failure("a listener failed", Failure(error)))

        # Who runs.
        environment = without_ours(environ)
        self.notifier = SystemdNotifier.of(environ, reactor)
        token = uuid.uuid4().hex
        self.guardian = GuardianClient(reactor, environment)
        self.record = record_path(settings.listen, environ)
        self.launcher = Launcher(
            reactor,
            reactor,
            environment,
            token,
            watchers=(self.guardian, ChildRecordFile(self.record)),
            secrets=lambda: known_secrets(self.router.config),
        )
        self.ask = SocketRequest(reactor, connector(reactor))
        self.pool = Pool(reactor)

        send = HttpClient(reactor)
        self.hooks = hooks.HookRunner(reactor, lambda: self.router.config.hooks, environment, send)
        self.hooks.listen(self.bus)

        self.heard = OutputCounter()

        self.slots = slots.SlotStore(reactor, send, self._remove)

        def supervise(model: Model, listener: Any) -> hooks.HookedSupervisor:
            supervisor = Supervisor(
                model,
                clock=reactor,
                launcher=self.launcher,
                ask=self.ask,
                log=self.heard.writer(model.id, self.book.writer(model.id)),
                listener=listener,
            )
            return hooks.HookedSupervisor(
                slots.SlotSavingSupervisor(supervisor, model, self.slots), model.id, self.hooks
            )

        self.gpus = GpuReader(
            gpu_sources(sys.platform, environ, os.getuid(), config.performance.every), reactor.seconds
        )
        self.memory = VramReclaim(self._read_gpus, reactor, self._longest_reclaim)
        self.router = Router(config, supervise, reactor, self.bus, self.memory)

        self.bus.subscribe(StateChanged, self._server_changed)
        self.bus.subscribe(SwapBegan, self._swap_began)
        self.reader = WorkerThread("reader", reactor)
        self.ahead = ReadAhead(self.reader, self._command, reactor.seconds)

        self.peers = PeerDirectory(reactor, wall, send, lambda: self.router.config, self._learned, self._peers_changed)

        # What is seen.
        # What these two do in the end may be broken off: a configuration is written in one step.
        self.parser = WorkerThread("parser", reactor)
        self.configurer = WorkerThread("configuration", reactor, collect=False)
        self.recorder = WorkerThread("recorder", reactor)
        self.watcher = WorkerThread("watcher", reactor)
        # Of its own: a network folder that hangs must not keep the meters.
        self.surveyor = WorkerThread("surveyor", reactor)
        self.meters = Metrics(in_flight=lambda: self.inflight.by_model(), machine=lambda: self.machine.families())
        self.meters.listen(self.bus)
        self.captures = Captures(config.capture_buffer)
        self.activity = ActivityLog(
            store=self._store(config),
            captures=self.captures,
            run=self.recorder,
            clock=reactor,
            wall=wall,
            stored=self._stored,
            sessions=config.ui.activity.session_id,
        )
        self.inflight = InflightRequests(
            clock=reactor,
            sessions=config.ui.activity.session_id,
            finished=self.meters.finished,
            why=lambda model: self.router.wait_reason(model),
        )
        for news in (StateChanged, SwapBegan, SwapEnded):
            self.bus.subscribe(news, lambda event: self.inflight.held())
        self.history = SwapHistory(wall=wall, log_tail=lambda model: self.book.model(model).history())
        self.history.listen(self.bus)
        self.machine = MachineMonitor(
            run=self.watcher,
            clock=reactor,
            wall=wall,
            every=config.performance.every,
            gpus=self.gpus,
            wanted=lambda: bool(self.router.running()),
        )
        self.hardware = Hardware(run=self.watcher, wall=wall, version=build_info().version)

        # What is served.
        earlier = inherited.state if inherited is not None else None
        words = coordinator.command_line()
        self.upgrade = Upgrade(
            reactor,
            ServiceHandover(self),
            lambda: coordinator.check(reactor, words, os.environ),
            lambda listening, state: coordinator.exec_new_process(
                words, os.environ, settings.listen.text, listening, state, lambda: self._hurry is not None
            ),
            count=earlier.count if earlier is not None else 0,
        )
        self.streams = StreamingResponses()
        keys = Authenticator(KeyRing(lambda: self.router.config.api_keys))
        self.dispatcher = Dispatcher(
            router=self.router,
            relay=RequestForwarder(reactor, self.pool),
            render=partial(errors.render, hide=lambda text: masked_text(text, known_secrets(self.router.config))),
            scopes=(self.inflight, self.activity),
            clock=reactor,
            wall=wall,
            uniform=random.uniform,
            shuffled=lambda items: random.sample(list(items), len(items)),
            peer_heard=self.peers.heard,
            placed=self._placed,
            environment=environment.values(),
        )
        self.watchdog = Watchdog(
            reactor,
            lambda: [OpenStream(*facts) for facts in self.inflight.streams()],
            lambda model: model in self.inflight.by_model(),
            self._stall,
            self._signs,
            self._health,
            self._canary,
            lambda model, why: self.router.mark_hung(model, why),
        )
        self.inference = Inference(self.router, self.dispatcher, keys, self.peers.avoided, self.parser)
        self.passthrough = Passthrough(self.router, self.dispatcher, keys, self.parser)
        self.access = AccessLog(self.lines)
        self.surface = Surface(self)
        self.load_tests = LoadTests(lambda: self.router.config, reactor, self.surface.sends_to_itself())
        watch = config_files.FileWatch(settings.config, settings.config_dir)
        self.reloader = Reloader(
            reactor,
            self.bus,
            lambda: self.router.config,
            lambda: self.configurer(self._load),
            lambda old, new: self.peers.filled(new),
            diff,
            self._apply,
            revisions(watch.changed),
        )
        memory, disk = memory_room(), disk_room()
        site = make_site(
            self.surface.admin(keys),
            clock=reactor,
            access=self.access,
            content=lambda length: SiteContent(length, memory, disk),
        )
        self.front = ProxyServerFactory(
            self.inference.is_model_route,
            self.inference.serve,
            site,
            reactor,
            memory=memory,
            disk=disk,
            largest=lambda head: largest_body(keys, head),
            served=AccessLogger(self.access, reactor),
        )

    def log_observer(self, event: Any) -> None:
        """Every log event of the process: ours become lines of the proxy log, errors of others too."""
        for observer in self.observers:
            observer(event)

    def _placed(self, request: str, place: int) -> None:
        """A request waits behind others: its model is wanted as soon as they are done."""
        self.inflight.phase(request, "queued", place)
        model = self.inflight.model(request)
        if model is not None and self.router.state(model) == "stopped":
            self.ahead.begin(model)

    def _swap_began(self, event: SwapBegan) -> None:
        """While the evicted stop there is time to prepare the start."""
        if event.evicted:
            self.launcher.warm()
            self.ahead.begin(event.model)

    def _command(self, model: str) -> Sequence[str]:
        """A model's command in words; none where it cannot be read."""
        definition = self.router.config.models.get(model)
        try:
            return split(definition.cmd) if definition is not None else ()
        except ValueError:
            return ()

    def _server_changed(self, event: StateChanged) -> None:
        """Connections to a server that is gone are worth nothing; the next one may listen on the same port."""
        if event.new == "starting":
            self.ahead.end(event.model)
        if event.new == "ready":
            self.launcher.warm(WARM_AFTER)
        if event.new == "stopped":
            endpoint = self.router.status(event.model).endpoint
            if endpoint is not None:
                self.pool.forget(endpoint)

    def _learned(self, peers: Mapping[str, Peer]) -> None:
        self.router.update_peers(peers)
        self._peers_changed()

    def _peers_changed(self) -> None:
        self.bus.publish(PeersChanged())

    def _read_gpus(self) -> Deferred[Sequence[GpuReading]]:
        """The boards as they are now, read beside the reactor."""
        if self.router.config.performance.disabled:
            return succeed(())
        return self.watcher(self.gpus.read)

    def _longest_reclaim(self) -> float:
        return self.router.config.routing.scheduler.settings.fifo.reclaim

    def _stall(self, model: str) -> HangDetection | None:
        found = self.router.config.models.get(model)
        return None if found is None else stall_of(found)

    def _signs(self, model: str) -> Deferred[sample.LivenessSample | None]:
        """A look at a model's server; None where there is none."""
        return Deferred.fromCoroutine(self._look(model))

    async def _look(self, model: str) -> sample.LivenessSample | None:
        if model not in self.router.config.models:
            return None  # a reload took it away meanwhile
        status, said = self.router.status(model), self.heard.counts.get(model, 0)
        if status.pid is None:
            return None
        reading: Deferred[Sequence[GpuReading]] = self._read_gpus()
        reading.addTimeout(GPU_SECONDS, self.reactor)
        try:
            gpu = max((board.gpu_util_pct for board in await reading), default=0.0)
        except Exception:  # a driver that does not answer is no sign of life
            gpu = 0.0
        return evolve(sample.look(status.pid, status.port), said=said, gpu=gpu, leader=status.pid)

    def _health(self, model: str, limit: float) -> Deferred[bool]:
        """Ask a model's server what it was asked while it started; True where there is none to ask."""
        found = self.router.config.models.get(model)
        endpoint = self.router.status(model).endpoint if found is not None else None
        if found is None or endpoint is None:
            return succeed(True)
        path = found.check_endpoint.strip()
        return succeed(False) if path == "none" else responds(self.ask, endpoint, page(path), limit)

    def _canary(self, model: str, limit: float) -> Deferred[bool]:
        """Ask a model's server for a token; True where there is none to ask."""
        found = self.router.config.models.get(model)
        endpoint = self.router.status(model).endpoint if found is not None else None
        if found is None or endpoint is None:
            return succeed(True)
        return responds(self.ask, endpoint, token(found.use_model_name or model), limit)

    def _remove(self, path: str) -> None:
        """Delete a file beside the reactor; one that is gone is no matter."""

        def remove() -> None:
            with suppress(OSError):
                os.unlink(path)

        self.watcher(remove)

    def slot_cache(self, model: str) -> dict[str, Any]:
        """How a model fares with what its servers save."""
        return self.slots.document(self.router.config.models[model])

    def _stored(self, row: ActivityRow) -> None:
        model = self.router.config.real(row.model)
        if model is not None:
            usage = row.usage
            self.slots.read(model, usage.input_tokens, usage.cache_tokens, usage.prompt_per_second)
        self.meters.stored(row)
        self.bus.publish(ActivityStored(row.id))

    def _store(self, config: Config) -> ActivityStore | FileStore:
        if config.store is None:
            return ActivityStore(None, config.metrics_max_in_memory)
        later = self.reactor.callFromThread
        return FileStore(
            config.store.path,
            config.metrics_max_in_memory,
            say=lambda text: later(log.warn, "{text}", text=text),
            renumbered=lambda: later(self.activity.renumbered),
            seconds=self.reactor.seconds,
        )

    # -- configuration -------------------------------------------------------------------------------------

    def sources(self) -> list[ConfigText]:
        return sources_of(self.settings)

    def _load(self) -> LoadedConfig:
        """The configuration on disk, with the ports of the one in force; called on the configuration's thread."""
        loaded = load(self.sources(), {**os.environ}, facts=config_files.DiskFacts())
        return evolve(loaded, config=keep(self.router.config, loaded.config))

    def _apply(self, config: Config, plan: ReloadPlan) -> None:
        """Put a new configuration in force: the router's models, then everybody who works by its settings."""
        old = self.router.config
        if encrypted(config):
            enable_tls()
        for name in (*plan.removed, *plan.restarted):
            endpoint = old.models[name].endpoint
            if endpoint is not None:
                self.pool.forget(endpoint)
        self.router.apply(config, plan)
        self.lines.retune(config.log_level, config.log_time_format)
        self.inflight.retune(config.ui.activity.session_id)
        self.captures.resize(config.capture_buffer)
        self.activity.retune(config.ui.activity.session_id)
        self.book.retain(config.models)
        self.log_files.retune(log_files_of(config))
        self.watchdog.retain(config.models)
        self.peers.retune()
        if config.store != old.store:
            self.activity.use(self._store(config))
        if config.performance.disabled:
            self.machine.stop()
        elif not self.loaded.config.performance.disabled:  # what was off at the start stays off
            self.machine.retune(config.performance.every)
            self.machine.start()

    # -- begin ---------------------------------------------------------------------------------------------

    def startService(self) -> None:
        """Listen, or end at once; everything else follows in its turn."""
        super().startService()
        listen, there = self.settings.listen, self.inherited
        if there is not None and there.state is not None:
            self.book.remember(there.state.logs)
        endpoint = listening_endpoint(self.reactor, listen, there)
        listening: Deferred[IListeningPort] = endpoint.listen(self.front)
        outcome: list[Any] = []
        listening.addBoth(outcome.append)
        if outcome and isinstance(outcome[0], Failure):
            give_up(refusal(listen.text, outcome[0].value))
        listening.addBoth(lambda _: None)
        self._port = outcome[0]
        announce(self.settings, self.loaded, self._port.getHost())
        self.reactor.callWhenRunning(self._running)

    @property
    def port(self) -> IListeningPort | None:
        """Where it listens, once it does."""
        return self._port

    def _running(self) -> None:
        """The reactor turns: what may take a moment."""
        self.notifier.ready("listening")
        self.notifier.watch(lambda: not stalled(self.router.health()))
        if not self.observed:
            globalLogPublisher.addObserver(self.log_observer)  # type: ignore[arg-type] # a method is callable
        self._handle_signals()
        if self.inherited is not None and self.inherited.state is not None:
            take_over(self, self.inherited.state)
        linecache.clearcache()  # attrs leaves the source of each class it makes there: a megabyte
        gc.collect()
        gc.freeze()  # what was made so far lives as long as the process: no need to look at it again
        gc.set_threshold(*GC_THRESHOLD)
        tasks = Deferred.fromCoroutine(self._begin())
        tasks.addErrback(lambda failure: log.failure("start", failure))

    async def _begin(self) -> None:
        lost = self.inherited is not None and self.inherited.state is None
        if self.inherited is not None and lost:
            log.error("upgrade: the model servers could not be taken over: {problem}", problem=self.inherited.problem)
        if self.record is not None:
            sweeping = sweep(self.record, self.reactor, lost=os.getpid() if lost else 0)
            self.router.delay_starts_until(sweeping)
            for swept in await sweeping:
                word = "ended" if swept.gone else "could not end"
                log.warn("{word} an orphan of an earlier run: {model}", word=word, model=swept.birth.model)
        if not self.running:
            return
        self.launcher.warm()
        if not self.loaded.config.performance.disabled:
            self.machine.start()
        hardware = self.hardware.take()
        self.watchdog.start()
        if self.settings.watch:
            self.reloader.watch()
        self.peers.retune()
        if self.inherited is None:
            await self.router.preload()
        await hardware

    def _handle_signals(self) -> None:
        """SIGHUP reloads; SIGUSR2 upgrades in place; a second SIGTERM or SIGINT cuts the draining short."""
        try:
            signal.signal(signal.SIGHUP, lambda *_: self.reactor.callFromThread(self.reload))
            signal.signal(signal.SIGUSR2, lambda *_: self.reactor.callFromThread(self._asked_to_upgrade))
            for number in (signal.SIGTERM, signal.SIGINT):
                # Not through Twisted's handlers: with them the process ends by the signal, not with status 0.
                signal.signal(number, lambda *_: self._asked_to_end())
            if early_signals.reload_asked():
                self.reactor.callFromThread(self.reload)
        except ValueError:  # not the main thread: an embedding program has its own ideas
            pass

    def _asked_to_upgrade(self) -> None:
        if self.running:
            self.upgrade.ask()

    def _asked_to_end(self) -> None:
        if self._hurry is None:
            self._hurry = Deferred()
            self.reactor.callFromThread(self.reactor.stop)
        else:
            self.reactor.callFromThread(self._hurry_up)

    def _hurry_up(self) -> None:
        hurry = self._hurry
        if hurry is not None and not hurry.called:
            log.warn("second signal received: shutting down without draining")
            hurry.callback(None)

    def reload(self) -> None:
        """Load the configuration again, as SIGHUP asks."""
        self.notifier.reloading()
        done = self.reloader.reload()
        done.addCallback(lambda _: self.notifier.ready(self._reload_status()))

    def _reload_status(self) -> str:
        status = self.reloader.status
        good = status is None or status.ok
        return "listening" if good else "listening; the last configuration was refused, the one before is in force"

    # -- end -----------------------------------------------------------------------------------------------

    def stopService(self) -> Deferred[None]:
        """Stop listening, refuse waiting requests, end the feeds, drain requests, stop the servers, close the store.

        One deadline over all of it: requests may use `drainTimeout` of it, the servers' stop the rest.
        """
        super().stopService()
        return Deferred.fromCoroutine(self._end())

    async def _end(self) -> None:
        drained = self.reactor.seconds() + self.router.config.drain_timeout
        deadline = drained + KEPT_FOR_SERVERS
        self.slots.closing = True
        log.info("shutting down: {count} requests in progress", count=self.dispatcher.active)
        self.notifier.stopping()
        self.notifier.rest()
        self.upgrade.cancel()
        self.reloader.stop()
        self.watchdog.stop()
        self.peers.stop()
        self.router.drain()
        if self._port is not None:
            await maybeDeferred(self._port.stopListening)
        self.streams.end_all()
        self.load_tests.close()
        self.front.drain()
        await self._while(lambda: bool(self.dispatcher.active), drained)
        self.dispatcher.close()
        await self.router.shutdown(max(1.0, deadline - self.reactor.seconds()))
        self.inflight.cancel_all()  # those that peers still answer
        self.front.cut()
        self.pool.close()
        self.launcher.close()
        self.guardian.close()
        await self._while(lambda: self.hooks.busy, deadline)  # what follows an unload follows this one too
        putting_away = Deferred.fromCoroutine(self._put_away())
        putting_away.addTimeout(max(LAST_WORK, min(KEPT_FOR_SERVERS, deadline - self.reactor.seconds())), self.reactor)
        try:
            await putting_away
        except Exception as error:
            log.error("giving up on pending disk or driver work: {error!r}", error=error)
        log.info("shutdown complete")
        if not self.observed:
            globalLogPublisher.removeObserver(self.log_observer)  # type: ignore[arg-type] # the same
        self.log_files.close(LAST_LINES)
        self.stdout.close(LAST_LINES)

    async def _put_away(self) -> None:
        """Close the store and end the threads."""
        await self.activity.close()
        await self.recorder.close()
        await self.machine.stop()
        await self.watcher.close()
        await self.reader.close()

    async def _while(self, condition: Callable[[], bool], until: float) -> None:
        """As long as that holds, until the time is up, or somebody asks a second time."""
        while condition() and self.reactor.seconds() < until:
            if self._hurry is not None and self._hurry.called:
                return
            await deferLater(self.reactor, DRAIN_LOOK)


def log_files_of(config: Config) -> LogSettings | None:
    """Where logs are written besides; None for nowhere."""
    files = config.log_files
    return LogSettings(files.folder, files.size * 1024 * 1024, files.keep) if files.folder else None


def encrypted(config: Config) -> bool:
    """Whether a server or a peer is reached by TLS."""
    servers = [model.endpoint for model in config.models.values()]
    servers += [peer.endpoint for peer in config.peers.values()]
    return any(server is not None and server.scheme == "https" for server in servers)


def revisions(changed: Callable[[], bool]) -> Callable[[], int]:
    """A number that rises whenever `changed` says so: what the reloader compares."""
    number = 0

    def look() -> int:
        nonlocal number
        number += changed()
        return number

    return look


def build(
    reactor: Any, settings: ServiceSettings, environ: Mapping[str, str], inherited: InheritedState | None = None
) -> LlamaSwap:
    """The service for these settings. Raises ConfigError, or OSError and ValueError for what is given with them."""
    listening_endpoint(reactor, settings.listen, inherited)  # nonsense there is said before anything else
    loaded = load(sources_of(settings), environ, facts=config_files.DiskFacts())
    return LlamaSwap(reactor, settings, environ, loaded, inherited)
