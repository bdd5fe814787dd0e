"""What the scheduler knows: the rules of the configuration, and its view of models, loads and requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from math import inf

from attrs import Factory, define, field, frozen

from llamaswap.config.policies.eviction import Eviction
from llamaswap.config.schema.hosts import Place
from llamaswap.config.schema.routing import FifoSettings
from llamaswap.errors import FailureRecord, LlamaswapError
from llamaswap.scheduling.effects import Effect, Ticket
from llamaswap.scheduling.hosts import HostFacts
from llamaswap.scheduling.memory import Ledger, MemoryNeed, Sizes

PRIORITY_SCALE = 10.0
"""A priority of this much halves the fairness window: 10 s become 5 at 10, 1.7 at 50, 0.9 at 100."""

MINIMUM_STAY_LOADS = 5.0
"""How many times its own load time a model may be used by new requests before starved requests make it drain.

A model that is drained after k load times spends 1 / (k + 1) of the time on loads: a sixth.
"""

IDLE_LINGER_LOADS = 0.05
"""How many times its own load time an unused model is kept during its minimum stay, if another model is requested.

Clients that send their next request after each response find the model so, for a twentieth of what a load costs.
"""

FOREIGN_MEMORY_WAIT = 60.0
"""How many seconds a request waits for memory that other programs use."""

NO_LEDGER = Ledger({})
ANYWHERE = Place()

# -- rules -------------------------------------------------------------------------------------------------


@frozen
class ModelRules:
    """One model: `limit` is the explicit bound on its requests (0: none), `ttl` its idle seconds (0: unlimited).

    `can_suspend`: it is suspended instead of being stopped, and stopped after `suspended_ttl` seconds (0: never).
    `has_stop_command`: a command may stop what is left of it when it is not up. `is_lease`: it stands for a program
    that was given memory; while it is served, that program runs. `place` says on which hosts it may run.
    """

    limit: int = 0
    ttl: float = 0.0
    can_suspend: bool = False
    suspended_ttl: float = 0.0
    has_stop_command: bool = False
    is_lease: bool = False
    place: Place = ANYWHERE


@frozen
class Rules:
    """Everything configured that a decision depends on; `pinned` are the models that only an operator unloads.

    `by_memory`: besides what `evict` says, models are evicted if the memory is too small for them and the target.
    `returning` are the models that are loaded again after an eviction, when nothing is in their way.
    `several_hosts`: models may run on other hosts; `evict` is then asked about the models of each host.
    """

    models: Mapping[str, ModelRules]
    evict: Eviction
    fifo: FifoSettings = Factory(FifoSettings)
    pinned: frozenset[str] = frozenset()
    by_memory: bool = False
    several_hosts: bool = False
    returning: frozenset[str] = frozenset()

    def fairness_window_of(self, ticket: Ticket) -> float:
        """The fairness window of a request, which its priority shortens."""
        return self.fifo.patience * PRIORITY_SCALE / (PRIORITY_SCALE + max(0, ticket.priority))


# -- records -----------------------------------------------------------------------------------------------


class Phase(Enum):
    """How the scheduler sees a model's server."""

    STOPPED = "stopped"
    LOADING = "loading"
    READY = "ready"
    STOPPING = "stopping"
    SUSPENDED = "suspended"


@define(eq=False)
class ModelState:
    """One model. `serving` are the tickets in flight on its present process, `idle_since` is set while it has none.

    `unfinished` counts its requests that wait, are in flight or have just lost their server, `waiting` those that wait.
    `stale`: the process runs an outdated definition; it finishes its requests and is then stopped. `worked_at` is when
    the present process first finished a request, `load_seconds` how long its load took. A stopping model with
    `suspending` set is about to be suspended; one with `freed_memory` set was suspended before and occupies no memory.
    A suspended model's `idle_since` is when it was suspended. `idle_armed`: its idle timer runs. `memory` is the
    memory that its load was decided with, None if that was unknown; `suspended_size` is the MiB of RAM that it was last
    measured to keep while it was suspended. `ttl` are the idle seconds that a client asked for (None: those of the
    rules), until it stops or is suspended. `host` is where its process is, or was.
    """

    model: str
    phase: Phase = Phase.STOPPED
    generation: int = 0
    serving: set[int] = Factory(set)
    unfinished: int = 0
    waiting: int = 0
    idle_since: float | None = None
    idle_armed: bool = False
    stale: bool = False
    load_began: float = 0.0
    load_seconds: float = 0.0
    ready_at: float = 0.0
    worked_at: float | None = None
    suspending: bool = False
    freed_memory: bool = False
    memory: Sizes | None = None
    ttl: float | None = None
    suspended_size: int | None = None
    host: str = ""

    @property
    def uses_memory(self) -> bool:
        """Whether it is up, on its way up, or on its way down from there."""
        return self.phase not in (Phase.STOPPED, Phase.SUSPENDED) and not self.freed_memory

    @property
    def stay_end(self) -> float:
        """The end of its minimum stay: until then starved requests do not keep new requests from it."""
        if self.phase is Phase.READY:
            return self.ready_at + MINIMUM_STAY_LOADS * self.load_seconds
        return inf if self.phase is Phase.LOADING else 0.0

    @property
    def linger_end(self) -> float:
        """Until when it is not evicted although it is unused; in the past if it was unused for long enough."""
        if self.phase is not Phase.READY or self.idle_since is None:
            return 0.0
        return min(self.stay_end, self.idle_since + IDLE_LINGER_LOADS * self.load_seconds)


