"""Our own log lines: `[<time> ][<prefix> ][LEVEL] message`, from Twisted's log events to the proxy monitor.

Knows the spellings of logTimeFormat and the levels; must not know who reads the lines.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime

from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent
from zope.interface import implementer

GATHER = 0.02  # seconds from a line that needs no haste to its writing
TOGETHER = 64  # so many do not wait for that

LEVELS = {"debug": 10, "info": 20, "warn": 30, "error": 40}
_RANK = {LogLevel.debug: 10, LogLevel.info: 20, LogLevel.warn: 30, LogLevel.error: 40, LogLevel.critical: 40}
_WORD = {10: "DEBUG", 20: "INFO", 30: "WARN", 40: "ERROR"}

# Written out rather than %a and %b: the C library would use the operator's language.
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def _clock(t: datetime) -> str:
    return f"{t.hour:02d}:{t.minute:02d}:{t.second:02d}"


def _day(t: datetime) -> str:
    return _DAYS[t.weekday()][:3]


def _month(t: datetime) -> str:
    return _MONTHS[t.month - 1]


def _offset(t: datetime, colon: bool = False) -> str:
    delta = t.utcoffset()
    minutes = 0 if delta is None else int(delta.total_seconds() // 60)
    sign = "-" if minutes < 0 else "+"
    hours, rest = divmod(abs(minutes), 60)
    return f"{sign}{hours:02d}{':' if colon else ''}{rest:02d}"


def _zone(t: datetime) -> str:
    name = t.tzname() or "UTC"
    # Zones without an abbreviation of their own are written as their bare offset ("+03").
    return name if name.isalpha() else _offset(t)[:3] if _offset(t).endswith("00") else _offset(t)


def _iso(t: datetime) -> str:
    return f"{t.year:04d}-{t.month:02d}-{t.day:02d}T{_clock(t)}"


def _iso_zone(t: datetime) -> str:
    return "Z" if not t.utcoffset() else _offset(t, colon=True)


def rfc3339(t: datetime) -> str:
    """`2026-02-03T04:05:06+01:00`, UTC as Z."""
    return _iso(t) + _iso_zone(t)


def rfc3339nano(t: datetime) -> str:
    """The same with the fraction of the second, its trailing zeros cut."""
    fraction = f".{t.microsecond:06d}".rstrip("0").rstrip(".")
    return _iso(t) + fraction + _iso_zone(t)


def _stamp(t: datetime) -> str:
    return f"{_month(t)} {t.day:2d} {_clock(t)}"


def _kitchen(t: datetime) -> str:
    return f"{t.hour % 12 or 12}:{t.minute:02d}{'PM' if t.hour >= 12 else 'AM'}"


def _short_year(t: datetime) -> str:
    return f"{t.year % 100:02d}"


TIME_FORMATS: dict[str, Callable[[datetime], str]] = {
    "ansic": lambda t: f"{_day(t)} {_stamp(t)} {t.year}",
    "unixdate": lambda t: f"{_day(t)} {_stamp(t)} {_zone(t)} {t.year}",
    "rubydate": lambda t: f"{_day(t)} {_month(t)} {t.day:02d} {_clock(t)} {_offset(t)} {t.year}",
    "rfc822": lambda t: f"{t.day:02d} {_month(t)} {_short_year(t)} {t.hour:02d}:{t.minute:02d} {_zone(t)}",
    "rfc822z": lambda t: f"{t.day:02d} {_month(t)} {_short_year(t)} {t.hour:02d}:{t.minute:02d} {_offset(t)}",
    "rfc850": lambda t: f"{_DAYS[t.weekday()]}, {t.day:02d}-{_month(t)}-{_short_year(t)} {_clock(t)} {_zone(t)}",
    "rfc1123": lambda t: f"{_day(t)}, {t.day:02d} {_month(t)} {t.year} {_clock(t)} {_zone(t)}",
    "rfc1123z": lambda t: f"{_day(t)}, {t.day:02d} {_month(t)} {t.year} {_clock(t)} {_offset(t)}",
    "rfc3339": rfc3339,
    "rfc3339nano": rfc3339nano,
    "kitchen": _kitchen,
    "stamp": _stamp,
    "stampmilli": lambda t: f"{_stamp(t)}.{t.microsecond // 1000:03d}",
    "stampmicro": lambda t: f"{_stamp(t)}.{t.microsecond:06d}",
    "stampnano": lambda t: f"{_stamp(t)}.{t.microsecond:06d}000",
}


_FRACTIONS = frozenset({"rfc3339nano", "stampmilli", "stampmicro", "stampnano"})


def local_time(seconds: float) -> datetime:
    """Unix seconds in the server's zone."""
    return datetime.fromtimestamp(seconds).astimezone()


