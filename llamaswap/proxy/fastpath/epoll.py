"""An epoll reactor with a simpler poll loop, which `twist llamaswap` installs on Linux unless --reactor names another.

Twisted's loop enters a log context in every iteration and for every event; for small events (a chunk of a stream) that
is a fifth of the work. Here the context is entered only when there is something to log.

Data from servers is read before data from clients: a chunk takes microseconds, a new request hundreds of them, so when
thousands of clients come at once, the running streams would wait behind all of them in every iteration.

This uses private state of `twisted.internet.epollreactor.EPollReactor`; tests/proxy/test_epoll.py fails if it moves.

`python -m benchmarks --only small --without epoll`: a request takes 253 us of CPU without it, 230 with it; the p99 of a
chunk of 500 streams is 15.6 ms without it, 9.0 ms with it.
"""

from __future__ import annotations

import errno
import select
import sys
from typing import TYPE_CHECKING, Any

from twisted.internet.tcp import Client
from twisted.logger import Logger
from twisted.python.log import callWithLogger, err

from llamaswap.proxy.fastpath.direct_connect import LoopbackConnection

if TYPE_CHECKING or sys.platform.startswith("linux"):
    from twisted.internet.epollreactor import EPollReactor
else:
    EPollReactor = object

# Seconds that one iteration spends at least on everything except servers' data, before it looks for more of that; or as
# long as the servers' data took. Descriptors that were not served are the first in the next iteration.
TURN = 0.002
SERVERS = (Client, LoopbackConnection)
LONGEST_WAIT = 2147483.0  # seconds; epoll takes milliseconds, of 31 bits

log = Logger("twisted.internet.base")  # whose main loop this one replaces


class ProxyReactor(EPollReactor):
    """Reads servers' data first, and enters a log context only when there is something to log."""

    def __init__(self) -> None:
        super().__init__()
        self._unserved: list[int] = []

    def mainLoop(self) -> None:
        """Until the reactor stops; a fault outside of all protocols and calls is logged, and the loop goes on."""
        while self._started:
            with log.failureHandler("Unexpected error in main loop"):
                while self._started:
                    self.runUntilCurrent()
                    self.doPoll(self.running and self.timeout())
        log.info("Main loop terminated.")

    def timeout(self) -> float | None:
        """Seconds until the next delayed call is due, None without one."""
        if self._newTimedCalls:
            self._insertNewDelayedCalls()
        pending = self._pendingTimedCalls
        return max(0.0, min(LONGEST_WAIT, pending[0].time - self.seconds())) if pending else None

    def runUntilCurrent(self) -> None:
        """Run what is due, if anything is: most iterations only read and write."""
        pending = self._pendingTimedCalls
        if (
            self.threadCallQueue
            or self._newTimedCalls
            or self._justStopped
            or self._cancellations > 50  # so many that it may drop them
            or (pending and pending[0].time <= self.seconds())
        ):
            super().runUntilCurrent()

    def doPoll(self, timeout: float | None) -> None:
        """Wait up to `timeout` seconds for events (None: until there is one), and handle them."""
        selectables = self._selectables
        try:
            # As many events as there are descriptors: each is served once before any is served twice.
            events = self._poller.poll(-1 if timeout is None else timeout, len(selectables) or 1)
        except OSError as error:
            if error.errno == errno.EINTR:
                return
            raise
        began, readable = self.seconds(), select.EPOLLIN
        others: dict[int, int] = {}
        for descriptor, event in events:
            # An earlier event of this round may have closed it.
            selectable = selectables.get(descriptor)
            if event != readable or selectable is None or type(selectable) not in SERVERS:
                others[descriptor] = event
                continue
            try:
                why: Any = selectable.doRead()
            except BaseException:  # a fault in a protocol closes only its own connection
                why = self._logged(selectable)
            if why:
                self._disconnectSelectable(selectable, why, True)
        if others:
            self._serve(others, began)

    doIteration = doPoll

    def _serve(self, events: dict[int, int], began: float) -> None:
        """Handle these events, and leave the last ones to the next iteration if that takes long."""
        if self._unserved:
            earlier, self._unserved = self._unserved, []
            events = {fd: events.pop(fd) for fd in earlier if fd in events} | events
        now = self.seconds()
        until = now + max(TURN, now - began)
        while events:
            descriptor, event = next(iter(events.items()))
            del events[descriptor]
            selectable = self._selectables.get(descriptor)
            if selectable is not None:
                self._doReadOrWrite(selectable, descriptor, event)
                if self.seconds() >= until:
                    self._unserved = list(events)
                    return

    def _doReadOrWrite(self, selectable: Any, fd: int, event: int) -> None:
        """Handle a descriptor's event. A fault in a protocol is logged with its connection, and closes it."""
        reading = False
        why: Any = None
        if event & self._POLL_DISCONNECTED and not event & self._POLL_IN:
            super()._doReadOrWrite(selectable, fd, event)  # calls no protocol before the connection is lost
            return
        try:
            if event & self._POLL_IN:
                why, reading = selectable.doRead(), True
            if not why and event & self._POLL_OUT:
                why, reading = selectable.doWrite(), False
        except BaseException:
            why = self._logged(selectable)
        if why:
            self._disconnectSelectable(selectable, why, reading)

    def _logged(self, selectable: Any) -> BaseException | None:
        """The exception that is being handled, after it was logged with the name of its connection."""
        callWithLogger(selectable, err)
        return sys.exc_info()[1]


def install() -> None:
    """Make it the process's reactor, on Linux and if there is none yet."""
    if sys.platform.startswith("linux") and "twisted.internet.reactor" not in sys.modules:
        from twisted.internet.main import installReactor

        installReactor(ProxyReactor())
