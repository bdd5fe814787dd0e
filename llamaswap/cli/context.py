"""What all commands share: output, the client of the server, and common options.

Commands print through a `CliContext`. With `--json`, standard output is one document (or one line per event), and
everything else goes to standard error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from difflib import get_close_matches
from functools import update_wrapper
from typing import TypeVar

import click
from attrs import define, field
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from llamaswap.cli.client import ApiClient, ClientError

DEFAULT_URL = "http://localhost:8080"
NAME_LIMIT = 12  # model names in an error
TABLE_WIDTH_LIMIT = 2000  # columns; no name is longer
F = TypeVar("F", bound=Callable[..., object])
T = TypeVar("T")


class CommandError(click.ClickException):
    """A command that failed because of the server; `status` is that of its response, if there was one."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@define(eq=False)
class CliContext:
    """`connect` returns the client of (url, key); tests pass another one."""

    connect: Callable[[str, str], ApiClient] = ApiClient.at
    as_json: bool = False
    url: str = DEFAULT_URL
    key: str = ""
    _client: ApiClient | None = field(default=None, init=False)

    @property
    def client(self) -> ApiClient:
        """The client of the server that the options name."""
        if self._client is None:
            self._client = self.connect(self.url, self.key)
        return self._client

    @property
    def out(self) -> Console:
        """Standard output."""
        return Console(file=sys.stdout, highlight=False, soft_wrap=True)

    @property
    def err(self) -> Console:
        """Standard error."""
        return Console(file=sys.stderr, highlight=False, soft_wrap=True)

    def show(self, drawn: RenderableType) -> None:
        """Print a table in full on a narrow terminal too: a truncated model name can be neither searched nor typed."""
        console = self.out
        needed = Measurement.get(console, console.options.update(max_width=TABLE_WIDTH_LIMIT), drawn).maximum
        if needed > console.width:
            console = Console(file=sys.stdout, highlight=False, soft_wrap=True, width=needed)
        console.print(drawn)

    def say(self, text: str, style: str = "") -> None:
        """Print a line of the result; with --json it goes to standard error."""
        (self.err if self.as_json else self.out).print(Text(text, style=style))

    def note(self, text: str, style: str = "dim") -> None:
        """Print progress or a hint to standard error."""
        self.err.print(Text(text, style=style))

    def document(self, value: object) -> None:
        """Print the result with --json, indented."""
        click.echo(json.dumps(value, indent=2, ensure_ascii=False))

    def line(self, value: object) -> None:
        """Print one result of many with --json, on one line."""
        click.echo(json.dumps(value, ensure_ascii=False))


AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
KEY_VARIABLE = "LLAMASWAP_API_KEY"
KEY = click.option("--key", envvar=KEY_VARIABLE, default="", help=f"API key (${KEY_VARIABLE}).")
URL = click.option(
    "--url", envvar="LLAMASWAP_URL", default=DEFAULT_URL, help=f"The server ($LLAMASWAP_URL; {DEFAULT_URL})."
)


def remote(command: F) -> F:
    """Decorates a command on a running server: adds `--url`, `--key`, `--json`, and the context as first argument."""
    return local(URL(KEY(command)))


def local(command: F) -> F:
    """Decorates a command on this machine: adds `--json`, and the context as first argument."""

    def run(*args: object, **options: object) -> object:
        found = click.get_current_context().find_object(CliContext)
        context = CliContext() if found is None else found
        context.as_json = bool(options.pop("as_json", False))
        context.url = str(options.pop("url", context.url))
        context.key = str(options.pop("key", context.key))
        try:
            return command(context, *args, **options)
        except ClientError as error:
            raise CommandError(str(error), error.status) from None
        except BrokenPipeError:
            raise  # the reader of a pipe has ended; click exits quietly
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise click.ClickException(f"{where}{error.strerror or error}") from None
        except KeyboardInterrupt:
            raise SystemExit(130) from None

    update_wrapper(run, command)  # with the options that click has kept there
    return AS_JSON(run)  # type: ignore[return-value]  # click calls it by option names


def by_name(client: ApiClient, model: str, use: Callable[[str], T], refused: int = 404) -> T:
    """`use(model)`, or `use` of the only model whose name begins with `model`, if the server answers with the status
    `refused`, which says that the model is unknown. Without such a model, the error names the known ones."""
    try:
        return use(model)
    except ClientError as error:
        if error.status != refused:
            raise
        names = _names(client)
        longer = [name for name in names if model and model not in names and name.startswith(model)]
        if len(longer) == 1:
            return use(longer[0])
        advice = _suggestion(model, names, longer)
        named = f": {model}" if advice and model not in str(error) else ""
        raise ClientError(f"{error}{named}{advice}", refused) from None


def _names(client: ApiClient) -> list[str]:
    try:
        return [str(row["id"]) for row in client.json("/v1/models")["data"]]
    except (ClientError, KeyError, TypeError):
        return []


def _suggestion(model: str, names: Sequence[str], longer: Sequence[str]) -> str:
    if model in names:  # its own server does not know the path
        return ""
    if near := get_close_matches(model, names, n=1):
        return f" (did you mean {near[0]}?)"
    found = longer or names
    more = ", ..." if len(found) > NAME_LIMIT else ""
    return f" (available: {', '.join(found[:NAME_LIMIT])}{more})" if found else " (no model is configured)"


def model_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Shell completion of a model name: the models that the server lists, none if there is no server."""
    url = context.params.get("url") or DEFAULT_URL
    try:
        listed = ApiClient.at(url, context.params.get("key") or "").json("/v1/models", timeout=1.0)
        return [row["id"] for row in listed["data"] if row["id"].startswith(incomplete)]
    except (ClientError, KeyError, TypeError):
        return []


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[str] = ()) -> Table:
    """A table of texts; the columns of `right` are aligned there."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left")
    for row in rows:
        made.add_row(*row)
    return made


def counted(number: int, what: str) -> str:
    """A number of things: 1 model, 2 models."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def seconds(value: float | None) -> str:
    """A duration for a table: 4s, 3m 10s, 2h 5m."""
    if value is None:
        return ""
    whole = int(value)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60}s"
    return f"{whole // 3600}h {whole % 3600 // 60}m"
