"""`check CONFIG`: validates a configuration, prints it expanded, and compares it with another one."""

from __future__ import annotations

import os
from pathlib import Path
from time import time

import click
from attrs import asdict, define, field
from rich.markup import escape

from llamaswap.cli import effective
from llamaswap.cli.client import ClientError
from llamaswap.cli.context import KEY_VARIABLE, CliContext, counted, local
from llamaswap.cli.flags import DEFAULT_CONFIG
from llamaswap.config import Config, LoadedConfig, Model, api_keys, diff, files, load
from llamaswap.config.diagnostics import located
from llamaswap.config.field_types import keys_of
from llamaswap.config.ports import keep
from llamaswap.config.references import peers_that_lead_back
from llamaswap.config.schema.hosts import HERE
from llamaswap.discover import missing
from llamaswap.errors import ConfigError, Problem

PATH = click.Path(path_type=Path)
HOSTS_TIMEOUT = 3.0  # seconds for what a running llamaswap knows of other hosts
KEYS = {attribute.name: name for name, (attribute, _) in keys_of(Config).items()}


def loaded(path: Path, more: Path | None = None) -> LoadedConfig:
    """The configuration in a file, or in the files of a folder, merged with that of the folder `more`.

    Raises ConfigError with all problems.
    """
    file, folder = (None, str(path)) if path.is_dir() else (str(path), None)
    if more is not None:
        file, folder = str(path), str(more)  # as the server reads them: CONFIG must be a file then
    return load(files.read_sources(file, folder), dict(os.environ), store_problem=files.store_problem, thorough=True)


def usable(path: Path) -> Config:
    """The configuration in a file, for a command that needs one; its problems are the command's error."""
    try:
        return loaded(path).config
    except ConfigError as error:
        raise click.ClickException(str(error)) from None


def loops(found: LoadedConfig, listen: str) -> list[Problem]:
    """An error for each peer whose address is the server's own; `listen` is host:port or :port."""
    port = listen.rpartition(":")[2]
    if not port.isdigit():  # an endpoint without a port, such as a unix socket
        return []
    problems = [
        Problem(
            f"peer {name} is this server itself: its proxy leads to port {port} of this machine",
            f"peers.{name}.proxy",
            hint="remove it, or name the server's own address with --listen if that is another one",
        )
        for name in peers_that_lead_back(found.config.peers, int(port))
    ]
    return [located(problem, found.root) for problem in problems]


def unusable_folders(found: LoadedConfig) -> list[Problem]:
    """What keeps this machine from using the folders for files: the service runs without these files."""
    config = found.config
    folders = (
        ("logFiles.folder", config.log_files.folder, False, "logs would not be written to files"),
        ("captures.path", config.captures.path, True, "captures would be in memory only"),
    )
    given = ((key, files.folder_problem(path, private=private), then) for key, path, private, then in folders if path)
    return [located(Problem(f"{then}: {problem}", key), found.root) for key, problem, then in given if problem]


@define
class CheckResult:
    """What was found in one configuration, or in two that are compared."""

    strict: bool
    errors: list[Problem] = field(factory=list)
    warnings: list[Problem] = field(factory=list)
    configs: list[Config] = field(factory=list)
    unusable_folders: list[Problem] = field(factory=list)

    def add(self, path: Path, listen: str, more: Path | None = None) -> None:
        """Check the configuration at `path`, with the files of the folder `more`."""
        try:
            found = loaded(path, more)
        except ConfigError as error:
            self.errors += error.problems
            self.warnings += error.warnings
        else:
            self.configs.append(found.config)
            self.warnings += found.warnings
            self.warnings += (located(one, found.root) for one in api_keys.expired(found.config, time()))
            self.errors += loops(found, listen)
            self.unusable_folders = unusable_folders(found)

    @property
    def valid(self) -> bool:
        """Whether there are no errors, nor warnings if these count as such."""
        return not self.errors and not (self.strict and self.warnings)

    @property
    def usable(self) -> Config | None:
        """The last configuration, if there are no errors."""
        return self.configs[-1] if self.configs and not self.errors else None

    @property
    def models(self) -> list[Model]:
        """The models of the last configuration, if there are no errors."""
        return list(self.usable.models.values()) if self.usable else []

    @property
    def changes(self) -> dict[str, list[str]] | None:
        """What a reload from the first to the second configuration does, with the ports that the running models keep;
        None if only one was loaded."""
        if len(self.configs) != 2:
            return None
        plan = diff(self.configs[0], keep(*self.configs))
        return {
            "restart": list(plan.restarted),
            "retune": list(plan.retuned),
            "add": list(plan.added),
            "remove": list(plan.removed),
            "settings": sorted(KEYS.get(name, name) for name in plan.settings),
        }

    def document(self, effectively: bool) -> dict[str, object]:
        """The result as JSON."""
        document: dict[str, object] = {
            "valid": self.valid,
            "errors": [asdict(one) for one in self.errors],
            "warnings": [asdict(one) for one in self.warnings],
            "missing_programs": missing.missing_programs(self.models),
            "missing_files": missing.missing_files(self.models),
            "unusable_folders": [asdict(one) for one in self.unusable_folders],
        }
        if effectively and self.usable:
            document["effective"] = effective.plain(self.usable)
        if self.changes is not None:
            document["changes"] = self.changes
        return document


