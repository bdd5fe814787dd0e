"""The planner: what to do for a request, decided from the scheduler's state. Nothing here changes anything.

The numbers are those of the decision tree in `scheduler`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from math import inf

from attrs import evolve

from llamaswap.errors import ModelsKept, UnknownModel
from llamaswap.scheduling.effects import Ticket
from llamaswap.scheduling.host_planner import (
    TOO_SMALL,
    Fit,
    best_fits,
    fit_on,
    host_reason,
    if_elsewhere,
    without_host,
    without_room_on_any,
)
from llamaswap.scheduling.hosts import candidates
from llamaswap.scheduling.memory import BUSY
from llamaswap.scheduling.memory_planner import (
    hold_end,
    leaves_no_room,
    memory_reason,
    placement_by_memory,
    without_room,
)
from llamaswap.scheduling.state import ActiveSwap, Decision, ModelState, Phase, Reservation, SchedulerState

MAX_ALTERNATIVES = 3  # further hosts that are tried if a load on the cheapest one would have to wait


def decision_for(
    state: SchedulerState, model: str, reservations: Iterable[Reservation], now: float, starved: bool = False
) -> Decision:
    """Rules 5 to 10 for a request: what to do for one for `model` that has to respect `reservations`."""
    decision = placement_for(state, model, reservations, now, starved)
    if decision.action in ("serve", "join", "load") and state.is_full:
        models = state.models.values()
        busy = (one.model for one in models if one.unfinished > one.waiting or one.phase is Phase.LOADING)
        reason = f"maxConcurrent ({state.rules.fifo.max_concurrent}) is reached"
        return Decision(model, "queue", decision.evicts, tuple(sorted(busy)), reason=reason)
    return decision


def placement_for(
    state: SchedulerState, model: str, reservations: Iterable[Reservation], now: float, starved: bool = False
) -> Decision:
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
    if not state.rules.several_hosts:
        return load_on(state, model, fit_on(state, model, "", now), holders, others, now, starved)
    if (elsewhere := if_elsewhere(state, model, now)) is not None:
        return elsewhere
    rules = state.rules.models.get(model)
    hosts = candidates(state.hosts, model, rules.place) if rules is not None else []
    server = state.models.get(model)
    if server is not None and server.phase is not Phase.STOPPED:
        return _beside_own_process(state, server, hosts, holders, others, now, starved)
    if not hosts:
        return without_host(state, model, now)
    fits = best_fits(state, model, hosts, now)
    best = next(fits)
    if (
        best.cost >= TOO_SMALL
        and (refusal := without_room_on_any(state, model, [best, *islice(fits, MAX_ALTERNATIVES)], now)) is not None
    ):
        return refusal
    first = load_on(state, model, best, holders, others, now, starved)
    for fit in islice(fits, MAX_ALTERNATIVES):
        if first.action == "load" or fit.cost >= BUSY:
            break
        other = load_on(state, model, fit, holders, others, now, starved)
        if other.action == "load":
            return other
    return first


def _beside_own_process(
    state: SchedulerState,
    server: ModelState,
    hosts: Sequence[str],
    holders: tuple[str, ...],
    others: Sequence[Reservation],
    now: float,
    starved: bool,
) -> Decision:
    """What to do for a model that stops or is suspended on a host: it has one process, so it stays there or waits for
    the end of that."""
    model, host = server.model, server.host
    elsewhere = [name for name in hosts if name != host]
    decision = Decision(model, "queue", waits_for=(model,), host=host)
    if host in hosts:
        here = load_on(state, model, fit_on(state, model, host, now), holders, others, now, starved)
        if not elsewhere or (here.action == "load" and (server.phase is Phase.SUSPENDED or not here.evicts)):
            return here
        if server.phase is Phase.SUSPENDED and (
            here.error is None or next(best_fits(state, model, elsewhere, now)).cost == inf
        ):
            return here
    return evolve(decision, moves=server.phase is Phase.SUSPENDED)


def load_on(
    state: SchedulerState,
    model: str,
    fit: Fit,
    holders: tuple[str, ...],
    others: Sequence[Reservation],
    now: float,
    starved: bool,
) -> Decision:
    """Rules 8 to 10 on one host. `holders` are starved models to which this one is closed, `others` reserve models."""
    host, evicts, placement = fit.host, fit.evicts, fit.placement
    if fit.pinned:
        why = "is pinned" if len(fit.pinned) == 1 else "are pinned"
        error = ModelsKept(model, f"cannot load {model}", tuple(fit.pinned), why)
        return Decision(model, "refuse", reason=str(error), error=error, host=host)
    if placement.obstacle:
        return without_room(state, model, placement, host)
    if state.rules.several_hosts:
        others = [other for other in others if other.host == host]
    victims = frozenset(evicts)
    in_the_way = [*holders]
    in_the_way += [other.model for other in others if _violates_reservation(state, model, victims, fit.running, other)]
    in_the_way += [victim for victim in evicts if state.models[victim].serving]
    loads = _loads_in_the_way(state, model, victims)
    in_the_way += [swap.model for swap in loads if _is_wanted(state, swap)]
    if state.rules.by_memory and not in_the_way:
        short = (other.model for other in others if leaves_no_room(state, other, model, placement))
        in_the_way += islice(short, 1)  # one is enough, and each takes a while
    if in_the_way:
        return Decision(model, "queue", evicts, tuple(dict.fromkeys(in_the_way)), host=host)
    stays = {victim: state.models[victim].linger_end for victim in evicts}
    if placement.sizes is not None and not starved:
        stays |= {victim: max(stays[victim], hold_end(state, victim)) for victim in placement.evicts}
    lingering = {victim: end for victim, end in stays.items() if end > now}
    if lingering:
        return Decision(model, "queue", evicts, tuple(lingering), until=max(lingering.values()), host=host)
    abandon = tuple(swap.generation for swap in loads)
    return Decision(model, "load", evicts, abandon=abandon, memory=placement.sizes, gpus=placement.gpus, host=host)


def _loads_in_the_way(state: SchedulerState, model: str, victims: frozenset[str]) -> list[ActiveSwap]:
    """The running loads that touch the same models as a load of `model` that evicts `victims`."""
    return [
        swap
        for swap in state.loads.values()
        if swap.model in victims or model in swap.evict or not victims.isdisjoint(swap.evict)
    ]


def _is_wanted(state: SchedulerState, swap: ActiveSwap) -> bool:
    """Whether a load goes on although it is in the way of another."""
    return bool(swap.waiters) or swap.model in state.rules.pinned


def reason_for(state: SchedulerState, model: str, now: float, host: str = "") -> str:
    """Why the load of `model` on a host evicts what it evicts, in words for the log."""
    running = state.running(model, host)
    reason = state.rules.evict.explain(model, running)
    if state.rules.several_hosts:
        reason = f"{host_reason(state, model, host)}; {reason}"
    if not state.rules.by_memory:
        return reason
    placement = placement_by_memory(state, model, state.rules.evict(model, running), now, host)
    return f"{reason}; {memory_reason(state, model, placement, now, host)}"


def _violates_reservation(
    state: SchedulerState, model: str, evict: frozenset[str], running: Sequence[str], reservation: Reservation
) -> bool:
    """Whether loading `model` beside these would evict what a reservation needs, or add to what is in its way."""
    if reservation.model in evict or not evict.isdisjoint(reservation.evict):
        return True
    present = sorted({*running, model} - {reservation.model})
    return model in state.rules.evict(reservation.model, present)


def reservation_for(state: SchedulerState, decision: Decision, now: float) -> Reservation:
    """The reservation of a starved request that has to wait.

    It closes the models in the way to new requests, except those that are being loaded or are in their minimum stay.
    """
    evicts = frozenset(decision.evicts)
    closed = frozenset(name for name in evicts if state.models[name].stay_end <= now)
    return Reservation(decision.model, evicts, closed, decision.host)


def forecast(state: SchedulerState, model: str, now: float) -> Decision:
    """What a request for `model` would meet now."""
    if model not in state.rules.models:
        return Decision(model, "refuse", reason=str(UnknownModel(model)))
    decision = decision_for(state, model, state.reservations, now)
    return evolve(decision, reason=decision.reason or reason_for(state, model, now, decision.host))


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
