"""The records of a model, and what models and peers share. See `schema`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attrs import field, frozen

from llamaswap.config.endpoints import Endpoint
from llamaswap.config.field_types import (
    BooleanType,
    DurationType,
    FreeMapsType,
    FreeType,
    IntegerType,
    MacrosType,
    SecondsType,
    SectionType,
    TextListType,
    TextType,
    key,
)

Scalar = str | int | float | bool
COMFYUI_MODEL = "comfyui_auto"  # the ID of the model at /comfyui/
DEFAULT_PROXY = "http://localhost:${PORT}"
USE_GLOBAL_TTL = -1
MODALITIES = ("text", "audio", "image")
SIGNS = ("cpu", "gpu", "log", "health")
ENV_POLICIES = ("inherit", "clean")
SUPERSEDE = ("", "session", "client")
FORWARD_KEY = ("auto", "always", "never")


# -- what models and peers share ---------------------------------------------------------------------------


@frozen
class Filters:
    """Changes to a request's parameters, in ascending order and without `model`."""

    strip_params_text: str = field(
        default="",
        metadata=key(
            "stripParams",
            TextType(),
            "Comma-separated request parameters to remove before forwarding.",
            synonyms=("strip_params",),
        ),
    )
    set_params: Mapping[str, Any] = field(
        factory=dict,
        metadata=key(
            "setParams",
            FreeType(),
            "Request parameters to set, replacing what the client sent; one whose name ends with ? only if the client "
            "sent none.",
        ),
    )
    set_params_by_id: Mapping[str, Mapping[str, Any]] = field(
        factory=dict,
        metadata=key(
            "setParamsByID",
            FreeMapsType(),
            "Parameters to set if the request names the model by this ID; each ID becomes an alias.",
        ),
    )
    strip_params: tuple[str, ...] = ()


@frozen
class Timeouts:
    """Limits on the connection to a server, in seconds; 0 disables one."""

    connect: float = field(default=30.0, metadata=key("connect", SecondsType(), "To connect (seconds, 0 = no limit)."))
    keepalive: float = field(
        default=30.0, metadata=key("keepalive", SecondsType(), "Between TCP keep-alive probes (seconds, 0 = off).")
    )
    response_header: float = field(
        default=0.0,
        metadata=key(
            "responseHeader", SecondsType(), "Until the head of the response arrives (seconds, 0 = no limit)."
        ),
    )
    tls_handshake: float = field(
        default=10.0, metadata=key("tlsHandshake", SecondsType(), "For the TLS handshake (seconds, 0 = no limit).")
    )
    expect_continue: float = field(
        default=1.0, metadata=key("expectContinue", SecondsType(), "Accepted for compatibility, without effect.")
    )
    idle_conn: float = field(
        default=90.0, metadata=key("idleConn", SecondsType(), "To keep an unused connection (seconds, 0 = no limit).")
    )


# -- models ------------------------------------------------------------------------------------------------


@frozen
class Compat:
    """Switches for servers that behave differently."""

    ignore_websockets: bool = field(
        default=False,
        metadata=key("ignoreWebsockets", BooleanType(), "A websocket neither loads the model nor keeps it loaded."),
    )


@frozen
class HangDetection:
    """When a server counts as hung: its streams are silent, it shows no sign of life and does not respond."""

    after: float = field(
        default=120.0,
        metadata=key(
            "after",
            DurationType(),
            "Minimum silence of its running streams. 0s: never. By default servers with compat.ignoreWebsockets are "
            "not watched.",
        ),
    )
    times: int = field(
        default=10,
        metadata=key(
            "times",
            IntegerType(),
            "And so many times the longest pause this model came back from.",
            minimum=1,
            lenient=True,
        ),
    )
    canary: float = field(
        default=30.0,
        metadata=key(
            "canary",
            DurationType(),
            "How long a silent server is watched for signs of life, and the maximum time of a one-token request then.",
        ),
    )
    signs: tuple[str, ...] = field(
        default=SIGNS,
        metadata=key(
            "signs",
            TextListType(),
            "Signs of life: its processes use CPU time or a disk (also if that cannot be known), a GPU is busy, it "
            "writes to its log, it responds at checkEndpoint.",
            items_enum=SIGNS,
        ),
    )
    cpu: int = field(
        default=1,
        metadata=key(
            "cpu", IntegerType(), "More CPU time than this percentage of one core is a sign of life.", minimum=0
        ),
    )
    gpu: int = field(
        default=5,
        metadata=key("gpu", IntegerType(), "A GPU busier than this percentage is a sign of life.", minimum=0),
    )


