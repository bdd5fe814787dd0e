"""`lease -- COMMAND`: runs a program while llamaswap keeps memory free for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from threading import Event, Thread
from types import FrameType
from urllib.parse import urlsplit

import click
from attrs import define, field

from llamaswap.cli.client import WORK_TIMEOUT, ApiClient, ClientError, JsonObject
from llamaswap.cli.context import CliContext, remote
from llamaswap.config import durations, sizes

PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT)  # a terminal sends them to COMMAND as well
RENEWALS = 3  # in a term
RESPONSE_MARGIN = 30.0  # seconds for the response after the longest wait: evicted models have to stop
REASON_INTERVAL = 2.0  # seconds between two looks at what a lease waits for
KILL_DELAY = 10.0  # seconds from SIGTERM to SIGKILL at the end of --timeout
NOT_EXECUTABLE, NOT_FOUND, TIMED_OUT = 126, 127, 124  # exit statuses, as those of shells and of timeout(1)


def size(text: str | None) -> int:
    """MiB of an option. Raises click.BadParameter."""
    mib = sizes.parse(text.strip()) if text else 0
    if mib is None or mib < 0:
        raise click.BadParameter(f"{text!r}: expected a size such as 12GiB")
    return mib


def duration(text: str | None) -> float | None:
    """Seconds of an option; a plain number is in seconds. Raises click.BadParameter."""
    if text is None:
        return None
    seconds = durations.parse(text if not text.replace(".", "", 1).isdigit() else f"{text}s")
    if seconds is None or seconds < 0:
        raise click.BadParameter(f"{text!r}: expected a duration such as 10m")
    return seconds


def is_local(url: str) -> bool:
    """Whether the server is on this machine, where it can measure COMMAND."""
    if url.startswith(("unix:", ":")):
        return True
    host = urlsplit(url if "://" in url else f"http://{url}").hostname or ""
    return host == "localhost" or host == "::1" or host.startswith("127.")


def environment(gpus: Sequence[int], environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for a program on these GPUs; unchanged if there are none."""
    if not gpus:
        return dict(environ)
    numbers = ",".join(map(str, gpus))
    visible = {"CUDA_VISIBLE_DEVICES": numbers, "ROCR_VISIBLE_DEVICES": numbers}
    return {**environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID", **visible}


@define(eq=False)
class LeasedCommand:
    """Runs COMMAND, and passes signals on to it."""

    words: Sequence[str]
    environ: Mapping[str, str]
    _child: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _early: list[int] = field(factory=list, init=False)

    def run(self, timeout: float | None) -> int:
        """The exit status; 128 and the signal's number if one has ended it, 124 if it was ended after `timeout`."""
        before = {number: signal.signal(number, self._received) for number in PASSED_ON}
        try:
            self._child = child = subprocess.Popen(self.words, env=self.environ)
            for number in self._early:
                child.send_signal(number)
            try:
                status = child.wait(timeout)
            except subprocess.TimeoutExpired:
                return self._end(child)
        except OSError as error:
            click.echo(f"{self.words[0]}: {error.strerror}", err=True)
            return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return status if status >= 0 else 128 - status

    def _end(self, child: subprocess.Popen[bytes]) -> int:
        child.terminate()
        try:
            child.wait(KILL_DELAY)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        return TIMED_OUT

    def _received(self, number: int, frame: FrameType | None) -> None:
        if number in FROM_TERMINAL and in_foreground():
            return
        if self._child is None:
            self._early.append(number)
        else:
            self._child.send_signal(number)


def in_foreground() -> bool:
    """Whether this process is in the group to which the terminal sends signals."""
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False


@contextmanager
def renewed(context: CliContext, lease: JsonObject, term: float) -> Iterator[None]:
    """Renews the lease meanwhile, and gives it back at the end."""
    path, ended = f"/api/leases/{lease['id']}", Event()

    def renew() -> None:
        while not ended.wait(term / RENEWALS):
            try:
                context.client.json(path, {"seconds": term}, method="PATCH", timeout=term / RENEWALS)
            except ClientError as error:
                if error.status == 404:
                    context.note("the lease has ended; the command runs on without it", "yellow")
                    return

    renewals = Thread(target=renew, daemon=True)
    renewals.start()
    try:
        yield
    finally:
        ended.set()
        with suppress(ClientError):  # it has ended already, or ends when it is not renewed
            context.client.text(path, method="DELETE")


@contextmanager
def reasons(context: CliContext, client: ApiClient) -> Iterator[None]:
    """Says what the lease of this process waits for meanwhile."""
    done = Event()

    def watch() -> None:
        said = None
        while not done.wait(REASON_INTERVAL):
            with suppress(ClientError, KeyError, TypeError):
                for one in client.json("/api/leases")["leases"]:
                    reason = one.get("reason")
                    if one.get("pid") == os.getpid() and reason and reason != said and not done.is_set():
                        context.note(f"the lease is not granted yet: {reason}")
                        said = reason

    Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--vram", metavar="SIZE", help="GPU memory in all, such as 12G.")
@click.option("--gpus", type=click.IntRange(1, 64), default=1, show_default=True, help="GPUs that it is spread over.")
@click.option("--ram", metavar="SIZE", help="RAM, such as 4G.")
@click.option("--name", help="A name for messages. Default: that of COMMAND.")
@click.option("--wait", metavar="DURATION", help="How long to wait for room; 0: fail at once.")
@click.option("--timeout", metavar="DURATION", help="End COMMAND after this time, with status 124.")
@click.option("--term", metavar="DURATION", default="60s", show_default=True, help="How long a dead client holds it.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@remote
def lease(
    context: CliContext,
    command: Sequence[str],
    vram: str | None,
    gpus: int,
    ram: str | None,
    name: str | None,
    wait: str | None,
    timeout: str | None,
    term: str,
) -> None:
    """Run COMMAND while memory is kept free for it.

    Models that no request uses are unloaded for it; if that is not enough, it waits in the queue. COMMAND sees the GPUs
    that it was given in CUDA_VISIBLE_DEVICES and ROCR_VISIBLE_DEVICES. Its exit status is that of this command, signals
    are passed on to it, and the memory is given back when it ends. --json writes the lease to standard error, because
    standard output is COMMAND's. It takes `routing.memory: on`.
    """
    seconds, limit, longest = duration(term) or 0.0, duration(timeout), duration(wait)
    body: JsonObject = {
        "vram_mib": size(vram),
        "ram_mib": size(ram),
        "gpus": gpus,
        "name": name or os.path.basename(command[0]),
        "seconds": seconds,
        "wait": longest,
        "pid": os.getpid() if is_local(context.url) else 0,
    }
    if not body["vram_mib"] and not body["ram_mib"]:
        raise click.UsageError("say how much memory COMMAND needs, with --vram or --ram")
    patience = WORK_TIMEOUT if longest is None else longest + RESPONSE_MARGIN
    with reasons(context, context.client):
        held = context.client.json("/api/leases", body, timeout=patience)
    if context.as_json:
        click.echo(json.dumps(held), err=True)
    with renewed(context, held, seconds):
        status = LeasedCommand(command, environment(held.get("gpus") or (), os.environ)).run(limit)
    raise SystemExit(status)
