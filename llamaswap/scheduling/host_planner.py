"""Where a model would be loaded: what has to leave for it on a host, and on which host that costs least.

Nothing here changes anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from attrs import define

from llamaswap.errors import DoesNotFit, NoHost
from llamaswap.scheduling.hosts import MAX_NAMED, obstacles, shown
from llamaswap.scheduling.memory import RAM, Placement, need_in_words, room_in_words
from llamaswap.scheduling.memory_planner import eviction_cost, known_need, need_on, placement_by_memory
from llamaswap.scheduling.state import Decision, Phase, SchedulerState

NO_PLACEMENT = Placement()
UNMEASURED = 1e11  # the cost of a host whose memory is not known yet: any other one with room comes first
TOO_SMALL = 1e12  # the cost of one that is too small for an estimated need: the model would be loaded alone there


@define
class Fit:
    """A model on a host: `evicts` would leave, which costs `cost`, infinite if it cannot be loaded there.

    `running` are the models that use memory there, `pinned` those that the eviction policy would evict and must not.
    """

    host: str
    running: tuple[str, ...]
    evicts: tuple[str, ...]
    placement: Placement
    pinned: Sequence[str] = ()
    cost: float = 0.0


def fit_on(state: SchedulerState, model: str, host: str, now: float) -> Fit:
    """What has to leave this host for a model: by the eviction policy, and by memory."""
    running = state.running(model, host)
    evicts = state.rules.evict(model, running)
    pinned = [name for name in evicts if name in state.rules.pinned and state.phase(name) is not Phase.STOPPING]
    placement = NO_PLACEMENT
    if state.rules.by_memory and not pinned:
        placement = placement_by_memory(state, model, evicts, now, host)
        evicts = tuple(sorted({*evicts, *placement.evicts}))
    return Fit(host, running, evicts, placement, pinned)


def best_fits(state: SchedulerState, model: str, hosts: Sequence[str], now: float) -> list[Fit]:
    """The model on each of these hosts, which are in the order of preference: the cheapest one first.

    Of hosts that cost the same, one where less has to leave is preferred.
    """
    fits = [fit_on(state, model, host, now) for host in hosts]
    for fit in fits:
        need = need_on(state, model, fit.host) if state.rules.by_memory and fit.placement.sizes is None else None
        measured = RAM in state.ledger_on(fit.host).devices
        if need is not None and need.firm and measured and not fit.placement.obstacle and len(state.hosts) > 1:
            fit.placement = Placement(obstacle="never")  # it has too few GPUs
        if fit.pinned or fit.placement.obstacle:
            fit.cost = inf
            continue
        fit.cost = eviction_cost(state, model, fit.evicts, now)
        if need is not None:
            fit.cost += TOO_SMALL if measured else UNMEASURED
    return sorted(fits, key=_order)


def _order(fit: Fit) -> tuple[int, float, int]:
    """Hosts with room by what has to leave; then those that other programs or kept models fill, then those that are too
    small."""
    rank = 0
    if fit.cost >= TOO_SMALL:
        rank = 2 if fit.pinned else 1 + ("foreign", "kept", "", "never").index(fit.placement.obstacle)
    return rank, fit.cost, len(fit.evicts)


def without_host(state: SchedulerState, model: str) -> Decision:
    """What a request meets if none of the hosts may run its model now. It waits for a host that is only absent."""
    why, absent = obstacles(state.hosts, model, state.rules.models[model].place)
    error = NoHost(model, why or "there are no hosts")
    return Decision(model, "queue" if absent else "refuse", reason=str(error), error=error)


def without_room_on_any(state: SchedulerState, model: str, fits: Sequence[Fit]) -> Decision | None:
    """What a request meets if no host has room for its model now; None if it meets what it would on the first one."""
    why, absent = obstacles(state.hosts, model, state.rules.models[model].place)
    if absent:
        error = NoHost(model, f"there is no room for it on the others, and {why}")
        return Decision(model, "queue", reason=str(error), error=error)
    if len(fits) < 2 or fits[0].placement.obstacle != "never":
        return None
    need = known_need(state, model, fits[0].host)
    assert need is not None, "a model of unknown need fits everywhere, alone"
    rooms = [f"{shown(fit.host)}: {room_in_words(state.ledger_on(fit.host))}" for fit in fits[:MAX_NAMED]]
    too_large = DoesNotFit(model, need_in_words(need), " | ".join(rooms), "any of its hosts")
    return Decision(model, "refuse", reason=str(too_large), error=too_large)


def if_missed(state: SchedulerState, model: str) -> Decision | None:
    """What a request for a model meets whose host vanished together with most of the others."""
    host = state.lost.get(model)
    if host is None or host not in state.missed:
        return None
    error = NoHost(
        model,
        f"it was on {host}, which vanished together with more than half of the hosts; it is loaded elsewhere when most "
        "of them are back, or if an operator loads it",
    )
    return Decision(model, "queue", reason=str(error), error=error)


def host_reason(state: SchedulerState, model: str, host: str) -> str:
    """The choice of a host in words for the log."""
    facts = state.hosts.get(host)
    cached = facts is not None and model in facts.cached_models
    return f"on {shown(host)}" + (", which has its weights in its page cache" if cached else "")
