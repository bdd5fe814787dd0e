"""Transitions: the changes of models and requests, each with its effects, and the pass that decides about the queue.

The rules of the decisions are described in `scheduler`.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from math import ceil, inf

from attrs import define, field

from llamaswap.errors import KeepsFailing, LlamaswapError, WaitedTooLong
from llamaswap.scheduling.effects import (
    AbandonSwap,
    Effect,
    Grant,
    Interrupt,
    QueuePosition,
    Refuse,
    SetIdleTimer,
    SetQueueTimer,
    StartSwap,
    Stop,
    Suspend,
    Ticket,
)
from llamaswap.scheduling.memory_planner import suspendable
from llamaswap.scheduling.planner import decision_for, placement_for, reason_for, reservation_for, stalled_deadlines
from llamaswap.scheduling.state import (
    FOREIGN_MEMORY_WAIT,
    ActiveSwap,
    Decision,
    ModelState,
    Phase,
    QueuedRequest,
    RequestStage,
    SchedulerState,
    queue_order,
)


@define(eq=False)
class Transitions(SchedulerState):
    """The scheduler's state with what changes it. Effects are collected until an input returns them."""

    queue: list[QueuedRequest] = field(factory=list, init=False)
    _restore: dict[str, None] = field(factory=dict, init=False)
    _displaced: dict[str, None] = field(factory=dict, init=False)
    _generation: int = field(default=0, init=False)
    _timer_at: float | None = field(default=None, init=False)

    def _take_effects(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects

    # -- requests ------------------------------------------------------------------------------------------

    def _accept(self, ticket: Ticket, stage: str, server: ModelState) -> QueuedRequest:
        entry = self.requests[ticket.number] = QueuedRequest(ticket, stage)
        server.unfinished += 1
        if stage is RequestStage.QUEUED:
            server.waiting += 1
        return entry

    def _grant(self, entry: QueuedRequest, server: ModelState) -> None:
        if entry.stage is not RequestStage.SERVING:
            entry.stage = RequestStage.SERVING
            server.waiting -= 1
        server.serving.add(entry.ticket.number)
        server.idle_since = None
        if server.idle_armed:
            self._disarm_idle(server)
        self._effects.append(Grant(entry.ticket))

    def _forget(self, entry: QueuedRequest) -> None:
        """The request has ended, wherever it stood."""
        server = self.models[entry.ticket.model]
        self.stalled_readers.pop(entry.ticket.number, None)
        del self.requests[entry.ticket.number]
        server.unfinished -= 1
        if entry.stage is not RequestStage.SERVING:
            server.waiting -= 1
        self._discard_unused(server)

    def _discard_unused(self, server: ModelState) -> None:
        """Drop the state of a model that is not configured, once it has no process and no request."""
        if not server.unfinished and server.phase is Phase.STOPPED and server.model not in self.rules.models:
            self.models.pop(server.model, None)

    def _refuse(self, entry: QueuedRequest, error: LlamaswapError) -> None:
        self._forget(entry)
        self._effects.append(Refuse(entry.ticket, error))

    def _refuse_queued(self, error: LlamaswapError, model: str | None = None) -> None:
        """Refuse the queued requests for a model (None: for all models)."""
        for entry in [*self.queue]:
            if model is None or entry.ticket.model == model:
                self.queue.remove(entry)
                self._refuse(entry, error)

    def _join(self, entry: QueuedRequest) -> None:
        """The request waits for the load of its model."""
        entry.stage = RequestStage.JOINED
        entry.starved = False
        self._load_of(entry.ticket.model).waiters[entry.ticket.number] = entry

    # -- loads ---------------------------------------------------------------------------------------------

    def _load_of(self, model: str) -> ActiveSwap:
        return self.loads[self.models[model].generation]

    def _start(self, decision: Decision, entry: QueuedRequest | None, now: float) -> None:
        """Load a model for a request; without one it returns to where it was before a failed swap."""
        model = decision.model
        for generation in decision.abandon:
            self._abandon(self.loads[generation], may_suspend=True)
        victims = [self.models[victim] for victim in decision.evicts]
        restore = tuple(victim.model for victim in victims if victim.phase is Phase.READY)
        suspend = suspendable(self, decision, [victim for victim in victims if self._may_suspend(victim)], now)
        reason = reason_for(self, model, now, decision.host) if entry else "back after an eviction"
        for victim in victims:
            self._leave(victim)
            victim.suspending = victim.model in suspend
        self._generation += 1
        server = self.state_of(model)
        self._disarm_idle(server)
        server.phase = Phase.LOADING
        self._occupy(server, decision.host)
        self.lost.pop(model, None)
        server.generation = self._generation
        server.load_began = now
        server.idle_since = None
        server.stale = server.suspending = server.freed_memory = False
        server.memory = decision.memory
        self._forget_eviction(model)
        self._displaced.update((name, None) for name in restore if name in self.rules.returning)
        swap = ActiveSwap(self._generation, model, frozenset(decision.evicts), {}, restore)
        self.loads[swap.generation] = swap
        waited, origin = (now - entry.ticket.since, entry.ticket.origin) if entry else (0.0, "restored")
        self._effects.append(
            StartSwap(
                generation=swap.generation,
                model=model,
                evict=decision.evicts,
                reason=reason,
                waited=waited,
                suspend=suspend,
                origin=origin,
                gpus=decision.gpus,
                host=decision.host,
                sizes=decision.memory,
            )
        )
        if entry:
            self._join(entry)

    def _abandon(self, swap: ActiveSwap, may_suspend: bool = False) -> list[QueuedRequest]:
        """Give up a load; returns its requests. Models that leave for it go on leaving."""
        del self.loads[swap.generation]
        self._effects.append(AbandonSwap(swap.generation))
        server = self.models[swap.model]
        if may_suspend:
            self._suspend_or_stop(server, "abandoned")
        else:
            self._stop([server], "abandoned")
        return list(swap.waiters.values())

    # -- servers -------------------------------------------------------------------------------------------

    def _occupy(self, server: ModelState, host: str) -> None:
        """A process of the server is on this host, or about to be."""
        self.occupied.get(server.host, {}).pop(server.model, None)
        self.rooms.pop(server.host, None)
        self.rooms.pop(host, None)
        self.occupied.setdefault(host, {})[server.model] = server
        server.host = host

    def _may_suspend(self, server: ModelState) -> bool:
        """Whether a server that has to leave is suspended. One that is loading is, if it was only being resumed."""
        rules = self.rules.models.get(server.model)
        up = server.phase in (Phase.READY, Phase.LOADING) and not server.stale
        return server.suspending or (up and rules is not None and rules.can_suspend)

    def _suspend_or_stop(self, server: ModelState, why: str) -> None:
        if not self._may_suspend(server):
            self._stop([server], why)
            return
        self._leave(server)
        server.suspending = True
        self._effects.append(Suspend((server.model,), why))

    def _stop(self, servers: Iterable[ModelState], why: str) -> None:
        models = []
        for server in servers:
            self._leave(server)
            models.append(server.model)
        if models:
            self._effects.append(Stop(tuple(models), why))

    def _leave(self, server: ModelState) -> None:
        """The server gets no more requests, and those it serves no longer keep it."""
        if server.phase is Phase.STOPPED:
            self._occupy(server, server.host)
        self.rooms.pop(server.host, None)
        self._disarm_idle(server)
        if server.phase is Phase.READY:
            self.failures.pop(server.model, None)
        server.freed_memory = server.phase is Phase.SUSPENDED or server.freed_memory
        server.suspending = False
        server.phase = Phase.STOPPING
        server.idle_since = None
        server.stale = False
        server.ttl = None
        server.serving.clear()

    def _mark_idle(self, server: ModelState, now: float, since: float | None = None) -> None:
        """A server is ready and unused, or suspended: its idle time begins, or began at `since`."""
        server.idle_since = now if since is None else since
        ttl = self._ttl_of(server)
        if ttl < inf and server.model not in self.rules.pinned:
            server.idle_armed = True
            self._effects.append(SetIdleTimer(server.model, max(0.0, server.idle_since + ttl - now)))
        elif server.idle_armed:
            self._disarm_idle(server)

    def _ttl_of(self, server: ModelState) -> float:
        """The seconds that a ready or suspended server may be idle; infinity: for ever."""
        if server.ttl is not None and server.phase is Phase.READY:
            return server.ttl
        rules = self.rules.models.get(server.model)
        ttl = 0.0 if rules is None else rules.suspended_ttl if server.phase is Phase.SUSPENDED else rules.ttl
        return ttl or inf

    def ttl_changed(self, model: str, ttl: float, now: float) -> list[Effect]:
        """A client asks that a model be kept for `ttl` idle seconds from now or from the end of its requests on.

        It holds for the server that is up or loading, until the next such call.
        """
        server = self.models.get(model)
        if server is not None and server.phase in (Phase.LOADING, Phase.READY):
            server.ttl = ttl
            if server.phase is Phase.READY and server.idle_since is not None:
                self._mark_idle(server, now)
        return self._take_effects()

    def _disarm_idle(self, server: ModelState) -> None:
        if server.idle_armed:
            server.idle_armed = False
            self._effects.append(SetIdleTimer(server.model, None))

    # -- the queue -----------------------------------------------------------------------------------------

    def _reschedule(self, now: float) -> None:
        """Decide once for each queued request in order; starved requests that still wait make reservations."""
        deadlines: list[float] = []
        self.reservations = []
        if now >= self.missed_until:
            self.missed, self.missed_until = frozenset(), inf
        if self.queue:
            self._promote_starved(now)
            deadlines = self._run_queue(now)
            self._renumber()
            if self.stalled_readers and self.rules.fifo.stalled_reader:
                deadlines += self._interrupt_stalled(now)
        self.closed_models = frozenset().union(*(reservation.closed for reservation in self.reservations))
        if deadlines:
            self._arm_timer(min(deadlines), now)
        elif self._timer_at is not None:
            self._timer_at = None
            self._effects.append(SetQueueTimer(None))
        if (self._restore or self._displaced) and not self.queue and not self.loads:
            self._restore_evicted(now)

    def _enqueue(self, entry: QueuedRequest) -> None:
        """Queue a request that is not starved."""
        entry.position = 0
        insort(self.queue, entry, key=queue_order)

    def _promote_starved(self, now: float) -> None:
        """Move the requests whose fairness window has ended before all others."""
        starved = [entry for entry in self.queue if entry.deadline <= now and not entry.starved]
        if starved:
            for entry in starved:
                entry.starved = True
            self.queue.sort(key=queue_order)

    def _renumber(self) -> None:
        """Update the 1-based positions, with an effect for each one that changed."""
        for position, entry in enumerate(self.queue, 1):
            if entry.position != position:
                entry.position = position
                self._effects.append(QueuePosition(entry.ticket, position))

    def _run_queue(self, now: float) -> list[float]:
        """One pass through the queue; returns the deadlines of the requests that still wait."""
        deadlines: list[float] = []
        decisions: dict[str, Decision] = {}
        for entry in [*self.queue]:
            if entry.stage is not RequestStage.QUEUED or entry.ticket.number not in self.requests:
                continue
            model = entry.ticket.model
            decision = decisions.get(model)
            if decision is None:
                decision = decisions[model] = decision_for(self, model, self.reservations, now, entry.starved)
            if decision.action == "queue":
                if (overdue := self._overdue(entry, decision, now)) is not None:
                    self.queue.remove(entry)
                    self._refuse(entry, overdue)
                    continue
                deadlines += self._deadlines(entry, decision)
                if decision.moves:
                    self._stop([self.models[model]], "host")
                # What it waits for may last for hours: other models are loaded meanwhile, if they fit.
                for_programs = decision.error is not None or any(map(self.is_lease, decision.waits_for))
                reserves = entry.starved and not for_programs
                if reserves and all(reservation.model != model for reservation in self.reservations):
                    reservation = reservation_for(self, decision, now)
                    self.reservations.append(reservation)
                    ends = [self.models[victim].stay_end for victim in reservation.evict - reservation.closed]
                    deadlines += [end for end in ends if end < inf]
                    decisions.clear()
                continue
            self.queue.remove(entry)
            if decision.action == "serve":
                self._grant(entry, self.models[model])
            elif decision.action == "join":
                self._join(entry)
            elif decision.error is not None:
                self._refuse(entry, decision.error)
            elif self.in_backoff(model, now):
                self._refuse(entry, self._backoff_error(model, now))
            else:
                self._start(decision, entry, now)
            if decision.action == "load" or self.is_full:
                decisions.clear()
        return deadlines

    def _deadlines(self, entry: QueuedRequest, decision: Decision) -> list[float]:
        """When a queued request has to be decided about again, if no event comes before."""
        found = [] if entry.starved else [entry.deadline]
        if self.missed and self.missed_until < inf:
            found.append(self.missed_until)
        if decision.until:
            found.append(decision.until)
        elif longest := self._longest_wait(decision):
            found.append(entry.ticket.since + longest)
        return found

    def _longest_wait(self, decision: Decision) -> float:
        """How many seconds a request that meets this decision may wait; 0: no limit."""
        bounds = [self.rules.fifo.max_wait, FOREIGN_MEMORY_WAIT if decision.error else 0.0]
        return min((bound for bound in bounds if bound), default=0.0)

    def _overdue(self, entry: QueuedRequest, decision: Decision, now: float) -> LlamaswapError | None:
        """The error of a request that has waited for too long and would have to wait on, with what is in its way."""
        model, longest = entry.ticket.model, self._longest_wait(decision)
        if not longest or decision.until or now < entry.ticket.since + longest:
            return None
        if decision.error is not None:
            return decision.error
        in_the_way = decision_for(self, model, (), now).waits_for or decision.waits_for
        return WaitedTooLong(model, longest, in_the_way)

    def _interrupt_stalled(self, now: float) -> list[float]:
        """Interrupt the stalled responses that are due; returns the deadlines of the others."""
        deadlines = stalled_deadlines(self, [entry.ticket for entry in self.queue], now)
        for number, (due, waiting) in deadlines.items():
            if due <= now:
                stalled_for = now - self.stalled_readers.pop(number)
                self._effects.append(Interrupt(self.requests[number].ticket, stalled_for, waiting))
        return [due for due, _ in deadlines.values() if due > now]

    def _restore_evicted(self, now: float) -> None:
        """Load again what a failed load evicted, and the default model if nothing is in its way. Requests go first."""
        for model in [*self._restore, *self._displaced]:
            decision = placement_for(self, model, (), now)
            loads = decision.action == "load"
            if loads and decision.evicts and all(self.phase(name) is Phase.STOPPING for name in decision.evicts):
                continue
            self._restore.pop(model, None)
            if loads and not decision.evicts:
                self._start(decision, None, now)

    def _forget_eviction(self, model: str) -> None:
        self._restore.pop(model, None)
        self._displaced.pop(model, None)

    def _arm_timer(self, deadline: float, now: float) -> None:
        if self._timer_at is None or deadline < self._timer_at:
            self._timer_at = deadline
            self._effects.append(SetQueueTimer(max(0.0, deadline - now)))

    def _backoff_error(self, model: str, now: float) -> KeepsFailing:
        failure = self.failures[model]
        return KeepsFailing(failure, max(1, ceil(failure.until - now)))
