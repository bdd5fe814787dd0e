"""The frozen records a configuration becomes, with every default and the YAML key each field is read from.

Durations are float seconds, sizes say their unit. Values are resolved: a model's `ttl` has the global one
folded in, `routing` is filled whichever spelling the file used. Knows nothing of YAML, files or time. Those of
a model and of routing are files of their own; they are imported from here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from llamaswap.config.keys import (
    Boolean,
    Duration,
    Integer,
    Macros,
    Patterns,
    Seconds,
    Section,
    SectionMap,
    Text,
    Texts,
    key,
)
from llamaswap.config.modelrecords import (
    DEFAULT_PROXY,
    ENV_POLICIES,
    FORWARD_KEY,
    MODALITIES,
    SIGNS,
    SUPERSEDE,
    USE_GLOBAL_TTL,
    Capabilities,
    Compat,
    Filters,
    Model,
    Scalar,
    Secret,
    Sleep,
    Slots,
    Stall,
    Timeouts,
)
from llamaswap.config.patterns import PathPattern
from llamaswap.config.routerecords import (
    ROUTERS,
    SCHEDULERS,
    STRATEGIES,
    Fifo,
    Group,
    Matrix,
    Peer,
    Profile,
    Router,
    RouterSettings,
    Routing,
    Scheduler,
    SchedulerSettings,
    Selector,
    SelectorSettings,
)

if TYPE_CHECKING:
    from llamaswap.config.lookup import Names

__all__ = [
    "DEFAULT_GROUP",
    "DEFAULT_IGNORE_PATHS",
    "DEFAULT_PROXY",
    "ENV_POLICIES",
    "FORWARD_KEY",
    "LOG_LEVELS",
    "LOG_TARGETS",
    "LOG_TIME_FORMATS",
    "MINIMUM_HEALTH_CHECK_TIMEOUT",
    "MINIMUM_PERFORMANCE_EVERY",
    "MODALITIES",
    "ROUTERS",
    "SCHEDULERS",
    "SIGNS",
    "STRATEGIES",
    "SUPERSEDE",
    "USE_GLOBAL_TTL",
    "Activity",
    "Capabilities",
    "Compat",
    "Config",
    "Fifo",
    "Filters",
    "Group",
    "Hooks",
    "LogFiles",
    "Matrix",
    "Model",
    "OnStartup",
    "Peer",
    "Performance",
    "Profile",
    "Router",
    "RouterSettings",
    "Routing",
    "Scalar",
    "Scheduler",
    "SchedulerSettings",
    "Secret",
    "Selector",
    "SelectorSettings",
    "Sleep",
    "Slots",
    "Stall",
    "Store",
    "Timeouts",
    "Ui",
    "Upstream",
    "json_schema",
]

MINIMUM_HEALTH_CHECK_TIMEOUT = 15.0
MINIMUM_PERFORMANCE_EVERY = 5.0
DEFAULT_GROUP = "(default)"
DEFAULT_IGNORE_PATHS = (r".*\.(js|json|css|png|gif|jpg|jpeg|ico|txt)$",)
LOG_LEVELS = ("debug", "info", "warn", "error")
LOG_TARGETS = ("proxy", "upstream", "both", "none")
LOG_TIME_FORMATS = (
    *("ansic", "unixdate", "rubydate", "rfc822", "rfc822z", "rfc850", "rfc1123", "rfc1123z"),
    *("rfc3339", "rfc3339nano", "kitchen", "stamp", "stampmilli", "stampmicro", "stampnano"),
)


@frozen
class Store:
    """Where activity is kept over restarts."""

    path: str = field(default="", metadata=key("path", Text(), "File of the activity store."))


@frozen
class LogFiles:
    """Logs in files, llamaswap.log and model-ID.log, rotated without another program."""

    folder: str = field(
        default="", metadata=key("folder", Text(), "Folder of the files, made where it is missing; empty for none.")
    )
    size: int = field(
        default=10, metadata=key("size", Integer(), "MiB after which a file is put aside as NAME.1.", minimum=1)
    )
    keep: int = field(
        default=5, metadata=key("keep", Integer(), "How many files put aside are kept of each log.", minimum=0)
    )


@frozen
class Activity:
    """What the activity list shows."""

    session_id: tuple[str, ...] = field(
        default=("X-Session-ID", "X-Litellm-Session-Id"),
        metadata=key("session_id", Texts(), "Request headers that name a session; the first present one counts."),
    )


@frozen
class Ui:
    """Settings of the web UI."""

    activity: Activity = field(
        default=Activity(), metadata=key("activity", Section(Activity), "What the activity list shows.")
    )


@frozen
class Performance:
    """The machine's readings."""

    disabled: bool = field(default=False, metadata=key("disabled", Boolean(), "Take no readings of the machine."))
    every: float = field(
        default=5.0, metadata=key("every", Duration(), "Time between readings, at least 5s.", example="15s")
    )


