"""Servers that an upgrade in place hands to the next program, and those that this program takes over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from attrs import define, evolve
from twisted.logger import Logger

from llamaswap.errors import FailureRecord
from llamaswap.routing.leases import ProcessInstance
from llamaswap.routing.managed_model import ManagedModel
from llamaswap.scheduling.effects import Effect
from llamaswap.scheduling.scheduler import Scheduler
from llamaswap.servers.server_snapshot import ServerSnapshot

log = Logger("llamaswap.routing.router")


@define(eq=False)
class Handover:
    """Gives and takes servers that run on while the program is replaced. `now` reads the monotonic clock."""

    _models: Mapping[str, ManagedModel]
    _scheduler: Scheduler
    _perform: Callable[[Iterable[Effect]], None]
    _now: Callable[[], float]

    def snapshots(self) -> list[ServerSnapshot]:
        """The servers that are ready and unused, or suspended."""
        found = []
        for model, managed in sorted(self._models.items()):
            snapshot, since = managed.supervisor.snapshot(), self._scheduler.idle_since(model)
            if snapshot is not None and since is not None:
                found.append(evolve(snapshot, idle_since=since))
        return found

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
        now, left, outdated = self._now(), [], []
        for snapshot in snapshots:
            model, managed = snapshot.model, self._models.get(snapshot.model)
            if managed is None:
                left.append(snapshot)
                continue
            # The scheduler first: the supervisor may report during the adoption that the server has exited.
            effects = self._scheduler.adopted(
                model, snapshot.ready_at, snapshot.idle_since, now, suspended=snapshot.asleep
            )
            if snapshot.asleep:
                managed.suspended = True
            else:
                managed.process = ProcessInstance(snapshot.endpoint, self._scheduler.state_of(model).generation)
            try:
                if not managed.supervisor.adopt(snapshot):
                    outdated.append(model)
            except Exception as error:  # the fault of one server must not cost the others
                log.failure("taking over the server of {model} failed", model=model)
                left.append(snapshot)
                effects += self._scheduler.exited(model, now, str(error))
            self._perform(effects)
        if outdated:
            self._perform(self._scheduler.rules_changed(self._scheduler.rules, outdated, now))
        return left
