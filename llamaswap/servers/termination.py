"""The stop of one child, from a polite signal to the certainty that no process of it is left; each step has a limit.

The stop command, or SIGTERM to the group; at half of the grace SIGTERM (again); at the end of the grace SIGKILL to the
group; then SIGKILL to what the child left behind, until nothing is left or it is given up. The stop command also runs,
or is waited for, if the child ended by itself or by SIGKILL: it may stop more than the child, for example a container.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from itertools import count

from attrs import define
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaswap.config.schema.model import Model
from llamaswap.servers.command import CommandFailed, start_command
from llamaswap.servers.launcher import Launcher
from llamaswap.servers.spawn import Child, say_status

LEFTOVERS_GRACE = 0.25  # seconds for other processes of the child that got its SIGTERM: they often free memory
LOST_AFTER = 5.0  # seconds after SIGKILL; a process that lives then is stuck in the kernel
OUTPUT_PERIOD = 0.1  # seconds an exit waits for the rest of the output, which often contains the reason
STOP_AGAIN = 5.0  # seconds a stop command has at least when the child has ended: its container may live on
CHECK_PAUSES = (0.002, 0.005, 0.01, 0.02)  # between checks of what is left; the last one is repeated

_log = Logger()


@define(eq=False)
class TerminationSequence:
    """Stops `child`, a server of `model`, by `stop_words`, the stop command, or by signals; calls `done(lost)` once.

    `child` None: only the stop command has to run. `log` gets its output.
    """

    launcher: Launcher
    model: Model
    child: Child | None
    stop_words: Sequence[str]
    log: Callable[[bytes], None]
    done: Callable[[bool], None]
    _kill_at: float = 0.0
    _repeat_at: float | None = None  # when SIGTERM is sent again
    _command: Child | None = None
    _command_status: int | None = None
    _terminated: bool = False  # SIGTERM was sent
    _killed: bool = False
    _wake: Deferred[None] | None = None

    # -- the owner's calls ---------------------------------------------------------------------------------

    def begin(self, grace: float) -> None:
        """Begin. Without a child, or with one that has exited, only the rest is left to do."""
        self._set_grace(grace)
        Deferred.fromCoroutine(self._run(self.child)).addErrback(self._broke).addCallback(self._end)

    def shorten_grace(self, grace: float) -> None:
        """Another caller wants the child to end within `grace` seconds."""
        running = self.child is not None and self.child.status is None
        if running and not self._killed and self.launcher.clock.seconds() + grace < self._kill_at:
            self._set_grace(grace)
            self.proceed()

    def proceed(self) -> None:
        """Something has changed: the child's own process has exited, or its pipes are closed."""
        wake, self._wake = self._wake, None
        if wake is not None:
            wake.callback(None)

    # -- the sequence --------------------------------------------------------------------------------------

    async def _run(self, child: Child | None) -> bool:
        """Whether processes were given up as lost."""
        asked = child is not None and child.status is None
        lost = child is not None and not (await self._stop_child(child) and await self._clear(child))
        if lost and child is not None:
            left = [one.pid for one in child.remaining()]
            _log.error("{model}: processes {left} survived SIGKILL; giving up on them", model=self.model.id, left=left)
        elif self.stop_words:
            limit = self._kill_at - self.launcher.clock.seconds() if asked else self.model.unload_timeout + STOP_AGAIN
            await self._finish_stop_command(self.stop_words, limit)
        elif child is None:
            await self._pause(0.0)
        if child is not None and not lost:
            until = self.launcher.clock.seconds() + OUTPUT_PERIOD
            while not child.closed and self.launcher.clock.seconds() < until:
                await self._pause(until - self.launcher.clock.seconds())
        return lost

    async def _stop_child(self, child: Child) -> bool:
        """Have the child's own process exit; False if it survives SIGKILL."""
        if child.status is None and not (self.stop_words and self._start_stop_command(self.stop_words)):
            self._terminate(child)
        while child.status is None:
            now = self.launcher.clock.seconds()
            if now >= self._kill_at:
                if self._killed:
                    return False
                _log.warn("{model} did not stop in time; killing it", model=self.model.id)
                self._killed = True
                self._kill_at, self._repeat_at = now + LOST_AFTER, None
                child.signal(signal.SIGKILL)
            elif self._repeat_at is not None and now >= self._repeat_at:
                self._repeat_at = None
                self._terminate(child)  # some servers heed only the second: llama.cpp with a request open
            elif self._command_status and not self._terminated:
                self._terminate(child)
            next_at = self._kill_at if self._repeat_at is None else min(self._kill_at, self._repeat_at)
            await self._pause(next_at - now)
        return True

    async def _clear(self, child: Child) -> bool:
        """Kill what the child's own process left behind; False if something survives.

        Their exits are not reported to this process, so it checks, often at first.
        """
        if child.emptied():
            return True
        now = self.launcher.clock.seconds()
        kill_at, killed = now + LEFTOVERS_GRACE if self._terminated and not self._killed else now, False
        for check in count():
            now = self.launcher.clock.seconds()
            if now >= kill_at + LOST_AFTER:
                return False
            if now >= kill_at and (not killed or check % 5 == 0):  # some may fork meanwhile
                killed = True
                child.signal_remaining(signal.SIGKILL)
            await self._pause(CHECK_PAUSES[min(check, len(CHECK_PAUSES) - 1)])
            if child.emptied():
                break
        return True

    async def _finish_stop_command(self, words: Sequence[str], limit: float) -> None:
        """Run the stop command to its end after the child's: a client that ended leaves its container running."""
        done = self._command_status is not None and not self._killed
        if self._command_status == 0 or done or not (self._command or self._start_stop_command(words)):
            return
        until = self.launcher.clock.seconds() + max(STOP_AGAIN, limit)
        while self._command is not None and self.launcher.clock.seconds() < until:
            await self._pause(until - self.launcher.clock.seconds())
        if self._command is not None:
            _log.error(
                "{model}: the stop command did not end in time and is killed; what it was to stop may use memory still",
                model=self.model.id,
            )

    def _end(self, lost: bool) -> None:
        command, self._command = self._command, None
        if command is not None:
            command.signal(signal.SIGKILL)
        if self.child is not None:
            self.child.release_pipes()
            if lost:
                self.child.attend()
            else:
                self.launcher.ended(self.child)
        self.done(lost)

    def _broke(self, failure: Failure) -> bool:
        """An error of this program must not leave the model stopping without end."""
        _log.failure("the stop of {model} failed", failure, model=self.model.id)
        return True

    # -- its steps -----------------------------------------------------------------------------------------

    def _set_grace(self, grace: float) -> None:
        now = self.launcher.clock.seconds()
        self._kill_at, self._repeat_at = now + grace, now + grace / 2

    def _terminate(self, child: Child) -> None:
        self._terminated = True
        child.signal(signal.SIGTERM)

    def _start_stop_command(self, words: Sequence[str]) -> bool:
        """Start it; False if that is impossible."""
        self._command_status = None
        try:
            self._command, ended = start_command(self.launcher, words, self.model.env, self.log)
        except CommandFailed as error:
            _log.warn("{model}: stop command: {error}; sending SIGTERM instead", model=self.model.id, error=error)
            self._command_status = 1
            return False
        ended.addCallback(self._command_ended)
        return True

    def _command_ended(self, status: int) -> None:
        if self._command is None:
            return  # it was killed at the end
        self._command, self._command_status = None, status
        if status != 0:
            _log.warn("{model}: stop command ended with {how}", model=self.model.id, how=say_status(status))
        self.proceed()

    async def _pause(self, seconds: float) -> None:
        """Wait for the next event, or for `seconds` at most."""
        self._wake = Deferred()
        call = self.launcher.clock.callLater(max(0.0, seconds), self.proceed)
        await self._wake
        if call.active():
            call.cancel()
