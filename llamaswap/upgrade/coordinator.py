"""Replace the running program by its new code, in place: the same process, the same sockets, the same servers.

`exec` keeps the pid, the children and every descriptor that is made inheritable for it. So the old program writes
down what the new one must know (`UpgradeState`), waits for a moment in which no request is under way, and becomes it.
Before that the new code is tried in a child, with the same command line: if it does not come up there, nothing
happens. What a service is made of is not known here; `UpgradeHost` says what is needed of it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable, Hashable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from attrs import asdict, define, field, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as TimeIsUp
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IReactorTime, IStreamServerEndpoint
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaswap.config.endpoints import Endpoint
from llamaswap.errors import FailureRecord
from llamaswap.proxy.listen import ListenAddress
from llamaswap.servers.server_snapshot import ServerSnapshot

FORMAT = 1  # of the state; what one program writes, the next must read
INHERIT = "LLAMASWAP_UPGRADE"  # the environment variable that hands over "LISTENING:STATE:WHERE", two descriptors
CHECK = "LLAMASWAP_UPGRADE_CHECK"  # set in the child that only shows whether the new code comes up
FIT = "llamaswap-upgrade-check: reads format "

CHECK_SECONDS = 60.0  # for the new code to come up once; reading a large configuration takes well under one
CHECK_OUTPUT = 8192  # bytes of what it says that are kept
PATIENCE = 120.0  # seconds in which a moment without requests is waited for while everybody is served
TRY = 1.0  # seconds for which requests are held back to see whether the others end
BETWEEN = 5.0  # seconds between two such tries: nobody waits for more than a fifth of the time
LAST_TRY = 30.0  # seconds of the try after which open requests are cut
FLUSH_SECONDS = 5.0  # for disks and drivers to come to an end, while everybody is held back
CUT_SECONDS = 10.0  # for what was cut to end; a server that is being loaded takes five
LOOK = 0.01  # seconds between two looks

log = Logger("llamaswap.upgrade.coordinator")


# -- what is handed over -----------------------------------------------------------------------------------


@frozen
class IdleConnection:
    """A client's connection that waits for its next request. `early` are bytes of it that were read already."""

    descriptor: int
    family: int
    early: bytes = field(default=b"", repr=False)


@frozen
class UpgradeState:
    """What the next program must know.

    `keeper` is the guardian's (pid, descriptor of the pipe to it), under the name that earlier programs give it; `logs`
    is the last of each log; `ailing` are the models that fail.
    """

    servers: tuple[ServerSnapshot, ...] = ()
    connections: tuple[IdleConnection, ...] = ()
    keeper: tuple[int, int] | None = None
    profile: str | None = None
    pinned: tuple[str, ...] = ()
    logs: Mapping[str, bytes] = field(factory=dict, repr=False)
    count: int = 0
    ailing: tuple[FailureRecord, ...] = ()

    @property
    def descriptors(self) -> list[int]:
        """Everything that must stay open through the replacement."""
        found = [one.output for one in self.servers if one.output is not None]
        found += [one.descriptor for one in self.connections]
        return found + ([self.keeper[1]] if self.keeper is not None else [])


def pack(state: UpgradeState) -> bytes:
    """As bytes for the next program."""
    document = asdict(state, value_serializer=lambda _, __, value: _text(value))
    return json.dumps({"format": FORMAT, **document}).encode()


def _text(value: object) -> object:
    return b64encode(value).decode() if isinstance(value, bytes) else value


def unpack(data: bytes) -> UpgradeState:
    """What `pack` wrote; what an earlier program did not know is left at its default. Raises ValueError."""
    try:
        document = json.loads(data)
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']!r} of the earlier program's state is unknown")
        keeper = document.get("keeper")
        return UpgradeState(
            servers=tuple(_served(one) for one in document["servers"]),
            connections=tuple(
                IdleConnection(int(one["descriptor"]), int(one["family"]), b64decode(one["early"]))
                for one in document["connections"]
            ),
            keeper=None if keeper is None else (int(keeper[0]), int(keeper[1])),
            profile=document.get("profile"),
            pinned=tuple(document.get("pinned", ())),
            logs={name: b64decode(text) for name, text in document.get("logs", {}).items()},
            count=int(document.get("count", 0)),
            ailing=tuple(_ailing(one) for one in document.get("ailing", ())),
        )
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"the earlier program's state cannot be read: {error!r}") from error


