"""The frozen records a configuration becomes, with every default and the YAML key each field is read from.

Durations are float seconds, sizes say their unit. Values are resolved: a model's `ttl` has the global one
folded in, `routing` is filled whichever spelling the file used. Knows nothing of YAML, files or time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import Factory, field, frozen

from llamaswap.config.endpoints import Endpoint
from llamaswap.config.keys import (
    Boolean,
    Duration,
    Free,
    FreeMaps,
    Integer,
    IntegerMap,
    Macros,
    Patterns,
    Seconds,
    Section,
    SectionMap,
    Text,
    TextMap,
    TextPairs,
    Texts,
    key,
)
from llamaswap.config.patterns import PathPattern

if TYPE_CHECKING:
    from llamaswap.config.lookup import Names

Scalar = str | int | float | bool

DEFAULT_PROXY = "http://localhost:${PORT}"
WINDOWS_CMD_STOP = "taskkill /f /t /pid ${PID}"
USE_GLOBAL_TTL = -1
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
MODALITIES = ("text", "audio", "image")
SIGNS = ("cpu", "gpu", "log", "health")
SUPERSEDE = ("", "session", "client")
STRATEGIES = ("warm", "pin", "spillover", "failover")
ROUTERS = ("group", "matrix")
SCHEDULERS = ("fifo",)


@frozen
class Secret:
    """A text that must not reach a log: ask for `value` where it is used, print anything else."""

    value: str = field(repr=lambda _: "***")

    def __str__(self) -> str:
        return "***"


# -- what models and peers share ---------------------------------------------------------------------------


@frozen
class Filters:
    """Changes made to a request's parameters: ready to apply, in ascending key order, never touching `model`."""

    strip_params_text: str = field(
        default="",
        metadata=key(
            "stripParams",
            Text(),
            "Comma-separated request parameters to remove before forwarding.",
            synonyms=("strip_params",),
        ),
    )
    set_params: Mapping[str, Any] = field(
        factory=dict, metadata=key("setParams", Free(), "Request parameters to set, replacing what the client sent.")
    )
    set_params_by_id: Mapping[str, Mapping[str, Any]] = field(
        factory=dict,
        metadata=key(
            "setParamsByID",
            FreeMaps(),
            "Parameters to set when the request named the model by this ID; each ID becomes an alias.",
        ),
    )
    strip_params: tuple[str, ...] = ()


@frozen
class Timeouts:
    """Limits on the connection to a server, in seconds; 0 switches one off."""

    connect: float = field(default=30.0, metadata=key("connect", Seconds(), "To connect (seconds, 0 = no limit)."))
    keepalive: float = field(
        default=30.0, metadata=key("keepalive", Seconds(), "Between TCP keep-alive probes (seconds, 0 = off).")
    )
    response_header: float = field(
        default=0.0,
        metadata=key("responseHeader", Seconds(), "Until the head of the answer arrives (seconds, 0 = no limit)."),
    )
    tls_handshake: float = field(
        default=10.0, metadata=key("tlsHandshake", Seconds(), "For the TLS handshake (seconds, 0 = no limit).")
    )
    expect_continue: float = field(
        default=1.0,
        metadata=key("expectContinue", Seconds(), "To wait for 100 Continue before the body goes (seconds)."),
    )
    idle_conn: float = field(
        default=90.0, metadata=key("idleConn", Seconds(), "To keep an unused connection (seconds, 0 = no limit).")
    )


# -- models ------------------------------------------------------------------------------------------------


@frozen
class Compat:
    """Switches for servers with habits of their own."""

    ignore_websockets: bool = field(
        default=False,
        metadata=key("ignoreWebsockets", Boolean(), "A websocket neither loads the model nor keeps it loaded."),
    )


