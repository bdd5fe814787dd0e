"""`ps`, `show`, `load`, `unload`, `pin`: show the models, load, unload and pin them."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Collection, Sequence
from itertools import compress
from typing import cast

import click
from rich.markup import escape
from rich.table import Table

from llamaswap.cli import memory
from llamaswap.cli.client import WORK_TIMEOUT, ApiClient, ClientError, JsonObject, quoted
from llamaswap.cli.context import CliContext, by_name, model_names, remote, seconds, table

POLL_INTERVAL = 0.2  # seconds between two requests for the state of a load
EXPLAINED_WAITS = 5  # models that requests wait for, each asked about with a request
UNSEEN_TIMEOUT = 5.0  # seconds after which a load that the server does not report has failed

STYLES = {"ready": "green", "starting": "yellow", "stopping": "yellow", "shutdown": "red", "failed": "red"}


def gather(client: ApiClient, everything: bool = False) -> JsonObject:
    """The data of `ps`: the running and the failed models (or all local ones), and the waiting requests."""
    found = client.json("/running")
    rows = [row["model"] for row in (*found["running"], *found.get("failing", ()))]
    if everything:
        rows = sorted({*rows, *local(client)})
    models = [model for name in rows if (model := _detail(client, name)) is not None]
    use = memory.use_by_model(memory.document(client))
    for model in models:
        if model["id"] in use:
            model["memory"] = use[model["id"]]
    return {"models": models, "queue": client.json("/api/queue")["queue"]}


def local(client: ApiClient) -> list[str]:
    """The local models, in the order of the model list."""
    listed = client.json("/v1/models")["data"]
    ours = {row["id"]: (row.get("meta") or {}).get("llamaswap") or {} for row in listed}
    return [name for name, meta in ours.items() if meta.get("type", "model") == "model"]


def _detail(client: ApiClient, name: str) -> JsonObject | None:
    try:
        return cast(JsonObject, client.json(f"/api/models/{quoted(name)}"))
    except ClientError as error:
        if error.status == 404:  # removed by a reload meanwhile
            return None
        raise


def model_table(models: Sequence[JsonObject], without: Collection[str] = ()) -> Table:
    """A table of models, without these columns; with their hosts if there are several, and with their memory if that of
    any is known."""
    columns = ["MODEL", "STATE", "UP", "ACTIVE", "WAITING", "TTL", "PID", "PORT"]
    rows = list(map(_row, models))
    if any(model.get("host") for model in models):
        columns.append("HOST")
        rows = [[*row, escape(str(model.get("host") or ""))] for row, model in zip(rows, models, strict=True)]
    if any("memory" in model for model in models):
        columns.append("MEMORY")
        rows = [[*row, str(model.get("memory", ""))] for row, model in zip(rows, models, strict=True)]
    kept = [name not in without for name in columns]
    rows = [list(compress(row, kept)) for row in rows]
    return table(list(compress(columns, kept)), rows, right=("ACTIVE", "WAITING", "PID", "PORT", "MEMORY"))


def state_of(model: JsonObject) -> str:
    """The state of a model; `failed` for one that is stopped because its last load, or its server, failed."""
    return "failed" if model["state"] == "stopped" and model.get("failed") else str(model["state"])


def failures(models: Sequence[JsonObject]) -> list[str]:
    """A line for each failed model, with the reason."""
    return [f"{model['id']} failed: {model['failed'].strip()}" for model in models if state_of(model) == "failed"]


def _row(model: JsonObject) -> list[str]:
    state = state_of(model) + (" (pinned)" if model.get("pinned") else "")
    active, waiting, pid, port = (str(model.get(name) or "") for name in ("active", "waiting", "pid", "port"))
    ttl = seconds(model["ttl_s"]) if model.get("ttl_s") else ""
    styled = f"[{STYLES.get(state_of(model), 'dim')}]{state}[/]"
    return [escape(model["id"]), styled, seconds(model.get("uptime_s")), active, waiting, ttl, pid, port]


@click.command()
@click.option("--all", "-a", "everything", is_flag=True, help="Include models that are not loaded.")
@remote
def ps(context: CliContext, everything: bool) -> None:
    """Show the running models, and those that failed."""
    data = gather(context.client, everything)
    _explain(context.client, data["queue"])
    if context.as_json:
        context.document(data)
        return
    if data["models"]:
        context.show(model_table(data["models"]))
    else:
        context.say("nothing is loaded")
    for line in failures(data["models"]):
        context.say(line, "red")
    for waiting in data["queue"]:
        context.say(f"{wait_text(waiting)} (place {waiting['position']}){_because(waiting)}")


def wait_text(waiting: JsonObject) -> str:
    """How long a queued request has waited, and for what model."""
    return f"waiting {waiting['wait_ms'] / 1000:.1f}s for {waiting['model']}"


def _because(waiting: JsonObject) -> str:
    return f": {waiting['reason']}" if waiting.get("reason") else ""


def _explain(client: ApiClient, queue: Sequence[JsonObject]) -> None:
    """Add the reason to the requests for the first few models that are waited for."""
    reasons: dict[str, str] = {}
    for name in list(dict.fromkeys(row["model"] for row in queue))[:EXPLAINED_WAITS]:
        try:
            plan = client.json(f"/api/plan?model={quoted(name)}")
        except ClientError:
            continue  # removed by a reload meanwhile
        busy = f"waiting for {', '.join(plan['waits_for'])} to finish" if plan["waits_for"] else ""
        reasons[name] = "; ".join(filter(None, (busy, plan["reason"])))
    for row in queue:
        if reasons.get(row["model"]):
            row["reason"] = reasons[row["model"]]


def named(context: CliContext, name: str, path: str, method: str = "GET") -> JsonObject:
    """The document at `path` and the model that the name means."""
    found = by_name(context.client, name, lambda one: context.client.json(f"{path}{quoted(one)}", method=method))
    return cast(JsonObject, found)


@click.command()
@click.argument("model", shell_complete=model_names)
@remote
def show(context: CliContext, model: str) -> None:
    """Show a model's state, command, groups and failure."""
    found = named(context, model, "/api/models/")
    if context.as_json:
        context.document(found)
        return
    texts = {
        **{name: found.get(name) for name in ("id", "name", "description")},
        "state": state_of(found) + (", pinned" if found.get("pinned") else ""),
        "failed": (found.get("failed") or "").strip(),
        "command": shlex.join(found.get("cmd") or ()),
        **{name: found.get(name) for name in ("proxy", "pid")},
        **{name: ", ".join(found.get(name) or ()) for name in ("aliases", "groups", "tags")},
        "context length": found.get("context_length"),
        "ttl": seconds(found["ttl_s"]) if found.get("ttl_s") else "",
        "last loads": ", ".join(f"{value / 1000:.1f}s" for value in found.get("load_ms") or ()),
    }
    shown = table(("", ""), [[name, escape(str(text))] for name, text in texts.items() if text])
    shown.show_header = False
    context.show(shown)


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...", shell_complete=model_names)
@click.option("--off", is_flag=True, help="Remove the pin.")
@remote
def pin(context: CliContext, models: Sequence[str], off: bool) -> None:
    """Keep models loaded: no other model evicts a pinned one.

    A pin ends when the model is unloaded by name. A model that is not loaded is not loaded by its pin.
    """
    done = [named(context, name, "/api/models/pin/", "DELETE" if off else "POST") for name in models]
    if context.as_json:
        context.document(done)
        return
    for row in done:
        context.say(f"{row['model']}: {'pinned' if row['pinned'] else 'not pinned'} ({row['state']})")


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...", shell_complete=model_names)
@click.option("--wait/--no-wait", default=True, help="Return when the model is ready (default), or at once.")
@remote
def load(context: CliContext, models: Sequence[str], wait: bool) -> None:
    """Load models, one after the other."""
    loaded = []
    for name in models:
        began = time.monotonic()
        before = max((int(swap["id"]) for swap in context.client.json("/api/swaps")), default=-1)
        accepted = named(context, name, "/api/models/load/", "POST")
        state = accepted["state"]
        if wait:
            with context.err.status(f"loading {name}"):
                state = wait_for_load(context.client, accepted["model"], before)
        took = round(time.monotonic() - began, 3)
        loaded.append({"model": accepted["model"], "state": state, "seconds": took})
        if not context.as_json:
            context.say(f"{accepted['model']}: {state}" + (f" after {took:.1f}s" if wait else ""))
    if context.as_json:
        context.document(loaded)


