"""What the scheduler knows and says: the rules it is given, its picture of servers and requests, its verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from attrs import Factory, define, frozen

from llamaswap.errors import LlamaswapError
from llamaswap.scheduling.backoff import Backoff
from llamaswap.scheduling.effects import Ticket
from llamaswap.scheduling.eviction import Eviction

PRIORITY_SCALE = 10.0
"""A priority of this much halves the patience: 10 s become 5 at 10, 1.7 at 50, 0.9 at 100."""


# -- what the scheduler is told about the configuration ----------------------------------------------------


@frozen
class ModelRules:
    """One model: `limit` is the explicit bound on requests held for it (0: none), `ttl` idle seconds (0: never).

    `sleeps`: it is put to sleep instead of being stopped, and stopped after `sleep_ttl` seconds of it (0: never).
    `cleans`: it has a stop command, which may stop what is left of it when it is not up.
    """

    limit: int = 0
    ttl: float = 0.0
    sleeps: bool = False
    sleep_ttl: float = 0.0
    cleans: bool = False


@frozen
class Rules:
    """Everything configured that a decision depends on.

    `patience` is how long requests for a ready model may overtake a waiting one, `max_queue` how many requests may
    wait for one model that has no explicit limit, `pinned` models leave only when an operator unloads them, `backoff`
    spaces the tries of a model that keeps failing, `max_wait` is how long a request may stand in the queue (0: for
    ever), `max_asleep` how many may sleep (0: any number), `stalled_reader` how long a client may read nothing while
    another request waits for its model's room (0: for ever).
    """

    models: Mapping[str, ModelRules]
    evict: Eviction
    patience: float = 10.0
    max_queue: int = 1000
    pinned: frozenset[str] = frozenset()
    backoff: Backoff = Factory(Backoff)
    max_wait: float = 0.0
    max_asleep: int = 0
    stalled_reader: float = 0.0

    def patience_of(self, ticket: Ticket) -> float:
        return self.patience * PRIORITY_SCALE / (PRIORITY_SCALE + max(0, ticket.priority))


# -- the picture -------------------------------------------------------------------------------------------


class Phase(Enum):
    """How the scheduler sees a model's server."""

    COLD = "cold"
    LOADING = "loading"
    READY = "ready"
    GOING = "going"
    ASLEEP = "asleep"


@define(eq=False)
class ModelState:
    """One model. `serving` are the tickets in flight on its present process, `idle_since` is set while it has none.

    `stale` says that the process runs an outdated definition: it finishes what it has and goes. `worked_at` is when
    the present process first ended a request. A going one that is `dozing` is about to sleep, one that is `light` goes
    from its sleep and takes up no room. A sleeping one's `idle_since` is when it fell asleep.
    """

    model: str
    phase: Phase = Phase.COLD
    generation: int = 0
    serving: set[int] = Factory(set)
    idle_since: float | None = None
    armed: bool = False
    stale: bool = False
    ready_at: float = 0.0
    worked_at: float | None = None
    dozing: bool = False
    light: bool = False

    @property
    def takes_room(self) -> bool:
        return self.phase not in (Phase.COLD, Phase.ASLEEP) and not self.light


class RequestStage(Enum):
    """Where a request stands."""

    QUEUED = "queued"
    JOINED = "joined"
    SERVING = "serving"


@define(eq=False)
class QueuedRequest:
    """A ticket and where it stands. `swap` is the generation it joined, `deadline` the end of its patience."""

    ticket: Ticket
    where: RequestStage
    deadline: float = 0.0
    position: int = 0
    swap: int = 0
    claims: bool = False


@define(eq=False)
class ActiveSwap:
    """A load under way: `evict` goes for it, `waiters` are its requests by number, `restore` comes back if it fails."""

    generation: int
    model: str
    evict: frozenset[str]
    waiters: dict[int, QueuedRequest]
    restore: tuple[str, ...]


@frozen
class Reservation:
    """The right to the next load, of a request that has waited for longer than its patience."""

    model: str
    evict: frozenset[str]


def queue_key(entry: QueuedRequest) -> tuple[int, int]:
    """The order of the queue."""
    return -entry.ticket.priority, entry.ticket.number


def claim_key(entry: QueuedRequest) -> tuple[float, int]:
    """The order in which claims are served."""
    return entry.deadline, entry.ticket.number


# -- verdicts ----------------------------------------------------------------------------------------------


@frozen
class GrantNow:
    """Ready: grant."""


@frozen
class JoinSwap:
    """Being loaded: wait with the others."""

    generation: int


@frozen
class StartNow:
    """Load it now; `abandon` are swaps nobody waits for that stand in its way."""

    evict: tuple[str, ...]
    abandon: tuple[int, ...]


@frozen
class WaitFor:
    """Not now. `evict` is what would have to go, `behind` what is waited for (models)."""

    evict: tuple[str, ...]
    behind: tuple[str, ...]


@frozen
class RefuseForever:
    """Not while things are as they are, however long one waits."""

    error: LlamaswapError


Verdict = GrantNow | JoinSwap | StartNow | WaitFor | RefuseForever
GO = GrantNow()


@frozen
class Forecast:
    """What a request for a model would meet now: `action` is serve, join, load, queue or refuse.

    `evicts` would go, `waits_for` is what stands in the way, `reason` the rule behind it in words.
    """

    model: str
    action: str
    evicts: tuple[str, ...] = ()
    waits_for: tuple[str, ...] = ()
    reason: str = ""
