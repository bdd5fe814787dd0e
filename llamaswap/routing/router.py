"""The router: performs what the scheduler decides with one supervisor per model, and hands out leases.

All effects go through one outbox: whoever adds to it while it is being worked off returns at once, so that a client
called back in the middle of a decision can ask for the next thing without meeting half-changed state. The router
knows nothing of HTTP; supervisors come from a factory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from hashlib import sha256
from typing import Any, Protocol

from attrs import define, evolve, field, frozen
from twisted.internet.defer import CancelledError, Deferred, gatherResults, maybeDeferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaswap.config import Config
from llamaswap.config.schema import Model, Peer
from llamaswap.errors import (
    KeepsFailing,
    LlamaswapError,
    NoTarget,
    ReaderStalled,
    RequestError,
    ServerVanished,
    ShuttingDown,
    StartFailed,
    Superseded,
    UnknownModel,
)
from llamaswap.events import EventBus, Preloaded, ProfileChanged, SleepEnded, StateChanged, SwapBegan, SwapEnded
from llamaswap.routing.leases import Acquisition, Lease, ProcessInstance
from llamaswap.scheduling.backoff import RepeatedFailure
from llamaswap.scheduling.effects import (
    CLEAN_UP,
    AbandonSwap,
    Admit,
    ArmIdle,
    ArmQueueTimer,
    DisarmIdle,
    DisarmQueueTimer,
    Effect,
    Grant,
    Interrupt,
    QueuePosition,
    Reconsider,
    Refuse,
    StartSwap,
    Stop,
    Suspend,
    Ticket,
)
from llamaswap.scheduling.rules import rules_of
from llamaswap.scheduling.scheduler import Scheduler
from llamaswap.scheduling.selectors import Choice, Chooser
from llamaswap.scheduling.state import Forecast, Phase
from llamaswap.servers.server_snapshot import FailureRecord, ServerSnapshot
from llamaswap.servers.supervisor_protocol import ServerStatus, Supervised, SupervisorFactory

DOWN = ("stopped", "shutdown")
STOPPING = ("stopping", "shutdown")
KILL_MARGIN = 1.0  # seconds kept back from a shutdown's deadline, for the kill and the reaping after the grace


# -- what the router needs ---------------------------------------------------------------------------------


class MemoryReclaim(Protocol):
    """Knows whether what a server held that is gone is free again."""

    def wait_for_reclaim(self, model: str) -> Deferred[None] | None:
        """Fires when `model` may start, soon at the latest; None: at once."""

    def loading(self, model: str) -> None:
        """A start begins."""

    def loaded(self, model: str) -> None:
        """It succeeded."""

    def gone(self, model: str) -> None:
        """No process of the model is left."""


class NoMemoryReclaim:
    """Nothing is known of memory, nobody waits for it."""

    def wait_for_reclaim(self, model: str) -> None:
        """At once."""

    def loading(self, model: str) -> None:
        """Not watched."""

    def loaded(self, model: str) -> None:
        """Not watched."""

    def gone(self, model: str) -> None:
        """Not watched."""


_check: type[MemoryReclaim] = NoMemoryReclaim


class ModelChanges(Protocol):
    """What a new configuration means for the models: names of those to start anew and those to adjust in place."""

    @property
    def added(self) -> Collection[str]: ...
    @property
    def removed(self) -> Collection[str]: ...
    @property
    def restarted(self) -> Collection[str]: ...
    @property
    def retuned(self) -> Collection[str]: ...


# -- what the router gives ---------------------------------------------------------------------------------


@frozen
class WaitingRequest:
    """One request that waits. `position` is its 1-based place in the queue, 0 when the model is being loaded."""

    number: int
    model: str
    position: int
    age: float
    priority: int


@frozen
class WaitReason:
    """What requests for a model wait for, in words; `models` are those that stand in the way.

    `loading`: the room is theirs, and the model is on its way.
    """

    reason: str
    models: tuple[str, ...] = ()
    loading: bool = False


@frozen
class FailingModel:
    """A model that failed the last `count` times. `retry_in` seconds from now a request may cause the next try."""

    model: str
    count: int
    retry_in: float
    cause: str
    log_tail: str


@frozen
class HealthSnapshot:
    """Signs of life: ages in seconds (`oldest_waiter` None when nobody waits), and how much is going on."""

    oldest_waiter: float | None
    last_decision: float
    waiting: int
    serving: int
    loading: int


@define(eq=False)
class _SwapInProgress:
    """A swap being performed."""

    swap: StartSwap
    abandoned: bool = False
    starting: bool = False
    was_ready: bool = False
    vanished: bool = False


# -- the router --------------------------------------------------------------------------------------------


@define(eq=False)
class Router:
    """See the module. `config` is the one in force, `profile` the active profile."""

    config: Config
    _make_supervisor: SupervisorFactory
    _clock: IReactorTime
    _bus: EventBus
    _memory: MemoryReclaim = field(factory=NoMemoryReclaim)
    profile: str | None = field(default=None, init=False)
    pinned: frozenset[str] = field(default=frozenset(), init=False)
    _scheduler: Scheduler = field(init=False)
    _supervisors: dict[str, Supervised] = field(factory=dict, init=False)
    _models: dict[str, Model] = field(factory=dict, init=False)
    _chooser: Chooser = field(factory=Chooser, init=False)
    _acquisitions: dict[int, Acquisition] = field(factory=dict, init=False)
    _incarnations: dict[str, ProcessInstance] = field(factory=dict, init=False)
    _flights: dict[int, _SwapInProgress] = field(factory=dict, init=False)
    _stop_reasons: dict[str, str] = field(factory=dict, init=False)
    _until_gone: dict[str, list[Deferred[None]]] = field(factory=dict, init=False)
    _stalled: dict[int, Lease] = field(factory=dict, init=False)
    _asleep: set[str] = field(factory=set, init=False)
    _idle_at: dict[str, float] = field(factory=dict, init=False)
    _idle_calls: dict[str, IDelayedCall] = field(factory=dict, init=False)
    _queue_timer: IDelayedCall | None = field(default=None, init=False)
    _recount: IDelayedCall | None = field(default=None, init=False)
    _words: dict[str, str] = field(factory=dict, init=False)
    _before: set[Deferred[Any]] = field(factory=set, init=False)
    _outbox: deque[Effect] = field(factory=deque, init=False)
    _performing: bool = field(default=False, init=False)
    _last_number: int = field(default=0, init=False)
    _decided_at: float = field(default=0.0, init=False)
    _leases: int = field(default=0, init=False)
    _shutdown_grace: float | None = field(default=None, init=False)
    _log: Logger = field(factory=lambda: Logger("llamaswap.routing.router"), init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._scheduler = Scheduler(rules_of(self.config))
        self._decided_at = self._clock.seconds()
        for model in self.config.models.values():
            self._supervise(model)

    # -- requests ------------------------------------------------------------------------------------------

    def lease(self, model: str) -> Lease | None:
        """A local model (its real id), if it is ready and free to use; None: nothing has changed, `request` it."""
        if self._performing or not self._scheduler.can_grant(model):
            return None
        now = self._decided_at = self._clock.seconds()
        self._last_number += 1
        priority = self.config.routing.scheduler.settings.fifo.priority.get(model, 0)
        ticket = Ticket(self._last_number, model, now, priority)
        *before, _ = self._scheduler.requested(ticket, now)  # the last effect is the grant, which is the lease
        if before:
            self._perform(before)
        return self._leased(ticket)

    def request(self, model: str, *, on_place: Callable[[int], None] | None = None, origin: str = "") -> Acquisition:
        """Ask to use a local model (its real id). `on_place` hears the 1-based queue positions, the latest counts;
        `origin` says who asks (see `SwapBegan`)."""
        now = self._decided_at = self._clock.seconds()
        self._last_number += 1
        priority = self.config.routing.scheduler.settings.fifo.priority.get(model, 0)
        ticket = Ticket(self._last_number, model, now, priority, origin)
        acquisition = Acquisition(model, lambda: self._left(ticket), on_place, ticket.number)
        if (
            self._scheduler.phase(model) is Phase.STOPPED
            and model in self.config.models
            and not self._resting(model, now)
        ):
            error = self._supervisors[model].preflight(self._ports_of_others(model))
            if error is not None:
                # Nothing is evicted for a model that cannot start, and nobody waits for it.
                acquisition.refusal = error
                acquisition.settle(error)
                return acquisition
        self._acquisitions[ticket.number] = acquisition
        effects = self._scheduler.requested(ticket, now)
        first = effects[0]
        if isinstance(first, Refuse):
            acquisition.refusal = self._told(first.error)
        else:
            acquisition.ready = not isinstance(first, Admit)
        self._perform(effects)
        return acquisition

    def succeed(self, waiting: Acquisition, *, on_place: Callable[[int], None] | None = None) -> Acquisition | None:
        """Give a newer request the place of one that waits; None where that waits no more. Whoever held it is told
        `Superseded`. Nothing moves for it: the ticket, its age and its place are the newer one's now."""
        if self._acquisitions.get(waiting.number) is not waiting:
            return None
        newer = Acquisition(waiting.model, waiting._leave, on_place, waiting.number)
        self._acquisitions[waiting.number] = newer
        waiting.settle(Superseded(waiting.model))
        if on_place is not None:
            numbers = [ticket.number for ticket in self._scheduler.queued()]
            if newer.number in numbers:
                on_place(numbers.index(newer.number) + 1)
        return newer

    def load(self, model: str, origin: str = "manual") -> Deferred[None]:
        """Load a model (id or alias) as a request would; fires when it is ready, fails with a RequestError.

        Who asks for this means it: earlier failures do not keep the model from being tried.
        """
        name = self.config.real(model) or model
        self._scheduler.clear_backoff([name])
        granted = self.request(name, origin=origin).granted
        return granted.addCallback(lambda lease: lease.release())

    def unload(self, models: Iterable[str] | None = None) -> Deferred[None]:
        """Stop these models (ids or aliases; None: all), whatever they do; fires when none of them has a process.

        A model that is named and not up has its stop command run: its container may be up without its client.
        """
        if models is None:
            names = list(self._supervisors)
        else:
            names = [self.config.real(name) or name for name in models]
        now = self._decided_at = self._clock.seconds()
        effects = self._scheduler.unload_requested(names, now, clean=models is not None)
        for name in names:
            if name in self._incarnations:
                self._incarnations[name].unloaded = True
        gone = self._all_gone(names)
        self._perform(effects)
        return gone

    def choose(self, selector_id: str) -> Choice:
        """Choose a selector's target for one request; raises NoTarget."""
        selector = self.config.selectors.get(selector_id)
        if selector is None:
            raise NoTarget(selector_id, f"no selector {selector_id}")
        return self._chooser.choose(selector, self._look)

    # -- operators -----------------------------------------------------------------------------------------

    def select_profile(self, name: str | None) -> None:
        """Make a profile the active one (None or "": none); raises KeyError when there is none of that name."""
        wanted = name or None
        if wanted is not None and wanted not in self.config.profiles:
            raise KeyError(wanted)
        if wanted != self.profile:
            self.profile = wanted
            self._log.info("profile {profile} is active", profile=wanted or "(none)")
            self._bus.publish(ProfileChanged(wanted))

    def pin(self, model: str) -> None:
        """Keep a model once it is loaded: from now on only `unload` stops it. Raises UnknownModel."""
        name = self.config.real(model)
        if name is None:
            raise UnknownModel(model)
        self._repin(self.pinned | {name})

    def unpin(self, model: str) -> None:
        """Take a pin back."""
        self._repin(self.pinned - {self.config.real(model) or model})

    def _repin(self, pinned: frozenset[str]) -> None:
        self.pinned = pinned
        now = self._decided_at = self._clock.seconds()
        self._perform(self._scheduler.rules_changed(rules_of(self.config, pinned), (), now))

    def preload(self, models: Iterable[str] | None = None) -> Deferred[None]:
        """Load what the configuration says (or `models`): together what may be up together, the rest in order."""
        wanted = self.config.hooks.on_startup.preload if models is None else models
        names = list(dict.fromkeys(name for name in map(self.config.real, wanted) if name is not None))
        return Deferred.fromCoroutine(self._preload(names))

    async def _preload(self, names: list[str]) -> None:
        while names:
            together: list[str] = []
            evict = self._scheduler.rules.evict
            while names and not evict(names[0], sorted(together)):
                together.append(names.pop(0))
            await gatherResults([self._preload_one(name) for name in together])

    def _preload_one(self, name: str) -> Deferred[None]:
        def loaded(_: None) -> None:
            self._bus.publish(Preloaded(name, True))

        def failed(failure: Failure) -> None:
            failure.trap(RequestError, CancelledError)
            self._log.warn("preload of {model} failed: {error}", model=name, error=failure.getErrorMessage())
            self._bus.publish(Preloaded(name, False))

        return self.load(name, "preload").addCallbacks(loaded, failed)

    # -- what is going on ----------------------------------------------------------------------------------

    def running(self) -> list[ServerStatus]:
        """The servers that are not down, by ascending model id."""
        found = [self._supervisors[name] for name in sorted(self._supervisors)]
        return [supervisor.status() for supervisor in found if supervisor.state not in DOWN]

    def sleeping(self) -> list[ServerStatus]:
        """The servers that sleep, by ascending model id: shown as stopped, they still have a process."""
        found = (self._supervisors[name].status() for name in sorted(self._supervisors))
        return [status for status in found if status.asleep_since is not None]

    def state(self, model: str) -> str:
        """The outward word for a model's state."""
        supervisor = self._supervisors.get(model)
        return "stopped" if supervisor is None else supervisor.state

    def status(self, model: str) -> ServerStatus:
        """Everything known about a model's server; raises UnknownModel."""
        supervisor = self._supervisors.get(model)
        if supervisor is None:
            raise UnknownModel(model)
        return supervisor.status()

    def plan(self, model: str) -> Forecast:
        """What a request for this model (id or alias) would do now; nothing is done."""
        return self._scheduler.forecast(self.config.real(model) or model)

    def hold(self, model: str) -> WaitReason | None:
        """What requests for this model wait for now; None where nothing holds them, or there is no such model."""
        for flight in self._flights.values():
            if flight.swap.model == model and not flight.abandoned:
                if flight.starting:
                    return WaitReason("the model is being loaded", loading=True)
                left = tuple(name for name in flight.swap.evict if self._scheduler.phase(name) is Phase.STOPPING)
                if left:
                    return WaitReason(f"waiting for {', '.join(left)} to unload", left, loading=True)
                if self._before:
                    return WaitReason("waiting for servers of an earlier run to stop", loading=True)
                return WaitReason("waiting for GPU memory to be released", loading=True)
        forecast = self._scheduler.forecast(model)
        if forecast.action != "queue":
            return None
        return WaitReason(f"waiting for {', '.join(forecast.waits_for)} to finish", forecast.waits_for)

    def failing(self) -> list[FailingModel]:
        """The models that are down because they fail, by ascending id."""
        now = self._clock.seconds()
        found = []
        for name, trouble in sorted(self._scheduler.failures().items()):
            supervisor = self._supervisors.get(name)
            if supervisor is not None and supervisor.state in DOWN:
                left = max(0.0, trouble.until - now)
                found.append(FailingModel(name, trouble.count, left, trouble.cause, self._last_words(name)))
        return found

    def queue(self) -> list[WaitingRequest]:
        """Who waits: first those whose model is being loaded, then the queue in its order."""
        now = self._clock.seconds()
        joined = [(ticket, 0) for ticket in self._scheduler.joined()]
        queued = [(ticket, position) for position, ticket in enumerate(self._scheduler.queued(), 1)]
        return [
            WaitingRequest(ticket.number, ticket.model, position, now - ticket.since, ticket.priority)
            for ticket, position in (*joined, *queued)
        ]

    def idle_left(self, model: str) -> float | None:
        """Seconds until a model is unloaded for idleness; None while it works, or where it never is."""
        at = self._idle_at.get(model)
        return None if at is None else max(0.0, at - self._clock.seconds())

    def vitals(self) -> HealthSnapshot:
        """Signs of life, for health checks."""
        now = self._clock.seconds()
        waiting = [*self._scheduler.joined(), *self._scheduler.queued()]
        oldest = max((now - ticket.since for ticket in waiting), default=None)
        return HealthSnapshot(oldest, now - self._decided_at, len(waiting), self._leases, self._scheduler.swaps)

    # -- a new configuration, the end ----------------------------------------------------------------------

    def apply(self, config: Config, plan: ModelChanges) -> None:
        """Put a new configuration in force: what did not change is not touched, what must restart drains first."""
        old, self.config = self.config, config
        now = self._decided_at = self._clock.seconds()
        self.pinned &= config.models.keys()
        stale = {name for name in (*plan.restarted, *plan.added) if name in self._supervisors}
        for name, model in config.models.items():
            if name not in self._supervisors:
                self._supervise(model)
            elif name in stale or model != self._models[name]:
                self._models[name] = model
                self._supervisors[name].retune(model)
        self._perform(self._scheduler.rules_changed(rules_of(config, self.pinned), sorted(stale), now))
        for name in [name for name in self._supervisors if name not in config.models]:
            self._dismiss(name)
        self.select_profile(None)
        before = {old.real(name) for name in old.hooks.on_startup.preload}
        fresh = {*plan.added, *plan.restarted}
        names = [config.real(name) for name in config.hooks.on_startup.preload]
        wanted = [name for name in names if name is not None and (name in fresh or name not in before)]
        if wanted:
            self.preload(wanted).addErrback(lambda failure: self._log.failure("preload", failure))

    @property
    def settled(self) -> bool:
        """Whether nobody is served or waits, and every server is ready, asleep or down."""
        return self._scheduler.settled and not self._flights

    def handover(self) -> list[ServerSnapshot]:
        """The servers that are ready and unused, or asleep, for another program in our place."""
        found = []
        for name, supervisor in sorted(self._supervisors.items()):
            served, since = supervisor.handover(), self._scheduler.idle_since(name)
            if served is not None and since is not None:
                found.append(evolve(served, idle_since=since))
        return found

    def ailing(self) -> list[FailureRecord]:
        """The models that failed when they were last tried, for another program in our place."""
        return [
            FailureRecord(
                name, _definition(self._models[name]), one.count, one.until, one.cause, self._last_words(name)
            )
            for name, one in sorted(self._scheduler.failures().items())
            if name in self._models
        ]

    def restore_failures(self, ailing: Iterable[FailureRecord]) -> None:
        """Go on leaving alone what failed under an earlier program; what is defined anew is worth a try."""
        for one in ailing:
            model = self._models.get(one.model)
            if model is not None and _definition(model) == one.definition:
                self._scheduler.restore_failure(one.model, RepeatedFailure(one.count, one.until, one.cause))
                self._words[one.model] = one.tail

    def _last_words(self, model: str) -> str:
        """What a server said last; under an earlier program, where it was not started since."""
        supervisor = self._supervisors.get(model)
        return (supervisor.log_tail() if supervisor is not None else "") or self._words.get(model, "")

    def adopt(self, servers: Iterable[ServerSnapshot]) -> list[ServerSnapshot]:
        """Begin with servers that are ready or asleep already; returns those that could not be taken over.

        One whose definition changed meanwhile is stopped, as after a reload.
        """
        now = self._decided_at = self._clock.seconds()
        left, outdated = [], []
        for served in servers:
            model, supervisor = served.model, self._supervisors.get(served.model)
            if supervisor is None:
                left.append(served)
                continue
            # The scheduler first: its end may be told in the middle of the adoption.
            effects = self._scheduler.adopted(model, served.ready_at, served.idle_since, now, asleep=served.asleep)
            if served.asleep:
                self._asleep.add(model)
            else:
                self._incarnations[model] = ProcessInstance(served.endpoint, self._scheduler.generation(model))
            try:
                if not supervisor.adopt(served):
                    outdated.append(model)
            except Exception as error:  # the edge of a floor: one server's fault must not cost the others
                self._log.failure("{model} is not taken over", model=model)
                left.append(served)
                effects += self._scheduler.exited(model, now, str(error))
            self._perform(effects)
        if outdated:
            self._perform(self._scheduler.rules_changed(rules_of(self.config, self.pinned), outdated, now))
        return left

    def delay_starts_until(self, gone: Deferred[Any]) -> None:
        """Have no server started before `gone` has fired: servers that are not ours to ask for still end, and have the
        room and the ports. Its result stays as it is."""

        def over(result: Any) -> Any:
            self._before.discard(gone)
            return result

        self._before.add(gone)
        gone.addBoth(over)

    def update_peers(self, peers: Mapping[str, Peer]) -> None:
        """The peers offer other models now; nothing of ours is touched."""
        self.config = evolve(self.config, peers=peers)

    def drain(self) -> None:
        """Answer waiting requests at once and load nothing any more; ready models serve on until `shutdown`."""
        self._decided_at = self._clock.seconds()
        self._perform(self._scheduler.draining(ShuttingDown()))

    def shutdown(self, deadline: float) -> Deferred[None]:
        """Refuse everybody who waits, stop all servers at once; fires when none is left, or after `deadline` seconds.

        May be called again with a shorter deadline.
        """
        now = self._decided_at = self._clock.seconds()
        self._shutdown_grace = max(deadline - KILL_MARGIN, deadline / 2)
        effects = self._scheduler.shutdown(ShuttingDown())
        gone = self._all_gone(self._supervisors)
        self._perform(effects)
        done: Deferred[None] = Deferred()

        def finish(_: object) -> None:
            if not done.called:
                if overdue.active():
                    overdue.cancel()
                self._end()
                done.callback(None)

        def too_late() -> None:
            left = sorted(name for name in self._supervisors if self._scheduler.phase(name) is not Phase.STOPPED)
            self._log.error("still running after {deadline} s: {left}", deadline=deadline, left=", ".join(left))
            finish(None)

        overdue = self._clock.callLater(max(0.0, now + deadline - self._clock.seconds()), too_late)
        gone.addCallback(finish)
        return done

    def _end(self) -> None:
        for supervisor in self._supervisors.values():
            supervisor.close()
        self._idle_at.clear()
        timers = [
            *self._idle_calls.values(),
            *(call for call in (self._queue_timer, self._recount) if call is not None),
        ]
        self._idle_calls.clear()
        self._queue_timer = self._recount = None
        for timer in timers:
            if timer.active():
                timer.cancel()

    # -- what supervisors tell -----------------------------------------------------------------------------

    def mark_hung(self, model: str, why: str) -> None:
        """A server that is ready does not work any more: it is ended as if it had crashed, only that we must do it."""
        incarnation = self._incarnations.get(model)
        if incarnation is not None:
            incarnation.lost = True
        now = self._decided_at = self._clock.seconds()
        effects = self._scheduler.exited(model, now, why)
        if effects:
            self._log.warn("stopping {model}: {why}", model=model, why=why)
            self._perform(effects)

    def state_changed(self, model: str, old: str, new: str) -> None:
        """A server moved. Only news, but for one thing: ready and gone again before those who waited were told."""
        if new == "starting":
            self._words.pop(model, None)
        for flight in self._flights.values():
            if flight.starting and flight.swap.model == model:
                flight.was_ready = flight.was_ready or new == "ready"
                flight.vanished = flight.was_ready and new != "ready"
        if new != "stopped":
            self._asleep.discard(model)
        self._bus.publish(StateChanged(model, old, new, self._stop_reasons.get(model, "") if new in STOPPING else ""))

    def exited(self, model: str, exit_status: int | None, expected: bool) -> None:
        """A server's process ended. The supervisor is in the middle of it, so its effects wait for the next turn."""
        incarnation = self._incarnations.get(model)
        if incarnation is not None:
            incarnation.lost = True
        if not expected:
            now = self._decided_at = self._clock.seconds()
            cause = self._supervisors[model].status().last_error or f"the server ended (status {exit_status})"
            effects = self._scheduler.exited(model, now, cause)
            if effects:
                self._log.warn("{model} exited unexpectedly: {cause}", model=model, cause=cause)
                self._outbox.extend(effects)
                self._clock.callLater(0, self._perform, ())

    # -- performing ----------------------------------------------------------------------------------------

    def _perform(self, effects: Iterable[Effect]) -> None:
        self._outbox.extend(effects)
        if self._performing:
            return
        self._performing = True
        try:
            while self._outbox:
                effect = self._outbox.popleft()
                try:
                    _PERFORMERS[type(effect)](self, effect)
                except Exception:  # the edge of a floor: one waiter's fault must not keep the others from hearing
                    self._log.failure("while performing {effect}", effect=effect)
        finally:
            self._performing = False

    def _admit(self, effect: Admit) -> None:
        """Its requester knows already."""

    def _refuse(self, effect: Refuse) -> None:
        acquisition = self._acquisitions.pop(effect.ticket.number, None)
        if acquisition is not None:
            acquisition.settle(self._told(effect.error))

    def _grant(self, effect: Grant) -> None:
        ticket = effect.ticket
        acquisition = self._acquisitions.pop(ticket.number, None)
        lease = self._leased(ticket)
        if acquisition is None:
            lease.release()
        else:
            acquisition.settle(lease)

    def _leased(self, ticket: Ticket) -> Lease:
        incarnation = self._incarnations[ticket.model]
        self._leases += 1
        return Lease(
            *(ticket, incarnation.endpoint, incarnation.generation, incarnation),
            *(self._released, self._reader_stalled),
        )

    def _place(self, effect: QueuePosition) -> None:
        acquisition = self._acquisitions.get(effect.ticket.number)
        if acquisition is not None and acquisition.on_place is not None:
            acquisition.on_place(effect.position)

    def _begin_swap(self, effect: StartSwap) -> None:
        flight = self._flights[effect.generation] = _SwapInProgress(effect)
        swapping = Deferred.fromCoroutine(self._swap(flight))
        swapping.addErrback(lambda failure: self._broke_down(flight, failure))

    def _broke_down(self, flight: _SwapInProgress, failure: Failure) -> None:
        """A fault of ours in the middle of a swap: those who wait for it must hear of it."""
        swap = flight.swap
        self._log.failure("swap to {model}", failure, model=swap.model)
        if self._flights.pop(swap.generation, None) is None:
            return
        now = self._decided_at = self._clock.seconds()
        error = StartFailed(swap.model, "an internal error of the proxy; see its log")
        self._bus.publish(SwapEnded(swap.generation, swap.model, str(error), now))
        self._perform(self._scheduler.swap_finished(swap.generation, error, now))

    def _abandon_swap(self, effect: AbandonSwap) -> None:
        flight = self._flights.get(effect.generation)
        if flight is not None:
            flight.abandoned = True

    def _stop(self, effect: Stop) -> None:
        for model in effect.models:
            self._stop_reasons[model] = effect.why
            if effect.why == CLEAN_UP:
                self._clean_up_one(model)
            else:
                self._stop_one(model, 0.0 if effect.why == "crash" else None)

    def _sleep(self, effect: Suspend) -> None:
        for model in effect.models:
            self._stop_reasons[model] = effect.why
            self._sleep_one(model)

    def _arm_idle(self, effect: ArmIdle) -> None:
        """One timer per model runs on however often it is armed anew; it looks at the time when it goes off."""
        at = self._idle_at[effect.model] = self._clock.seconds() + effect.seconds
        call = self._idle_calls.get(effect.model)
        if call is not None and call.getTime() > at:
            call.cancel()
            call = None
        if call is None:
            self._idle_calls[effect.model] = self._clock.callLater(effect.seconds, self._idle_due, effect.model)

    def _disarm_idle(self, effect: DisarmIdle) -> None:
        self._idle_at.pop(effect.model, None)

    def _idle_due(self, model: str) -> None:
        del self._idle_calls[model]
        at = self._idle_at.get(model)
        now = self._clock.seconds()
        if at is None:
            return
        if at > now:
            self._idle_calls[model] = self._clock.callLater(at - now, self._idle_due, model)
            return
        del self._idle_at[model]
        self._decided_at = now
        self._perform(self._scheduler.idle_expired(model, now))

    def _arm_queue_timer(self, effect: ArmQueueTimer) -> None:
        self._disarm_queue_timer()
        self._queue_timer = self._clock.callLater(effect.seconds, self._queue_timer_due)

    def _disarm_queue_timer(self, effect: DisarmQueueTimer | None = None) -> None:
        if self._queue_timer is not None and self._queue_timer.active():
            self._queue_timer.cancel()
        self._queue_timer = None

    def _queue_timer_due(self) -> None:
        self._queue_timer = None
        now = self._decided_at = self._clock.seconds()
        self._perform(self._scheduler.queue_timer_expired(now))

    def _reconsider(self, effect: Reconsider) -> None:
        self._recount = self._clock.callLater(effect.seconds, self._reconsider_due)

    def _reconsider_due(self) -> None:
        self._recount = None
        now = self._clock.seconds()
        self._perform(self._scheduler.reconsidered(now))

    # -- swaps and stops -----------------------------------------------------------------------------------

    async def _swap(self, flight: _SwapInProgress) -> None:
        swap = flight.swap
        began = self._clock.seconds()
        going = [f"{victim} (to sleep)" if victim in swap.sleep else victim for victim in swap.evict]
        self._log.info(
            "loading {model}: {reason}; evicts {evicts}",
            model=swap.model,
            reason=swap.reason,
            evicts=", ".join(going) or "nothing",
        )
        self._bus.publish(SwapBegan(swap.generation, swap.model, swap.evict, swap.reason, began, swap.origin))
        error: LlamaswapError | None = None
        stopped = began
        if swap.evict:
            await gatherResults(
                [self._sleep_one(victim) if victim in swap.sleep else self._stop_one(victim) for victim in swap.evict]
            )
            stopped = self._clock.seconds()
        while self._before:
            await _outlived(next(iter(self._before)))
        if not flight.abandoned and (reclaimed := self._memory.wait_for_reclaim(swap.model)) is not None:
            await reclaimed
        if not flight.abandoned:
            flight.starting = True
            error = await self._start(flight)
        del self._flights[swap.generation]
        ended = self._decided_at = self._clock.seconds()
        told = "abandoned" if flight.abandoned else None if error is None else str(error)
        phases = {"queued": swap.waited, "stop": stopped - began, "start": ended - stopped}
        if told is None:
            self._log.info("ready {model} in {secs:.2f}s", model=swap.model, secs=ended - began)
        else:
            self._log.warn("{model} was not loaded: {error}", model=swap.model, error=told)
        exit_status = error.exit_status if isinstance(error, StartFailed) else None
        self._bus.publish(SwapEnded(swap.generation, swap.model, told, ended, phases, exit_status))
        self._perform(self._scheduler.swap_finished(swap.generation, error, ended))

    async def _start(self, flight: _SwapInProgress) -> LlamaswapError | None:
        """Have the swap's model started; returns what went wrong, whatever it was."""
        model = flight.swap.model
        try:
            self._memory.loading(model)
            endpoint = await self._supervisors[model].ensure_ready()
            self._memory.loaded(model)
        except LlamaswapError as error:
            return error
        except Exception as error:  # the edge of a floor: whoever waits must be told, whatever it was
            self._log.failure("{model} could not be started", model=model)
            return StartFailed(model, str(error))
        if flight.vanished:
            return ServerVanished(model)
        if not flight.abandoned:
            self._incarnations[model] = ProcessInstance(endpoint, flight.swap.generation)
        return None

    def _stop_one(self, model: str, grace: float | None = None) -> Deferred[None]:
        """Stop one server; the scheduler hears when it is gone. Never fails."""
        supervisor = self._supervisors.get(model)
        if supervisor is None:
            return succeed(None)
        stopping: Deferred[Any] = maybeDeferred(supervisor.stop, self._grace(model, grace))
        stopping.addErrback(lambda failure: self._log.failure("stopping {model}", failure, model=model))
        return stopping.addCallback(lambda _: self._stopped(model))

    def _clean_up_one(self, model: str) -> Deferred[None]:
        """Have the stop command of a server that is not up run; the scheduler hears when it ended. Never fails."""
        cleaning: Deferred[Any] = maybeDeferred(self._supervisors[model].clean_up)
        cleaning.addErrback(lambda failure: self._log.failure("cleaning up {model}", failure, model=model))
        return cleaning.addCallback(lambda _: self._stopped(model))

    def _sleep_one(self, model: str) -> Deferred[None]:
        """Put one server to sleep; the scheduler hears when it sleeps, or is gone. Never fails."""
        supervisor = self._supervisors.get(model)
        if supervisor is None:
            return succeed(None)
        sleeping: Deferred[Any] = maybeDeferred(supervisor.sleep, self._grace(model))
        sleeping.addErrback(lambda failure: self._log.failure("putting {model} to sleep", failure, model=model))
        return sleeping.addCallback(lambda asleep: self._stopped(model, asleep=bool(asleep)))

    def _grace(self, model: str, grace: float | None = None) -> float:
        """How long a stop may take."""
        wanted = self._models[model].unload_timeout if grace is None else grace
        return wanted if self._shutdown_grace is None else min(wanted, self._shutdown_grace)

    def _stopped(self, model: str, asleep: bool = False) -> None:
        """A server has left: none of it is left, or it sleeps."""
        try:
            self._memory.gone(model)
        except Exception:  # the edge of a floor: what is gone is gone, whoever cannot note it down
            self._log.failure("recording that {model} has stopped", model=model)
        self._stop_reasons.pop(model, None)
        incarnation = self._incarnations.pop(model, None)
        if incarnation is not None:
            incarnation.lost = True
        now = self._decided_at = self._clock.seconds()
        effects = self._scheduler.suspended(model, now) if asleep else self._scheduler.stopped(model, now)
        if asleep:
            if self._scheduler.phase(model) is Phase.ASLEEP:
                self._asleep.add(model)
                self._log.info("{model} is asleep", model=model)
            self._perform(effects)
            return
        waiters = self._until_gone.pop(model, ())
        if model in self._asleep:
            self._asleep.discard(model)
            self._bus.publish(SleepEnded(model))
        # First what was decided, then those who waited: one of them may ask for something at once, and what is decided
        # for that must not overtake what it builds on.
        self._perform(effects)
        if model not in self.config.models:
            self._dismiss(model)
        for waiter in waiters:
            waiter.callback(None)

    def _all_gone(self, models: Iterable[str]) -> Deferred[None]:
        """Fires when each of these that has a process has none any more."""
        waits = []
        for model in dict.fromkeys(models):
            if self._scheduler.phase(model) is not Phase.STOPPED:
                waiter: Deferred[None] = Deferred()
                self._until_gone.setdefault(model, []).append(waiter)
                waits.append(waiter)
        return gatherResults(waits).addCallback(lambda _: None)

    # -- books ---------------------------------------------------------------------------------------------

    def _supervise(self, model: Model) -> None:
        self._models[model.id] = model
        self._supervisors[model.id] = self._make_supervisor(model, self)

    def _dismiss(self, model: str) -> None:
        """A model that left the configuration has no process any more: forget it."""
        if self._scheduler.phase(model) is Phase.STOPPED and model in self._supervisors:
            self._supervisors.pop(model).close()
            del self._models[model]

    def _look(self, target: str) -> str | None:
        name = self.config.real(target)
        return None if name is None else self.state(name)

    def _resting(self, model: str, now: float) -> bool:
        """Whether a failing model is left alone for now."""
        trouble = self._scheduler.failures().get(model)
        return trouble is not None and trouble.keeps(now)

    def _ports_of_others(self, model: str) -> Collection[int]:
        """The ports of the other models' servers: an eviction may be what frees the wanted one. Any may be, where
        servers end that nobody has asked for."""
        if self._before:
            return range(1 << 16)
        others = (one for name, one in self._supervisors.items() if name != model and one.state not in DOWN)
        return {port for port in (one.status().port for one in others) if port is not None}

    def _told(self, error: LlamaswapError) -> RequestError:
        """What a requester is told; the scheduler only ever refuses with RequestErrors."""
        if isinstance(error, KeepsFailing) and not error.log_tail:
            return evolve(error, log_tail=self._last_words(error.model))
        return error if isinstance(error, RequestError) else StartFailed("", str(error))

    def _left(self, ticket: Ticket) -> None:
        """A requester went before it was answered."""
        self._acquisitions.pop(ticket.number, None)
        now = self._decided_at = self._clock.seconds()
        self._perform(self._scheduler.cancelled(ticket, now))

    def _released(self, lease: Lease) -> None:
        self._leases -= 1
        if self._stalled:
            self._stalled.pop(lease.ticket.number, None)
        now = self._decided_at = self._clock.seconds()
        effects = self._scheduler.served(lease.ticket, now)
        if effects:
            self._perform(effects)

    def _reader_stalled(self, lease: Lease, since: float | None) -> None:
        if since is None:
            self._stalled.pop(lease.ticket.number, None)
            self._scheduler.reader_moved(lease.ticket)
            return
        self._stalled[lease.ticket.number] = lease
        now = self._decided_at = self._clock.seconds()
        self._perform(self._scheduler.reader_stalled(lease.ticket, since, now))

    def _interrupt(self, effect: Interrupt) -> None:
        lease = self._stalled.pop(effect.ticket.number, None)
        if lease is not None and lease.interrupt is not None:
            lease.interrupt(ReaderStalled(effect.seconds, effect.waiting))


def _outlived(gone: Deferred[Any]) -> Deferred[None]:
    """Fires when that one has, whatever came of it."""
    waiter: Deferred[None] = Deferred()

    def over(result: Any) -> Any:
        waiter.callback(None)
        return result

    gone.addBoth(over)
    return waiter


def _definition(model: Model) -> str:
    """Equal for definitions that start the same; it tells nothing of them, for keys are often in the environment."""
    return sha256(repr((model.cmd, model.env, model.proxy)).encode("utf-8", "replace")).hexdigest()


_PERFORMERS: dict[type[Any], Callable[[Router, Any], None]] = {
    Admit: Router._admit,
    Refuse: Router._refuse,
    Grant: Router._grant,
    QueuePosition: Router._place,
    StartSwap: Router._begin_swap,
    AbandonSwap: Router._abandon_swap,
    Stop: Router._stop,
    Suspend: Router._sleep,
    Interrupt: Router._interrupt,
    ArmIdle: Router._arm_idle,
    DisarmIdle: Router._disarm_idle,
    ArmQueueTimer: Router._arm_queue_timer,
    DisarmQueueTimer: Router._disarm_queue_timer,
    Reconsider: Router._reconsider,
}
