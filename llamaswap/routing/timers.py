"""The timers that the scheduler asks for: one per model for its idleness, one for the queue."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from attrs import define, field
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from llamaswap.routing.managed_model import ManagedModel
from llamaswap.scheduling.effects import Effect
from llamaswap.scheduling.scheduler import Scheduler


@define(eq=False)
class Timers:
    """Reports to the scheduler that a time is over, and passes its effects to `perform`."""

    _models: Mapping[str, ManagedModel]
    _clock: IReactorTime
    _scheduler: Scheduler
    _perform: Callable[[Iterable[Effect]], None]
    _queue_timer: IDelayedCall | None = field(default=None, init=False)

    def set_idle(self, model: str, seconds: float | None) -> None:
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

    def set_queue(self, seconds: float | None) -> None:
        """Report to the scheduler after `seconds` that a deadline in the queue has passed; None: do not."""
        if self._queue_timer is not None:
            self._queue_timer.cancel()
        self._queue_timer = None if seconds is None else self._clock.callLater(seconds, self._queue_due)

    def _queue_due(self) -> None:
        self._queue_timer = None
        self._perform(self._scheduler.queue_timer_expired(self._clock.seconds()))

    def cancel_all(self) -> None:
        """Cancel every timer."""
        self.set_queue(None)
        for managed in self._models.values():
            managed.cancel_idle_timer()