@frozen
class OnStartup:
    """What happens when the service has started."""

    preload: tuple[str, ...] = field(default=(), metadata=key("preload", Texts(), "Models to load, in this order."))


@frozen
class Hooks:
    """What happens at certain moments."""

    on_startup: OnStartup = field(
        default=OnStartup(), metadata=key("on_startup", Section(OnStartup), "When the service has started.")
    )
    before_load: tuple[str, ...] = field(
        default=(), metadata=key("before_load", Texts(), "Commands or URLs to be done before a model is started.")
    )
    after_ready: tuple[str, ...] = field(
        default=(), metadata=key("after_ready", Texts(), "Commands or URLs for when a model has become ready.")
    )
    before_unload: tuple[str, ...] = field(
        default=(), metadata=key("before_unload", Texts(), "Commands or URLs to be done before a model is stopped.")
    )
    after_unload: tuple[str, ...] = field(
        default=(), metadata=key("after_unload", Texts(), "Commands or URLs for when a model's server has gone.")
    )
    on_failure: tuple[str, ...] = field(
        default=(), metadata=key("on_failure", Texts(), "Commands or URLs for when a model could not be loaded.")
    )
    timeout: float = field(
        default=10.0, metadata=key("timeout", Duration(), "Time each of the commands and URLs may take.")
    )


@frozen
class Upstream:
    """Rules for /upstream/MODEL/... requests."""

    ignore_paths: tuple[PathPattern, ...] = field(
        default=tuple(PathPattern(text) for text in DEFAULT_IGNORE_PATHS),
        metadata=key(
            "ignorePaths",
            Patterns(),
            "Regular expressions (RE2) of paths that never load a model; requests for them get 409 instead.",
            default=DEFAULT_IGNORE_PATHS,
        ),
    )