@frozen
class Stall:
    """When a server counts as hung: its streams are silent, no sign of life is seen, and it answers nothing."""

    after: float = field(
        default=120.0,
        metadata=key(
            "after",
            Duration(),
            "Least silence of streams that were under way. 0s: never. Not watched by default where compat."
            "ignoreWebsockets is set.",
        ),
    )
    times: int = field(
        default=10,
        metadata=key("times", Integer(), "And so many times the longest pause this model came back from.", minimum=1),
    )
    canary: float = field(
        default=30.0,
        metadata=key(
            "canary",
            Duration(),
            "How long a silent server is watched for signs of life, and then a one-token request may take.",
        ),
    )
    signs: tuple[str, ...] = field(
        default=SIGNS,
        metadata=key(
            "signs",
            Texts(),
            "What counts as a sign of life: its processes use CPU time or a disk (also where nobody can know), a GPU "
            "is busy, it writes to its log, it answers checkEndpoint.",
            items_enum=SIGNS,
        ),
    )
    cpu: int = field(
        default=1,
        metadata=key("cpu", Integer(), "More CPU time than this percentage of one core is a sign of life.", minimum=0),
    )
    gpu: int = field(
        default=5,
        metadata=key("gpu", Integer(), "A GPU busier than this percentage is a sign of life.", minimum=0),
    )


@frozen
class Sleep:
    """How a server is put to sleep instead of being stopped: what it held is free, its process stays."""

    sleep: tuple[str, ...] = field(
        default=(),
        metadata=key(
            "sleep",
            Texts(single=True),
            "What puts the server to sleep: requests to it (POST /sleep?level=1) or commands, one after the other.",
        ),
    )
    wake: tuple[str, ...] = field(
        default=(), metadata=key("wake", Texts(single=True), "What wakes it up again, in the same words.")
    )
    timeout: float = field(
        default=30.0,
        metadata=key(
            "timeout", Duration(), "Longest that either may take; then the server is stopped, or started anew."
        ),
    )
    ttl: float = field(default=0.0, metadata=key("ttl", Duration(), "Stop the server after so long a sleep; 0s never."))


@frozen
class Slots:
    """What a llama.cpp server has read, kept over its stop in files of its own; needs its `--slot-save-path`."""

    save: bool = field(
        default=False,
        metadata=key("save", Boolean(), "Save what was read when the model goes, restore it when it comes back."),
    )
    timeout: float = field(
        default=5.0, metadata=key("timeout", Duration(), "Longest that a save may take, or a restore.")
    )
    max_size: int = field(
        default=2048, metadata=key("maxSize", Integer(), "Largest file in MiB that is kept, one per slot.", minimum=1)
    )


@frozen
class Capabilities:
    """What a model can do, for listings; all-zero means nothing was declared."""

    inputs: tuple[str, ...] = field(
        default=(), metadata=key("in", Texts(), "Kinds of input the model takes.", items_enum=MODALITIES)
    )
    outputs: tuple[str, ...] = field(
        default=(), metadata=key("out", Texts(), "Kinds of output the model gives.", items_enum=MODALITIES)
    )
    tools: bool = field(default=False, metadata=key("tools", Boolean(), "The model can call tools."))
    reranker: bool = field(default=False, metadata=key("reranker", Boolean(), "The model reranks documents."))
    context: int = field(default=0, metadata=key("context", Integer(), "Context length in tokens.", minimum=0))

    @property
    def empty(self) -> bool:
        return not (self.inputs or self.outputs or self.tools or self.reranker or self.context)


