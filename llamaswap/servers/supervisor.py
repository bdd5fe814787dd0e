"""The supervisor of one model's server: starts it when a caller needs it, watches it, stops it without remains.

The router decides whether a server runs; this module does it. The state machine in `lifecycle.py` allows one process
per model; a supervisor performs the machine's actions.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Collection, Sequence

from attrs import define, evolve, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from llamaswap.config.command_line import render_stop
from llamaswap.config.endpoints import Endpoint
from llamaswap.config.schema import Model
from llamaswap.errors import ConfigError, StartFailed
from llamaswap.servers import lifecycle
from llamaswap.servers.launch_plan import CannotStart, LaunchPlan, check_launch, make_plan, plan_launch
from llamaswap.servers.lifecycle_interfaces import Inputs, StateTask
from llamaswap.servers.lifecycle_waiters import LifecycleWaiters
from llamaswap.servers.port_ownership import PortOwner, Verdict, bind_address, explain_wrong_port, find_owner, is_local
from llamaswap.servers.readiness import Readiness
from llamaswap.servers.server_request import ServerRequest
from llamaswap.servers.server_snapshot import ServerSnapshot
from llamaswap.servers.sessionleader import CANNOT_RUN
from llamaswap.servers.spawn import Child, ChildRecord, Launcher, say_status
from llamaswap.servers.step_runner import StepRunner
from llamaswap.servers.supervisor_protocol import ServerStatus, SupervisorListener
from llamaswap.servers.termination import STOP_AGAIN, TerminationSequence

TAIL_LINES = 20  # of output that accompany an error: the end of a traceback and what led to it
TAIL_BYTES = 8192
TIMES_KEPT = 20  # load and resume times remembered per model
PORT_LOSS_PERIOD = 10.0  # seconds after a start in which an exit may be due to a port that another process took
CLOSE_GRACE = 1.0  # seconds for a server whose supervisor is closed without an orderly stop before

_log = Logger()


@define(eq=False)
class Supervisor:
    """Supervises the server of `model`.

    `ask` makes readiness requests and those of suspend steps. `log` takes the server's output and must not block.
    `listener` hears of state changes and exits.
    """

    model: Model
    clock: IReactorTime = field(kw_only=True)
    launcher: Launcher = field(kw_only=True)
    ask: ServerRequest = field(kw_only=True)
    log: Callable[[bytes], None] = field(kw_only=True)
    listener: SupervisorListener = field(kw_only=True)
    waiters: LifecycleWaiters = field(init=False)
    _machine: Inputs = field(init=False)
    _state: str = lifecycle.STOPPED
    _running: Model = field(init=False)  # the definition that the present process was started by
    _endpoint: Endpoint | None = None
    _argv: tuple[str, ...] = ()
    _child: Child | None = None
    _readiness: Readiness | None = None
    _termination: TerminationSequence | None = None
    _suspending: StateTask | None = None
    _resume_steps: tuple[str, ...] = ()
    _tail: bytes = b""
    _started_at: float | None = None
    _ready_at: float | None = None
    _suspended_at: float | None = None
    _resumed_at: float | None = None
    _loads: tuple[float, ...] = ()
    _resumes: tuple[float, ...] = ()
    _last_error: str = ""
    _external: str = ""  # the external process that was last reported

    def __attrs_post_init__(self) -> None:
        self.waiters = LifecycleWaiters(self.clock, self.model.id)
        self._running = self.model
        self._machine = lifecycle.machine(self)

    # -- the router's calls --------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """The state as others see it; good for showing, not for deciding."""
        return self._state

    def ensure_ready(self) -> Deferred[Endpoint]:
        """The endpoint, once the server is ready; it is started if necessary. Cancelling ends the wait, not the start.

        Fails with StartFailed, ModelUnloaded (stopped meanwhile) or ShuttingDown, and then the process is gone.
        """
        waiter: Deferred[Endpoint] = Deferred()
        self._machine.want_ready(waiter)
        return waiter

    def stop(self, grace: float | None = None) -> Deferred[None]:
        """Fires when no process of the server is left, or those left were given up; never fails.

        `grace` in seconds between SIGTERM and SIGKILL; the model's `unload_timeout` by default.
        """
        waiter: Deferred[None] = Deferred()
        self._machine.want_stopped(waiter, self.model.unload_timeout if grace is None else grace)
        return waiter

    def sleep(self, grace: float | None = None) -> Deferred[bool]:
        """Release the server's memory: suspend it, or stop it if it cannot be suspended. Fires with which it was.

        A server that starts is stopped; only a ready one can be suspended.
        """
        if not self.model.sleep.sleep:
            return self.stop(grace).addCallback(lambda _: False)
        waiter: Deferred[None] = Deferred()
        self._machine.want_suspended(waiter, self.model.unload_timeout if grace is None else grace)
        return waiter.addCallback(lambda _: self._suspended_at is not None)

    def clean_up(self) -> Deferred[None]:
        """Run the stop command of a stopped server, for a container that may be left of it; never fails.

        A command with ${PID} in it needs a process, and does not run.
        """
        waiter: Deferred[None] = Deferred()
        stopped = self._state == lifecycle.STOPPED and self._suspended_at is None and self._termination is None
        command = self.model.cmd_stop
        if stopped and command.strip() and "${PID}" not in command:
            self._running = self.model
            self._machine.want_cleaned(waiter)
        else:
            self._machine.want_stopped(waiter, self.model.unload_timeout)
        return waiter

    def close(self, grace: float = CLOSE_GRACE) -> Deferred[None]:
        """Stop the server and never start it again."""
        waiter: Deferred[None] = Deferred()
        self._machine.closing(waiter, grace)
        return waiter

    def retune(self, model: Model) -> None:
        """The next start uses this definition; a running server stays as it is."""
        self.model = model

    def preflight(self, ours: Collection[int] = ()) -> StartFailed | None:
        """Why a start would fail at once; the router asks before it stops other models for it.

        A port that llamaswap cannot exchange must be free, or be one of `ours`: those of other models' servers.
        """
        try:
            check_launch(self.model, self.launcher, ours)
        except CannotStart as reason:
            self._last_error = str(reason)
            return StartFailed(self.model.id, str(reason))
        return None

    def log_tail(self) -> str:
        """The last lines of output since the last start."""
        lines = self._tail.decode("utf-8", "replace").rstrip().splitlines()
        return "\n".join(lines[-TAIL_LINES:])

    def status(self) -> ServerStatus:
        endpoint = self._endpoint or self.model.endpoint
        return ServerStatus(
            model=self.model.id,
            state=self._state,
            pid=self._child.pid if self._child is not None and self._child.status is None else None,
            port=endpoint.port if endpoint is not None else None,
            started_at=self._started_at,
            ready_at=self._ready_at,
            last_error=self._last_error,
            load_seconds=self._loads,
            cmd=self._argv,
            endpoint=endpoint,
            asleep_since=self._suspended_at,
            wake_seconds=self._resumes,
        )

    # -- replacing the program -----------------------------------------------------------------------------

    def handover(self) -> ServerSnapshot | None:
        """What a new program in this process needs to keep the server; None if it is neither ready nor suspended."""
        child, endpoint = self._child, self._endpoint
        suspended = self._suspended_at is not None and self._termination is None
        at_rest = suspended or self._state == lifecycle.READY
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
            asleep=suspended,
            wake_seconds=self._resumes,
        )

    def adopt(self, served: ServerSnapshot) -> bool:
        """Continue with a server that runs already. Returns whether the present definition would start the same.

        Raises OSError if it is not a child of this process.
        """
        model = self.model
        try:
            if served.port is not None and model.port is not None and served.port != model.port:
                model = model.with_port(served.port)
            current = make_plan(model, self.launcher.find).argv == served.argv
        except (CannotStart, ConfigError):  # the port's place in the definition may have changed
            current = False
        current = current and (model.env, model.proxy) == (served.env, served.proxy)
        record = ChildRecord(served.pid, served.start, served.mark, model.id, served.endpoint.port)
        child = self.launcher.adopt(record, served.output)
        self._running = evolve(model, env=served.env, cmd_stop=model.cmd_stop if current else served.cmd_stop)
        self._endpoint, self._argv = served.endpoint, served.argv
        self._attend(child)
        self._tail, self._loads, self._resumes = served.tail, served.load_seconds, served.wake_seconds
        if served.asleep:
            self._resume_steps = model.sleep.wake
            current = current and bool(self._resume_steps)
            self._machine.adopted_suspended()
            self._started_at, self._suspended_at = served.started_at, served.idle_since
        else:
            self._machine.adopted()
            self._started_at, self._ready_at = served.started_at, served.ready_at
        child.watch()
        child.settle()
        return current

    # -- the machine's actions: start ----------------------------------------------------------------------

    def start(self, other_port: bool) -> StateTask:
        """Start a child and its readiness checks. A start that is impossible is reported on the next turn."""
        self._termination = self._suspending = self._child = self._readiness = None
        self._tail = b""
        self._ready_at = None
        self._started_at = self.clock.seconds()
        try:
            plan = plan_launch(self.model, self.launcher, other_port)
            child = self._launch(plan)
        except CannotStart as reason:
            return self._fail_later(StartFailed(self.model.id, str(reason)))
        self._check_readiness(child, plan.model.health_check_timeout, self._timed_out)
        return StateTask(self._abandon, lifecycle.ABORT_GRACE)

    def endpoint(self) -> Endpoint:
        assert self._endpoint is not None
        return self._endpoint

    def _launch(self, plan: LaunchPlan) -> Child:
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
            raise CannotStart(f"failed to start command '{' '.join(plan.argv)}': {error.strerror or error}")
        self._attend(child)
        return child

    def _attend(self, child: Child) -> None:
        self._child = child
        child.attend(self._received, lambda status: self._exited(child, status), lambda: self._output_ended(child))

    def _check_readiness(self, child: Child, limit: float, failed: Callable[[str], None]) -> None:
        """Ask the server until it is ready, for at most `limit` seconds."""
        endpoint = self.endpoint()
        path: str | None = self._running.check_endpoint.strip()
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
            find_owner=lambda: self._find_owner(child, endpoint),
            passed=lambda: self._passed(child),
            failed=failed,
            explain=lambda: explain_wrong_port(self.launcher.kernel, child, endpoint),
            name=self.model.id,
        )
        self._readiness.start()

    def _fail_later(self, error: StartFailed) -> StateTask:
        self._last_error = error.cause
        call = self.clock.callLater(0, self._machine.start_failed, lambda: error)
        return StateTask(lambda: call.cancel() if call.active() else None, lifecycle.ABORT_GRACE)

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

    def _find_owner(self, child: Child, endpoint: Endpoint) -> Verdict:
        verdict = find_owner(self.launcher.kernel, child, endpoint, self._running)
        if verdict.owner is PortOwner.EXTERNAL and self._external != verdict.process:
            self._external = verdict.process
            _log.warn(
                "{model}: {proxy} is served by {process}, which cmd did not start; requests go there, and unloading "
                "the model does not stop it. Use ${{PORT}} in cmd if cmd was to start the server",
                model=self.model.id,
                proxy=str(endpoint),
                process=verdict.process,
            )
        return verdict

    # -- the machine's actions: suspend and resume ---------------------------------------------------------

    def suspend(self, grace: float) -> StateTask:
        if self._suspending is None:
            self._resume_steps = self.model.sleep.wake
            runner = self._run_steps(self.model.sleep.sleep, self._suspend_ended)
            self._suspending = StateTask(runner.cancel, suspend_grace=grace)
        return self._suspending

    def resume(self) -> StateTask:
        """Run the steps that were configured when it was suspended: the definition may have changed since."""
        self._resumed_at = self.clock.seconds()
        self._suspending = None
        runner = self._run_steps(self._resume_steps, self._resume_ended)

        def abandon() -> None:
            runner.cancel()
            self._abandon()

        return StateTask(abandon, lifecycle.ABORT_GRACE)

    def _run_steps(self, steps: Sequence[str], ended: Callable[[str], None]) -> StepRunner:
        """Begin steps; `ended` gets the problem, empty if there was none."""
        assert self._child is not None
        runner = StepRunner(
            clock=self.clock,
            launcher=self.launcher,
            ask=self.ask,
            endpoint=self.endpoint(),
            pid=self._child.pid,
            steps=steps,
            env=self._running.env,
            log=self.log,
            limit=self.model.sleep.timeout,
            ended=ended,
        )
        runner.start()
        return runner

    def _suspend_ended(self, problem: str) -> None:
        if problem:
            self._last_error = f"could not be put to sleep: {problem}"
            _log.warn("stopping {model}, because it {error}", model=self.model.id, error=self._last_error)
            self._machine.suspend_failed()
        else:
            self._machine.suspended()

    def _resume_ended(self, problem: str) -> None:
        """The steps have ended; the server is ready when its readiness check passes."""
        if problem or self._child is None:
            self._resume_failed(problem)
        else:
            self._check_readiness(self._child, self.model.sleep.timeout, self._resume_failed)

    def _resume_failed(self, problem: str) -> None:
        self._last_error = f"did not wake up: {problem}"
        _log.warn("restarting {model}, because it {error}", model=self.model.id, error=self._last_error)
        self._machine.resume_failed()

    # -- the machine's actions: stop and show --------------------------------------------------------------

    def terminate(self) -> TerminationSequence:
        if self._termination is None:
            child = self._child
            self._termination = TerminationSequence(
                clock=self.clock,
                launcher=self.launcher,
                child=child,
                stop_words=self._stop_words(),
                env=self._running.env,
                log=self.log,
                done=lambda lost: self._terminated(child, lost),
                name=self.model.id,
                stop_limit=self._running.unload_timeout + STOP_AGAIN,
            )
        return self._termination

    def _stop_words(self) -> Sequence[str] | None:
        """The stop command as words; None without one, and SIGTERM has to do.

        Without a child it runs only to clean up, not after a start that was not tried.
        """
        command = self._running.cmd_stop
        if not command.strip() or (self._child is None and self._state == lifecycle.STARTING):
            return None
        try:
            return render_stop(command, self._child.pid if self._child is not None else 0) or None
        except ValueError as error:
            self.log(f"llamaswap: the stop command cannot be split ({error}); TERM instead\n".encode())
            return None

    def _terminated(self, child: Child | None, lost: bool) -> None:
        if lost and child is not None:
            self._last_error = f"pid {child.pid} lives on after {signal.SIGKILL.name} and was given up as lost"
        self._endpoint = self._started_at = self._ready_at = self._resumed_at = None
        self._child = self._termination = None
        self._machine.drained()

    def show(self, state: str) -> None:
        """Report a change, not a repetition. A load ends with readiness. A suspended server is shown as stopped."""
        suspended = state == lifecycle.SUSPENDED
        old, self._state = self._state, lifecycle.STOPPED if suspended else state
        self._suspended_at = self.clock.seconds() if suspended else None
        if suspended:
            self._ready_at = None
        if state == lifecycle.READY and self._started_at is not None:
            self._ready_at = self.clock.seconds()
            if self._resumed_at is not None:
                self._resumes = (*self._resumes, self._ready_at - self._resumed_at)[-TIMES_KEPT:]
            else:
                self._loads = (*self._loads, self._ready_at - self._started_at)[-TIMES_KEPT:]
            self._resumed_at = None
            self._last_error = ""
        if old != self._state:
            self.listener.state_changed(self.model.id, old, self._state)

    # -- the child's events --------------------------------------------------------------------------------

    def _received(self, data: bytes) -> None:
        self._tail = (self._tail + data)[-TAIL_BYTES:]
        if self._readiness is not None:
            self._readiness.hint(data)
        self.log(data)

    def _exited(self, child: Child, status: int) -> None:
        if child is not self._child:
            return
        expected = self._termination is not None
        starting = not expected and self._state == lifecycle.STARTING and self._resumed_at is None
        if not expected:
            self._last_error = f"upstream command exited {'prematurely' if starting else 'unexpectedly'}"
            self._last_error += f" ({say_status(status)})"
        if starting and status != 0 and self._port_was_taken():
            self._machine.port_lost(lambda: self._exit_error(status))
        else:
            self._machine.exited(lambda: self._exit_error(status))
        self.listener.exited(self.model.id, status, expected)

    def _port_was_taken(self) -> bool:
        """Whether another process took the port between the check and the server's bind."""
        endpoint, began = self._endpoint, self._started_at
        if endpoint is None or began is None or self._running.port != endpoint.port:
            return False
        if self.clock.seconds() - began > PORT_LOSS_PERIOD or not is_local(endpoint.host):
            return False
        return self.launcher.kernel.taken(bind_address(endpoint.host), endpoint.port)

    def _exit_error(self, status: int) -> StartFailed:
        """The error for an exit before readiness, made when all of the output has arrived."""
        tail = self.log_tail()
        last = tail.rpartition("\n")[2]
        if status == 127 and last.startswith(CANNOT_RUN):
            cause = f"failed to start command '{' '.join(self._argv)}': {last.removeprefix(CANNOT_RUN)}"
        else:
            cause = f"upstream command exited prematurely ({say_status(status)})"
        self._last_error = cause
        return StartFailed(self.model.id, cause, status, tail)

    def _output_ended(self, child: Child) -> None:
        if child is self._child and self._termination is not None:
            self._termination.output_ended()
