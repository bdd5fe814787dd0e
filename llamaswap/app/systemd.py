"""Notifies the service manager with systemd's protocol: a few datagrams to a unix socket.

READY once the service listens, RELOADING and STOPPING while it does that. The watchdog keep-alive is sent only while
requests make progress, so that systemd restarts a service that is stuck. Without a manager nothing is sent.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence

from attrs import define, field
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

log = Logger()

# Variables for this process alone: podman, for one, would report itself as the service.
OWN_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")  # of an agent

Send = Callable[[bytes], None]


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for other processes, without the variables that the service manager set for this one."""
    return {name: value for name, value in environ.items() if name not in OWN_VARIABLES + TOKEN_VARIABLES}


def sender(path: str) -> Send:
    """Sends datagrams to a unix socket; @ at the start stands for the abstract namespace."""
    address = "\0" + path[1:] if path.startswith("@") else path

    def send(data: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
            line.setblocking(False)
            line.sendto(data, address)

    return send


@define(eq=False)
class SystemdNotifier:
    """The notifications of one service. `watchdog_period` is in seconds, None if there is no watchdog."""

    _send: Send | None
    watchdog_period: float | None = None
    _clock: IReactorTime | None = None
    _monotonic: Callable[[], float] = time.monotonic
    _loop: LoopingCall | None = field(default=None, init=False)

    @classmethod
    def of(cls, environ: Mapping[str, str], clock: IReactorTime, pid: int | None = None) -> SystemdNotifier:
        """The notifier for an environment; one without a service manager sends nothing."""
        path = environ.get("NOTIFY_SOCKET", "")
        if not path.startswith(("/", "@")):
            return cls(None)
        return cls(sender(path), _watchdog_period(environ, os.getpid() if pid is None else pid), clock)

    def notify(self, **fields: str) -> None:
        """Send fields such as READY="1". An unreachable service manager is only logged."""
        if self._send is None:
            return
        try:
            self._send("\n".join(f"{name}={value}" for name, value in fields.items()).encode())
        except OSError as error:
            log.debug("could not notify the service manager: {error}", error=error)

    def ready(self, status: str) -> None:
        """The service listens, or has reloaded its configuration."""
        self.notify(READY="1", STATUS=status)

    def reloading(self) -> None:
        """The configuration is being reloaded; `ready` follows."""
        self.notify(RELOADING="1", MONOTONIC_USEC=str(int(self._monotonic() * 1_000_000)))

    def stopping(self) -> None:
        """The service is ending. No more keep-alive is sent; systemd's limit on stopping applies now."""
        self.notify(STOPPING="1", STATUS="ending")
        if self._loop is not None:
            self._loop.stop()
            self._loop = None

    def start_watchdog(self, healthy: Callable[[], bool]) -> None:
        """Send the keep-alive twice per period while `healthy()` is true."""
        if self.watchdog_period is None or self._clock is None or self._loop is not None:
            return

        def keep_alive() -> None:
            if healthy():
                self.notify(WATCHDOG="1")
            else:
                log.error("requests are stalled: withholding the systemd watchdog keep-alive")

        self._loop = loop = LoopingCall(keep_alive)
        loop.clock = self._clock
        loop.start(self.watchdog_period / 2).addErrback(lambda failure: log.failure("the watchdog", failure=failure))


def _watchdog_period(environ: Mapping[str, str], pid: int) -> float | None:
    if environ.get("WATCHDOG_PID") not in (None, "", str(pid)):
        return None
    microseconds = environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1_000_000 if microseconds.isdigit() and int(microseconds) else None


def inherited_endpoint(descriptors: Sequence[int] | None = None) -> str | None:
    """The endpoint string of the first socket that the service manager passed to us; None if there is none."""
    if descriptors is None:
        # Private, but what the endpoint will use: index 0 means the same in both places.
        from twisted.internet.endpoints import _SystemdParser

        descriptors = _SystemdParser._sddaemon.inheritedDescriptors()
    if not descriptors:
        return None
    families = {socket.AF_INET: "INET", socket.AF_INET6: "INET6", socket.AF_UNIX: "UNIX"}
    try:
        with socket.socket(fileno=os.dup(descriptors[0])) as line:
            family = line.family
    except OSError as error:
        log.warn("the socket of the service manager cannot be used: {error}", error=error)
        return None
    return f"systemd:domain={families[family]}:index=0" if family in families else None
