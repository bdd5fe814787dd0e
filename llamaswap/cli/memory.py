"""`memory`: what the models need and the devices have, and `memory enable`, which turns decisions by memory on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from difflib import unified_diff
from pathlib import Path

import click
from attrs import evolve
from rich.markup import escape

from llamaswap.cli.client import ApiClient, ClientError, JsonObject
from llamaswap.cli.config_edit import WRITTEN, write
from llamaswap.cli.context import CliContext, local, remote, table
from llamaswap.cli.flags import DEFAULT_CONFIG
from llamaswap.config import Config, ConfigText, load
from llamaswap.config.text_edit import NotEditable, set_key
from llamaswap.errors import ConfigError

CERTAIN = ("measured", "lease")  # sources of sizes that are no estimates
DEVICE_COLUMNS = ("DEVICE", "NAME", "TOTAL", "FREE", "RESERVE", "OTHER PROGRAMS", "MODELS")
NEED_COLUMNS = ("MODEL", "NEEDS", "GPUS", "RAM", "KNOWN BY", "SAMPLES", "P95", "LOAD")


def document(client: ApiClient) -> JsonObject:
    """The document of /api/memory; empty if the server does not have it."""
    try:
        found: JsonObject = client.json("/api/memory")
    except ClientError as error:
        if error.status == 404:
            return {}
        raise
    return found


def use_by_model(found: JsonObject) -> dict[str, str]:
    """What each model uses on all devices together, or what it is estimated to need, which begins with ~."""
    use: dict[str, int] = {}
    estimated: set[str] = set()
    for device in found.get("devices") or []:
        for row in device["models"]:
            use[row["model"]] = use.get(row["model"], 0) + row["mib"]
            if row["source"] not in CERTAIN:
                estimated.add(row["model"])
    for model, need in (found.get("needs") or {}).items():
        if model not in use:
            use[model] = _need(need)
            estimated.add(model)
    return {model: ("~" if model in estimated else "") + size(mib) for model, mib in use.items()}


def _need(need: Mapping[str, object]) -> int:
    """MiB of the preferred way to spread a model over GPUs, and its RAM."""
    options, ram = need.get("gpus") or [[]], need.get("ram_mib")
    first = options[0] if isinstance(options, list) else []
    return sum(first) + (ram if isinstance(ram, int) else 0)


def size(mib: int | None) -> str:
    """MiB for a table."""
    if mib is None:
        return ""
    return f"{mib} MiB" if mib < 1024 else f"{mib / 1024:.1f} GiB"


@click.group(invoke_without_command=True)
@remote
@click.pass_context
def memory(click_context: click.Context, context: CliContext) -> None:
    """Show the memory of the devices and of the models.

    `llamaswap memory enable` lets memory decide which models run together.
    """
    if click_context.invoked_subcommand is not None:
        return
    found = context.client.json("/api/memory")
    if context.as_json:
        context.document(found)
        return
    context.say(f"routing.memory: {found['mode']}")
    if found["devices"]:
        context.show(table(DEVICE_COLUMNS, map(_device, found["devices"]), right=("TOTAL", "FREE", "RESERVE")))
    else:
        context.say("no device is measured")
    if found["needs"]:
        rows = (_model(name, need) for name, need in sorted(found["needs"].items()))
        context.show(table(NEED_COLUMNS, rows, right=("NEEDS", "RAM", "SAMPLES", "P95", "LOAD")))
    for sentence in found["advice"]:
        context.say(sentence, "yellow")


def _device(device: JsonObject) -> list[str]:
    models = ", ".join(
        f"{row['model']} {'' if row['source'] in CERTAIN else '~'}{size(row['mib'])}"
        + (" (squeezed)" if row["squeezed"] else "")
        for row in device["models"]
    )
    foreign = size(device["foreign_mib"]) + (
        f" ({device['foreign_by']})" if device["foreign_mib"] and device["foreign_by"] else ""
    )
    sizes = [size(device[name]) for name in ("total_mib", "free_mib", "reserve_mib")]
    return [device["device"], escape(device["name"]), *sizes, escape(foreign), escape(models)]


def _model(name: str, need: JsonObject) -> list[str]:
    gpus = " + ".join(map(size, (need["gpus"] or [[]])[0]))
    load_time = "" if need["load_seconds"] is None else f"{need['load_seconds']:.1f}s"
    samples = str(need["samples"] or "")
    return [
        escape(name), size(_need(need)), gpus, size(need["ram_mib"]), need["source"], samples, size(need["p95_mib"]),
        load_time,
    ]  # fmt: skip


@memory.command()
@click.argument("config", type=click.Path(path_type=Path, dir_okay=False), default=DEFAULT_CONFIG)
@click.option("--dry-run", is_flag=True, help="Print the change, and write nothing.")
@local
def enable(context: CliContext, config: Path, dry_run: bool) -> None:
    """Set `routing.memory: on` in CONFIG; comments stay.

    Models then stay loaded together as far as their memory fits.
    """
    text = config.read_text(encoding="utf-8")
    try:
        before = load([ConfigText(str(config), text)], dict(os.environ)).config
        after = text if before.routing.memory.mode == "on" else _enabled(text, before, str(config))
    except (ConfigError, NotEditable) as error:
        raise click.ClickException(f"{config} is not changed: {error}") from None
    lines = list(unified_diff(text.splitlines(), after.splitlines(), str(config), str(config), lineterm=""))
    if lines and not dry_run:
        write(config, after, before, "llamaswap memory enable")
    if context.as_json:
        context.document({"file": str(config), "written": bool(lines) and not dry_run, "diff": lines})
        return
    for line in lines:
        context.say(line, {"+": "green", "-": "red"}.get(line[0], "dim"))
    if not lines:
        context.say(f"{config}: routing.memory is on already")
    elif not dry_run:
        context.say(WRITTEN.format(file=config))


def _enabled(text: str, before: Config, name: str) -> str:
    """The text with the mode `on` and no other change of its meaning. Raises NotEditable."""
    routing = evolve(before.routing, memory=evolve(before.routing.memory, mode="on"))
    for path in (("routing", "memory"), ("routing", "memory", "mode")):
        try:
            after = set_key(text, path, "on")
            if load([ConfigText(name, after)], dict(os.environ)).config == evolve(before, routing=routing):
                return after
        except (NotEditable, ConfigError):
            continue
    raise NotEditable("set `memory: on` below `routing:` by hand")
