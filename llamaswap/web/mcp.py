"""POST /mcp: tools for agents to manage the models, by the Model Context Protocol.

Of its transport over HTTP this is the stateless part: each request gets one JSON document, and there are no sessions.
The tools do what paths of the API do, and need the same scopes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from inspect import isawaitable

from attrs import define, evolve, frozen

from llamaswap.errors import LlamaswapError
from llamaswap.observe.logs import LogRegistry
from llamaswap.version import Build
from llamaswap.web.admin_request import AdminRequest, JsonObject, Response, first_json, json_answer
from llamaswap.web.errors import HttpError, message_of
from llamaswap.web.key_access import KeyAccess
from llamaswap.web.listing import ListingEndpoints, status_rows
from llamaswap.web.models import ModelEndpoints
from llamaswap.web.processes import ProcessEndpoints
from llamaswap.web.route import Route, RouteTable
from llamaswap.web.secret_masking import known_secrets, masked_text
from llamaswap.web.usage import UsageEndpoints

VERSIONS = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
PARSE_ERROR, BAD_REQUEST, NO_METHOD, BAD_PARAMS = -32700, -32600, -32601, -32602
UNSUPPORTED_VERSION = -32022
LOG_LINES, MAX_LOG_LINES = 50, 500
INSTRUCTIONS = (
    "llamaswap runs local models and swaps them in and out on demand. A request for a model loads it by itself; use "
    "these tools to see what runs and why something waits, and to load, unload or pin models."
)

Arguments = Mapping[str, object]
_JSON_TYPES: Mapping[str, type] = {"string": str, "boolean": bool, "integer": int}


class RpcError(Exception):
    """An error of the protocol itself."""

    def __init__(self, code: int, message: str, data: object = None) -> None:
        super().__init__(message)
        self.document: JsonObject = {"code": code, "message": message}
        if data is not None:
            self.document["data"] = data


@frozen
class RpcRequest:
    """A request of JSON-RPC 2.0. One without an `id` is a notification, and gets no response."""

    jsonrpc: str
    method: str
    id: str | int | None = None
    params: JsonObject | None = None


@frozen
class RpcResponse:
    """A response of JSON-RPC 2.0: a result or an error."""

    jsonrpc: str
    id: str | int | None
    result: JsonObject | None = None
    error: JsonObject | None = None


@frozen
class Tool:
    """A tool. `arguments` are its arguments with their JSON schemas, `required` those that must be given."""

    name: str
    about: str
    scope: str
    arguments: Mapping[str, JsonObject]
    required: tuple[str, ...]
    run: Callable[[McpEndpoints, AdminRequest, Arguments], Response | Awaitable[Response]]

    def document(self) -> JsonObject:
        """The tool as clients list it."""
        schema = {"type": "object", "properties": dict(self.arguments), "required": list(self.required)}
        hints = {"readOnlyHint": self.scope != "admin", "destructiveHint": self.name == "unload"}
        return {"name": self.name, "description": self.about, "inputSchema": schema, "annotations": hints}

    def check(self, arguments: Arguments) -> None:
        """Raise RpcError unless the arguments are of this tool's types."""
        missing = [name for name in self.required if arguments.get(name) in (None, "")]
        for name, schema in self.arguments.items():
            value = arguments.get(name)
            if value is not None and type(value) is not _JSON_TYPES[str(schema["type"])]:
                missing.append(name)
        if missing:
            raise RpcError(BAD_PARAMS, f"{self.name}: {', '.join(missing)} must be given, with the type of the schema")

    def allowed(self, access: KeyAccess) -> bool:
        """Whether a key may use it."""
        return self.scope == "any" or self.scope in access.scopes


def _argument(kind: str, about: str) -> JsonObject:
    return {"type": kind, "description": about}


_MODEL = {"model": _argument("string", "The ID or an alias of a model, as list_models shows them.")}
TOOLS: dict[str, Tool] = {}
route = RouteTable("mcp", Route)


def _tool(
    name: str, scope: str, arguments: Mapping[str, JsonObject] = _MODEL, required: tuple[str, ...] = ("model",)
) -> Callable[[Callable[..., Response | Awaitable[Response]]], Callable[..., Response | Awaitable[Response]]]:
    def declare(run: Callable[..., Response | Awaitable[Response]]) -> Callable[..., Response | Awaitable[Response]]:
        TOOLS[name] = Tool(name, " ".join((run.__doc__ or "").split()), scope, arguments, required, run)
        return run

    return declare