@frozen
class Config:
    """A whole configuration, resolved and checked. Lookups by name are methods."""

    health_check_timeout: float = field(
        default=120.0,
        metadata=key(
            "healthCheckTimeout", Seconds(), "Seconds a server may take to become ready; raised to 15 if less."
        ),
    )
    log_requests: bool = field(
        default=False, metadata=key("logRequests", Boolean(), "Accepted for compatibility, without effect.")
    )
    log_level: str = field(default="info", metadata=key("logLevel", Text(), "Least level logged.", known=LOG_LEVELS))
    log_time_format: str = field(
        default="",
        metadata=key("logTimeFormat", Text(), "Time before each log line; empty for none.", known=LOG_TIME_FORMATS),
    )
    log_to_stdout: str = field(
        default="proxy", metadata=key("logToStdout", Text(), "Which logs go to standard output.", enum=LOG_TARGETS)
    )
    log_files: LogFiles = field(
        default=LogFiles(), metadata=key("logFiles", Section(LogFiles), "Write logs to files as well, one per model.")
    )
    metrics_max_in_memory: int = field(
        default=1000, metadata=key("metricsMaxInMemory", Integer(), "Requests remembered without a store.")
    )
    capture_buffer: int = field(
        default=5, metadata=key("captureBuffer", Integer(), "MiB of request captures kept in memory; 0 for none.")
    )
    store: Store | None = field(
        default=None, metadata=key("store", Section(Store), "Keep activity over restarts; unset keeps it in memory.")
    )
    ui: Ui = field(default=Ui(), metadata=key("ui", Section(Ui), "Settings of the web UI."))
    performance: Performance = field(
        default=Performance(), metadata=key("performance", Section(Performance), "The machine's readings.")
    )
    global_ttl: int = field(
        default=0,
        metadata=key("globalTTL", Integer(), "Idle seconds before any model is unloaded; 0 never.", minimum=0),
    )
    unload_timeout: float = field(
        default=10.0,
        metadata=key("unloadTimeout", Seconds(), "Seconds a server may take to stop before it is killed.", minimum=0),
    )
    drain_timeout: float = field(
        default=30.0,
        metadata=key(
            "drainTimeout",
            Seconds(),
            "Seconds that requests under way may take when the service ends; 0 ends them at once.",
            minimum=0,
        ),
    )
    start_port: int = field(
        default=5800, metadata=key("startPort", Integer(), "First port handed out for ${PORT}.", minimum=1)
    )
    send_loading_state: bool = field(
        default=False,
        metadata=key("sendLoadingState", Boolean(), "Stream progress as reasoning text while a model loads."),
    )
    include_aliases_in_list: bool = field(
        default=False, metadata=key("includeAliasesInList", Boolean(), "List aliases as models of their own.")
    )
    api_keys: tuple[Secret, ...] = field(
        default=(),
        metadata=key("apiKeys", Texts(secret=True, strict=True), "Keys that clients must present; empty asks none."),
    )
    forward_key: str = field(
        default="auto",
        metadata=key(
            "forwardKey",
            Text(),
            "Whether the API key that a client was accepted with is passed on: `auto` to servers whose command or "
            "environment holds it and to peers without apiKey, `always`, or `never`.",
            enum=FORWARD_KEY,
        ),
    )
    env_policy: str = field(
        default="inherit",
        metadata=key(
            "envPolicy",
            Text(),
            "Which environment variables of llamaswap servers get: `inherit` all, `clean` those of a fixed list.",
            enum=ENV_POLICIES,
        ),
    )
    macros: Mapping[str, Scalar] = field(
        factory=dict, repr=False, metadata=key("macros", Macros(), "Names for repeated text, used as ${NAME}.")
    )
    models: Mapping[str, Model] = field(
        factory=dict, metadata=key("models", SectionMap(Model, named=True, one="MODEL"), "The local models.")
    )
    groups: Mapping[str, Group] | None = field(
        default=None,
        metadata=key("groups", SectionMap(Group, one="GROUP"), "Older place of routing.router.settings.groups."),
    )
    matrix: Matrix | None = field(
        default=None, metadata=key("matrix", Section(Matrix), "Older place of routing.router.settings.matrix.")
    )
    routing: Routing = field(
        default=Routing(), metadata=key("routing", Section(Routing), "Who is unloaded, who is served first.")
    )
    profiles: Mapping[str, Profile] = field(
        factory=dict,
        metadata=key(
            "profiles",
            SectionMap(
                Profile,
                one="PROFILE",
                hint="write `NAME: {description: ..., pins: {requested-name: model}}`",
            ),
            "Switchable sets of names for models.",
        ),
    )
    selectors: Mapping[str, Selector] = field(
        factory=dict,
        metadata=key(
            "selectors", SectionMap(Selector, named=True, one="SELECTOR"), "Names that choose among several models."
        ),
    )
    hooks: Hooks = field(default=Hooks(), metadata=key("hooks", Section(Hooks), "What happens at certain moments."))
    peers: Mapping[str, Peer] = field(
        factory=dict,
        metadata=key("peers", SectionMap(Peer, named=True, one="PEER"), "Other servers and the models they offer."),
    )
    upstream: Upstream = field(
        default=Upstream(), metadata=key("upstream", Section(Upstream), "Rules for /upstream/MODEL/... requests.")
    )
    _names: Names = field(init=False, eq=False, repr=False)

    @_names.default
    def _index_names(self) -> Names:
        from llamaswap.config.lookup import Names

        return Names.of(self.models, self.peers, tuple(self.selectors))

    @property
    def aliases(self) -> Mapping[str, str]:
        """Alias to model ID, explicit ones and those that setParamsByID made."""
        return self._names.aliases

    def real(self, name: str) -> str | None:
        """The local model of this ID or alias; an ID wins over an equal alias."""
        return self._names.real(name)

    def peer(self, name: str) -> tuple[str, str] | None:
        """(peer ID, its model) for PEER/MODEL, or for a bare model name that exactly one peer offers."""
        return self._names.peer(name)

    def base(self, name: str) -> str | None:
        """The local model's ID, or `name` itself where a peer offers it."""
        return self._names.base(name)

    def split_path(self, segments: Sequence[str]) -> tuple[str, int] | None:
        """(name, segments used) of the longest leading run that names a model; empty segments are skipped."""
        return self._names.split_path(segments)


def json_schema() -> dict[str, Any]:
    """The JSON schema of a configuration file, for editors; read off the records above."""
    from llamaswap.config.jsonschema import describe

    return describe(Config)
