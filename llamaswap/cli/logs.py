"""`logs`: the history of a log, and new lines as they are written, each with its time."""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from datetime import datetime
from typing import Any

import click

from llamaswap.cli.client import RESPONSE_TIMEOUT, WORK_TIMEOUT, ApiClient, ClientError, JsonObject, quoted
from llamaswap.cli.context import CliContext, by_name, model_names, remote

HAS_TIME = re.compile(r"\[?(\d{4}[-/]\d\d[-/]\d\d|\d\d:\d\d)")  # the beginning of a line that has its own time
News = Generator[tuple[str, Any], None, None]


def open_log(client: ApiClient, name: str, timeout: float) -> tuple[JsonObject, News]:
    """The history of a log, and the messages that follow it. Raises ClientError if the log is unknown."""
    news = client.news(f"logs:{quoted(name or 'combined')}", timeout)
    for kind, message in news:
        if kind == "logData":
            return message, news
        if kind == "uiConfig":  # it follows the history, so there is none
            break
    news.close()
    raise ClientError(f"no log is named {name}", 404)


@click.command()
@click.argument("name", required=False, default="", metavar="[MODEL|proxy|upstream]", shell_complete=model_names)
@click.option("-f", "--follow", is_flag=True, help="Go on printing new lines.")
@click.option("-n", "--lines", type=click.IntRange(min=0), help="Only the last lines of the history.")
@click.option("--times/--no-times", default=True, help="Print when each line was written (default), or only the line.")
@remote
def logs(context: CliContext, name: str, follow: bool, lines: int | None, times: bool) -> None:
    """Show the log of a model, of the proxy, or the combined log."""
    timeout = WORK_TIMEOUT if follow else RESPONSE_TIMEOUT
    history, news = by_name(context.client, name, lambda one: open_log(context.client, one, timeout))
    with closing(news):
        written, rest = _split(str(history["data"]))
        if rest and not follow:
            written, rest = [*written, rest], ""
        first = 0 if lines is None else max(0, len(written) - lines)
        for line, when in list(with_times(written, history))[first:]:
            _print(context, line, when, times)
        if not follow:
            return
        for kind, message in news:
            if kind == "logData":
                complete, rest = _split(rest + str(message["data"]))
                for line in complete:
                    _print(context, line, time.time(), times)


def with_times(lines: Iterable[str], history: JsonObject) -> Iterator[tuple[str, float | None]]:
    """Each line of a log's history with the unix time at which it was written, None if it is not known."""
    when: float | None = None
    changes = {int(line): ms / 1000 for line, ms in history.get("times") or ()}
    for number, line in enumerate(lines):
        when = changes.get(number, when)
        yield line, when


def stamp(line: str, when: float | None) -> str:
    """What stands before a line: its time and two spaces, nothing if it has its own."""
    if HAS_TIME.match(line):
        return ""
    return f"{datetime.fromtimestamp(when):%m-%d %H:%M:%S}  " if when is not None else " " * 16


def _split(text: str) -> tuple[list[str], str]:
    """The complete lines of a text, and what follows the last of them."""
    *lines, rest = text.split("\n")
    return [line.rstrip("\r") for line in lines], rest


def _print(context: CliContext, line: str, when: float | None, times: bool) -> None:
    if context.as_json:
        at = None if when is None else datetime.fromtimestamp(when).astimezone()
        context.line({"line": line, "time": at and at.isoformat(timespec="milliseconds")})
    else:
        click.echo(f"{click.style(stamp(line, when), dim=True)}{line}" if times else line)