def wait_for_load(
    client: ApiClient,
    model: str,
    before: int,
    *,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> str:
    """Wait until the model is ready. `before` was the newest swap before the load. Raises ClientError if it fails."""
    last_seen = now()
    while True:
        detail = client.json(f"/api/models/{quoted(model)}")
        if detail["state"] == "ready":
            return "ready"
        swaps = [swap for swap in client.json("/api/swaps") if swap["model"] == model and int(swap["id"]) > before]
        failed = next((swap for swap in swaps if swap.get("outcome") == "failed"), None)
        if failed is not None:
            error, tail = str(failed["error"]), client.json(f"/api/swaps/{failed['id']}").get("log_tail", "").rstrip()
            reason = error if not tail or error.rstrip().endswith(tail) else f"{error}\n{tail}"
            raise ClientError(f"{model}: {reason}")
        if detail["state"] != "stopped" or detail["waiting"] or swaps:
            last_seen = now()
        elif now() - last_seen > UNSEEN_TIMEOUT:
            raise ClientError(f"{model}: not loaded: {detail.get('last_error') or 'the server gives no reason'}")
        sleep(POLL_INTERVAL)


@click.command()
@click.argument("models", nargs=-1, metavar="[MODEL...]", shell_complete=model_names)
@remote
def unload(context: CliContext, models: Sequence[str]) -> None:
    """Unload the named models, or all models. Returns when they have stopped."""

    def ask(name: str) -> str:
        context.client.text(f"/api/models/unload/{quoted(name)}", method="POST", timeout=WORK_TIMEOUT)
        return name

    models = [by_name(context.client, name, ask) for name in models]
    if not models:
        context.client.text("/api/models/unload", method="POST", timeout=WORK_TIMEOUT)
    if context.as_json:
        context.document({"unloaded": list(models) or "all"})
    else:
        context.say(f"unloaded {', '.join(models) or 'all models'}")
