"""The signals that the service handles once it runs."""

from __future__ import annotations

import signal
from collections.abc import Callable

from llamaswap import early_signals
from llamaswap.app.context import IServiceReactor


def handle_signals(
    reactor: IServiceReactor, *, reload: Callable[[], None], upgrade: Callable[[], None], stop: Callable[[], None]
) -> None:
    """SIGHUP calls `reload`, SIGUSR2 `upgrade`, SIGTERM and SIGINT `stop`.

    The first two are called by the reactor. `stop` is called in the signal handler itself, because an upgrade must
    see it before it replaces the program.
    """
    try:
        signal.signal(signal.SIGHUP, lambda *_: reactor.callFromThread(reload))
        signal.signal(signal.SIGUSR2, lambda *_: reactor.callFromThread(upgrade))
        for number in (signal.SIGTERM, signal.SIGINT):
            # Not through Twisted's handlers: with them the process ends by the signal, not with status 0.
            signal.signal(number, lambda *_: stop())
    except ValueError:  # not the main thread: the program that embeds the service handles signals
        return
    if early_signals.reload_requested():
        reactor.callFromThread(reload)
