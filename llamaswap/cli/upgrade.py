"""`upgrade`: have the running server become the code that is installed now."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import click
import psutil

from llamaswap.cli.client import ApiClient, ClientError
from llamaswap.cli.context import CliContext, remote

LOOK = 0.2  # seconds between two looks at how it goes
ANSWER = 60.0  # seconds one look may take: while the program is replaced nobody is answered
PATIENT = 300.0  # seconds for all of it; a server waits for open requests for half of that at most


def told(pid: int) -> None:
    """Ask a process to upgrade. Raises Trouble where it is none of ours: the signal would end a stranger."""
    try:
        words = psutil.Process(pid).cmdline()
    except psutil.Error:
        words = []
    if not any("llamaswap" in word for word in words):
        raise ClientError(f"process {pid} is not a llamaswap process; choose one with --pid")
    try:
        os.kill(pid, signal.SIGUSR2)
    except OSError as error:
        raise ClientError(f"process {pid}: {error.strerror}") from None


def follow(
    client: ApiClient,
    before: dict[str, Any],
    *,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Until the upgrade that was asked for is over. `before` is how things were. Raises Trouble where it failed."""
    deadline = now() + PATIENT
    while now() < deadline:
        state: dict[str, Any] = client.json("/api/upgrade", timeout=ANSWER)
        if state["count"] > before["count"]:
            return state
        if state["attempts"] > before["attempts"] and state["phase"] == "idle":
            raise ClientError(f"not upgraded, the server runs on unchanged: {state['error'] or 'it was called off'}")
        sleep(LOOK)
    raise ClientError(f"upgrade not finished after {PATIENT:.0f} s; see the server log")


@click.command()
@click.option("--pid", type=int, help="The server's process; by default the server at --url says which it is.")
@click.option("--wait/--no-wait", default=True, help="Return when it is done (default), or when it was asked for.")
@remote
def upgrade(context: CliContext, pid: int | None, wait: bool) -> None:
    """Have the running server become the installed code.

    Its process, its socket and the loaded models stay; requests wait for a moment and none fails.
    """
    if pid is not None and not wait:
        told(pid)
        context.say(f"process {pid} was asked to upgrade")
        return
    before = context.client.json("/api/upgrade")
    if pid is not None and pid != before["pid"]:
        raise ClientError(f"the server at {context.url} is process {before['pid']}, not {pid}; choose one with --url")
    began = time.monotonic()
    told(before["pid"])
    state = before
    if wait:
        with context.err.status("upgrading"):
            state = follow(context.client, before)
    if context.as_json:
        context.document({**state, "seconds": round(time.monotonic() - began, 3)})
    elif not wait:
        context.say(f"process {before['pid']} was asked to upgrade")
    else:
        version = context.client.json("/api/version")["version"]
        context.say(f"process {state['pid']} runs version {version} after {time.monotonic() - began:.1f}s")
