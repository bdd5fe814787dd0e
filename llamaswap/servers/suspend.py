"""The steps that suspend or resume a server: requests to it and commands, one by one, within one time limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as StepTimeout
from twisted.internet.error import TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from llamaswap.config import durations
from llamaswap.config.command_line import render_stop
from llamaswap.config.endpoints import Endpoint
from llamaswap.config.steps import StepRequest, request_of
from llamaswap.servers.command import CommandFailed, start_command
from llamaswap.servers.launcher import Launcher
from llamaswap.servers.server_request import ServerRequest
from llamaswap.servers.spawn import say_status


class StepFailed(Exception):
    """`str()` says which step failed and why."""


@frozen
class StepRunner:
    """Runs the steps of one server.

    `pid` replaces ${PID} in a command, `env` are its environment entries and `log` gets its output.
    """

    clock: IReactorTime
    launcher: Launcher
    send: ServerRequest
    endpoint: Endpoint
    pid: int
    env: Sequence[str]
    log: Callable[[bytes], None]

    def run(self, steps: Sequence[str], limit: float) -> Deferred[None]:
        """Fires or fails with StepFailed on a later turn of the reactor. Cancelling ends the request or the command."""
        return Deferred.fromCoroutine(self._run(steps, limit))

    async def _run(self, steps: Sequence[str], limit: float) -> None:
        until = self.clock.seconds() + limit
        for step in steps:
            await deferLater(self.clock, 0)
            request, left = request_of(step), max(0.0, until - self.clock.seconds())
            try:
                problem = await (self._request(request, left) if request is not None else self._command(step, left))
            except (TimeoutError, StepTimeout):
                what = "did not end" if request is None else "got no answer"
                problem = f"{what} within {durations.render(limit)}"
            except Exception as error:  # whatever the network does: the server is stopped or restarted
                problem = str(error)
            if problem:
                raise StepFailed(f"{step!r} {problem}")
        await deferLater(self.clock, 0)

    async def _request(self, request: StepRequest, limit: float) -> str:
        status = await self.send(self.endpoint, request.path, limit, request).addTimeout(limit, self.clock)
        return "" if 200 <= status < 300 else f"was answered {status}"

    async def _command(self, step: str, limit: float) -> str:
        try:
            words = render_stop(step, self.pid)
        except ValueError as error:
            return f"cannot be split: {error}"
        try:
            _, ended = start_command(self.launcher, words, self.env, self.log)
        except CommandFailed as error:
            return str(error)
        status = await ended.addTimeout(limit, self.clock)
        return "" if status == 0 else f"ended with {say_status(status)}"
