"""The read-only half of the router: what runs, waits, fails and is being loaded. Nothing here changes anything."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from attrs import define, evolve, field
from twisted.internet.interfaces import IReactorTime

from llamaswap.config import Config
from llamaswap.errors import FailureRecord, UnknownModel
from llamaswap.routing.interfaces import HealthSnapshot, WaitingRequest, WaitStatus
from llamaswap.routing.managed_model import ManagedModel
from llamaswap.routing.swaps import Swaps
from llamaswap.scheduling.hosts import HostFacts, shown
from llamaswap.scheduling.planner import forecast
from llamaswap.scheduling.scheduler import Scheduler
from llamaswap.scheduling.state import Decision, Phase, WaitReason
from llamaswap.servers.server_snapshot import ServerSnapshot
from llamaswap.servers.supervisor_protocol import ServerStatus


@define(eq=False)
class ModelQueries:
    """Views of the models by their real ids. `config` is the present configuration, `swaps` performs the loads."""

    config: Config
    _clock: IReactorTime
    _scheduler: Scheduler = field(init=False)
    _models: dict[str, ManagedModel] = field(factory=dict, init=False)
    swaps: Swaps = field(init=False)
    _lease_count: int = field(default=0, init=False)
    _last_decision: float = field(default=0.0, init=False)

    def running(self) -> list[ServerStatus]:
        """The servers that are not stopped, by ascending model id."""
        return [managed.supervisor.status() for _, managed in sorted(self._models.items()) if not managed.stopped]

    def suspended(self) -> list[ServerStatus]:
        """The suspended servers, by ascending model id: they are shown as stopped, but have a process."""
        found = (managed.supervisor.status() for _, managed in sorted(self._models.items()))
        return [status for status in found if status.asleep_since is not None]

    def state(self, model: str) -> str:
        """The state of a model's server in the words of the API."""
        managed = self._models.get(model)
        return "stopped" if managed is None else managed.supervisor.state

    def status(self, model: str) -> ServerStatus:
        """Everything known about a model's server; raises UnknownModel."""
        managed = self._models.get(model)
        if managed is None:
            raise UnknownModel(model)
        return managed.supervisor.status()

    def has_process(self, model: str) -> bool:
        """Whether a model is loaded, is being loaded or stopped, or is suspended."""
        return self._scheduler.phase(model) is not Phase.STOPPED

    def log_tail(self, model: str) -> str:
        """The last lines of output of a model's server."""
        return self._models[model].log_tail if model in self._models else ""

    def host_of(self, model: str) -> str:
        """The host on which a model's process is; "" for this machine, and if it has none."""
        server = self._scheduler.models.get(model)
        return "" if server is None or server.phase is Phase.STOPPED else server.host

    def shown_host(self, model: str, expected: Decision | None = None) -> str | None:
        """The name of that host for display, or of that where the model is `expected` to be loaded; None if there is no
        such host, or only one host."""
        if self.hosts and self._scheduler.phase(model) is not Phase.STOPPED:
            return shown(self.host_of(model))
        return shown(expected.host) if self.hosts and expected is not None else None

    @property
    def hosts(self) -> Mapping[str, HostFacts]:
        """The hosts by name, this machine ("") first; empty unless the configuration has `hosts`."""
        return self._scheduler.hosts

    @property
    def missed_hosts(self) -> Collection[str]:
        """The hosts that vanished with so many others that what they ran is not loaded elsewhere."""
        return self._scheduler.missed

    def failure(self, model: str) -> str:
        """Why a stopped model failed when it was last started or used; empty if it did not fail."""
        managed = self._models.get(model)
        if managed is None or not managed.stopped or managed.suspended:
            return ""
        return managed.supervisor.status().last_error or ""

    def _ports_of_others(self, model: str) -> Collection[int]:
        """The ports that other models' servers use: an eviction may free the wanted one. While servers of an earlier
        program are being stopped, any port may become free."""
        if self.swaps.starts_are_delayed:
            return range(1 << 16)
        others = [managed for name, managed in self._models.items() if name != model and not managed.stopped]
        return {port for managed in others if (port := managed.supervisor.status().port) is not None}

    def forecast(self, model: str) -> Decision:
        """What a request for this model (id or alias) would cause now."""
        return forecast(self._scheduler, self.config.real(model) or model, self._clock.seconds())

    def wait_reason(self, model: str) -> WaitReason | None:
        """What requests for this model wait for now; None if they would be served, or if the model is unknown."""
        loading = self.swaps.wait_reason(model)
        if loading is not None:
            return loading
        expected = forecast(self._scheduler, model, self._clock.seconds())
        if expected.action != "queue":
            return None
        if not expected.waits_for:  # memory that other programs use
            return WaitReason(expected.reason)
        where = f" on {shown(expected.host)}" if self.hosts else ""
        return WaitReason(f"waiting for {', '.join(expected.waits_for)} to finish{where}", expected.waits_for)

    def wait_status(self, model: str) -> WaitStatus:
        """What a request that waits for this model can expect, from how long its last loads took."""
        now = self._clock.seconds()
        swaps = [swap for swap in self.swaps.in_progress.values() if not swap.abandoned]
        left: dict[str, float] = {}
        for swap in swaps:
            name = swap.effect.model
            left[name] = max(0.0, self._load_seconds(name) - (now - swap.began))
        needed = self._load_seconds(model)
        own = model in left
        eta = left[model] if own else needed + max(left.values(), default=0.0)
        return WaitStatus(tuple(left), own, eta if needed else None)

    def _load_seconds(self, model: str) -> float:
        """How long a load of this model usually takes; 0 if it was never loaded."""
        learned = self._scheduler.ledger.load_seconds.get(model)
        managed = self._models.get(model)
        if learned or managed is None:
            return learned or 0.0
        loads = managed.supervisor.status().load_seconds
        return loads[-1] if loads else 0.0

    def failing(self) -> list[tuple[FailureRecord, float]]:
        """The stopped models whose last attempts failed, by ascending id, each with the seconds until the next."""
        now = self._clock.seconds()
        return [
            (failure, max(0.0, failure.until - now))
            for failure in self.failures()
            if self._models[failure.model].stopped
        ]

    def failures(self) -> list[FailureRecord]:
        """The models that failed when they were last started, by ascending id."""
        return [
            evolve(failure, definition=self._models[model].definition, tail=self._models[model].log_tail)
            for model, failure in sorted(self._scheduler.failures.items())
            if model in self._models
        ]

    def snapshots(self) -> list[ServerSnapshot]:
        """The servers that are ready and unused, or suspended, for the next program of an upgrade in place."""
        found = []
        for model, managed in sorted(self._models.items()):
            snapshot, server = managed.supervisor.snapshot(), self._scheduler.state_of(model)
            if snapshot is not None and server.idle_since is not None:
                found.append(evolve(snapshot, idle_since=server.idle_since, ttl=server.ttl))
        return found

    def queue(self) -> list[WaitingRequest]:
        """The waiting requests: first those whose model is being loaded, then the queue in its order."""
        now = self._clock.seconds()
        joined = [(ticket, 0) for ticket in self._scheduler.joined()]
        queued = [(entry.ticket, entry.position) for entry in self._scheduler.queue]
        return [
            WaitingRequest(ticket.number, ticket.model, position, now - ticket.since, ticket.priority)
            for ticket, position in (*joined, *queued)
        ]

    def seconds_until_idle(self, model: str) -> float | None:
        """Seconds until an unused model is unloaded; None if it is in use or is never unloaded for idleness."""
        managed = self._models.get(model)
        deadline = None if managed is None else managed.idle_deadline
        return None if deadline is None else max(0.0, deadline - self._clock.seconds())

    def health(self) -> HealthSnapshot:
        """Whether requests are moving, for health checks."""
        now = self._clock.seconds()
        waiting = [*self._scheduler.joined(), *(entry.ticket for entry in self._scheduler.queue)]
        oldest = max((now - ticket.since for ticket in waiting), default=None)
        return HealthSnapshot(
            oldest, now - self._last_decision, len(waiting), self._lease_count, len(self._scheduler.loads)
        )

    @property
    def settled(self) -> bool:
        """Whether no request is served or waits, and every server is ready, suspended or stopped."""
        return self._scheduler.settled and not self.swaps.in_progress
