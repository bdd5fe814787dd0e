"""SIGHUP and SIGUSR2 between the start of the program and the moment the service handles them itself.

Their default action ends the process. Handlers are set instead of SIG_IGN, because exec resets a handler but passes
an ignored signal on to every child process. Imports nothing beside `signal`, so that it can run first.
"""

from __future__ import annotations

import signal
from types import FrameType

_came: set[int] = set()
_before: dict[int, object] = {}


def _remember(number: int, frame: FrameType | None) -> None:
    _came.add(number)


def catch() -> None:
    """Remember both signals from now on; in a thread other than the main one nothing changes."""
    try:
        for number in (signal.SIGHUP, signal.SIGUSR2):
            if number not in _before:
                _before[number] = signal.signal(number, _remember)
    except ValueError:
        pass


def release() -> None:
    """Give both signals back what they did before, for a command that is not the service."""
    while _before:
        number, handler = _before.popitem()
        if signal.getsignal(number) is _remember:
            signal.signal(number, handler)  # type: ignore[arg-type]


def reload_asked() -> bool:
    """Whether a SIGHUP came since `catch`; true once, however many came."""
    asked = signal.SIGHUP in _came
    _came.clear()
    return asked
