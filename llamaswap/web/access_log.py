"""The access log of the proxy: one line for each exchange that has ended.

The admin site writes its lines itself (`app.AdminSite`). This module must not know models.
"""

from __future__ import annotations

from attrs import define
from twisted.internet.interfaces import IReactorTime

from llamaswap.errors import CLIENT_CLOSED_REQUEST
from llamaswap.observe.accesslog import AccessLog
from llamaswap.proxy.exchange import Exchange
from llamaswap.wire.headers import real_client_address


@define(eq=False)
class AccessLogger:
    """Writes a line for each exchange that it is called with."""

    access: AccessLog
    clock: IReactorTime

    def __call__(self, exchange: Exchange, status: int, sent: int) -> None:
        """Log an exchange at its end. `status` 0: no head was sent. `sent`: the body's bytes, with the framing of a raw
        body, without those that the exchange counted itself."""
        head = exchange.head
        self.access.served(
            real_client_address(head.first, exchange.client_address),
            head.method,
            head.path,
            "HTTP/1.1" if head.version == (1, 1) else "HTTP/1.0",
            status or CLIENT_CLOSED_REQUEST,
            sent + exchange.passed,
            head.first(b"user-agent") or b"",
            self.clock.seconds() - exchange.arrived,
        )
