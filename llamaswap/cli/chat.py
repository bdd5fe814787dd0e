"""`run MODEL`: a chat in the terminal: one response to a prompt (an argument, or piped in), or a conversation."""

from __future__ import annotations

import sys

import click
from attrs import define, field

from llamaswap.cli.client import ApiClient, ClientError, JsonObject
from llamaswap.cli.context import CliContext, about, model_names, remote
from llamaswap.cli.streaming import StreamPiece, StreamStats, collect

HELP = "/clear forgets the conversation, /system TEXT sets the system prompt, /bye or Ctrl-D leaves; Ctrl-C interrupts"


@define
class Conversation:
    """The messages so far, and the options of the next request."""

    model: str
    system: str = ""
    options: JsonObject = field(factory=dict)
    messages: list[dict[str, str]] = field(factory=list)

    def request(self, prompt: str) -> JsonObject:
        """The request for the next response."""
        lead = [{"role": "system", "content": self.system}] if self.system else []
        messages = [*lead, *self.messages, {"role": "user", "content": prompt}]
        return {"model": self.model, "messages": messages, **self.options}

    def add(self, prompt: str, response: str) -> None:
        """Add a prompt and its response. The reasoning is not sent back, as models expect."""
        self.messages += [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


class Printer:
    """Writes pieces as they come; reasoning is dim on a terminal, and left out of a pipe."""

    def __init__(self, terminal: bool) -> None:
        self._terminal = terminal
        self._thinking = False
        self._written = False

    def show(self, piece: StreamPiece) -> None:
        """Print one piece."""
        if piece.reasoning and self._terminal:
            click.echo(click.style(piece.reasoning, dim=True), nl=False)
            self._thinking = True
        if piece.text:
            if self._thinking:
                click.echo("\n")
                self._thinking = False
            click.echo(piece.text, nl=False)
            self._written = True
        sys.stdout.flush()

    def end(self) -> None:
        """End the line of a complete response."""
        if self._written or self._thinking:
            click.echo()


def respond(client: ApiClient, conversation: Conversation, prompt: str, printer: Printer | None) -> StreamStats:
    """Print and return one response. An interrupted one is not added to the conversation."""
    with about(client, conversation.model):
        measured = collect(client, conversation.request(prompt), printer.show if printer else lambda piece: None)
    conversation.add(prompt, measured.text)
    return measured


@click.command()
@click.argument("model", shell_complete=model_names)
@click.argument("prompt", nargs=-1)
@click.option("--system", default="", help="The system prompt.")
@click.option("--temperature", type=float, help="Sampling temperature.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Limit of tokens per response.")
@click.option("--stats", is_flag=True, help="Print the speed of each response.")
@remote
def run(
    context: CliContext,
    model: str,
    prompt: tuple[str, ...],
    system: str,
    temperature: float | None,
    max_tokens: int | None,
    stats: bool,
) -> None:
    """Chat with a model; it is loaded if necessary."""
    given = {"temperature": temperature, "max_tokens": max_tokens}
    options = {name: value for name, value in given.items() if value is not None}
    conversation = Conversation(model, system, options)
    piped = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read().strip()
    words = "\n\n".join(part for part in (" ".join(prompt), piped) if part)
    if words or not sys.stdin or not sys.stdin.isatty():
        if not words:
            raise click.UsageError("no prompt: give a PROMPT, or pipe one in")
        _once(context, conversation, words, stats)
        return
    if context.as_json:
        raise click.UsageError("--json needs a PROMPT")
    _talk(context, conversation, stats)


def _once(context: CliContext, conversation: Conversation, prompt: str, stats: bool) -> None:
    printer = None if context.as_json else Printer(sys.stdout.isatty())
    try:
        measured = respond(context.client, conversation, prompt, printer)
    finally:
        if printer:
            printer.end()
    if context.as_json:
        context.document(
            {
                "model": conversation.model,
                "content": measured.text,
                "reasoning": measured.reasoning,
                "usage": measured.usage,
                "timings": measured.timings,
                **speeds(measured),
            }
        )
    elif stats:
        context.note(_speed_text(measured))


def _talk(context: CliContext, conversation: Conversation, stats: bool) -> None:
    try:
        import readline  # noqa: F401  # line editing and history for input()
    except ImportError:
        pass
    context.note(HELP)
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            click.echo()
            return
        word, _, rest = line.partition(" ")
        if not line:
            continue
        if word in ("/bye", "/exit", "/quit"):
            return
        if word == "/clear":
            conversation.messages.clear()
        elif word == "/system":
            conversation.system = rest.strip()
        elif word.startswith("/") and "/" not in word[1:]:
            context.note(HELP)
        else:
            _turn(context, conversation, line, stats)


def _turn(context: CliContext, conversation: Conversation, line: str, stats: bool) -> None:
    printer = Printer(sys.stdout.isatty())
    try:
        measured = respond(context.client, conversation, line, printer)
    except ClientError as error:
        printer.end()
        context.note(str(error), "red")
    except KeyboardInterrupt:
        printer.end()
        context.note("interrupted")
    else:
        printer.end()
        if stats:
            context.note(_speed_text(measured))


def speeds(measured: StreamStats) -> dict[str, float | None]:
    """The measurements, rounded."""
    return {
        "ttft_s": None if measured.first is None else round(measured.first, 4),
        "total_s": round(measured.total, 4),
        "tokens_per_second": None if measured.rate is None else round(measured.rate, 2),
    }


def _speed_text(measured: StreamStats) -> str:
    first = "" if measured.first is None else f"first token after {measured.first:.2f}s, "
    rate = "" if measured.rate is None else f", {measured.rate:.1f} tokens/s"
    return f"{first}{measured.tokens} tokens in {measured.total:.2f}s{rate}"
