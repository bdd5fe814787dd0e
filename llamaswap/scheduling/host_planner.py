"""Where a model would be loaded: what has to leave for it on a host, and on which host that costs least.

Nothing here changes anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from math import ceil, inf
from operator import ge

from attrs import define, evolve

from llamaswap.errors import DoesNotFit, NoHost
from llamaswap.scheduling.hosts import MAX_NAMED, allowed_by, obstacle_on, obstacles, shown
from llamaswap.scheduling.memory import BUSY, RAM, MemoryNeed, Placement, need_in_words, room_in_words
from llamaswap.scheduling.memory_planner import (
    IDLE_OFFSET,
    eviction_cost,
    known_need,
    load_seconds,
    need_on,
    placement_by_memory,
    use_of,
)
from llamaswap.scheduling.state import Decision, HostRoom, Phase, SchedulerState

ROUNDING = 1 - 1e-9  # keeps a bound below what it bounds
Shapes = list[list[int]]
NO_PLACEMENT = Placement()
NO_ROOM = HostRoom(0, (), (), {}, known=True, servers=())
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


def best_fits(state: SchedulerState, model: str, hosts: Sequence[str], now: float) -> Iterator[Fit]:
    """The model on each of these hosts, which are in the order of preference: the cheapest one first.

    Of hosts that cost the same, one where less has to leave is preferred. A host is looked at closely only if the least
    it can cost does not exceed what the others cost.
    """
    found: list[tuple[int, float, int, int, Fit | None]] = []
    others: list[tuple[int, HostRoom, MemoryNeed | None, Shapes]] = []
    here = need_on(state, model) if state.rules.by_memory else None
    shapes = _shapes(here)
    for index, host in enumerate(hosts):
        room = (state.rooms.get(host) or _room_of(state, host)) if state.rules.by_memory else NO_ROOM
        need, wanted = here, shapes
        if host and model in room.needs:
            need = need_on(state, model, host)
            wanted = _shapes(need)
        if need is None or not room.known or not _holds(need.ram, wanted, room.ram, room.gpus):
            others.append((index, room, need, wanted))
            continue
        fit = priced(state, model, fit_on(state, model, host, now), now)
        if not fit.evicts and fit.cost == 0.0:  # no other host is better
            yield fit
        else:
            heappush(found, (*_order(fit), index, fit))
    possible: dict[tuple[int, ...], bool] = {}
    bounds: dict[int, tuple[HostRoom, Shapes]] = {}
    for index, room, need, wanted in others:
        least = _least_if_unfit(room, need, wanted, possible if need is here else {})
        if not least and need is not None and room.known:
            bounds[index] = room, wanted
        heappush(found, (_rank(least, ""), least or _least_cost(room, now), 0, index, None))
    while found:
        _, _, _, index, known = heappop(found)
        if known is not None:
            yield known
        elif (bound := bounds.pop(index, None)) is not None:  # a better bound, which takes longer
            least = _least_to_free(*bound, now)
            heappush(found, (_rank(least, ""), least, 0, index, None))
        else:
            fit = priced(state, model, fit_on(state, model, hosts[index], now), now)
            heappush(found, (*_order(fit), index, fit))


def _order(fit: Fit) -> tuple[int, float, int]:
    return _rank(fit.cost, "kept" if fit.pinned else fit.placement.obstacle), fit.cost, len(fit.evicts)


def priced(state: SchedulerState, model: str, fit: Fit, now: float) -> Fit:
    """The fit with its cost."""
    need = need_on(state, model, fit.host) if state.rules.by_memory and fit.placement.sizes is None else None
    measured = RAM in state.ledger_on(fit.host).devices
    if need is not None and need.firm and measured and not fit.placement.obstacle and len(state.hosts) > 1:
        fit.placement = Placement(obstacle="never")  # it has too few GPUs
    if fit.pinned or fit.placement.obstacle:
        fit.cost = inf
        return fit
    fit.cost = eviction_cost(state, model, fit.evicts, now)
    if need is not None:
        fit.cost += TOO_SMALL if measured else UNMEASURED
    return fit


def _rank(cost: float, obstacle: str) -> int:
    """Hosts with room come first; then those that other programs or kept models fill, then those that are too small."""
    return 0 if cost < TOO_SMALL else 1 + ("foreign", "kept", "", "never").index(obstacle)


def _shapes(need: MemoryNeed | None) -> Shapes:
    """The sizes of each option of a need, the largest first. Which GPUs it names does not count."""
    return [sorted((share.size for share in option), reverse=True) for option in need.options] if need else []


def _holds(ram: int, shapes: Shapes, free_ram: int, gpus: Sequence[int]) -> bool:
    """Whether a need may fit into these rooms, the largest GPU first."""
    if free_ram < ram:
        return False
    return any(len(sizes) <= len(gpus) and all(map(ge, gpus, sizes)) for sizes in shapes)


def _room_of(state: SchedulerState, host: str) -> HostRoom:
    """What is left of a host; it is kept until something there changes."""
    room = state.rooms.get(host)
    if room is None:
        ledger = state.ledger_on(host)
        left = {name: device.total - device.reserve - device.foreign for name, device in ledger.devices.items()}
        known, servers = True, []
        for server in state.servers_on(host).values():
            sizes = use_of(state, server) if server.uses_memory else ledger.used.get(server.model, {})
            known = known and sizes is not None
            for device, size in (sizes or {}).items():
                left[device] = left.get(device, 0) - size
            on_gpus = sum(size for device, size in (sizes or {}).items() if device != RAM)
            servers.append((load_seconds(state, server), server, on_gpus))
        most = {name: device.total - device.reserve for name, device in ledger.devices.items()}
        names = [name for name in ledger.devices if name != RAM]
        machine = (most[RAM], *(most[name] for name in names)) if RAM in most else ()
        gpus = sorted((left[name] for name in names), reverse=True)
        room = HostRoom(left.get(RAM, 0), gpus, machine, ledger.needs, known, servers)
        state.rooms[host] = room
    return room


def _least_if_unfit(
    room: HostRoom, need: MemoryNeed | None, wanted: Shapes, possible: dict[tuple[int, ...], bool]
) -> float:
    """What a host costs at least that is too small for a need, or not measured; 0 for others.

    `possible` says of what hosts have at most whether the need fits there.
    """
    if need is None:
        return 0.0
    if not room.machine:
        return UNMEASURED
    if room.machine not in possible:
        ram, *gpus = room.machine
        possible[room.machine] = _holds(need.ram, wanted, ram, sorted(gpus, reverse=True))
    return 0.0 if possible[room.machine] else inf if need.firm else TOO_SMALL


def _least_cost(room: HostRoom, now: float) -> float:
    """What the eviction of anything on a host costs at least."""
    least, until = inf, now + IDLE_OFFSET
    for seconds, server, _ in room.servers:
        since = server.idle_since
        if since is not None:
            cost = seconds / (until - since)
        elif server.phase is Phase.READY:
            cost = BUSY
        else:
            return 0.0
        if cost < least:
            least = cost
    return least if room.servers else 0.0


def _least_to_free(room: HostRoom, shapes: Shapes, now: float) -> float:
    """What it costs at least to free the GPU memory that a need lacks, as if parts of models could leave."""
    lacking = [
        sum(max(0, size - free) for size, free in zip(sizes, room.gpus, strict=False))
        for sizes in shapes
        if len(sizes) <= len(room.gpus)
    ]
    left, least, until = min(lacking, default=0), 0.0, now + IDLE_OFFSET
    prices = []
    for seconds, server, size in room.servers:
        since = server.idle_since
        busy = BUSY if server.phase is Phase.READY else 0.0
        if size:
            prices.append(((busy if since is None else seconds / (until - since)) / size, size))
    for price, size in sorted(prices):
        if left <= 0:
            break
        least += price * min(size, left)
        left -= size
    return least * ROUNDING


def without_host(state: SchedulerState, model: str, now: float) -> Decision:
    """What a request meets if none of the hosts may run its model now. It waits for a host that is only absent."""
    why, absent = obstacles(state.hosts, model, state.rules.models[model].place)
    return _no_host(state, model, why or "there are no hosts", absent, now)


def _no_host(state: SchedulerState, model: str, why: str, absent: bool, now: float) -> Decision:
    """The decision for this reason, which says when a host that could not start the model is tried again."""
    allowed = allowed_by(state.hosts, state.rules.models[model].place)
    failed = [state.hosts[name].failed[model].until for name in allowed if _failed_on(state, model, name)]
    error = NoHost(model, why)
    if failed and not absent:
        pause = max(1, ceil(min(failed) - now))
        error = NoHost(model, f"{why}; it is tried there again in {pause} s", pause)
    return Decision(model, "queue" if absent else "refuse", reason=str(error), error=error)


def _failed_on(state: SchedulerState, model: str, host: str) -> bool:
    return host in state.hosts and model in state.hosts[host].failed


def _held_back(state: SchedulerState, model: str, fits: Sequence[Fit], now: float) -> bool:
    """Whether a host would have room that must not be used now: it could not start the model a moment ago, is drained,
    or lacks a file. The last two only matter if the model fits no other host."""
    place = state.rules.models[model].place
    too_large = fits[0].placement.obstacle == "never"
    for name in allowed_by(state.hosts, place):
        if (too_large or _failed_on(state, model, name)) and name in state.hosts:
            facts = evolve(state.hosts[name], drained=False, missing={}, failed={})
            usable = obstacle_on(state.hosts[name], model, place) and not obstacle_on(facts, model, place)
            if usable and priced(state, model, fit_on(state, model, name, now), now).placement.obstacle != "never":
                return True
    return False


def without_room_on_any(state: SchedulerState, model: str, fits: Sequence[Fit], now: float) -> Decision | None:
    """What a request meets if no host has room for its model now; None if it meets what it would on the first one."""
    why, absent = obstacles(state.hosts, model, state.rules.models[model].place)
    if absent or _held_back(state, model, fits, now):
        return _no_host(state, model, f"it does not fit on the other hosts, and {why}", absent, now)
    if len(fits) < 2 or fits[0].placement.obstacle != "never":
        return None
    need = known_need(state, model, fits[0].host)
    assert need is not None, "a model of unknown need fits everywhere, alone"
    rooms = [f"{shown(fit.host)}: {room_in_words(state.ledger_on(fit.host))}" for fit in fits[:MAX_NAMED]]
    too_large = DoesNotFit(model, need_in_words(need), " | ".join(rooms), "any of its hosts")
    return Decision(model, "refuse", reason=str(too_large), error=too_large)


def if_elsewhere(state: SchedulerState, model: str, now: float) -> Decision | None:
    """What a request meets whose model perhaps runs on a host that does not answer now: a second process is not loaded.

    That host vanished together with most of the others, or was not asked yet.
    """
    host = state.lost.get(model)
    if state.awaited and (rules := state.rules.models.get(model)) is not None:
        asked = [name for name in allowed_by(state.hosts, rules.place) if name in state.awaited]
        if asked:
            error = NoHost(model, f"{', '.join(asked[:MAX_NAMED])} may still run it and has not answered yet")
            return Decision(model, "queue", reason=str(error), error=error)
    if host is None or host not in state.missed or now >= state.missed_until:
        return None
    error = NoHost(
        model,
        f"it was on {host}, which vanished together with more than half of the hosts; it is loaded elsewhere some "
        "seconds after most of them are back, or if an operator loads it",
    )
    return Decision(model, "queue", reason=str(error), error=error)


def host_reason(state: SchedulerState, model: str, host: str) -> str:
    """The choice of a host in words for the log."""
    facts = state.hosts.get(host)
    cached = facts is not None and model in facts.cached_models
    return f"on {shown(host)}" + (", which has its weights in its page cache" if cached else "")