def _served(known: Mapping[str, Any]) -> ServerSnapshot:
    shaped: dict[str, Any] = {name: value for name, value in known.items() if name in ServerSnapshot.__annotations__}
    for name in ("argv", "env", "load_seconds", "wake_seconds"):
        shaped[name] = tuple(shaped.get(name, ()))
    shaped["endpoint"] = Endpoint(**shaped["endpoint"])
    shaped["tail"] = b64decode(shaped["tail"])
    return ServerSnapshot(**shaped)


def _ailing(known: Mapping[str, Any]) -> FailureRecord:
    return FailureRecord(**{name: value for name, value in known.items() if name in FailureRecord.__annotations__})


def write_memfd(data: bytes) -> int:
    """A descriptor from which the next program reads `data`; it is in no folder, since it may tell of secrets."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("llamaswap-upgrade")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


@frozen
class InheritedState:
    """What an earlier program left: the listening socket, what its operator called it, and its state or why that
    cannot be used."""

    listening: int
    where: str
    state: UpgradeState | None
    problem: str = ""


def inherited(environ: MutableMapping[str, str]) -> InheritedState | None:
    """What an earlier program of this process left; None where there was none. Takes the notice off `environ`."""
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


class Adopting:
    """A reactor whose next listening socket is one there is already, whatever the endpoint asks for."""

    def __init__(self, reactor: Any, descriptor: int) -> None:
        self._reactor = reactor
        self._descriptor = descriptor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def endpoint(self, listen: ListenAddress) -> IStreamServerEndpoint:
        """What listens there as `listen` says, on the socket there is."""
        if listen.text.startswith("systemd:"):
            return TCP4ServerEndpoint(self, 0)  # any will do: what systemd gave was closed once it had been adopted
        return listen.endpoint(self)

    def _adopt(self, factory: Any) -> Any:
        with socket.socket(fileno=os.dup(self._descriptor)) as there:
            family = there.family
        try:
            return self._reactor.adoptStreamPort(self._descriptor, family, factory)
        finally:
            os.close(self._descriptor)  # the port has its own

    def listenTCP(self, *args: Any, factory: Any = None, **options: Any) -> Any:
        """The socket, instead of a new one. Endpoints name their arguments or do not."""
        return self._adopt(args[1] if factory is None else factory)

    def listenSSL(self, port: int, factory: Any, contextFactory: Any, **options: Any) -> Any:
        """The socket, with TLS spoken on it."""
        from twisted.protocols.tls import TLSMemoryBIOFactory

        return self._adopt(TLSMemoryBIOFactory(contextFactory, False, factory))

    def listenUNIX(self, *args: Any, factory: Any = None, **options: Any) -> Any:
        """The socket, instead of a new one."""
        return self._adopt(args[1] if factory is None else factory)


# -- whether the new code comes up -------------------------------------------------------------------------


def being_checked(environ: MutableMapping[str, str]) -> bool:
    """Whether this process shall only show that it comes up. Takes the notice off `environ`."""
    return environ.pop(CHECK, None) is not None


def announce_ready() -> None:
    """Everything was imported, the configuration can be used."""
    sys.stdout.write(f"{FIT}{FORMAT}\n")
    sys.stdout.flush()


def command_line() -> list[str]:
    """How this program was started, for a second time."""
    return [sys.executable, *sys.orig_argv[1:]]


class _Trial(ProcessProtocol):
    def __init__(self) -> None:
        self.said = b""
        self.ended: Deferred[bool] = Deferred()

    def connectionMade(self) -> None:
        if self.transport is not None:
            self.transport.closeStdin()

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        self.said = (self.said + data)[-CHECK_OUTPUT:]

    def processEnded(self, reason: Failure) -> None:
        self.ended.callback(getattr(reason.value, "exitCode", None) == 0)


async def check(reactor: Any, words: Sequence[str], environ: Mapping[str, str]) -> str:
    """Start the new code in a child, only to see it come up. Returns why it does not; "" where it does."""
    trial = _Trial()
    try:
        process = reactor.spawnProcess(trial, words[0], words, env={**environ, CHECK: "1"})
    except OSError as error:
        return f"the new code cannot be started: {error}"
    overdue = reactor.callLater(CHECK_SECONDS, process.signalProcess, "KILL")
    try:
        good = await trial.ended
    except CancelledError:  # the service ends: nobody looks after the child any more
        if overdue.active():
            overdue.cancel()
            with suppress(ProcessExitedAlready):
                process.signalProcess("KILL")
        raise
    text = trial.said.decode("utf-8", "replace").strip()
    if not overdue.active():
        return f"the new code did not come up within {CHECK_SECONDS:.0f}s: {text}"
    overdue.cancel()
    if not good:
        return f"the new code does not come up: {text}"
    if f"{FIT}{FORMAT}" not in text:
        return f"the new code cannot take over from this one: {text}"
    return ""


# -- the way there -----------------------------------------------------------------------------------------


class UpgradeHost(Protocol):
    """What an upgrade needs of the service."""

    def calm(self) -> bool:
        """Whether no request is under way, and each server is ready or down."""

    def still(self) -> bool:
        """Whether besides no connection has anything to send or to finish."""

    def hold(self) -> None:
        """Begin no further request: connections wait to be accepted, and accepted ones to be read."""

    def release(self) -> None:
        """Go on as if nothing had been."""

    def end_feeds(self) -> None:
        """End the streams that would never end by themselves."""

    def cut(self) -> None:
        """End what is under way, whatever it is."""

    async def flush(self) -> None:
        """Have everything written that is to be."""

    def configured(self) -> Hashable:
        """Tells one state of the configuration's files from another."""

    def collect(self) -> tuple[int, UpgradeState]:
        """(the listening socket, the rest of the state)."""


