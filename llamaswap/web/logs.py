"""The logs over HTTP: what was written, and what is being written."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import unquote

from attrs import define

from llamaswap.config import Config
from llamaswap.observe.logs import LogMonitor, LogRegistry
from llamaswap.web.admin_request import AdminRequest, Response, redirect
from llamaswap.web.errors import HttpError
from llamaswap.web.route import QueryParameter, Route, RouteTable
from llamaswap.web.streaming_response import StreamingResponses

PLAIN = "text/plain"

route = RouteTable("logs", Route)
_NO_HISTORY = (QueryParameter("no-history", "Leave out what was written before (any value)."),)


@define(eq=False)
class LogEndpoints:
    """/logs and /logs/stream."""

    registry: LogRegistry
    config: Callable[[], Config]
    streams: StreamingResponses

    @route("GET", "/log", content=PLAIN, summary="The same as /logs")
    @route("GET", "/logs", content=PLAIN)
    def history(self, call: AdminRequest) -> Response:
        """The last 100 KiB of the combined log; a browser is redirected to the UI."""
        if "text/html" in call.accept:
            return redirect("/ui/", 302, call.method)
        return Response(200, self.registry.combined.history(), PLAIN.encode())

    @route("GET", "/logs/stream/<rest:name>", content=PLAIN, query=_NO_HISTORY, summary="One log as it is written")
    @route("GET", "/logs/stream", content=PLAIN, query=_NO_HISTORY)
    async def stream(self, call: AdminRequest) -> None:
        """The combined log as it is written, after its history."""
        monitor = self._monitor(call)
        stream = self.streams.open(call, PLAIN.encode())
        if stream.ended:
            return
        if "no-history" not in call.query:
            stream.write(monitor.history())
        # The subscription is the producer: a paused reader keeps a bounded backlog and finds a marker for the rest.
        stream.register(monitor.subscribe(stream.write))
        await stream.until_end()

    def _monitor(self, call: AdminRequest) -> LogMonitor:
        # Split before decoding: an encoded slash stays inside its segment.
        segments = [unquote(part) for part in call.path.removeprefix("/logs/stream").split("/") if part]
        if not segments:
            return self.registry.combined
        if segments[0] in ("proxy", "upstream"):
            return self.registry.proxy if segments[0] == "proxy" else self.registry.upstream
        config = self.config()
        for used in range(len(segments), 0, -1):
            model = config.real("/".join(segments[:used]))
            if model is not None:
                return self.registry.model(model)
        raise HttpError(400, "invalid logger. Use 'proxy', 'upstream' or a model's ID")
