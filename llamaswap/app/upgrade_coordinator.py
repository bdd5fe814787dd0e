"""Replaces the running program by its new code, in place: the same process, the same sockets, the same servers.

`exec` keeps the pid, the children and every descriptor that is made inheritable for it. So the old program writes
down what the new one must know, waits for a moment in which no request is in progress, and becomes the new one.
Before that the new code is checked in a child, with the same command line and configuration.

1. Check the new code. If it does not start, nothing happens.
2. Hold requests back for `HOLD_TIME`, again and again, until a hold finds the service at rest.
3. After `WAIT_TIMEOUT` hold them for up to `LAST_HOLD_TIME`; if the upgrade is requested a second time, for up to
   `drainTimeout` at once.
4. If requests still run then, the upgrade fails; one that was requested a second time closes them.
5. If the code or the configuration files changed since the check, go back to 1 before anything is closed.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Hashable

from attrs import define
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as TimeIsUp
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaswap.app.handover import ServiceHandover
from llamaswap.upgrade.state import UpgradeState

WAIT_TIMEOUT = 120.0  # seconds in which requests are served while a moment without one is waited for
HOLD_TIME = 1.0  # seconds for which requests are held back to see whether the others end
LAST_HOLD_TIME = 30.0  # seconds of the hold at the end of the wait, or `drainTimeout` if that is shorter
RETRY_INTERVAL = 5.0  # seconds between two such holds, in which requests are served
FLUSH_TIMEOUT = 5.0  # seconds for disks and drivers to finish, while requests are held back
CLOSE_TIMEOUT = 10.0  # seconds for closed requests to end; a server that is being loaded takes five
POLL_INTERVAL = 0.01  # seconds between two looks whether the service is at rest

log = Logger()


class _UpgradeFailed(Exception):
    """The upgrade cannot go on; the service runs on unchanged."""


class _FilesChanged(Exception):
    """The new program would start with other files than those that were checked."""


@define(eq=False)
class Upgrade:
    """Upgrades on demand, one at a time.

    `check` returns why the new code cannot run, "" if it can; `exec_new` replaces the program. `phase` is idle,
    checking, waiting or draining; `error` is why the last of the `attempts` failed, `count` how often this process
    was upgraded.
    """

    clock: IReactorTime
    host: ServiceHandover
    check: Callable[[], Awaitable[str]]
    exec_new: Callable[[int, UpgradeState], None]
    count: int = 0
    phase: str = "idle"
    attempts: int = 0
    error: str = ""
    _forced: bool = False
    _closed: bool = False
    _checked: Hashable = None
    _running: Deferred[None] | None = None

    def document(self) -> dict[str, object]:
        """The state, for the API."""
        state = {"count": self.count, "attempts": self.attempts, "phase": self.phase, "error": self.error}
        return {"pid": os.getpid(), **state}

    def request(self) -> None:
        """Upgrade. A request while an upgrade waits for requests to end lets it close those that outlast
        `drain_timeout`."""
        if self.phase == "idle":
            self.attempts += 1
            self.error, self._forced, self._closed = "", False, False
            self._running = Deferred.fromCoroutine(self._run())
            self._running.addErrback(self._failed).addCallback(lambda _: self._ended())
        elif self.phase != "checking" and not self._forced:
            self._forced = True
            log.warn(
                "upgrade: requested again; requests that run longer than {seconds:g}s are closed",
                seconds=self.host.drain_timeout,
            )

    def cancel(self) -> None:
        """Give the upgrade up, and go on serving."""
        if self._running is not None:
            self._running.cancel()

    def _ended(self) -> None:
        self.phase, self._running = "idle", None
        if self.error:
            log.error("upgrade failed, the service runs on unchanged: {error}", error=self.error)

    def _failed(self, failure: Failure) -> None:
        if failure.check(CancelledError):
            return
        self.error = failure.getErrorMessage()
        if not failure.check(_UpgradeFailed):
            log.failure("the upgrade failed", failure)

    async def _run(self) -> None:
        """Returns only if the upgrade failed without an exception, as when the service is ending."""
        deadline = self.clock.seconds() + WAIT_TIMEOUT
        while True:
            self.phase = "checking"
            await self._check()
            try:
                await self._come_to_rest(deadline)
                await self._finish_writes()
                await self._check_again_if_changed()
                listening, state = self.host.collect()
                log.info("upgrade: switching to the new program, keeping {count} servers", count=len(state.servers))
                self.exec_new(listening, state)
                return
            except _FilesChanged:
                log.info("upgrade: the code or the configuration files changed; checking again")
            except OSError as error:
                raise _UpgradeFailed(f"the new program cannot be executed: {error}") from error
            finally:
                self.host.release()

    async def _check(self) -> None:
        log.info("upgrade: checking the new code")
        self._checked = self.host.fingerprint()
        problem = await self.check()
        if problem:
            raise _UpgradeFailed(problem)

    async def _check_again_if_changed(self) -> None:
        """Make sure that the new program starts with files that were checked. Requests that are closed already are
        held back during the check, so that they were not closed for nothing."""
        while self.host.fingerprint() != self._checked:
            if not self._closed:
                raise _FilesChanged()
            await self._check()

    async def _come_to_rest(self, deadline: float) -> None:
        """Return with requests held back and the service at rest."""
        host = self.host
        while True:
            forced = self._forced
            last = forced or self.clock.seconds() >= deadline
            self.phase = "draining"
            host.hold()
            limit = HOLD_TIME
            if last:
                limit = host.drain_timeout if forced else min(host.drain_timeout, LAST_HOLD_TIME)
            end = self.clock.seconds() + limit
            idle = await self._until_idle(limit)
            if idle:
                host.end_feeds()
                if await self._until(host.responses_sent, max(HOLD_TIME, end - self.clock.seconds())):
                    return
            if forced != self._forced:
                continue  # it was forced just now: the requests get their time from now on
            if last:
                await self._close_rest(idle)
                return
            self.phase = "waiting"
            host.release()
            await self._until_idle(RETRY_INTERVAL)

    async def _close_rest(self, idle: bool) -> None:
        """Close what outlasted the bound: requests if the upgrade was requested again, and always the connections of
        clients that do not take the rest of a complete response."""
        host = self.host
        if not idle and not self._forced:
            raise _UpgradeFailed(
                f"still busy after more than {WAIT_TIMEOUT:.0f}s ({host.busy_with()}); request the upgrade"
                " again while it waits (or use `llamaswap upgrade --force`) to close such requests"
            )
        await self._check_again_if_changed()
        log.warn("upgrade: closing connections that are still in use ({busy})", busy=host.busy_with())
        self._closed = True
        await host.close_requests()
        await self._until(host.idle, CLOSE_TIMEOUT)
        host.end_feeds()
        if not await self._until(host.responses_sent, HOLD_TIME):
            await host.close_requests()
            await self._until(host.responses_sent, HOLD_TIME)

    async def _finish_writes(self) -> None:
        """Flush until the service is idle after it: a server's idle time may end meanwhile. A disk or driver that
        hangs would hang the new program as well."""
        while True:
            flushing = Deferred.fromCoroutine(self.host.flush())
            try:
                await flushing.addTimeout(FLUSH_TIMEOUT, self.clock)
            except TimeIsUp:
                raise _UpgradeFailed(f"a disk or a driver did not finish within {FLUSH_TIMEOUT:.0f}s") from None
            if self.host.idle():
                return
            if not await self._until(self.host.idle, CLOSE_TIMEOUT):
                raise _UpgradeFailed(f"the servers do not come to rest: {self.host.busy_with()}")

    async def _until_idle(self, seconds: float) -> bool:
        """Whether the service becomes idle in time, and before the upgrade is forced."""
        forced = self._forced
        await self._until(lambda: self.host.idle() or self._forced != forced, seconds)
        return self.host.idle()

    async def _until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Whether the condition becomes true in time."""
        deadline = self.clock.seconds() + seconds
        while not condition():
            if self.clock.seconds() >= deadline:
                return False
            await deferLater(self.clock, POLL_INTERVAL)
        return True
