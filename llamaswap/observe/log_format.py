"""Our own log lines: `[<time> ][<prefix> ][LEVEL] message`, from Twisted's log events to the proxy monitor.

This module knows the names of logTimeFormat and the levels; it must not know who reads the lines.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime
from typing import Annotated

from attrs import define, field
from twisted.internet.interfaces import IReactorFromThreads, IReactorTime
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent
from zope.interface import implementer

NAMESPACE = "llamaswap"
WRITE_DELAY = 0.02  # seconds between a gathered line and its write
MAX_GATHERED = 64  # lines that are written without that delay

LEVELS = {"debug": 10, "info": 20, "warn": 30, "error": 40}

# Names of days and months are English: Python keeps the C locale for times unless a program sets another one.
_DATE, _CLOCK = "%a, %d %b %Y", "%H:%M:%S"
_STAMP = f"%b %e {_CLOCK}"


def rfc3339(t: datetime) -> str:
    """`2026-02-03T04:05:06+01:00`, UTC as Z."""
    return t.isoformat(timespec="seconds").replace("+00:00", "Z")


def rfc3339nano(t: datetime) -> str:
    """`rfc3339` with the fraction of the second, without its trailing zeros."""
    whole = rfc3339(t)
    return f"{whole[:19]}.{t.microsecond:06d}".rstrip("0").rstrip(".") + whole[19:]


def _zone(t: datetime) -> str:
    """The zone's abbreviation; its offset for a zone without one ("+03")."""
    name = t.strftime("%Z") or "UTC"
    return name if name.isalpha() else t.strftime("%z").removesuffix("00")


# The names of Go's time package. {zone} is the zone as above.
_LAYOUTS = {
    "ansic": f"%a {_STAMP} %Y",
    "unixdate": f"%a {_STAMP} {{zone}} %Y",
    "rubydate": f"%a %b %d {_CLOCK} %z %Y",
    "rfc822": "%d %b %y %H:%M {zone}",
    "rfc822z": "%d %b %y %H:%M %z",
    "rfc850": f"%A, %d-%b-%y {_CLOCK} {{zone}}",
    "rfc1123": f"{_DATE} {_CLOCK} {{zone}}",
    "rfc1123z": f"{_DATE} {_CLOCK} %z",
    "stamp": _STAMP,
    "stampmicro": f"{_STAMP}.%f",
    "stampnano": f"{_STAMP}.%f000",
}


def _with_layout(layout: str) -> Callable[[datetime], str]:
    if "{zone}" in layout:
        return lambda t: t.strftime(layout.replace("{zone}", _zone(t)))
    return lambda t: t.strftime(layout)


TIME_FORMATS: dict[str, Callable[[datetime], str]] = {
    **{name: _with_layout(layout) for name, layout in _LAYOUTS.items()},
    "stampmilli": lambda t: t.strftime(f"{_STAMP}.%f")[:-3],
    "rfc3339": rfc3339,
    "rfc3339nano": rfc3339nano,
    "kitchen": lambda t: t.strftime("%I:%M%p").lstrip("0"),
}
# Formats that show a fraction of the second.
_FRACTIONS = frozenset({"rfc3339nano", "stampmilli", "stampmicro", "stampnano"})

Timestamp = Annotated[str, ("format", "date-time")]  # RFC 3339 in a document


def local_time(seconds: float) -> datetime:
    """Unix seconds in the server's zone."""
    return datetime.fromtimestamp(seconds).astimezone()


def timestamp(seconds: float) -> str:
    """Unix seconds in the server's zone, as documents show them."""
    return rfc3339nano(local_time(seconds))


@implementer(ILogObserver)
@define(eq=False)
class LogFormatter:
    """Writes the events of namespace `llamaswap` as lines; drops events below the level.

    `write` takes bytes (the proxy monitor's); it is always called on the reactor's thread. `wall` gives the time of
    lines that have none.
    """

    write: Callable[[bytes], None]
    clock: IReactorTime
    threads: IReactorFromThreads
    wall: Callable[[], float]
    _rank: int = field(default=LEVELS["info"], init=False)
    _format: Callable[[datetime], str] | None = field(default=None, init=False)
    _fraction: bool = field(default=False, init=False)
    _last_stamp: tuple[int, str] | None = field(default=None, init=False)
    _gathered: list[bytes] = field(factory=list, init=False)
    _reactor_thread: int = field(factory=threading.get_ident, init=False)

    def retune(self, level: str, time_format: str) -> None:
        """Use these settings (logLevel and logTimeFormat); unknown names mean info and no time."""
        self._rank = LEVELS.get(level.strip().lower(), LEVELS["info"])
        name = time_format.strip().lower()
        self._format = TIME_FORMATS.get(name)
        self._fraction = name in _FRACTIONS
        self._last_stamp = None

    def wants(self, level: str) -> bool:
        """Whether a line of this level would be written: ask before formatting an expensive one."""
        return LEVELS[level] >= self._rank

    def line(self, level: str, message: str) -> None:
        """Write one line without an event, together with those of the next `WRITE_DELAY` seconds.

        For the access log, which every request pays for.
        """
        if LEVELS[level] < self._rank:
            return
        data = self._line(level, message, self.wall())
        if threading.get_ident() != self._reactor_thread:
            self._emit(data)
            return
        gathered = self._gathered
        if not gathered:
            self.clock.callLater(WRITE_DELAY, self.flush)
        gathered.append(data)
        if len(gathered) >= MAX_GATHERED:
            self.write(b"".join(gathered))
            gathered[:] = [b""]  # not empty: the delayed call is still due

    def flush(self) -> None:
        """Write the gathered lines."""
        gathered, self._gathered = self._gathered, []
        data = b"".join(gathered)
        if data:
            self.write(data)

    def __call__(self, event: LogEvent) -> None:
        namespace = event.get("log_namespace") or ""
        if namespace != NAMESPACE and not namespace.startswith(f"{NAMESPACE}."):
            return
        level: str = event.get("log_level", LogLevel.info).name
        level = level if level in LEVELS else "error"  # such as "critical"
        if LEVELS[level] < self._rank:
            return
        message = formatEvent(event)
        failure = event.get("log_failure")
        if failure is not None:
            message = f"{message}\n{failure.getTraceback()}" if message else failure.getTraceback()
        self._emit(self._line(level, message.rstrip("\n"), event.get("log_time") or self.wall()))

    def _emit(self, data: bytes) -> None:
        if threading.get_ident() == self._reactor_thread:
            self._write_after_gathered(data)
        else:
            self.threads.callFromThread(self._write_after_gathered, data)

    def _write_after_gathered(self, data: bytes) -> None:
        gathered = self._gathered
        if gathered:
            data = b"".join((*gathered, data))
            gathered[:] = [b""]
        self.write(data)

    def _line(self, level: str, message: str, at: float) -> bytes:
        stamp = "" if self._format is None else self._stamp(self._format, at)
        return f"{stamp}[{level.upper()}] {message}\n".encode("utf-8", "replace")

    def _stamp(self, time_format: Callable[[datetime], str], at: float) -> str:
        """The time before a line; lines of one second share it, unless its fraction shows."""
        if self._fraction:
            return f"{time_format(local_time(at))} "
        second = int(at)
        # The tuple is replaced as a whole because lines may come from other threads.
        last = self._last_stamp
        if last is None or last[0] != second:
            last = self._last_stamp = (second, f"{time_format(local_time(at))} ")
        return last[1]
