"""Measures and learns the memory of models: joins the monitor with the router, the GPUs, the processes and the store.

It works in the background on threads of its own. With `memory: off` none of it runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from llamaswap.app.settings import ServiceContext
from llamaswap.config import Config
from llamaswap.config.command_line import split
from llamaswap.config.schema.memory import NO_CHOICE
from llamaswap.events import RequestQueued, SleepEnded, StateChanged
from llamaswap.fake_boards import FAKE_BOARDS, fake_boards
from llamaswap.kernel_files import machine_memory
from llamaswap.memory.containers import serving_process
from llamaswap.memory.footprint_key import footprint_key
from llamaswap.memory.footprints import STORE_NAME, FootprintStore
from llamaswap.memory.learner import Learner
from llamaswap.memory.measure import LargestForeign, MachineUse, MeasuredServer, Measurer
from llamaswap.memory.monitor import MemoryMonitor, ServerView
from llamaswap.memory.needs import need_elsewhere
from llamaswap.memory.nvidia_use import ListedUse, NvidiaUse
from llamaswap.memory.process_memory import children_of, largest_process
from llamaswap.nvml import NvmlLibrary
from llamaswap.observe.activity_row import ActivityStored
from llamaswap.observe.command_output import Programs
from llamaswap.observe.exposition import MetricFamily
from llamaswap.observe.gpus import GpuReading
from llamaswap.observe.worker import WorkerThread
from llamaswap.scheduling.memory import RAM, Device, MemoryNeed
from llamaswap.servers import procfs
from llamaswap.wire.byte_budget import MIB

if TYPE_CHECKING:
    from llamaswap.app.memory_document import MemoryReport
    from llamaswap.app.model_parts import ModelParts
    from llamaswap.memory.estimate import Estimator
    from llamaswap.memory.spread import Estimate
    from llamaswap.observe.logs import LogRegistry

FLUSH_TIMEOUT = 2.0
KNOWN_TIMEOUT = 5.0  # seconds that a preload waits for the first measurement
log = Logger("llamaswap.app.service")


class MemoryParts:
    """The parts that know the memory of models; `monitor` has the results."""

    def __init__(self, context: ServiceContext, config: Config, models: ModelParts, registry: LogRegistry) -> None:
        self.context, self.models, self.registry = context, models, registry
        reactor, router = context.reactor, models.router
        self.thread = WorkerThread("memory", reactor)
        self.store_thread = WorkerThread("footprints", reactor)
        self.nvidia = NvidiaUse(NvmlLibrary())
        self.measurer = Measurer(
            listed=self._listed_use,
            family=_family,
            outside=_outside,
            difference=models.memory.shares,
            foreign=LargestForeign(reactor.seconds, largest_process),
        )
        self._boards = ""  # their kinds, as a part of keys
        self._names: dict[str, str] = {}  # of GPUs, by device
        self._estimator: Estimator | None = None
        self._printed: dict[str, int] = {}  # bytes in a model's log when its server was started
        self.learner = Learner(
            run=self.store_thread,
            seconds=reactor.seconds,
            store=self._open_store(config),
            key_of=self._key_of,
            chosen=self._llamaswap_chooses,
            output=self._output,
            changed=lambda: self.monitor.publish(),
        )
        self.monitor = MemoryMonitor(
            clock=reactor,
            measure=self._measure,
            servers=self._servers,
            waiting=lambda: bool(router.queue()),
            models=lambda: router.config.models,
            settings=lambda: router.config.routing.memory,
            declared=self._declared,
            learner=self.learner,
            changed=router.memory_changed,
            estimate=self._estimate,
            estimating=lambda: router.config.routing.memory.mode == "on",
            rest=self._rest,
        )
        self._subscribe()

    @cached_property
    def report(self) -> MemoryReport:
        """Makes the document of /api/memory."""
        from llamaswap.app.memory_document import MemoryReport  # here, because only the admin site needs it

        router = self.models.router
        return MemoryReport(
            self.monitor,
            lambda device: self._names.get(device, ""),
            lambda: router.config.routing,
            self.models.leases.all,
            router.with_leases,
        )

    @property
    def names(self) -> Mapping[str, str]:
        """The names of the GPUs, by device."""
        return self._names

    def start(self) -> None:
        """Begin, unless the configuration says off."""
        if self.models.router.config.routing.memory.mode != "off":
            self.monitor.start()

    def when_known(self) -> Deferred[None]:
        """Fires when sizes are known, so that a preload does not evict what fits beside it, or after a while without an
        answer of the drivers; at once unless memory decides."""
        if self.models.router.config.routing.memory.mode != "on":
            return succeed(None)
        known = self.monitor.when_known().addTimeout(KNOWN_TIMEOUT, self.context.reactor)
        return known.addErrback(lambda failure: log.warn("preloading although the memory is not known yet"))

    def apply(self, config: Config, old: Config) -> None:
        """Use the settings of a new configuration."""
        if config.store != old.store:
            self.learner.keep_in(self._open_store(config))
        if config.routing.memory.mode == "off":
            self.monitor.stop()
        elif self.monitor.running:
            self.monitor.reloaded()
        else:
            self.monitor.start()

    def flush(self) -> Deferred[None]:
        """Write what was learned; a disk that does not answer is not waited for."""
        done = self.store_thread(self.learner.store.close).addTimeout(FLUSH_TIMEOUT, self.context.reactor)
        return done.addErrback(lambda failure: log.warn("what was learned of the memory is not written completely"))

    async def close(self) -> None:
        """Write what was learned, and end the threads."""
        self.monitor.stop()
        await self.flush()
        await self.store_thread.close()
        await self.thread.close()

    def families(self) -> Iterator[MetricFamily]:
        """The memory of each model, for /metrics."""
        family = MetricFamily(
            "gauge", "model_memory_bytes", "Memory a model's server was measured to use.", "model", "device", "source"
        )
        for model, use in self.monitor.use.models.items():
            for device, size in use.sizes.items():
                family.values[model, device, use.source] = size * MIB
        yield family

    # -- what the monitor and the learner ask --------------------------------------------------------------

    def _servers(self) -> list[ServerView]:
        router = self.models.router
        return [
            ServerView(
                model=status.model,
                pid=status.pid,
                state=status.state,
                argv=tuple(status.cmd),
                port=status.port,
                suspended=status.asleep_since is not None,
                load_seconds=status.load_seconds[-1] if status.load_seconds else None,
            )
            for status in (*router.running(), *router.suspended())
            if status.pid is not None
        ] + [
            ServerView(lease.model, lease.pid, "lease")
            for lease in self.models.leases.all()
            if lease.pid and lease.held is not None
        ]

    def _measure(self, servers: Sequence[MeasuredServer]) -> Deferred[MachineUse]:
        def with_boards(readings: Sequence[GpuReading]) -> Deferred[MachineUse]:
            self._boards = "; ".join(sorted(f"{reading.name} {reading.mem_total_mb}" for reading in readings))
            self._names = {f"gpu{reading.id}": reading.name for reading in readings}
            return self.thread(lambda: self.measurer.measure(servers, readings))

        return self._read_gpus().addCallback(with_boards)

    def _read_gpus(self) -> Deferred[Sequence[GpuReading]]:
        """The readings of the GPUs. If memory decides, they are needed also where the machine is not monitored."""
        if self.models.router.config.routing.memory.mode == "on":
            return self.models.driver_thread(self.models.gpus.read)
        return self.models.read_gpus()

    def _rest(self) -> None:
        """Let the GPUs sleep."""
        self.thread(self.nvidia.library.close)
        self.models.driver_thread(self.models.gpus.close)

    def _listed_use(self) -> Mapping[int, ListedUse]:
        folder = self.context.environ.get(FAKE_BOARDS)
        if folder is not None:
            return {board.id: ListedUse(board.processes) for board in fake_boards(folder)}
        return self.nvidia.read()

    def _declared(self, model: str, devices: Mapping[str, Device]) -> MemoryNeed | None:
        definition = self.models.router.config.models[model]
        if not definition.memory:
            return need_elsewhere(definition)
        from llamaswap.memory.estimate import declared_need  # here, because most configurations do not need it

        return declared_need(definition.memory, definition.gpus, devices)

    def _estimate(self, model: str, devices: Mapping[str, Device]) -> Deferred[MemoryNeed | None]:
        definition = self.models.router.config.models[model]
        environ = self.models.launcher.environment(definition.env, definition.env_policy)

        def estimate() -> MemoryNeed | None:
            from llamaswap.memory.estimate import Estimator  # here, because only `memory: on` needs it

            if self._estimator is None:
                self._estimator = Estimator()
            found = self._estimator.estimate(_words(definition.cmd), environ, devices, definition.gpus)
            return found.need if found is not None else None

        return self.store_thread(estimate)

    def estimate_command(self, command: str) -> Deferred[Estimate | None]:
        """What a command that is not configured yet would need."""
        environ = self.models.launcher.environment((), "inherit")

        def with_gpus(readings: Sequence[GpuReading]) -> Deferred[Estimate | None]:
            return self.store_thread(lambda: estimate({f"gpu{one.id}": Device(one.mem_total_mb) for one in readings}))

        def estimate(gpus: Mapping[str, Device]) -> Estimate | None:
            from llamaswap.memory.estimate import Estimator

            devices = {RAM: Device(machine_memory()[0] // MIB), **gpus}
            return Estimator().estimate(_words(command), environ, devices, NO_CHOICE)

        return self._read_gpus().addCallback(with_gpus)

    def _llamaswap_chooses(self, model: str) -> bool:
        definition = self.models.router.config.models.get(model)
        return definition is not None and (definition.gpus.auto or definition.gpus.count > 0)

    def _key_of(self, model: str) -> Callable[[], str]:
        boards, launcher = self._boards, self.models.launcher
        definition = self.models.router.config.models[model]
        # The number of chosen GPUs counts, not which ones they are, nor the port.
        count = (0 if definition.gpus.auto else definition.gpus.count) if self._llamaswap_chooses(model) else None

        def make() -> str:
            # Here, on the thread, because the definitions of thousands of models take half a second.
            placed = definition.with_gpus(tuple(range(count or 1))).with_port(1)
            argv = _words(placed.cmd)
            environ = launcher.environment(placed.env, placed.env_policy)
            return footprint_key(argv, environ, launcher.find(argv[0]) if argv else None, boards, count)

        return make

    def _output(self, model: str) -> bytes:
        """What the model's server has printed since its start, as far as its log still has it."""
        output = self.registry.model(model)
        new = output.written - self._printed.get(model, 0)
        return output.history()[-new:] if new > 0 else b""

    def _open_store(self, config: Config) -> FootprintStore:
        path = None
        if config.store is not None:
            path = os.path.join(os.path.dirname(config.store.path), STORE_NAME)
        reactor = self.context.reactor
        say = lambda text: reactor.callFromThread(log.warn, "{text}", text=text)
        return FootprintStore(path, say, reactor.seconds)

    # -- events --------------------------------------------------------------------------------------------

    def _subscribe(self) -> None:
        bus = self.context.bus
        bus.subscribe(StateChanged, self._state_changed)
        bus.subscribe(SleepEnded, lambda event: self.monitor.state_changed(event.model, "stopped"))
        bus.subscribe(RequestQueued, lambda event: self.monitor.request_queued())
        bus.subscribe(ActivityStored, self._requests_ended)

    def _state_changed(self, event: StateChanged) -> None:
        if event.new == "starting":
            self._printed[event.model] = self.registry.model(event.model).written
        self.monitor.state_changed(event.model, event.new)

    def _requests_ended(self, event: ActivityStored) -> None:
        config = self.models.router.config
        for asked in {row.model for row in event.rows}:
            model = config.real(asked)
            for name in config.copies(model) if model is not None else ():
                self.monitor.request_ended(name)


def _words(command: str) -> list[str]:
    """The words of a command; none if it cannot be used."""
    try:
        return split(command)
    except ValueError:
        return []


def _family(pid: int) -> Collection[int]:
    """The descendants of a process."""
    if not procfs.available():
        return children_of(pid)
    return [one.pid for one in procfs.descendants(pid) or ()]


def _outside(server: MeasuredServer, family: Collection[int]) -> int | None:
    """A process that serves the port of a server whose command only runs a container."""

    def holder(port: int) -> tuple[int, str] | None:
        found = procfs.holder(port)
        return None if found is None else (found.pid, found.name)

    return serving_process(server.argv, server.port or 0, family, holder, Programs().output)
