"""The frozen records of a configuration, with every default and the YAML key of each field.

Durations are float seconds, sizes say their unit. Values are resolved: a model's `ttl` has the global one
folded in, `routing` is filled whichever spelling the file used. Knows nothing of YAML, files or time. Those of
a model and of routing are in other files, and are imported from here. The file is long because it is the table of all
keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from llamaswap.config.field_types import (
    BooleanType,
    DurationType,
    IntegerType,
    MacrosType,
    PatternsType,
    SecondsType,
    SectionMapType,
    SectionType,
    TextListType,
    TextType,
    key,
)
from llamaswap.config.patterns import PathPattern
from llamaswap.config.policies import RouterSettings
from llamaswap.config.policies.groups import DEFAULT_GROUP, Group
from llamaswap.config.policies.matrix import Matrix
from llamaswap.config.schema.model import (
    COMFYUI_MODEL,
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
    HangDetection,
    Model,
    Scalar,
    SlotSettings,
    SuspendSettings,
    Timeouts,
)
from llamaswap.config.schema.routing import (
    SCHEDULERS,
    STRATEGIES,
    EvictionSettings,
    FifoSettings,
    Peer,
    Profile,
    QueueSettings,
    Routing,
    SchedulerSettings,
    Selector,
    SelectorSettings,
)

if TYPE_CHECKING:
    from llamaswap.config.lookup import NameIndex
from llamaswap.config.secret import Secret

__all__ = [
    "COMFYUI_MODEL",
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
    "SCHEDULERS",
    "SIGNS",
    "STRATEGIES",
    "SUPERSEDE",
    "USE_GLOBAL_TTL",
    "ActivitySettings",
    "Capabilities",
    "Compat",
    "Config",
    "EvictionSettings",
    "FifoSettings",
    "Filters",
    "Group",
    "HangDetection",
    "HookSettings",
    "LogFileSettings",
    "Matrix",
    "Model",
    "OnStartup",
    "Peer",
    "PerformanceSettings",
    "Profile",
    "QueueSettings",
    "RouterSettings",
    "Routing",
    "Scalar",
    "SchedulerSettings",
    "Secret",
    "Selector",
    "SelectorSettings",
    "SlotSettings",
    "StoreSettings",
    "SuspendSettings",
    "Timeouts",
    "UiSettings",
    "UpstreamSettings",
    "json_schema",
]

MINIMUM_HEALTH_CHECK_TIMEOUT = 15.0
MINIMUM_PERFORMANCE_EVERY = 5.0
DEFAULT_IGNORE_PATHS = (r".*\.(js|json|css|png|gif|jpg|jpeg|ico|txt)$",)
LOG_LEVELS = ("debug", "info", "warn", "error")
LOG_TARGETS = ("proxy", "upstream", "both", "none")
LOG_TIME_FORMATS = (
    *("ansic", "unixdate", "rubydate", "rfc822", "rfc822z", "rfc850", "rfc1123", "rfc1123z"),
    *("rfc3339", "rfc3339nano", "kitchen", "stamp", "stampmilli", "stampmicro", "stampnano"),
)


@frozen
class StoreSettings:
    """The file that keeps activity over restarts."""

    path: str = field(default="", metadata=key("path", TextType(), "File of the activity store."))


@frozen
class LogFileSettings:
    """Logs in files: llamaswap.log and model-ID.log, rotated by size."""

    folder: str = field(
        default="", metadata=key("folder", TextType(), "Folder of the files, created if missing; empty for no files.")
    )
    size: int = field(
        default=10, metadata=key("size", IntegerType(), "MiB after which a file is rotated to NAME.1.", minimum=1)
    )
    keep: int = field(default=5, metadata=key("keep", IntegerType(), "Rotated files kept of each log.", minimum=0))


@frozen
class ActivitySettings:
    """What the activity list shows."""

    session_id: tuple[str, ...] = field(
        default=("X-Session-ID", "X-Litellm-Session-Id"),
        metadata=key(
            "session_id", TextListType(), "Request headers that name a session; the first one present is used."
        ),
    )


@frozen
class UiSettings:
    """Settings of the web UI."""

    activity: ActivitySettings = field(
        default=ActivitySettings(),
        metadata=key("activity", SectionType(ActivitySettings), "What the activity list shows."),
    )


@frozen
class PerformanceSettings:
    """Monitoring of the machine."""

    disabled: bool = field(default=False, metadata=key("disabled", BooleanType(), "Do not monitor the machine."))
    every: float = field(
        default=5.0, metadata=key("every", DurationType(), "Time between two readings, at least 5s.", example="15s")
    )


@frozen
class OnStartup:
    """What happens after the start of the service."""

    preload: tuple[str, ...] = field(
        default=(),
        metadata=key("preload", TextListType(), "Models to load, in this order; a group or a tag loads its members."),
    )


@frozen
class HookSettings:
    """Commands and URLs that are run at certain events."""

    on_startup: OnStartup = field(
        default=OnStartup(), metadata=key("on_startup", SectionType(OnStartup), "After the start of the service.")
    )
    before_load: tuple[str, ...] = field(
        default=(),
        metadata=key("before_load", TextListType(), "Commands or URLs before a model is started."),
    )
    after_ready: tuple[str, ...] = field(
        default=(), metadata=key("after_ready", TextListType(), "Commands or URLs after a model became ready.")
    )
    before_unload: tuple[str, ...] = field(
        default=(),
        metadata=key("before_unload", TextListType(), "Commands or URLs before a model is stopped."),
    )
    after_unload: tuple[str, ...] = field(
        default=(), metadata=key("after_unload", TextListType(), "Commands or URLs after a model's server ended.")
    )
    on_failure: tuple[str, ...] = field(
        default=(), metadata=key("on_failure", TextListType(), "Commands or URLs after a load failed.")
    )
    timeout: float = field(
        default=10.0, metadata=key("timeout", DurationType(), "Maximum time of each command or URL.")
    )


@frozen
class UpstreamSettings:
    """Rules for /upstream/MODEL/... requests."""

    ignore_paths: tuple[PathPattern, ...] = field(
        default=tuple(PathPattern(text) for text in DEFAULT_IGNORE_PATHS),
        metadata=key(
            "ignorePaths",
            PatternsType(),
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
            "healthCheckTimeout",
            SecondsType(),
            "Seconds a starting server may go without progress before it fails; raised to 15 if less.",
        ),
    )
    log_requests: bool = field(
        default=False, metadata=key("logRequests", BooleanType(), "Accepted for compatibility, without effect.")
    )
    log_level: str = field(
        default="info", metadata=key("logLevel", TextType(), "Lowest level that is logged.", known=LOG_LEVELS)
    )
    log_time_format: str = field(
        default="",
        metadata=key("logTimeFormat", TextType(), "Time before each log line; empty for none.", known=LOG_TIME_FORMATS),
    )
    log_to_stdout: str = field(
        default="proxy", metadata=key("logToStdout", TextType(), "Which logs go to standard output.", enum=LOG_TARGETS)
    )
    log_files: LogFileSettings = field(
        default=LogFileSettings(),
        metadata=key("logFiles", SectionType(LogFileSettings), "Write logs to files as well, one per model."),
    )
    metrics_max_in_memory: int = field(
        default=1000, metadata=key("metricsMaxInMemory", IntegerType(), "Requests kept in memory without a store.")
    )
    capture_buffer: int = field(
        default=5, metadata=key("captureBuffer", IntegerType(), "MiB of request captures kept in memory; 0 for none.")
    )
    store: StoreSettings | None = field(
        default=None,
        metadata=key(
            "store", SectionType(StoreSettings), "Keep activity over restarts; if unset it is kept in memory."
        ),
    )
    ui: UiSettings = field(default=UiSettings(), metadata=key("ui", SectionType(UiSettings), "Settings of the web UI."))
    performance: PerformanceSettings = field(
        default=PerformanceSettings(),
        metadata=key("performance", SectionType(PerformanceSettings), "Monitoring of the machine."),
    )
    global_ttl: int = field(
        default=0,
        metadata=key("globalTTL", IntegerType(), "Idle seconds before any model is unloaded; 0 never.", minimum=0),
    )
    unload_timeout: float = field(
        default=10.0,
        metadata=key(
            "unloadTimeout", SecondsType(), "Seconds a server may take to stop before it is killed.", minimum=0
        ),
    )
    drain_timeout: float = field(
        default=30.0,
        metadata=key(
            "drainTimeout",
            SecondsType(),
            "Seconds that running requests may take when the service stops; 0 ends them at once.",
            minimum=0,
        ),
    )
    start_port: int = field(
        default=5800, metadata=key("startPort", IntegerType(), "First port for ${PORT}.", minimum=1)
    )
    send_loading_state: bool = field(
        default=False,
        metadata=key("sendLoadingState", BooleanType(), "Stream progress as reasoning text while a model loads."),
    )
    include_aliases_in_list: bool = field(
        default=False, metadata=key("includeAliasesInList", BooleanType(), "List aliases as separate models.")
    )
    api_keys: tuple[Secret, ...] = field(
        default=(),
        metadata=key(
            "apiKeys",
            TextListType(secret=True, strict=True),
            "Keys of which clients must present one; empty for no authentication.",
        ),
    )
    allowed_hosts: tuple[str, ...] = field(
        default=(),
        metadata=key(
            "allowedHosts",
            TextListType(),
            "Host names under which browsers may change settings and models, besides IP addresses, localhost and the "
            "machine's name; `*` for any name.",
        ),
    )
    forward_key: str = field(
        default="auto",
        metadata=key(
            "forwardKey",
            TextType(),
            "Whether the API key of an accepted client is passed on: `auto` to servers whose command or environment "
            "contains it and to peers without apiKey, `always`, or `never`.",
            enum=FORWARD_KEY,
        ),
    )
    env_policy: str = field(
        default="inherit",
        metadata=key(
            "envPolicy",
            TextType(),
            "Environment variables of llamaswap that servers get: `inherit` all, `clean` those of a fixed list.",
            enum=("", *ENV_POLICIES),
        ),
    )
    macros: Mapping[str, Scalar] = field(
        factory=dict, repr=False, metadata=key("macros", MacrosType(), "Names for repeated text, used as ${NAME}.")
    )
    models: Mapping[str, Model] = field(
        factory=dict, metadata=key("models", SectionMapType(Model, named=True, one="MODEL"), "The local models.")
    )
    groups: Mapping[str, Group] | None = field(
        default=None,
        metadata=key("groups", SectionMapType(Group, one="GROUP"), "Older place of routing.router.settings.groups."),
    )
    matrix: Matrix | None = field(
        default=None, metadata=key("matrix", SectionType(Matrix), "Older place of routing.router.settings.matrix.")
    )
    routing: Routing = field(
        default=Routing(),
        metadata=key(
            "routing", SectionType(Routing), "Which models are unloaded, and which requests are served first."
        ),
    )
    profiles: Mapping[str, Profile] = field(
        factory=dict,
        metadata=key(
            "profiles",
            SectionMapType(
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
            "selectors", SectionMapType(Selector, named=True, one="SELECTOR"), "Names that choose among several models."
        ),
    )
    hooks: HookSettings = field(
        default=HookSettings(),
        metadata=key("hooks", SectionType(HookSettings), "Commands and URLs that are run at certain events."),
    )
    peers: Mapping[str, Peer] = field(
        factory=dict,
        metadata=key("peers", SectionMapType(Peer, named=True, one="PEER"), "Other servers and the models they offer."),
    )
    upstream: UpstreamSettings = field(
        default=UpstreamSettings(),
        metadata=key("upstream", SectionType(UpstreamSettings), "Rules for /upstream/MODEL/... requests."),
    )
    _names: NameIndex = field(init=False, eq=False, repr=False)

    @_names.default
    def _index_names(self) -> NameIndex:
        from llamaswap.config.lookup import NameIndex

        groups = self.routing.router.settings.groups or {}
        return NameIndex.of(self.models, self.peers, tuple(self.selectors), groups)

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
        """The local model's ID, or `name` if a peer offers it."""
        return self._names.base(name)

    def members(self, name: str) -> tuple[str, ...]:
        """The models that a group, or else a tag, of this name stands for; empty if there is neither."""
        return self._names.sets.get(name, ())

    def split_path(self, segments: Sequence[str]) -> tuple[str, int] | None:
        """(name, segments used) of the longest leading run that names a model; empty segments are skipped."""
        return self._names.split_path(segments)


def json_schema() -> dict[str, Any]:
    """The JSON schema of a configuration file, for editors; made from the records above."""
    from llamaswap.config.jsonschema import describe

    return describe(Config)
