"""`logs`: what was written, and what is being written."""

from __future__ import annotations

import json

import click

from llamaswap.cli.client import ApiClient, ClientError, quoted
from llamaswap.cli.context import CliContext, about, model_names, remote


def remembered(client: ApiClient, name: str) -> str:
    """The history of one log; the combined one for "" ."""
    if not name:
        return client.text("/logs")
    stream = client.events(f"/api/events?topics=logs:{quoted(name)}", timeout=10.0)
    try:
        for _, data in stream:
            event = json.loads(data)
            if event.get("type") == "logData":
                return str(json.loads(event["data"])["data"])
            if event.get("type") == "uiConfig":  # it follows the history: there is none
                break
    finally:
        stream.close()
    raise ClientError(f"no log is named {name}", 404)


@click.command()
@click.argument("name", required=False, default="", metavar="[MODEL|proxy|upstream]", shell_complete=model_names)
@click.option("-f", "--follow", is_flag=True, help="Go on printing what is written.")
@click.option("-n", "--lines", type=click.IntRange(min=0), help="Only the last so many lines of what was written.")
@remote
def logs(context: CliContext, name: str, follow: bool, lines: int | None) -> None:
    """Show the log of a model, the proxy or all together."""
    if not follow or lines is not None:
        with about(context.client, name):
            written = remembered(context.client, name).splitlines()
        for line in written if lines is None else written[-lines:] if lines else []:
            _tell(context, line)
    if follow:
        path = f"/logs/stream/{quoted(name)}" if name else "/logs/stream"
        with about(context.client, name, refused=400):
            for line in context.client.lines(path + ("?no-history" if lines is not None else "")):
                _tell(context, line)


def _tell(context: CliContext, line: str) -> None:
    if context.as_json:
        context.line({"line": line})
    else:
        click.echo(line)
