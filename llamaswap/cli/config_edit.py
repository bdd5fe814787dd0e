"""Changes a configuration file in place; `rm` removes a model from it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from llamaswap.cli.context import CliContext, local
from llamaswap.cli.flags import DEFAULT_CONFIG
from llamaswap.config import Config, ConfigText, load
from llamaswap.config.text_edit import NotEditable, remove, set_key
from llamaswap.discover.config_writer import FoundModel, quoted, with_port
from llamaswap.errors import ConfigError
from llamaswap.web.config_history import VersionSource
from llamaswap.web.configfile import ConfigFile

READ = "a running llamaswap reads it with -watch-config or after llamaswap reload"
WRITTEN = "{file} is written, the old text is {file}.bak; " + READ


def write(path: Path, text: str, config: Config, author: str) -> None:
    """Replace the file as the web page's editor does: in one step, with a backup and an entry in the history."""
    file = ConfigFile(path, {}, lambda: config, list, lambda: None, allowed=True)
    file.write(text, VersionSource("saved", "", author))


def parsed(path: Path, text: str) -> Config:
    """The configuration in a text. Raises ClickException."""
    try:
        return load([ConfigText(str(path), text)], dict(os.environ)).config
    except ConfigError as error:
        raise click.ClickException(str(error)) from None


def edit(
    path: Path,
    author: str,
    change: Callable[[str, Config], str],
    expected: Callable[[Config, Config], bool] = lambda before, after: True,
) -> Config:
    """Change the file, if the new text can be used and is as `expected`; returns the new configuration."""
    text = path.read_text(encoding="utf-8")
    before = parsed(path, text)
    try:
        changed = change(text, before)
    except NotEditable as error:
        raise click.ClickException(f"{path} is not changed: {error}") from None
    try:
        after = parsed(path, changed)
    except click.ClickException as error:
        raise click.ClickException(f"{path} is not changed, the new text could not be used: {error}") from None
    if not expected(before, after):
        raise click.ClickException(f"{path} is not changed: change it by hand, its text has an unusual form")
    write(path, changed, before, author)
    return after


def add_model(path: Path, model: FoundModel, author: str) -> None:
    """Add an entry for a model; its name must be new."""
    command = " ".join(map(quoted, with_port(model.words)))

    def change(text: str, before: Config) -> str:
        if model.name in before.models:
            raise NotEditable(f"there is a model {model.name} already")
        return set_key(text, ("models", model.name, "cmd"), json.dumps(command, ensure_ascii=False))

    edit(path, author, change, lambda before, after: set(after.models) == {*before.models, model.name})


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), default=DEFAULT_CONFIG, show_default=True)
@local
def rm(context: CliContext, models: Sequence[str], config: Path) -> None:
    """Remove models from the configuration; their files stay."""

    def change(text: str, before: Config) -> str:
        for name in models:
            if name not in before.models:
                known = ", ".join(before.models) or "none"
                raise NotEditable(f"model {name} is not in the file; the models there: {known}")
            text = remove(text, ("models", name))
        return text

    edit(config, "llamaswap rm", change, lambda before, after: set(after.models) == set(before.models) - set(models))
    if context.as_json:
        context.document({"removed": list(models), "file": str(config)})
    else:
        context.say(f"removed {', '.join(models)}: {WRITTEN.format(file=config)}")
