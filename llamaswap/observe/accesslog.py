"""The access log: one line per request in the proxy log, after the response ended."""

from __future__ import annotations

from functools import lru_cache

from attrs import define, frozen

from llamaswap.config import durations
from llamaswap.observe.log_format import LogFormatter

# Health checks and dashboards poll these paths: lines for them would hide all others.
UNLOGGED_PATHS = ("/wol-health", "/api/performance", "/metrics")
MAX_CACHED = 512  # bytes of a path or a user agent; a client may send longer ones, which must not fill the cache


def _escaped(raw: bytes) -> str:
    """Header text without the characters that could forge a line or colour the terminal."""
    text = raw.decode("utf-8", "replace")
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _beginning(ip: str, method: bytes, path: bytes, protocol: str) -> str | None:
    """The line up to the status; None for a path that is not logged."""
    shown = _escaped(path)
    if shown.startswith(UNLOGGED_PATHS):
        return None
    return f'Request {_escaped(ip.encode())} "{_escaped(method)} {shown} {protocol}"'


_cached_escaped = lru_cache(maxsize=1024)(_escaped)
_cached_beginning = lru_cache(maxsize=1024)(_beginning)


@define  # made for every request: freezing doubles what that costs
class AccessRecord:
    """The parts of a line. `path` is as received, without the query; `sent` are the body's bytes."""

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
    """Writes each `AccessRecord` as an info line, unless its path is one of `UNLOGGED_PATHS`."""

    lines: LogFormatter

    def served(self, request: AccessRecord) -> None:
        """The response to this request ended."""
        path, agent = request.path, request.user_agent
        short = len(path) + len(request.ip) <= MAX_CACHED
        make = _cached_beginning if short else _beginning
        beginning = make(request.ip, request.method, path, request.protocol)
        if beginning is None or not self.lines.wants("info"):
            return
        shown = _cached_escaped(agent) if len(agent) <= MAX_CACHED else _escaped(agent)
        self.lines.line(
            "info",
            f'{beginning} {request.status} {request.sent} "{shown}" {durations.render(request.seconds)}',
        )
