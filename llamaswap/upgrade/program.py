"""The change of programs: the check of the new one, the `exec`, and what the new one inherits."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Hashable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from importlib.machinery import PathFinder
from pathlib import Path
from typing import cast

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import (
    IListeningPort,
    IOpenSSLContextFactory,
    IReactorProcess,
    IReactorSocket,
    IReactorTime,
    IStreamServerEndpoint,
)
from twisted.internet.protocol import ProcessProtocol, ServerFactory
from twisted.python.failure import Failure

from llamaswap import early_signals
from llamaswap.proxy.listen import ListenAddress
from llamaswap.upgrade.state import FORMAT, INHERIT, UpgradeState, pack, unpack, write_memfd

CHECK = "LLAMASWAP_UPGRADE_CHECK"  # set in the child that only checks the new code
CHECK_PASSED = f"llamaswap-upgrade-check: reads format {FORMAT}"
CHECK_TIMEOUT = 60.0  # seconds for the new code to start once; reading a large configuration takes well under one
CHECK_OUTPUT_LIMIT = 8192  # bytes of the child's output that are kept

# Their handlers end with the old program. They are blocked until the new one has its own: see `early_signals`.
KEPT_SIGNALS = early_signals.SIGNALS
# These end the process until then: our handlers would forget them with the old program.
END_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def being_checked(environ: MutableMapping[str, str]) -> bool:
    """Whether this process only checks that the new code starts. Removes the notice from `environ`."""
    return environ.pop(CHECK, None) is not None


def announce_ready() -> None:
    """Report to the earlier program: everything was imported, and the configuration can be used."""
    sys.stdout.write(f"{CHECK_PASSED}\n")
    sys.stdout.flush()


def command_line() -> list[str]:
    """The command line of this program."""
    return [sys.executable, *sys.orig_argv[1:]]


def code_fingerprint() -> Hashable:
    """A value that differs if a new program would run other code: another interpreter, other modules of this package,
    or other installed distributions."""
    importlib.invalidate_caches()
    spec = PathFinder.find_spec("llamaswap")
    folders = (spec.submodule_search_locations if spec is not None else None) or ()
    modules = [str(path) for folder in folders for path in Path(folder).rglob("*.py")]
    found: set[object] = {(path, _modified(path)) for path in (sys.executable, *modules)}
    for folder in sys.path:
        with suppress(OSError):
            found |= {name for name in os.listdir(folder) if name.endswith(".dist-info")}
    return frozenset(found)


def _modified(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:  # it is being replaced
        return None
    return status.st_mtime_ns, status.st_size


class _CheckProcess(ProcessProtocol):
    def __init__(self) -> None:
        self.output = b""
        self.ended: Deferred[bool] = Deferred()

    def connectionMade(self) -> None:
        if self.transport is not None:
            self.transport.closeStdin()

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        self.output = (self.output + data)[-CHECK_OUTPUT_LIMIT:]

    def processEnded(self, reason: Failure) -> None:
        self.ended.callback(getattr(reason.value, "exitCode", None) == 0)


async def check(
    processes: IReactorProcess, clock: IReactorTime, words: Sequence[str], environ: Mapping[str, str]
) -> str:
    """Start the new code once in a child. Returns why it cannot replace this program; "" if it can."""
    checking = _CheckProcess()
    try:
        process = processes.spawnProcess(checking, words[0], words, env={**environ, CHECK: "1"})
    except OSError as error:
        return f"the new code cannot be started: {error}"
    overdue = clock.callLater(CHECK_TIMEOUT, process.signalProcess, "KILL")
    try:
        good = await checking.ended
    except CancelledError:  # the service ends, and would leave the child behind
        if overdue.active():
            overdue.cancel()
            with suppress(ProcessExitedAlready):
                process.signalProcess("KILL")
        raise
    text = checking.output.decode("utf-8", "replace").strip()
    if not overdue.active():
        return f"the new code did not come up within {CHECK_TIMEOUT:.0f}s: {text}"
    overdue.cancel()
    if not good:
        return f"the new code does not come up: {text}"
    return "" if CHECK_PASSED in text else f"the new code cannot take over from this one: {text}"


def exec_new_process(
    words: Sequence[str],
    environ: Mapping[str, str],
    where: str,
    listening: int,
    state: UpgradeState,
    ending: Callable[[], bool] = lambda: False,
) -> None:
    """Become the program of `words`; `where` is what the operator called the listening socket.

    Returns only if that is impossible (raises OSError) or if the service is `ending`.
    """
    came: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (*KEPT_SIGNALS, *END_SIGNALS)}
    deposited = write_memfd(pack(state))
    crossing = [listening, deposited, *state.descriptors]
    try:
        for descriptor in crossing:
            os.set_inheritable(descriptor, True)
        for number in KEPT_SIGNALS:  # another thread may still receive it
            signal.signal(number, lambda number, _: came.append(number))
        signal.pthread_sigmask(signal.SIG_BLOCK, KEPT_SIGNALS)
        for number in END_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        if not ending():
            for missed in came:
                signal.pthread_kill(threading.get_ident(), missed)  # pending in this thread, it crosses the exec
            os.execve(words[0], [*words], {**environ, INHERIT: f"{listening}:{deposited}:{where}"})
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, KEPT_SIGNALS)
        for descriptor in crossing:
            os.set_inheritable(descriptor, False)
        os.close(deposited)


# -- in the new program ------------------------------------------------------------------------------------


@frozen
class InheritedState:
    """What an earlier program left: the listening socket, what its operator called it, and its state, or why that
    cannot be used."""

    listening: int
    where: str
    state: UpgradeState | None
    problem: str = ""


def inherited(environ: MutableMapping[str, str]) -> InheritedState | None:
    """What an earlier program of this process left; None if there was none. Removes the notice from `environ`."""
    notice = environ.pop(INHERIT, None)
    if notice is None:
        return None
    listening, deposited, where = notice.split(":", 2)
    os.set_inheritable(int(listening), False)
    try:
        with os.fdopen(int(deposited), "rb") as file:
            return InheritedState(int(listening), where, unpack(file.read()))
    except (OSError, ValueError) as error:
        return InheritedState(int(listening), where, None, str(error))


class AdoptingReactor:
    """A reactor whose next listening socket is an inherited one, whatever the endpoint asks for."""

    def __init__(self, reactor: IReactorSocket, descriptor: int) -> None:
        self._reactor = reactor
        self._descriptor = descriptor

    def __getattr__(self, name: str) -> object:
        return getattr(self._reactor, name)

    def endpoint(self, listen: ListenAddress) -> IStreamServerEndpoint:
        """The endpoint that `listen` describes, on the inherited socket."""
        if listen.text.startswith("systemd:"):
            return TCP4ServerEndpoint(self, 0)  # any will do: systemd's descriptor was closed once it was adopted
        return listen.endpoint(self)

    def listenTCP(self, port: object, factory: ServerFactory, **options: object) -> IListeningPort:
        """Listen on the inherited socket instead of a new one."""
        with socket.socket(fileno=os.dup(self._descriptor)) as inherited:
            family = inherited.family
        try:
            return self._reactor.adoptStreamPort(self._descriptor, family, factory)
        finally:
            os.close(self._descriptor)  # the port has its own

    listenUNIX = listenTCP

    def listenSSL(
        self, port: object, factory: ServerFactory, contextFactory: IOpenSSLContextFactory, **options: object
    ) -> IListeningPort:
        """Listen with TLS on the inherited socket."""
        from twisted.protocols.tls import TLSMemoryBIOFactory

        wrapped = TLSMemoryBIOFactory(contextFactory, False, factory)
        return self.listenTCP(port, cast(ServerFactory, wrapped))
