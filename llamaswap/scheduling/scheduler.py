"""The scheduler: which request is granted, which waits, which model is loaded and which models are evicted for it.

Each input changes the state completely and then returns effects. The scheduler calls nothing and reads no clock (`now`
is seconds on any monotonic scale), and only inputs change its state.

The decision tree for a request, in order; the first rule that applies decides:

1. The model is ready, below its limit and not closed by a reservation, and fewer requests than `max_concurrent` are
   served or have a load running for them: grant at once. (`can_grant`)
2. The service is shut down, the model is unknown, or its explicit limit is reached: refuse. (`_refusal`)
3. The model is down and in backoff after repeated failures: refuse and say when the next attempt is allowed.
4. The service is draining, or too many requests wait for the model already: refuse.
5. The model is ready but outdated: wait until its present process has finished its requests.
6. A starved request has closed this model to new requests: wait for that request.
7. The model is being loaded: join that load. One model never has two processes.
8. Loading the model would evict a pinned model, or needs more memory than the machine has or than models that may
   not be evicted leave: refuse. If other programs use that memory: wait in the queue, for at most a minute.
9. As many requests as `max_concurrent` allows are served or have a load running for them, the load conflicts with a
   reservation, an eviction candidate still serves requests or has become unused only just now (with memory: within
   `hold`, unless the request is starved), or a running load that other requests wait for touches the same models: wait
   in the queue. Requests behind this one are not blocked by it.
10. Otherwise start the load. Evicted models that can suspend are suspended (with memory: if RAM has room for them), the
   others are stopped; loads that no request waits for are abandoned if they are in the way.

With several hosts, rules 8 to 10 are applied to each host that may run the model, and the host is chosen on which the
evictions cost least (`host_planner.best_fits`); if the request would have to wait there, the next ones are tried. A
model that stops or is suspended keeps its host. A request whose hosts are offline waits for at most a minute.

The eviction policy says what a load evicts. If memory decides, `memory.place` adds what has to leave so that the model
fits; a model of unknown need is loaded alone, and so is one whose last load ran out of memory, once for its requests. A
lease of memory is a model to these rules, whose one request is served for as long as its program runs.

Each event that may free a model runs the queue through rules 5 to 10 again (`_reschedule`), with four additions:

- A request that has waited longer than its fairness window (a priority shortens it) is starved. It moves to the front
  and reserves the models that it would evict: later requests cannot take their place, and the models are closed to new
  requests. Starved requests are served in the order in which their windows ended. A request that waits for memory of
  other programs, leases included, reserves nothing.
- A model is not closed while it is being loaded, nor during its minimum stay after that, which grows with its load
  time. So each load serves all requests that wait for it, and starved requests cannot make models replace one another
  all the time. One of n competing models waits for at most n loads and stays.
- A request that has waited for `max_wait` is refused with the names of the models that were in the way.
- A client that reads nothing of its response is interrupted after `stalled_reader` seconds if a request waits for its
  model to finish; if no request waits, it is never interrupted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from attrs import define, evolve, field

from llamaswap.errors import (
    FailureRecord,
    HostRefused,
    LlamaswapError,
    ModelUnloaded,
    OutOfMemory,
    QueueFull,
    ServerVanished,
    StartFailed,
    TooManyRequests,
    UnknownModel,
)
from llamaswap.scheduling.backoff import failed_again, has_worked
from llamaswap.scheduling.effects import CLEAN_UP, Admit, Effect, Refuse, Ticket
from llamaswap.scheduling.host_transitions import HostTransitions
from llamaswap.scheduling.hosts import HostFacts
from llamaswap.scheduling.memory_planner import given_in_words
from llamaswap.scheduling.planner import decision_for
from llamaswap.scheduling.state import Phase, RequestStage, Rules

LONG_QUEUE = 32  # requests; when one leaves a longer queue, the queue is reconsidered a little later, once for many
RECONSIDER_DELAY = 0.02  # seconds


@define(eq=False)
class Scheduler(HostTransitions):
    """Inputs are named after what has happened or is wanted; each returns the effects to perform."""

    _drain_error: LlamaswapError | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._know_this_host()

    def _know_this_host(self) -> None:
        if self.rules.several_hosts and not self.hosts:
            self.hosts = {"": HostFacts("", self.ledger)}

    # -- inputs: requests ----------------------------------------------------------------------------------

    def requested(self, ticket: Ticket, now: float, *, only_if_ready: bool = False) -> list[Effect]:
        """A request wants a model. If it can be granted at once, the grant is the last effect.

        With `only_if_ready` a request that cannot be granted at once is ignored, without any effect.
        """
        model = ticket.model
        if self.can_grant(model):
            server = self.models[model]
            self._grant(self._accept(ticket, RequestStage.SERVING, server), server)
            return self._take_effects()
        if only_if_ready:
            return []
        if (error := self._refusal(ticket, now)) is not None:
            return [Refuse(ticket, error)]
        decision = decision_for(self, model, self.reservations, now)
        if decision.action == "refuse" and decision.error is not None:
            return [Refuse(ticket, decision.error)]
        entry = self._accept(ticket, RequestStage.QUEUED, self.state_of(model))
        entry.deadline = ticket.since + self.rules.fairness_window_of(ticket)
        self._effects.append(Admit(ticket))
        if decision.action == "join":
            self._join(entry)
        elif decision.action == "load":
            self._start(decision, entry, now)
        else:
            self._enqueue(entry)
            if decision.moves:
                self._stop([self.models[model]], "host")
            if entry.deadline <= now or self.stalled_readers:
                self._reschedule(now)
            else:
                self._renumber()
                self._arm_timer(min(self._deadlines(entry, decision)), now)
        return self._take_effects()

    def cancelled(self, ticket: Ticket, now: float) -> list[Effect]:
        """A request was given up by its client, at any stage. Unknown tickets are ignored."""
        entry = self.requests.get(ticket.number)
        if entry is None:
            return []
        if entry.stage is RequestStage.SERVING:
            return self.served(ticket, now)
        self._forget(entry)
        if entry.stage is RequestStage.QUEUED:
            self.queue.remove(entry)
            if len(self.queue) > LONG_QUEUE:
                self._arm_timer(now + RECONSIDER_DELAY, now)
            elif entry.starved:
                self._reschedule(now)
            else:
                self._renumber()
        else:
            swap = self._load_of(ticket.model)
            del swap.waiters[ticket.number]
            if self.queue and (self.rules.fifo.max_concurrent or not swap.waiters):
                self._reschedule(now)
        return self._take_effects()

    def served(self, ticket: Ticket, now: float) -> list[Effect]:
        """A granted request has ended, whatever its outcome."""
        entry = self.requests.get(ticket.number)
        if entry is None or entry.stage is not RequestStage.SERVING:
            return []
        server = self.models[ticket.model]
        self._forget(entry)
        unused = server.serving == {ticket.number}
        if ticket.number in server.serving:
            server.serving.remove(ticket.number)
            if server.worked_at is None:
                server.worked_at = now
            if unused and server.stale:
                self._stop([server], "reload")
            elif unused:
                self._mark_idle(server, now)
        if self.queue and (unused or self.rules.fifo.max_concurrent):
            self._reschedule(now)
        return self._take_effects()

    def reader_stalled(self, ticket: Ticket, since: float, now: float) -> list[Effect]:
        """The client of a granted request has read nothing of its response since then."""
        entry = self.requests.get(ticket.number)
        if entry is not None and entry.stage is RequestStage.SERVING:
            self.stalled_readers[ticket.number] = since
            if self.queue:
                self._reschedule(now)
        return self._take_effects()

    def reader_moved(self, ticket: Ticket) -> None:
        """The client reads again."""
        self.stalled_readers.pop(ticket.number, None)

    # -- inputs: servers -----------------------------------------------------------------------------------

    def swap_finished(self, generation: int, error: LlamaswapError | None, now: float) -> list[Effect]:
        """The model of a load is ready, or its start failed. Results of abandoned loads are ignored."""
        swap = self.loads.pop(generation, None)
        if swap is None:
            return []
        server = self.models[swap.model]
        entries = list(swap.waiters.values())
        if isinstance(error, OutOfMemory):
            if self._load_alone_next(swap, now):
                return self._take_effects()
            error = evolve(error, given=given_in_words(self, server, now))
        earlier_victims = self.alone.pop(swap.model, ())
        if error is None:
            server.phase = Phase.READY
            self.rooms.pop(server.host, None)
            server.ready_at = now
            server.load_seconds = now - server.load_began
            server.worked_at = None
            for entry in entries:
                self._grant(entry, server)
            if not entries:
                self._mark_idle(server, now)
        elif isinstance(error, HostRefused):
            for entry in entries:
                entry.stage = RequestStage.QUEUED
                self._enqueue(entry)
            self._stop([server], "host")
            self._restore.update((victim, None) for victim in swap.restore if victim in self.rules.models)
        else:
            if isinstance(error, (StartFailed, ServerVanished)):
                cause = error.cause if isinstance(error, StartFailed) else str(error)
                earlier = self.failures.get(swap.model)
                self.failures[swap.model] = failed_again(self.rules.fifo, swap.model, earlier, cause, now)
            for entry in entries:
                self._refuse(entry, error)
            self._stop([server], "failed")
            victims = (*earlier_victims, *swap.restore)
            self._restore.update((victim, None) for victim in victims if victim in self.rules.models)
        self._reschedule(now)
        return self._take_effects()

    def exited(
        self, model: str, now: float, cause: str = "the server ended", out_of_memory: bool = False
    ) -> list[Effect]:
        """A server that was ready or suspended ended unexpectedly: its requests are lost, leftovers are stopped."""
        server = self.models.get(model)
        if server is None:
            return []
        if out_of_memory and server.phase is Phase.READY:
            self._enlarge(model)
        if server.phase is Phase.READY:
            earlier = None if has_worked(server.ready_at, server.worked_at, now) else self.failures.get(model)
            self._stop([server], "crash")
            self.failures[model] = failed_again(self.rules.fifo, model, earlier, cause, now)
        elif server.phase is Phase.SUSPENDED or server.suspending:
            self._stop([server], "crash")
        else:
            return []
        self._reschedule(now)
        return self._take_effects()

    def suspended(self, model: str, now: float) -> list[Effect]:
        """A model that was to be suspended is suspended."""
        server = self.models.get(model)
        if server is None or not server.suspending:
            return []  # its stop was requested meanwhile, and `stopped` will follow
        server.phase = Phase.SUSPENDED
        self.rooms.pop(server.host, None)
        server.suspending = False
        self._mark_idle(server, now)
        self._limit_suspended()
        self._reschedule(now)
        return self._take_effects()

    def stopped(self, model: str, now: float) -> list[Effect]:
        """A model that was stopping has no process left."""
        server = self.models.get(model)
        if server is None or server.phase is not Phase.STOPPING:
            return []
        server.phase = Phase.STOPPED
        self.occupied[server.host].pop(model, None)
        self.rooms.pop(server.host, None)
        server.stale = server.suspending = server.freed_memory = False
        self._discard_unused(server)
        self._reschedule(now)
        return self._take_effects()

    # -- inputs: time --------------------------------------------------------------------------------------

    def idle_expired(self, model: str, now: float) -> list[Effect]:
        """The idle timer of a model ran out."""
        server = self.models.get(model)
        if server is None or not server.idle_armed or server.idle_since is None:
            return []
        server.idle_armed = False
        self._suspend_or_stop(server, "idle")
        self._reschedule(now)
        return self._take_effects()

    def queue_timer_expired(self, now: float) -> list[Effect]:
        """A deadline in the queue has passed."""
        self._timer_at = None
        self._reschedule(now)
        return self._take_effects()

    # -- inputs: operators ---------------------------------------------------------------------------------

    def unload_requested(self, models: Iterable[str], now: float, clean: bool = False) -> list[Effect]:
        """Stop these at once, even if they serve requests; requests that wait for them are refused.

        With `clean` the stop commands of those that are not up run too; their memory is not free before that ends.
        """
        stopping, cleaning = [], []
        for model in dict.fromkeys(models):
            self.failures.pop(model, None)
            self._forget_eviction(model)
            self._refuse_queued(ModelUnloaded(model), model)
            server = self.models.get(model)
            if server is None or server.phase is Phase.STOPPED:
                rules = self.rules.models.get(model)
                if clean and rules is not None and rules.has_stop_command:
                    cleaning.append(self.state_of(model))
                continue
            if server.phase is Phase.LOADING:
                for entry in self._abandon(self._load_of(server.model)):
                    self._refuse(entry, ModelUnloaded(model))
            stopping.append(server)
        self._stop(stopping, "unload")
        self._stop(cleaning, CLEAN_UP)
        self._reschedule(now)
        return self._take_effects()

    def restore_failure(self, failure: FailureRecord) -> None:
        """A model failed before the scheduler was created."""
        if failure.model in self.rules.models and self.shutdown_error is None:
            self.failures[failure.model] = failure

    def clear_backoff(self, models: Iterable[str]) -> None:
        """An operator wants these started at once, however often they failed."""
        for model in models:
            self.failures.pop(model, None)
            self.lost.pop(model, None)

    def rules_changed(self, rules: Rules, stale: Collection[str], now: float) -> list[Effect]:
        """Other rules are in force. `stale` models must be restarted; those that are not in the rules must be stopped.

        Both finish their requests first; requests waiting for a stale model wait for its next process.
        """
        self.rules = rules
        self._know_this_host()
        self._displaced = {model: None for model in self._displaced if model in rules.returning}
        for model in [*stale, *(name for name in self.models if name not in rules.models)]:
            self.failures.pop(model, None)
            self.enlarged.pop(model, None)
            self.alone.pop(model, None)
            self.lost.pop(model, None)
            self._forget_eviction(model)
            if model not in rules.models:
                self._refuse_queued(UnknownModel(model), model)
            if model in self.models:
                self._replace_process(self.models[model])
        for server in list(self.models.values()):
            if server.host and not rules.several_hosts:
                self._replace_process(server)
            elif server.phase is Phase.SUSPENDED and not rules.models[server.model].can_suspend:
                self._stop([server], "reload")
            elif server.idle_since is not None:
                self._mark_idle(server, now, server.idle_since)
        self._limit_suspended()
        self._reschedule(now)
        return self._take_effects()

    def draining(self, error: LlamaswapError) -> list[Effect]:
        """Loads are abandoned and waiting requests refused with `error`, until `resumed`; ready models serve on."""
        self._drain_error = error
        self._restore.clear()
        self._displaced.clear()
        self._refuse_queued(error)
        for swap in list(self.loads.values()):
            for entry in self._abandon(swap):
                self._refuse(entry, error)
        self._reschedule(0.0)
        return self._take_effects()

    def resumed(self) -> None:
        """Requests are queued and models loaded again, after `draining`."""
        self._drain_error = None

    def shutdown(self, error: LlamaswapError) -> list[Effect]:
        """The service ends: waiting requests are refused, every server is stopped."""
        self.shutdown_error = error
        effects = self.draining(error)
        self._stop([server for server in self.models.values() if server.phase is not Phase.STOPPED], "shutdown")
        return effects + self._take_effects()

    # -- decisions -----------------------------------------------------------------------------------------

    def _refusal(self, ticket: Ticket, now: float) -> LlamaswapError | None:
        """Rules 2 to 4: why a request is refused whatever the other requests are."""
        model, server = ticket.model, self.models.get(ticket.model)
        rules = self.rules.models.get(model)
        if self.shutdown_error is not None:
            return self.shutdown_error
        if rules is None:
            return UnknownModel(model)
        if server is not None and rules.limit and server.unfinished >= rules.limit:
            return TooManyRequests(model, rules.limit)
        if self.phase(model) in (Phase.STOPPED, Phase.STOPPING) and self.in_backoff(model, now):
            return self._backoff_error(model, now)
        if self._drain_error is not None:
            return self._drain_error
        if server is not None and not rules.limit and server.waiting >= self.rules.fifo.max_queue:
            return QueueFull(model, self.rules.fifo.max_queue)
        return None
