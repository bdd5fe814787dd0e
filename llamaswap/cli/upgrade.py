"""`upgrade` and `reload`: have the running server switch to the installed code, or read its configuration again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import cast

import click
import psutil

from llamaswap.cli.client import ApiClient, ClientError
from llamaswap.cli.context import CliContext, remote

POLL_INTERVAL = 0.2  # seconds between two requests for the state
RESPONSE_TIMEOUT = 60.0  # seconds; the server answers no request while it replaces its program
WAIT_TIMEOUT = 300.0  # seconds for the whole upgrade; the server waits for requests for half of that at most

UpgradeStatus = dict[str, object]


RELOAD_TIMEOUT = 30.0  # seconds for the end of a reload, which only reads files


def send_signal(pid: int, number: int = signal.SIGUSR2) -> None:
    """Ask a process to upgrade, or with SIGHUP to reload. Raises ClientError if it is not llamaswap: the signal would
    end another program."""
    try:
        words = psutil.Process(pid).cmdline()
    except psutil.Error:
        words = []
    if not any("llamaswap" in word for word in words):
        raise ClientError(f"process {pid} is not a llamaswap process; choose one with --pid")
    try:
        os.kill(pid, number)
    except OSError as error:
        raise ClientError(f"process {pid}: {error.strerror}") from None


def follow(
    client: ApiClient,
    before: UpgradeStatus,
    *,
    insist: Callable[[], None] | None = None,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> UpgradeStatus:
    """Wait for the end of the upgrade that was requested after the state `before`, and return the state then.

    `insist` is called once, when the server waits for requests. Raises ClientError if the upgrade fails.
    """
    deadline = now() + WAIT_TIMEOUT
    while now() < deadline:
        state = cast(UpgradeStatus, client.json("/api/upgrade", timeout=RESPONSE_TIMEOUT))
        if state["count"] != before["count"]:
            return state
        if state["attempts"] != before["attempts"] and state["phase"] == "idle":
            raise ClientError(f"not upgraded, the server runs on unchanged: {state['error'] or 'it was cancelled'}")
        if insist is not None and state["phase"] in ("waiting", "draining"):
            insist()
            insist = None
        sleep(POLL_INTERVAL)
    raise ClientError(f"upgrade not finished after {WAIT_TIMEOUT:.0f} s; see the server log")


@click.command()
@click.option("--pid", type=int, help="The server's process; by default the server at --url reports its own.")
@click.option("--wait/--no-wait", default=True, help="Return when the upgrade is done (default), or at once.")
@click.option("--force", is_flag=True, help="Close requests that run longer than drainTimeout once the server waits.")
@remote
def upgrade(context: CliContext, pid: int | None, wait: bool, force: bool) -> None:
    """Have the running server switch to the installed code.

    Its process, its socket and the loaded models stay. New requests wait for a moment, and no request is closed unless
    --force is given.
    """
    if force and not wait:
        raise click.UsageError("--force needs --wait")
    if pid is not None and not wait:
        send_signal(pid)
        context.say(f"process {pid} was asked to upgrade")
        return
    before = cast(UpgradeStatus, context.client.json("/api/upgrade"))
    server = cast(int, before["pid"])
    if pid is not None and pid != server:
        raise ClientError(f"the server at {context.url} is process {server}, not {pid}; choose one with --url")
    began = time.monotonic()
    send_signal(server)
    state = before
    if wait:
        with context.err.status("upgrading"):
            state = follow(context.client, before, insist=(lambda: send_signal(server)) if force else None)
    if context.as_json:
        context.document({**state, "seconds": round(time.monotonic() - began, 3)})
    elif not wait:
        context.say(f"process {server} was asked to upgrade")
    else:
        version = context.client.json("/api/version")["version"]
        context.say(f"process {server} runs version {version} after {time.monotonic() - began:.1f}s")


@click.command()
@remote
def reload(context: CliContext) -> None:
    """Have the running server read its configuration again.

    Only models whose definition changed are restarted. An invalid configuration changes nothing.
    """
    before = context.client.json("/api/config/status")
    send_signal(context.client.json("/api/upgrade")["pid"], signal.SIGHUP)
    deadline, note = time.monotonic() + RELOAD_TIMEOUT, ""
    try:
        while (after := context.client.json("/api/config/status")) == before and time.monotonic() < deadline:
            time.sleep(POLL_INTERVAL)
    except ClientError as error:
        if error.status not in (401, 403):
            raise
        after, note = {"result": "reloaded", "touched": {}}, "; its keys apply: --key, or LLAMASWAP_API_KEY"
    if after["result"] == "rejected":
        raise ClientError(f"the configuration is rejected, the previous one stays: {after['message']}")
    if after == before:
        raise ClientError(f"the server reports no reload after {RELOAD_TIMEOUT:.0f} s; see its log")
    if context.as_json:
        context.document(after)
        return
    changes = [f"{what}: {', '.join(names)}" for what, names in after["touched"].items() if names]
    context.say("\n".join([f"the configuration is reloaded{note}", *changes]))