@define(eq=False)
class HostRoom:
    """What is left of a host beside everything that has a process there, `known` if the use of all of it is.

    `gpus` are the rooms of the GPUs, the largest first, `machine` is what RAM and GPUs have at most; `needs` were found
    on the host. `servers` have a process there, each with the seconds of its load and its MiB on GPUs.
    """

    ram: int
    gpus: Sequence[int]
    machine: tuple[int, ...]
    needs: Mapping[str, MemoryNeed]
    known: bool
    servers: Sequence[tuple[float, ModelState, int]]


class RequestStage:
    """How far a request has come. Not an Enum, whose members Python 3.11 reads as slowly as it calls a function."""

    QUEUED = "queued"
    JOINED = "joined"
    SERVING = "serving"


@define(eq=False)
class QueuedRequest:
    """A ticket and its stage. `deadline` is the end of its fairness window."""

    ticket: Ticket
    stage: str
    deadline: float = 0.0
    position: int = 0
    starved: bool = False


def queue_order(entry: QueuedRequest) -> tuple[bool, float, float, int]:
    """The key by which the queue is sorted: starved requests first, in the order in which their fairness windows ended;
    the others by priority, then by their `order`, then by arrival."""
    ticket = entry.ticket
    if entry.starved:
        return False, entry.deadline, 0.0, ticket.number
    return True, -ticket.priority, ticket.order, ticket.number


@define(eq=False)
class ActiveSwap:
    """A load that runs: `evict` leave for it, `waiters` are its requests by number, `restore` return if it fails."""

    generation: int
    model: str
    evict: frozenset[str]
    waiters: dict[int, QueuedRequest]
    restore: tuple[str, ...]


@frozen
class Reservation:
    """The right of a starved request to the next load on a host. `closed` are those of `evict` that get no new
    requests."""

    model: str
    evict: frozenset[str]
    closed: frozenset[str]
    host: str = ""


@frozen
class WaitReason:
    """What the requests for a model wait for, in words. `models` are in the way; `loading`: the model is loading."""

    reason: str
    models: tuple[str, ...] = ()
    loading: bool = False


@frozen
class Decision:
    """What a request for `model` meets: `action` is serve, join (a load), load, queue or refuse.

    `evicts` would be evicted, `waits_for` is in the way, `reason` names the rule in words. A queued request is to be
    decided about again at `until`, if no event comes before (0.0: one will). `abandon` are the loads that no request
    waits for and that are in the way. `error` is that of a refusal by a rule of the queue. A queued request with an
    `error` waits for memory that other programs use, or for a host, and gets it after `FOREIGN_MEMORY_WAIT` seconds. A
    load uses the `memory`, None if that is unknown, on these `gpus` of the `host`. `moves`: the model is suspended on a
    host that has no room for it, and has to be stopped there first.
    """

    model: str
    action: str
    evicts: tuple[str, ...] = ()
    waits_for: tuple[str, ...] = ()
    reason: str = ""
    until: float = 0.0
    abandon: tuple[int, ...] = ()
    error: LlamaswapError | None = None
    memory: Sizes | None = None
    gpus: tuple[str, ...] = ()
    host: str = ""
    moves: bool = False


# -- the whole ---------------------------------------------------------------------------------------------


