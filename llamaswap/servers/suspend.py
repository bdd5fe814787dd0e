"""The steps that suspend or resume a server: requests to it and commands, one by one, within one time limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import TimeoutError as StepTimeout
from twisted.internet.error import TimeoutError
from twisted.internet.task import deferLater

from llamaswap.config import durations
from llamaswap.config.command_line import render_stop
from llamaswap.config.steps import request_of
from llamaswap.servers.command import start_command
from llamaswap.servers.launcher import Launcher
from llamaswap.servers.server_process import ServerProcess
from llamaswap.servers.server_request import ServerRequest
from llamaswap.servers.spawn import say_status


class StepFailed(Exception):
    """`str()` says which step failed and why."""


async def run_steps(
    process: ServerProcess,
    steps: Sequence[str],
    limit: float,
    launcher: Launcher,
    send: ServerRequest,
    log: Callable[[bytes], None],
) -> None:
    """Run the steps of a server within `limit` seconds; `log` gets the output of commands. Raises StepFailed.

    It returns or raises on a later turn of the reactor. Cancelling ends the request or the command.
    """
    clock = launcher.clock
    until = clock.seconds() + limit
    for step in steps:
        await deferLater(clock, 0)
        request, left = request_of(step), max(0.0, until - clock.seconds())
        try:
            if request is not None:
                status = await send(process.endpoint, request.path, left, request).addTimeout(left, clock)
                problem = "" if 200 <= status < 300 else f"was answered {status}"
            else:
                words = render_stop(step, process.child.pid)
                status = await start_command(launcher, words, process.model.env, log)[1].addTimeout(left, clock)
                problem = f"ended with {say_status(status)}" if status else ""
        except (TimeoutError, StepTimeout):
            what = "did not end" if request is None else "got no answer"
            problem = f"{what} within {durations.render(limit)}"
        except ValueError as error:
            problem = f"cannot be split: {error}"
        except Exception as error:  # whatever the network does: the server is stopped or restarted
            problem = str(error)
        if problem:
            raise StepFailed(f"{step!r} {problem}")
    await deferLater(clock, 0)
