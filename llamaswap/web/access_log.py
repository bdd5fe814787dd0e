"""The access log of the proxy: one line for each exchange that has ended.

The admin site writes its lines itself (`app.AdminSite`). This module must not know models.
"""

from __future__ import annotations

from attrs import define, frozen
from twisted.internet.interfaces import IReactorTime

from llamaswap.errors import CLIENT_CLOSED_REQUEST
from llamaswap.observe.accesslog import AccessLog, LogText
from llamaswap.proxy.exchange import Exchange
from llamaswap.wire.headers import real_client_address


@frozen
class _ClientText:
    """The texts of a head that this address sent."""

    address: str
    text: LogText


@define(eq=False)
class AccessLogger:
    """Writes a line for each exchange that it is called with."""

    access: AccessLog
    clock: IReactorTime

    def __call__(self, exchange: Exchange, status: int, sent: int) -> None:
        """Log an exchange at its end. `status` 0: no head was sent. `sent`: the body's bytes, with the framing of a raw
        body, without those that the exchange counted itself."""
        head, address = exchange.head, exchange.client_address
        logged = head.known.logged
        if not isinstance(logged, _ClientText) or logged.address != address:
            text = LogText.of(
                real_client_address(head.first, address),
                head.method,
                head.path,
                "HTTP/1.1" if head.version == (1, 1) else "HTTP/1.0",
                head.first(b"user-agent") or b"",
            )
            logged = head.known.logged = _ClientText(address, text)
        seconds = self.clock.seconds() - exchange.arrived
        self.access.write(
            logged.text, status or CLIENT_CLOSED_REQUEST, sent + exchange.passed, seconds, exchange.key_name
        )
