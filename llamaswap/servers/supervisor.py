"""One model's server, looked after: asked for when needed, watched while it runs, brought down without remains.

The surface the router uses. Decisions about *whether* a server should run are made above; here is only how. One
process per model, ever: the machine in `lifecycle.py` sees to that, this module is its hands.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from attrs import define, evolve, field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from llamaswap.config.command_line import EmptyCommand, render_stop, split
from llamaswap.config.endpoints import Endpoint
from llamaswap.config.schema import Model
from llamaswap.errors import ConfigError, StartFailed
from llamaswap.servers import lifecycle
from llamaswap.servers.lifecycle import LifecycleWaiters, Serving, StartInProgress, StopInProgress, SuspendInProgress
from llamaswap.servers.readiness import PortOwner, Readiness, ReadinessRequest, Verdict, is_local
from llamaswap.servers.server_snapshot import ServerSnapshot
from llamaswap.servers.sessionleader import CANNOT_RUN
from llamaswap.servers.spawn import Child, ChildRecord, Launcher, say_status
from llamaswap.servers.step_runner import StepRunner
from llamaswap.servers.termination import STOP_AGAIN, TerminationSequence

TAIL_LINES = 20  # of output that go with an error; enough for a traceback's end and what led to it
TAIL_BYTES = 8192
LOADS_KEPT = 20  # load times remembered per model
EARLY = 10.0  # seconds in which an exit may be due to a port that somebody took since we looked
CLOSE_GRACE = 1.0  # seconds for a server whose supervisor is closed without an orderly stop before


_log = Logger()


class LifecycleListener(Protocol):
    """Told what happened; must not call back into the supervisor's machine for answers."""

    def state_changed(self, model: str, old: str, new: str) -> None: ...

    def exited(self, model: str, exit_status: int, expected: bool) -> None: ...


@frozen
class SupervisorStatus:
    """How a model's server is. Times are on the clock's scale; `load_seconds` are the last loads, oldest first.

    `asleep_since` is set while the server sleeps: it is shown as stopped then, but has a process. `wake_seconds` are
    to waking what `load_seconds` are to loads.
    """

    model: str
    state: str
    pid: int | None
    port: int | None
    started_at: float | None
    ready_at: float | None
    last_error: str
    load_seconds: tuple[float, ...]
    cmd: tuple[str, ...]
    endpoint: Endpoint | None
    asleep_since: float | None = None
    wake_seconds: tuple[float, ...] = ()


@frozen
class _LaunchPlan:
    """A command that could be started now."""

    model: Model
    endpoint: Endpoint
    executable: str
    argv: tuple[str, ...]


class _CannotStart(Exception):
    """Why a start is not even tried; `str()` is the cause."""


