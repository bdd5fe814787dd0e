"""Eviction by memory, decided from the scheduler's state: what leaves so that a model fits. Nothing here changes
anything."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from math import inf

from attrs import evolve

from llamaswap.errors import DoesNotFit, MemoryInUse, ModelsKept
from llamaswap.scheduling.memory import (
    BUSY,
    RAM,
    MemoryNeed,
    Occupant,
    Placement,
    Sizes,
    expected_use,
    in_words,
    need_in_words,
    on_gpus_in_use,
    place_need,
    room_in_words,
    sizes_in_words,
)
from llamaswap.scheduling.state import Decision, ModelState, Phase, Reservation, SchedulerState

HELD = 1e4  # the cost of a model within `hold` of its last response: dearer than any that is idle for longer
LEASED = 1e9  # the cost of a program that was given memory, which may run for hours: any other model leaves first
IDLE_OFFSET = 5.0  # seconds added to a model's idle time, so that the cost of one that just became idle is finite


def placement_by_memory(
    state: SchedulerState, model: str, evicted: Collection[str], now: float, host: str = ""
) -> Placement:
    """Where `model` fits on a host, and what has to leave for it besides the models that are `evicted` anyway.

    A model that is loaded alone does not wait for the end of programs that were given memory: what they use is known.
    """
    devices = state.ledger_on(host).devices
    found = place_need(devices, need_on(state, model, host), occupants(state, model, evicted, now, host))
    if found.sizes is None and not found.obstacle:
        return evolve(found, evicts=tuple(name for name in found.evicts if not state.is_lease(name)))
    return found


def need_on(state: SchedulerState, model: str, host: str = "") -> MemoryNeed | None:
    """What a load of `model` needs on a host now, None if that is unknown: what is known there, else here.

    After a load that ran out of memory it is loaded alone, so its need counts as unknown. If it ran out of memory later
    it needs more than was learned. A suspended model needs the GPUs on which its process already is.
    """
    need, server = known_need(state, model, host), state.models.get(model)
    if need is None or model in state.alone:
        return None
    if (factor := state.enlarged.get(model)) is not None:
        options = tuple(
            tuple(evolve(share, size=int(share.size * factor)) for share in option) for option in need.options
        )
        need = evolve(need, ram=int(need.ram * factor), options=options, firm=False)
    if server is not None and server.memory and (server.phase is Phase.SUSPENDED or server.suspending):
        options = tuple(
            placed for option in need.options if (placed := on_gpus_in_use(option, server.memory)) is not None
        )
        need = evolve(need, options=options or need.options)
    return need


def known_need(state: SchedulerState, model: str, host: str) -> MemoryNeed | None:
    """What a model is expected to use on a host: as it is known there, else here."""
    return (host and state.ledger_on(host).needs.get(model)) or state.ledger.needs.get(model)


def occupants(
    state: SchedulerState, model: str, evicted: Collection[str], now: float, host: str = ""
) -> list[Occupant]:
    """The models beside `model` that use memory of a host, without those that are `evicted` anyway."""
    found = []
    for name, server in state.servers_on(host).items():
        if name == model or name in evicted:
            continue
        if server.uses_memory:
            found.append(Occupant(name, use_of(state, server), cost_of(state, server, model, now)))
        elif used := state.ledger_on(host).used.get(name):  # it is suspended, or was until it began to stop
            found.append(Occupant(name, used, cost_of(state, server, model, now)))
    return found


def use_of(state: SchedulerState, server: ModelState) -> Sizes | None:
    """What a model that is up uses at most; None if it is unknown."""
    ledger = state.ledger_on(server.host)
    if server.phase is not Phase.LOADING:
        used = expected_use(ledger, server.model, server.memory)
        if not server.host or server.memory is None or used is None:
            return used
        # Ray has reserved what the load was decided with, and would refuse a load that counts on less.
        return {name: max(used.get(name, 0), server.memory.get(name, 0)) for name in {**used, **server.memory}}
    if server.memory is None:
        return None
    used = ledger.used.get(server.model, {})  # what it used while it was suspended
    return {name: max(used.get(name, 0), server.memory.get(name, 0)) for name in {**used, **server.memory}}


def suspendable(state: SchedulerState, decision: Decision, victims: Iterable[ModelState], now: float) -> frozenset[str]:
    """Those of the victims of a load that RAM has room for while they are suspended, the dearest to load first.

    A suspended server may keep its weights in RAM: all that it used counts, unless it was measured while suspended.
    """
    ram = state.ledger_on(decision.host).devices.get(RAM)
    if not state.rules.by_memory or ram is None:
        return frozenset(victim.model for victim in victims)
    if decision.memory is None:
        return frozenset()  # the model is loaded alone
    beside = occupants(state, decision.model, decision.evicts, now, decision.host)
    room = ram.total - ram.reserve - ram.foreign - decision.memory.get(RAM, 0)
    room -= sum((one.sizes or {}).get(RAM, 0) for one in beside)
    found = set()
    for victim in sorted(victims, key=lambda one: -load_seconds(state, one)):
        use = use_of(state, victim)
        size = victim.suspended_size
        if size is None and use is not None:
            size = sum(use.values())
        if size is not None and size <= room:
            found.add(victim.model)
            room -= size
    return frozenset(found)


def eviction_cost(state: SchedulerState, model: str, evicts: Iterable[str], now: float) -> float:
    """What the eviction of these models for another one costs."""
    return sum(cost_of(state, state.models[name], model, now) for name in evicts)


def cost_of(state: SchedulerState, server: ModelState, target: str, now: float) -> float:
    """What the eviction of a model costs: seconds to load it again, less the longer it has been unused. A model that
    leaves anyway, or is loaded for no request, costs nothing."""
    name = server.model
    if server.phase is Phase.STOPPING:
        return 0.0
    if name in state.rules.pinned or state.rules.evict.protects(name, target):
        return inf
    if server.phase is Phase.LOADING:
        return BUSY if state.loads[server.generation].waiters else 0.0
    if server.idle_since is None:
        return LEASED if state.is_lease(name) else BUSY
    cost = load_seconds(state, server) / (max(0.0, now - server.idle_since) + IDLE_OFFSET)
    return cost + HELD if hold_end(state, name) > now else cost


def load_seconds(state: SchedulerState, server: ModelState) -> float:
    """How long a load of the model takes: usually, else at its last load; a second if it is unknown."""
    return state.ledger_on(server.host).load_seconds.get(server.model) or server.load_seconds or 1.0


def hold_end(state: SchedulerState, model: str) -> float:
    """Until when a ready model that is unused is kept, because an agent's next request may follow its last one."""
    server = state.models[model]
    if server.phase is not Phase.READY or server.idle_since is None:
        return 0.0
    return server.idle_since + state.ledger.hold


