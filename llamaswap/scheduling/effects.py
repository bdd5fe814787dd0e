"""What the scheduler may ask for, as values. It decides and returns these; the router performs them.

The scheduler itself calls nothing, reads no clock and starts no timer: times come in as arguments (`now`,
seconds on any monotonic scale), deadlines go out as `ArmIdle`, `ArmPatience` and `Reconsider`.
"""

from __future__ import annotations

from attrs import frozen

from llamaswap.errors import LlamaswapError

CLEAN_UP = "clean up"  # why a model that is not up is stopped: its stop command runs


@frozen
class Ticket:
    """One request's place in the scheduler's books, from `requested` to `served` or `cancelled`.

    `number` is unique and rises in arrival order; `since` is the arrival time in seconds; `origin` says who asked, for
    show.
    """

    number: int
    model: str
    since: float
    priority: int = 0
    origin: str = ""


@frozen
class Admit:
    """The request will be served or told otherwise later: its caller may begin to wait (and show a loading state)."""

    ticket: Ticket


@frozen
class Refuse:
    """The request ends here with `error`; its ticket is gone."""

    ticket: Ticket
    error: LlamaswapError


@frozen
class Grant:
    """The model is ready and counts this request as in flight until `served` is told."""

    ticket: Ticket


@frozen
class QueuePosition:
    """The request now stands at `position` (1-based) in the queue."""

    ticket: Ticket
    position: int


@frozen
class StartSwap:
    """Stop `evict` (all in parallel), then make `model` ready, then tell `swap_finished(generation, error)`.

    Those of them that are in `sleep` are put to sleep, as in `Suspend`.
    `waited` is how long the oldest of those waiting for it has stood in the queue, in seconds; `origin` is its
    ticket's.
    """

    generation: int
    model: str
    evict: tuple[str, ...]
    reason: str
    waited: float = 0.0
    sleep: frozenset[str] = frozenset()
    origin: str = ""


@frozen
class AbandonSwap:
    """Nobody waits for this swap any more and something else wants its room: abort it."""

    generation: int
    model: str


@frozen
class Stop:
    """Stop these models (all in parallel); `gone` comes back for each one of which no process is left.

    `why` is unload, idle, failed (a start), abandoned (one), crash (clear up after it), reload, asleep (too many are),
    shutdown or `CLEAN_UP`.
    """

    models: tuple[str, ...]
    why: str


@frozen
class Suspend:
    """Put these models to sleep (all in parallel); `slept` comes back for each one that sleeps, `gone` for each that
    had to be stopped instead. `why` is idle or abandoned."""

    models: tuple[str, ...]
    why: str


@frozen
class Interrupt:
    """Cut the response of this granted request, whose client has read nothing for `seconds` while a request for
    `waiting` waits for its model's room. `served` is told as for every granted request."""

    ticket: Ticket
    seconds: float
    waiting: str


@frozen
class ArmIdle:
    """Tell `idle_expired(model)` after `seconds`, unless disarmed or armed anew before."""

    model: str
    seconds: float


@frozen
class DisarmIdle:
    """Forget the idle timer of this model."""

    model: str


@frozen
class ArmPatience:
    """Call `patience_expired()` after `seconds` (replaces an earlier one): somebody has waited long enough by then."""

    seconds: float


@frozen
class DisarmPatience:
    """Nobody waits behind a ready model any more."""


@frozen
class Reconsider:
    """Call `reconsidered()` after `seconds`: many wait, and some of them have gone. There is one at a time."""

    seconds: float


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
    | ArmIdle
    | DisarmIdle
    | ArmPatience
    | DisarmPatience
    | Reconsider
)
