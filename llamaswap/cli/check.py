"""`check CONFIG`: whether a configuration loads, what is odd about it, what it comes to, and what a reload would do."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from llamaswap.cli import effective
from llamaswap.cli.context import CliContext, counted, local
from llamaswap.cli.flags import DEFAULT_CONFIG
from llamaswap.config import Config, LoadedConfig, command_line, diff, files, load
from llamaswap.config.field_types import keys_of
from llamaswap.config.ports import keep
from llamaswap.config.references import peers_that_lead_back
from llamaswap.errors import ConfigError, Problem

PATH = click.Path(path_type=Path)
KEYS = {attribute.name: name for name, (attribute, _) in keys_of(Config).items()}


def loaded(path: Path) -> LoadedConfig:
    """The configuration at a file, or of a folder's files. Raises ConfigError, with all that is wrong."""
    file, folder = (None, str(path)) if path.is_dir() else (str(path), None)
    return load(files.read_sources(file, folder), dict(os.environ), facts=files.DiskFacts(), thorough=True)


def problem(found: Problem) -> dict[str, Any]:
    """A problem as JSON."""
    return {
        "message": found.message,
        "path": found.path,
        "file": found.file,
        "line": found.line,
        "hint": found.hint,
    }


def changes(old: Config, new: Config) -> dict[str, list[str]]:
    """What a reload from one to the other does, as `diff` plans it with the ports that the running models keep."""
    plan = diff(old, keep(old, new))
    return {
        "restart": list(plan.restarted),
        "retune": list(plan.retuned),
        "add": list(plan.added),
        "remove": list(plan.removed),
        "settings": sorted(KEYS.get(name, name) for name in plan.settings),
    }


def missing(config: Config) -> dict[str, list[str]]:
    """Programs that this machine does not have, each with the models that need it."""
    found: dict[str, list[str]] = {}
    for name, model in config.models.items():
        try:
            program = command_line.split(model.cmd)[0]
        except command_line.EmptyCommand:
            continue
        if shutil.which(program) is None:
            found.setdefault(program, []).append(name)
    return found


def loops(config: Config, listen: str) -> list[Problem]:
    """An error for each peer whose address is where the server itself listens (`listen` is host:port or :port)."""
    port = listen.rpartition(":")[2]
    if not port.isdigit():  # an endpoint without a port, such as a unix socket
        return []
    return [
        Problem(
            f"peer {name} is this server itself: its proxy leads to port {port} of this machine",
            f"peers.{name}.proxy",
            hint="remove it, or name the server's own address with --listen if that is another one",
        )
        for name in peers_that_lead_back(config.peers, int(port))
    ]


@click.command()
@click.argument("config", type=PATH, default=DEFAULT_CONFIG)
@click.option("--strict", is_flag=True, help="A warning is an error.")
@click.option("--effective", "effectively", is_flag=True, help="Print what it comes to: expanded, secrets masked.")
@click.option("--diff", "other", type=PATH, metavar="OTHER", help="Say what a reload from CONFIG to OTHER would do.")
@click.option("--listen", default=":8080", show_default=True, help="Where the server listens: no peer may lead there.")
@local
def check(context: CliContext, config: Path, strict: bool, effectively: bool, other: Path | None, listen: str) -> None:
    """Check a configuration file, or a folder of them; config.yaml unless named.

    Exit status 0: it loads. 1: it does not, or with --strict there are warnings. A program that is not on this
    machine is only noted: the file may be meant for another.
    """
    errors: list[Problem] = []
    warnings: list[Problem] = []
    found: list[LoadedConfig] = []
    for path in (config, other) if other else (config,):
        try:
            one = loaded(path)
        except ConfigError as error:
            errors += error.problems
            warnings += error.warnings
        else:
            found.append(one)
            warnings += one.warnings
            errors += loops(one.config, listen)
    bad = bool(errors) or (strict and bool(warnings))
    absent = missing(found[-1].config) if found and not errors else {}
    plan = changes(found[0].config, found[1].config) if len(found) == 2 else None
    if context.as_json:
        document: dict[str, Any] = {
            "valid": not bad,
            "errors": [problem(one) for one in errors],
            "warnings": [problem(one) for one in warnings],
            "missing_programs": absent,
        }
        if effectively and found and not errors:
            document["effective"] = effective.plain(found[-1].config)
        if plan is not None:
            document["changes"] = plan
        context.document(document)
    else:
        _tell(context, errors, warnings, strict)
        for program, names in absent.items():
            context.note(
                f"note     {program} is not on this machine, or not in PATH (needed by {', '.join(names)})", ""
            )
        if effectively and found and not errors:
            click.echo(effective.text(found[-1].config), nl=False)
        if plan is not None:
            _tell_plan(context, plan)
        if found and not errors and not effectively and plan is None and not (strict and warnings):
            told = counted(len(found[0].config.models), "model")
            if warnings:
                context.say(f"{config}: {told}, {counted(len(warnings), 'warning')}; it loads", "yellow")
            else:
                context.say(f"{config}: {told}, {'it loads' if absent else 'nothing wrong'}", "green")
    if bad:
        raise SystemExit(1)


def _tell(context: CliContext, errors: Sequence[Problem], warnings: Sequence[Problem], strict: bool) -> None:
    for one in errors:
        context.err.print(f"[red]error[/]    {_escaped(one)}")
    for one in warnings:
        context.err.print(f"[{'red' if strict else 'yellow'}]warning[/]  {_escaped(one)}")


def _escaped(one: Problem) -> str:
    from rich.markup import escape

    return escape(str(one))


def _tell_plan(context: CliContext, plan: dict[str, list[str]]) -> None:
    words = {
        "restart": "restarted",
        "retune": "keep running, with new settings",
        "add": "added",
        "remove": "stopped and removed",
        "settings": "settings that change",
    }
    if not any(plan.values()):
        context.say("a reload would change nothing")
        return
    for name, told in words.items():
        if plan[name]:
            context.say(f"{told}: {', '.join(plan[name])}")
    if not (plan["restart"] or plan["remove"]):
        context.say("no running server would be touched", "green")
