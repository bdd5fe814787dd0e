"""`top`: models, requests and GPUs, refreshed every second."""

from __future__ import annotations

import sys
import time
from contextlib import closing

import click
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from llamaswap.cli import models
from llamaswap.cli.client import ApiClient, ClientError, JsonObject
from llamaswap.cli.context import CliContext, remote, seconds, table

REQUEST_ROWS = 20  # of the table; a screen is not longer


def inflight(client: ApiClient) -> list[JsonObject]:
    """The requests in flight: the first snapshot of the event stream."""
    with closing(client.news("inflight")) as news:
        return next((list(message.get("requests") or []) for kind, message in news if kind == "inflight"), [])


def gather(client: ApiClient, thorough: bool = False) -> JsonObject:
    """All data of the view. Details of models that are not loaded are only requested if it is `thorough`, because each
    request is a line in the server's log."""
    data = models.gather(client, everything=thorough)
    if not thorough:
        loaded = {model["id"]: model for model in data["models"]}
        names = sorted({*loaded, *models.local(client)})
        data["models"] = [loaded.get(name, {"id": name, "state": "stopped"}) for name in names]
    data["requests"] = inflight(client)
    data["gpus"], data["system"] = _machine(client)
    return data


def _machine(client: ApiClient) -> tuple[list[JsonObject], JsonObject | None]:
    try:
        found = client.json("/api/performance?max_points=1")
    except ClientError as error:
        if error.status == 503:  # switched off
            return [], None
        raise
    newest: dict[int, JsonObject] = {row["id"]: row for row in found.get("gpu_stats") or []}
    system = (found.get("sys_stats") or [None])[-1]
    return [newest[number] for number in sorted(newest)], system


def view(data: JsonObject) -> Group:
    """The data as tables and lines."""
    parts = devices(data)
    running = [model for model in data["models"] if models.state_of(model) != "stopped"]
    stopped = [model["id"] for model in data["models"] if models.state_of(model) == "stopped"]
    if running:
        parts.append(models.model_table(running))
    parts.append(Text(f"not loaded: {', '.join(stopped) or 'none'}", style="dim", overflow="ellipsis", no_wrap=True))
    return Group(*parts, *requests(data))


def devices(data: JsonObject) -> list[RenderableType]:
    """The machine's processors, memory and GPUs."""
    parts: list[RenderableType] = []
    if system := data["system"]:
        cores = system["cpu_util_per_core"] or [0]
        parts.append(
            Text(
                f"cpu {sum(cores) / len(cores):.0f}% of {len(cores)}  load {system['load_avg_1']:.2f}  "
                f"memory {system['mem_used_mb'] / 1024:.1f} of {system['mem_total_mb'] / 1024:.1f} GiB"
            )
        )
    if data["gpus"]:
        parts.append(_gpus(data["gpus"]))
    return parts


def requests(data: JsonObject) -> list[RenderableType]:
    """Why models failed, the requests in flight, and those in the queue."""
    parts: list[RenderableType] = [Text(line, style="red") for line in models.failures(data["models"])]
    if data["requests"]:
        parts.append(_requests(data["requests"]))
    reasons = {row["model"]: f": {row['reason']}" for row in data["requests"] if row.get("reason")}
    for waiting in data["queue"][:REQUEST_ROWS]:
        parts.append(Text(models.wait_text(waiting) + reasons.get(waiting["model"], ""), style="yellow"))
    return parts


def _gpus(rows: list[JsonObject]) -> Table:
    def cells(row: JsonObject) -> list[str]:
        memory = f"{row['mem_used_mb'] / 1024:.1f} of {row['mem_total_mb'] / 1024:.1f} GiB"
        numbers = [f"{row['gpu_util_pct']:.0f}%", memory, f"{row['temp_c']:.0f}°C", f"{row['power_draw_w']:.0f} W"]
        return [str(row["id"]), escape(str(row["name"])), *numbers]

    return table(("GPU", "NAME", "UTIL", "MEMORY", "TEMP", "POWER"), map(cells, rows))


def _requests(rows: list[JsonObject]) -> Table:
    def cells(row: JsonObject) -> list[str]:
        return [
            str(row["id"]),
            escape(str(row["model"])),
            row["phase"] + (f" ({row['queue_pos']})" if row.get("queue_pos") else ""),
            seconds(row["elapsed_ms"] / 1000),
            f"{row['ttft_ms'] / 1000:.2f}s" if "ttft_ms" in row else "",
            str(row.get("tokens_out", "")),
            f"{row['tps']:.1f}" if "tps" in row else "",
            str(row.get("remote_ip", "")),
        ]

    columns = ("REQUEST", "MODEL", "PHASE", "FOR", "TTFT", "TOKENS", "TOKENS/S", "FROM")
    return table(columns, map(cells, rows[:REQUEST_ROWS]))


@click.command()
@click.option("--every", type=click.FloatRange(min=0.2), default=1.0, show_default=True, help="Seconds per refresh.")
@click.option("--once", is_flag=True, help="Print the view once and exit.")
@remote
def top(context: CliContext, every: float, once: bool) -> None:
    """Watch models, requests and GPUs.

    On a terminal, keys load, unload and pin models; ? lists them.
    """
    if context.as_json:
        while True:
            context.line(gather(context.client, thorough=True))
            if once:
                return
            time.sleep(every)
    first = view(gather(context.client))
    if not once and context.out.is_terminal and sys.stdin is not None and sys.stdin.isatty():
        from llamaswap.cli.top_screen import TopScreen, show

        screen = TopScreen(context.client, devices, requests)
        show(screen, lambda: gather(context.client), context.out, every)
        return
    context.show(first)  # to a pipe or a file one view after the other
    while not once:
        time.sleep(every)
        context.out.print()
        context.show(_view_or_error(context.client))


def _view_or_error(client: ApiClient) -> Group | Text:
    """The view, or the error of a server that may come back."""
    try:
        return view(gather(client))
    except ClientError as error:
        return Text(str(error), style="red")
