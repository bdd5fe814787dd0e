"""Servers that outlive the program that started them: when it replaces itself, pid and children stay, only it is new.

A `ServerSnapshot` is what the next program must know of a ready server. `Adopted` is the reactor's side of a process it
did not start: the same pipes, the same reaping. Descriptors cross the replacement when they are made inheritable for
it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen
from twisted.internet.process import Process, registerReapProcessHandler

from llamaswap.config.endpoints import Endpoint


@frozen
class ServerSnapshot:
    """A server that is ready, or asleep. Times are on the monotonic clock, which goes on through the replacement.

    `output` is the descriptor its output is read from, None where it closed it; `idle_since` is when it last
    had a request, or fell asleep. `argv`, `env`, `proxy` and `port` are what it was made of, `endpoint` is where it
    listens.
    """

    model: str
    pid: int
    start: int
    mark: str
    port: int | None
    proxy: str
    endpoint: Endpoint
    argv: tuple[str, ...] = field(repr=False)
    env: tuple[str, ...] = field(repr=False)  # keys are often in one of these
    cmd_stop: str = field(repr=False)
    started_at: float
    ready_at: float
    load_seconds: tuple[float, ...]
    output: int | None
    tail: bytes = field(default=b"", repr=False)
    idle_since: float = 0.0
    asleep: bool = False
    wake_seconds: tuple[float, ...] = ()


class Adopted(Process):
    """A child of this process that an earlier program started. `reading` and `writing` map its descriptors to ours.

    Raises OSError where there is no such child. Nothing is told of its end before `watch`.
    """

    def __init__(
        self, reactor: Any, pid: int, protocol: Any, *, reading: Mapping[int, int], writing: Mapping[int, int]
    ) -> None:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        self._reactor = reactor
        self.pid = pid
        self.proto = protocol
        pipes: dict[int, Any] = {}
        self.pipes = pipes
        for name, descriptor in reading.items():
            os.set_inheritable(descriptor, False)
            pipes[name] = self.processReaderFactory(reactor, self, name, descriptor)
        for name, descriptor in writing.items():
            os.set_inheritable(descriptor, False)
            pipes[name] = self.processWriterFactory(reactor, self, name, descriptor, forceReadHack=True)
        protocol.makeConnection(self)

    def watch(self) -> None:
        """From now on its end is told; at once, if it has ended already."""
        registerReapProcessHandler(self.pid, self)


def descriptors(transport: Any) -> dict[int, int]:
    """{the child's descriptor: ours} of the pipes to a process that are still open."""
    return {name: pipe.fileno() for name, pipe in transport.pipes.items()}
