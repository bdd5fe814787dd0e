"""The part of the router that performs effects: one outbox, the leases, and the timers that the scheduler asks for.

A call that adds to the outbox while its effects are being performed returns at once: a client that is called back in
the middle of a decision can so request another model without meeting half-changed state.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from attrs import define, evolve, field
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from llamaswap.errors import KeepsFailing, LlamaswapError, ReaderStalled, RequestError, StartFailed
from llamaswap.routing.leases import Lease, PendingLease
from llamaswap.routing.managed_model import ManagedModel
from llamaswap.routing.queries import ModelQueries
from llamaswap.scheduling.effects import (
    AbandonSwap,
    Admit,
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


@define(eq=False)
class EffectPerformer(ModelQueries):
    """Performs the scheduler's effects in their order. `_pending` and `_stalled` are keyed by the ticket's number.

    `_remote` are the leases of models on other hosts.
    """

    _pending: dict[int, PendingLease] = field(factory=dict, init=False)
    _stalled: dict[int, Lease] = field(factory=dict, init=False)
    _remote: dict[str, set[Lease]] = field(factory=dict, init=False)
    _outbox: deque[Effect] = field(factory=deque, init=False)
    _performing: bool = field(default=False, init=False)
    _queue_timer: IDelayedCall | None = field(default=None, init=False)
    _log: Logger = field(factory=lambda: Logger("llamaswap.routing.router"), init=False, repr=False)

    def _perform(self, effects: Iterable[Effect], now: float | None = None) -> None:
        """Perform the effects of a decision that was made at `now` (None: read the clock)."""
        self._outbox.extend(effects)
        if self._performing:
            return
        self._last_decision = self._clock.seconds() if now is None else now
        self._performing = True
        try:
            while self._outbox:
                effect = self._outbox.popleft()
                try:
                    self._perform_one(effect)
                except Exception:  # the fault of one waiting request must not cost the others their answers
                    self._log.failure("performing {effect} failed", effect=effect)
        finally:
            self._performing = False

    def _perform_one(self, effect: Effect) -> None:
        match effect:  # first, and without unpacking, what a request for a ready model causes
            case SetIdleTimer():
                self._set_idle_timer(effect.model, effect.seconds)
            case Grant():
                self._grant(effect.ticket)
            case Admit():
                pass  # `request` returns this to its caller
            case Refuse(ticket, error):
                if ticket.number in self._pending:
                    self._pending.pop(ticket.number).settle(self._refusal(error))
            case QueuePosition(ticket, position):
                pending = self._pending.get(ticket.number)
                if pending is not None and pending.on_position is not None:
                    pending.on_position(position)
            case SetQueueTimer(seconds):
                self._set_queue_timer(seconds)
            case StartSwap():
                self.swaps.begin(effect)
            case AbandonSwap(generation):
                self.swaps.abandon(generation)
            case Stop(models, why):
                self.swaps.stop_all(models, why)
            case Suspend(models, why):
                self.swaps.suspend_all(models, why)
            case Interrupt(ticket, seconds, waiting):
                lease = self._stalled.pop(ticket.number, None)
                if lease is not None and lease.interrupt is not None:
                    lease.interrupt(ReaderStalled(seconds, waiting))

    def _grant(self, ticket: Ticket) -> None:
        pending = self._pending.pop(ticket.number, None)
        lease = self._leased(ticket)
        if pending is None:
            lease.release()
        else:
            pending.settle(lease)

    def _leased(self, ticket: Ticket) -> Lease:
        process = self._models[ticket.model].process
        assert process is not None, "the scheduler grants only models that are ready"
        self._lease_count += 1
        lease = Lease(ticket, process, self)
        if process.endpoint.token:
            self._remote.setdefault(ticket.model, set()).add(lease)
        return lease

    def _refusal(self, error: LlamaswapError) -> RequestError:
        """The error of a refused request; the scheduler only ever refuses with RequestErrors."""
        if isinstance(error, KeepsFailing) and error.failure.model in self._models:
            return evolve(error, failure=evolve(error.failure, tail=self._models[error.failure.model].log_tail))
        return error if isinstance(error, RequestError) else StartFailed("", str(error))

    def lease_released(self, lease: Lease) -> None:
        """The request of a lease has ended."""
        self._lease_count -= 1
        if self._remote and (remote := self._remote.get(lease.ticket.model)) is not None:
            remote.discard(lease)
        if self._stalled:
            self._stalled.pop(lease.ticket.number, None)
        now = self._last_decision = self._clock.seconds()
        effects = self._scheduler.served(lease.ticket, now)
        if effects:
            self._perform(effects, now)

    def reader_stalled(self, lease: Lease, since: float | None) -> None:
        """The client of a lease has read nothing since then; None: it reads again."""
        if since is None:
            self._stalled.pop(lease.ticket.number, None)
            self._scheduler.reader_moved(lease.ticket)
        else:
            self._stalled[lease.ticket.number] = lease
            self._perform(self._scheduler.reader_stalled(lease.ticket, since, self._clock.seconds()))

    # -- timers --------------------------------------------------------------------------------------------

    def keep_for(self, model: str, seconds: float) -> None:
        """Unload a model (its real id) after so many idle seconds (infinity: never); `Transitions.ttl_changed`."""
        now = self._clock.seconds()
        self._perform(self._scheduler.ttl_changed(model, seconds, now), now)

    def _set_idle_timer(self, model: str, seconds: float | None) -> None:
        """Report the model as idle after `seconds`; None: do not.

        A pending call is kept if the new deadline is later: it compares the time when it runs. A model with many short
        requests so needs no new call for each of them.
        """
        managed = self._models[model]
        if seconds is None:
            managed.idle_deadline = None
            return
        deadline = managed.idle_deadline = self._clock.seconds() + seconds
        if managed.idle_timer is not None and managed.idle_timer.getTime() > deadline:
            managed.cancel_idle_timer()
        if managed.idle_timer is None:
            managed.idle_timer = self._clock.callLater(seconds, self._idle_due, managed)

    def _idle_due(self, managed: ManagedModel) -> None:
        managed.idle_timer = None
        deadline, now = managed.idle_deadline, self._clock.seconds()
        if deadline is not None and deadline > now:
            managed.idle_timer = self._clock.callLater(deadline - now, self._idle_due, managed)
        elif deadline is not None:
            managed.idle_deadline = None
            self._perform(self._scheduler.idle_expired(managed.config.id, now))

    def _set_queue_timer(self, seconds: float | None) -> None:
        """Report to the scheduler after `seconds` that a deadline in the queue has passed; None: do not."""
        if self._queue_timer is not None:
            self._queue_timer.cancel()
        self._queue_timer = None if seconds is None else self._clock.callLater(seconds, self._queue_due)

    def _queue_due(self) -> None:
        self._queue_timer = None
        self._perform(self._scheduler.queue_timer_expired(self._clock.seconds()))
