"""`hosts`: several machines for one llamaswap: make the token, join, list, drain and leave."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO, cast

import click
from rich.markup import escape

from llamaswap.cli.client import JsonObject, quoted
from llamaswap.cli.context import CliContext, local, remote, seconds, table
from llamaswap.cli.joined import Leaving, run_node
from llamaswap.cluster.ray_node import (
    AGENT_PORT,
    DEFAULT_PORT,
    JOIN_TOKEN,
    LABEL,
    TOKEN,
    TOKEN_VARIABLES,
    ClusterFolder,
    NotInitialized,
    environment,
    is_public,
    node_words,
)
from llamaswap.config.schema.hosts import HERE, HOST_NAME
from llamaswap.state_folder import state_folder

CHECK_LIMIT = 15.0  # seconds for the check of the token; a wrong one is known after two
WORKER_PORTS = range(10_002, 20_000)
END_LIMIT = 20.0  # seconds in which a node ends
DRAIN_LIMIT = 30.0  # seconds that requests get when the host leaves
PORT_LIMIT = 5.0  # seconds that the port of the agent may still be in use
MAX_TOKEN = 1024  # characters of a file that are read
RESERVED_MIB = 1024  # of RAM, for the system

PORT = click.IntRange(1, 65535)
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


def refuse_ipv6(address: str) -> None:
    """Raise a usage error for an IPv6 address."""
    if address.count(":") > 1:
        raise click.ClickException(
            f"{address}: hosts cannot be reached by IPv6 addresses; use an IPv4 address or a host name"
        )


def require_ray() -> None:
    """Raise an error if Ray is not installed."""
    from importlib.util import find_spec

    if find_spec("ray") is None:
        raise click.ClickException("Ray is not installed; pip install 'llamaswap[hosts]' adds it")


@hosts.command()
@click.option("--address", default=own_address, show_default="this machine's", help="Where the other hosts reach it.")
@click.option("--port", type=PORT, default=DEFAULT_PORT, show_default=True, help="The port on which they join.")
@STATE
@PUBLIC
@local
def init(context: CliContext, address: str, port: int, state: Path | None, public: bool) -> None:
    """Prepare this machine: make the token and print the line with which other machines join.

    llamaswap itself starts Ray's head here, as soon as its configuration has `hosts: {}`.
    """
    refuse_ipv6(address)
    refuse_public(address, public)
    if port in WORKER_PORTS:
        raise click.ClickException(
            f"--port {port}: the ports {WORKER_PORTS[0]} to {WORKER_PORTS[-1]} are for Ray's workers"
        )
    require_ray()
    folder = _folder(state)
    try:
        token = folder.keep_token()
    except NotInitialized as error:
        raise click.ClickException(str(error)) from None
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
@click.option(
    "--token-file",
    type=click.File(encoding="ascii"),
    help="A file with the token, or - for standard input: all users of a machine can read arguments.",
)
@click.option("--name", default=lambda: socket.gethostname().split(".")[0], show_default="the host name")
@click.option("--address", help="This machine's address, for the other hosts.")
@click.option("--port", type=PORT, default=AGENT_PORT, show_default=True, help="The port of its agent.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label that `place` can ask for.")
@click.option(
    "--drain-timeout",
    type=click.FloatRange(0.0, 86400.0),
    default=DRAIN_LIMIT,
    show_default=True,
    help="Seconds that requests get to end when this command is ended; ended a second time, it waits no longer.",
)
@click.option("--ram", type=int, help="MiB of RAM for models; default: all but 1 GiB.")
@STATE
@PUBLIC
@local
def join(
    context: CliContext,
    head: str,
    token: str | None,
    token_file: TextIO | None,
    name: str,
    address: str | None,
    port: int,
    labels: tuple[str, ...],
    drain_timeout: float,
    ram: int | None,
    state: Path | None,
    public: bool,
) -> None:
    """Offer this machine to the llamaswap at HEAD (ADDRESS:PORT), until this command ends.

    It joins again when the network or the head was away. When it is ended nothing more is loaded here, and the models
    are stopped when their requests have ended.
    """
    for one in (head, address or ""):
        refuse_ipv6(one)
    where, head = _head(head)
    address = address or _address_towards(where)
    for one in (where, address):
        refuse_public(one, public)
    require_ray()
    _require_name(name)
    given = _labels(labels)
    folder = _folder(state)
    environ = environment(os.environ, folder)
    _require_port(address, port)
    token = _token(token, token_file, folder)
    _check(head, environ, token)
    folder.keep_token(token)
    hidden = without_token(sys.orig_argv)
    if hidden != sys.orig_argv:
        # The token is in a file now. All users of this machine can read the arguments of a process.
        os.execve(sys.executable, [sys.executable, *hidden[1:]], environ)
    folder.write("join.pid", f"{os.getpid()} {drain_timeout:.0f}")
    context.note(f"{name} joins {head}; llamaswap hosts leave, or Ctrl-C, ends it")
    words = node_words(head, address, name, port, given, _resources(ram))
    run_node(context, words, environ, head, Leaving(address, port, token, drain_timeout, context))


def _head(given: str) -> tuple[str, str]:
    """The host of HEAD, and HEAD with its port."""
    where, _, number = given.rpartition(":")
    if not where or not number.isdigit():
        return given, f"{given}:{DEFAULT_PORT}"
    if not 0 < int(number) < 65536:
        raise click.ClickException(f"{given}: a port is 1 to 65535; `llamaswap hosts init` prints the whole command")
    return where, given


def _require_name(name: str) -> None:
    """Raise an error if a host cannot have this name."""
    if name == HERE:
        raise click.ClickException(
            f"`{HERE}` is the machine of llamaswap itself; --name NAME gives this one another name"
        )
    if not HOST_NAME.match(name) or not LABEL.match(name):
        raise click.ClickException(
            f"--name {name}: the name of a host has letters, digits, `.`, `_` and `-`, at most 63 of them"
        )


def _require_port(address: str, port: int) -> None:
    """Raise an error if the agent could not listen there. An agent that has just been killed may still do for a bit."""
    until = time.monotonic() + PORT_LIMIT
    while True:
        try:
            with socket.create_server((address, port)):
                return
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() >= until:
                raise click.ClickException(
                    f"the agent cannot listen on {address}:{port}: {error.strerror}; --address and --port choose others"
                ) from None
        time.sleep(0.1)


def _token(given: str | None, file: TextIO | None, folder: ClusterFolder) -> str:
    """The token that was given, or that of an earlier `join`."""
    try:
        token = file.read(MAX_TOKEN).strip() if file is not None else given or folder.token()
    except UnicodeDecodeError:
        token = ""
    except NotInitialized:
        raise click.ClickException(
            f"give the token that `llamaswap hosts init` printed: --token-file FILE, ${JOIN_TOKEN} or --token TOKEN"
        ) from None
    if not TOKEN.match(token):
        raise click.ClickException("this is not a token of `llamaswap hosts init`")
    return token


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


def _check(head: str, environ: Mapping[str, str], token: str) -> None:
    """Raise an error if the head refuses the token. One that does not answer is waited for later."""
    words = [sys.executable, "-m", "llamaswap.cluster.ray_driver", head, "--check"]
    environ = {name: value for name, value in environ.items() if name not in TOKEN_VARIABLES}
    try:
        status = subprocess.run(
            words, env={**environ, TOKEN_VARIABLES[0]: token}, capture_output=True, timeout=CHECK_LIMIT
        ).returncode
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


@hosts.command()
@STATE
@local
def leave(context: CliContext, state: Path | None) -> None:
    """End the `join` that runs on this machine, in order: nothing more is loaded here, and the models are stopped when
    their requests have ended."""
    try:
        pid, limit = map(int, (_folder(state).path / "join.pid").read_text(encoding="ascii").split())
    except (OSError, ValueError):
        pid = limit = 0
    if not _joins(pid):
        raise click.ClickException("no `llamaswap hosts join` runs here")
    os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + limit + END_LIMIT
    while _joins(pid) and time.monotonic() < until:
        time.sleep(0.1)
    context.say(f"process {pid} is still ending" if _joins(pid) else "left")


def _joins(pid: int) -> bool:
    """Whether this process is a `hosts join` that has not ended, nor waits for its parent to notice that."""
    try:
        os.kill(pid, 0)
        known = Path("/proc/self").exists()
        return pid > 0 and (not known or b"hosts\0join" in Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
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
