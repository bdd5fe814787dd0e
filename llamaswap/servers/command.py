"""Commands that run beside a server: stop commands, suspend steps, hooks."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Sequence

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from llamaswap.config.command_line import render_stop
from llamaswap.servers.launcher import Launcher
from llamaswap.servers.spawn import Child

_log = Logger()


class CommandFailed(Exception):
    """A command could not be started, or did not succeed; `str()` says why."""


def stop_words(command: str, pid: int | None) -> tuple[str, ...]:
    """A stop command as words. Empty without one, or if it needs the process (${PID}) and `pid` is None."""
    if not command.strip() or (pid is None and "${PID}" in command):
        return ()
    try:
        return tuple(render_stop(command, pid or 0))
    except ValueError as error:
        _log.warn("the stop command {command} cannot be split: {error}; SIGTERM instead", command=command, error=error)
        return ()


def start_command(
    launcher: Launcher, words: Sequence[str], env: Iterable[str], output: Callable[[bytes], None]
) -> tuple[Child, Deferred[int]]:
    """Run a command with `env` over the proxy's environment; `output` gets what it prints.

    The Deferred fires with the exit status when the output is complete. A process that the command left behind may keep
    the pipe open; it delays this by a moment only. Cancelling kills the command and all it has started. Raises
    CommandFailed.
    """
    executable = launcher.find(words[0])
    if executable is None:
        raise CommandFailed(f"{words[0]} is not found")
    try:
        child = launcher.launch(executable, words, env)
    except OSError as error:
        raise CommandFailed(f"cannot start: {error.strerror or error}")

    def kill(_: object) -> None:
        for pid in tuple(child.family()):
            launcher.kernel.signal_one(pid, signal.SIGKILL)

    ended: Deferred[int] = Deferred(kill)

    def complete() -> None:
        if not ended.called:
            ended.callback(child.status or 0)

    child.attend(output, lambda status: child.release_pipes(), complete)
    return child, ended
