"""`keys`: adds, lists, revokes and rotates API keys in the configuration; comments stay."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from secrets import token_urlsafe
from time import time

import click
from attrs import evolve
from rich.markup import escape

from llamaswap.cli.config_edit import WRITTEN, edit, parsed
from llamaswap.cli.context import CliContext, local, table
from llamaswap.cli.flags import DEFAULT_CONFIG
from llamaswap.config import ApiKey, Config
from llamaswap.config.schema.keys import HASHED, SCOPES, time_text, window_text
from llamaswap.config.text_edit import NotEditable, add_item, remove, set_key
from llamaswap.web.key_access import access_of

CONFIG = click.argument("config", type=click.Path(path_type=Path, dir_okay=False), default=DEFAULT_CONFIG)
PLAIN = click.option("--plain", is_flag=True, help="Store the key itself instead of its SHA-256.")
COLUMNS = ("NAME", "SCOPES", "MODELS", "PRIORITY", "LIMITS", "EXPIRES")


@click.group()
def keys() -> None:
    """Change the API keys in a configuration file."""


@keys.command()
@click.argument("name")
@CONFIG
@click.option("--model", "models", multiple=True, help="A model that it may use, with * and ?; default: all.")
@click.option("--scope", "scopes", multiple=True, type=click.Choice(SCOPES), help="Default: infer.")
@click.option("--priority", type=int, default=0, help="Added to the priority of the model.")
@click.option("--max-parallel", type=click.IntRange(min=1), help="Requests at the same time.")
@click.option("--rpm", help="Requests in a minute.")
@click.option("--tpm", help="Tokens in a minute, such as 20k.")
@click.option("--budget", help="Tokens in a longer time: 200k/1d; without a window one day.")
@click.option("--expires", help="A date, or a time in RFC 3339.")
@PLAIN
@local
def add(context: CliContext, name: str, config: Path, plain: bool, **options: object) -> None:
    """Add the key NAME to CONFIG and print it, once.

    Only its SHA-256 is stored, so the key cannot be read again from the file.
    """
    key, stored = _new_key(plain)
    parts = {"key": stored, "name": name, **_settings(options)}
    item = _flow(parts)

    def changed(text: str, before: Config) -> str:
        if any(known.name == name for known in before.api_keys):
            raise NotEditable(f"there is a key {name} already; llamaswap keys rotate {name} gives it another value")
        return add_item(text, ("apiKeys",), item)

    after = _edit(config, changed, lambda old, new: new.api_keys[:-1] == old.api_keys and new.api_keys[-1].name == name)
    _report(context, config, {"name": name, "key": key})
    _note_if_closed(context, after)


def _note_if_closed(context: CliContext, after: Config) -> None:
    if after.api_keys and not any("admin" in access_of(one, after.api_keys).scopes for one in after.api_keys):
        context.note(
            "no key has the scope admin: the page and the management API are closed from the next reload on; "
            "llamaswap keys add NAME --scope admin makes one, and SIGHUP loads it",
            "yellow",
        )


def _new_key(plain: bool) -> tuple[str, str]:
    """A new key, and what the file says of it."""
    key = f"sk-{token_urlsafe(24)}"
    return key, key if plain else HASHED + sha256(key.encode()).hexdigest()


def _settings(options: dict[str, object]) -> dict[str, object]:
    """The options as keys of an entry."""
    found: dict[str, object] = {}
    if options["models"]:
        found["models"] = list(options["models"])  # type: ignore[call-overload]
    found["scopes"] = list(options["scopes"] or ("infer",))  # type: ignore[call-overload]
    for option, name in (
        ("priority", "priority"),
        ("max_parallel", "maxParallel"),
        ("rpm", "rpm"),
        ("tpm", "tpm"),
        ("expires", "expires"),
    ):
        if options[option]:
            found[name] = options[option]
    if options["budget"]:
        tokens, _, window = str(options["budget"]).partition("/")
        found["budget"] = {"tokens": tokens.strip(), "window": window.strip() or "1d"}
    return found


def _flow(value: object) -> str:
    """A value as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_flow(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


@keys.command(name="list")
@CONFIG
@local
def list_(context: CliContext, config: Path) -> None:
    """List the keys of CONFIG by name; the page and /api/keys show what they have used."""
    found = parsed(config, config.read_text(encoding="utf-8"))
    named = [key for key in found.api_keys if key.name]
    rows = [_row(key, found.api_keys) for key in named]
    if context.as_json:
        context.document([dict(zip(map(str.lower, COLUMNS), row, strict=True)) for row in rows])
        return
    if rows:
        context.show(table(COLUMNS, [[escape(cell) for cell in row] for row in rows], right=("PRIORITY",)))
    others = len(found.api_keys) - len(named)
    if others or not rows:
        context.say(f"{others} keys have no name" if found.api_keys else "no key is configured: clients need none")


def _row(key: ApiKey, every: Sequence[ApiKey]) -> list[str]:
    limits = [
        f"{key.max_parallel} at a time" if key.max_parallel else "",
        f"{key.rpm} requests/min" if key.rpm else "",
        f"{key.tpm} tokens/min" if key.tpm else "",
        f"{key.budget.tokens} tokens/{window_text(key.budget.window)}" if key.budget.tokens else "",
    ]
    until = time_text(key.expires) + (" (expired)" if key.expires and key.expires <= time() else "")
    scopes = ", ".join(sorted(access_of(key, every).scopes))
    return [key.name, scopes, ", ".join(key.models), str(key.priority), ", ".join(filter(None, limits)), until]


@keys.command()
@click.argument("name")
@CONFIG
@local
def revoke(context: CliContext, name: str, config: Path) -> None:
    """Remove the key NAME from CONFIG."""

    def changed(text: str, before: Config) -> str:
        return remove(text, ("apiKeys", _index(before, name)))

    def expected(old: Config, new: Config) -> bool:
        return new.api_keys == tuple(key for key in old.api_keys if key.name != name)

    after = _edit(config, changed, expected)
    _report(context, config, {"name": name})
    _note_if_closed(context, after)
    if not after.api_keys:
        context.note("no key is left: clients need none from the next reload on", "yellow")


@keys.command()
@click.argument("name")
@CONFIG
@click.option("--expires", help="Another expiry: a date, or a time in RFC 3339.")
@PLAIN
@local
def rotate(context: CliContext, name: str, config: Path, expires: str | None, plain: bool) -> None:
    """Give the key NAME another value and print it, once; its name, limits and use stay."""
    key, stored = _new_key(plain)

    def changed(text: str, before: Config) -> str:
        path = ("apiKeys", _index(before, name))
        text = set_key(text, (*path, "key"), _flow(stored))
        return text if expires is None else set_key(text, (*path, "expires"), _flow(expires))

    def expected(old: Config, new: Config) -> bool:
        kept = [evolve(one, key=None, expires=0.0) for one in new.api_keys]
        return kept == [evolve(one, key=None, expires=0.0) for one in old.api_keys] and any(
            one.name == name and one.value == stored for one in new.api_keys
        )

    _edit(config, changed, expected)
    _report(context, config, {"name": name, "key": key})


def _index(config: Config, name: str) -> int:
    found = next((index for index, key in enumerate(config.api_keys) if key.name == name), None)
    if found is None:
        names = ", ".join(key.name for key in config.api_keys if key.name) or "none"
        raise NotEditable(f"key {name} is not in the file; the named keys there: {names}")
    return found


def _edit(path: Path, change: Callable[[str, Config], str], expected: Callable[[Config, Config], bool]) -> Config:
    """Change the file, if the new text means what it should and nothing else; returns the new configuration."""

    def means_that(before: Config, after: Config) -> bool:
        return expected(before, after) and evolve(after, api_keys=before.api_keys) == before

    return edit(path, "llamaswap keys", change, means_that)


def _report(context: CliContext, path: Path, done: dict[str, str]) -> None:
    if context.as_json:
        context.document({**done, "file": str(path)})
    elif "key" in done:
        click.echo(done["key"])
        context.note(f"this is the key {done['name']}; it is not shown again")
    context.note(WRITTEN.format(file=path))
