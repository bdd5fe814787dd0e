"""`top`: models, requests and GPUs as they are, drawn anew every second."""

from __future__ import annotations

import json
import time
from typing import Any

import click
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from llamaswap.cli import models
from llamaswap.cli.client import ApiClient, ClientError
from llamaswap.cli.context import CliContext, remote, seconds

MOST_REQUESTS = 20  # a screen is not longer


def inflight(client: ApiClient) -> list[dict[str, Any]]:
    """The requests under way: the first picture of the event stream."""
    events = client.events("/api/events?topics=inflight", timeout=10.0)
    try:
        for _, data in events:
            event = json.loads(data)
            if event.get("type") == "inflight":
                return list(json.loads(event["data"]).get("requests") or [])
    finally:
        events.close()
    return []


def gather(client: ApiClient, thorough: bool = False) -> dict[str, Any]:
    """Everything the view shows. Models that are not loaded are asked about one by one only by the `thorough`: every
    question is a line in the server's log."""
    picture = models.gather(client, everything=thorough)
    if not thorough:
        loaded = {model["id"]: model for model in picture["models"]}
        names = sorted({*loaded, *models.local(client)})
        picture["models"] = [loaded.get(name, {"id": name, "state": "stopped"}) for name in names]
    picture["requests"] = inflight(client)
    picture["gpus"], picture["system"] = _machine(client)
    return picture


def _machine(client: ApiClient) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    try:
        found = client.json("/api/performance?max_points=1")
    except ClientError as trouble:
        if trouble.status == 503:  # switched off
            return [], None
        raise
    newest: dict[int, dict[str, Any]] = {row["id"]: row for row in found.get("gpu_stats") or []}
    system = (found.get("sys_stats") or [None])[-1]
    return [newest[number] for number in sorted(newest)], system


def view(picture: dict[str, Any]) -> Group:
    """The picture as something that can be drawn."""
    parts: list[Any] = []
    system = picture["system"]
    if system:
        cores = system["cpu_util_per_core"] or [0]
        parts.append(
            Text(
                f"cpu {sum(cores) / len(cores):.0f}% of {len(cores)}  load {system['load_avg_1']:.2f}  "
                f"memory {system['mem_used_mb'] / 1024:.1f} of {system['mem_total_mb'] / 1024:.1f} GiB"
            )
        )
    if picture["gpus"]:
        parts.append(_gpus(picture["gpus"]))
    running = [model for model in picture["models"] if model["state"] != "stopped"]
    stopped = [model["id"] for model in picture["models"] if model["state"] == "stopped"]
    if running:
        parts.append(models.table(running))
    parts.append(Text(f"not loaded: {', '.join(stopped) or 'none'}", style="dim", overflow="ellipsis", no_wrap=True))
    if picture["requests"]:
        parts.append(_requests(picture["requests"]))
    for waiting in picture["queue"][:MOST_REQUESTS]:
        parts.append(Text(f"waiting {waiting['wait_ms'] / 1000:.1f}s for {waiting['model']}", style="yellow"))
    return Group(*parts)


def _gpus(rows: list[dict[str, Any]]) -> Table:
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("GPU", "NAME", "UTIL", "MEMORY", "TEMP", "POWER"):
        shown.add_column(name)
    for row in rows:
        memory = f"{row['mem_used_mb'] / 1024:.1f} of {row['mem_total_mb'] / 1024:.1f} GiB"
        numbers = (f"{row['gpu_util_pct']:.0f}%", memory, f"{row['temp_c']:.0f}°C", f"{row['power_draw_w']:.0f} W")
        shown.add_row(str(row["id"]), str(row["name"]), *numbers)
    return shown


def _requests(rows: list[dict[str, Any]]) -> Table:
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("REQUEST", "MODEL", "PHASE", "FOR", "TTFT", "TOKENS", "TOKENS/S", "FROM"):
        shown.add_column(name)
    for row in rows[:MOST_REQUESTS]:
        shown.add_row(
            str(row["id"]),
            str(row["model"]),
            row["phase"] + (f" ({row['queue_pos']})" if row.get("queue_pos") else ""),
            seconds(row["elapsed_ms"] / 1000),
            f"{row['ttft_ms'] / 1000:.2f}s" if "ttft_ms" in row else "",
            str(row.get("tokens_out", "")),
            f"{row['tps']:.1f}" if "tps" in row else "",
            str(row.get("remote_ip", "")),
        )
    return shown


@click.command()
@click.option("--every", type=click.FloatRange(min=0.2), default=1.0, show_default=True, help="Seconds between looks.")
@click.option("--once", is_flag=True, help="Draw one picture and leave.")
@remote
def top(context: CliContext, every: float, once: bool) -> None:
    """Watch models, requests and GPUs."""
    if context.as_json:
        while True:
            context.line(gather(context.client, thorough=True))
            if once:
                return
            time.sleep(every)
    if once:
        context.show(view(gather(context.client)))
        return
    if not context.out.is_terminal:  # a pipe or a file: one picture after the other
        _repeat(context, every)
        return
    with Live(view(gather(context.client)), console=context.out, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(every)
            live.update(_look(context.client), refresh=True)


def _look(client: ApiClient) -> Group | Text:
    """The picture, or what keeps it from being had: a server that starts anew comes back."""
    try:
        return view(gather(client))
    except ClientError as trouble:
        return Text(str(trouble), style="red")


def _repeat(context: CliContext, every: float) -> None:
    context.show(view(gather(context.client)))
    while True:
        time.sleep(every)
        context.out.print()
        context.show(_look(context.client))
