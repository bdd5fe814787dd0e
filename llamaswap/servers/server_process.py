"""One process of a model's server, with what it was started by, its last output and its times."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import define, evolve
from twisted.internet.defer import CancelledError
from twisted.internet.defer import TimeoutError as StepTimeout
from twisted.internet.error import TimeoutError
from twisted.internet.task import deferLater

from llamaswap.config import durations
from llamaswap.config.command_line import render_stop
from llamaswap.config.endpoints import Endpoint
from llamaswap.config.schema.model import Model
from llamaswap.config.steps import request_of
from llamaswap.errors import ConfigError, StartFailed
from llamaswap.servers.command import start_command, stop_words
from llamaswap.servers.launch_plan import CannotStart, LaunchPlan, make_plan
from llamaswap.servers.launcher import Launcher
from llamaswap.servers.port_ownership import bind_address, is_local
from llamaswap.servers.server_request import ServerRequest
from llamaswap.servers.server_snapshot import ServerSnapshot
from llamaswap.servers.sessionleader import CANNOT_RUN
from llamaswap.servers.spawn import Child, ChildRecord, say_status

TAIL_LINES = 20  # of output that accompany an error: the end of a traceback and what led to it
TAIL_BYTES = 8192
PORT_LOSS_PERIOD = 10.0  # seconds after a start in which an exit may be due to a port that another process took


class StepFailed(Exception):
    """`str()` says which step failed and why."""


@define(eq=False)
class ServerProcess:
    """A process that was started by the definition `model`.

    Times are on the clock's scale, None for what has not happened. `resume_steps` are those that were configured when
    it was suspended. `over` is set when no process is left, or those left were given up; `port_lost` if another process
    took its port, and `relocated` if it was started because of that: it is not started on a third port.
    """

    model: Model
    endpoint: Endpoint
    argv: tuple[str, ...]
    child: Child
    started_at: float
    ready_at: float | None = None
    suspended_at: float | None = None
    resumed_at: float | None = None
    resume_steps: tuple[str, ...] = ()
    tail: bytes = b""
    over: bool = False
    port_lost: bool = False
    relocated: bool = False

    @classmethod
    def launch(cls, plan: LaunchPlan, launcher: Launcher, now: float) -> ServerProcess:
        """Start a process. Raises CannotStart."""
        model = plan.model
        try:
            child = launcher.launch(
                plan.executable,
                plan.argv,
                model.env,
                model=model.id,
                port=plan.endpoint.port,
                policy=model.env_policy,
                stop_words=stop_words(model.cmd_stop, None),
            )
        except OSError as error:
            raise CannotStart(f"failed to start command '{' '.join(plan.argv)}': {error.strerror or error}")
        return cls(model, plan.endpoint, plan.argv, child, now)

    @classmethod
    def adopt(cls, served: ServerSnapshot, model: Model, launcher: Launcher) -> tuple[ServerProcess, bool]:
        """Take over a process of the previous program, and say whether the definition `model` would start the same.

        Raises OSError if it is not a child of this process.
        """
        try:
            if served.port is not None and model.port is not None and served.port != model.port:
                model = model.with_port(served.port)
            current = make_plan(model, launcher.find).argv == served.argv
        except (CannotStart, ConfigError):  # the port's place in the definition may have changed
            current = False
        current = current and (model.env, model.proxy) == (served.env, served.proxy)
        running = evolve(model, env=served.env, cmd_stop=model.cmd_stop if current else served.cmd_stop)
        words = stop_words(running.cmd_stop, None)
        record = ChildRecord(served.pid, served.start, served.mark, model.id, served.endpoint.port, words, served.env)
        child = launcher.adopt(record, served.output)
        process = cls(running, served.endpoint, served.argv, child, served.started_at, tail=served.tail)
        if served.asleep:
            process.suspended_at, process.resume_steps = served.idle_since, model.sleep.wake
            return process, current and bool(model.sleep.wake)
        process.ready_at = served.ready_at
        return process, current

    def snapshot(self, load_seconds: tuple[float, ...], wake_seconds: tuple[float, ...]) -> ServerSnapshot:
        """What a new program in this process needs to adopt it."""
        model, child = self.model, self.child
        return ServerSnapshot(
            model=model.id,
            pid=child.pid,
            start=child.start,
            mark=child.mark,
            port=self.endpoint.port if model.port is not None else None,
            proxy=model.proxy,
            endpoint=self.endpoint,
            argv=self.argv,
            env=model.env,
            cmd_stop=model.cmd_stop,
            started_at=self.started_at,
            ready_at=self.ready_at or 0.0,
            load_seconds=load_seconds,
            output=child.output,
            tail=self.tail,
            asleep=self.suspended_at is not None,
            wake_seconds=wake_seconds,
        )

    def received(self, data: bytes) -> None:
        """Keep the end of the output."""
        self.tail = (self.tail + data)[-TAIL_BYTES:]

    def log_tail(self) -> str:
        """The last lines of output."""
        lines = self.tail.decode("utf-8", "replace").rstrip().splitlines()
        return "\n".join(lines[-TAIL_LINES:])

    def exit_error(self, status: int) -> StartFailed:
        """The error for an exit before readiness; all of its output must have been read."""
        tail = self.log_tail()
        last = tail.rpartition("\n")[2]
        if status == 127 and last.startswith(CANNOT_RUN):
            cause = f"failed to start command '{' '.join(self.argv)}': {last.removeprefix(CANNOT_RUN)}"
        else:
            cause = f"upstream command exited prematurely ({say_status(status)})"
        return StartFailed(self.model.id, cause, status, tail)

    def lost_port(self, launcher: Launcher, now: float) -> bool:
        """Whether it exited because another process took its port between the check and its bind."""
        endpoint = self.endpoint
        if self.relocated or now - self.started_at > PORT_LOSS_PERIOD:
            return False
        if self.model.port != endpoint.port or not is_local(endpoint.host):
            return False
        return launcher.kernel.taken(bind_address(endpoint.host), endpoint.port)

    async def run_steps(
        self,
        steps: Sequence[str],
        limit: float,
        launcher: Launcher,
        send: ServerRequest,
        log: Callable[[bytes], None],
    ) -> None:
        """Run the steps that suspend or resume it, within `limit` seconds. Raises StepFailed.

        `log` gets the output of commands. It returns or raises on a later turn of the reactor. Cancelling ends the
        request or the command.
        """
        clock = launcher.clock
        until = clock.seconds() + limit
        for step in steps:
            await deferLater(clock, 0)
            request, left = request_of(step), max(0.0, until - clock.seconds())
            try:
                words = () if request is not None else render_stop(step, self.child.pid)
            except ValueError as error:
                raise StepFailed(f"{step!r} cannot be split: {error}")
            try:
                if request is not None:
                    status = await send(self.endpoint, request.path, left, request).addTimeout(left, clock)
                    problem = "" if 200 <= status < 300 else f"was answered {status}"
                else:
                    status = await start_command(launcher, words, self.model.env, log)[1].addTimeout(left, clock)
                    problem = f"ended with {say_status(status)}" if status else ""
            except (TimeoutError, StepTimeout):
                what = "did not end" if request is None else "got no answer"
                problem = f"{what} within {durations.render(limit)}"
            except CancelledError:  # the state was left: no further step
                raise
            except Exception as error:  # whatever the network does: the server is stopped or restarted
                problem = str(error)
            if problem:
                raise StepFailed(f"{step!r} {problem}")
        await deferLater(clock, 0)