@define(eq=False)
class Supervisor:
    """Looks after one model's server.

    `ask` puts the readiness question, `log` takes the server's output and must not block, `listener` hears news.
    """

    model: Model
    clock: IReactorTime = field(kw_only=True)
    launcher: Launcher = field(kw_only=True)
    ask: ReadinessRequest = field(kw_only=True)
    log: Callable[[bytes], None] = field(kw_only=True)
    listener: LifecycleListener = field(kw_only=True)
    waiters: LifecycleWaiters = field(init=False)
    _machine: lifecycle.Inputs = field(init=False)
    _word: str = lifecycle.STOPPED
    _running: Model = field(init=False)
    _endpoint: Endpoint | None = None
    _argv: tuple[str, ...] = ()
    _child: Child | None = None
    _readiness: Readiness | None = None
    _ladder: TerminationSequence | None = None
    _other_port: int | None = None
    _moving: bool = False  # the start to come goes to another port
    _moved: bool = False  # the start under way did
    _tail: bytes = b""
    _started_at: float | None = None
    _ready_at: float | None = None
    _last_error: str = ""
    _loads: tuple[float, ...] = ()
    _down: StopInProgress | None = None
    _doze: SuspendInProgress | None = None
    _slept: bool = False  # this process has been asleep, or nearly
    _wake: tuple[str, ...] = ()  # what wakes it up again
    _asleep_since: float | None = None
    _woken_at: float | None = None
    _wakes: tuple[float, ...] = ()
    _cleaning: bool = False  # only the stop command runs
    _external: str = ""  # which server that is not ours was last reported

    def __attrs_post_init__(self) -> None:
        self.waiters = LifecycleWaiters(self.clock, self.model.id)
        self._running = self.model
        self._machine = lifecycle.machine(self)

    # -- the router's side --

    @property
    def state(self) -> str:
        """The outward word for how things are; good for showing, not for deciding."""
        return self._word

    def ensure_ready(self) -> Deferred[Endpoint]:
        """The endpoint, once the server is ready; it is started if need be. Cancelling ends the wait, not the start.

        Fails with StartFailed, ModelUnloaded (stopped meanwhile) or ShuttingDown, and then the process is gone.
        """
        waiter: Deferred[Endpoint] = Deferred()
        self._machine.want_ready(waiter)
        return waiter

    def stop(self, grace: float | None = None) -> Deferred[None]:
        """Fires when nothing of the server is left, or what is left was given up as lost; never fails.

        `grace` in seconds between the polite request and SIGKILL; the model's `unload_timeout` by default.
        """
        waiter: Deferred[None] = Deferred()
        self._machine.want_stopped(waiter, self.model.unload_timeout if grace is None else grace)
        return waiter

    def sleep(self, grace: float | None = None) -> Deferred[bool]:
        """Give its room back, asleep if that can be: fires with whether it sleeps. Otherwise it is gone, as by `stop`.

        A start that is under way is stopped; only what was ready can sleep.
        """
        if not self.model.sleep.sleep:
            return self.stop(grace).addCallback(lambda _: False)
        waiter: Deferred[None] = Deferred()
        self._machine.want_asleep(waiter, self.model.unload_timeout if grace is None else grace)
        return waiter.addCallback(lambda _: self._asleep_since is not None)

    def clean_up(self) -> Deferred[None]:
        """Run the stop command of a server that is not up, for what may be left of it elsewhere; never fails.

        A command with ${PID} in it is for a process that is there, and does not run.
        """
        waiter: Deferred[None] = Deferred()
        command = self.model.cmd_stop
        if self._word != lifecycle.STOPPED or self._asleep_since is not None or self._cleaning:
            self._machine.want_stopped(waiter, self.model.unload_timeout)
        elif not command.strip() or "${PID}" in command:
            self._machine.want_stopped(waiter, 0.0)
        else:
            self._cleaning, self._running = True, self.model
            self._child = self._down = self._ladder = None
            self._machine.want_cleaned(waiter)
        return waiter

    def close(self, grace: float = CLOSE_GRACE) -> Deferred[None]:
        """Stop, and start nothing any more."""
        waiter: Deferred[None] = Deferred()
        self._machine.closing(waiter, grace)
        return waiter

    def retune(self, model: Model) -> None:
        """The next start uses this definition; a running server is left as it is."""
        self.model = model

    def preflight(self, ours: Collection[int] = ()) -> StartFailed | None:
        """Why a start would fail at once, asked before anything is stopped for it.

        A port that cannot be chosen anew must be free, or be one of `ours`: what other models' servers have now.
        """
        try:
            plan = self._plan(self.model)
            endpoint = plan.endpoint
            if is_local(endpoint.host) and not self._movable(plan) and endpoint.port not in ours:
                self._see_free(plan)
        except _CannotStart as reason:
            self._last_error = str(reason)
            return StartFailed(self.model.id, str(reason))
        return None

    def log_tail(self) -> str:
        """The last lines the server said since it was last started."""
        lines = self._tail.decode("utf-8", "replace").rstrip().splitlines()
        return "\n".join(lines[-TAIL_LINES:])

    def handover(self) -> ServerSnapshot | None:
        """What another program in our place needs to go on with this server; None where it is not ready or asleep."""
        child, endpoint = self._child, self._endpoint
        asleep = self._asleep_since is not None and self._down is None
        at_rest = asleep or self._word == lifecycle.READY
        if not at_rest or child is None or child.status is not None or endpoint is None:
            return None
        return ServerSnapshot(
            model=self.model.id,
            pid=child.pid,
            start=child.start,
            mark=child.mark,
            port=endpoint.port if self._running.port is not None else None,
            proxy=self._running.proxy,
            endpoint=endpoint,
            argv=self._argv,
            env=self._running.env,
            cmd_stop=self._running.cmd_stop,
            started_at=self._started_at or 0.0,
            ready_at=self._ready_at or 0.0,
            load_seconds=self._loads,
            output=child.output,
            tail=self._tail,
            asleep=asleep,
            wake_seconds=self._wakes,
        )

    def adopt(self, served: ServerSnapshot) -> bool:
        """Begin with a server that is ready already. Returns whether it is what the definition would start now.

        Raises OSError where it is no child of ours.
        """
        model = self.model
        try:
            if served.port is not None and model.port is not None and served.port != model.port:
                model, self._other_port = model.with_port(served.port), served.port
            current = self._plan(model).argv == served.argv
        except (_CannotStart, ConfigError):  # the port's place in the definition may have changed
            current = False
        current = current and (model.env, model.proxy) == (served.env, served.proxy)
        running = evolve(model, env=served.env, cmd_stop=model.cmd_stop if current else served.cmd_stop)
        birth = ChildRecord(served.pid, served.start, served.mark, model.id, served.endpoint.port)
        child = self.launcher.adopt(birth, served.output)
        self._running, self._endpoint, self._argv, self._child = running, served.endpoint, served.argv, child
        child.attend(self._heard, lambda status: self._child_exited(child, status), lambda: self._output_ended(child))
        self._tail, self._loads, self._wakes = served.tail, served.load_seconds, served.wake_seconds
        if served.asleep:
            self._slept, self._wake = True, model.sleep.wake
            current = current and bool(self._wake)
            self._machine.adopted_asleep()
            self._started_at, self._asleep_since = served.started_at, served.idle_since
        else:
            self._machine.adopted()
            self._started_at, self._ready_at = served.started_at, served.ready_at
        child.watch()
        child.settle()
        return current

    def status(self) -> SupervisorStatus:
        """Everything an operator may want to know."""
        endpoint = self._endpoint or self.model.endpoint
        return SupervisorStatus(
            model=self.model.id,
            state=self._word,
            pid=self._child.pid if self._child is not None and self._child.status is None else None,
            port=endpoint.port if endpoint is not None else None,
            started_at=self._started_at,
            ready_at=self._ready_at,
            last_error=self._last_error,
            load_seconds=self._loads,
            cmd=self._argv,
            endpoint=endpoint,
            asleep_since=self._asleep_since,
            wake_seconds=self._wakes,
        )

    # -- the machine's side --

    def begin(self) -> StartInProgress:
        """Start a child and its probing. A start that cannot be is told on the next turn, like any other news."""
        self._ladder = self._down = self._doze = self._child = self._readiness = None
        self._slept = False
        if not self._moving:
            self._other_port = None
        self._moved, self._moving = self._moving, False
        self._tail = b""
        self._ready_at = None
        self._started_at = self.clock.seconds()
        try:
            plan = self._take_port(self._plan(self.model))
            self._launch(plan)
        except _CannotStart as reason:
            return self._fail_later(StartFailed(self.model.id, str(reason)))
        return StartInProgress(self._abandon)

    def serve(self) -> Serving:
        assert self._endpoint is not None
        return Serving(self._endpoint)

    def descend(self) -> StopInProgress:
        if self._down is None:
            child = self._child
            self._ladder = ladder = TerminationSequence(
                self.clock,
                self.launcher,
                child,
                self._stop_words(),
                self._running.env,
                self.log,
                lambda lost: self._came_down(child, lost),
                self.model.id,
                self._running.unload_timeout + STOP_AGAIN,
            )
            self._down = StopInProgress(ladder.go, ladder.hasten, ladder.leader_gone)
        return self._down

    def doze(self, grace: float) -> SuspendInProgress:
        if self._doze is None:
            self._slept, self._wake = True, self.model.sleep.wake
            doing = self._do(self.model.sleep.sleep, self._dozed)
            doing.start()
            self._doze = SuspendInProgress(doing.cancel, grace)
        return self._doze

    def wake(self) -> StartInProgress:
        """The words for it are those of the time when it fell asleep: the definition may have changed since."""
        self._woken_at = self.clock.seconds()
        self._doze = None
        doing = self._do(self._wake, self._woken)
        doing.start()

        def abandon() -> None:
            doing.cancel()
            self._abandon()

        return StartInProgress(abandon)

    def show(self, word: str) -> None:
        """Tell a change, not a repetition. A load is over when it is ready. Who sleeps looks stopped."""
        asleep = word == lifecycle.ASLEEP
        old, self._word = self._word, lifecycle.STOPPED if asleep else word
        word = self._word
        self._asleep_since = self.clock.seconds() if asleep else None
        if asleep:
            self._ready_at = None
        if word == lifecycle.READY and self._started_at is not None:
            self._ready_at = self.clock.seconds()
            if self._woken_at is not None:
                self._wakes = (*self._wakes, self._ready_at - self._woken_at)[-LOADS_KEPT:]
            else:
                self._loads = (*self._loads, self._ready_at - self._started_at)[-LOADS_KEPT:]
            self._woken_at = None
            self._last_error = ""
        if old != word:
            self.listener.state_changed(self.model.id, old, word)

    # -- sleeping --

    def _do(self, steps: Sequence[str], ended: Callable[[str], None]) -> StepRunner:
        """Have something done to the server; `ended` hears the problem, if there is one."""
        assert self._endpoint is not None and self._child is not None
        return StepRunner(
            clock=self.clock,
            launcher=self.launcher,
            ask=self.ask,
            endpoint=self._endpoint,
            pid=self._child.pid,
            steps=steps,
            env=self._running.env,
            log=self.log,
            limit=self.model.sleep.timeout,
            ended=ended,
        )

    def _dozed(self, problem: str) -> None:
        if problem:
            self._last_error = f"could not be put to sleep: {problem}"
            _log.warn(
                "stopping {model}, because it could not be put to sleep: {problem}",
                model=self.model.id,
                problem=problem,
            )
            self._machine.sleep_failed()
        else:
            self._machine.fell_asleep()

    def _woken(self, problem: str) -> None:
        """What woke it up has ended; it is ready when it says so."""
        child, endpoint = self._child, self._endpoint
        if problem or child is None or endpoint is None:
            self._wake_failed(problem)
        else:
            self._watch_for(child, endpoint, self._running, self.model.sleep.timeout, self._wake_failed)

    def _wake_failed(self, problem: str) -> None:
        self._last_error = f"did not wake up: {problem}"
        _log.warn("restarting {model}, because it did not wake up: {why}", model=self.model.id, why=problem)
        self._machine.wake_failed()

    # -- starting --

    def _plan(self, model: Model) -> _LaunchPlan:
        if not model.proxy.strip():
            raise _CannotStart("upstream proxy missing")
        if model.endpoint is None:
            raise _CannotStart(f"upstream proxy {model.proxy!r} is not an http or https URL")
        try:
            argv = split(model.cmd)
        except EmptyCommand as error:
            raise _CannotStart(str(error))
        except ValueError as error:
            raise _CannotStart(f"failed to start command {model.cmd.strip()!r}: {error}")
        executable = self.launcher.find(argv[0])
        if executable is None:
            where = "no such executable file" if "/" in argv[0] else "executable file not found in PATH"
            raise _CannotStart(f"failed to start command '{' '.join(argv)}': {argv[0]}: {where}")
        return _LaunchPlan(model, model.endpoint, executable, tuple(argv))

    def _take_port(self, plan: _LaunchPlan) -> _LaunchPlan:
        """See that the server can have its port. Where the port is ours to choose, choose one that is free."""
        model, endpoint = plan.model, plan.endpoint
        if not is_local(endpoint.host):
            return plan
        host = _numeric(endpoint.host)
        if self._other_port is None:
            if not self._movable(plan):
                self._see_free(plan)
                return plan
            if not self.launcher.kernel.taken(host, endpoint.port):
                return plan
            self._other_port = self.launcher.kernel.free_port(host)
        return self._plan(model.with_port(self._other_port))

    def _movable(self, plan: _LaunchPlan) -> bool:
        """Whether the port is ours to choose."""
        return plan.model.port is not None and plan.model.port == plan.endpoint.port

    def _see_free(self, plan: _LaunchPlan) -> None:
        endpoint = plan.endpoint
        if self.launcher.kernel.taken(_numeric(endpoint.host), endpoint.port):
            if _may_be_external(plan.model, endpoint) and not self._held_by_a_model(endpoint.port):
                return  # it is asked whether it is ready like a server of our own
            raise _CannotStart(f"port {endpoint.port} is already in use{self._by_whom(endpoint.port)}")

    def _held_by_a_model(self, port: int) -> bool:
        """Whether a server that some llamaswap started listens there."""
        holder = self.launcher.kernel.holder(port)
        return holder is not None and self.launcher.kernel.mark_of(holder.pid) is not None

    def _by_whom(self, port: int) -> str:
        holder = self.launcher.kernel.holder(port)
        return f" by pid {holder.pid} ({holder.name})" if holder is not None else ""

    def _launch(self, plan: _LaunchPlan) -> None:
        self._running, self._endpoint, self._argv = plan.model, plan.endpoint, plan.argv
        try:
            child = self.launcher.launch(
                plan.executable,
                plan.argv,
                plan.model.env,
                model=plan.model.id,
                port=plan.endpoint.port,
                policy=plan.model.env_policy,
            )
        except OSError as error:
            raise _CannotStart(f"failed to start command '{' '.join(plan.argv)}': {error.strerror or error}")
        self._child = child
        child.attend(self._heard, lambda status: self._child_exited(child, status), lambda: self._output_ended(child))
        self._watch_for(child, plan.endpoint, plan.model, plan.model.health_check_timeout, self._timed_out)

    def _watch_for(
        self, child: Child, endpoint: Endpoint, model: Model, limit: float, failed: Callable[[str], None]
    ) -> None:
        """Ask the server until it is ready, for at most `limit` seconds."""
        path: str | None = model.check_endpoint.strip()
        if path == "none":
            path = None
            if not is_local(endpoint.host):
                self.clock.callLater(0, self._passed, child)
                return
        self._readiness = Readiness(
            clock=self.clock,
            ask=self.ask,
            endpoint=endpoint,
            path=path,
            deadline=limit,
            whose=lambda: self._whose(child, endpoint),
            passed=lambda: self._passed(child),
            failed=failed,
            explain=lambda: self._explain(child, endpoint),
            name=model.id,
        )
        self._readiness.start()

    def _fail_later(self, error: StartFailed) -> StartInProgress:
        self._last_error = error.cause
        call = self.clock.callLater(0, self._machine_failed, error)

        def abandon() -> None:
            if call.active():
                call.cancel()

        return StartInProgress(abandon)

    def _machine_failed(self, error: StartFailed) -> None:
        self._machine.start_failed(lambda: error)

    def _abandon(self) -> None:
        readiness, self._readiness = self._readiness, None
        if readiness is not None:
            readiness.cancel()

    def _passed(self, child: Child) -> None:
        if child is self._child:
            self._machine.probe_passed()
            child.settle()

    def _timed_out(self, cause: str) -> None:
        self._last_error = cause
        model = self.model.id
        self._machine.start_failed(lambda: StartFailed(model, cause, None, self.log_tail()))

    def _whose(self, child: Child, endpoint: Endpoint) -> Verdict:
        """Whether the listener is our child's. Not being able to know is no objection: containers hide theirs."""
        kernel = self.launcher.kernel
        if not is_local(endpoint.host) or not child.start:
            return Verdict(PortOwner.UNKNOWN)
        listeners = kernel.listening(endpoint.port)
        if not listeners:
            return Verdict(PortOwner.UNKNOWN)
        for pid in child.family():
            held = kernel.sockets(pid)
            if held is None:
                return Verdict(PortOwner.UNKNOWN)
            if held & listeners:
                return Verdict(PortOwner.OURS)
        holder = kernel.holder(endpoint.port)
        if holder is None:
            return Verdict(PortOwner.UNKNOWN)
        who = f"pid {holder.pid} ({holder.name})"
        if kernel.mark_of(holder.pid):
            return Verdict(PortOwner.FOREIGN, who)
        if _may_be_external(self._running, endpoint):
            self._note_external(endpoint, who)
            return Verdict(PortOwner.UNKNOWN, who)
        return Verdict(PortOwner.FOREIGN if holder.start < child.start else PortOwner.NEWCOMER, who)

    def _note_external(self, endpoint: Endpoint, who: str) -> None:
        if self._external != who:
            self._external = who
            _log.warn(
                "{model}: {proxy} is served by {who}, which cmd did not start; requests go there, and unloading the "
                "model does not stop it. Use ${{PORT}} in cmd if cmd was to start the server",
                model=self.model.id,
                proxy=str(endpoint),
                who=who,
            )

    def _explain(self, child: Child, endpoint: Endpoint) -> str:
        """What a server that runs but was never reached does instead."""
        if not is_local(endpoint.host) or not child.start:
            return ""
        kernel = self.launcher.kernel
        ports = kernel.ports_of({one.pid for one in child.remaining()})
        if not ports or endpoint.port in ports:
            return ""
        listed = ", ".join(str(port) for port in sorted(ports))
        return f"the server listens on port {listed} instead (is ${{PORT}} in cmd and proxy?)"

    # -- what the child does --

    def _heard(self, data: bytes) -> None:
        self._tail = (self._tail + data)[-TAIL_BYTES:]
        if self._readiness is not None:
            self._readiness.hint(data)
        self.log(data)

    def _child_exited(self, child: Child, status: int) -> None:
        if child is not self._child:
            return
        starting = self._down is None and self._ready_at is None and not self._slept
        expected = self._down is not None
        if starting and self._port_was_taken(status):
            self._moving = True
            self._machine.port_lost()
        else:
            if not expected:
                self._last_error = f"upstream command exited {'prematurely' if starting else 'unexpectedly'}"
                self._last_error += f" ({say_status(status)})"
            self._machine.exited(lambda: self._premature(status))
        self.listener.exited(self.model.id, status, expected)

    def _port_was_taken(self, status: int) -> bool:
        """Whether somebody was faster, between our look and the server's bind. Worth one more try, elsewhere."""
        endpoint, began = self._endpoint, self._started_at
        if self._moved or status == 0 or endpoint is None or began is None:
            return False
        if self._running.port != endpoint.port or self.clock.seconds() - began > EARLY:
            return False
        if not is_local(endpoint.host) or not self.launcher.kernel.taken(_numeric(endpoint.host), endpoint.port):
            return False
        self._other_port = self.launcher.kernel.free_port(_numeric(endpoint.host))
        return True

    def _premature(self, status: int) -> StartFailed:
        """The error for an exit before readiness, made when all of the output is here."""
        tail = self.log_tail()
        last = tail.rpartition("\n")[2]
        if status == 127 and last.startswith(CANNOT_RUN):
            cause = f"failed to start command '{' '.join(self._argv)}': {last.removeprefix(CANNOT_RUN)}"
        else:
            cause = f"upstream command exited prematurely ({say_status(status)})"
        self._last_error = cause
        return StartFailed(self.model.id, cause, status, tail)

    def _output_ended(self, child: Child) -> None:
        if child is self._child and self._ladder is not None:
            self._ladder.output_ended()

    # -- going down --

    def _stop_words(self) -> Sequence[str] | None:
        """The stop command as words; None where there is none or it cannot be split, and TERM has to do."""
        if not self._running.cmd_stop.strip() or (self._child is None and not self._cleaning):
            return None
        try:
            return render_stop(self._running.cmd_stop, self._child.pid if self._child is not None else 0) or None
        except ValueError as error:
            self.log(f"llamaswap: the stop command cannot be split ({error}); TERM instead\n".encode())
            return None

    def _came_down(self, child: Child | None, lost: bool) -> None:
        if lost and child is not None:
            self._last_error = f"pid {child.pid} lives on after {signal.SIGKILL.name} and was given up as lost"
        self._endpoint = self._started_at = self._ready_at = self._woken_at = None
        self._cleaning = False
        self._machine.drained()


def _may_be_external(model: Model, endpoint: Endpoint) -> bool:
    """Whether `proxy` may name a server that runs already: neither ${PORT} nor the port's number is in the command."""
    own = rf"(?<!\d){endpoint.port}(?!\d)"
    return model.port is None and not any(re.search(own, text) for text in (model.cmd, *model.env))


def _numeric(host: str) -> str:
    """A name for this machine as an address that can be bound."""
    return {"localhost": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
