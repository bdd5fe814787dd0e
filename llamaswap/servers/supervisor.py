"""The supervisor of one model's server: starts it when a caller needs it, watches it, stops it without remains.

The router decides whether a server runs; this module does it. The state machine in `lifecycle.py` allows one process
per model; a supervisor performs the machine's actions.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Collection, Sequence

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaswap.config.endpoints import Endpoint
from llamaswap.config.schema.model import Model
from llamaswap.errors import StartFailed
from llamaswap.scheduling.effects import StartSwap
from llamaswap.servers import lifecycle
from llamaswap.servers.command import stop_words
from llamaswap.servers.launch_plan import CannotStart, check_launch, plan_launch
from llamaswap.servers.launcher import Launcher
from llamaswap.servers.lifecycle_interfaces import Inputs, LifecycleWaiters, StateTask
from llamaswap.servers.port_ownership import PortOwnership, is_local
from llamaswap.servers.readiness import Readiness
from llamaswap.servers.server_process import ServerProcess
from llamaswap.servers.server_request import ServerRequest
from llamaswap.servers.server_snapshot import ServerSnapshot
from llamaswap.servers.spawn import say_status
from llamaswap.servers.supervisor_protocol import ServerStatus, SupervisorListener
from llamaswap.servers.termination import TerminationSequence

LONGEST_START = 10  # times healthCheckTimeout, for a server that makes progress
TIMES_KEPT = 20  # load and resume times remembered per model
UNWANTED_GRACE = 5.0  # seconds for a server that the configuration does not contain any more
CLOSE_GRACE = 1.0  # seconds for a server whose supervisor is closed without an orderly stop before

_log = Logger()


@define(eq=False)
class Supervisor:
    """Supervises the server of `model`; the contract of its public methods is `Supervised`.

    `ask` makes readiness requests and those of suspend steps. `log` takes the server's output and must not block.
    `listener` is called at state changes and exits.
    """

    model: Model
    launcher: Launcher = field(kw_only=True)
    ask: ServerRequest = field(kw_only=True)
    log: Callable[[bytes], None] = field(kw_only=True)
    listener: SupervisorListener = field(kw_only=True)
    waiters: LifecycleWaiters = field(init=False)
    _machine: Inputs = field(init=False)
    _ownership: PortOwnership = field(init=False)
    state: str = field(default=lifecycle.STOPPED, init=False)
    _process: ServerProcess | None = None  # of the last start, also when it is over
    _readiness: Readiness | None = None
    _termination: TerminationSequence | None = None
    _loads: tuple[float, ...] = ()
    _resumes: tuple[float, ...] = ()
    _last_error: str = ""

    def __attrs_post_init__(self) -> None:
        self.waiters = LifecycleWaiters(self.launcher.clock, self.model.id)
        self._machine = lifecycle.machine(self)
        self._ownership = PortOwnership(self.launcher.kernel)

    # -- the router's calls --------------------------------------------------------------------------------

    def ensure_ready(self) -> Deferred[Endpoint]:
        waiter: Deferred[Endpoint] = Deferred()
        (self.waiters.refuse if self.waiters.closed else self._machine.want_ready)(waiter)
        return waiter

    def stop(self, grace: float | None = None) -> Deferred[None]:
        waiter: Deferred[None] = Deferred()
        self._machine.want_stopped(waiter, self.model.unload_timeout if grace is None else grace)
        return waiter

    def suspend(self, grace: float | None = None) -> Deferred[bool]:
        if not self.model.sleep.sleep:
            return self.stop(grace).addCallback(lambda _: False)
        waiter: Deferred[None] = Deferred()
        self._machine.want_suspended(waiter, self.model.unload_timeout if grace is None else grace)
        return waiter.addCallback(lambda _: self._is_suspended)

    def clean_up(self) -> Deferred[None]:
        waiter: Deferred[None] = Deferred()
        stopped = self.state == lifecycle.STOPPED and not self._is_suspended and self._termination is None
        if stopped and stop_words(self.model.cmd_stop, None):
            self._machine.want_cleaned(waiter)
        else:
            self._machine.want_stopped(waiter, self.model.unload_timeout)
        return waiter

    def close(self, grace: float = CLOSE_GRACE) -> Deferred[None]:
        self.waiters.closed = True
        stopped = self.stop(grace)
        self.show(lifecycle.STOPPED)
        return stopped

    def set_definition(self, model: Model) -> None:
        if (model.cmd, model.env, model.proxy) != (self.model.cmd, self.model.env, self.model.proxy):
            self._last_error = ""
        self.model = model

    def set_place(self, start: StartSwap) -> None:
        """Nothing to do: this supervisor starts its server on this machine."""

    def preflight(self, ours: Collection[int] = ()) -> StartFailed | None:
        try:
            check_launch(self.model, self.launcher, ours)
        except CannotStart as reason:
            self._last_error = str(reason)
            return StartFailed(self.model.id, str(reason))
        return None

    def log_tail(self) -> str:
        return self._process.log_tail() if self._process is not None else ""

    def status(self) -> ServerStatus:
        process, running = self._process, self._running
        endpoint = running.endpoint if running is not None else self.model.endpoint
        return ServerStatus(
            model=self.model.id,
            state=self.state,
            pid=running.child.pid if running is not None and running.child.status is None else None,
            port=endpoint.port if endpoint is not None else None,
            started_at=running.started_at if running is not None else None,
            ready_at=running.ready_at if running is not None else None,
            last_error=self._last_error,
            load_seconds=self._loads,
            cmd=process.argv if process is not None else (),
            endpoint=endpoint,
            asleep_since=running.suspended_at if running is not None else None,
            wake_seconds=self._resumes,
        )

    def snapshot(self) -> ServerSnapshot | None:
        process = self._running
        at_rest = self.state == lifecycle.READY or (self._is_suspended and self._termination is None)
        if process is None or not at_rest or process.child.status is not None:
            return None
        return process.snapshot(self._loads, self._resumes)

    def adopt(self, served: ServerSnapshot) -> bool:
        process, current = ServerProcess.adopt(served, self.model, self.launcher)
        self._loads, self._resumes = served.load_seconds, served.wake_seconds
        self._attend(process)
        (self._machine.adopted_suspended if served.asleep else self._machine.adopted)()
        process.child.watch()
        return current

    @property
    def _running(self) -> ServerProcess | None:
        """The present process."""
        return None if self._process is None or self._process.over else self._process

    @property
    def _is_suspended(self) -> bool:
        return self._running is not None and self._running.suspended_at is not None

    # -- the machine's actions: start ----------------------------------------------------------------------

    def begin_start(self) -> StateTask:
        """Start a process and its readiness checks. A start that is impossible is reported on the next turn."""
        other_port = self._process is not None and self._process.port_lost
        self._process = self._readiness = self._termination = None
        try:
            plan = plan_launch(self.model, self.launcher, other_port)
            process = ServerProcess.launch(plan, self.launcher, self.launcher.clock.seconds())
            process.relocated = other_port
        except CannotStart as reason:
            error = StartFailed(self.model.id, str(reason))
            self._last_error = error.cause
            call = self.launcher.clock.callLater(0, self._machine.start_failed, lambda: error)
            return StateTask(lambda: call.cancel() if call.active() else None, lifecycle.ABORT_GRACE)
        self._attend(process)
        timeout = plan.model.health_check_timeout
        self._check_readiness(process, timeout, timeout * LONGEST_START, self._timed_out)
        return StateTask(self._abandon, lifecycle.ABORT_GRACE)

    def endpoint(self) -> Endpoint:
        assert self._process is not None
        return self._process.endpoint

    def _attend(self, process: ServerProcess) -> None:
        self._process = process
        process.child.attend(
            lambda data: self._received(process, data),
            lambda status: self._exited(process, status),
            lambda: self._output_ended(process),
        )

    def _check_readiness(
        self, process: ServerProcess, limit: float, longest: float, failed: Callable[[str], None]
    ) -> None:
        """Ask the server until it is ready, for `limit` seconds without progress and `longest` at most."""
        child, endpoint = process.child, process.endpoint
        path: str | None = process.model.check_endpoint.strip()
        if path == "none":
            path = None
            if not is_local(endpoint.host):
                self.launcher.clock.callLater(0, self._passed, process)
                return
        self._readiness = Readiness(
            clock=self.launcher.clock,
            send=self.ask,
            endpoint=endpoint,
            path=path,
            timeout=limit,
            longest=longest,
            find_owner=lambda: self._ownership.find_owner(child, endpoint, process.model),
            passed=lambda: self._passed(process),
            failed=failed,
            work=lambda: self.launcher.kernel.work_of(child.pid),
            explain=lambda: self._ownership.explain_wrong_port(child, endpoint),
            name=self.model.id,
        )
        self._readiness.start()

    def _abandon(self) -> None:
        readiness, self._readiness = self._readiness, None
        if readiness is not None:
            readiness.cancel()

    def _passed(self, process: ServerProcess) -> None:
        if process is self._running:
            self._machine.probe_passed()

    def _timed_out(self, cause: str) -> None:
        self._last_error = cause
        self._machine.start_failed(lambda: StartFailed(self.model.id, cause, None, self.log_tail()))

    # -- the machine's actions: suspend and resume ---------------------------------------------------------

    def begin_suspend(self, grace: float) -> StateTask:
        assert self._running is not None
        self._running.resume_steps = self.model.sleep.wake
        steps = self._run_steps(self._running, self.model.sleep.sleep)
        steps.addCallbacks(self._suspended, self._suspend_failed)
        return StateTask(steps.cancel, failure_grace=grace)

    def begin_resume(self) -> StateTask:
        """Run the steps that were configured when it was suspended: the definition may have changed since."""
        process = self._running
        assert process is not None
        process.resumed_at = self.launcher.clock.seconds()
        limit = self.model.sleep.timeout
        steps = self._run_steps(process, process.resume_steps)

        def failed(failure: Failure) -> None:
            if not failure.check(CancelledError):
                self._resume_failed(str(failure.value))

        def abandon() -> None:
            steps.cancel()
            self._abandon()

        steps.addCallbacks(lambda _: self._check_readiness(process, limit, limit, self._resume_failed), failed)
        return StateTask(abandon, lifecycle.ABORT_GRACE, lifecycle.ABORT_GRACE)

    def _run_steps(self, process: ServerProcess, steps: Sequence[str]) -> Deferred[None]:
        limit = self.model.sleep.timeout
        return Deferred.fromCoroutine(process.run_steps(steps, limit, self.launcher, self.ask, self.log))

    def _suspended(self, _: None) -> None:
        (self._machine.suspended_and_wanted if self.waiters.wanted else self._machine.suspended)()

    def _suspend_failed(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._last_error = f"could not be put to sleep: {failure.value}"
            _log.warn("stopping {model}, because it {error}", model=self.model.id, error=self._last_error)
            self._machine.suspend_failed()

    def _resume_failed(self, problem: str) -> None:
        self._last_error = f"did not wake up: {problem}"
        _log.warn("restarting {model}, because it {error}", model=self.model.id, error=self._last_error)
        self._machine.resume_failed()

    # -- the machine's actions: stop and show --------------------------------------------------------------

    def terminate(self) -> TerminationSequence:
        if self._termination is None:
            process = self._running
            model, child = (process.model, process.child) if process is not None else (self.model, None)
            # Without a process the stop command runs only to clean up, not after a start that was not tried.
            runs = process is not None or self.state != lifecycle.STARTING
            words = stop_words(model.cmd_stop, child.pid if child is not None else None) if runs else ()
            self._termination = TerminationSequence(
                self.launcher, model, child, words, self.log, lambda lost: self._terminated(process, lost)
            )
        return self._termination

    def _terminated(self, process: ServerProcess | None, lost: bool) -> None:
        if process is not None:
            process.over = True
            process.port_lost = process.port_lost and self.waiters.wanted  # a later start tries its own port again
        if lost and process is not None:
            self._last_error = f"pid {process.child.pid} lives on after {signal.SIGKILL.name} and was given up as lost"
        self._termination = None
        (self._machine.drained_and_wanted if self.waiters.wanted else self._machine.drained)()

    def show(self, state: str) -> None:
        """Report a change, not a repetition. A suspended server is shown as stopped, a closed one as shut down."""
        shown = lifecycle.STOPPED if state == lifecycle.SUSPENDED else state
        old, self.state = self.state, lifecycle.SHUTDOWN if self.waiters.closed else shown
        if self._running is not None:
            self._note_time(self._running, state)
        if old != self.state:
            self.listener.state_changed(self.model.id, old, self.state)

    def _note_time(self, process: ServerProcess, state: str) -> None:
        """A load ends with readiness, and so does a resume. The times of an adopted process are known already."""
        now = self.launcher.clock.seconds()
        if state != lifecycle.SUSPENDED:
            process.suspended_at = None
        elif process.suspended_at is None:
            process.suspended_at, process.ready_at = now, None
        if state == lifecycle.READY and process.ready_at is None:
            process.ready_at = now
            if process.resumed_at is not None:
                self._resumes = (*self._resumes, now - process.resumed_at)[-TIMES_KEPT:]
                process.resumed_at = None
            else:
                self._loads = (*self._loads, now - process.started_at)[-TIMES_KEPT:]
            self._last_error = ""

    # -- the events of the process -------------------------------------------------------------------------

    def _received(self, process: ServerProcess, data: bytes) -> None:
        process.received(data)
        if self._readiness is not None:
            self._readiness.hint(data)
        self.log(data)

    def _exited(self, process: ServerProcess, status: int) -> None:
        if process is not self._running:
            return
        expected = self._termination is not None
        starting = not expected and self.state == lifecycle.STARTING and process.resumed_at is None
        if not expected:
            how = "prematurely" if starting else "unexpectedly"
            self._last_error = f"upstream command exited {how} ({say_status(status)})"
        if starting and status != 0 and process.lost_port(self.launcher, self.launcher.clock.seconds()):
            process.port_lost = True
            self._machine.port_lost(lambda: self._exit_error(process, status))
        else:
            self._machine.exited(lambda: self._exit_error(process, status))
        self.listener.exited(self.model.id, status, expected)

    def _exit_error(self, process: ServerProcess, status: int) -> StartFailed:
        error = process.exit_error(status)
        self._last_error = error.cause
        return error

    def _output_ended(self, process: ServerProcess) -> None:
        if process is self._running and self._termination is not None:
            self._termination.proceed()


class _NullListener:
    """The listener of a server that is only stopped."""

    def state_changed(self, model: str, old: str, new: str) -> None: ...

    def exited(self, model: str, exit_status: int | None, expected: bool) -> None: ...


def end_unwanted(
    served: ServerSnapshot, launcher: Launcher, ask: ServerRequest, log: Callable[[bytes], None]
) -> Deferred[None]:
    """Stop a server of the previous program that the configuration no longer has. Fires when it has ended."""
    supervisor = Supervisor(Model(served.model), launcher=launcher, ask=ask, log=log, listener=_NullListener())
    try:
        supervisor.adopt(served)
    except OSError:
        return succeed(None)
    return supervisor.stop(UNWANTED_GRACE)
