"""Servers that outlive the program that started them: an upgrade replaces the program and keeps its pid and children.

A `ServerSnapshot` is what the next program has to know of a ready server. `Adopted` is the reactor's side of a process
that the program did not start, with the same pipes and the same reaping.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen
from twisted.internet.interfaces import IProcessTransport, IReactorProcess
from twisted.internet.process import Process, registerReapProcessHandler
from twisted.internet.protocol import ProcessProtocol

from llamaswap.config.endpoints import Endpoint


@frozen
class ServerSnapshot:
    """A server that is ready or suspended. Times are on the monotonic clock, which continues through the replacement.

    It was started by `argv`, `env`, `proxy` and `port`. `output` is the descriptor its output is read from, None if it
    closed it; `idle_since` is when its last request ended, or when it was suspended; `ttl` are the
    idle seconds that a client asked for. It is on `host`, "" for this machine, where `memory` is reserved for it.
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
    ttl: float | None = None
    host: str = ""
    memory: Mapping[str, int] | None = None


class Adopted(Process):
    """A child of this process that an earlier program started. `reading` and `writing` map its descriptors to ours.

    Raises OSError if the child does not exist. Its end is not reported before `watch`.
    """

    def __init__(
        self,
        reactor: IReactorProcess,
        pid: int,
        protocol: ProcessProtocol,
        *,
        reading: Mapping[int, int],
        writing: Mapping[int, int],
    ) -> None:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        self._reactor = reactor
        self.pid = pid
        self.proto = protocol
        self.pipes: dict[int, Any] = {}  # readers and writers, which Twisted declares as readers
        for name, descriptor in reading.items():
            os.set_inheritable(descriptor, False)
            self.pipes[name] = self.processReaderFactory(reactor, self, name, descriptor)
        for name, descriptor in writing.items():
            os.set_inheritable(descriptor, False)
            self.pipes[name] = self.processWriterFactory(reactor, self, name, descriptor, forceReadHack=True)
        protocol.makeConnection(self)

    def watch(self) -> None:
        """Report its end from now on; at once if it has ended already."""
        registerReapProcessHandler(self.pid, self)


def descriptors(transport: IProcessTransport | None) -> dict[int, int]:
    """{the child's descriptor: this process's} of the open pipes to a child."""
    return {name: pipe.fileno() for name, pipe in getattr(transport, "pipes", {}).items()}