@define(eq=False)
class SchedulerState:
    """Everything the scheduler has learned, and the questions about it. Only `Scheduler` changes it.

    `enlarged` has factors for the needs of models that ran out of memory. Models in `alone` did so at their last load,
    which had evicted these models; the next one evicts all others. `hosts` are known, by name, this machine first, if
    there are several. `occupied` are the models with a process by host, `rooms` is what was found to be left beside
    them. `lost` has the hosts on which models were when those vanished; `missed` hosts vanished with so many others
    that what they ran is not loaded elsewhere; `awaited` ones may still run what an earlier program loaded.
    Once most hosts are back, the rest of `missed` counts until `missed_until`.
    """

    rules: Rules
    models: dict[str, ModelState] = field(factory=dict, init=False)
    loads: dict[int, ActiveSwap] = field(factory=dict, init=False)
    requests: dict[int, QueuedRequest] = field(factory=dict, init=False)
    reservations: list[Reservation] = field(factory=list, init=False)
    closed_models: frozenset[str] = field(default=frozenset(), init=False)
    failures: dict[str, FailureRecord] = field(factory=dict, init=False)
    stalled_readers: dict[int, float] = field(factory=dict, init=False)
    shutdown_error: LlamaswapError | None = field(default=None, init=False)
    ledger: Ledger = field(factory=lambda: Ledger({}), init=False)
    enlarged: dict[str, float] = field(factory=dict, init=False)
    alone: dict[str, tuple[str, ...]] = field(factory=dict, init=False)
    hosts: Mapping[str, HostFacts] = field(factory=dict, init=False)
    occupied: dict[str, dict[str, ModelState]] = field(factory=dict, init=False)
    rooms: dict[str, HostRoom] = field(factory=dict, init=False)
    lost: dict[str, str] = field(factory=dict, init=False)
    missed: frozenset[str] = field(default=frozenset(), init=False)
    missed_until: float = field(default=inf, init=False)
    awaited: frozenset[str] = field(default=frozenset(), init=False)
    _effects: list[Effect] = field(factory=list, init=False)

    def can_grant(self, model: str) -> bool:
        """Whether a request for `model` would be granted at once: rule 1 of the decision tree."""
        server = self.models.get(model)
        if server is None or server.phase is not Phase.READY or server.stale or model in self.closed_models:
            return False
        rules = self.rules.models.get(model)
        if rules is None or self.shutdown_error is not None or self.is_full:
            return False
        return not rules.limit or server.unfinished < rules.limit

    @property
    def is_full(self) -> bool:
        """Whether as many requests are served, or wait for a load that runs, as may be at a time."""
        if not self.rules.fifo.max_concurrent:
            return False
        servers = (server for server in self.models.values() if not self.is_lease(server.model))
        served = sum(server.unfinished - server.waiting for server in servers)
        return served + sum(len(swap.waiters) for swap in self.loads.values()) >= self.rules.fifo.max_concurrent

    def is_lease(self, model: str) -> bool:
        """Whether this stands for a program that was given memory."""
        rules = self.rules.models.get(model)
        return rules is not None and rules.is_lease

    def in_backoff(self, model: str, now: float) -> bool:
        """Whether no request may start this model yet, because it failed repeatedly."""
        failure = self.failures.get(model)
        return failure is not None and now < failure.until

    def joined(self) -> list[Ticket]:
        """The requests that wait for a load that runs."""
        return [entry.ticket for swap in self.loads.values() for entry in swap.waiters.values()]

    def state_of(self, model: str) -> ModelState:
        """The state of a model, created if nothing is known of it."""
        return self.models.get(model) or self.models.setdefault(model, ModelState(model))

    def phase(self, model: str) -> Phase:
        """How the scheduler sees this model."""
        server = self.models.get(model)
        return Phase.STOPPED if server is None else server.phase

    def servers_on(self, host: str) -> Mapping[str, ModelState]:
        """The models with a process on this host."""
        return self.occupied.get(host, {})

    def ledger_on(self, host: str) -> Ledger:
        """The memory of a host; nothing is known of one that has left."""
        if not host:
            return self.ledger
        facts = self.hosts.get(host)
        return NO_LEDGER if facts is None else facts.ledger

    def running(self, target: str, host: str = "") -> tuple[str, ...]:
        """All models besides the target that use memory of this host, in ascending order."""
        servers = self.servers_on(host).values()
        return tuple(sorted(server.model for server in servers if server.uses_memory and server.model != target))

    @property
    def settled(self) -> bool:
        """Whether no request is served or waits, and every server is ready, suspended or stopped."""
        quiet = (Phase.STOPPED, Phase.READY, Phase.SUSPENDED)
        for entry in self.requests.values():
            if entry.stage is not RequestStage.SERVING or not self.is_lease(entry.ticket.model):
                return False
        return all(server.phase in quiet for server in self.models.values())
