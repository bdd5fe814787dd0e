"""A plain poll loop for Twisted's epoll reactor.

The stock loop wraps every event in a log context; nothing here uses that, and on small events (one chunk of a
stream) it is a fifth of the work. The loop below is the stock one without the wrapping.

This uses private state of `twisted.internet.epollreactor.EPollReactor`. Only this module does;
tests/relay/test_polling.py fails when it moves, and any other reactor is left as it is.
"""

from __future__ import annotations

import errno
from typing import Any

_NEEDED = ("_poller", "_selectables", "_doReadOrWrite", "doIteration")


def use_plain_poll(reactor: Any) -> bool:
    """Let this reactor poll plainly, if it is the epoll reactor as we know it; returns whether it does."""
    if type(reactor).__name__ != "EPollReactor" or not all(hasattr(reactor, name) for name in _NEEDED):
        return False
    poller, selectables, do = reactor._poller, reactor._selectables, reactor._doReadOrWrite

    def poll(timeout: float | None) -> None:
        try:
            # As many events as there are descriptors: each gets its turn before any gets a second.
            events = poller.poll(-1 if timeout is None else timeout, len(selectables) or 1)
        except OSError as error:
            if error.errno == errno.EINTR:
                return
            raise
        for descriptor, event in events:
            # An earlier event of this round may have closed it.
            selectable = selectables.get(descriptor)
            if selectable is not None:
                do(selectable, descriptor, event)

    reactor.doIteration = reactor.doPoll = poll
    return True
