"""The planner: what to do for a request, decided from the scheduler's state. Nothing here changes anything.

The numbers are those of the decision tree in `scheduler`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attrs import evolve

from llamaswap.errors import NotReady, UnknownModel
from llamaswap.scheduling.effects import Ticket
from llamaswap.scheduling.state import Decision, Phase, Reservation, SchedulerState


def decision_for(state: SchedulerState, model: str, reservations: Iterable[Reservation], now: float) -> Decision:
    """Rules 5 to 10 for a request: what to do for one for `model` that has to respect `reservations`."""
    decision = placement_for(state, model, reservations, now)
    if decision.action in ("serve", "join", "load") and state.is_full:
        models = state.models.values()
        busy = (one.model for one in models if one.unfinished > one.waiting or one.phase is Phase.LOADING)
        reason = f"maxConcurrent ({state.rules.fifo.max_concurrent}) is reached"
        return Decision(model, "queue", decision.evicts, tuple(sorted(busy)), reason=reason)
    return decision


def placement_for(state: SchedulerState, model: str, reservations: Iterable[Reservation], now: float) -> Decision:
    """What to do for `model` whatever the number of requests that are served."""
    phase = state.phase(model)
    others = [reservation for reservation in reservations if reservation.model != model]
    holders = tuple(reservation.model for reservation in others if model in reservation.closed)
    if phase is Phase.READY and state.models[model].stale:
        return Decision(model, "queue", waits_for=(model,))
    if phase in (Phase.READY, Phase.LOADING):
        if holders:
            return Decision(model, "queue", waits_for=holders)
        action, reason = ("serve", "ready") if phase is Phase.READY else ("join", "already being loaded")
        return Decision(model, action, reason=reason)
    running = state.running(model)
    evicts = state.rules.evict(model, running)
    pinned = [name for name in evicts if name in state.rules.pinned and state.phase(name) is not Phase.STOPPING]
    if pinned:
        error = NotReady(model, f"cannot load {model}: {', '.join(pinned)} is pinned")
        return Decision(model, "refuse", reason=str(error), error=error)
    victims = frozenset(evicts)
    in_the_way = [*holders]
    in_the_way += [other.model for other in others if _violates_reservation(state, model, victims, running, other)]
    in_the_way += [victim for victim in evicts if state.models[victim].serving]
    abandon = []
    for swap in state.loads.values():
        if swap.model in victims or model in swap.evict or not victims.isdisjoint(swap.evict):
            if swap.waiters or swap.model in state.rules.pinned:
                in_the_way.append(swap.model)
            else:
                abandon.append(swap.generation)
    if in_the_way:
        return Decision(model, "queue", evicts, tuple(dict.fromkeys(in_the_way)))
    lingering = {victim: end for victim in evicts if (end := state.models[victim].linger_end) > now}
    if lingering:
        return Decision(model, "queue", evicts, tuple(lingering), until=max(lingering.values()))
    return Decision(model, "load", evicts, abandon=tuple(abandon))


def _violates_reservation(
    state: SchedulerState, model: str, evict: frozenset[str], running: Sequence[str], reservation: Reservation
) -> bool:
    """Whether loading `model` would evict what a reservation needs, or add to what is in its way."""
    if reservation.model in evict or not evict.isdisjoint(reservation.evict):
        return True
    present = sorted({*running, model} - {reservation.model})
    return model in state.rules.evict(reservation.model, present)


def reservation_for(state: SchedulerState, decision: Decision, now: float) -> Reservation:
    """The reservation of a starved request that has to wait.

    It closes the models in the way to new requests, except those that are being loaded or are in their minimum stay.
    """
    evicts = frozenset(decision.evicts)
    return Reservation(decision.model, evicts, frozenset(name for name in evicts if state.models[name].stay_end <= now))


def forecast(state: SchedulerState, model: str, now: float) -> Decision:
    """What a request for `model` would meet now."""
    if model not in state.rules.models:
        return Decision(model, "refuse", reason=str(UnknownModel(model)))
    decision = decision_for(state, model, state.reservations, now)
    return evolve(decision, reason=decision.reason or state.rules.evict.explain(model, state.running(model)))


def stalled_deadlines(state: SchedulerState, queue: Iterable[Ticket], now: float) -> dict[int, tuple[float, str]]:
    """When the stalled responses that keep queued requests waiting are to be interrupted, and for which model.

    A response is due once its client has read nothing for `stalled_reader` seconds since a request began to wait.
    """
    oldest: dict[str, float] = {}
    for ticket in queue:
        oldest[ticket.model] = min(oldest.get(ticket.model, ticket.since), ticket.since)
    deadlines: dict[int, tuple[float, str]] = {}
    for waiting, since in oldest.items():
        decision = decision_for(state, waiting, (), now)
        for model in decision.waits_for:
            for number in state.models[model].serving & state.stalled_readers.keys():
                due = max(state.stalled_readers[number], since) + state.rules.fifo.stalled_reader
                deadlines[number] = min(deadlines.get(number, (due, waiting)), (due, waiting))
    return deadlines
