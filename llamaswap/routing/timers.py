"""The timers that the scheduler asks for: one per model for idleness, one for the queue, one to reconsider it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from attrs import define, field
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from llamaswap.routing.managed_model import ManagedModel
from llamaswap.scheduling.effects import Effect
from llamaswap.scheduling.scheduler import Scheduler


@define(eq=False)
class Timers:
    """Tells the scheduler when a time is over, and hands its decisions to `perform`."""

    _models: Mapping[str, ManagedModel]
    _clock: IReactorTime
    _scheduler: Scheduler
    _perform: Callable[[Iterable[Effect]], None]
    _queue_timer: IDelayedCall | None = field(default=None, init=False)
    _reconsider_timer: IDelayedCall | None = field(default=None, init=False)

    def arm_idle(self, model: str, seconds: float) -> None:
        """Report the model as idle after `seconds`.

        A pending call is kept if the new deadline is later: it compares the time when it runs. A model with many short
        requests so needs no new call for each of them.
        """
        managed = self._models[model]
        deadline = managed.idle_deadline = self._clock.seconds() + seconds
        if managed.idle_timer is not None and managed.idle_timer.getTime() > deadline:
            managed.idle_timer.cancel()
            managed.idle_timer = None
        if managed.idle_timer is None:
            managed.idle_timer = self._clock.callLater(seconds, self._idle_due, managed)

    def disarm_idle(self, model: str) -> None:
        """Do not report the model as idle."""
        self._models[model].idle_deadline = None

    def _idle_due(self, managed: ManagedModel) -> None:
        managed.idle_timer = None
        deadline, now = managed.idle_deadline, self._clock.seconds()
        if deadline is None:
            return
        if deadline > now:
            managed.idle_timer = self._clock.callLater(deadline - now, self._idle_due, managed)
            return
        managed.idle_deadline = None
        self._perform(self._scheduler.idle_expired(managed.config.id, now))

    def arm_queue(self, seconds: float) -> None:
        """Tell the scheduler after `seconds` that a deadline in the queue is over; replaces the earlier timer."""
        self.disarm_queue()
        self._queue_timer = self._clock.callLater(seconds, self._queue_due)

    def disarm_queue(self) -> None:
        """The queue has no deadline."""
        if self._queue_timer is not None:
            self._queue_timer.cancel()
            self._queue_timer = None

    def _queue_due(self) -> None:
        self._queue_timer = None
        self._perform(self._scheduler.queue_timer_expired(self._clock.seconds()))

    def arm_reconsider(self, seconds: float) -> None:
        """Have the queue reconsidered after `seconds`."""
        self._reconsider_timer = self._clock.callLater(seconds, self._reconsider_due)

    def _reconsider_due(self) -> None:
        self._reconsider_timer = None
        self._perform(self._scheduler.reconsidered(self._clock.seconds()))

    def cancel_all(self) -> None:
        """Cancel every timer."""
        self.disarm_queue()
        if self._reconsider_timer is not None:
            self._reconsider_timer.cancel()
            self._reconsider_timer = None
        for managed in self._models.values():
            managed.idle_deadline = None
            if managed.idle_timer is not None:
                managed.idle_timer.cancel()
                managed.idle_timer = None
