"""The router: performs what the scheduler decides, with one supervisor per model, and hands out leases.

It knows nothing of HTTP; supervisors come from a factory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from attrs import define, evolve, field
from twisted.internet.defer import CancelledError, Deferred, FirstError, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from llamaswap.config import Config
from llamaswap.config.diff import ConfigDiff
from llamaswap.config.schema.model import Model
from llamaswap.config.schema.routing import Peer
from llamaswap.errors import (
    LlamaswapError,
    NoTarget,
    RequestError,
    ShuttingDown,
    StartFailed,
    Superseded,
    UnknownModel,
    plain_error,
)
from llamaswap.events import EventBus, LoadFailed, Preloaded, ProfileChanged, RequestQueued, StateChanged
from llamaswap.observe.vram_reclaim import VramReclaim
from llamaswap.routing.hosts_router import HostsRouter
from llamaswap.routing.interfaces import NO_STANDING, Standing
from llamaswap.routing.leases import Lease, PendingLease
from llamaswap.routing.managed_model import ManagedModel
from llamaswap.routing.swaps import LOGGED_ERRORS, Swaps
from llamaswap.scheduling.effects import Admit, Refuse, Ticket
from llamaswap.scheduling.out_of_memory import ran_out_of_memory
from llamaswap.scheduling.rules import rules_of
from llamaswap.scheduling.scheduler import Scheduler
from llamaswap.scheduling.selectors import READY, STARTING, STOPPING_STATES, Chooser, TargetChoice
from llamaswap.scheduling.state import Phase
from llamaswap.servers.supervisor_protocol import SupervisorFactory

KILL_MARGIN = 1.0  # seconds kept back from a shutdown's deadline, for the kill and the reaping after the grace


@define(eq=False)
class Router(HostsRouter):
    """Leases, loads and unloads models. `profile` is the active profile.

    `chosen_profile` is the profile that an operator has chosen ("": none), None as long as that of the start is active.
    """

    config: Config
    _make_supervisor: SupervisorFactory
    _clock: IReactorTime
    _bus: EventBus
    _memory: VramReclaim
    profile: str | None = field(default=None, init=False)
    chosen_profile: str | None = field(default=None, init=False)
    _chooser: Chooser = field(factory=Chooser, init=False)
    _last_number: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._scheduler = Scheduler(rules_of(self.config))
        self._last_decision = self._clock.seconds()
        self.swaps = Swaps(self._models, self._clock, self._bus, self._memory, self._scheduler, self._perform)
        for model in self.config.models.values():
            self._manage(model)
        self._activate_profile()

    def _manage(self, model: Model) -> None:
        self._models[model.id] = ManagedModel(model, self._make_supervisor(model, self))

    # -- requests ------------------------------------------------------------------------------------------

    def lease(self, model: str, standing: Standing = NO_STANDING) -> Lease | None:
        """Lease a local model (its real id) if it is ready and can be used at once; None: `request` it."""
        if self._performing:
            return None
        ticket = self._ticket(model, "", standing)
        effects = self._scheduler.requested(ticket, ticket.since, only_if_ready=True)
        if not effects:
            return None
        effects.pop()  # the grant, which is the lease
        if effects:
            self._perform(effects, ticket.since)
        return self._leased(ticket)

    def request(
        self,
        model: str,
        *,
        on_position: Callable[[int], None] | None = None,
        origin: str = "",
        standing: Standing = NO_STANDING,
    ) -> PendingLease:
        """Request a local model (its real id). `on_position` receives the request's 1-based positions in the queue;
        `origin` names the cause of the request (see `SwapBegan`), `standing` is that of its client's key."""
        ticket = self._ticket(model, origin, standing)
        pending = PendingLease(model, lambda: self._cancelled(ticket), on_position, ticket.number)
        error = self._start_obstacle(model, ticket.since)
        if error is not None:
            # No model is evicted for one that cannot start, and no request waits for it.
            pending.refusal = error
            pending.settle(error)
            return pending
        self._pending[ticket.number] = pending
        effects = self._scheduler.requested(ticket, ticket.since)
        first = effects[0]
        if isinstance(first, Refuse):
            pending.refusal = self._refusal(first.error)
        else:
            pending.ready = not isinstance(first, Admit)
        self._perform(effects)
        if ticket.number in self._pending:
            self._bus.publish(RequestQueued(model))
        return pending

    def _ticket(self, model: str, origin: str, standing: Standing) -> Ticket:
        now = self._last_decision = self._clock.seconds()
        self._last_number += 1
        definition = self.config.models.get(model)
        name = (definition and definition.replica_of) or model
        priority = self.config.routing.scheduler.settings.fifo.priority.get(name, 0)
        return Ticket(self._last_number, model, now, priority + standing[0], origin, standing[1])

    def start_problem(self, model: str) -> str:
        """Why a stopped model cannot be started on this machine; "" if it may."""
        error = self._start_obstacle(model, self._clock.seconds())
        return "" if error is None else error.cause

    def _start_obstacle(self, model: str, now: float) -> StartFailed | None:
        """Why a model that would have to be started cannot start; None also while it is in backoff."""
        if model not in self.config.models or self._scheduler.phase(model) is not Phase.STOPPED:
            return None
        if self._scheduler.in_backoff(model, now) or self._scheduler.rules.several_hosts:
            return None  # with several hosts, it is not known yet where it would start
        before = self.failure(model)
        error = self._models[model].supervisor.preflight(self._ports_of_others(model))
        if error is not None and error.cause != before:
            self._bus.publish(LoadFailed(model, str(error)))
        return error

    def supersede(
        self, waiting: PendingLease, *, on_position: Callable[[int], None] | None = None
    ) -> PendingLease | None:
        """Give the place of a waiting request to a newer one; None if it does not wait any more.

        The older one fails with `Superseded`. The newer one inherits its ticket, and with it its age and position.
        """
        if self._pending.get(waiting.number) is not waiting:
            return None
        newer = self._pending[waiting.number] = waiting.transfer(on_position)
        waiting.settle(Superseded(waiting.model))
        if on_position is not None:
            for entry in self._scheduler.queue:
                if entry.ticket.number == newer.number:
                    on_position(entry.position)
        return newer

    def _cancelled(self, ticket: Ticket) -> None:
        """A request was cancelled before it was granted or refused."""
        self._pending.pop(ticket.number, None)
        self._perform(self._scheduler.cancelled(ticket, self._clock.seconds()))

    def choose(self, selector_id: str) -> TargetChoice:
        """Choose a selector's target for one request; raises NoTarget."""
        selector = self.config.selectors.get(selector_id)
        if selector is None:
            raise NoTarget(selector_id, f"no selector {selector_id}")
        return self._chooser.choose(selector, self._target_state)

    def choose_replica(self, model: str, *, loaded: bool = False) -> TargetChoice:
        """Choose the server of a model with replicas for one request; with `loaded` a ready one, if there is any.

        A server is not chosen if it could not be loaded now and another one is up.
        """
        selector = self.config.names.replicas[model]
        states = (READY,) if loaded else (READY, STARTING)
        up = evolve(selector, targets=tuple(name for name in selector.targets if self.state(name) in states))
        choice = self._chooser.choose(up if loaded and up.targets else selector, self._replica_state)
        if not up.targets or choice.target in up.targets or self._can_load(choice.target):
            return choice
        choice.release()
        return self._chooser.choose(up, self._replica_state)

    def _replica_state(self, name: str) -> str:
        """A server that is being stopped counts as stopped, because it can be loaded afterwards."""
        state = self.state(name)
        return "stopped" if state in STOPPING_STATES else state

    def _can_load(self, name: str) -> bool:
        failing = self._scheduler.in_backoff(name, self._clock.seconds())
        return not failing and self.forecast(name).action not in ("queue", "refuse")

    def _target_state(self, target: str) -> str | None:
        model = self.config.real(target)
        return None if model is None else self.state(model)

    # -- operators -----------------------------------------------------------------------------------------

    def load(self, model: str, origin: str = "manual") -> Deferred[None]:
        """Load a model (id or alias) with its replicas; fires when all are ready, fails with a RequestError.

        Unlike a request it ends the model's backoff after earlier failures.
        """
        names = self.config.copies(self.config.real(model) or model)
        self._scheduler.clear_backoff(names)
        loads = [self.request(name, origin=origin).granted.addCallback(lambda lease: lease.release()) for name in names]
        loading = gatherResults(loads, consumeErrors=True).addCallbacks(lambda _: None, _first_failure)
        return loading if loading.called else loading.addErrback(self._load_failed, model)

    def _load_failed(self, failure: Failure, model: str) -> Failure:
        """Publish the failure of a load that was accepted."""
        if failure.check(RequestError):
            self._bus.publish(LoadFailed(model, failure.getErrorMessage()))
        return failure

    def unload(self, models: Iterable[str] | None = None) -> Deferred[None]:
        """Stop these models (ids or aliases; None: all) and their replicas, also if they serve; fires when none of them
        has a process.

        The stop command of a named model is run even if it is not up: its container may run without its client.
        """
        named = [self.config.real(name) or name for name in models or ()]
        names = self._servers() if models is None else [copy for name in named for copy in self.config.copies(name)]
        effects = self._scheduler.unload_requested(names, self._clock.seconds(), clean=models is not None)
        for name in names:
            managed = self._models.get(name)
            if managed is not None and managed.process is not None:
                managed.process.unloaded = True
        stopped = self.swaps.until_stopped(names)
        self._perform(effects)
        return stopped

    def select_profile(self, name: str | None) -> None:
        """Make a profile the active one (None or "": none); raises KeyError if there is none of that name."""
        if name and name not in self.config.profiles:
            raise KeyError(name)
        self.chosen_profile = name or ""
        self._activate_profile()

    def _activate_profile(self) -> None:
        """Use the chosen profile, or else the one of the start; a choice ends when the profile is removed."""
        if self.chosen_profile and self.chosen_profile not in self.config.profiles:
            self.chosen_profile = None
        at_start = self.config.hooks.on_startup.profile
        wanted = (at_start if self.chosen_profile is None else self.chosen_profile) or None
        if wanted != self.profile:
            self.profile = wanted
            self._log.info("profile {profile} is active", profile=wanted or "(none)")
            self._bus.publish(ProfileChanged(wanted))

    def pin(self, model: str) -> None:
        """Pin a model and its replicas: once loaded, only `unload` stops them. Raises UnknownModel."""
        name = self.config.real(model)
        if name is None:
            raise UnknownModel(model)
        self._change_rules(self.pinned.union(self.config.copies(name)))

    def unpin(self, model: str) -> None:
        """Remove a pin."""
        self._change_rules(self.pinned.difference(self.config.copies(self.config.real(model) or model)))

    def preload(self, models: Iterable[str] | None = None) -> Deferred[None]:
        """Load `models` (None: those that the configuration preloads).

        Models that may be loaded together are loaded in parallel, the others in their order.
        """
        wanted = self.config.hooks.on_startup.preload if models is None else models
        names = list(dict.fromkeys(name for name in map(self.config.real, wanted) if name is not None))
        return Deferred.fromCoroutine(self._preload(names))

    async def _preload(self, names: list[str]) -> None:
        while names:
            together: list[str] = []
            while names and not self._scheduler.rules.evict(names[0], sorted(together)):
                together.append(names.pop(0))
            await gatherResults([self._preload_one(name) for name in together])

    def _preload_one(self, name: str) -> Deferred[None]:
        def failed(failure: Failure) -> None:
            failure.trap(RequestError, CancelledError)
            if not failure.check(*LOGGED_ERRORS):
                reason = plain_error(failure.getErrorMessage())
                self._log.warn("preload of {model} failed: {error}", model=name, error=reason)
            self._bus.publish(Preloaded(name, False))

        return self.load(name, "preload").addCallbacks(lambda _: self._bus.publish(Preloaded(name, True)), failed)

    # -- configuration and shutdown ------------------------------------------------------------------------

    def apply(self, config: Config, changes: ConfigDiff) -> None:
        """Use a new configuration: unchanged models are not touched, models to restart finish their requests first."""
        old, self.config = self.config, config
        stale = {name for name in (*changes.restarted, *changes.added) if name in self._models}
        for name, model in config.models.items():
            managed = self._models.get(name)
            if managed is None:
                self._manage(model)
            elif name in stale or model != managed.config:
                managed.config = model
                managed.supervisor.set_definition(model)
        for name, managed in self._models.items():
            managed.configured = name in config.models or name in self._lease_needs
        self._change_rules(self.pinned & config.models.keys(), sorted(stale))
        for managed in list(self._models.values()):
            self.swaps.forget_removed(managed)
        self._activate_profile()
        before = {old.real(name) for name in old.hooks.on_startup.preload}
        changed = {*changes.added, *changes.restarted}
        names = [config.real(name) for name in config.hooks.on_startup.preload]
        wanted = [name for name in names if name is not None and (name in changed or name not in before)]
        if wanted:
            self.preload(wanted).addErrback(
                lambda failure: self._log.failure("preload after the reload failed", failure)
            )

    def update_peers(self, peers: Mapping[str, Peer]) -> None:
        """The peers offer other models; local models are not touched."""
        self.config = evolve(self.config, peers=peers)

    def drain(self, error: LlamaswapError | None = None) -> None:
        """Refuse waiting requests, with `error` if it is given, and load nothing until `resume`; ready models serve."""
        self._perform(self._scheduler.draining(error or ShuttingDown()))

    def resume(self) -> None:
        """Queue requests and load models again, after `drain`."""
        self._scheduler.resumed()

    def shutdown(self, deadline: float) -> Deferred[None]:
        """Refuse waiting requests and stop all servers; fires when none is left, or after `deadline` seconds.

        May be called again with a shorter deadline.
        """
        self.swaps.maximum_grace = max(deadline - KILL_MARGIN, deadline / 2)
        effects = self._scheduler.shutdown(ShuttingDown())

        def too_late(_: object, seconds: float) -> None:
            left = sorted(name for name in self._models if self._scheduler.phase(name) is not Phase.STOPPED)
            self._log.error("still running after {deadline} s: {left}", deadline=seconds, left=", ".join(left))

        def close(_: None) -> None:
            self._set_queue_timer(None)
            for managed in self._models.values():
                managed.cancel_idle_timer()
                managed.supervisor.close()

        stopped = self.swaps.until_stopped(self._models).addTimeout(deadline, self._clock, too_late)
        self._perform(effects)
        return stopped.addCallback(close)

    # -- reports of supervisors ----------------------------------------------------------------------------

    def state_changed(self, model: str, old: str, new: str) -> None:
        """The state of a server changed. No decision follows: the scheduler learns what it needs in other ways."""
        managed = self._models.get(model)
        reason = ""
        if managed is not None:
            if new == "starting":
                managed.earlier_log_tail = ""
            if new != "stopped":
                managed.suspended = False
            if new == "stopped" or new in STOPPING_STATES:
                reason = managed.end_reason(old)
        for swap in self.swaps.in_progress.values():
            swap.state_changed(model, new)
        self._bus.publish(StateChanged(model, old, new, reason))

    def exited(self, model: str, exit_status: int | None, expected: bool) -> None:
        """The process of a server ended. The supervisor has not finished, so the effects wait for the next turn."""
        managed = self._models.get(model)
        if managed is None:
            return
        managed.mark_lost()
        if not expected:
            cause = managed.supervisor.status().last_error or f"the server ended (status {exit_status})"
            out_of_memory = ran_out_of_memory(managed.log_tail, exit_status)
            effects = self._scheduler.exited(model, self._clock.seconds(), cause, out_of_memory)
            if effects:
                self._log.warn("{model} exited unexpectedly: {cause}", model=model, cause=cause)
                self._outbox.extend(effects)
                self._clock.callLater(0, self._perform, ())

    def mark_hung(self, model: str, why: str) -> None:
        """A ready server does not work any more: stop it as if it had crashed."""
        managed = self._models.get(model)
        if managed is not None:
            managed.mark_lost()
        effects = self._scheduler.exited(model, self._clock.seconds(), why)
        if effects:
            self._log.warn("stopping {model}: {why}", model=model, why=why)
            self._perform(effects)


def _first_failure(failure: Failure) -> Failure:
    """The failure of the load that failed first."""
    assert isinstance(failure.value, FirstError), "gatherResults fails with nothing else"
    return failure.value.subFailure
