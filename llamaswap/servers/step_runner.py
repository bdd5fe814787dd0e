"""Steps done one after the other to a running server, within one time limit: requests to it, or commands.

Reports the outcome once, on a later turn of the reactor. Knows nothing about the steps' purpose.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError, TimeoutError
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from llamaswap.config import durations
from llamaswap.config.command_line import render_stop
from llamaswap.config.endpoints import Endpoint
from llamaswap.config.steps import StepRequest, request_of
from llamaswap.servers.server_request import ServerRequest
from llamaswap.servers.spawn import Child, Launcher, say_status


@define(eq=False)
class StepRunner:
    """See the module. `ended(problem)` is called once, with "" where all succeeded; never after `cancel`.

    `pid` is what ${PID} in a command stands for, `env` its environment entries; `log` gets its output. `limit` is
    in seconds, for all steps together.
    """

    clock: IReactorTime
    launcher: Launcher
    ask: ServerRequest
    endpoint: Endpoint
    pid: int
    steps: Sequence[str]
    env: Sequence[str]
    log: Callable[[bytes], None]
    limit: float
    ended: Callable[[str], None]
    _at: int = 0
    _until: float = 0.0
    _next: IDelayedCall | None = None
    _alarm: IDelayedCall | None = None
    _asking: Deferred[int] | None = None
    _command: Child | None = None
    _over: bool = field(default=False, init=False)

    def start(self) -> None:
        """Begin, on the next turn."""
        self._until = self.clock.seconds() + self.limit
        self._alarm = self.clock.callLater(self.limit, self._too_late)
        self._next = self.clock.callLater(0, self._step)

    def cancel(self) -> None:
        """Leave it: a request is cut, a command killed."""
        self._over = True
        for call in (self._next, self._alarm):
            if call is not None and call.active():
                call.cancel()
        asking, self._asking = self._asking, None
        if asking is not None:
            asking.cancel()
        command, self._command = self._command, None
        if command is not None:
            command.signal(signal.SIGKILL)
            command.release_pipes()

    def _end(self, problem: str) -> None:
        if not self._over:
            self.cancel()
            self.ended(problem)

    def _too_late(self) -> None:
        self._end(f"{self.steps[self._at]!r} did not end within {durations.render(self.limit)}")

    def _step(self) -> None:
        if self._at == len(self.steps):
            self._end("")
            return
        step = self.steps[self._at]
        request = request_of(step)
        if request is not None:
            self._request(request, step)
        else:
            self._run(step)

    def _done(self) -> None:
        self._at += 1
        self._next = self.clock.callLater(0, self._step)

    # -- requests ------------------------------------------------------------------------------------------

    def _request(self, request: StepRequest, step: str) -> None:
        asking = self.ask(self.endpoint, request.path, max(0.0, self._until - self.clock.seconds()), request)
        self._asking = asking

        def answered(status: int) -> None:
            self._asking = None
            if self._over:
                return
            if 200 <= status < 300:
                self._done()
            else:
                self._later(f"{step!r} was answered {status}")

        def unanswered(failure: Failure) -> None:
            self._asking = None
            if self._over and failure.check(CancelledError, ConnectError, TimeoutError):
                return
            if failure.check(TimeoutError):
                self._later(f"{step!r} got no answer within {durations.render(self.limit)}")
            else:
                self._later(f"{step!r}: {failure.getErrorMessage()}")

        asking.addCallbacks(answered, unanswered)

    def _later(self, problem: str) -> None:
        self._next = self.clock.callLater(0, self._end, problem)

    # -- commands ------------------------------------------------------------------------------------------

    def _run(self, step: str) -> None:
        try:
            words = render_stop(step, self.pid)
        except ValueError as error:
            self._end(f"{step!r} cannot be split: {error}")
            return
        executable = self.launcher.find(words[0])
        if executable is None:
            self._end(f"{words[0]} is not found")
            return
        try:
            child = self.launcher.launch(executable, words, self.env)
        except OSError as error:
            self._end(f"{step!r} cannot start: {error.strerror or error}")
            return
        self._command = child
        child.attend(self.log, lambda status: self._exited(child, status, step))

    def _exited(self, child: Child, status: int, step: str) -> None:
        child.release_pipes()
        if self._command is not child:
            return
        self._command = None
        if status == 0:
            self._done()
        else:
            self._later(f"{step!r} ended with {say_status(status)}")
