"""What every command has at hand: the terminal, the environment, a client; and the options they share.

Commands print through a `CliContext`, so that `--json` is one document (or one line an event) on standard output and
everything else is on standard error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import update_wrapper
from typing import Any, TypeVar

import click
from attrs import define, field
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.text import Text

from llamaswap.cli.client import ApiClient, ClientError

DEFAULT_URL = "http://localhost:8080"
MOST_NAMES = 12  # that an error tells
WIDEST = 2000  # columns of a table: no name is longer
F = TypeVar("F", bound=Callable[..., Any])


@define(eq=False)
class CliContext:
    """`connect` makes the client of (url, key); tests hand in another."""

    connect: Callable[[str, str], ApiClient] = ApiClient.at
    as_json: bool = False
    url: str = DEFAULT_URL
    key: str = ""
    _client: ApiClient | None = field(default=None, init=False)

    @property
    def client(self) -> ApiClient:
        """The server the options name."""
        if self._client is None:
            self._client = self.connect(self.url, self.key)
        return self._client

    @property
    def out(self) -> Console:
        """Standard output, as it is now."""
        return Console(file=sys.stdout, highlight=False, soft_wrap=True)

    @property
    def err(self) -> Console:
        """Standard error, as it is now."""
        return Console(file=sys.stderr, highlight=False, soft_wrap=True)

    def show(self, drawn: RenderableType) -> None:
        """Tables in full, however narrow the terminal: a model's name that is cut can be neither searched nor typed."""
        console = self.out
        needed = Measurement.get(console, console.options.update(max_width=WIDEST), drawn).maximum
        if needed > console.width:
            console = Console(file=sys.stdout, highlight=False, soft_wrap=True, width=needed)
        console.print(drawn)

    def say(self, text: str, style: str = "") -> None:
        """A line for a person; with --json it goes to standard error."""
        (self.err if self.as_json else self.out).print(Text(text, style=style))

    def note(self, text: str, style: str = "dim") -> None:
        """A line beside the result: progress, a hint."""
        self.err.print(Text(text, style=style))

    def document(self, value: Any) -> None:
        """The result with --json, indented."""
        click.echo(json.dumps(value, indent=2, ensure_ascii=False))

    def line(self, value: Any) -> None:
        """One result of many with --json, on a line of its own."""
        click.echo(json.dumps(value, ensure_ascii=False))


def local(command: F) -> F:
    """A command on this machine: `--json`, and the context as first argument."""
    return _with_desk(click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command), command)


def remote(command: F) -> F:
    """A command on a running server: `--url`, `--key`, `--json`, and the context as first argument."""
    wrapped = click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)
    wrapped = click.option("--key", envvar="LLAMASWAP_API_KEY", default="", help="API key ($LLAMASWAP_API_KEY).")(
        wrapped
    )
    wrapped = click.option(
        "--url", envvar="LLAMASWAP_URL", default=DEFAULT_URL, help=f"The server ($LLAMASWAP_URL; {DEFAULT_URL})."
    )(wrapped)
    return _with_desk(wrapped, command)


def _with_desk(decorated: Any, command: F) -> F:
    def run(*args: Any, **options: Any) -> Any:
        found = click.get_current_context().find_object(CliContext)
        context = CliContext() if found is None else found
        context.as_json = options.pop("as_json", False)
        context.url = options.pop("url", context.url)
        context.key = options.pop("key", context.key)
        try:
            return decorated(context, *args, **options)
        except ClientError as trouble:
            raise click.ClickException(str(trouble)) from None
        except BrokenPipeError:
            raise  # who reads has had enough; click ends it quietly
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise click.ClickException(f"{where}{error.strerror or error}") from None
        except KeyboardInterrupt:
            raise SystemExit(130) from None

    update_wrapper(run, command)
    run.__click_params__ = decorated.__click_params__  # type: ignore[attr-defined]  # where click keeps options
    return run  # type: ignore[return-value]  # click calls it by option names


@contextmanager
def about(client: ApiClient, model: str, refused: int = 404) -> Iterator[None]:
    """Adds the list of known models to an error with the status `refused`, which says that `model` is unknown."""
    try:
        yield
    except ClientError as trouble:
        if trouble.status != refused:
            raise
        advice = _instead(client, model)
        named = f": {model}" if advice and model not in str(trouble) else ""
        raise ClientError(f"{trouble}{named}{advice}", refused) from None


def _instead(client: ApiClient, model: str) -> str:
    try:
        names = [str(row["id"]) for row in client.json("/v1/models")["data"]]
    except (ClientError, KeyError, TypeError):
        return ""
    if model in names:  # it is the model that does not know the path
        return ""
    if near := get_close_matches(model, names, n=1):
        return f" (did you mean {near[0]}?)"
    more = ", ..." if len(names) > MOST_NAMES else ""
    return f" (there is {', '.join(names[:MOST_NAMES])}{more})" if names else " (there is none)"


def model_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Shell completion of a model's name: whatever the server lists; nothing where there is no server."""
    url = context.params.get("url") or DEFAULT_URL
    try:
        listed = ApiClient.at(url, context.params.get("key") or "").json("/v1/models", timeout=1.0)
        return [row["id"] for row in listed["data"] if row["id"].startswith(incomplete)]
    except (ClientError, KeyError, TypeError):
        return []


def counted(number: int, what: str) -> str:
    """A number of things in words."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def seconds(value: float | None) -> str:
    """A span in words for a table: 4s, 3m 10s, 2h 5m."""
    if value is None:
        return ""
    whole = int(value)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60}s"
    return f"{whole // 3600}h {whole % 3600 // 60}m"