@frozen
class SuspendSettings:
    """How a server is put to sleep instead of being stopped: its memory is freed, its process stays."""

    sleep: tuple[str, ...] = field(
        default=(),
        metadata=key(
            "sleep",
            TextListType(single=True),
            "What puts the server to sleep: requests to it (POST /sleep?level=1) or commands, one after the other.",
        ),
    )
    wake: tuple[str, ...] = field(
        default=(),
        metadata=key("wake", TextListType(single=True), "Requests or commands that wake it up, one after the other."),
    )
    timeout: float = field(
        default=30.0,
        metadata=key("timeout", DurationType(), "Maximum time of either; then the server is stopped, or restarted."),
    )
    ttl: float = field(
        default=0.0, metadata=key("ttl", DurationType(), "Stop the server after it slept for this time; 0s never.")
    )


@frozen
class SlotSettings:
    """The prompt cache of a llama.cpp server, kept in files while it is stopped; it needs `--slot-save-path`."""

    save: bool = field(
        default=False,
        metadata=key(
            "save", BooleanType(), "Save the slots before the model is stopped, and restore them after it is loaded."
        ),
    )
    timeout: float = field(default=5.0, metadata=key("timeout", DurationType(), "Maximum time of a save or a restore."))
    max_size: int = field(
        default=2048,
        metadata=key("maxSize", IntegerType(), "Maximum size in MiB of a file, one per slot.", minimum=1),
    )


@frozen
class Capabilities:
    """Capabilities of a model, for listings; all are zero if none was declared."""

    inputs: tuple[str, ...] = field(
        default=(), metadata=key("in", TextListType(), "Kinds of input of the model.", items_enum=MODALITIES)
    )
    outputs: tuple[str, ...] = field(
        default=(), metadata=key("out", TextListType(), "Kinds of output of the model.", items_enum=MODALITIES)
    )
    tools: bool = field(default=False, metadata=key("tools", BooleanType(), "The model can call tools."))
    reranker: bool = field(default=False, metadata=key("reranker", BooleanType(), "The model reranks documents."))
    context: int = field(default=0, metadata=key("context", IntegerType(), "Context length in tokens.", minimum=0))


