"""The scheduler: which request is granted, which waits, which model is loaded and which models are evicted for it.

Each input changes the state completely and then returns effects. The scheduler calls nothing and reads no clock (`now`
is seconds on any monotonic scale), and only inputs change its state.

The decision tree for a request, in order; the first rule that applies decides:

1. The model is ready, below its limit and not reserved for another request: grant at once. (`can_grant`)
2. The service is closed, the model is unknown, or its explicit limit is reached: refuse. (`_refusal`)
3. The model is down and in backoff after repeated failures: refuse and say when the next attempt is allowed.
4. The service is draining, or too many requests wait for the model already: refuse.
5. The model is ready but outdated: wait until its present process has finished its requests.
6. A starved request holds a reservation that includes this model: wait for that request.
7. The model is being loaded: join that load. One model never has two processes.
8. Loading the model would evict a pinned model: refuse.
9. The load conflicts with a reservation, an eviction candidate still serves requests, or a running swap that other
   requests wait for touches the same models: wait in the queue. Requests behind this one are not blocked by it.
10. Otherwise start the swap. Evicted models that can suspend are suspended, the others are stopped; swaps that no
    request waits for are abandoned if they are in the way.

Each event that may free a model runs the queue through rules 5 to 10 again (`_reschedule`), with three additions:

- A request that has waited longer than its fairness window (a priority shortens it) is starved. It moves to the front
  and reserves the models that it would evict: they get no new requests, and later requests cannot take their place.
  Starved requests are served in the order in which their windows ended.
- A request that has waited for `max_wait` is refused with the names of the models that were in the way.
- A client that reads nothing of its response is interrupted after `stalled_reader` seconds if a request waits for its
  model to finish; if no request waits, it is never interrupted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from math import ceil

from attrs import define, field

from llamaswap.errors import (
    FailureRecord,
    KeepsFailing,
    LlamaswapError,
    ModelUnloaded,
    NotReady,
    QueueFull,
    ServerVanished,
    StartFailed,
    TooManyRequests,
    UnknownModel,
    WaitedTooLong,
)
from llamaswap.scheduling.backoff import proved
from llamaswap.scheduling.effects import (
    CLEAN_UP,
    AbandonSwap,
    Admit,
    ArmIdle,
    ArmQueueTimer,
    DisarmIdle,
    DisarmQueueTimer,
    Effect,
    Grant,
    Interrupt,
    Reconsider,
    Refuse,
    StartSwap,
    Stop,
    Suspend,
    Ticket,
)
from llamaswap.scheduling.state import (
    GRANT_NOW,
    ActiveSwap,
    Forecast,
    GrantNow,
    JoinSwap,
    ModelState,
    Phase,
    QueuedRequest,
    RefuseForever,
    RequestStage,
    Reservation,
    Rules,
    StartNow,
    Verdict,
    WaitFor,
)
from llamaswap.scheduling.wait_queue import WaitQueue

MANY_WAITERS = 32  # who wait; with more of them it is not looked at all of them for each one that goes
MANY_WAITERS_PAUSE = 0.02  # seconds until then: a proxy in front of us that ends takes thousands with it


@define(eq=False)
class Scheduler:
    """See the module. Inputs are named after what has happened or is wished; each returns the effects to perform."""

    rules: Rules
    _servers: dict[str, ModelState] = field(factory=dict, init=False)
    _swaps: dict[int, ActiveSwap] = field(factory=dict, init=False)
    _tickets: dict[int, QueuedRequest] = field(factory=dict, init=False)
    _held: dict[str, int] = field(factory=dict, init=False)
    _waiting: dict[str, int] = field(factory=dict, init=False)
    _queue: WaitQueue = field(factory=WaitQueue, init=False)
    _reservations: list[Reservation] = field(factory=list, init=False)
    _reserved: frozenset[str] = field(default=frozenset(), init=False)
    _timer_at: float | None = field(default=None, init=False)
    _failures: dict[str, FailureRecord] = field(factory=dict, init=False)
    _reconsidering: bool = field(default=False, init=False)
    _restore: dict[str, None] = field(factory=dict, init=False)
    _stalled: dict[int, float] = field(factory=dict, init=False)
    _generation: int = field(default=0, init=False)
    _draining: LlamaswapError | None = field(default=None, init=False)
    _closed: LlamaswapError | None = field(default=None, init=False)
    _effects: list[Effect] = field(factory=list, init=False)

    # -- inputs: requests ----------------------------------------------------------------------------------

    def requested(self, ticket: Ticket, now: float, *, only_if_ready: bool = False) -> list[Effect]:
        """A request wants a model. If it can be granted at once, the grant is the last effect.

        With `only_if_ready` a request that cannot be granted at once is ignored, without any effect.
        """
        if self.can_grant(ticket.model):
            entry = self._tickets[ticket.number] = QueuedRequest(ticket, RequestStage.SERVING)
            self._held[ticket.model] = self._held.get(ticket.model, 0) + 1
            self._grant(entry, self._servers[ticket.model])
            return self._answer()
        if only_if_ready:
            return []
        if (error := self._refusal(ticket, now)) is not None:
            return [Refuse(ticket, error)]
        if self._draining is not None:
            return [Refuse(ticket, self._draining)]
        waiting = self._waiting.get(ticket.model, 0)
        if not self.rules.models[ticket.model].limit and waiting >= self.rules.max_queue:
            return [Refuse(ticket, QueueFull(ticket.model, self.rules.max_queue))]
        verdict = self._verdict(ticket.model, self._reservations)
        if isinstance(verdict, RefuseForever):
            return [Refuse(ticket, verdict.error)]
        entry = self._tickets[ticket.number] = QueuedRequest(ticket, RequestStage.QUEUED)
        entry.deadline = ticket.since + self.rules.fairness_window_of(ticket)
        self._held[ticket.model] = self._held.get(ticket.model, 0) + 1
        self._waiting[ticket.model] = waiting + 1
        self._effects.append(Admit(ticket))
        if isinstance(verdict, WaitFor):
            self._queue.add(entry)
            if entry.deadline <= now or self._stalled:
                self._reschedule(now)
            else:
                self._effects += self._queue.renumber()
            self._arm_timer(self._next_deadline(entry), now)
        elif isinstance(verdict, JoinSwap):
            self._join(entry, self._swaps[verdict.generation])
        elif isinstance(verdict, StartNow):
            self._start(ticket.model, verdict, [entry], now)
        return self._answer()

    def cancelled(self, ticket: Ticket, now: float) -> list[Effect]:
        """A request is no longer interested, wherever it stands. Unknown tickets are none of our business."""
        entry = self._tickets.get(ticket.number)
        if entry is None:
            return []
        if entry.where is RequestStage.SERVING:
            return self.served(ticket, now)
        self._forget(entry)
        if entry.where is RequestStage.QUEUED:
            self._queue.remove(entry)
            if len(self._queue) > MANY_WAITERS:
                if not self._reconsidering:
                    self._reconsidering = True
                    self._effects.append(Reconsider(MANY_WAITERS_PAUSE))
            elif entry.starved:
                self._reschedule(now)
            else:
                self._effects += self._queue.renumber()
        else:
            swap = self._swaps[entry.swap]
            del swap.waiters[ticket.number]
            if not swap.waiters and self._queue:
                self._reschedule(now)
        return self._answer()

    def served(self, ticket: Ticket, now: float) -> list[Effect]:
        """A granted request has ended, one way or another."""
        entry = self._tickets.get(ticket.number)
        if entry is None or entry.where is not RequestStage.SERVING:
            return []
        self._forget(entry)
        server = self._servers.get(ticket.model)
        if server is not None and ticket.number in server.serving:
            server.serving.remove(ticket.number)
            if server.worked_at is None:
                server.worked_at = now
            if not server.serving:
                if server.stale:
                    self._stop([server], "reload")
                else:
                    self._mark_idle(server, now)
                if self._queue:
                    self._reschedule(now)
        return self._answer()

    def reader_stalled(self, ticket: Ticket, since: float, now: float) -> list[Effect]:
        """The client of a granted request has read nothing of its response since then."""
        entry = self._tickets.get(ticket.number)
        if entry is not None and entry.where is RequestStage.SERVING:
            self._stalled[ticket.number] = since
            if self._queue:
                self._reschedule(now)
        return self._answer()

    def reader_moved(self, ticket: Ticket) -> None:
        """That client reads again."""
        self._stalled.pop(ticket.number, None)

    # -- inputs: servers -----------------------------------------------------------------------------------

    def swap_finished(self, generation: int, error: LlamaswapError | None, now: float) -> list[Effect]:
        """The swap's model is ready, or will not be. Results of swaps we gave up are dropped."""
        swap = self._swaps.pop(generation, None)
        if swap is None:
            return []
        server = self._servers[swap.model]
        entries = list(swap.waiters.values())
        if error is None:
            server.phase = Phase.READY
            server.ready_at = now
            server.worked_at = None
            for entry in entries:
                self._waiting[swap.model] -= 1
                self._grant(entry, server)
            if not entries:
                self._mark_idle(server, now)
        else:
            if isinstance(error, (StartFailed, ServerVanished)):
                cause = error.cause if isinstance(error, StartFailed) else str(error)
                self._failures[swap.model] = self.rules.backoff.failed_again(
                    swap.model, self._failures.get(swap.model), cause, now
                )
            for entry in entries:
                self._refuse(entry, error)
            self._stop([server], "failed")
            self._restore.update(dict.fromkeys(swap.restore))
        self._reschedule(now)
        return self._answer()

    def exited(self, model: str, now: float, cause: str = "the server ended") -> list[Effect]:
        """A server that was ready ended without being asked; what it was serving is lost, leftovers are cleared up."""
        server = self._servers.get(model)
        if server is not None and (server.phase is Phase.ASLEEP or server.suspending):
            self._stop([server], "crash")
            self._reschedule(now)
            return self._answer()
        if server is None or server.phase is not Phase.READY:
            return []
        earlier = None if proved(server.ready_at, server.worked_at, now) else self._failures.get(model)
        self._stop([server], "crash")
        self._failures[model] = self.rules.backoff.failed_again(model, earlier, cause, now)
        self._reschedule(now)
        return self._answer()

    def adopted(self, model: str, ready_at: float, idle_since: float, now: float, asleep: bool = False) -> list[Effect]:
        """A server that was up, or asleep, before everything began, and unused since `idle_since`."""
        server = self._server(model)
        if model not in self.rules.models or server.phase is not Phase.STOPPED or self._closed is not None:
            return []
        self._generation += 1
        server.phase = Phase.ASLEEP if asleep else Phase.READY
        server.generation = self._generation
        server.ready_at = ready_at
        server.worked_at = idle_since
        self._mark_idle(server, now, idle_since)
        if asleep:
            self._limit_sleepers()
        return self._answer()

    def suspended(self, model: str, now: float) -> list[Effect]:
        """A model that was to be put to sleep sleeps."""
        server = self._servers.get(model)
        if server is None or not server.suspending:
            return []  # its stop was asked for meanwhile, and its end will be told
        server.phase = Phase.ASLEEP
        server.suspending = False
        self._mark_idle(server, now)
        self._limit_sleepers()
        self._reschedule(now)
        return self._answer()

    def stopped(self, model: str, now: float) -> list[Effect]:
        """No process of a model that was stopping is left."""
        server = self._servers.get(model)
        if server is None or server.phase is not Phase.STOPPING:
            return []
        server.phase = Phase.STOPPED
        server.stale = server.suspending = server.freed_memory = False
        if model not in self.rules.models:
            del self._servers[model]
        self._reschedule(now)
        return self._answer()

    # -- inputs: time --------------------------------------------------------------------------------------

    def idle_expired(self, model: str, now: float) -> list[Effect]:
        """The model's idle timer went off."""
        server = self._servers.get(model)
        if server is None or not server.armed or server.idle_since is None:
            return []
        server.armed = False
        self._suspend_or_stop(server, "idle")
        self._reschedule(now)
        return self._answer()

    def queue_timer_expired(self, now: float) -> list[Effect]:
        """Somebody in the queue has waited long enough."""
        self._timer_at = None
        self._reschedule(now)
        return self._answer()

    def reconsidered(self, now: float) -> list[Effect]:
        """Some of many have gone from the queue."""
        self._reconsidering = False
        self._reschedule(now)
        return self._answer()

    # -- inputs: operators ---------------------------------------------------------------------------------

    def unload_requested(self, models: Iterable[str], now: float, clean: bool = False) -> list[Effect]:
        """Stop these at once, in-flight requests or not; who waits for them is refused.

        With `clean` the stop commands of those that are not up run too, and their room is not free before that ended.
        """
        stopping, cleaning = [], []
        for model in dict.fromkeys(models):
            self._failures.pop(model, None)
            self._restore.pop(model, None)
            self._refuse_queued(model, ModelUnloaded(model))
            server = self._servers.get(model)
            if server is None or server.phase is Phase.STOPPED:
                rules = self.rules.models.get(model)
                if clean and rules is not None and rules.cleans:
                    cleaning.append(self._server(model))
                continue
            if server.phase is Phase.LOADING:
                for entry in self._abandon(self._swaps[server.generation]):
                    self._refuse(entry, ModelUnloaded(model))
            stopping.append(server)
        self._stop(stopping, "unload")
        self._stop(cleaning, CLEAN_UP)
        self._reschedule(now)
        return self._answer()

    def restore_failure(self, failure: FailureRecord) -> None:
        """A model failed before the scheduler was created."""
        if failure.model in self.rules.models and self._closed is None:
            self._failures[failure.model] = failure

    def clear_backoff(self, models: Iterable[str]) -> None:
        """An operator wants these tried at once, however often they failed."""
        for model in models:
            self._failures.pop(model, None)

    def rules_changed(self, rules: Rules, stale: Collection[str], now: float) -> list[Effect]:
        """Other rules are in force. `stale` models must be started anew; those not in the rules any more must go.

        Both finish what they serve first; requests waiting for a stale one wait for its next process.
        """
        self.rules = rules
        for model in [*stale, *(name for name in self._servers if name not in rules.models)]:
            self._failures.pop(model, None)
            self._restore.pop(model, None)
            if model not in rules.models:
                self._refuse_queued(model, UnknownModel(model))
            server = self._servers.get(model)
            if server is not None:
                self._outdate(server)
        for server in list(self._servers.values()):
            if server.phase is Phase.ASLEEP and not rules.models[server.model].sleeps:
                self._stop([server], "reload")
            elif server.phase in (Phase.READY, Phase.ASLEEP) and server.idle_since is not None:
                self._mark_idle(server, now, server.idle_since)
        self._limit_sleepers()
        self._reschedule(now)
        return self._answer()

    def draining(self, error: LlamaswapError) -> list[Effect]:
        """The end begins: loads are given up and waiting requests refused with `error`; ready models serve on."""
        self._draining = error
        self._refuse_waiting(error)
        self._reschedule(0.0)
        return self._answer()

    def _refuse_waiting(self, error: LlamaswapError) -> None:
        self._restore.clear()
        for entry in [*self._queue]:
            self._queue.remove(entry)
            self._refuse(entry, error)
        for swap in list(self._swaps.values()):
            for entry in self._abandon(swap):
                self._refuse(entry, error)

    def shutdown(self, error: LlamaswapError) -> list[Effect]:
        """The end: waiting requests are refused with `error`, everything that is up is stopped."""
        self._closed = error
        self._refuse_waiting(error)
        self._stop([server for server in self._servers.values() if server.phase is not Phase.STOPPED], "shutdown")
        self._reschedule(0.0)
        return self._answer()

    # -- reads ---------------------------------------------------------------------------------------------

    def can_grant(self, model: str) -> bool:
        """Whether a request for `model` would be granted at once: branch 1 of the decision tree."""
        server = self._servers.get(model)
        if server is None or server.phase is not Phase.READY or server.stale or model in self._reserved:
            return False
        rules = self.rules.models.get(model)
        if rules is None or self._closed is not None:
            return False
        return not rules.limit or self._held.get(model, 0) < rules.limit

    def failures(self) -> Mapping[str, FailureRecord]:
        """The models that failed last time they were tried, by name, and how often in a row."""
        return self._failures

    def in_backoff(self, model: str, now: float) -> bool:
        """Whether no request may start this model yet, because it failed repeatedly."""
        failure = self._failures.get(model)
        return failure is not None and now < failure.until

    def forecast(self, model: str) -> Forecast:
        """What a request for `model` would meet now."""
        if model not in self.rules.models:
            return Forecast(model, "refuse", reason=str(UnknownModel(model)))
        verdict = self._verdict(model, self._reservations)
        reason = self.rules.evict.explain(model, self._running(model))
        if isinstance(verdict, GrantNow):
            return Forecast(model, "serve", reason="ready")
        if isinstance(verdict, JoinSwap):
            return Forecast(model, "join", reason="already being loaded")
        if isinstance(verdict, StartNow):
            return Forecast(model, "load", evicts=verdict.evict, reason=reason)
        if isinstance(verdict, WaitFor):
            return Forecast(model, "queue", verdict.evict, verdict.behind, reason)
        return Forecast(model, "refuse", reason=str(verdict.error))

    def queued(self) -> list[Ticket]:
        """Who stands in the queue, in the order of positions."""
        return [entry.ticket for entry in self._queue]

    def joined(self) -> list[Ticket]:
        """Who waits for a load that is under way."""
        return [entry.ticket for swap in self._swaps.values() for entry in swap.waiters.values()]

    def phase(self, model: str) -> Phase:
        """How the scheduler sees this model."""
        server = self._servers.get(model)
        return Phase.STOPPED if server is None else server.phase

    def held(self, model: str) -> int:
        """How many requests exist for this model: waiting, in flight, or losing their server just now."""
        return self._held.get(model, 0)

    def serving(self, model: str) -> int:
        """How many requests are in flight on the model's present process."""
        server = self._servers.get(model)
        return 0 if server is None else len(server.serving)

    def generation(self, model: str) -> int:
        """Which load the model's present process came from."""
        server = self._servers.get(model)
        return 0 if server is None else server.generation

    def idle_since(self, model: str) -> float | None:
        """Since when nobody uses a ready model, or since when it sleeps; None while somebody does, or otherwise."""
        server = self._servers.get(model)
        return server.idle_since if server is not None and server.phase in (Phase.READY, Phase.ASLEEP) else None

    @property
    def settled(self) -> bool:
        """Whether nobody is served or waits, and every server is ready, asleep or down."""
        quiet = (Phase.STOPPED, Phase.READY, Phase.ASLEEP)
        return not self._tickets and all(server.phase in quiet for server in self._servers.values())

    @property
    def swaps(self) -> int:
        """How many loads are under way."""
        return len(self._swaps)

    # -- deciding ------------------------------------------------------------------------------------------

    def _refusal(self, ticket: Ticket, now: float) -> LlamaswapError | None:
        """What can be said without looking at the queue."""
        if self._closed is not None:
            return self._closed
        rules = self.rules.models.get(ticket.model)
        if rules is None:
            return UnknownModel(ticket.model)
        if rules.limit and self._held.get(ticket.model, 0) >= rules.limit:
            return TooManyRequests(ticket.model, rules.limit)
        if self._server(ticket.model).phase in (Phase.STOPPED, Phase.STOPPING):
            return self._backoff_error(ticket.model, now)
        return None

    def _verdict(self, model: str, reservations: list[Reservation]) -> Verdict:
        """What is to be done for a request for `model` that has to respect `reservations`."""
        server = self._server(model)
        others = [reservation for reservation in reservations if reservation.model != model]
        holders = tuple(reservation.model for reservation in others if model in reservation.evict)
        if server.phase is Phase.READY:
            if server.stale:
                return WaitFor((), (model,))
            return WaitFor((), holders) if holders else GRANT_NOW
        if server.phase is Phase.LOADING:
            return WaitFor((), holders) if holders else JoinSwap(server.generation)
        running = self._running(model)
        evict = self.rules.evict(model, running)
        kept = [victim for victim in evict if victim in self.rules.pinned and not self._leaving(victim)]
        if kept:
            return RefuseForever(NotReady(model, f"cannot load {model}: {', '.join(kept)} is pinned"))
        gone = frozenset(evict)
        behind = [*holders]
        behind += [
            reservation.model for reservation in others if self._violates_reservation(model, gone, running, reservation)
        ]
        behind += [victim for victim in evict if self._servers[victim].serving]
        abandon = []
        for swap in self._swaps.values():
            if swap.model in gone or model in swap.evict or not gone.isdisjoint(swap.evict):
                if swap.waiters or swap.model in self.rules.pinned:
                    behind.append(swap.model)
                else:
                    abandon.append(swap.generation)
        if behind:
            return WaitFor(evict, tuple(dict.fromkeys(behind)))
        return StartNow(evict, tuple(abandon))

    def _violates_reservation(
        self, model: str, evict: frozenset[str], running: tuple[str, ...], reservation: Reservation
    ) -> bool:
        """Whether loading `model` would take away what a reservation needs, or put one more in its way."""
        if reservation.model in evict or not evict.isdisjoint(reservation.evict):
            return True
        present = sorted({*running, model} - {reservation.model})
        return model in self.rules.evict(reservation.model, present)

    def _reschedule(self, now: float) -> None:
        """Decide once for each queued request in order; starved requests that still wait make reservations."""
        due: list[float] = []
        if self._queue:
            self._expire(now)
            self._queue.promote_starved(now)
            self._reservations = []
            verdicts: dict[str, Verdict] = {}
            for entry in [*self._queue]:
                if entry.where is not RequestStage.QUEUED or entry.ticket.number not in self._tickets:
                    continue
                model = entry.ticket.model
                verdict = verdicts.get(model)
                if verdict is None:
                    verdict = verdicts[model] = self._verdict(model, self._reservations)
                if isinstance(verdict, WaitFor):
                    if entry.starved and all(reservation.model != model for reservation in self._reservations):
                        self._reservations.append(Reservation(model, frozenset(verdict.evict)))
                        verdicts.clear()
                    continue
                self._queue.remove(entry)
                left_alone = self._backoff_error(model, now) if isinstance(verdict, StartNow) else None
                if left_alone is not None:
                    self._refuse(entry, left_alone)
                elif isinstance(verdict, GrantNow):
                    self._waiting[model] -= 1
                    self._grant(entry, self._servers[model])
                elif isinstance(verdict, JoinSwap):
                    self._join(entry, self._swaps[verdict.generation])
                elif isinstance(verdict, StartNow):
                    self._start(model, verdict, [entry], now)
                    verdicts.clear()
                else:
                    self._refuse(entry, verdict.error)
            self._effects += self._queue.renumber()
            if self._stalled and self.rules.stalled_reader:
                due = self._interrupt(now)
        elif self._reservations:
            self._reservations = []
        self._reserved = frozenset().union(*(reservation.evict for reservation in self._reservations))
        moments = [*due, *self._queue.fairness_deadlines()]
        if self.rules.max_wait:
            moments += [entry.ticket.since + self.rules.max_wait for entry in self._queue]
        if not moments:
            if self._timer_at is not None:
                self._timer_at = None
                self._effects.append(DisarmQueueTimer())
        else:
            self._arm_timer(min(moments), now)
        if self._restore and not self._queue and not self._swaps:
            self._restore_evicted(now)

    def _expire(self, now: float) -> None:
        """Nobody stands in the queue for ever: who cannot be served in time is told what stood in the way."""
        if not self.rules.max_wait:
            return
        for entry in [*self._queue]:
            if entry.ticket.since + self.rules.max_wait <= now:
                verdict = self._verdict(entry.ticket.model, [])
                if isinstance(verdict, WaitFor):
                    self._queue.remove(entry)
                    self._refuse(entry, WaitedTooLong(entry.ticket.model, self.rules.max_wait, verdict.behind))

    def _interrupt(self, now: float) -> list[float]:
        """Cut responses whose clients have stood still for the whole time that a request has waited for their room;
        returns when the others are due."""
        oldest: dict[str, float] = {}
        for entry in self._queue:
            model, since = entry.ticket.model, entry.ticket.since
            oldest[model] = min(oldest.get(model, since), since)
        moments: dict[int, float] = {}
        for waiting, since in oldest.items():
            verdict = self._verdict(waiting, [])
            for model in verdict.behind if isinstance(verdict, WaitFor) else ():
                for number in self._server(model).serving & self._stalled.keys():
                    due = max(self._stalled[number], since) + self.rules.stalled_reader
                    moments[number] = min(moments.get(number, due), due)
                    if due <= now:
                        stood = now - self._stalled.pop(number)
                        del moments[number]
                        self._effects.append(Interrupt(self._tickets[number].ticket, stood, waiting))
        return list(moments.values())

    def _restore_evicted(self, now: float) -> None:
        """Load again what was evicted for a model that then failed to start: nobody waits, so it yields to anybody."""
        for model in list(self._restore):
            verdict = self._verdict(model, [])
            if isinstance(verdict, StartNow) and not verdict.evict:
                del self._restore[model]
                self._start(model, verdict, [], now)
            elif not isinstance(verdict, StartNow) or not all(map(self._leaving, verdict.evict)):
                del self._restore[model]

    # -- acting on the picture -----------------------------------------------------------------------------

    def _start(self, model: str, verdict: StartNow, entries: list[QueuedRequest], now: float) -> None:
        for generation in verdict.abandon:
            self._abandon(self._swaps[generation], may_sleep=True)
        restore = tuple(victim for victim in verdict.evict if self._servers[victim].phase is Phase.READY)
        sleep = frozenset(victim for victim in verdict.evict if self._may_sleep(self._servers[victim]))
        reason = self.rules.evict.explain(model, self._running(model)) if entries else "back after a failed start"
        for victim in verdict.evict:
            self._leave(self._servers[victim])
            self._servers[victim].suspending = victim in sleep
        self._generation += 1
        server = self._server(model)
        if server.armed:
            server.armed = False
            self._effects.append(DisarmIdle(model))
        server.phase = Phase.LOADING
        server.generation = self._generation
        server.idle_since = None
        server.stale = server.suspending = server.freed_memory = False
        self._restore.pop(model, None)
        swap = self._swaps[self._generation] = ActiveSwap(
            self._generation, model, frozenset(verdict.evict), {}, restore
        )
        waited = max((now - entry.ticket.since for entry in entries), default=0.0)
        origin = entries[0].ticket.origin if entries else "restored"
        self._effects.append(StartSwap(self._generation, model, verdict.evict, reason, waited, sleep, origin))
        for entry in entries:
            self._join(entry, swap)

    def _join(self, entry: QueuedRequest, swap: ActiveSwap) -> None:
        entry.where = RequestStage.JOINED
        entry.swap = swap.generation
        entry.starved = False
        swap.waiters[entry.ticket.number] = entry

    def _abandon(self, swap: ActiveSwap, may_sleep: bool = False) -> list[QueuedRequest]:
        """Give a swap up; returns those who waited for it. Its victims go on going."""
        del self._swaps[swap.generation]
        self._effects.append(AbandonSwap(swap.generation, swap.model))
        server = self._servers[swap.model]
        if may_sleep:
            self._suspend_or_stop(server, "abandoned")
        else:
            self._stop([server], "abandoned")
        return list(swap.waiters.values())

    def _outdate(self, server: ModelState) -> None:
        if server.phase is Phase.LOADING:
            entries = self._abandon(self._swaps[server.generation])
            for entry in entries:
                if server.model in self.rules.models:
                    entry.where = RequestStage.QUEUED
                    self._queue.add(entry)
                else:
                    self._refuse(entry, UnknownModel(server.model))
        elif server.phase is Phase.READY and server.serving:
            server.stale = True
        elif server.phase in (Phase.READY, Phase.ASLEEP) or server.suspending:
            self._stop([server], "reload")
        elif server.phase is Phase.STOPPED and server.model not in self.rules.models:
            del self._servers[server.model]

    def _may_sleep(self, server: ModelState) -> bool:
        """Whether this server, which has to leave, is put to sleep. One that starts can be, if it was only woken."""
        rules = self.rules.models.get(server.model)
        up = server.phase in (Phase.READY, Phase.LOADING) and not server.stale
        return server.suspending or (up and rules is not None and rules.sleeps)

    def _suspend_or_stop(self, server: ModelState, why: str) -> None:
        """Have one server leave, asleep where it can."""
        if not self._may_sleep(server):
            self._stop([server], why)
            return
        self._leave(server)
        server.suspending = True
        self._effects.append(Suspend((server.model,), why))

    def _limit_sleepers(self) -> None:
        """Who sleeps longest is stopped where too many do."""
        if not self.rules.max_asleep:
            return
        asleep = [server for server in self._servers.values() if server.phase is Phase.ASLEEP]
        surplus = len(asleep) - self.rules.max_asleep
        leavable = [server for server in asleep if server.model not in self.rules.pinned]
        if surplus > 0:
            leavable.sort(key=lambda server: server.idle_since or 0.0)
            self._stop(leavable[:surplus], "asleep")

    def _stop(self, servers: list[ModelState], why: str) -> None:
        for server in servers:
            self._leave(server)
        if servers:
            self._effects.append(Stop(tuple(server.model for server in servers), why))

    def _leave(self, server: ModelState) -> None:
        """From now on this server is not given anything; what it still serves no longer keeps it."""
        if server.armed:
            server.armed = False
            self._effects.append(DisarmIdle(server.model))
        if server.phase is Phase.READY:
            self._failures.pop(server.model, None)
        server.freed_memory = server.phase is Phase.ASLEEP or server.freed_memory
        server.suspending = False
        server.phase = Phase.STOPPING
        server.idle_since = None
        server.stale = False
        server.serving.clear()

    def _mark_idle(self, server: ModelState, now: float, since: float | None = None) -> None:
        """Nobody uses a ready server, or it sleeps: its time runs."""
        server.idle_since = now if since is None else since
        rules = self.rules.models.get(server.model)
        ttl = 0.0 if rules is None else rules.sleep_ttl if server.phase is Phase.ASLEEP else rules.ttl
        if ttl > 0 and server.model not in self.rules.pinned:
            server.armed = True
            self._effects.append(ArmIdle(server.model, max(0.0, server.idle_since + ttl - now)))
        elif server.armed:
            server.armed = False
            self._effects.append(DisarmIdle(server.model))

    def _grant(self, entry: QueuedRequest, server: ModelState) -> None:
        entry.where = RequestStage.SERVING
        server.serving.add(entry.ticket.number)
        server.idle_since = None
        if server.armed:
            server.armed = False
            self._effects.append(DisarmIdle(server.model))
        self._effects.append(Grant(entry.ticket))

    def _refuse(self, entry: QueuedRequest, error: LlamaswapError) -> None:
        self._forget(entry)
        self._effects.append(Refuse(entry.ticket, error))

    def _refuse_queued(self, model: str, error: LlamaswapError) -> None:
        for entry in [*self._queue]:
            if entry.ticket.model == model:
                self._queue.remove(entry)
                self._refuse(entry, error)

    def _backoff_error(self, model: str, now: float) -> KeepsFailing | None:
        """What is told to who wants a model that failed again and again, as long as it is not to be tried."""
        if not self.in_backoff(model, now):
            return None
        failure = self._failures[model]
        return KeepsFailing(failure, max(1, ceil(failure.until - now)))

    # -- books ---------------------------------------------------------------------------------------------

    def _server(self, model: str) -> ModelState:
        server = self._servers.get(model)
        if server is None:
            server = self._servers[model] = ModelState(model)
        return server

    def _running(self, target: str) -> tuple[str, ...]:
        """All that takes up room besides the target: up, on its way up, or on its way down."""
        return tuple(sorted(model for model, server in self._servers.items() if server.takes_room and model != target))

    def _leaving(self, model: str) -> bool:
        return self._servers[model].phase is Phase.STOPPING

    def _forget(self, entry: QueuedRequest) -> None:
        model = entry.ticket.model
        self._stalled.pop(entry.ticket.number, None)
        del self._tickets[entry.ticket.number]
        if entry.where is not RequestStage.SERVING:
            self._waiting[model] -= 1
        self._held[model] -= 1
        if not self._held[model]:
            del self._held[model]
            self._waiting.pop(model, None)

    def _next_deadline(self, entry: QueuedRequest) -> float:
        """When something is due for a queued entry: its fairness window ends, or its wait."""
        return min(entry.deadline, entry.ticket.since + self.rules.max_wait) if self.rules.max_wait else entry.deadline

    def _arm_timer(self, deadline: float, now: float) -> None:
        if self._timer_at is None or deadline < self._timer_at:
            self._timer_at = deadline
            self._effects.append(ArmQueueTimer(max(0.0, deadline - now)))

    def _answer(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects
