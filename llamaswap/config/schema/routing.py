"""The records of who runs beside whom, and of names that stand for models. See `schema`."""

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
    Secret,
    SectionType,
    TextListType,
    TextMapType,
    TextType,
    key,
)
from llamaswap.config.policies import DEFAULT_POLICY, POLICIES, RouterSettings
from llamaswap.config.schema.model import FORWARD_KEY, Filters, Timeouts

STRATEGIES = ("warm", "pin", "spillover", "failover")
SCHEDULERS = ("fifo",)


@frozen
class EvictionSettings:
    """Which policy decides which models are evicted."""

    use: str = field(
        default=DEFAULT_POLICY,
        metadata=key(
            "use", TextType(), "The engine that decides who is unloaded for whom.", enum=("", *POLICIES), lenient=True
        ),
    )
    settings: RouterSettings = field(
        default=RouterSettings(), metadata=key("settings", SectionType(RouterSettings), "Settings of the engines.")
    )


@frozen
class FifoSettings:
    """First come, first served within a priority."""

    priority: Mapping[str, int] = field(
        factory=dict,
        metadata=key("priority", IntegerMapType(), "Models that go first: higher before lower, unlisted are 0."),
    )
    patience: float = field(
        default=10.0,
        metadata=key("patience", DurationType(), "How long requests for a loaded model may overtake waiting ones."),
    )
    max_queue: int = field(
        default=1000,
        metadata=key("maxQueue", IntegerType(), "Most requests that wait for one model; more get 429.", minimum=1),
    )
    max_wait: float = field(
        default=3600.0,
        metadata=key(
            "maxWait",
            DurationType(),
            "Longest a request stands in the queue behind other models; then 503. 0s: no limit.",
        ),
    )
    stalled_reader: float = field(
        default=60.0,
        metadata=key(
            "stalledReader",
            DurationType(),
            "Longest a client may read nothing of its response while another model's request waits for the room; "
            "then the response is cut. 0s: no limit.",
        ),
    )
    backoff: float = field(
        default=1.0,
        metadata=key(
            "backoff",
            DurationType(),
            "First pause for a model that failed twice in a row; doubles with each failure. 0s for no pauses.",
        ),
    )
    backoff_max: float = field(
        default=60.0, metadata=key("backoffMax", DurationType(), "Longest pause for a model that keeps failing.")
    )
    max_asleep: int = field(
        default=0,
        metadata=key(
            "maxAsleep",
            IntegerType(),
            "Most models asleep at a time, since they hold memory; who sleeps longest is stopped. 0: no limit.",
            minimum=0,
        ),
    )
    reclaim: float = field(
        default=10.0,
        metadata=key(
            "reclaim",
            DurationType(),
            "Longest a start waits to see GPU memory of an unloaded model free again. 0s not to wait.",
        ),
    )


@frozen
class SchedulerSettings:
    """Settings of the schedulers there are."""

    fifo: FifoSettings = field(
        default=FifoSettings(), metadata=key("fifo", SectionType(FifoSettings), "Settings for `use: fifo`.")
    )


@frozen
class QueueSettings:
    """Which queue discipline is used."""

    use: str = field(
        default="fifo", metadata=key("use", TextType(), "The queue discipline.", enum=("", *SCHEDULERS), lenient=True)
    )
    settings: SchedulerSettings = field(
        default=SchedulerSettings(),
        metadata=key("settings", SectionType(SchedulerSettings), "Settings of the queue discipline."),
    )


@frozen
class Routing:
    """Who runs, who waits."""

    router: EvictionSettings = field(
        default=EvictionSettings(), metadata=key("router", SectionType(EvictionSettings), "Who is unloaded for whom.")
    )
    scheduler: QueueSettings = field(
        default=QueueSettings(), metadata=key("scheduler", SectionType(QueueSettings), "Who is served first.")
    )


# -- names that stand for models ---------------------------------------------------------------------------


@frozen
class Profile:
    """A switchable set of names; a pin to "" answers 404."""

    description: str = field(default="", metadata=key("description", TextType(), "Shown in listings."))
    pins: Mapping[str, str] = field(
        factory=dict, metadata=key("pins", TextMapType(), "Requested name to model; empty or null switches a name off.")
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
    """Another server that offers models of its own. `auto`: its models are asked for, `models` is empty."""

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
            "Whether the accepted API key is passed to the peer: see the global forwardKey, which counts when empty.",
            enum=("", *FORWARD_KEY),
        ),
    )
    models: tuple[str, ...] = field(
        default=(), metadata=key("models", TextListType(auto=True), "Models the peer offers, or auto to ask it.")
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
