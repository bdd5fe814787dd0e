"""The logs over HTTP: what was written, and what is being written."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define

from llamaswap.config import Config
from llamaswap.observe.logs import LogBook, Monitor
from llamaswap.web.calls import Answer, Call, redirect
from llamaswap.web.errors import HttpError
from llamaswap.web.routes import Query, Table
from llamaswap.web.streams import Streams

PLAIN = b"text/plain"


@define(eq=False)
class Logs:
    """/logs and /logs/stream."""

    book: LogBook
    config: Callable[[], Config]
    streams: Streams

    def history(self, call: Call) -> Answer:
        """What is remembered of the combined log; a browser is sent to the page that shows it better."""
        if "text/html" in call.accept:
            return redirect("/ui/", 302, call.method)
        return Answer(200, self.book.combined.history(), PLAIN)

    async def stream(self, call: Call) -> None:
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

    def _monitor(self, call: Call) -> Monitor:
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


_table = Table(Logs, "logs")
_plain = {"content": "text/plain"}
_stream = {**_plain, "query": (Query("no-history", "Leave out what was written before (any value)."),)}
ROUTES = (
    _table.get("/logs", Logs.history, "The last 100 KiB of the combined log", **_plain),
    _table.get("/log", Logs.history, "The same as /logs", **_plain),
    _table.get("/logs/stream", Logs.stream, "The combined log as it is written", **_stream),
    _table.get("/logs/stream/<rest:name>", Logs.stream, "One log as it is written", **_stream),
)
