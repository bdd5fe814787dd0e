"""The records of a model, and what models and peers share. See `schema`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attrs import field, frozen

from llamaswap.config.endpoints import Endpoint
from llamaswap.config.field_types import (
    BOOLEAN,
    DURATION,
    FREE_MAP,
    FREE_MAPS,
    INHERITED_BOOLEAN,
    INTEGER,
    MACROS,
    SECONDS,
    TEXT,
    TEXT_LIST,
    TEXT_MAP,
    TEXT_OR_LIST,
    section,
)
from llamaswap.config.schema.filters import BOUNDS_MAP, Bounds
from llamaswap.config.schema.hosts import Place
from llamaswap.config.schema.memory import GPUS, NEED, GpuChoice

Scalar = str | int | float | bool
COMFYUI_MODEL = "comfyui_auto"  # the ID of the model at /comfyui/
DEFAULT_PROXY = "http://localhost:${PORT}"
USE_GLOBAL_TTL = -1
MODALITIES = ("text", "audio", "image")
SIGNS = ("cpu", "gpu", "log", "health")
ENV_POLICIES = ("inherit", "clean")
SUPERSEDE = ("", "session", "client")
MAX_REPLICAS = 64
FORWARD_KEY = ("auto", "always", "never")


# -- what models and peers share ---------------------------------------------------------------------------


@frozen
class Filters:
    """Changes to a request's parameters, in ascending order and without `model`."""

    strip_params_text: str = TEXT.key(
        "Comma-separated request parameters to remove before forwarding.",
        name="stripParams",
        synonyms=("strip_params",),
    )
    set_params: Mapping[str, Any] = FREE_MAP.key(
        "Request parameters to set, replacing what the client sent; one whose name ends with ? only if the client "
        "sent none."
    )
    set_params_by_id: Mapping[str, Mapping[str, Any]] = FREE_MAPS.key(
        "Parameters to set if the request names the model by this ID; each ID becomes an alias.", name="setParamsByID"
    )
    system_prompt: str = TEXT.key("The system prompt of a chat whose client sends none.")
    system_prompt_by_id: Mapping[str, str] = TEXT_MAP.key(
        "The same if the request names the model by this ID; each ID becomes an alias.", name="systemPromptByID"
    )
    rename_params: Mapping[str, str] = TEXT_MAP.key(
        "Request parameters to rename before the other changes; one whose new name the client sent too is removed."
    )
    clamp_params: Mapping[str, Bounds] = BOUNDS_MAP.key(
        "Smallest and largest values of numeric request parameters, applied after the other changes."
    )
    strip_params: tuple[str, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        """The names for which there are parameters or a system prompt of their own, each once."""
        return tuple(dict.fromkeys((*self.set_params_by_id, *self.system_prompt_by_id)))


@frozen
class Timeouts:
    """Limits on the connection to a server, in seconds; 0 disables one."""

    connect: float = SECONDS.key("To connect (seconds, 0 = no limit).", default=30.0)
    keepalive: float = SECONDS.key("Between TCP keep-alive probes (seconds, 0 = off).", default=30.0)
    response_header: float = SECONDS.key("Until the head of the response arrives (seconds, 0 = no limit).")
    tls_handshake: float = SECONDS.key("For the TLS handshake (seconds, 0 = no limit).", default=10.0)
    expect_continue: float = SECONDS.key("Accepted for compatibility, without effect.", default=1.0)
    idle_conn: float = SECONDS.key("To keep an unused connection (seconds, 0 = no limit).", default=90.0)


# -- models ------------------------------------------------------------------------------------------------


@frozen
class Compat:
    """Switches for servers that behave differently."""

    ignore_websockets: bool = BOOLEAN.key("A websocket neither loads the model nor keeps it loaded.")


@frozen
class HangDetection:
    """When a server counts as hung: its streams are silent, it shows no sign of life and does not respond."""

    after: float = DURATION.key(
        "Minimum silence of its running streams. 0s: never. By default servers with compat.ignoreWebsockets are "
        "not watched.",
        default=120.0,
    )
    times: int = INTEGER.key(
        "And so many times the longest pause this model came back from.", default=10, minimum=1, lenient=True
    )
    canary: float = DURATION.key(
        "How long a silent server is watched for signs of life, and the maximum time of a one-token request then.",
        default=30.0,
    )
    signs: tuple[str, ...] = TEXT_LIST.key(
        "Signs of life: its processes use CPU time or a disk (also if that cannot be known), a GPU is busy, it "
        "writes to its log, it responds at checkEndpoint.",
        default=SIGNS,
        items_enum=SIGNS,
    )
    cpu: int = INTEGER.key("More CPU time than this percentage of one core is a sign of life.", default=1, minimum=0)
    gpu: int = INTEGER.key("A GPU busier than this percentage is a sign of life.", default=5, minimum=0)


@frozen
class SuspendSettings:
    """How a server is put to sleep instead of being stopped: its memory is freed, its process stays."""

    sleep: tuple[str, ...] = TEXT_OR_LIST.key(
        "What puts the server to sleep: requests to it (POST /sleep?level=1) or commands, one after the other."
    )
    wake: tuple[str, ...] = TEXT_OR_LIST.key("Requests or commands that wake it up, one after the other.")
    timeout: float = DURATION.key("Maximum time of either; then the server is stopped, or restarted.", default=30.0)
    ttl: float = DURATION.key("Stop the server after it slept for this time; 0s never.")


@frozen
class SlotSettings:
    """The prompt cache of a llama.cpp server, kept in files while it is stopped; it needs `--slot-save-path`."""

    save: bool = BOOLEAN.key("Save the slots before the model is stopped, and restore them after it is loaded.")
    timeout: float = DURATION.key("Maximum time of a save or a restore.", default=5.0)
    max_size: int = INTEGER.key("Maximum size in MiB of a file, one per slot.", default=2048, minimum=1)


@frozen
class Capabilities:
    """Capabilities of a model, for listings; all are zero if none was declared."""

    inputs: tuple[str, ...] = TEXT_LIST.key("Kinds of input of the model.", name="in", items_enum=MODALITIES)
    outputs: tuple[str, ...] = TEXT_LIST.key("Kinds of output of the model.", name="out", items_enum=MODALITIES)
    tools: bool = BOOLEAN.key("The model can call tools.")
    reranker: bool = BOOLEAN.key("The model reranks documents.")
    context: int = INTEGER.key("Context length in tokens.", minimum=0)


@frozen
class Model:
    """One local model. `endpoint` is None if `proxy` is not an http(s) URL: such a model cannot start.

    `replica_of` is the model of which this is a replica, `gpu_ids` are the GPUs on which llamaswap starts it.
    """

    id: str
    cmd: str = TEXT.key("The command that starts the server; # lines are comments.", repr=False)
    cmd_stop: str = TEXT.key("A command that stops the server; ${PID} is its process ID. Default: SIGTERM.", repr=False)
    proxy: str = TEXT.key("URL the server listens on.", shown_default=DEFAULT_PROXY)
    aliases: tuple[str, ...] = TEXT_LIST.key("Other names that requests may use for this model.")
    tags: tuple[str, ...] = TEXT_LIST.key(
        "Names that models share: a request for one goes to a loaded model with it, else to the first in the file."
    )
    env: tuple[str, ...] = TEXT_LIST.key("NAME=value entries added to the server's environment.", repr=False)
    env_policy: str = TEXT.key(
        "Environment variables of llamaswap that the server gets besides `env`: `inherit` all, `clean` those of a "
        "fixed list. Unset for the global value.",
        default="inherit",
        enum=("", *ENV_POLICIES),
    )
    check_endpoint: str = TEXT.key(
        "Path that responds with 200 when the server is ready; `none` skips the check.", default="/health"
    )
    ttl: int = INTEGER.key(
        "Idle seconds before the model is unloaded; 0 never, -1 for globalTTL.",
        minimum=-1,
        shown_default=USE_GLOBAL_TTL,
    )
    unload_timeout: float = SECONDS.key(
        "Seconds a server may take to stop before it is killed; 0 for the global value.",
        default=10.0,
        minimum=0,
        shown_default=0,
    )
    unlisted: bool = BOOLEAN.key("Leave the model out of listings.")
    use_model_name: str = TEXT.key("Model name sent to the server instead of the ID.")
    name: str = TEXT.key("Name shown in listings.")
    description: str = TEXT.key("Description shown in listings.")
    concurrency_limit: int = INTEGER.key(
        "Maximum number of requests at a time; more get 429. 0 for the built-in limit."
    )
    supersede: str = TEXT.key(
        "Whose newer request replaces an older one that still waits (it gets 410): that of the same `session`, by "
        "the headers in ui.activity.session_id, or `client`, by address, key and User-Agent too.",
        enum=SUPERSEDE,
    )
    forward_key: str = TEXT.key(
        "Whether the accepted API key is passed to the server; if empty as the global forwardKey says.",
        enum=("", *FORWARD_KEY),
    )
    filters: Filters = section(Filters, "Changes made to the request before forwarding.")
    max_tokens: int = INTEGER.key(
        "Maximum number of tokens that a response may have, whatever the request asks for. 0: no limit.", minimum=0
    )
    max_duration: float = DURATION.key(
        "Maximum time that the server may take for a response; then a stream ends as at a token limit, and any other "
        "response with an error. 0s: no limit."
    )
    macros: Mapping[str, Scalar] = MACROS.key("Macros of this model; they hide global ones.", repr=False)
    metadata: Mapping[str, Any] = FREE_MAP.key("Anything; shown as meta.llamaswap in /v1/models.")
    send_loading_state: bool = INHERITED_BOOLEAN.key(
        "Stream progress as reasoning text while the model loads; unset takes the global value.",
        default=False,
        shown_default=None,
    )
    timeouts: Timeouts = section(Timeouts, "Limits on connections to the server.")
    compat: Compat = section(Compat, "Switches for servers that behave differently.")
    stall: HangDetection = section(HangDetection, "When a server counts as hung and is restarted.")
    sleep: SuspendSettings = section(
        SuspendSettings, "Put the server to sleep instead of stopping it when other models need memory."
    )
    slots: SlotSettings = section(
        SlotSettings, "Keep the prompt cache of a llama.cpp server over swaps, if that is quicker."
    )
    capabilities: Capabilities = section(
        Capabilities, "Capabilities of the model, for listings. Its server is asked for an absent context and in."
    )
    health_check_timeout: float = SECONDS.key(
        "Seconds the server may take to become ready, as the global key; 0s: the global value.", default=120.0
    )
    memory: Mapping[str, int] = NEED.key(
        "Memory that the server uses, if llamaswap should not measure it: one size (of GPU memory, or of RAM on a "
        "machine without a GPU), or sizes by device, such as {gpu: 6GiB, ram: 2GiB}."
    )
    gpus: GpuChoice = GPUS.key(
        "GPUs that the server may use: `auto` for as many as it needs, a number of GPUs, or a list of their numbers. "
        "They are ${GPUS} in cmd and env, and the server sees no others. If unset it sees all."
    )
    replicas: int = INTEGER.key(
        "How many servers of the model may run, each on its own port. A request goes to the one with the fewest; the "
        "next one is loaded when all loaded ones are busy.",
        default=1,
        minimum=1,
        maximum=MAX_REPLICAS,
    )
    place: Place = section(
        Place,
        "Where the model may run if there are `hosts`: a host, a list in order of preference, or a mapping. Any host "
        "if unset, with this machine preferred.",
        shorthand="hosts",
    )
    replica_of: str = ""
    endpoint: Endpoint | None = None
    port: int | None = None
    gpu_ids: tuple[int, ...] = ()
    _rebuild: Callable[[int | None, tuple[int, ...]], Model] | None = field(default=None, eq=False, repr=False)
    _texts: Callable[[], Mapping[str, Any]] | None = field(default=None, eq=False, repr=False)

    def with_port(self, port: int) -> Model:
        """This model with another port for ${PORT}; itself if it uses none."""
        if self.port is None or self.port == port or self._rebuild is None:
            return self
        return self._rebuild(port, self.gpu_ids)

    def portable(self) -> dict[str, object]:
        """What another host's agent needs in its configuration to start the same server, on a port of its own."""
        texts = self._texts() if self._texts is not None else {}
        made: dict[str, object] = {
            "cmd": texts.get("cmd", self.cmd),
            "cmdStop": texts.get("cmd_stop", self.cmd_stop),
            "proxy": texts.get("proxy", self.proxy),
            "env": list(texts.get("env", self.env)),
            "envPolicy": self.env_policy,
            "checkEndpoint": self.check_endpoint,
            "healthCheckTimeout": self.health_check_timeout,
            "unloadTimeout": self.unload_timeout,
        }
        if self.gpu_ids:
            made["gpus"] = list(self.gpu_ids)
        if self.memory:
            sizes = {device: f"{size}MiB" for device, size in self.memory.items()}
            made["memory"] = sizes.get("", sizes)
        return made

    def with_gpus(self, ids: tuple[int, ...]) -> Model:
        """This model on the GPUs of these numbers; itself if it has no `gpus`. None: those that `gpus` lists."""
        if not self.gpus or self.gpu_ids == (ids or self.gpus.ids) or self._rebuild is None:
            return self
        return self._rebuild(self.port, ids)
