"""The front's side of the process that talks to Ray: starts it, and starts it again when it ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, cast

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.endpoints import ProcessEndpoint, StandardErrorBehavior
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall, IProcessTransport, IReactorProcess, IReactorTime
from twisted.internet.protocol import Factory, connectionDone
from twisted.logger import Logger
from twisted.protocols.amp import AMP, Command
from twisted.python.failure import Failure

from llamaswap.cluster import driver_protocol as protocol
from llamaswap.cluster.ray_node import with_parent

RESTART_DELAYS = (1.0, 2.0, 5.0, 10.0)  # seconds; the last one is repeated
START_TIME = 20.0  # seconds after its start in which Ray may not know the memory of all hosts yet
CALL_LIMIT = 40.0  # seconds for a call; the start of an agent's keeper takes longest

log = Logger()


class RayAway(Exception):
    """Ray is not connected; the text says why."""


class _Connection(AMP):
    """The connection to the process."""

    lost: Callable[[], None]

    def makeConnection(self, transport: Any) -> None:
        transport.getPeer = transport.getHost = lambda: None  # AMP wants to know them, and a process has none
        super().makeConnection(transport)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        log.info("the process for Ray ended: {reason}", reason=reason.getErrorMessage())
        super().connectionLost(reason)
        self.lost()


@define(eq=False)
class RayClient:
    """Asks Ray through a process, which runs as long as this is open. `changed` is called when it is connected, and
    when it is not any more; `environ` is that of the process, `where` the head's address; `head`: it starts the head.
    `problem` says why Ray cannot be used now.
    """

    clock: IReactorTime
    processes: IReactorProcess
    environ: Mapping[str, str]
    where: str
    head: bool
    changed: Callable[[], None]
    connected: bool = field(default=False, init=False)
    connected_at: float = field(default=0.0, init=False)
    problem: str = field(default="it is being started", init=False)
    _connection: _Connection | None = field(default=None, init=False)
    _restart: IDelayedCall | None = field(default=None, init=False)
    _failures: int = field(default=0, init=False)
    _ending: list[Deferred[None]] = field(factory=list, init=False)
    _closed: bool = field(default=False, init=False)

    def open(self) -> None:
        """Start the process, unless it still runs."""
        self._restart, self._closed = None, False
        if self._connection is not None:
            return
        words = [sys.executable, "-m", "llamaswap.cluster.ray_driver", self.where, *(["--head"] if self.head else [])]
        words = with_parent(words)
        endpoint = ProcessEndpoint(
            self.processes,
            sys.executable.encode(),
            [os.fsencode(word) for word in words],
            {os.fsencode(name): os.fsencode(value) for name, value in self.environ.items()},
            errFlag=StandardErrorBehavior.DROP,
        )
        factory = Factory.forProtocol(_Connection)
        endpoint.connect(factory).addCallbacks(self._started, self._failed)

    def _started(self, connection: _Connection) -> None:
        self._connection = connection
        connection.lost = self._lost
        if self._closed:
            self.close()
            return
        self._await_ray()

    def _await_ray(self) -> None:
        """Wait until the process answers, which it does as soon as it is connected to Ray."""
        self._restart = None
        self.call(protocol.ListNodes).addCallbacks(self._ready, self._not_ready)

    def _not_ready(self, failure: Failure) -> None:
        """Ray may still be starting, for longer than a call waits."""
        self.problem = failure.getErrorMessage()
        if self._connection is not None and not self._closed:
            self._restart = self.clock.callLater(RESTART_DELAYS[0], self._await_ray)

    def _ready(self, _: object) -> None:
        self.connected, self.problem, self._failures = True, "", 0
        self.connected_at = self.clock.seconds()
        log.info("connected to Ray at {where}", where=self.where)
        self.changed()

    def _failed(self, failure: Failure) -> None:
        self.problem = failure.getErrorMessage()
        self._lost()

    def _lost(self) -> None:
        was, self.connected, self._connection = self.connected, False, None
        if self._closed:
            ending, self._ending = self._ending, []
            for waiter in ending:
                waiter.callback(None)
            return
        delay = RESTART_DELAYS[min(self._failures, len(RESTART_DELAYS) - 1)]
        self._failures += 1
        if self._restart is not None:
            self._restart.cancel()
        self.problem = f"Ray at {self.where} does not answer"
        log.warn("{problem}: what runs on other hosts goes on, and nothing new is loaded there", problem=self.problem)
        self._restart = self.clock.callLater(delay, self.open)
        if was:
            self.changed()

    def call(self, command: type[Command], *, limit: float = CALL_LIMIT, **given: object) -> Deferred[Any]:
        """Ask; fails with RayError or RayAway."""
        connection = self._connection
        if connection is None:
            failed: Deferred[Any] = Deferred()
            failed.errback(RayAway(self.problem))
            return failed
        asked: Deferred[Any] = connection.callRemote(command, **given)
        # The answer may come after the time is up: AMP must still have its own Deferred then.
        answer: Deferred[Any] = Deferred()

        def arrived(result: Any) -> None:
            if self.connected:
                self.problem = ""
            if not answer.called:
                answer.callback(result)

        def explained(failure: Failure) -> Failure:
            if failure.check(TimeoutError) and self.connected:
                self.problem = f"Ray at {self.where} has not answered for {limit:.0f} s"
            return _explained(failure)

        asked.addBoth(arrived)
        answer.addTimeout(limit, self.clock)
        return answer.addErrback(explained)

    async def reserve(self, name: str, host: str, sizes: Mapping[str, int]) -> str:
        """Reserve memory of a host; returns why it is not there, or "". Raises RayAway if Ray cannot tell yet."""
        try:
            answer = await self.call(protocol.Reserve, name=name, host=host, sizes=dict(sizes))
        except protocol.RayError as error:  # such as a head that is overloaded, which says nothing about the memory
            raise RayAway(f"Ray: {error}") from None
        why = str(answer["why"])
        if why and self.clock.seconds() - self.connected_at < START_TIME:
            raise RayAway(f"{why}, which may be because Ray was started a moment ago")
        return why

    def close(self) -> Deferred[None]:
        """End the process; what it reserved and started stays. Fires when it has ended."""
        self._closed = True
        ended: Deferred[None] = Deferred()
        if self._restart is not None:
            self._restart.cancel()
            self._restart = None
        if self._connection is not None and self._connection.transport is not None:
            self._ending.append(ended)
            with suppress(ProcessExitedAlready):  # it is about to be reported
                cast(IProcessTransport, self._connection.transport).signalProcess("TERM")
        else:
            ended.callback(None)
        return ended


def _explained(failure: Failure) -> Failure:
    if failure.check(protocol.RayError, CancelledError):
        return failure
    kind = "has not answered in time" if failure.check(TimeoutError) else failure.getErrorMessage()
    return Failure(RayAway(f"Ray: {kind}"))
