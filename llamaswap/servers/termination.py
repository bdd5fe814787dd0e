"""The way down: from a polite request to the certainty that nothing of a child is left, each rung with its deadline.

stop command, or TERM to the group -> half the grace: TERM (again) -> the grace: KILL to the group -> the leader
is reaped -> KILL for what it left -> nobody left, or declared lost. A stop command also runs, or is waited for, when
the leader ended by itself or by a kill: the command may stop more than the child, for example a container. Knows one
child; who wants it down and why is its owner's affair.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence

from attrs import define, field
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from llamaswap.config.command_line import render_stop
from llamaswap.servers.command import CommandFailed, start_command
from llamaswap.servers.launcher import Launcher
from llamaswap.servers.server_snapshot import ServerSnapshot
from llamaswap.servers.spawn import Child, ChildRecord, say_status

LEFTOVERS_GRACE = (
    0.25  # seconds for what the leader left to end by the TERM it got too; they are often busy freeing memory
)
LOST_AFTER = 5.0  # seconds after SIGKILL: who lives then is stuck in the kernel, and waiting helps nobody
LAST_WORDS = 0.1  # seconds an exit waits for the rest of the output, where the reason is usually told
UNWANTED_GRACE = 5.0  # seconds for a server nobody can ask for any more
STOP_AGAIN = 5.0  # seconds a stop command has at least when the child is gone: its container may live on
_log = Logger()

PAUSES = (0.002, 0.005, 0.01, 0.02)  # between looks at what is left; the last one is repeated


def end_unwanted(
    served: ServerSnapshot, clock: IReactorTime, launcher: Launcher, log: Callable[[bytes], None]
) -> Deferred[None]:
    """Bring down a server that was handed over to us and has no place any more. Fires when it is gone, or lost."""
    done: Deferred[None] = Deferred()
    try:
        child = launcher.adopt(
            ChildRecord(served.pid, served.start, served.mark, served.model, served.endpoint.port), served.output
        )
    except OSError:
        return succeed(None)
    try:
        words = render_stop(served.cmd_stop, served.pid) if served.cmd_stop.strip() else None
    except ValueError:
        words = None  # TERM has to do
    ladder = TerminationSequence(
        clock, launcher, child, words, served.env, log, lambda lost: done.callback(None), served.model
    )
    child.attend(log, lambda status: ladder.leader_exited(), ladder.output_ended)
    child.watch()
    ladder.begin(UNWANTED_GRACE)
    return done


@define(eq=False)
class TerminationSequence:
    """One child's way down. `stop_words` is the split stop command or None; `done(lost)` is called once, later.

    `child` None: only the stop command has to run. `log` gets its output, `env` are its environment entries, and
    `stop_limit` is how many seconds it may take for a child that ended by itself.
    """

    clock: IReactorTime
    launcher: Launcher
    child: Child | None
    stop_words: Sequence[str] | None
    env: Sequence[str]
    log: Callable[[bytes], None]
    done: Callable[[bool], None]
    name: str = ""
    stop_limit: float = STOP_AGAIN
    _deadline: float = 0.0
    _stop_asked: bool = False
    _timers: dict[str, IDelayedCall] = field(factory=dict)
    _stopper: Child | None = None
    _stop_tried: bool = False
    _stop_worked: bool = False
    _asked: bool = False
    _forced: bool = False
    _looks: int = 0
    _ended: bool = False

    # -- the owner's side --

    def begin(self, grace: float) -> None:
        """Begin. With no child, or one already gone, only the cleaning is left to do."""
        if self.child is None:
            if not (self.stop_words and self._finish_stop_command()):
                self._after("end", 0.0, self._end, False)
        elif self.child.status is not None:
            self._sweep()
        else:
            self._stop_asked = True
            self._deadline = self.clock.seconds() + grace
            self._after("grace", grace, self._force)
            self._after("half", grace / 2, self._ask)
            if not (self.stop_words and self._run_stop_command()):
                self._ask()

    def shorten_grace(self, grace: float) -> None:
        """Somebody who is less patient wants it down too."""
        now = self.clock.seconds()
        if not self._ended and not self._forced and "grace" in self._timers and now + grace < self._deadline:
            self._deadline = now + grace
            self._after("grace", grace, self._force)
            self._after("half", grace / 2, self._ask)

    def leader_exited(self) -> None:
        """The leader was reaped; what it left goes next."""
        for name in ("half", "grace"):
            self._forget(name)
        if not self._ended:
            self._sweep()

    # -- the rungs --

    def _ask(self) -> None:
        """TERM to the group. Asked twice at most: some servers hear only the second (llama.cpp with a request open)."""
        self._asked = True
        assert self.child is not None
        self.child.signal(signal.SIGTERM)

    def _force(self) -> None:
        assert self.child is not None
        _log.warn("{model} did not stop in time; killing it", model=self.name)
        self._forced = True
        self._forget("half")
        self.child.signal(signal.SIGKILL)
        self._after("lost", LOST_AFTER, self._give_up)

    def _sweep(self) -> None:
        """Only what the leader left remains. It got our TERM with the leader and has a moment to heed it."""
        assert self.child is not None
        if self.child.emptied():
            self._cleared()
            return
        if self._asked and not self._forced:
            self._after("courtesy", LEFTOVERS_GRACE, self._kill_rest)
        else:
            self._kill_rest()
        self._look_later()

    def _kill_rest(self) -> None:
        assert self.child is not None
        self._forget("courtesy")
        if "lost" not in self._timers:
            self._after("lost", LOST_AFTER, self._give_up)
        self.child.signal_remaining(signal.SIGKILL)

    def _look(self) -> None:
        """Nobody tells us of the end of processes that are not our children; so look, often at first."""
        assert self.child is not None
        if self.child.emptied():
            self._cleared()
            return
        self._look_later()
        if "courtesy" not in self._timers and self._looks % 5 == 0:
            self.child.signal_remaining(signal.SIGKILL)  # some forked while we were killing

    def _look_later(self) -> None:
        self._after("look", PAUSES[min(self._looks, len(PAUSES) - 1)], self._look)
        self._looks += 1

    def _cleared(self) -> None:
        """Nobody is left."""
        self._forget("courtesy")
        self._forget("lost")
        pending = self._forced or self._stopper is not None or not self._stop_tried
        if self.stop_words and not self._stop_worked and pending and self._finish_stop_command():
            return
        self._hear_last_words()

    def _hear_last_words(self) -> None:
        """The pipe is usually at its end by now, or one turn later."""
        if self.child is None or self.child.closed:
            self._end(False)
        else:
            self._after("words", LAST_WORDS, self._end, False)

    def output_ended(self) -> None:
        """The child's pipes are closed."""
        if "words" in self._timers:
            self._forget("words")
            self._end(False)

    def _give_up(self) -> None:
        assert self.child is not None
        left = [one.pid for one in self.child.remaining()]
        _log.error("{model}: processes {left} survived SIGKILL; giving up on them", model=self.name, left=left)
        self._end(True)

    def _end(self, lost: bool) -> None:
        if self._ended:
            return
        self._ended = True
        for name in tuple(self._timers):
            self._forget(name)
        if self._stopper is not None and self._stopper.status is None:
            self._stopper.signal(signal.SIGKILL)
        if self.child is not None:
            self.child.release_pipes()
            if lost:
                self.child.attend()
            else:
                self.launcher.ended(self.child)
        self.done(lost)

    # -- the stop command --

    def _run_stop_command(self) -> bool:
        """Start it; False if that is impossible."""
        assert self.stop_words
        self._stop_tried = True
        try:
            self._stopper, ended = start_command(self.launcher, self.stop_words, self.env, self.log)
        except CommandFailed as error:
            _log.warn("{model}: stop command: {error}; sending SIGTERM instead", model=self.name, error=error)
            return False
        stopper = self._stopper
        ended.addCallback(lambda status: self._stop_command_ended(stopper, status))
        return True

    def _stop_command_ended(self, stopper: Child, status: int) -> None:
        if self._stopper is not stopper or self._ended:
            return
        self._stopper = None
        self._stop_worked = status == 0
        if status != 0:
            _log.warn("{model}: stop command ended with {how}", model=self.name, how=say_status(status))
            if self.child is not None and self.child.status is None and not self._forced and not self._asked:
                self._ask()
        if "again" in self._timers:
            self._forget("again")
            self._hear_last_words()

    def _finish_stop_command(self) -> bool:
        """Run the stop command to its end after the child's: a client that is gone leaves its container running."""
        if self._stopper is None and not self._run_stop_command():
            return False
        left = self._deadline - self.clock.seconds() if self._stop_asked else self.stop_limit
        self._after("again", max(STOP_AGAIN, left), self._stop_command_overdue)
        return True

    def _stop_command_overdue(self) -> None:
        _log.error(
            "{model}: the stop command did not end in time and is killed; what it was to stop may still use memory",
            model=self.name,
        )
        self._hear_last_words()

    # -- timers by name --

    def _after(self, name: str, delay: float, call: Callable[..., None], *args: object) -> None:
        self._forget(name)

        def fire() -> None:
            self._timers.pop(name, None)
            call(*args)

        self._timers[name] = self.clock.callLater(delay, fire)

    def _forget(self, name: str) -> None:
        call = self._timers.pop(name, None)
        if call is not None and call.active():
            call.cancel()