@frozen
class Model:
    """One local model. `endpoint` is None where `proxy` is no http(s) URL: such a model cannot start."""

    id: str
    cmd: str = field(
        default="", repr=False, metadata=key("cmd", Text(), "The command that starts the server; # lines are comments.")
    )
    cmd_stop: str = field(
        default="",
        repr=False,
        metadata=key("cmdStop", Text(), "A command that stops the server; ${PID} is its process ID. Default: SIGTERM."),
    )
    proxy: str = field(
        default="",
        metadata=key("proxy", Text(), "URL the server listens on.", default=DEFAULT_PROXY),
    )
    aliases: tuple[str, ...] = field(
        default=(), metadata=key("aliases", Texts(), "Other names that requests may use for this model.")
    )
    env: tuple[str, ...] = field(
        default=(), repr=False, metadata=key("env", Texts(), "NAME=value entries added to the server's environment.")
    )
    check_endpoint: str = field(
        default="/health",
        metadata=key("checkEndpoint", Text(), "Path that answers 200 once the server is ready; none skips the check."),
    )
    ttl: int = field(
        default=0,
        metadata=key(
            "ttl",
            Integer(),
            "Unload after so many idle seconds; 0 never, -1 takes globalTTL.",
            minimum=-1,
            default=USE_GLOBAL_TTL,
        ),
    )
    unload_timeout: float = field(
        default=10.0,
        metadata=key(
            "unloadTimeout",
            Seconds(),
            "Seconds a server may take to stop before it is killed; 0 takes the global value.",
            minimum=0,
            default=0,
        ),
    )
    unlisted: bool = field(default=False, metadata=key("unlisted", Boolean(), "Leave the model out of listings."))
    use_model_name: str = field(
        default="", metadata=key("useModelName", Text(), "The model name sent to the server instead of the ID.")
    )
    name: str = field(default="", metadata=key("name", Text(), "Name shown in listings."))
    description: str = field(default="", metadata=key("description", Text(), "Description shown in listings."))
    concurrency_limit: int = field(
        default=0,
        metadata=key(
            "concurrencyLimit", Integer(), "Most requests at one time; more get 429. 0 leaves the built-in limit."
        ),
    )
    supersede: str = field(
        default="",
        metadata=key(
            "supersede",
            Text(),
            "Whose newer request takes the place of an older one that still waits (it gets 410): `session`, known by "
            "the headers in ui.activity.session_id, or `client`, by address, key and User-Agent too.",
            enum=SUPERSEDE,
        ),
    )
    filters: Filters = field(
        default=Filters(), metadata=key("filters", Section(Filters), "Changes made to the request before forwarding.")
    )
    macros: Mapping[str, Scalar] = field(
        factory=dict, repr=False, metadata=key("macros", Macros(), "Macros of this model; they hide global ones.")
    )
    metadata: Mapping[str, Any] = field(
        factory=dict, metadata=key("metadata", Free(), "Anything; shown as meta.llamaswap in /v1/models.")
    )
    send_loading_state: bool = field(
        default=False,
        metadata=key(
            "sendLoadingState",
            Boolean(optional=True),
            "Stream progress as reasoning text while the model loads; unset takes the global value.",
            default=None,
        ),
    )
    timeouts: Timeouts = field(
        default=Timeouts(), metadata=key("timeouts", Section(Timeouts), "Limits on connections to the server.")
    )
    compat: Compat = field(
        default=Compat(), metadata=key("compat", Section(Compat), "Switches for servers with habits of their own.")
    )
    stall: Stall = field(
        default=Stall(), metadata=key("stall", Section(Stall), "When a server counts as hung and is restarted.")
    )
    sleep: Sleep = field(
        default=Sleep(),
        metadata=key("sleep", Section(Sleep), "Put the server to sleep instead of stopping it when others need room."),
    )
    slots: Slots = field(
        default=Slots(),
        metadata=key("slots", Section(Slots), "Keep what a llama.cpp server has read over swaps, if that is quicker."),
    )
    capabilities: Capabilities = field(
        default=Capabilities(),
        metadata=key("capabilities", Section(Capabilities), "What the model can do, for listings."),
    )
    health_check_timeout: float = field(
        default=120.0,
        metadata=key("healthCheckTimeout", Seconds(), "Accepted for compatibility: the global value is used."),
    )
    endpoint: Endpoint | None = None
    port: int | None = None
    _rebuild: Callable[[int], Model] | None = field(default=None, eq=False, repr=False)

    def with_port(self, port: int) -> Model:
        """This model with another PORT wherever ${PORT} stood; itself where the model uses none."""
        if self.port is None or self.port == port or self._rebuild is None:
            return self
        return self._rebuild(port)


# -- routing -----------------------------------------------------------------------------------------------


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


# -- the rest ----------------------------------------------------------------------------------------------


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
