"""`service install`, `uninstall`, `show`: llamaswap as a service of systemd or launchd."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import click
from attrs import frozen

from llamaswap.cli import service_files
from llamaswap.cli.context import CliContext, local

SYSTEM_UNITS = Path("/etc/systemd/system")


@frozen
class InstallPlan:
    """Files to write, and the commands that make the service manager see and start them (or forget them)."""

    files: Mapping[Path, str]
    start: tuple[tuple[str, ...], ...]
    stop: tuple[tuple[str, ...], ...]


def program() -> str:
    """How this very program is started from anywhere: its own script, else this Python with the module."""
    script = shutil.which(sys.argv[0]) if os.path.basename(sys.argv[0]).startswith("llamaswap") else None
    if script:
        return shlex.quote(os.path.abspath(script))
    return f"{shlex.quote(sys.executable)} -m llamaswap"


def plan(
    platform: str, home: Path, environ: Mapping[str, str], *, user: bool, command: str, config: str, listen: str
) -> InstallPlan:
    """What to do on this platform."""
    if platform == "darwin":
        folder = home / "Library/LaunchAgents" if user else Path("/Library/LaunchDaemons")
        logs = home / "Library/Logs" if user else Path("/Library/Logs")
        file = folder / f"{service_files.LABEL}.plist"
        text = service_files.launchd(command, config, listen, str(logs), environ.get("PATH", os.defpath))
        return InstallPlan(
            {file: text}, (("launchctl", "load", "-w", str(file)),), (("launchctl", "unload", "-w", str(file)),)
        )
    systemctl = ("systemctl", "--user") if user else ("systemctl",)
    base = Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "systemd/user" if user else SYSTEM_UNITS
    names = (f"{service_files.NAME}.socket", f"{service_files.NAME}.service")
    path = environ.get("PATH", "") if user else ""
    files = {
        base / f"{service_files.NAME}.service": service_files.service(command, config, user=user, path=path),
        base / f"{service_files.NAME}.socket": service_files.socket(listen),
    }
    start = [(*systemctl, "daemon-reload"), (*systemctl, "enable", "--now", *names)]
    stop = [(*systemctl, "disable", "--now", *names)]
    if not user:  # a user's manager has no sleep.target
        asleep = f"{service_files.NAME}-before-sleep.service"
        files[base / asleep] = service_files.before_sleep(command, listen)
        start.append((*systemctl, "enable", asleep))
        stop.append((*systemctl, "disable", asleep))
    return InstallPlan(files, tuple(start), tuple(stop))


def chosen(user: bool, config: Path | None) -> Path:
    """The configuration the service reads: the one that is named, or the usual."""
    usual = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "llamaswap/config.yaml"
    return (config or (usual if user else Path(service_files.CONFIG))).absolute()


def here(user: bool, config: Path | None, listen: str) -> InstallPlan:
    """The plan for this machine."""
    return plan(
        sys.platform,
        Path.home(),
        os.environ,
        user=user,
        command=program(),
        config=str(chosen(user, config)),
        listen=listen,
    )


@click.group()
def service() -> None:
    """Run llamaswap as a service: systemd's, or launchd's on macOS."""


USER = click.option("--user/--system", default=os.getuid() != 0, help="For you alone, or for the machine (root).")
CONFIG = click.option("--config", type=click.Path(path_type=Path), help="The configuration file.")
LISTEN = click.option(
    "--listen", default=service_files.LISTEN, show_default=True, help="host:port, :port or a socket's path."
)


@service.command()
@USER
@CONFIG
@LISTEN
@click.option("--now", is_flag=True, help="Start it, and at every boot (or login).")
@click.option("--force", is_flag=True, help="Replace files that are there.")
@local
def install(context: CliContext, user: bool, config: Path | None, listen: str, now: bool, force: bool) -> None:
    """Write the service's files."""
    made = here(user, config, listen)
    present = [path for path, text in made.files.items() if path.exists() and path.read_text() != text]
    if present and not force:
        raise click.ClickException(f"{present[0]} exists and differs; replace it with --force")
    try:
        for path, text in made.files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}; run it as root, or with --user") from None
    read = chosen(user, config)
    if not read.exists():
        context.note(
            f"{read} does not exist yet, and the service needs it (llamaswap init -o FILE writes one)", "yellow"
        )
    if now:
        perform(made.start)
    if context.as_json:
        context.document({"files": [str(path) for path in made.files], "started": now})
        return
    for path in made.files:
        context.say(f"wrote {path}", "green")
    if not now:
        context.say("to start it: " + " && ".join(shlex.join(words) for words in made.start))


@service.command()
@USER
@local
def uninstall(context: CliContext, user: bool) -> None:
    """Stop the service and remove its files."""
    made = here(user, None, service_files.LISTEN)
    present = [path for path in made.files if path.exists()]
    if present:
        perform(made.stop, patient=True)
    for path in present:
        path.unlink()
    if context.as_json:
        context.document({"removed": [str(path) for path in present]})
    else:
        context.say(f"removed {', '.join(map(str, present))}" if present else "nothing was installed")


@service.command()
@USER
@CONFIG
@LISTEN
@local
def show(context: CliContext, user: bool, config: Path | None, listen: str) -> None:
    """Print the service's files instead of writing them."""
    made = here(user, config, listen)
    if context.as_json:
        context.document({str(path): text for path, text in made.files.items()})
        return
    for path, text in made.files.items():
        click.echo(f"# -- {path}\n{text}")


def perform(commands: tuple[tuple[str, ...], ...], patient: bool = False) -> None:
    """Run the manager's commands. `patient`: one that fails is no reason to stop."""
    for words in commands:
        try:
            done = subprocess.run(words, capture_output=True, text=True)
        except FileNotFoundError:
            raise click.ClickException(f"{words[0]} is not installed") from None
        if done.returncode and not patient:
            raise click.ClickException(f"{shlex.join(words)}: {done.stderr.strip() or done.returncode}")
