"""Swaps and stops: what the scheduler decided about servers, performed with their supervisors.

A swap stops the evicted models, waits until their memory can be used again, and starts its model. Results go to the
scheduler, whose decisions go to `perform`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from attrs import define, field
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaswap.errors import FailureRecord, LlamaswapError, OutOfMemory, ServerVanished, StartFailed, plain_error
from llamaswap.events import EventBus, SleepEnded, SwapBegan, SwapEnded
from llamaswap.observe.vram_reclaim import VramReclaim
from llamaswap.routing.leases import ProcessInstance
from llamaswap.routing.managed_model import ManagedModel
from llamaswap.scheduling.effects import CLEAN_UP, Effect, StartSwap
from llamaswap.scheduling.memory import gpu_numbers
from llamaswap.scheduling.out_of_memory import ran_out_of_memory
from llamaswap.scheduling.scheduler import Scheduler
from llamaswap.scheduling.state import Phase, WaitReason
from llamaswap.servers.server_snapshot import ServerSnapshot

T = TypeVar("T")
LOGGED_ERRORS = (StartFailed, ServerVanished)  # of loads: raised by swaps, which log them


@define(eq=False)
class SwapInProgress:
    """A swap from `StartSwap` to its result.

    `abandoned`: the scheduler gave it up. `starting`: its model's supervisor was asked to start. `vanished`: the model
    became ready and exited before the swap could report that it is ready. `stopped_at` is when the evicted models had
    left.
    """

    effect: StartSwap
    began: float
    stopped_at: float | None = None
    abandoned: bool = False
    starting: bool = False
    was_ready: bool = False
    vanished: bool = False

    def state_changed(self, model: str, state: str) -> None:
        """The server of a model is in another state."""
        if self.starting and model == self.effect.model:
            self.was_ready = self.was_ready or state == "ready"
            self.vanished = self.was_ready and state != "ready"


@define(eq=False)
class Swaps:
    """Performs swaps, stops and suspensions. `maximum_grace` bounds the grace of every stop (None: no bound)."""

    _models: dict[str, ManagedModel]
    _clock: IReactorTime
    _bus: EventBus
    _memory: VramReclaim
    _scheduler: Scheduler
    _perform: Callable[[Iterable[Effect]], None]
    maximum_grace: float | None = field(default=None, init=False)
    in_progress: dict[int, SwapInProgress] = field(factory=dict, init=False)
    _start_blockers: list[tuple[str, Deferred[None]]] = field(factory=list, init=False)
    _log: Logger = field(factory=lambda: Logger("llamaswap.routing.router"), init=False, repr=False)

    # -- swaps ---------------------------------------------------------------------------------------------

    def begin(self, effect: StartSwap) -> None:
        """Begin a swap; its result goes to the scheduler."""
        swap = self.in_progress[effect.generation] = SwapInProgress(effect, self._clock.seconds())
        Deferred.fromCoroutine(self._run(swap)).addErrback(lambda failure: self._log.failure("swap failed", failure))

    def abandon(self, generation: int) -> None:
        """Do not start the swap's model, if it has not been started yet."""
        if generation in self.in_progress:
            self.in_progress[generation].abandoned = True

    async def _run(self, swap: SwapInProgress) -> None:
        effect, began = swap.effect, swap.began
        model, generation = effect.model, effect.generation
        leaving = [f"{victim} (suspended)" if victim in effect.suspend else victim for victim in effect.evict]
        evicts = ", ".join(leaving) or "nothing"
        self._log.info("loading {model}: {reason}; evicts {evicts}", model=model, reason=effect.reason, evicts=evicts)
        self._bus.publish(SwapBegan(generation, model, effect.evict, effect.reason, began, effect.origin, effect.host))
        try:
            error = await self._load(swap)
        except Exception:  # a fault of ours: the waiting requests must get an answer
            self._log.failure("{model} could not be loaded", model=model)
            error = StartFailed(model, "an internal error of the proxy; see its log")
        del self.in_progress[generation]
        ended = self._clock.seconds()
        message = "abandoned" if swap.abandoned else None if error is None else str(error)
        if message is None:
            self._log.info("ready {model} in {secs:.2f}s", model=model, secs=ended - began)
        else:
            self._log.warn("{model} was not loaded: {error}", model=model, error=plain_error(message))
        stopped = ended if swap.stopped_at is None else swap.stopped_at
        phases = {"queued": effect.waited, "stop": stopped - began, "start": ended - stopped}
        exit_status = error.exit_status if isinstance(error, StartFailed) else None
        self._bus.publish(SwapEnded(generation, model, message, ended, phases, exit_status))
        self._perform(self._scheduler.swap_finished(generation, error, ended))

    async def _load(self, swap: SwapInProgress) -> LlamaswapError | None:
        """Make room for the swap's model and start it; returns why it is not ready."""
        effect, model = swap.effect, swap.effect.model
        await gatherResults(
            [self.suspend(victim) if victim in effect.suspend else self.stop(victim) for victim in effect.evict]
        )
        swap.stopped_at = self._clock.seconds()
        while (blocker := self._start_blocker(effect)) is not None:
            await blocker
        if not effect.host and not swap.abandoned and (reclaimed := self._memory.wait_for_reclaim(model)) is not None:
            await reclaimed
        if swap.abandoned:
            return None
        swap.starting = True
        managed = self._models[model]
        if self._scheduler.rules.several_hosts:
            managed.supervisor.set_place(effect)
        if managed.config.gpus:
            managed.supervisor.set_definition(managed.config.with_gpus(gpu_numbers(effect.gpus)))
        try:
            if not effect.host:
                self._memory.loading(model)
            endpoint = await managed.supervisor.ensure_ready()
            if not effect.host:
                self._memory.loaded(model)
        except StartFailed as error:
            return self._explained(error)
        except LlamaswapError as error:
            return error
        if swap.vanished:
            return ServerVanished(model)
        if not swap.abandoned:
            self._models[model].process = ProcessInstance(endpoint, effect.generation)
        return None

    def _explained(self, error: StartFailed) -> StartFailed:
        """The error of a start, as OutOfMemory if memory decides and the server's output or exit says so."""
        if not self._scheduler.rules.by_memory or not ran_out_of_memory(error.log_tail, error.exit_status):
            return error
        return OutOfMemory(error.model, error.cause, error.exit_status, error.log_tail)

    # -- stops ---------------------------------------------------------------------------------------------

    def stop_all(self, models: Iterable[str], why: str) -> None:
        """Stop these in parallel; the scheduler learns of each one that has no process left."""
        for model in models:
            self._models[model].stop_reason = why
            if why == CLEAN_UP:
                managed = self._models[model]
                self._watch(managed, "cleaning up", maybeDeferred(managed.supervisor.clean_up))
            else:
                self.stop(model, 0.0 if why == "crash" else None)

    def suspend_all(self, models: Iterable[str], why: str) -> None:
        """Suspend these in parallel; the scheduler learns of each one that is suspended, or had to be stopped."""
        for model in models:
            self._models[model].stop_reason = why
            self.suspend(model)

    def stop(self, model: str, grace: float | None = None) -> Deferred[None]:
        """Stop one server. Never fails."""
        managed = self._models[model]
        return self._watch(managed, "stopping", maybeDeferred(managed.supervisor.stop, self._grace(managed, grace)))

    def suspend(self, model: str) -> Deferred[None]:
        """Suspend one server. Never fails."""
        managed = self._models[model]
        return self._watch(managed, "suspending", maybeDeferred(managed.supervisor.suspend, self._grace(managed)))

    def _watch(self, managed: ManagedModel, action: str, ending: Deferred[T]) -> Deferred[None]:
        """Report to the scheduler when `ending` fires: with True the server is suspended, with anything else stopped.

        If the server is asked to stop again meanwhile, only the last stop to end counts: the first one may have ended
        for an earlier process.
        """
        model = managed.config.id
        process = managed.process
        managed.pending_stops += 1
        ending.addErrback(
            lambda failure: self._log.failure("{action} {model} failed", failure, action=action, model=model)
        )

        def ended(result: T | None) -> None:
            managed.pending_stops -= 1
            if process is not None:
                process.lost = True
            if managed.process is process:
                managed.process = None
            if not managed.pending_stops:
                (self._suspended if result is True else self._stopped)(managed)

        return ending.addCallback(ended)

    def _grace(self, managed: ManagedModel, grace: float | None = None) -> float:
        """How long the stop of a server may take."""
        wanted = managed.config.unload_timeout if grace is None else grace
        return wanted if self.maximum_grace is None else min(wanted, self.maximum_grace)

    def _left(self, managed: ManagedModel) -> None:
        """Record that the process of a server has ended, or that it is suspended."""
        model = managed.config.id
        try:
            self._memory.stopped(model)
        except Exception:  # a fault in the observation of memory must not keep the model from being stopped
            self._log.failure("recording that {model} has stopped failed", model=model)
        managed.stop_reason = ""

    def _suspended(self, managed: ManagedModel) -> None:
        model = managed.config.id
        self._left(managed)
        effects = self._scheduler.suspended(model, self._clock.seconds())
        if self._scheduler.phase(model) is Phase.SUSPENDED:
            managed.suspended = True
            self._log.info("{model} is suspended", model=model)
        self._perform(effects)

    def _stopped(self, managed: ManagedModel) -> None:
        model = managed.config.id
        self._left(managed)
        effects = self._scheduler.stopped(model, self._clock.seconds())
        waiters, managed.stop_waiters = managed.stop_waiters, []
        if managed.suspended:
            managed.suspended = False
            self._bus.publish(SleepEnded(model))
        # First the effects, then the waiters: a waiter may ask for a model at once, and the effects of that must not
        # precede those it builds on.
        self._perform(effects)
        self.forget_removed(managed)
        for waiter in waiters:
            waiter.callback(None)

    def forget_removed(self, managed: ManagedModel) -> None:
        """Forget a model that was removed from the configuration, as soon as it has no process."""
        model = managed.config.id
        if not managed.configured and self._scheduler.phase(model) is Phase.STOPPED:
            managed.supervisor.close()
            managed.cancel_idle_timer()
            del self._models[model]

    def until_stopped(self, models: Iterable[str]) -> Deferred[None]:
        """Fires when none of these has a process."""
        waiters: list[Deferred[None]] = []
        for model in dict.fromkeys(models):
            if self._scheduler.phase(model) is not Phase.STOPPED:
                waiters.append(Deferred())
                self._models[model].stop_waiters.append(waiters[-1])
        return gatherResults(waiters, consumeErrors=True).addCallback(lambda _: None)

    # -- servers of an earlier program ---------------------------------------------------------------------

    def restore_failures(self, failures: Iterable[FailureRecord]) -> None:
        """Continue the backoff of models that failed under the earlier program; a changed definition ends it."""
        for failure in failures:
            managed = self._models.get(failure.model)
            if managed is not None and managed.definition == failure.definition:
                self._scheduler.restore_failure(failure)
                managed.earlier_log_tail = failure.tail

    def adopt(self, snapshots: Iterable[ServerSnapshot]) -> list[ServerSnapshot]:
        """Begin with servers that are ready or suspended already; returns those that could not be taken over.

        A server whose definition has changed meanwhile is stopped, as after a reload.
        """
        now, left, outdated = self._clock.seconds(), [], []
        for snapshot in snapshots:
            model, managed = snapshot.model, self._models.get(snapshot.model)
            if managed is None:
                left.append(snapshot)
                continue
            # The scheduler first: the supervisor may report during the adoption that the server has exited.
            effects = self._scheduler.adopted(
                model,
                snapshot.ready_at,
                snapshot.idle_since,
                now,
                suspended=snapshot.asleep,
                ttl=snapshot.ttl,
                host=snapshot.host,
                memory=snapshot.memory,
            )
            if snapshot.asleep:
                managed.suspended = True
            else:
                managed.process = ProcessInstance(snapshot.endpoint, self._scheduler.state_of(model).generation)
            try:
                if not managed.supervisor.adopt(snapshot):
                    outdated.append(model)
            except Exception as error:  # the fault of one server must not cost the others
                self._log.failure("taking over the server of {model} failed", model=model)
                left.append(snapshot)
                effects += self._scheduler.exited(model, now, str(error))
            self._perform(effects)
        if outdated:
            self._perform(self._scheduler.rules_changed(self._scheduler.rules, outdated, now))
        return left

    def delay_starts_until(self, ended: Deferred[T], model: str = "") -> None:
        """Start no server on this machine before `ended` has fired, whose result is kept; or this `model` on no host.

        Servers that an earlier program left are being stopped, and still hold memory and ports.
        """
        blocker: tuple[str, Deferred[None]] = model, Deferred()
        self._start_blockers.append(blocker)

        def over(result: T | Failure) -> T | Failure:
            self._start_blockers.remove(blocker)
            blocker[1].callback(None)
            return result

        ended.addBoth(over)

    def _start_blocker(self, effect: StartSwap) -> Deferred[None] | None:
        """What a start has to wait for."""
        for model, blocker in self._start_blockers:
            if model == effect.model or not (model or effect.host):
                return blocker
        return None

    @property
    def starts_are_delayed(self) -> bool:
        """Whether servers that an earlier program left on this machine are being stopped."""
        return any(not model for model, _ in self._start_blockers)

    # -- reads ---------------------------------------------------------------------------------------------

    def wait_reason(self, model: str) -> WaitReason | None:
        """What the swap of this model waits for; None if no swap loads it."""
        for swap in self.in_progress.values():
            if swap.effect.model == model and not swap.abandoned:
                if swap.starting:
                    return WaitReason("the model is being loaded", loading=True)
                left = tuple(name for name in swap.effect.evict if self._scheduler.phase(name) is Phase.STOPPING)
                if left:
                    return WaitReason(f"waiting for {', '.join(left)} to unload", left, loading=True)
                if self._start_blocker(swap.effect) is not None:
                    return WaitReason("waiting for servers of an earlier run to stop", loading=True)
                return WaitReason("waiting for GPU memory to be released", loading=True)
        return None
