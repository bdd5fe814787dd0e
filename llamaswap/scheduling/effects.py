"""Effects: what the scheduler decides, as values. The router performs them.

The scheduler itself calls nothing, reads no clock and starts no timer: times come in as arguments (`now`,
seconds on any monotonic scale), deadlines go out as `SetIdleTimer` and `SetQueueTimer`.
"""

from __future__ import annotations

from attrs import frozen

from llamaswap.errors import LlamaswapError
from llamaswap.scheduling.memory import Sizes

CLEAN_UP = "clean up"  # why a model that is not up is stopped: its stop command runs


@frozen
class Ticket:
    """One request as the scheduler knows it, from `requested` to `served` or `cancelled`.

    `number` is unique and rises in arrival order; `since` is the arrival time in seconds; `origin` names what asked,
    for display only. Of waiting requests with equal priority, the one with the lowest `order` goes first.
    """

    number: int
    model: str
    since: float
    priority: int = 0
    origin: str = ""
    order: float = 0.0


@frozen
class Admit:
    """The request waits; `Grant` or `Refuse` follows later. Its caller may show a loading state meanwhile."""

    ticket: Ticket


@frozen
class Refuse:
    """The request ends with `error`; its ticket is no longer valid."""

    ticket: Ticket
    error: LlamaswapError


@frozen
class Grant:
    """The model is ready and counts this request as in flight until `served` is called."""

    ticket: Ticket


@frozen
class QueuePosition:
    """The request now stands at `position` (1-based) in the queue."""

    ticket: Ticket
    position: int


@frozen
class StartSwap:
    """Stop `evict` (all in parallel), then make `model` ready, then call `swap_finished(generation, error)`.

    The models of `evict` that are in `suspend` are suspended, as in `Suspend`. `waited` is how long the oldest request
    for the model has been queued, in seconds; `origin` is that of its ticket. `gpus` are the devices whose memory the
    model was given; () if they were not decided about. It is loaded on `host`, "" for this machine, with these `sizes`
    of its memory, None if they are unknown.
    """

    generation: int
    model: str
    evict: tuple[str, ...]
    reason: str
    waited: float = 0.0
    suspend: frozenset[str] = frozenset()
    origin: str = ""
    gpus: tuple[str, ...] = ()
    host: str = ""
    sizes: Sizes | None = None


@frozen
class AbandonSwap:
    """Abort this swap: no request waits for it any more, and another load needs its memory."""

    generation: int


@frozen
class Stop:
    """Stop these models (all in parallel); `stopped` is called for each one once it has no process left.

    `why` is unload, idle, failed (a start), abandoned (one), crash (clean up after it), reload, asleep (too
    many are suspended), memory (other programs need it), host (it vanished, is drained or has no room), shutdown or
    `CLEAN_UP`.
    """

    models: tuple[str, ...]
    why: str


@frozen
class Suspend:
    """Suspend these models (all in parallel).

    `suspended` is called for each one that is suspended, `stopped` for each one that had to be stopped instead. `why`
    is idle, abandoned or memory.
    """

    models: tuple[str, ...]
    why: str


@frozen
class Interrupt:
    """Interrupt the response of this granted request: its client has read nothing for `seconds`, and a request for
    `waiting` cannot be loaded before it ends. `served` is called as for every granted request."""

    ticket: Ticket
    seconds: float
    waiting: str


@frozen
class SetIdleTimer:
    """Call `idle_expired(model)` after `seconds`; None: do not. Replaces the model's earlier timer."""

    model: str
    seconds: float | None


@frozen
class SetQueueTimer:
    """Call `queue_timer_expired()` after `seconds`, the next deadline in the queue; None: do not. Replaces the earlier
    timer."""

    seconds: float | None


Effect = (
    Admit
    | Refuse
    | Grant
    | QueuePosition
    | StartSwap
    | AbandonSwap
    | Stop
    | Suspend
    | Interrupt
    | SetIdleTimer
    | SetQueueTimer
)
