"""The records of eviction, the queue, selectors, profiles and peers. See `schema`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from llamaswap.config.endpoints import Endpoint
from llamaswap.config.field_types import (
    BooleanType,
    DurationType,
    FreeType,
    IntegerMapType,
    IntegerType,
    SectionType,
    TextListType,
    TextMapType,
    TextType,
    key,
)
from llamaswap.config.policies import DEFAULT_POLICY, POLICIES, RouterSettings
from llamaswap.config.schema.model import FORWARD_KEY, Filters, Timeouts
from llamaswap.config.secret import Secret

STRATEGIES = ("warm", "pin", "spillover", "failover")
SCHEDULERS = ("fifo",)


@frozen
class EvictionSettings:
    """The eviction policy and its settings."""

    use: str = field(
        default=DEFAULT_POLICY,
        metadata=key(
            "use",
            TextType(),
            "The policy that decides which models are unloaded for another.",
            enum=("", *POLICIES),
            lenient=True,
        ),
    )
    settings: RouterSettings = field(
        default=RouterSettings(), metadata=key("settings", SectionType(RouterSettings), "Settings of the policies.")
    )


@frozen
class FifoSettings:
    """First come, first served within a priority."""

    priority: Mapping[str, int] = field(
        factory=dict,
        metadata=key(
            "priority", IntegerMapType(), "Priorities of models: higher ones are served first, unlisted models have 0."
        ),
    )
    patience: float = field(
        default=10.0,
        metadata=key(
            "patience", DurationType(), "How long requests for a loaded model may overtake waiting requests for others."
        ),
    )
    max_queue: int = field(
        default=1000,
        metadata=key(
            "maxQueue", IntegerType(), "Maximum number of requests that wait for one model; more get 429.", minimum=1
        ),
    )
    max_wait: float = field(
        default=3600.0,
        metadata=key(
            "maxWait",
            DurationType(),
            "Maximum time that a request waits behind other models; then it gets 503. 0s: no limit.",
        ),
    )
    stalled_reader: float = field(
        default=60.0,
        metadata=key(
            "stalledReader",
            DurationType(),
            "Maximum time that a client reads nothing of its response while a request waits for the eviction of the "
            "model; then the response is cut. 0s: no limit.",
        ),
    )
    backoff: float = field(
        default=1.0,
        metadata=key(
            "backoff",
            DurationType(),
            "First pause for a model that failed twice in a row; it doubles with each failure. 0s for no pauses.",
        ),
    )
    backoff_max: float = field(
        default=60.0, metadata=key("backoffMax", DurationType(), "Maximum pause for a model that keeps failing.")
    )
    max_asleep: int = field(
        default=0,
        metadata=key(
            "maxAsleep",
            IntegerType(),
            "Maximum number of models asleep, which use memory; the one asleep for longest is stopped. 0: no limit.",
            minimum=0,
        ),
    )
    reclaim: float = field(
        default=10.0,
        metadata=key(
            "reclaim",
            DurationType(),
            "Maximum time that a start waits for the GPU memory of an unloaded model to be free. 0s not to wait.",
        ),
    )


@frozen
class SchedulerSettings:
    """Settings of the schedulers."""

    fifo: FifoSettings = field(
        default=FifoSettings(), metadata=key("fifo", SectionType(FifoSettings), "Settings for `use: fifo`.")
    )


@frozen
class QueueSettings:
    """The queue discipline and its settings."""

    use: str = field(
        default="fifo", metadata=key("use", TextType(), "The queue discipline.", enum=("", *SCHEDULERS), lenient=True)
    )
    settings: SchedulerSettings = field(
        default=SchedulerSettings(),
        metadata=key("settings", SectionType(SchedulerSettings), "Settings of the queue discipline."),
    )


@frozen
class Routing:
    """The rules of eviction and of the queue."""

    router: EvictionSettings = field(
        default=EvictionSettings(),
        metadata=key("router", SectionType(EvictionSettings), "Which models are unloaded for another."),
    )
    scheduler: QueueSettings = field(
        default=QueueSettings(),
        metadata=key("scheduler", SectionType(QueueSettings), "Which requests are served first."),
    )
    default_model: str = field(
        default="",
        metadata=key(
            "defaultModel",
            TextType(),
            "The model, selector, group, tag or peer's model for requests that name none; empty: they get 404.",
        ),
    )


# -- names that stand for models ---------------------------------------------------------------------------


@frozen
class Profile:
    """A switchable set of names; requests for a name pinned to "" get 404."""

    description: str = field(default="", metadata=key("description", TextType(), "Shown in listings."))
    pins: Mapping[str, str] = field(
        factory=dict, metadata=key("pins", TextMapType(), "Requested name to model; empty or null disables a name.")
    )


@frozen
class SelectorSettings:
    """Settings of a selector's strategy."""

    spillover: int = field(
        default=1,
        metadata=key(
            "spillover",
            IntegerType(),
            "Requests a loaded target takes before the next one is loaded.",
            minimum=1,
            lenient=True,
        ),
    )


@frozen
class Selector:
    """A name whose requests go to one of several targets."""

    id: str
    strategy: str = field(
        default="", metadata=key("strategy", TextType(), "How a target is chosen.", enum=STRATEGIES, lenient=True)
    )
    targets: tuple[str, ...] = field(
        default=(), metadata=key("targets", TextListType(), "Models or peers' models, in order.")
    )
    settings: SelectorSettings = field(
        default=SelectorSettings(), metadata=key("settings", SectionType(SelectorSettings), "Settings of the strategy.")
    )
    name: str = field(default="", metadata=key("name", TextType(), "Name shown in listings."))
    description: str = field(default="", metadata=key("description", TextType(), "Description shown in listings."))
    unlisted: bool = field(
        default=False, metadata=key("unlisted", BooleanType(), "Leave the selector out of listings.")
    )
    metadata: Mapping[str, Any] = field(
        factory=dict, metadata=key("metadata", FreeType(), "Anything; shown in listings.")
    )

    @property
    def spillover(self) -> int:
        return self.settings.spillover


@frozen
class Peer:
    """Another server with models. With `auto` it is asked for them, and `models` is empty."""

    id: str
    proxy: str = field(default="", metadata=key("proxy", TextType(), "Base URL of the peer."))
    api_key: Secret | None = field(
        default=None,
        metadata=key("apiKey", TextType(secret=True), "Key sent to the peer as Bearer token and x-api-key."),
    )
    forward_key: str = field(
        default="",
        metadata=key(
            "forwardKey",
            TextType(),
            "Whether the accepted API key is passed to the peer; if empty as the global forwardKey says.",
            enum=("", *FORWARD_KEY),
        ),
    )
    models: tuple[str, ...] = field(
        default=(), metadata=key("models", TextListType(auto=True), "Models of the peer, or auto to ask it for them.")
    )
    filters: Filters = field(
        default=Filters(),
        metadata=key("filters", SectionType(Filters, synonyms=False), "Changes made to the request before forwarding."),
    )
    timeouts: Timeouts = field(
        # A peer may have to load the model first, but a dead one must be noticed.
        default=Timeouts(response_header=60.0),
        metadata=key("timeouts", SectionType(Timeouts), "Limits on connections to the peer."),
    )
    endpoint: Endpoint | None = None
    auto: bool = False
