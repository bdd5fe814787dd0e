"""`service install`, `uninstall`, `show`: llamaswap as a service of systemd or launchd."""

from __future__ import annotations

import os
import pwd
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
LINGER = Path("/var/lib/systemd/linger")


@frozen
class InstallPlan:
    """Files to write, and the commands with which the service manager starts (or stops and forgets) the service."""

    files: Mapping[Path, str]
    start: tuple[tuple[str, ...], ...]
    stop: tuple[tuple[str, ...], ...]


def program() -> str:
    """The command that starts this program from any folder: its script, else this Python with the module."""
    script = shutil.which(sys.argv[0]) if os.path.basename(sys.argv[0]).startswith("llamaswap") else None
    if script:
        return shlex.quote(os.path.abspath(script))
    return f"{shlex.quote(sys.executable)} -m llamaswap"


def plan(
    platform: str, home: Path, environ: Mapping[str, str], *, user: bool, command: str, config: str, listen: str
) -> InstallPlan:
    """The files and commands for a platform."""
    if platform == "darwin":
        folder = home / "Library/LaunchAgents" if user else Path("/Library/LaunchDaemons")
        logs = home / "Library/Logs" if user else Path("/Library/Logs")
        file = folder / f"{service_files.LABEL}.plist"
        text = service_files.launchd(command, config, listen, str(logs), environ.get("PATH", os.defpath))
        on, off = (("launchctl", verb, "-w", str(file)) for verb in ("load", "unload"))
        return InstallPlan({file: text}, (on,), (off,))
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
    if not user:  # the manager of a user has no sleep.target
        sleep_unit = f"{service_files.NAME}-before-sleep.service"
        files[base / sleep_unit] = service_files.before_sleep(command, listen)
        start.append((*systemctl, "enable", sleep_unit))
        stop.append((*systemctl, "disable", sleep_unit))
    return InstallPlan(files, tuple(start), tuple(stop))


def missing_for_user(environ: Mapping[str, str], linger: Path = LINGER, name: str = "") -> list[str]:
    """What a user's service still needs; the folder `linger` has a file for each user whose services outlive the
    login."""
    name = name or pwd.getpwuid(os.getuid()).pw_name
    found = []
    if not environ.get("XDG_RUNTIME_DIR"):
        found.append(
            "systemctl --user needs a login session, and XDG_RUNTIME_DIR is not set: log in as this user, by "
            f"ssh or with machinectl shell {name}@, instead of su or sudo"
        )
    if not (linger / name).exists():
        found.append(
            "the service ends with your last login and does not start at boot; to change that: "
            f"loginctl enable-linger {shlex.quote(name)}"
        )
    return found


def config_path(user: bool, config: Path | None) -> Path:
    """The configuration file of the service: `config`, or the default path."""
    default = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "llamaswap/config.yaml"
    return (config or (default if user else Path(service_files.CONFIG))).absolute()


def local_plan(user: bool, config: Path | None, listen: str) -> InstallPlan:
    """The plan for this machine."""
    return plan(
        sys.platform,
        Path.home(),
        os.environ,
        user=user,
        command=program(),
        config=str(config_path(user, config)),
        listen=listen,
    )


@click.group()
def service() -> None:
    """Run llamaswap as a service of systemd, or of launchd on macOS."""


USER = click.option("--user/--system", default=os.getuid() != 0, help="For your user, or for the machine (root).")
CONFIG = click.option("--config", type=click.Path(path_type=Path), help="The configuration file.")
LISTEN = click.option(
    "--listen", default=service_files.LISTEN, show_default=True, help="host:port, :port or the path of a unix socket."
)


@service.command()
@USER
@CONFIG
@LISTEN
@click.option("--now", is_flag=True, help="Start it now and at every boot (or login).")
@click.option("--force", is_flag=True, help="Replace existing files.")
@local
def install(context: CliContext, user: bool, config: Path | None, listen: str, now: bool, force: bool) -> None:
    """Write the service files."""
    made = local_plan(user, config, listen)
    present = [path for path, text in made.files.items() if path.exists() and path.read_text() != text]
    if present and not force:
        raise click.ClickException(f"{present[0]} exists and differs; replace it with --force")
    try:
        for path, text in made.files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}; run it as root, or with --user") from None
    file = config_path(user, config)
    if not file.exists():
        context.note(f"{file} does not exist yet; the service needs it (llamaswap init -o FILE writes one)", "yellow")
    missing = missing_for_user(os.environ) if user and sys.platform == "linux" else []
    for hint in missing:
        context.note(hint, "yellow")
    if now:
        perform(made.start)
    if context.as_json:
        context.document({"files": [str(path) for path in made.files], "started": now, "missing": missing})
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
    made = local_plan(user, None, service_files.LISTEN)
    present = [path for path in made.files if path.exists()]
    if present:
        perform(made.stop, ignore_failure=True)
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
    """Print the service files without writing them."""
    made = local_plan(user, config, listen)
    if context.as_json:
        context.document({str(path): text for path, text in made.files.items()})
        return
    for path, text in made.files.items():
        click.echo(f"# -- {path}\n{text}")


def perform(commands: tuple[tuple[str, ...], ...], ignore_failure: bool = False) -> None:
    """Run the commands of the service manager. Raises ClickException if one fails, unless `ignore_failure`."""
    for words in commands:
        try:
            done = subprocess.run(words, capture_output=True, text=True)
        except FileNotFoundError:
            raise click.ClickException(f"{words[0]} is not installed") from None
        if done.returncode and not ignore_failure:
            raise click.ClickException(f"{shlex.join(words)}: {done.stderr.strip() or done.returncode}")