@implementer(ILogObserver)
class LogFormatter:
    """Writes the events of namespace `llamaswap` as lines; anything below the level is dropped.

    `write` takes bytes (the proxy monitor's). `from_thread(write, data)` carries a line written by another
    thread to this one (the reactor's callFromThread). `wall` is only asked for lines that carry no time. With `later`
    (the reactor's callLater) lines that need no haste are written several at once.
    """

    def __init__(
        self,
        write: Callable[[bytes], None],
        *,
        level: str = "info",
        time_format: str = "",
        wall: Callable[[], float],
        local: Callable[[float], datetime] = local_time,
        from_thread: Callable[[Callable[[bytes], None], bytes], None] | None = None,
        later: Callable[[float, Callable[[], None]], object] | None = None,
        namespace: str = "llamaswap",
    ) -> None:
        self._write = write
        self._later = later
        self._gathered: list[bytes] = []
        self._wall = wall
        self._local = local
        self._from_thread = from_thread
        self._home = threading.get_ident()
        self._namespace = namespace
        self._inside = namespace + "."
        self.retune(level, time_format)

    def retune(self, level: str, time_format: str) -> None:
        """A reload changed logLevel or logTimeFormat; unknown names mean info and no time."""
        self._rank = LEVELS.get(level.strip().lower(), 20)
        name = time_format.strip().lower()
        self._format = TIME_FORMATS.get(name)
        self._fraction = name in _FRACTIONS
        self._stamped: tuple[int, str] | None = None

    def wants(self, level: str) -> bool:
        """Whether a line of this level would be written: ask before formatting an expensive one."""
        return LEVELS[level] >= self._rank

    def line(self, level: str, message: str, at: float | None = None) -> None:
        """Write one line without an event and, where there is a `later`, without haste (the access log, which is on
        every request's way)."""
        rank = LEVELS[level]
        if rank < self._rank:
            return
        if self._later is None or threading.get_ident() != self._home:
            self._emit(rank, message, self._wall() if at is None else at)
            return
        gathered = self._gathered
        if not gathered:
            self._later(GATHER, self.flush)
        stamp = self._stamp(self._wall() if at is None else at) if self._format is not None else ""
        gathered.append(f"{stamp}[{_WORD[rank]}] {message}\n".encode("utf-8", "replace"))
        if len(gathered) >= TOGETHER:
            self._write(b"".join(gathered))
            gathered[:] = [b""]  # the call is still due

    def flush(self) -> None:
        """Write what was gathered."""
        gathered, self._gathered = self._gathered, []
        data = b"".join(gathered)
        if data:
            self._write(data)

    def __call__(self, event: LogEvent) -> None:
        namespace = event.get("log_namespace") or ""
        if namespace != self._namespace and not namespace.startswith(self._inside):
            return
        rank = _RANK.get(event.get("log_level", LogLevel.info), 20)
        if rank < self._rank:
            return
        message = formatEvent(event)
        failure = event.get("log_failure")
        if failure is not None:
            message = f"{message}\n{failure.getTraceback()}" if message else failure.getTraceback()
        self._emit(rank, message.rstrip("\n"), event.get("log_time") or self._wall())

    def _emit(self, rank: int, message: str, at: float) -> None:
        stamp = self._stamp(at) if self._format is not None else ""
        data = f"{stamp}[{_WORD[rank]}] {message}\n".encode("utf-8", "replace")
        if self._from_thread is not None and threading.get_ident() != self._home:
            self._from_thread(self._write if self._later is None else self._after_gathered, data)
        else:
            self._after_gathered(data)

    def _after_gathered(self, data: bytes) -> None:
        gathered = self._gathered
        if gathered:
            data = b"".join((*gathered, data))
            gathered[:] = [b""]
        self._write(data)

    def _stamp(self, at: float) -> str:
        """The time before a line; lines of one second share it, unless its fraction shows."""
        if self._format is None:
            return ""
        if self._fraction:
            return f"{self._format(self._local(at))} "
        second = int(at)
        # One tuple, replaced whole: lines may come from other threads.
        known = self._stamped
        if known is None or known[0] != second:
            known = self._stamped = (second, f"{self._format(self._local(at))} ")
        return known[1]
