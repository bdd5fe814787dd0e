"""The access log of the front door: one line for each exchange that is over.

The Klein door writes its lines from the site (`app.AdminSite`); both write the same record. Must not know models.
"""

from __future__ import annotations

from typing import Any

from attrs import define

from llamaswap.errors import CLIENT_CLOSED_REQUEST
from llamaswap.observe.accesslog import AccessLog, AccessRecord
from llamaswap.proxy.exchange import Exchange
from llamaswap.wire.headers import client_address


@define(eq=False)
class AccessLogger:
    """Has a line written for each exchange it is told of. `clock` provides IReactorTime."""

    access: AccessLog
    clock: Any

    def __call__(self, exchange: Exchange, status: int, sent: int) -> None:
        """An exchange is over. `status` 0: nothing went out; `sent`: body bytes, with their framing where it is raw,
        without those that the exchange counted itself."""
        head = exchange.head
        self.access.served(
            AccessRecord(
                client_address(head.first, exchange.peer),
                head.method,
                head.path,
                "HTTP/1.1" if head.version == (1, 1) else "HTTP/1.0",
                status or CLIENT_CLOSED_REQUEST,
                sent + exchange.passed,
                head.first(b"user-agent") or b"",
                self.clock.seconds() - exchange.arrived,
            )
        )