@define(eq=False)
class McpEndpoints:
    """/mcp. The other endpoints do the work."""

    listing: ListingEndpoints
    models: ModelEndpoints
    processes: ProcessEndpoints
    usage: UsageEndpoints
    logs: LogRegistry
    build: Build

    @route("POST", "/mcp", scope="any", body=RpcRequest, answer=RpcResponse, error=RpcResponse, may_be_empty=True)
    async def serve(self, call: AdminRequest) -> Response:
        """Tools for agents, by the Model Context Protocol: what runs and why, load, unload, pin; logs and usage."""
        number: object = None
        try:
            message = _message(call)
            number = message.get("id")
            _check_version(call)
            if "method" not in message or number is None:
                return Response(202, b"", None)  # a notification, or a response to a request that was never made
            result = await self._answer(call, str(message["method"]), message.get("params") or {})
        except RpcError as error:
            code = error.document["code"]
            status = 400 if code in (PARSE_ERROR, BAD_REQUEST, UNSUPPORTED_VERSION) else 200
            return json_answer({"jsonrpc": "2.0", "id": number, "error": error.document}, status)
        return json_answer({"jsonrpc": "2.0", "id": number, "result": result})

    async def _answer(self, call: AdminRequest, method: str, params: object) -> JsonObject:
        if not isinstance(params, dict):
            raise RpcError(BAD_PARAMS, "params must be an object")
        if method == "initialize":
            asked = params.get("protocolVersion")
            return {
                "protocolVersion": asked if asked in VERSIONS else VERSIONS[-1],
                "capabilities": {"tools": {"listChanged": False}},
                "serverInfo": {"name": "llamaswap", "version": self.build.version},
                "instructions": INSTRUCTIONS,
            }
        if method == "ping":
            return {}
        allowed = {tool.name: tool for tool in TOOLS.values() if tool.allowed(call.access)}
        if method == "tools/list":
            return {"tools": [tool.document() for tool in allowed.values()]}
        if method != "tools/call":
            raise RpcError(NO_METHOD, f"there is no method {method[:100]!r}")
        name, arguments = params.get("name"), params.get("arguments") or {}
        tool = TOOLS.get(name) if isinstance(name, str) else None
        if tool is None or not isinstance(arguments, dict):
            raise RpcError(BAD_PARAMS, "there is no tool of this name, or its arguments are not an object")
        tool.check(arguments)
        return await self._use(call, tool, arguments)

    async def _use(self, call: AdminRequest, tool: Tool, arguments: Arguments) -> JsonObject:
        """What a tool answers. Its failure is an answer too, because the model that called it is to read it."""
        try:
            if tool.scope != "any":
                call.access.require(tool.scope)
            model = arguments.get("model")
            if isinstance(model, str) and model:
                call.access.require_model(model, self.models.router.config.real(model) or model)
            reply = tool.run(self, call, arguments)
            answered = await reply if isawaitable(reply) else reply
            text, failed = answered.body.decode("utf-8", "replace").strip() or "OK", False
        except LlamaswapError as error:
            text, failed = masked_text(message_of(error), known_secrets(self.models.router.config)), True
        text = call.access.shown_text(text, self.models.router.config)
        return {"content": [{"type": "text", "text": text}], "isError": failed}

    # -- the tools; their docstrings are for the model that chooses among them --------------------------------

    @_tool("list_models", "any", {}, ())
    def _list(self, call: AdminRequest, arguments: Arguments) -> Response:
        """List the models with their states (stopped, starting, ready, stopping), aliases and context lengths."""
        listing = self.listing
        rows = status_rows(listing.router, listing.peers, listing.capabilities)
        return json_answer([row for row in rows if call.access.may_know(str(row["id"]), listing.router.config)])

    @_tool(
        "load",
        "admin",
        {**_MODEL, "wait": _argument("boolean", "Answer when the model is loaded, which may take minutes.")},
    )
    def _load(self, call: AdminRequest, arguments: Arguments) -> Awaitable[Response]:
        """Begin to load a model. Other models may be unloaded for it; `plan` says which."""
        wait = ["1"] if arguments.get("wait") else []
        return self.models.load(evolve(_of_model(call, arguments), query={"wait": wait} if wait else {}))

    @_tool("unload", "admin")
    def _unload(self, call: AdminRequest, arguments: Arguments) -> Awaitable[Response]:
        """Unload a model at once, also if requests use it; answers when its server has stopped."""
        return self.processes.unload_one(_of_model(call, arguments))

    @_tool("pin", "admin", {**_MODEL, "pinned": _argument("boolean", "False removes the pin. By default true.")})
    def _pin(self, call: AdminRequest, arguments: Arguments) -> Response:
        """Pin a model: once loaded, it is unloaded only by `unload`."""
        of_model = _of_model(call, arguments)
        return self.models.unpin(of_model) if arguments.get("pinned") is False else self.models.pin(of_model)

    @_tool("why", "read")
    def _why(self, call: AdminRequest, arguments: Arguments) -> Response:
        """Explain a model's state: its details with the last error and the end of its log, and what a request would
        do."""
        detail = self.models.detail(_of_model(call, arguments))
        plan = self.models.plan(evolve(call, query={"model": [str(arguments["model"])]}))
        return Response(200, b'{"model":%b,"plan":%b}' % (detail.body.strip(), plan.body.strip()))

    @_tool("plan", "read")
    def _plan(self, call: AdminRequest, arguments: Arguments) -> Response:
        """Say what a request for a model would do now, without doing it: what it would evict or wait for, and why."""
        return self.models.plan(evolve(call, query={"model": [str(arguments["model"])]}))

    @_tool("queue", "read", {}, ())
    def _queue(self, call: AdminRequest, arguments: Arguments) -> Response:
        """List the requests that wait, with their positions and how long they have waited."""
        return self.models.queue(call)

    @_tool(
        "logs",
        "read",
        {**_MODEL, "lines": _argument("integer", f"How many of the last lines, at most {MAX_LOG_LINES}.")},
        (),
    )
    def _logs(self, call: AdminRequest, arguments: Arguments) -> Response:
        """Read the last lines of a model's log, or of llamaswap's own log if no model is given."""
        config, name = self.models.router.config, arguments.get("model")
        lines = arguments.get("lines")
        count = min(max(lines if isinstance(lines, int) else LOG_LINES, 1), MAX_LOG_LINES)
        monitor = self.logs.proxy
        if name:
            model = config.real(str(name))
            if model is None:
                raise HttpError(404, "model not found")
            monitor = self.logs.model(model)
        written = monitor.history().decode("utf-8", "replace").splitlines()[-count:]
        return Response(200, masked_text("\n".join(written), known_secrets(config)).encode())

    @_tool(
        "usage",
        "read",
        {
            "by": _argument("string", "What to sum by, separated by commas: key, model, client, session, hour, day."),
            "since": _argument("string", "The beginning, in RFC 3339."),
        },
        (),
    )
    def _usage(self, call: AdminRequest, arguments: Arguments) -> Awaitable[Response]:
        """Sum requests, errors, tokens and durations, by default by key and model."""
        given = {name: [str(arguments[name])] for name in ("by", "since") if arguments.get(name)}
        return self.usage.sums(evolve(call, query=given))


def _message(call: AdminRequest) -> JsonObject:
    """The message in a request's body; raises RpcError."""
    try:
        message = first_json(call.body)
    except ValueError as error:
        raise RpcError(PARSE_ERROR, f"the body is not JSON: {error}")
    if not isinstance(message, dict) or not isinstance(message.get("method", ""), str):
        raise RpcError(BAD_REQUEST, "the body must be one message of JSON-RPC 2.0; batches are not supported")
    if type(message.get("id")) not in (str, int, type(None)):
        raise RpcError(BAD_REQUEST, "the id of a message must be a text or an integer")
    return message


def _check_version(call: AdminRequest) -> None:
    version = (call.first(b"mcp-protocol-version") or VERSIONS[0].encode()).decode("latin-1")
    if version not in VERSIONS:
        data = {"supported": list(VERSIONS), "requested": version}
        raise RpcError(UNSUPPORTED_VERSION, f"version {version[:40]} of the protocol is not supported", data)


def _of_model(call: AdminRequest, arguments: Arguments) -> AdminRequest:
    return evolve(call, variables={"model": str(arguments["model"])})
