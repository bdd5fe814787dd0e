"""SIGHUP and SIGUSR2 between the start of the program and the moment the service handles them itself.

Their default action ends the process. Handlers are set instead of SIG_IGN, because exec resets a handler but passes
an ignored signal on to every child process. Imports only `signal`, so that it can run first.
"""

from __future__ import annotations

import signal
from types import FrameType

SIGNALS = (signal.SIGHUP, signal.SIGUSR2)
_received: set[int] = set()
_earlier_handlers: dict[int, object] = {}


def _remember(number: int, frame: FrameType | None) -> None:
    _received.add(number)


def catch() -> None:
    """Remember both signals from now on, also those that an upgrade kept blocked while it replaced the program. In a
    thread other than the main one nothing changes."""
    try:
        for number in SIGNALS:
            if number not in _earlier_handlers:
                _earlier_handlers[number] = signal.signal(number, _remember)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    except ValueError:
        pass


def release() -> None:
    """Restore the earlier handlers of both signals, for a command that is not the service."""
    while _earlier_handlers:
        number, handler = _earlier_handlers.popitem()
        if signal.getsignal(number) is _remember:
            signal.signal(number, handler)  # type: ignore[arg-type]


def reload_requested() -> bool:
    """Whether SIGHUP was received since `catch`; forgets what was received."""
    requested = signal.SIGHUP in _received
    _received.clear()
    return requested