def leaves_no_room(state: SchedulerState, reservation: Reservation, model: str, placement: Placement) -> bool:
    """Whether a model that is placed so on the host of a reservation would take the memory that this waits for."""
    host = reservation.host
    need = need_on(state, reservation.model, host)
    if placement.sizes is None or need is None:
        return True
    others = occupants(state, reservation.model, {*reservation.evict, *placement.evicts, model}, 0.0, host)
    staying = [Occupant(one.model, one.sizes, inf) for one in others]
    beside = [*staying, Occupant(model, placement.sizes, inf)]
    return bool(place_need(state.ledger_on(host).devices, need, beside).obstacle)


def without_room(state: SchedulerState, model: str, placement: Placement, host: str = "") -> Decision:
    """What a request meets if its model does not fit on a host, whatever is evicted."""
    ledger, needed = state.ledger_on(host), known_need(state, model, host)
    assert needed is not None, "a model of unknown need is loaded alone"
    need = need_in_words(needed)
    if placement.obstacle == "never":
        too_large = DoesNotFit(model, need, room_in_words(ledger), host or "this machine")
        return Decision(model, "refuse", reason=str(too_large), error=too_large, host=host)
    if placement.obstacle == "kept":
        kept = tuple(one.model for one in occupants(state, model, (), 0.0, host) if one.cost == inf)
        error = ModelsKept(model, f"cannot load {model}, which needs {need}", kept)
        return Decision(model, "refuse", reason=str(error), error=error, host=host)
    used = " and ".join(
        sizes_in_words({name: device.foreign}) + (f" ({device.foreign_by})" if device.foreign_by else "")
        for name, device in sorted(ledger.devices.items())
        if device.foreign and (needed.ram if name == RAM else any(needed.options))
    )
    in_use = MemoryInUse(model, need, used)
    return Decision(model, "queue", reason=str(in_use), error=in_use, host=host)


def given_in_words(state: SchedulerState, server: ModelState, now: float) -> str:
    """The memory that the load of a model was decided with; if it was loaded alone, what the others had left."""
    if server.memory:
        return sizes_in_words(server.memory)
    devices = state.ledger_on(server.host).devices
    left = {name: device.total - device.reserve - device.foreign for name, device in devices.items()}
    for one in occupants(state, server.model, (), now, server.host):
        for name, size in (one.sizes or {}).items():
            left[name] = left.get(name, 0) - size
    return f"up to {sizes_in_words({name: max(0, size) for name, size in left.items()})}" if left else ""


def memory_reason(state: SchedulerState, model: str, placement: Placement, now: float, host: str = "") -> str:
    """A placement on a host in words for the log: what the model needs, and what each evicted model costs."""
    need = known_need(state, model, host)
    if model in state.alone:
        return "memory: it ran out of memory, so it is loaded alone"
    if need is None:
        return "memory: its need is unknown, so it is loaded alone"
    if placement.sizes is None:
        return f"memory: it needs {need_in_words(need)}, more than there is, so it is loaded alone"
    reason = f"memory: it needs {sizes_in_words(placement.sizes)} ({need.source})"
    costs = []
    for name in placement.evicts:
        server = state.models[name]
        if server.phase is Phase.STOPPING:
            continue
        sizes = use_of(state, server)
        size = "unknown use" if sizes is None else in_words(sum(sizes.values()))
        idle = "" if server.idle_since is None else f", idle for {max(0.0, now - server.idle_since):.0f} s"
        costs.append(f"{name} ({size}{idle}, loads in {load_seconds(state, server):.1f} s)")
    return f"{reason}; it replaces {', '.join(costs)}" if costs else reason
