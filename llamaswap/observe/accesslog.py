"""The access log: one line per request in the proxy log, after the response ended."""

from __future__ import annotations

from functools import lru_cache

from attrs import frozen

from llamaswap.config import durations
from llamaswap.observe.log_format import LogFormatter

# Health checks and dashboards poll these paths: lines for them would hide all others.
UNLOGGED_PATHS = ("/wol-health", "/api/performance", "/metrics")
# Reads that the web page and monitors make all the time are debug lines, unless they fail.
ROUTINE_PATHS = (b"/ui/", b"/api/", b"/health", b"/readyz", b"/favicon.ico")
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


@frozen
class LogText:
    """What a request's head contributes to its line: `beginning` is the line up to the status, None if the path is not
    logged; `routine`: the request reads one of `ROUTINE_PATHS`."""

    beginning: str | None
    agent: str
    routine: bool

    @classmethod
    def of(cls, ip: str, method: bytes, path: bytes, protocol: str, agent: bytes) -> LogText:
        """The texts of a head."""
        make = _cached_beginning if len(path) + len(ip) <= MAX_CACHED else _beginning
        shown = _cached_escaped(agent) if len(agent) <= MAX_CACHED else _escaped(agent)
        routine = method in (b"GET", b"HEAD") and path.startswith(ROUTINE_PATHS)
        return cls(make(ip, method, path, protocol), shown, routine)


@frozen
class AccessLog:
    """Writes the access log as info lines of `lines`, and as debug lines for routine requests that succeed."""

    lines: LogFormatter

    def served(
        self,
        ip: str,
        method: bytes,
        path: bytes,
        protocol: str,
        status: int,
        sent: int,
        agent: bytes,
        seconds: float,
        key: str = "",
    ) -> None:
        """Write the line of a request, after its response ended, unless its path is one of `UNLOGGED_PATHS`.

        `path` is as received, without the query; `sent` are the body's bytes; `agent` is the User-Agent, `key` the name
        of the client's API key.
        """
        self.write(LogText.of(ip, method, path, protocol, agent), status, sent, seconds, key)

    def write(self, text: LogText, status: int, sent: int, seconds: float, key: str = "") -> None:
        """The same with the texts of a request's head."""
        level = "debug" if text.routine and status < 400 else "info"
        if text.beginning is not None:
            line = f'{text.beginning} {status} {sent} "{text.agent}" {durations.render(seconds)}'
            if key:
                line += f" key={key}"
            self.lines.line(level, line)
