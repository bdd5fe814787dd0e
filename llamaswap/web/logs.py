"""The logs over HTTP: what was written, and what is being written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import define

from llamaswap.config import Config
from llamaswap.observe.logs import LogMonitor, LogRegistry
from llamaswap.web.admin_request import AdminRequest, Response, redirect
from llamaswap.web.errors import HttpError
from llamaswap.web.route import QueryParameter, RouteTable
from llamaswap.web.streaming_response import StreamingResponses

PLAIN = b"text/plain"


@define(eq=False)
class LogEndpoints:
    """/logs and /logs/stream."""

    book: LogRegistry
    config: Callable[[], Config]
    streams: StreamingResponses

    def history(self, call: AdminRequest) -> Response:
        """What is remembered of the combined log; a browser is sent to the page that shows it better."""
        if "text/html" in call.accept:
            return redirect("/ui/", 302, call.method)
        return Response(200, self.book.combined.history(), PLAIN)

    async def stream(self, call: AdminRequest) -> None:
        """History (unless `no-history` is in the query), then every write, until somebody ends it."""
        monitor = self._monitor(call)
        stream = self.streams.open(call, PLAIN)
        if stream.ended:
            return
        if "no-history" not in call.query:
            stream.write(monitor.history())
        # The subscription is the producer: a paused reader keeps a bounded backlog and finds a marker for the rest.
        subscription = monitor.subscribe(stream.write)
        await stream.until_end(subscription)

    def _monitor(self, call: AdminRequest) -> LogMonitor:
        segments = [part for part in call.raw_rest("/logs/stream")[1:] if part]
        if not segments:
            return self.book.combined
        if segments[0] in ("proxy", "upstream"):
            return self.book.proxy if segments[0] == "proxy" else self.book.upstream
        config = self.config()
        for used in range(len(segments), 0, -1):
            real = config.real("/".join(segments[:used]))
            if real is not None:
                return self.book.model(real)
        raise HttpError(400, "invalid logger. Use 'proxy', 'upstream' or a model's ID")


_table = RouteTable(LogEndpoints, "logs")
_plain: dict[str, Any] = {"content": "text/plain"}
_stream: dict[str, Any] = {
    **_plain,
    "query": (QueryParameter("no-history", "Leave out what was written before (any value)."),),
}
ROUTES = (
    _table.get("/logs", LogEndpoints.history, "The last 100 KiB of the combined log", **_plain),
    _table.get("/log", LogEndpoints.history, "The same as /logs", **_plain),
    _table.get("/logs/stream", LogEndpoints.stream, "The combined log as it is written", **_stream),
    _table.get("/logs/stream/<rest:name>", LogEndpoints.stream, "One log as it is written", **_stream),
)