def exec_new_process(
    words: Sequence[str],
    environ: Mapping[str, str],
    where: str,
    listening: int,
    state: UpgradeState,
    ending: Callable[[], bool] = lambda: False,
) -> None:
    """Become the program of `words`; `where` is what the operator called the listening socket.

    Returns only where that is impossible: raises OSError; or where the service is `ending`.
    """
    # The signals that would end a program without handlers for them are ignored until the next one has its own. Those
    # that ask for the end do end it until then: handled by us, they would be forgotten with us.
    until_then: dict[int, Any] = {
        signal.SIGUSR2: signal.SIG_IGN,
        signal.SIGHUP: signal.SIG_IGN,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGINT: signal.SIG_DFL,
    }
    ours = {number: signal.getsignal(number) for number in until_then}
    deposited = write_memfd(pack(state))
    crossing = [listening, deposited, *state.descriptors]
    try:
        for descriptor in crossing:
            os.set_inheritable(descriptor, True)
        for number, disposition in until_then.items():
            signal.signal(number, disposition)
        if not ending():
            os.execve(words[0], [*words], {**environ, INHERIT: f"{listening}:{deposited}:{where}"})
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
        for descriptor in crossing:
            os.set_inheritable(descriptor, False)
        os.close(deposited)


@define(eq=False)
class Upgrade:
    """Upgrades on demand, one at a time. `phase` is idle, checking, waiting or draining; `error` is why the last of
    the `attempts` came to nothing, `count` how often this process became another program."""

    clock: IReactorTime
    parts: UpgradeHost
    check: Callable[[], Awaitable[str]]
    become: Callable[[int, UpgradeState], None]
    count: int = 0
    phase: str = "idle"
    attempts: int = 0
    error: str = ""
    _hurried: bool = False
    _going: Deferred[None] | None = None

    def document(self) -> dict[str, Any]:
        """How things are, for the API."""
        told = {"count": self.count, "attempts": self.attempts, "phase": self.phase, "error": self.error}
        return {"pid": os.getpid(), **told}

    def ask(self) -> None:
        """Upgrade; asked again meanwhile, wait no longer for whatever is being waited for."""
        if self.phase != "idle":
            self._hurried = True
            return
        self.attempts += 1
        self.phase, self.error, self._hurried = "checking", "", False
        self._going = Deferred.fromCoroutine(self._go())
        self._going.addErrback(self._failed).addCallback(lambda _: self._ended())

    def cancel(self) -> None:
        """Leave it; whatever is held is released."""
        if self._going is not None:
            self._going.cancel()

    def _ended(self) -> None:
        self.phase, self._going = "idle", None
        if self.error:
            log.error("upgrade failed, the service runs on unchanged: {error}", error=self.error)

    def _failed(self, failure: Failure) -> None:
        if failure.check(CancelledError):
            return
        self.error = failure.getErrorMessage()
        log.failure("upgrade", failure)

    async def _go(self) -> None:
        """Returns only where it came to nothing."""
        while await self._outdated():
            log.info("upgrade: the configuration was changed meanwhile; the new code is tried with it")

    async def _outdated(self) -> bool:
        """One go. Returns whether what was tried at its beginning is not what would be started at its end."""
        log.info("upgrade: trying the new code")
        self.phase = "checking"
        tried = self.parts.configured()
        self.error = await self.check()
        if self.error:
            return False
        self.phase = "waiting"
        try:
            await self._come_to_rest()
            while True:
                if not await self._flushed():
                    self.error = f"a disk or a driver did not come to an end within {FLUSH_SECONDS:.0f}s"
                    return False
                if self.parts.calm():
                    break
                # A server's idle time ended just now; with nobody served that is over soon.
                if not await self._patiently(self.parts.calm, CUT_SECONDS):
                    self.error = "the servers do not come to rest"
                    return False
            if self.parts.configured() != tried:
                return True  # the new program would end where it cannot use it, and every server with it
            listening, state = self.parts.collect()
            log.info("upgrade: switching to the new program, keeping {count} servers", count=len(state.servers))
            try:
                self.become(listening, state)
            except OSError as error:
                self.error = f"the new program cannot be executed: {error}"
        finally:
            self.parts.release()
        return False

    async def _flushed(self) -> bool:
        """Whether everything was written in time. Who hangs there would hang the replacement as well, and those who are
        held back meanwhile."""
        flushing = Deferred.fromCoroutine(self.parts.flush())
        flushing.addTimeout(FLUSH_SECONDS, self.clock)
        try:
            await flushing
        except TimeIsUp:
            return False
        return True

    async def _come_to_rest(self) -> None:
        """Hold requests back as soon as that is short: try for a moment, again and again, at last with a cut."""
        parts, deadline = self.parts, self.clock.seconds() + PATIENCE
        while True:
            last = self._hurried or self.clock.seconds() >= deadline
            self.phase, self._hurried = "draining", False
            parts.hold()
            if await self._until(parts.calm, LAST_TRY if last else TRY):
                break
            if last:
                log.warn("upgrade: closing connections that are still in use")
                parts.cut()
                await self._patiently(parts.calm, CUT_SECONDS)
                break
            self.phase = "waiting"
            parts.release()
            await self._until(parts.calm, BETWEEN)
        parts.end_feeds()
        if not await self._patiently(parts.still, TRY):
            parts.cut()
            await self._patiently(parts.still, TRY)

    async def _patiently(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Whether the condition comes true in time. What was cut ends as fast as it can: who hurries hurries nothing
        then, and an upgrade that did not wait for it would have cut it for nothing."""
        return await self._until(condition, seconds, lambda: False)

    async def _until(
        self, condition: Callable[[], bool], seconds: float, hurried: Callable[[], bool] | None = None
    ) -> bool:
        """Whether the condition comes true in time, or before somebody is in a hurry."""
        hurried = hurried or (lambda: self._hurried)
        deadline = self.clock.seconds() + seconds
        while not condition():
            if hurried() or self.clock.seconds() >= deadline:
                return False
            await deferLater(self.clock, LOOK)
        return True
