"""`hosts`: several machines for one llamaswap: make the token, join, list, drain and leave."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import click
from rich.markup import escape

from llamaswap.app.settings import state_folder
from llamaswap.cli.client import JsonObject, quoted
from llamaswap.cli.context import CliContext, local, remote, seconds, table
from llamaswap.cluster.ray_node import (
    AGENT_PORT,
    DEFAULT_PORT,
    JOIN_TOKEN,
    LABEL,
    TOKEN,
    ClusterFolder,
    NotInitialized,
    as_group,
    environment,
    is_public,
    node_words,
)
from llamaswap.config.schema.hosts import HERE, HOST_NAME

CHECK_LIMIT = 15.0  # seconds for the check of the token; a wrong one is known after two
WORKER_PORTS = range(10_002, 20_000)
REJOIN_DELAY = 3.0  # seconds between the end of a node and the next attempt
END_LIMIT = 20.0  # seconds in which a node ends
RESERVED_MIB = 1024  # of RAM, for the system

STATE = click.option(
    "--state", type=click.Path(path_type=Path, file_okay=False), help="Folder of the token; as hosts.state."
)
PUBLIC = click.option(
    "--public", is_flag=True, help="Allow an address that the internet may reach: the token does not encrypt anything."
)


@click.group()
def hosts() -> None:
    """Run models on several machines."""


def _folder(given: Path | None) -> ClusterFolder:
    return ClusterFolder(given or state_folder(os.environ) / "hosts")


def own_address() -> str:
    """The address from which this machine reaches others."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def refuse_public(address: str, allowed: bool) -> None:
    """Raise a usage error for an address that may be reached from the internet."""
    if not allowed and is_public(address):
        raise click.ClickException(
            f"{address} is not a private address: anyone with the token can run programs on all hosts, and the token "
            "does not encrypt what is sent. Use the address of a private network, such as WireGuard's; --public allows "
            "this one"
        )


def require_ray() -> None:
    """Raise an error if Ray is not installed."""
    from importlib.util import find_spec

    if find_spec("ray") is None:
        raise click.ClickException("Ray is not installed; pip install 'llamaswap[hosts]' adds it")


@hosts.command()
@click.option("--address", default=own_address, show_default="this machine's", help="Where the other hosts reach it.")
@click.option("--port", default=DEFAULT_PORT, show_default=True, help="The port on which they join.")
@STATE
@PUBLIC
@local
def init(context: CliContext, address: str, port: int, state: Path | None, public: bool) -> None:
    """Prepare this machine: make the token and print the line with which other machines join.

    llamaswap itself starts Ray's head here, as soon as its configuration has `hosts: {}`.
    """
    refuse_public(address, public)
    if port in WORKER_PORTS:
        raise click.ClickException(
            f"--port {port}: the ports {WORKER_PORTS[0]} to {WORKER_PORTS[-1]} are for Ray's workers"
        )
    require_ray()
    folder = _folder(state)
    token = folder.keep_token()
    folder.write("head.json", f'{{"address": "{address}", "port": {port}}}')
    line = f"llamaswap hosts join {address}:{port} --token {token} --name NAME"
    if context.as_json:
        context.document({"address": f"{address}:{port}", "token_file": str(folder.token_file), "join": line})
        return
    context.say(line)
    context.note("run this on each other machine; add `hosts: {}` to the configuration here and start llamaswap")


@hosts.command()
@click.argument("head")
@click.option("--token", envvar=JOIN_TOKEN, help=f"The token of `init` (${JOIN_TOKEN}).")
@click.option("--name", default=lambda: socket.gethostname().split(".")[0], show_default="the host name")
@click.option("--address", help="This machine's address, for the other hosts.")
@click.option("--port", default=AGENT_PORT, show_default=True, help="The port of its agent.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label that `place` can ask for.")
@click.option("--ram", type=int, help="MiB of RAM for models; default: all but 1 GiB.")
@STATE
@PUBLIC
@local
def join(
    context: CliContext,
    head: str,
    token: str | None,
    name: str,
    address: str | None,
    port: int,
    labels: tuple[str, ...],
    ram: int | None,
    state: Path | None,
    public: bool,
) -> None:
    """Offer this machine to the llamaswap at HEAD (ADDRESS:PORT), until this command ends.

    It joins again when the network or the head was away. What runs here ends with it.
    """
    where, _, number = head.rpartition(":")
    if not where or not number.isdigit():
        where, head = head, f"{head}:{DEFAULT_PORT}"
    address = address or _address_towards(where)
    for one in (where, address):
        refuse_public(one, public)
    require_ray()
    if not HOST_NAME.match(name) or not LABEL.match(name) or name == HERE:
        raise click.ClickException(f"{name!r} cannot be the name of a host: letters, digits, `.`, `_` and `-` can")
    given = _labels(labels)
    folder = _folder(state)
    if token is not None:
        if not TOKEN.match(token):
            raise click.ClickException("this is not a token of `llamaswap hosts init`")
        folder.keep_token(token)
    try:
        folder.token()
    except NotInitialized:
        raise click.ClickException("give the token that `llamaswap hosts init` printed: --token TOKEN") from None
    environ = environment(os.environ, folder)
    hidden = without_token(sys.orig_argv)
    if hidden != sys.orig_argv:
        # The token is in a file now. All users of this machine can read the arguments of a process.
        os.execve(sys.executable, [sys.executable, *hidden[1:]], environ)
    _check(head, environ)
    folder.write("join.pid", str(os.getpid()))
    context.note(f"{name} joins {head}; llamaswap hosts leave, or Ctrl-C, ends it")
    words = node_words(head, address, name, port, given, _resources(ram))
    _keep_joined(context, words, environ, head)


