"""`logs`: the history of a log, and new lines as they are written."""

from __future__ import annotations

from contextlib import closing

import click

from llamaswap.cli.client import ApiClient, ClientError, quoted
from llamaswap.cli.context import CliContext, about, model_names, remote


def history(client: ApiClient, name: str) -> str:
    """The history of one log, or of the combined log if `name` is empty."""
    if not name:
        return client.text("/logs")
    with closing(client.news(f"logs:{quoted(name)}")) as news:
        for kind, message in news:
            if kind == "logData":
                return str(message["data"])
            if kind == "uiConfig":  # it follows the history, so there is none
                break
    raise ClientError(f"no log is named {name}", 404)


@click.command()
@click.argument("name", required=False, default="", metavar="[MODEL|proxy|upstream]", shell_complete=model_names)
@click.option("-f", "--follow", is_flag=True, help="Go on printing new lines.")
@click.option("-n", "--lines", type=click.IntRange(min=0), help="Only the last lines of the history.")
@remote
def logs(context: CliContext, name: str, follow: bool, lines: int | None) -> None:
    """Show the log of a model, of the proxy, or the combined log."""
    if not follow or lines is not None:
        with about(context.client, name):
            written = history(context.client, name).splitlines()
        for line in written if lines is None else written[-lines:] if lines else []:
            _print(context, line)
    if follow:
        path = f"/logs/stream/{quoted(name)}" if name else "/logs/stream"
        with about(context.client, name, refused=400):
            for line in context.client.lines(path + ("?no-history" if lines is not None else "")):
                _print(context, line)


def _print(context: CliContext, line: str) -> None:
    if context.as_json:
        context.line({"line": line})
    else:
        click.echo(line)
