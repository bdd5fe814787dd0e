"""Telling the service manager how it goes: systemd's notification protocol, in a few datagrams.

Ready once it listens, reloading and stopping while it does, and the watchdog fed only while requests can move: a
process whose loop stands still, or that forgot somebody who waits, is started anew. Without a manager nothing is told.
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

# What is meant for us alone. A podman that inherits the socket would report itself as the service.
OURS = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")

Send = Callable[[bytes], None]


def without_ours(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for other processes: without what the service manager told this one."""
    return {name: value for name, value in environ.items() if name not in OURS}


def sender(path: str) -> Send:
    """What sends datagrams to a unix socket; @ at the start is the abstract namespace's mark."""
    address = "\0" + path[1:] if path.startswith("@") else path

    def send(data: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | getattr(socket, "SOCK_CLOEXEC", 0)) as line:
            line.setblocking(False)
            line.sendto(data, address)

    return send


@define(eq=False)
class SystemdNotifier:
    """One conversation with the manager. `every` is the watchdog's period in seconds, None where there is none."""

    _send: Send | None
    every: float | None = None
    _clock: IReactorTime | None = None
    _monotonic: Callable[[], float] = time.monotonic
    _loop: LoopingCall | None = field(default=None, init=False)

    @classmethod
    def of(cls, environ: Mapping[str, str], clock: IReactorTime, pid: int | None = None) -> SystemdNotifier:
        """What the environment says; a notifier that tells nobody where it says nothing."""
        path = environ.get("NOTIFY_SOCKET", "")
        if not path.startswith(("/", "@")):
            return cls(None)
        return cls(sender(path), _watchdog(environ, os.getpid() if pid is None else pid), clock)

    @property
    def listens(self) -> bool:
        """Whether there is a manager."""
        return self._send is not None

    def tell(self, **fields: str) -> None:
        """Send fields such as READY="1". A manager that cannot be reached is nobody's trouble."""
        if self._send is None:
            return
        try:
            self._send("\n".join(f"{name}={value}" for name, value in fields.items()).encode())
        except OSError as error:
            log.debug("could not notify the service manager: {error}", error=error)

    def ready(self, status: str) -> None:
        """It listens (again)."""
        self.tell(READY="1", STATUS=status)

    def reloading(self) -> None:
        """The configuration is being read again; `ready` says that it has been."""
        self.tell(RELOADING="1", MONOTONIC_USEC=str(int(self._monotonic() * 1_000_000)))

    def stopping(self) -> None:
        """It ends."""
        self.tell(STOPPING="1", STATUS="ending")

    def watch(self, healthy: Callable[[], bool]) -> None:
        """Feed the watchdog twice in its period, as long as `healthy` says yes."""
        if self.every is None or self._clock is None or self._loop is not None:
            return

        def feed() -> None:
            if healthy():
                self.tell(WATCHDOG="1")
            else:
                log.error("requests are stalled: withholding the systemd watchdog keep-alive")

        self._loop = loop = LoopingCall(feed)
        loop.clock = self._clock
        loop.start(self.every / 2).addErrback(lambda failure: log.failure("the watchdog", failure=failure))

    def rest(self) -> None:
        """Feed it no more; the manager's own limit on stopping counts from here."""
        if self._loop is not None:
            self._loop.stop()
            self._loop = None


def _watchdog(environ: Mapping[str, str], pid: int) -> float | None:
    meant_for = environ.get("WATCHDOG_PID", "")
    if meant_for and meant_for != str(pid):
        return None
    microseconds = environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1_000_000 if microseconds.isdigit() and int(microseconds) else None


def given_socket(descriptors: Sequence[int] | None = None) -> str | None:
    """The endpoint string of a socket the manager opened for us (the first one); None where there is none."""
    if descriptors is None:
        # Private, but what its endpoint will use: index 0 means the same in both places.
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