@click.command()
@click.argument("config", type=PATH, default=DEFAULT_CONFIG)
@click.option("--strict", is_flag=True, help="A warning is an error.")
@click.option("--effective", "effectively", is_flag=True, help="Print it expanded, with masked secrets.")
@click.option("--diff", "other", type=PATH, metavar="OTHER", help="Show what a reload from CONFIG to OTHER would do.")
@click.option("--config-dir", "more", type=PATH, help="A folder whose files are merged with CONFIG and OTHER.")
@click.option("--listen", default=":8080", show_default=True, help="The server's address; no peer may have it.")
@local
def check(
    context: CliContext,
    config: Path,
    strict: bool,
    effectively: bool,
    other: Path | None,
    more: Path | None,
    listen: str,
) -> None:
    """Check a configuration file or folder (config.yaml).

    The exit status is 0 if it is valid, and 1 if it is not, or if there are warnings with --strict. A program that is
    not installed, a model's file that does not exist and a folder that cannot be written are only noted: the
    configuration may be meant for another machine.
    """
    result = CheckResult(strict)
    result.add(config, listen, more)
    if other is not None:
        result.add(other, listen, None if other.is_dir() else more)
    if context.as_json:
        context.document(result.document(effectively))
    else:
        _print(context, config, result, effectively, listen)
    if not result.valid:
        raise SystemExit(1)


def lacking_on_hosts(context: CliContext, config: Config | None, listen: str) -> list[str]:
    """What other hosts lack for models; the llamaswap that runs at `listen` has asked them."""
    if config is None or config.hosts is None:
        return []
    try:
        found = context.connect(listen, os.environ.get(KEY_VARIABLE, "")).json("/api/hosts", timeout=HOSTS_TIMEOUT)
        return [text for text in map(str, found["findings"]) if not text.startswith(f"{HERE} ")]
    except (ClientError, KeyError, TypeError) as error:
        return [f"what other hosts lack is known while llamaswap runs: {error}"]


def _print(context: CliContext, config: Path, result: CheckResult, effectively: bool, listen: str) -> None:
    for one in result.errors:
        context.err.print(f"[red]error[/]    {escape(str(one))}")
    for one in result.warnings:
        context.err.print(f"[{'red' if result.strict else 'yellow'}]warning[/]  {escape(str(one))}")
    notes = [*missing.findings(result.models), *lacking_on_hosts(context, result.usable, listen)]
    for note in notes:
        context.note(f"note     {note}", "")
    for problem in result.unusable_folders:
        context.note(f"note     {problem}", "")
    if effectively and result.usable:
        click.echo(effective.text(result.usable), nl=False)
    if result.changes is not None:
        _print_changes(context, result.changes)
    if result.usable and not effectively and result.changes is None and result.valid:
        count = counted(sum(not model.replica_of for model in result.usable.models.values()), "model")
        if result.warnings:
            context.say(f"{config}: {count}, {counted(len(result.warnings), 'warning')}; it loads", "yellow")
        else:
            state = "it loads" if notes or result.unusable_folders else "nothing wrong"
            context.say(f"{config}: {count}, {state}", "green")


def _print_changes(context: CliContext, plan: dict[str, list[str]]) -> None:
    titles = {
        "restart": "restarted",
        "retune": "keep running, with new settings",
        "add": "added",
        "remove": "stopped and removed",
        "settings": "settings that change",
    }
    if not any(plan.values()):
        context.say("a reload would change nothing")
        return
    for name, title in titles.items():
        if plan[name]:
            context.say(f"{title}: {', '.join(plan[name])}")
    if not (plan["restart"] or plan["remove"]):
        context.say("no running server would be touched", "green")
