"""Decisions about the wait queue: one pass decides again about every waiting request. See `scheduler` for the rules."""

from __future__ import annotations

from math import ceil, inf

from attrs import define, field

from llamaswap.errors import KeepsFailing, WaitedTooLong
from llamaswap.scheduling.effects import Interrupt, SetQueueTimer
from llamaswap.scheduling.planner import (
    GrantNow,
    JoinSwap,
    RefuseForever,
    StartNow,
    Verdict,
    WaitFor,
    reservation_for,
    stalled_deadlines,
    verdict_for,
)
from llamaswap.scheduling.state import Phase, QueuedRequest, RequestStage
from llamaswap.scheduling.transitions import Transitions


@define(eq=False)
class QueueDecisions(Transitions):
    """The scheduler's state with the pass through its wait queue."""

    _timer_at: float | None = field(default=None, init=False)

    def _reschedule(self, now: float) -> None:
        """Decide once for each queued request in order; starved requests that still wait make reservations."""
        deadlines: list[float] = []
        self.reservations = []
        if self.queue:
            self.queue.promote_starved(now)
            deadlines = self._run_queue(now)
            self._effects += self.queue.renumber()
            if self.stalled_readers and self.rules.stalled_reader:
                deadlines += self._interrupt_stalled(now)
        self.closed_models = frozenset().union(*(reservation.closed for reservation in self.reservations))
        if deadlines:
            self._arm_timer(min(deadlines), now)
        elif self._timer_at is not None:
            self._timer_at = None
            self._effects.append(SetQueueTimer(None))
        if self._restore and not self.queue and not self.loads:
            self._restore_evicted(now)

    def _run_queue(self, now: float) -> list[float]:
        """One pass through the queue; returns the deadlines of the requests that still wait."""
        deadlines: list[float] = []
        verdicts: dict[str, Verdict] = {}
        for entry in [*self.queue]:
            if entry.stage is not RequestStage.QUEUED or entry.ticket.number not in self.requests:
                continue
            model = entry.ticket.model
            verdict = verdicts.get(model)
            if verdict is None:
                verdict = verdicts[model] = verdict_for(self, model, self.reservations, now)
            if isinstance(verdict, WaitFor):
                if (overdue := self._overdue(entry, verdict, now)) is not None:
                    self.queue.remove(entry)
                    self._refuse(entry, overdue)
                    continue
                deadlines += self._deadlines(entry, verdict)
                if entry.starved and all(reservation.model != model for reservation in self.reservations):
                    reservation = reservation_for(self, model, verdict, now)
                    self.reservations.append(reservation)
                    ends = [self.models[victim].stay_end for victim in reservation.evict - reservation.closed]
                    deadlines += [end for end in ends if end < inf]
                    verdicts.clear()
                continue
            self.queue.remove(entry)
            if isinstance(verdict, GrantNow):
                self._grant(entry, self.models[model])
            elif isinstance(verdict, JoinSwap):
                self._join(entry, self.loads[verdict.generation])
            elif isinstance(verdict, RefuseForever):
                self._refuse(entry, verdict.error)
            elif self.in_backoff(model, now):
                self._refuse(entry, self._backoff_error(model, now))
            else:
                self._start(model, verdict, entry, now)
                verdicts.clear()
        return deadlines

    def _deadlines(self, entry: QueuedRequest, verdict: WaitFor) -> list[float]:
        """When a queued request has to be decided about again, if no event comes before."""
        found = [] if entry.starved else [entry.deadline]
        if verdict.until:
            found.append(verdict.until)
        elif self.rules.max_wait:
            found.append(entry.ticket.since + self.rules.max_wait)
        return found

    def _overdue(self, entry: QueuedRequest, verdict: WaitFor, now: float) -> WaitedTooLong | None:
        """The error of a request that has waited for `max_wait` and would have to wait on, with what is in its way."""
        model, longest = entry.ticket.model, self.rules.max_wait
        if not longest or verdict.until or now < entry.ticket.since + longest:
            return None
        without_reservations = verdict_for(self, model, (), now)
        in_the_way = without_reservations if isinstance(without_reservations, WaitFor) else verdict
        return WaitedTooLong(model, longest, in_the_way.behind)

    def _interrupt_stalled(self, now: float) -> list[float]:
        """Interrupt the stalled responses that are due; returns the deadlines of the others."""
        deadlines = stalled_deadlines(self, [entry.ticket for entry in self.queue], now)
        for number, (due, waiting) in deadlines.items():
            if due <= now:
                stalled_for = now - self.stalled_readers.pop(number)
                self._effects.append(Interrupt(self.requests[number].ticket, stalled_for, waiting))
        return [due for due, _ in deadlines.values() if due > now]

    def _restore_evicted(self, now: float) -> None:
        """Load again what was evicted for a model that then failed to start; every request has precedence."""
        for model in list(self._restore):
            verdict = verdict_for(self, model, (), now)
            evict = verdict.evict if isinstance(verdict, StartNow) else None
            if evict and all(self.phase(victim) is Phase.STOPPING for victim in evict):
                continue
            del self._restore[model]
            if isinstance(verdict, StartNow) and not evict:
                self._start(model, verdict, None, now)

    def _arm_timer(self, deadline: float, now: float) -> None:
        if self._timer_at is None or deadline < self._timer_at:
            self._timer_at = deadline
            self._effects.append(SetQueueTimer(max(0.0, deadline - now)))

    def _backoff_error(self, model: str, now: float) -> KeepsFailing:
        failure = self.failures[model]
        return KeepsFailing(failure, max(1, ceil(failure.until - now)))
