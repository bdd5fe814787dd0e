"""The records of who runs beside whom, and of names that stand for models. See `schema`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import Factory, field, frozen

from llamaswap.config.endpoints import Endpoint
from llamaswap.config.keys import (
    Boolean,
    Duration,
    Free,
    Integer,
    IntegerMap,
    Section,
    SectionMap,
    Text,
    TextMap,
    TextPairs,
    Texts,
    key,
)
from llamaswap.config.modelrecords import FORWARD_KEY, Filters, Secret, Timeouts

STRATEGIES = ("warm", "pin", "spillover", "failover")
ROUTERS = ("group", "matrix")
SCHEDULERS = ("fifo",)


@frozen
class Group:
    """Models that share a rule about who may run beside whom."""

    swap: bool = field(default=True, metadata=key("swap", Boolean(), "Only one member runs at a time."))
    exclusive: bool = field(
        default=True, metadata=key("exclusive", Boolean(), "Loading a member unloads models of other groups.")
    )
    persistent: bool = field(
        default=False, metadata=key("persistent", Boolean(), "Other groups cannot unload this group's members.")
    )
    members: tuple[str, ...] = field(default=(), metadata=key("members", Texts(), "Model IDs in the group."))


@frozen
class Matrix:
    """Sets of models that may run together. `program` is the compiled `sets`, `costs` has variables resolved."""

    vars: Mapping[str, str] = field(factory=dict, metadata=key("vars", TextMap(), "Short names for model IDs."))
    evict_costs: Mapping[str, int] = field(
        factory=dict,
        metadata=key(
            "evict_costs", IntegerMap(), "What unloading a model costs; unlisted models cost 1.", values_minimum=1
        ),
    )
    sets: tuple[tuple[str, str], ...] = field(
        default=(), metadata=key("sets", TextPairs(), "Named expressions of models that may run together.")
    )
    costs: Mapping[str, int] = Factory(dict)
    program: Any = field(default=None, eq=False, repr=False)


@frozen
class RouterSettings:
    """The settings of the engine in use; the other's is None."""

    groups: Mapping[str, Group] | None = field(
        default=None, metadata=key("groups", SectionMap(Group, one="GROUP"), "Groups for `use: group`.")
    )
    matrix: Matrix | None = field(
        default=None, metadata=key("matrix", Section(Matrix), "The matrix for `use: matrix`.")
    )


@frozen
class Router:
    """Which engine decides who is evicted."""

    use: str = field(
        default="group",
        metadata=key("use", Text(), "The engine that decides who is unloaded for whom.", enum=("", *ROUTERS)),
    )
    settings: RouterSettings = field(
        default=RouterSettings(), metadata=key("settings", Section(RouterSettings), "Settings of the engines.")
    )


@frozen
class Fifo:
    """First come, first served within a priority."""

    priority: Mapping[str, int] = field(
        factory=dict,
        metadata=key("priority", IntegerMap(), "Models that go first: higher before lower, unlisted are 0."),
    )
    patience: float = field(
        default=10.0,
        metadata=key("patience", Duration(), "How long requests for a loaded model may overtake waiting ones."),
    )
    max_queue: int = field(
        default=1000,
        metadata=key("maxQueue", Integer(), "Most requests that wait for one model; more get 429.", minimum=1),
    )
    max_wait: float = field(
        default=3600.0,
        metadata=key(
            "maxWait", Duration(), "Longest a request stands in the queue behind other models; then 503. 0s: no limit."
        ),
    )
    stalled_reader: float = field(
        default=60.0,
        metadata=key(
            "stalledReader",
            Duration(),
            "Longest a client may read nothing of its response while another model's request waits for the room; "
            "then the response is cut. 0s: no limit.",
        ),
    )
    backoff: float = field(
        default=1.0,
        metadata=key(
            "backoff",
            Duration(),
            "First pause for a model that failed twice in a row; doubles with each failure. 0s for no pauses.",
        ),
    )
    backoff_max: float = field(
        default=60.0, metadata=key("backoffMax", Duration(), "Longest pause for a model that keeps failing.")
    )
    max_asleep: int = field(
        default=0,
        metadata=key(
            "maxAsleep",
            Integer(),
            "Most models asleep at a time, since they hold memory; who sleeps longest is stopped. 0: no limit.",
            minimum=0,
        ),
    )
    reclaim: float = field(
        default=10.0,
        metadata=key(
            "reclaim",
            Duration(),
            "Longest a start waits to see GPU memory of an unloaded model free again. 0s not to wait.",
        ),
    )


