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
"""A priority of this much halves the fairness window: 10 s become 5 at 10, 1.7 at 50, 0.9 at 100."""


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

    `fairness_window`: seconds for which requests for a ready model may overtake a waiting one. `max_queue`: how many
    requests may wait for one model without an explicit limit. `pinned`: models that only an operator unloads.
    `backoff`: the pauses between attempts to load a failing model. `max_wait`: seconds a request may be queued (0: no
    bound). `max_asleep`: how many models may be suspended (0: no bound). `stalled_reader`: seconds a client may read
    nothing while another request waits for its model to finish (0: no bound).
    """

    models: Mapping[str, ModelRules]
    evict: Eviction
    fairness_window: float = 10.0
    max_queue: int = 1000
    pinned: frozenset[str] = frozenset()
    backoff: Backoff = Factory(Backoff)
    max_wait: float = 0.0
    max_asleep: int = 0
    stalled_reader: float = 0.0

    def fairness_window_of(self, ticket: Ticket) -> float:
        return self.fairness_window * PRIORITY_SCALE / (PRIORITY_SCALE + max(0, ticket.priority))


# -- the picture -------------------------------------------------------------------------------------------


class Phase(Enum):
    """How the scheduler sees a model's server."""

    STOPPED = "stopped"
    LOADING = "loading"
    READY = "ready"
    STOPPING = "stopping"
    ASLEEP = "asleep"


@define(eq=False)
class ModelState:
    """One model. `serving` are the tickets in flight on its present process, `idle_since` is set while it has none.

    `stale`: the process runs an outdated definition; it finishes its requests and is then stopped. `worked_at` is when
    the present process first finished a request. A stopping model with `suspending` set is about to be suspended; one
    with `freed_memory` set was suspended before and occupies no memory. A suspended model's `idle_since` is when it
    was suspended.
    """

    model: str
    phase: Phase = Phase.STOPPED
    generation: int = 0
    serving: set[int] = Factory(set)
    idle_since: float | None = None
    armed: bool = False
    stale: bool = False
    ready_at: float = 0.0
    worked_at: float | None = None
    suspending: bool = False
    freed_memory: bool = False

    @property
    def takes_room(self) -> bool:
        return self.phase not in (Phase.STOPPED, Phase.ASLEEP) and not self.freed_memory


class RequestStage(Enum):
    """Where a request stands."""

    QUEUED = "queued"
    JOINED = "joined"
    SERVING = "serving"


@define(eq=False)
class QueuedRequest:
    """A ticket and where it stands. `swap` is the generation it joined, `deadline` the end of its fairness window."""

    ticket: Ticket
    where: RequestStage
    deadline: float = 0.0
    position: int = 0
    swap: int = 0
    starved: bool = False


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
    """The right to the next load, of a request that has waited for longer than its fairness window."""

    model: str
    evict: frozenset[str]


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
GRANT_NOW = GrantNow()


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
