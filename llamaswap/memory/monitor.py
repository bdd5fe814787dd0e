"""Watches the machine's memory while models run, and keeps the ledger that evictions are decided with.

Nothing is read while nothing runs, so that GPUs can sleep. There is one measurement at a time: if a driver hangs, the
last ledger stays. This module must not know how memory is measured or who decides.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from attrs import define, field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaswap.config.schema.memory import MemorySettings
from llamaswap.memory.learner import GpuRoom, Learner, on_gpus
from llamaswap.memory.ledger import differs, limited
from llamaswap.memory.measure import MachineUse, MeasuredServer
from llamaswap.memory.needs import learned_need
from llamaswap.scheduling.memory import RAM, Device, Ledger, MemoryNeed

INTERVAL = 2.0  # seconds between two measurements while a server runs or a request waits
FOLLOW_UP = 3.05  # seconds after readiness, when a server is measured again
PRESSURE_TIME = 5.0  # seconds for which a device's reserve is in use, or its budget exceeded, before a model leaves
ESTIMATES_INTERVAL = 1.0  # seconds between two ledgers with new estimates: each ledger contains all models
RECLAIM_TIME = 10.0  # seconds after a stop in which a GPU's memory may still be the stopped server's

log = Logger()


@frozen
class ServerView:
    """A server that runs or is suspended, for measuring."""

    model: str
    pid: int
    state: str
    argv: tuple[str, ...] = ()
    port: int | None = None
    suspended: bool = False
    load_seconds: float | None = None

    @property
    def is_ready(self) -> bool:
        return self.state == "ready"

    @property
    def is_lease(self) -> bool:
        """Whether it is a program that was given memory; it is measured, and nothing is learned of it."""
        return self.state == "lease"

    def measured(self) -> MeasuredServer:
        return MeasuredServer(self.model, self.pid, self.argv, self.port if self.is_ready else None)


@define(eq=False, kw_only=True)
class MemoryMonitor:
    """Measures the servers and devices, passes the results to the learner, and calls `changed` with each new ledger.

    `measure` measures these servers on another thread. `servers` gives those that run or are suspended, `waiting` says
    whether a request waits. `models` are the ids of the configuration, `declared` gives a model's need as configured
    for these devices. `estimate` estimates the need of a model of which nothing else is known, if
    `estimating`. `rest` lets the GPUs sleep.
    """

    clock: IReactorTime
    measure: Callable[[Sequence[MeasuredServer]], Deferred[MachineUse]]
    servers: Callable[[], Sequence[ServerView]]
    waiting: Callable[[], bool]
    models: Callable[[], Collection[str]]
    settings: Callable[[], MemorySettings]
    declared: Callable[[str, Mapping[str, Device]], MemoryNeed | None]
    learner: Learner
    changed: Callable[[Ledger], None]
    estimate: Callable[[str, Mapping[str, Device]], Deferred[MemoryNeed | None]] | None = None
    estimating: Callable[[], bool] = lambda: False
    rest: Callable[[], object] = lambda: None
    use: MachineUse = field(factory=MachineUse, init=False)
    ledger: Ledger = field(factory=lambda: Ledger({}), init=False)
    _estimates: dict[str, MemoryNeed | None] = field(factory=dict, init=False)
    _unestimated: Iterator[str] = field(factory=lambda: iter(()), init=False)
    _estimates_due: float = field(default=0.0, init=False)
    _settled: set[str] = field(factory=set, init=False)  # models whose server was measured when it was ready
    _stopping: set[str] = field(factory=set, init=False)
    _foreign: dict[str, int] = field(factory=dict, init=False)
    _pressed: dict[str, float] = field(factory=dict, init=False)  # since when the reserve of a device is used
    _reclaimed_at: float = field(default=0.0, init=False)
    _timer: IDelayedCall | None = field(default=None, init=False)
    _busy: bool = field(default=False, init=False)
    _again: bool = field(default=False, init=False)
    _estimating: bool = field(default=False, init=False)
    _run: int = field(default=0, init=False)  # counts starts and stops: what an earlier run began is dropped
    _looked_up_once: bool = field(default=False, init=False)
    _known_waiters: list[Deferred[None]] = field(factory=list, init=False)
    running: bool = field(default=False, init=False)

    # -- life ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Watch from now on. The devices are read once, also if nothing runs."""
        if self.running:
            return
        self.running = True
        self._run += 1
        self._busy = self._again = self._estimating = False
        self._sample()

    def stop(self) -> None:
        """Stop watching; what was measured is forgotten, what was learned is not."""
        self.running = False
        self._run += 1
        self._cancel()
        self.use, self.ledger = MachineUse(), Ledger({})
        self._settled.clear()

    # -- events --------------------------------------------------------------------------------------------

    def state_changed(self, model: str, new: str) -> None:
        """The server of a model has another state. Before the devices are known, keys cannot be made."""
        if not self.running:
            return
        if not self.use.devices:
            self._sample()
        elif new == "starting":
            self._began(model)
            self._wake()
        elif new == "ready":
            view = next((one for one in self.servers() if one.model == model), None)
            if view is not None:
                self._became_ready(view)
            self._sample()
        elif new == "stopping":
            self._stopping.add(model)
            self._sample()
        else:
            self._ended(model)

    def request_ended(self, model: str) -> None:
        """A request of this model was served."""
        self.learner.request_ended(model)

    def request_queued(self) -> None:
        """A request waits. If nothing ran, other programs may have begun or ended since the last measurement."""
        if self._timer is None:
            self._sample()

    def reloaded(self) -> None:
        """The configuration has changed, or what its models need."""
        if self.running:
            self._estimates = {}  # not cleared: an estimate of the old configuration may still be added to the old one
            self.refresh()

    def refresh(self) -> None:
        """Look up what is known of all models, whose commands or files may have changed."""
        self.learner.look_up(sorted(self.models())).addCallback(lambda _: self._looked_up())

    def when_known(self) -> Deferred[None]:
        """Fires when the devices are measured, and what is known of all models was looked up."""
        known: Deferred[None] = Deferred()
        self._known_waiters.append(known)
        if self._looked_up_once:
            self._looked_up()
        return known

    def _looked_up(self) -> None:
        self._looked_up_once = True
        waiters, self._known_waiters = self._known_waiters, []
        for waiter in waiters:
            waiter.callback(None)
        self._unestimated = iter(sorted(self.models()))
        self._estimate_next()

    def known_need(self, model: str, devices: Mapping[str, Device]) -> MemoryNeed | None:
        """What the model is expected to use of `devices()`, by the best source there is; None if it is unknown."""
        declared = self.declared(model, devices)
        if declared is not None:
            return declared
        footprint = self.learner.footprints.get(model)
        learned = learned_need(footprint) if footprint is not None else None
        return learned or self._estimates.get(model)

    def _began(self, model: str) -> None:
        self._settled.discard(model)
        self._stopping.discard(model)
        view = next((one for one in self.servers() if one.model == model), None)
        self.learner.started(model, view.argv if view is not None else (), self.known_need(model, self.devices()))

    def _became_ready(self, view: ServerView) -> None:
        self.learner.ready(view.model, view.load_seconds, has_gpus=len(self.use.devices) > 1)
        run = self._run
        self.clock.callLater(FOLLOW_UP, lambda: self._sample() if self._run == run else None)

    def _ended(self, model: str) -> None:
        self._settled.discard(model)
        self._stopping.discard(model)
        self.learner.ended(model)
        self._pressed.clear()
        self._reclaimed_at = self.clock.seconds() + RECLAIM_TIME
        if self.servers() or self.use.models:
            self._sample()

    # -- measuring -----------------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Measure in a moment, and from then on as long as something runs."""
        if self._timer is None and not self._busy:
            self._timer = self.clock.callLater(INTERVAL, self._timed)

    def _timed(self) -> None:
        self._timer = None
        self._sample()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sample(self) -> None:
        """Measure now, or after the measurement that is under way."""
        if not self.running:
            return
        if self._busy:
            self._again = True
            return
        self._cancel()
        self._busy, run = True, self._run
        views = self.servers()
        done = self.measure([view.measured() for view in views])
        done.addCallback(lambda use: self._measured(use, views) if run == self._run else None)
        done.addErrback(lambda failure: self._failed(failure) if run == self._run else None)
        done.addCallback(lambda _: self._continue() if run == self._run else None)

    def _failed(self, failure: Failure) -> None:
        log.failure("the memory could not be measured", failure)

    def _continue(self) -> None:
        self._busy = False
        again, self._again = self._again, False
        if again:
            self._sample()
        elif self.waiting() or any(not view.suspended for view in self.servers()):
            self._wake()
        else:
            self.rest()

    def _measured(self, use: MachineUse, views: Sequence[ServerView]) -> None:
        first = not self.use.devices
        self.use = use
        reclaiming = self.clock.seconds() < self._reclaimed_at or any(view.state == "stopping" for view in views)
        for name, device in use.devices.items():
            before = self._foreign.get(name)
            foreign = device.foreign if device.foreign is not None else before or 0
            if before is not None and name != RAM and reclaiming:
                foreign = min(foreign, max(before, device.listed))
            self._foreign[name] = foreign
        self._note_pressure()
        present = {view.model: view for view in self.servers()}
        for view in views:
            after = present.get(view.model)
            model_use = use.models.get(view.model)
            if model_use is None or after is None or (after.pid, after.suspended) != (view.pid, view.suspended):
                continue
            final = view.model in self._stopping
            if (view.is_ready and self.learner.due(view.model)) or final:
                self.learner.measured(view.model, model_use, self._room(view.model), final=final)
            if view.is_ready or view.suspended or view.is_lease:
                self._settled.add(view.model)
        self._stopping -= {view.model for view in views}
        self.publish()
        if first:
            self._take_over()

    def _note_pressure(self) -> None:
        for name, device in self.devices().items():
            sizes = [use.sizes[name] for use in self.use.models.values() if use.sizes.get(name)]
            free = device.total - device.foreign - sum(sizes)
            reserve_in_use = device.reserve and device.foreign and free < device.reserve
            if reserve_in_use or (len(sizes) > 1 and sum(sizes) > device.total):
                self._pressed.setdefault(name, self.clock.seconds())
            else:
                self._pressed.pop(name, None)

    def _take_over(self) -> None:
        """The devices are known: begin with the servers that run already."""
        for server in self.servers():
            if server.model not in self.models():
                continue  # it is being stopped
            self._began(server.model)
            if server.is_ready:
                self._became_ready(server)
        self.refresh()

    def _room(self, model: str) -> GpuRoom | None:
        gpus = [name for name in self.use.devices if name != RAM]
        if not gpus:
            return None
        whole = sum(self.use.devices[name].total - self._foreign[name] for name in gpus)
        others = sum(on_gpus(use.sizes) for name, use in self.use.models.items() if name != model)
        return GpuRoom(whole - others, whole)

    # -- the ledger ----------------------------------------------------------------------------------------

    def publish(self) -> None:
        """Make the ledger, and pass it on if it differs from the last one."""
        if not self.running or not self.use.devices:
            return
        ledger = self._build()
        if differs(self.ledger, ledger) or ledger.pressed:
            self.ledger = ledger
            self.changed(ledger)

    def devices(self) -> dict[str, Device]:
        """The devices with the operator's settings; empty before the first measurement."""
        settings = self.settings()
        return {name: limited(name, device, self._foreign[name], settings) for name, device in self.use.devices.items()}

    def _build(self) -> Ledger:
        devices = self.devices()
        needs = {model: need for model in self.models() if (need := self.known_need(model, devices)) is not None}
        present = {view.model for view in self.servers()}
        footprints = self.learner.footprints
        return Ledger(
            devices=devices,
            needs=needs,
            used={model: dict(use.sizes) for model, use in self.use.models.items() if model in self._settled & present},
            load_seconds={
                model: known.load_seconds
                for model, known in footprints.items()
                if known.load_seconds is not None and model in self.models()
            },
            hold=self.settings().hold,
            pressed=frozenset(
                name for name, since in self._pressed.items() if self.clock.seconds() >= since + PRESSURE_TIME
            ),
        )

    def _estimate_next(self) -> None:
        """Estimate the need of one model after the other of which nothing is known."""
        if self.estimate is None or self._estimating or not self.running or not self.estimating():
            return
        devices = self.devices()
        candidates = (one for one in self._unestimated if one in self.models() and one not in self._estimates)
        model = next((one for one in candidates if self.known_need(one, devices) is None), None)
        if model is None:
            return
        self._estimating, run, estimates = True, self._run, self._estimates

        def done(result: MemoryNeed | Failure | None) -> None:
            if run != self._run:
                return
            self._estimating = False
            if isinstance(result, Failure):
                log.failure("the memory of {model} could not be estimated", result, model=model)
            estimates[model] = None if isinstance(result, Failure) else result
            self._estimate_next()
            if not self._estimating or self.clock.seconds() >= self._estimates_due:
                self._estimates_due = self.clock.seconds() + ESTIMATES_INTERVAL
                self.publish()

        self.estimate(model, self.ledger.devices).addBoth(done)