@frozen
class SchedulerSettings:
    """Settings of the schedulers there are."""

    fifo: Fifo = field(default=Fifo(), metadata=key("fifo", Section(Fifo), "Settings for `use: fifo`."))


@frozen
class Scheduler:
    """Which queue discipline is used."""

    use: str = field(default="fifo", metadata=key("use", Text(), "The queue discipline.", enum=("", *SCHEDULERS)))
    settings: SchedulerSettings = field(
        default=SchedulerSettings(),
        metadata=key("settings", Section(SchedulerSettings), "Settings of the queue discipline."),
    )


@frozen
class Routing:
    """Who runs, who waits."""

    router: Router = field(default=Router(), metadata=key("router", Section(Router), "Who is unloaded for whom."))
    scheduler: Scheduler = field(
        default=Scheduler(), metadata=key("scheduler", Section(Scheduler), "Who is served first.")
    )


# -- names that stand for models ---------------------------------------------------------------------------


@frozen
class Profile:
    """A switchable set of names; a pin to "" answers 404."""

    description: str = field(default="", metadata=key("description", Text(), "Shown in listings."))
    pins: Mapping[str, str] = field(
        factory=dict, metadata=key("pins", TextMap(), "Requested name to model; empty or null switches a name off.")
    )


@frozen
class SelectorSettings:
    """Settings of a selector's strategy."""

    spillover: int = field(
        default=1,
        metadata=key(
            "spillover", Integer(), "Requests a loaded target takes before the next one is loaded.", minimum=1
        ),
    )


@frozen
class Selector:
    """A name whose requests go to one of several targets."""

    id: str
    strategy: str = field(default="", metadata=key("strategy", Text(), "How a target is chosen.", enum=STRATEGIES))
    targets: tuple[str, ...] = field(default=(), metadata=key("targets", Texts(), "Models or peers' models, in order."))
    settings: SelectorSettings = field(
        default=SelectorSettings(), metadata=key("settings", Section(SelectorSettings), "Settings of the strategy.")
    )
    name: str = field(default="", metadata=key("name", Text(), "Name shown in listings."))
    description: str = field(default="", metadata=key("description", Text(), "Description shown in listings."))
    unlisted: bool = field(default=False, metadata=key("unlisted", Boolean(), "Leave the selector out of listings."))
    metadata: Mapping[str, Any] = field(factory=dict, metadata=key("metadata", Free(), "Anything; shown in listings."))

    @property
    def spillover(self) -> int:
        return self.settings.spillover


@frozen
class Peer:
    """Another server that offers models of its own. `auto`: its models are asked for, `models` is empty."""

    id: str
    proxy: str = field(default="", metadata=key("proxy", Text(), "Base URL of the peer."))
    api_key: Secret | None = field(
        default=None, metadata=key("apiKey", Text(secret=True), "Key sent to the peer as Bearer token and x-api-key.")
    )
    forward_key: str = field(
        default="",
        metadata=key(
            "forwardKey",
            Text(),
            "Whether the accepted API key is passed to the peer: see the global forwardKey, which counts when empty.",
            enum=("", *FORWARD_KEY),
        ),
    )
    models: tuple[str, ...] = field(
        default=(), metadata=key("models", Texts(auto=True), "Models the peer offers, or auto to ask it.")
    )
    filters: Filters = field(
        default=Filters(),
        metadata=key("filters", Section(Filters, synonyms=False), "Changes made to the request before forwarding."),
    )
    timeouts: Timeouts = field(
        # A peer may have to load the model first, but a dead one must be noticed.
        default=Timeouts(response_header=60.0),
        metadata=key("timeouts", Section(Timeouts), "Limits on connections to the peer."),
    )
    endpoint: Endpoint | None = None
    auto: bool = False
