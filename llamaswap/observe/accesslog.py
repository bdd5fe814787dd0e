"""The access log: one line a request on the proxy log, after the response ended.

Knows the line's shape and whose address counts as the client's; must not know where lines go.
"""

from __future__ import annotations

from functools import lru_cache

from attrs import define, frozen

from llamaswap.config import durations
from llamaswap.observe.log_format import LogFormatter

# Polled by health checks and dashboards: a line each would bury everything else.
SILENT = ("/wol-health", "/api/performance", "/metrics")
# Bytes of a path, an agent or an address that is kept at hand: a client may send as much of each as a head holds, and
# another one with every request.
KEPT = 512


def _escaped(raw: bytes) -> str:
    """Header text that cannot forge a second line or colour the terminal."""
    text = raw.decode("utf-8", "replace")
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _led(ip: str, method: bytes, path: bytes, protocol: str) -> str | None:
    """The line up to its numbers; None where there is to be none."""
    shown = _escaped(path)
    if shown.startswith(SILENT):
        return None
    return f'Request {_escaped(ip.encode())} "{_escaped(method)} {shown} {protocol}"'


# They repeat.
_known = lru_cache(maxsize=1024)(_escaped)
_lead = lru_cache(maxsize=1024)(_led)


@define  # made for every request: freezing doubles what that costs
class AccessRecord:
    """What the line tells. `path` as received without the query, `sent` the body's bytes, `seconds` the whole time."""

    ip: str
    method: bytes
    path: bytes
    protocol: str
    status: int
    sent: int
    user_agent: bytes
    seconds: float


@frozen
class AccessLog:
    """Writes an `AccessRecord` as an info line, unless its path is a poller's."""

    lines: LogFormatter

    def served(self, request: AccessRecord) -> None:
        """The response to this request ended."""
        path, agent = request.path, request.user_agent
        short = len(path) + len(request.ip) <= KEPT
        lead = (_lead if short else _led)(request.ip, request.method, path, request.protocol)
        if lead is None or not self.lines.wants("info"):
            return
        told = _known(agent) if len(agent) <= KEPT else _escaped(agent)
        self.lines.line(
            "info",
            f'{lead} {request.status} {request.sent} "{told}" {durations.render(request.seconds)}',
        )