def without_token(words: Sequence[str]) -> list[str]:
    """The words of a command without `--token` and its value."""
    return [
        word
        for before, word in zip(("", *words), words, strict=False)
        if before != "--token" and word.partition("=")[0] != "--token"
    ]


def _labels(texts: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not LABEL.match(key) or not LABEL.match(value):
            raise click.ClickException(f"--label {text}: KEY=VALUE, of letters, digits, `.`, `_` and `-`")
        found[key] = value
    return found


def _address_towards(head: str) -> str:
    """The address from which this machine reaches the head."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((head, 9))  # sends nothing
        except OSError as error:
            raise click.ClickException(f"{head} cannot be reached: {error.strerror}") from None
        return str(probe.getsockname()[0])


def _check(head: str, environ: Mapping[str, str]) -> None:
    """Raise an error if the head refuses the token. One that does not answer is waited for later."""
    words = [sys.executable, "-m", "llamaswap.cluster.ray_driver", head, "--check"]
    try:
        status = subprocess.run(words, env=environ, capture_output=True, timeout=CHECK_LIMIT).returncode
    except subprocess.TimeoutExpired:
        return
    if status == 3:
        raise click.ClickException(f"{head} refuses the token; `llamaswap hosts init` there prints the right one")


def _resources(ram: int | None) -> dict[str, int]:
    """The memory of this machine as Ray's resources."""
    import psutil

    from llamaswap.observe.gpu_sources import usual
    from llamaswap.observe.gpus import GpuReader

    total = psutil.virtual_memory().total >> 20
    found = {"ram_mib": ram if ram is not None else max(1, total - RESERVED_MIB)}
    reader = GpuReader(usual(sys.platform, os.environ), time.monotonic)
    for reading in reader.read():
        found[f"gpu{reading.id}_mib"] = int(reading.mem_total_mb)
    reader.close()
    return found


def _keep_joined(context: CliContext, words: list[str], environ: Mapping[str, str], head: str) -> None:
    """Run Ray's node, again and again, until this command is to end."""
    ending = False
    node: subprocess.Popen[bytes] | None = None

    def end(*_: object) -> None:
        nonlocal ending
        ending = True
        if node is not None:
            node.terminate()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    while not ending:
        node = subprocess.Popen(as_group(words), env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        node.wait()
        if not ending:
            context.note(f"the node ended; it joins {head} again in {REJOIN_DELAY:.0f} s", "yellow")
            time.sleep(REJOIN_DELAY)


@hosts.command()
@STATE
@local
def leave(context: CliContext, state: Path | None) -> None:
    """End the `join` that runs on this machine, with the models that run here."""
    folder = _folder(state)
    try:
        pid = int((folder.path / "join.pid").read_text(encoding="ascii"))
        command = Path(f"/proc/{pid}/cmdline").read_bytes() if Path("/proc/self").exists() else b"hosts\0join"
    except (OSError, ValueError):
        raise click.ClickException("no `llamaswap hosts join` runs here") from None
    if b"hosts\0join" not in command:
        raise click.ClickException("no `llamaswap hosts join` runs here")
    os.kill(pid, signal.SIGTERM)
    context.say("left" if _gone(pid) else f"process {pid} is still ending")


def _gone(pid: int) -> bool:
    until = time.monotonic() + END_LIMIT
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@hosts.command(name="list")
@remote
def list_(context: CliContext) -> None:
    """List the hosts: their memory, their models, and how long ago each last answered."""
    _print(context, context.client.json("/api/hosts"))


@hosts.command()
@click.argument("host")
@click.option("--undo", is_flag=True, help="Load models there again.")
@remote
def drain(context: CliContext, host: str, undo: bool) -> None:
    """Load nothing more on HOST (`here`: this machine); its models are stopped when their requests have ended."""
    verb = "undrain" if undo else "drain"
    _print(context, context.client.json(f"/api/hosts/{quoted(host)}/{verb}", {}))


def _print(context: CliContext, document: JsonObject) -> None:
    if context.as_json:
        context.document(document)
        return
    rows = [_row(host) for host in document.get("hosts", ())]
    if rows:
        columns = ("HOST", "STATE", "ADDRESS", "ANSWERED", "MEMORY", "MODELS", "LABELS")
        context.show(table(columns, [[escape(cell) for cell in row] for row in rows]))
    else:
        context.say("the configuration has no `hosts`, so there is only this machine")
    for problem in filter(None, (document.get("problem"), _missed(document), *document.get("findings", ()))):
        context.note(problem, "yellow")


def _missed(document: JsonObject) -> str:
    names = ", ".join(document.get("missed", ()))
    return f"{names} vanished at once; what they ran is not loaded elsewhere" if names else ""


def _row(host: JsonObject) -> list[str]:
    state = "online" if host.get("online") else f"offline: {host.get('problem', '')}"
    devices = ", ".join(
        f"{one['device']} {one['total_mib'] / 1024:.1f} GiB" + (f" ({one['name']})" if one["name"] else "")
        for one in host.get("devices", ())
    )
    return [
        host["host"],
        f"{state}, drained" if host.get("drained") else state,
        host.get("address", ""),
        seconds(cast("float | None", host.get("seen_seconds"))),
        devices,
        ", ".join(host.get("models", ())),
        ", ".join(f"{name}={value}" for name, value in host.get("labels", {}).items()),
    ]


@click.command()
@click.option("--name", required=True, help="The name of this host.")
@click.option("--listen", required=True, help="ADDRESS:PORT for the front.")
def agent(name: str, listen: str) -> None:
    """Run the models that another llamaswap wants on this host. `hosts join` starts it."""
    from twisted.application.twist._twist import Twist

    Twist.main(["twist", "llamaswap", "--agent", name, "--listen", listen])
