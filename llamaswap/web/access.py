"""The access log of the front door: what went out on a sink, told when its request is over.

The Klein door writes its lines from the site (`app.AdminSite`); both write the same record. Must not know models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import define
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import ITransport

from llamaswap.observe.accesslog import AccessLog, Served, client_ip
from llamaswap.relay.exchange import Exchange, Headers, PassingSink

NOTHING_SENT = 499  # the status of a request whose client left before anything was sent; the field's custom


@define(eq=False)
class CountedSink(PassingSink):
    """A sink that remembers its status and counts what is written: body bytes, with their framing where it is raw.

    What goes out by the `writer` is counted by the exchange.
    """

    status: int = NOTHING_SENT
    sent: int = 0

    def head(self, status: int, reason: bytes, headers: Headers, *, raw: bool, data: bytes = b"") -> None:
        """Passed on, and noted."""
        self.status = status
        self.sent += len(data)
        self.inner.head(status, reason, headers, raw=raw, data=data)

    def write(self, data: bytes) -> None:
        """Passed on, and counted."""
        self.sent += len(data)
        self.inner.write(data)

    def upgrade(self, status_line_and_head: bytes) -> ITransport:
        """Passed on, and noted."""
        self.status = 101
        return self.inner.upgrade(status_line_and_head)


@define(eq=False)
class Accessed:
    """A handler of exchanges that has a line written for each. `clock` provides IReactorTime."""

    serve: Callable[[Exchange], Deferred[None]]
    access: AccessLog
    clock: Any

    def __call__(self, exchange: Exchange) -> Deferred[None]:
        """Serve one exchange; its line is written when it is over."""
        sink = exchange.sink = CountedSink(exchange.sink)
        return self.serve(exchange).addBoth(self._served, exchange, sink)

    def _served(self, result: Any, exchange: Exchange, sink: CountedSink) -> Any:
        head = exchange.head
        self.access.served(
            Served(
                ip=client_ip(head.first(b"x-forwarded-for"), head.first(b"x-real-ip"), exchange.peer),
                method=head.method,
                path=head.path,
                protocol=f"HTTP/{head.version[0]}.{head.version[1]}",
                status=sink.status,
                sent=sink.sent + exchange.passed,
                user_agent=head.first(b"user-agent") or b"",
                seconds=self.clock.seconds() - exchange.arrived,
            )
        )
        return result