@frozen
class Model:
    """One local model. `endpoint` is None if `proxy` is not an http(s) URL: such a model cannot start."""

    id: str
    cmd: str = field(
        default="",
        repr=False,
        metadata=key("cmd", TextType(), "The command that starts the server; # lines are comments."),
    )
    cmd_stop: str = field(
        default="",
        repr=False,
        metadata=key(
            "cmdStop", TextType(), "A command that stops the server; ${PID} is its process ID. Default: SIGTERM."
        ),
    )
    proxy: str = field(
        default="",
        metadata=key("proxy", TextType(), "URL the server listens on.", default=DEFAULT_PROXY),
    )
    aliases: tuple[str, ...] = field(
        default=(), metadata=key("aliases", TextListType(), "Other names that requests may use for this model.")
    )
    tags: tuple[str, ...] = field(
        default=(),
        metadata=key(
            "tags",
            TextListType(),
            "Names that models share: a request for one goes to a loaded model with it, else to the first in the file.",
        ),
    )
    env: tuple[str, ...] = field(
        default=(),
        repr=False,
        metadata=key("env", TextListType(), "NAME=value entries added to the server's environment."),
    )
    env_policy: str = field(
        default="inherit",
        metadata=key(
            "envPolicy",
            TextType(),
            "Environment variables of llamaswap that the server gets besides `env`: `inherit` all, `clean` those of a "
            "fixed list. Unset for the global value.",
            enum=("", *ENV_POLICIES),
        ),
    )
    check_endpoint: str = field(
        default="/health",
        metadata=key(
            "checkEndpoint", TextType(), "Path that responds with 200 when the server is ready; `none` skips the check."
        ),
    )
    ttl: int = field(
        default=0,
        metadata=key(
            "ttl",
            IntegerType(),
            "Idle seconds before the model is unloaded; 0 never, -1 for globalTTL.",
            minimum=-1,
            default=USE_GLOBAL_TTL,
        ),
    )
    unload_timeout: float = field(
        default=10.0,
        metadata=key(
            "unloadTimeout",
            SecondsType(),
            "Seconds a server may take to stop before it is killed; 0 for the global value.",
            minimum=0,
            default=0,
        ),
    )
    unlisted: bool = field(default=False, metadata=key("unlisted", BooleanType(), "Leave the model out of listings."))
    use_model_name: str = field(
        default="", metadata=key("useModelName", TextType(), "Model name sent to the server instead of the ID.")
    )
    name: str = field(default="", metadata=key("name", TextType(), "Name shown in listings."))
    description: str = field(default="", metadata=key("description", TextType(), "Description shown in listings."))
    concurrency_limit: int = field(
        default=0,
        metadata=key(
            "concurrencyLimit",
            IntegerType(),
            "Maximum number of requests at a time; more get 429. 0 for the built-in limit.",
        ),
    )
    supersede: str = field(
        default="",
        metadata=key(
            "supersede",
            TextType(),
            "Whose newer request replaces an older one that still waits (it gets 410): that of the same `session`, by "
            "the headers in ui.activity.session_id, or `client`, by address, key and User-Agent too.",
            enum=SUPERSEDE,
        ),
    )
    forward_key: str = field(
        default="",
        metadata=key(
            "forwardKey",
            TextType(),
            "Whether the accepted API key is passed to the server; if empty as the global forwardKey says.",
            enum=("", *FORWARD_KEY),
        ),
    )
    filters: Filters = field(
        default=Filters(),
        metadata=key("filters", SectionType(Filters), "Changes made to the request before forwarding."),
    )
    macros: Mapping[str, Scalar] = field(
        factory=dict, repr=False, metadata=key("macros", MacrosType(), "Macros of this model; they hide global ones.")
    )
    metadata: Mapping[str, Any] = field(
        factory=dict, metadata=key("metadata", FreeType(), "Anything; shown as meta.llamaswap in /v1/models.")
    )
    send_loading_state: bool = field(
        default=False,
        metadata=key(
            "sendLoadingState",
            BooleanType(optional=True),
            "Stream progress as reasoning text while the model loads; unset takes the global value.",
            default=None,
        ),
    )
    timeouts: Timeouts = field(
        default=Timeouts(), metadata=key("timeouts", SectionType(Timeouts), "Limits on connections to the server.")
    )
    compat: Compat = field(
        default=Compat(), metadata=key("compat", SectionType(Compat), "Switches for servers that behave differently.")
    )
    stall: HangDetection = field(
        default=HangDetection(),
        metadata=key("stall", SectionType(HangDetection), "When a server counts as hung and is restarted."),
    )
    sleep: SuspendSettings = field(
        default=SuspendSettings(),
        metadata=key(
            "sleep",
            SectionType(SuspendSettings),
            "Put the server to sleep instead of stopping it when other models need memory.",
        ),
    )
    slots: SlotSettings = field(
        default=SlotSettings(),
        metadata=key(
            "slots",
            SectionType(SlotSettings),
            "Keep the prompt cache of a llama.cpp server over swaps, if that is quicker.",
        ),
    )
    capabilities: Capabilities = field(
        default=Capabilities(),
        metadata=key("capabilities", SectionType(Capabilities), "Capabilities of the model, for listings."),
    )
    health_check_timeout: float = field(
        default=120.0,
        metadata=key(
            "healthCheckTimeout",
            SecondsType(),
            "Seconds the server may take to become ready, as the global key; 0s: the global value.",
        ),
    )
    endpoint: Endpoint | None = None
    port: int | None = None
    _rebuild: Callable[[int], Model] | None = field(default=None, eq=False, repr=False)

    def with_port(self, port: int) -> Model:
        """This model with another port for ${PORT}; itself if it uses none."""
        if self.port is None or self.port == port or self._rebuild is None:
            return self
        return self._rebuild(port)
