"""The records of eviction, the queue, selectors, profiles and peers. See `schema`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from llamaswap.config.endpoints import Endpoint
from llamaswap.config.field_types import (
    BOOLEAN,
    DURATION,
    FREE_MAP,
    INTEGER,
    INTEGER_MAP,
    SECRET,
    TEXT,
    TEXT_LIST,
    TEXT_LIST_OR_AUTO,
    TEXT_MAP,
    section,
)
from llamaswap.config.policies import DEFAULT_POLICY, POLICIES, RouterSettings
from llamaswap.config.schema.memory import MemorySettings
from llamaswap.config.schema.model import FORWARD_KEY, Filters, Timeouts
from llamaswap.config.secret import Secret

STRATEGIES = ("warm", "pin", "spillover", "failover")
SCHEDULERS = ("fifo",)


@frozen
class EvictionSettings:
    """The eviction policy and its settings."""

    use: str = TEXT.key(
        "The policy that decides which models are unloaded for another.",
        shown_default=DEFAULT_POLICY,
        enum=("", *POLICIES),
        lenient=True,
    )
    settings: RouterSettings = section(RouterSettings, "Settings of the policies.")


@frozen
class FifoSettings:
    """First come, first served within a priority."""

    priority: Mapping[str, int] = INTEGER_MAP.key(
        "Priorities of models: higher ones are served first, unlisted models have 0."
    )
    patience: float = DURATION.key(
        "How long requests for a loaded model may overtake waiting requests for others.", default=10.0
    )
    max_queue: int = INTEGER.key(
        "Maximum number of requests that wait for one model; more get 429.", default=1000, minimum=1
    )
    max_concurrent: int = INTEGER.key(
        "Maximum number of requests that all local models together serve or are loaded for; more wait. 0: no limit.",
        minimum=0,
    )
    max_wait: float = DURATION.key(
        "Maximum time that a request waits behind other models; then it gets 503. 0s: no limit.", default=3600.0
    )
    stalled_reader: float = DURATION.key(
        "Maximum time that a client reads nothing of its response while a request waits for the eviction of the "
        "model; then the response is cut. 0s: no limit.",
        default=60.0,
    )
    backoff: float = DURATION.key(
        "First pause for a model that failed twice in a row; it doubles with each failure. 0s for no pauses.",
        default=1.0,
    )
    backoff_max: float = DURATION.key("Maximum pause for a model that keeps failing.", default=60.0)
    max_asleep: int = INTEGER.key(
        "Maximum number of models asleep, which use memory; the one asleep for longest is stopped. 0: no limit.",
        minimum=0,
    )
    reclaim: float = DURATION.key(
        "Maximum time that a start waits for the GPU memory of an unloaded model to be free. 0s not to wait.",
        default=10.0,
    )


@frozen
class SchedulerSettings:
    """Settings of the schedulers."""

    fifo: FifoSettings = section(FifoSettings, "Settings for `use: fifo`.")


@frozen
class QueueSettings:
    """The queue discipline and its settings."""

    use: str = TEXT.key("The queue discipline.", default="fifo", enum=("", *SCHEDULERS), lenient=True)
    settings: SchedulerSettings = section(SchedulerSettings, "Settings of the queue discipline.")


@frozen
class Routing:
    """The rules of eviction and of the queue."""

    router: EvictionSettings = section(EvictionSettings, "Which models are unloaded for another.")
    scheduler: QueueSettings = section(QueueSettings, "Which requests are served first.")
    memory: MemorySettings = section(
        MemorySettings,
        "Which models fit into memory together, and what is unloaded for another. Also written as its mode alone.",
        shorthand="mode",
    )
    default_model: str = TEXT.key(
        "The model, selector, group, tag or peer's model for requests that name none; empty: they get 404."
    )
    restore_default: bool = BOOLEAN.key(
        "Load defaultModel again, if it was evicted, as soon as the models in its way are unloaded."
    )


# -- names that stand for models ---------------------------------------------------------------------------


@frozen
class Profile:
    """A switchable set of names; requests for a name pinned to "" get 404."""

    description: str = TEXT.key("Shown in listings.")
    pins: Mapping[str, str] = TEXT_MAP.key("Requested name to model; empty or null disables a name.")


@frozen
class SelectorSettings:
    """Settings of a selector's strategy."""

    spillover: int = INTEGER.key(
        "Requests a loaded target takes before the next one is loaded.", default=1, minimum=1, lenient=True
    )


@frozen
class Selector:
    """A name whose requests go to one of several targets."""

    id: str
    strategy: str = TEXT.key("How a target is chosen.", enum=STRATEGIES, lenient=True)
    targets: tuple[str, ...] = TEXT_LIST.key("Models or peers' models, in order.")
    settings: SelectorSettings = section(SelectorSettings, "Settings of the strategy.")
    name: str = TEXT.key("Name shown in listings.")
    description: str = TEXT.key("Description shown in listings.")
    unlisted: bool = BOOLEAN.key("Leave the selector out of listings.")
    metadata: Mapping[str, Any] = FREE_MAP.key("Anything; shown in listings.")

    @property
    def spillover(self) -> int:
        return self.settings.spillover


@frozen
class Peer:
    """Another server with models. With `auto` it is asked for them, and `models` is empty."""

    id: str
    proxy: str = TEXT.key("Base URL of the peer.")
    api_key: Secret | None = SECRET.key("Key sent to the peer as Bearer token and x-api-key.")
    forward_key: str = TEXT.key(
        "Whether the accepted API key is passed to the peer; if empty as the global forwardKey says.",
        enum=("", *FORWARD_KEY),
    )
    models: tuple[str, ...] = TEXT_LIST_OR_AUTO.key("Models of the peer, or auto to ask it for them.")
    aliases: Mapping[str, str] = TEXT_MAP.key(
        "Other names for models of the peer: the name, and the peer's name for it."
    )
    filters: Filters = section(Filters, "Changes made to the request before forwarding.", synonyms=False)
    timeouts: Timeouts = section(Timeouts, "Limits on connections to the peer.", default=Timeouts(response_header=60.0))
    endpoint: Endpoint | None = None
    auto: bool = False
