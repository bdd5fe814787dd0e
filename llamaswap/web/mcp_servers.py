"""The MCP servers that the configuration names, for the page's chat: its policy lets a page ask no server but this one.

A message goes to the server as it came, and its response comes back as JSON, also from an event stream. Which tools run
is decided at the page; this module knows no tool.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from attrs import define, frozen

from llamaswap.config import Config
from llamaswap.http_client import HttpResponse, RequestFailed, SendRequest
from llamaswap.web.admin_request import AdminRequest, JsonObject, Response, json_answer
from llamaswap.web.errors import HttpError
from llamaswap.web.route import Route, RouteTable
from llamaswap.web.shield import shielded

MESSAGE_LIMIT = 1024 * 1024  # bytes of a message
TOOL_TIMEOUT = 120.0  # seconds that a tool may run
SESSION = "mcp-session-id"
PASSED = (SESSION, "mcp-protocol-version")


@frozen
class McpServers:
    """The names of the MCP servers."""

    servers: list[str]


route = RouteTable("mcp", Route)


@define(eq=False)
class ChatToolEndpoints:
    """/api/mcp. `send` asks the MCP servers."""

    config: Callable[[], Config]
    send: SendRequest

    @route("GET", "/api/mcp", answer=McpServers)
    def servers(self, call: AdminRequest) -> Response:
        """The MCP servers whose tools the page's chat may run."""
        return json_answer(McpServers(list(self.config().ui.mcp_servers)))

    @route("POST", "/api/mcp/<string:name>", body=dict[str, object], answer=dict[str, object])
    async def message(self, call: AdminRequest) -> Response:
        """Send a JSON-RPC message to an MCP server; answers with its response, or {} to a notification."""
        name = call.variables["name"]
        url = self.config().ui.mcp_servers.get(name)
        if url is None:
            raise HttpError(404, "MCP server not found")
        call.json_object("an MCP message is a JSON object")
        if len(call.body) > MESSAGE_LIMIT:
            raise HttpError(413, f"a message has at most {MESSAGE_LIMIT} bytes")
        headers = {"Accept": "application/json, text/event-stream"}
        for header in PASSED:
            value = call.first(header.encode())
            if value is not None:
                headers[header] = value.decode("latin-1")
        asked = self.send("POST", url, timeout=TOOL_TIMEOUT, body=call.body, headers=headers)
        try:
            response = await shielded(asked, "a message to an MCP server")
        except RequestFailed as error:
            raise HttpError(502, f"the MCP server {name} cannot be reached: {error}")
        if response.status == 404 and SESSION in headers:
            raise HttpError(404, f"the MCP server {name} has ended the session: initialize it again")
        if response.status >= 400:
            raise HttpError(502, f"the MCP server {name} answered {response.status}: {_text(response)[:200]}")
        session = response.headers.get(SESSION)
        more = ((SESSION.encode(), session.encode("latin-1")),) if session else ()
        return json_answer(next(_responses(response), {}), headers=more)


def _text(response: HttpResponse) -> str:
    return response.body.decode("utf-8", "replace").strip()


def _responses(response: HttpResponse) -> Iterator[JsonObject]:
    """The JSON-RPC responses in a body: the whole of it, or among the events of a stream."""
    body = response.body.strip()
    events = response.headers.get("content-type", "").startswith("text/event-stream")
    texts = [line[5:] for line in body.splitlines() if line.startswith(b"data:")] if events else [body]
    for each in filter(None, texts):
        try:
            message = json.loads(each.decode("utf-8", "replace"))
        except ValueError:
            raise HttpError(502, "the MCP server's answer is not JSON")
        if isinstance(message, dict) and ("result" in message or "error" in message):
            yield message
