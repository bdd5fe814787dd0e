"""`ps`, `load`, `unload`: which models there are, and having them come and go."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import click
from rich.table import Table

from llamaswap.cli.client import PATIENT, ApiClient, ClientError, quoted
from llamaswap.cli.context import CliContext, about, model_names, remote, seconds

LOOK = 0.2  # seconds between two looks at a load
UNDECIDED = 5.0  # seconds after which a load that shows nowhere is called lost

STYLES = {"ready": "green", "starting": "yellow", "stopping": "yellow", "shutdown": "red"}


def gather(client: ApiClient, everything: bool = False) -> dict[str, Any]:
    """The picture of `ps`: the models that run (or all local ones), and who waits."""
    rows = [row["model"] for row in client.json("/running")["running"]]
    if everything:
        rows = sorted({*rows, *local(client)})
    models = [_detail(client, name) for name in rows]
    return {"models": [model for model in models if model is not None], "queue": _queue(client)}


def local(client: ApiClient) -> list[str]:
    """The models of this machine, in the order they are listed."""
    return [row["id"] for row in client.json("/v1/models")["data"] if _kind(row) in ("", "model")]


def _kind(row: dict[str, Any]) -> str:
    meta = (row.get("meta") or {}).get("llamaswap") or {}
    return str(meta.get("type", ""))


def _detail(client: ApiClient, name: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = client.json(f"/api/models/{quoted(name)}")
    except ClientError as trouble:
        if trouble.status == 404:  # gone by a reload meanwhile
            return None
        raise
    return found


def _queue(client: ApiClient) -> list[dict[str, Any]]:
    queue: list[dict[str, Any]] = client.json("/api/queue")["queue"]
    return queue


def table(models: Sequence[dict[str, Any]], title: str | None = None) -> Table:
    """Models as rows."""
    shown = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in ("MODEL", "STATE", "UP", "ACTIVE", "WAITING", "TTL", "PID", "PORT"):
        shown.add_column(name, justify="right" if name in ("ACTIVE", "WAITING", "PID", "PORT") else "left")
    for model in models:
        state = model["state"] + (" (pinned)" if model.get("pinned") else "")
        shown.add_row(
            model["id"],
            f"[{STYLES.get(model['state'], 'dim')}]{state}[/]",
            seconds(model.get("uptime_s")),
            str(model.get("active") or ""),
            str(model.get("waiting") or ""),
            seconds(model["ttl_s"]) if model.get("ttl_s") else "",
            str(model.get("pid") or ""),
            str(model.get("port") or ""),
        )
    return shown


@click.command()
@click.option("--all", "-a", "everything", is_flag=True, help="Also models that are not loaded.")
@remote
def ps(context: CliContext, everything: bool) -> None:
    """Show which models run."""
    picture = gather(context.client, everything)
    if context.as_json:
        context.document(picture)
        return
    if picture["models"]:
        context.show(table(picture["models"]))
    else:
        context.say("nothing is loaded")
    for waiting in picture["queue"]:
        context.say(f"waiting {waiting['wait_ms'] / 1000:.1f}s for {waiting['model']} (place {waiting['position']})")


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...", shell_complete=model_names)
@click.option("--wait/--no-wait", default=True, help="Return when it is ready (default), or at once.")
@remote
def load(context: CliContext, models: Sequence[str], wait: bool) -> None:
    """Load models, one after the other."""
    told = []
    for name in models:
        began = time.monotonic()
        before = _newest_swap(context.client, name)
        with about(context.client, name):
            accepted = context.client.json(f"/api/models/load/{quoted(name)}", method="POST")
        state = accepted["state"]
        if wait:
            with context.err.status(f"loading {name}"):
                state = wait_for_load(context.client, accepted["model"], before)
        took = round(time.monotonic() - began, 3)
        told.append({"model": accepted["model"], "state": state, "seconds": took})
        if not context.as_json:
            context.say(f"{accepted['model']}: {state}" + (f" after {took:.1f}s" if wait else ""))
    if context.as_json:
        context.document(told)


def _newest_swap(client: ApiClient, model: str) -> int:
    """The number of the newest swap, whoever's: later ones have a higher."""
    return max((int(swap["id"]) for swap in client.json("/api/swaps")), default=-1)


def wait_for_load(
    client: ApiClient,
    model: str,
    before: int,
    *,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> str:
    """Until the model is ready. `before` is the newest swap at the time of asking. Raises Trouble when it fails."""
    last_sign = now()
    while True:
        detail = client.json(f"/api/models/{quoted(model)}")
        if detail["state"] == "ready":
            return "ready"
        swaps = [swap for swap in client.json("/api/swaps") if swap["model"] == model and int(swap["id"]) > before]
        failed = next((swap for swap in swaps if swap.get("outcome") == "failed"), None)
        if failed is not None:
            error, tail = str(failed["error"]), client.json(f"/api/swaps/{failed['id']}").get("log_tail", "").rstrip()
            told = error if not tail or error.rstrip().endswith(tail) else f"{error}\n{tail}"
            raise ClientError(f"{model}: {told}")
        if detail["state"] != "stopped" or detail["waiting"] or swaps:
            last_sign = now()
        elif now() - last_sign > UNDECIDED:
            raise ClientError(f"{model}: not loaded: {detail.get('last_error') or 'the server does not say why'}")
        sleep(LOOK)


@click.command()
@click.argument("models", nargs=-1, metavar="[MODEL...]", shell_complete=model_names)
@remote
def unload(context: CliContext, models: Sequence[str]) -> None:
    """Unload models; without a name all of them. Returns when they are gone."""
    for name in models:
        with about(context.client, name):
            context.client.text(f"/api/models/unload/{quoted(name)}", method="POST", timeout=PATIENT)
    if not models:
        context.client.text("/api/models/unload", method="POST", timeout=PATIENT)
    if context.as_json:
        context.document({"unloaded": list(models) or "all"})
    else:
        context.say(f"unloaded {', '.join(models) or 'all models'}")
