"""The planner: what to do for a request, decided from the scheduler's state. Nothing here changes anything.

The numbers are those of the decision tree in `scheduler`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attrs import frozen

from llamaswap.errors import LlamaswapError, NotReady, UnknownModel
from llamaswap.scheduling.effects import Ticket
from llamaswap.scheduling.state import Forecast, Phase, Reservation, SchedulerState


@frozen
class GrantNow:
    """The model is ready: grant."""


@frozen
class JoinSwap:
    """The model is being loaded: wait for that load."""

    generation: int


@frozen
class StartNow:
    """Load the model now; `abandon` are loads that no request waits for and that are in the way."""

    evict: tuple[str, ...]
    abandon: tuple[int, ...]


@frozen
class WaitFor:
    """Wait. `evict` would have to leave, `behind` are the models in the way, `until` is when to decide again if
    no event comes before (0.0: one will)."""

    evict: tuple[str, ...]
    behind: tuple[str, ...]
    until: float = 0.0


@frozen
class RefuseForever:
    """Refuse: waiting would not help."""

    error: LlamaswapError


Verdict = GrantNow | JoinSwap | StartNow | WaitFor | RefuseForever
GRANT_NOW = GrantNow()


def verdict_for(state: SchedulerState, model: str, reservations: Iterable[Reservation], now: float) -> Verdict:
    """Rules 5 to 10: what to do for a request for `model` that has to respect `reservations`."""
    phase = state.phase(model)
    others = [reservation for reservation in reservations if reservation.model != model]
    holders = tuple(reservation.model for reservation in others if model in reservation.closed)
    if phase is Phase.READY and state.models[model].stale:
        return WaitFor((), (model,))
    if phase in (Phase.READY, Phase.LOADING):
        if holders:
            return WaitFor((), holders)
        return GRANT_NOW if phase is Phase.READY else JoinSwap(state.models[model].generation)
    running = state.running(model)
    evict = state.rules.evict(model, running)
    pinned = [name for name in evict if name in state.rules.pinned and state.phase(name) is not Phase.STOPPING]
    if pinned:
        return RefuseForever(NotReady(model, f"cannot load {model}: {', '.join(pinned)} is pinned"))
    victims = frozenset(evict)
    behind = [*holders]
    behind += [other.model for other in others if _violates_reservation(state, model, victims, running, other)]
    behind += [victim for victim in evict if state.models[victim].serving]
    abandon = []
    for swap in state.loads.values():
        if swap.model in victims or model in swap.evict or not victims.isdisjoint(swap.evict):
            if swap.waiters or swap.model in state.rules.pinned:
                behind.append(swap.model)
            else:
                abandon.append(swap.generation)
    if behind:
        return WaitFor(evict, tuple(dict.fromkeys(behind)))
    lingering = {victim: end for victim in evict if (end := state.models[victim].linger_end) > now}
    if lingering:
        return WaitFor(evict, tuple(lingering), max(lingering.values()))
    return StartNow(evict, tuple(abandon))


def _violates_reservation(
    state: SchedulerState, model: str, evict: frozenset[str], running: Sequence[str], reservation: Reservation
) -> bool:
    """Whether loading `model` would evict what a reservation needs, or add to what is in its way."""
    if reservation.model in evict or not evict.isdisjoint(reservation.evict):
        return True
    present = sorted({*running, model} - {reservation.model})
    return model in state.rules.evict(reservation.model, present)


def reservation_for(state: SchedulerState, model: str, verdict: WaitFor, now: float) -> Reservation:
    """The reservation of a starved request that has to wait.

    It closes the models in the way to new requests, except those that are being loaded or are in their minimum stay.
    """
    evict = frozenset(verdict.evict)
    return Reservation(model, evict, frozenset(name for name in evict if state.models[name].stay_end <= now))


def forecast(state: SchedulerState, model: str, now: float) -> Forecast:
    """What a request for `model` would meet now."""
    if model not in state.rules.models:
        return Forecast(model, "refuse", reason=str(UnknownModel(model)))
    verdict = verdict_for(state, model, state.reservations, now)
    reason = state.rules.evict.explain(model, state.running(model))
    match verdict:
        case GrantNow():
            return Forecast(model, "serve", reason="ready")
        case JoinSwap():
            return Forecast(model, "join", reason="already being loaded")
        case StartNow(evict):
            return Forecast(model, "load", evicts=evict, reason=reason)
        case WaitFor(evict, behind):
            return Forecast(model, "queue", evict, behind, reason)
        case RefuseForever(error):
            return Forecast(model, "refuse", reason=str(error))


def stalled_deadlines(state: SchedulerState, queue: Iterable[Ticket], now: float) -> dict[int, tuple[float, str]]:
    """When the stalled responses that keep queued requests waiting are to be interrupted, and for which model.

    A response is due once its client has read nothing for `stalled_reader` seconds since a request began to wait.
    """
    oldest: dict[str, float] = {}
    for ticket in queue:
        oldest[ticket.model] = min(oldest.get(ticket.model, ticket.since), ticket.since)
    deadlines: dict[int, tuple[float, str]] = {}
    for waiting, since in oldest.items():
        verdict = verdict_for(state, waiting, (), now)
        for model in verdict.behind if isinstance(verdict, WaitFor) else ():
            for number in state.models[model].serving & state.stalled_readers.keys():
                due = max(state.stalled_readers[number], since) + state.rules.stalled_reader
                deadlines[number] = min(deadlines.get(number, (due, waiting)), (due, waiting))
    return deadlines
