"""The frozen records of a configuration, with every default and the YAML key of each field.

Durations are float seconds, sizes say their unit. Values are resolved: a model's `ttl` has the global one
folded in, `routing` is filled whichever spelling the file used. Knows nothing of YAML, files or time. Those of
a model are in `schema.model`, those of routing in `schema.routing`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import field, frozen

from llamaswap.config.field_types import (
    BOOLEAN,
    DURATION,
    INTEGER,
    MACROS,
    PATTERNS,
    SECONDS,
    TEXT,
    TEXT_LIST,
    TEXT_MAP,
    section,
    section_list,
    sections,
)
from llamaswap.config.patterns import PathPattern
from llamaswap.config.policies.groups import Group
from llamaswap.config.policies.matrix import Matrix
from llamaswap.config.schema.hosts import Hosts
from llamaswap.config.schema.keys import ApiKey
from llamaswap.config.schema.model import ENV_POLICIES, FORWARD_KEY, Model, Scalar
from llamaswap.config.schema.routing import Peer, Profile, Routing, Selector

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

    path: str = TEXT.key("File of the activity store.")


@frozen
class CaptureSettings:
    """Captures in files, which outlast a restart."""

    path: str = TEXT.key("Folder of the files, created if missing, for this llamaswap alone; empty for memory only.")
    max_size: int = INTEGER.key("MiB of the files together; the oldest are deleted.", default=1024, minimum=1)


@frozen
class LogFileSettings:
    """Logs in files: llamaswap.log and model-ID.log, rotated by size."""

    folder: str = TEXT.key("Folder of the files, created if missing; empty for no files.")
    size: int = INTEGER.key("MiB after which a file is rotated to NAME.1.", default=10, minimum=1)
    keep: int = INTEGER.key("Rotated files kept of each log.", default=5, minimum=0)


@frozen
class ActivitySettings:
    """What the activity list shows."""

    session_id: tuple[str, ...] = TEXT_LIST.key(
        "Request headers that name a session; the first one present is used.",
        default=("X-Session-ID", "X-Litellm-Session-Id"),
        name="session_id",
    )


@frozen
class UiSettings:
    """Settings of the web UI."""

    activity: ActivitySettings = section(ActivitySettings, "What the activity list shows.")
    mcp_servers: Mapping[str, str] = TEXT_MAP.key(
        "MCP servers whose tools the page's chat may run: names, and URLs of the streamable HTTP transport."
    )


@frozen
class OllamaSettings:
    """The Ollama API, for clients that know no other."""

    enabled: bool = BOOLEAN.key("Serve the Ollama API beside the others.", default=True)
    listen: str = TEXT.key(
        "A second address, host:port, for clients that know only Ollama's own, 127.0.0.1:11434; empty for none. It "
        "takes effect at the next start."
    )
    version: str = TEXT.key("The version that the second address reports; some clients check it.", default="0.12.0")


@frozen
class PerformanceSettings:
    """Monitoring of the machine."""

    disabled: bool = BOOLEAN.key("Do not monitor the machine.")
    every: float = DURATION.key("Time between two readings, at least 5s.", default=5.0, example="15s")


@frozen
class OnStartup:
    """What happens after the start of the service."""

    preload: tuple[str, ...] = TEXT_LIST.key("Models to load, in this order; a group or a tag loads its members.")
    profile: str = TEXT.key("The profile that is active until another one is chosen; empty for none.")


@frozen
class HookSettings:
    """Commands and URLs that are run at certain events."""

    on_startup: OnStartup = section(OnStartup, "After the start of the service.", name="on_startup")
    before_load: tuple[str, ...] = TEXT_LIST.key("Commands or URLs before a model is started.", name="before_load")
    after_ready: tuple[str, ...] = TEXT_LIST.key("Commands or URLs after a model became ready.", name="after_ready")
    before_unload: tuple[str, ...] = TEXT_LIST.key("Commands or URLs before a model is stopped.", name="before_unload")
    after_unload: tuple[str, ...] = TEXT_LIST.key("Commands or URLs after a model's server ended.", name="after_unload")
    on_failure: tuple[str, ...] = TEXT_LIST.key("Commands or URLs after a load failed.", name="on_failure")
    timeout: float = DURATION.key("Maximum time of each command or URL.", default=10.0)


@frozen
class CorsSettings:
    """Which pages of other sites may read answers."""

    allow_origins: tuple[str, ...] = TEXT_LIST.key(
        "Origins whose pages may read answers, such as https://chat.example; `*` for every origin, which may read the "
        "management API only if apiKeys is set.",
        default=("*",),
    )
    allow_headers: tuple[str, ...] = TEXT_LIST.key(
        "Request headers that these pages may send, such as Content-Type and Authorization; empty for those that the "
        "browser asks for."
    )
    max_age: float = SECONDS.key(
        "Seconds for which browsers remember the answer to a preflight.", default=86400.0, minimum=0
    )


@frozen
class SecuritySettings:
    """What browsers may do."""

    cors: CorsSettings = section(CorsSettings, "Which pages of other sites may read answers.")


@frozen
class UpstreamSettings:
    """Rules for /upstream/MODEL/... requests."""

    ignore_paths: tuple[PathPattern, ...] = PATTERNS.key(
        "Regular expressions (RE2) of paths that never load a model; requests for them get 409 instead.",
        default=tuple(PathPattern(text) for text in DEFAULT_IGNORE_PATHS),
    )


@frozen
class NameIndex:
    """The tables for the lookups of Config.

    `qualified` are the models of peers by PEER/MODEL, `bare` by their own name (None if several peers offer it) and by
    the aliases of peers. `sets` are the members of groups and tags. `replicas` choose among the servers of a model.
    """

    aliases: Mapping[str, str]
    qualified: Mapping[str, tuple[str, str]]
    bare: Mapping[str, tuple[str, str] | None]
    sets: Mapping[str, tuple[str, ...]]
    replicas: Mapping[str, Selector]

    @classmethod
    def of(
        cls,
        models: Mapping[str, Model],
        peers: Mapping[str, Peer],
        groups: Mapping[str, Group],
    ) -> NameIndex:
        aliases: dict[str, str] = {}
        tagged: dict[str, dict[str, None]] = {}
        for model in models.values():
            for alias in model.aliases:
                aliases.setdefault(alias, model.id)
            for tag in model.tags:
                tagged.setdefault(tag, {})[model.id] = None
        sets = {tag: tuple(members) for tag, members in tagged.items()}
        sets |= {name: group.members for name, group in groups.items()}
        qualified: dict[str, tuple[str, str]] = {}
        bare: dict[str, tuple[str, str] | None] = {}
        written = {name for peer in peers.values() if not peer.auto for name in peer.models}
        for peer_id in sorted(peers):
            for name in dict.fromkeys(peers[peer_id].models):
                qualified.setdefault(f"{peer_id}/{name}", (peer_id, name))
                if peers[peer_id].auto and name in written:
                    continue  # names in the configuration come before those that a peer lists
                bare[name] = None if name in bare else (peer_id, name)
        bare |= {alias: (peer.id, name) for peer in peers.values() for alias, name in peer.aliases.items()}
        copies: dict[str, list[str]] = {}
        for model in models.values():
            if model.replica_of:
                copies.setdefault(model.replica_of, [model.replica_of]).append(model.id)
        replicas = {name: Selector(name, "spillover", tuple(ids)) for name, ids in copies.items()}
        return cls(aliases, qualified, bare, sets, replicas)


@frozen
class Config:
    """A whole configuration, resolved and checked. Lookups by name are methods."""

    health_check_timeout: float = SECONDS.key(
        "Seconds a starting server may go without progress before it fails; raised to 15 if less.", default=120.0
    )
    log_requests: bool = BOOLEAN.key("Accepted for compatibility, without effect.")
    log_level: str = TEXT.key("Lowest level that is logged.", default="info", known=LOG_LEVELS)
    log_time_format: str = TEXT.key("Time before each log line; empty for none.", known=LOG_TIME_FORMATS)
    log_to_stdout: str = TEXT.key("Which logs go to standard output.", default="proxy", enum=LOG_TARGETS)
    log_files: LogFileSettings = section(LogFileSettings, "Write logs to files as well, one per model.")
    metrics_max_in_memory: int = INTEGER.key("Requests kept in memory without a store.", default=1000)
    capture_buffer: int = INTEGER.key("MiB of request captures kept in memory; 0 for none.", default=5)
    captures: CaptureSettings = section(CaptureSettings, "Keep captures in files as well, unless captureBuffer is 0.")
    store: StoreSettings | None = section(
        StoreSettings, "Keep activity over restarts; if unset it is kept in memory.", default=None
    )
    ui: UiSettings = section(UiSettings, "Settings of the web UI.")
    performance: PerformanceSettings = section(PerformanceSettings, "Monitoring of the machine.")
    ollama: OllamaSettings = section(OllamaSettings, "The Ollama API.")
    global_ttl: int = INTEGER.key("Idle seconds before any model is unloaded; 0 never.", name="globalTTL", minimum=0)
    unload_timeout: float = SECONDS.key(
        "Seconds a server may take to stop before it is killed.", default=10.0, minimum=0
    )
    drain_timeout: float = SECONDS.key(
        "Seconds that running requests may take when the service stops; 0 ends them at once.", default=30.0, minimum=0
    )
    start_port: int = INTEGER.key("First port for ${PORT}.", default=5800, minimum=1)
    send_loading_state: bool = BOOLEAN.key("Stream progress as reasoning text while a model loads.")
    wait_notices: float = DURATION.key(
        "How long a streaming request waits for its model before its client gets notices of the queue and of the load "
        "in the stream, at most one a second; 0s: never.",
        default=2.0,
    )
    include_aliases_in_list: bool = BOOLEAN.key("List aliases as separate models.")
    api_keys: tuple[ApiKey, ...] = section_list(
        ApiKey,
        "Keys of which clients must present one: texts, or mappings with the keys below; empty for no authentication.",
        shorthand="key",
    )
    allowed_hosts: tuple[str, ...] = TEXT_LIST.key(
        "Host names under which settings and models may be changed, besides IP addresses, localhost and the machine's "
        "name; `*` for any name. If it is set and apiKeys is not, the management API is read under these names only."
    )
    security: SecuritySettings = section(SecuritySettings, "What browsers may do.")
    forward_key: str = TEXT.key(
        "Whether the API key of an accepted client is passed on: `auto` to servers whose command or environment "
        "contains it and to peers without apiKey, `always`, or `never`.",
        default="auto",
        enum=FORWARD_KEY,
    )
    env_policy: str = TEXT.key(
        "Environment variables of llamaswap that servers get: `inherit` all, `clean` those of a fixed list.",
        default="inherit",
        enum=("", *ENV_POLICIES),
    )
    macros: Mapping[str, Scalar] = MACROS.key("Names for repeated text, used as ${NAME}.", repr=False)
    models: Mapping[str, Model] = sections(Model, "The local models.", named=True)
    groups: Mapping[str, Group] | None = sections(Group, "Older place of routing.router.settings.groups.", default=None)
    matrix: Matrix | None = section(Matrix, "Older place of routing.router.settings.matrix.", default=None)
    routing: Routing = section(Routing, "Which models are unloaded, and which requests are served first.")
    profiles: Mapping[str, Profile] = sections(
        Profile,
        "Switchable sets of names for models.",
        hint="write `NAME: {description: ..., pins: {requested-name: model}}`",
    )
    selectors: Mapping[str, Selector] = sections(Selector, "Names that choose among several models.", named=True)
    hooks: HookSettings = section(HookSettings, "Commands and URLs that are run at certain events.")
    peers: Mapping[str, Peer] = sections(Peer, "Other servers and the models they offer.", named=True)
    hosts: Hosts | None = section(
        Hosts, "Run models on other machines too; `{}` for the defaults. Unset: on this machine only.", default=None
    )
    upstream: UpstreamSettings = section(UpstreamSettings, "Rules for /upstream/MODEL/... requests.")
    # Not a cached property: attrs then defines __getattr__, which makes every attribute slower to read.
    names: NameIndex = field(init=False, eq=False, repr=False)

    @names.default
    def _index_names(self) -> NameIndex:
        return NameIndex.of(self.models, self.peers, self.routing.router.settings.groups or {})

    def real(self, name: str) -> str | None:
        """The local model of this ID or alias; an ID wins over an equal alias."""
        return name if name in self.models else self.names.aliases.get(name)

    def peer(self, name: str) -> tuple[str, str] | None:
        """(peer ID, its model) for PEER/MODEL, a peer's alias, or a bare model name that exactly one peer offers."""
        return self.names.qualified.get(name) or self.names.bare.get(name)

    def base(self, name: str) -> str | None:
        """The local model's ID, or `name` if a peer offers it."""
        return self.real(name) or (name if self.peer(name) else None)

    def members(self, name: str) -> tuple[str, ...]:
        """The models that a group, or else a tag, of this name stands for; empty if there is neither."""
        return self.names.sets.get(name, ())

    def copies(self, name: str) -> tuple[str, ...]:
        """The servers of the model with this ID: its own and its replicas."""
        found = self.names.replicas.get(name)
        return (name,) if found is None else found.targets

    def split_path(self, segments: Sequence[str]) -> tuple[str, int] | None:
        """(name, segments used) of the longest leading run that names a model; empty segments are skipped."""
        found: tuple[str, int] | None = None
        name = ""
        for used, segment in enumerate(segments, start=1):
            if segment:
                name = f"{name}/{segment}" if name else segment
                if self.base(name) is not None:
                    found = (name, used)
        return found
