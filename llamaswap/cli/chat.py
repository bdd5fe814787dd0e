"""`run MODEL`: a chat in the terminal: one response to a prompt (an argument, or piped in), or a conversation."""

from __future__ import annotations

import sys

import click
from attrs import define, field

from llamaswap.cli.client import ClientError, JsonObject
from llamaswap.cli.context import CliContext, by_name, model_names, remote
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


@define
class Printer:
    """Writes pieces as they come; reasoning is dim on a terminal, and left out of a pipe."""

    _terminal: bool
    _thinking: bool = field(default=False, init=False)
    _written: bool = field(default=False, init=False)

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


def respond(context: CliContext, conversation: Conversation, prompt: str, stats: bool) -> StreamStats:
    """Request a response and print it, unless --json is given. An interrupted one is not added to the conversation."""
    printer = Printer(sys.stdout.isatty())
    show = printer.show if not context.as_json else lambda piece: None
    try:
        conversation.model, measured = by_name(
            context.client,
            conversation.model,
            lambda name: (name, collect(context.client, {**conversation.request(prompt), "model": name}, show)),
        )
    finally:
        printer.end()
    conversation.add(prompt, measured.text)
    if stats and not context.as_json:
        context.note(_speed_text(measured))
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
        measured = respond(context, conversation, words, stats)
        if context.as_json:
            context.document(_document(model, measured))
        return
    if context.as_json:
        raise click.UsageError("--json needs a PROMPT")
    _talk(context, conversation, stats)


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
        if word in ("/bye", "/exit", "/quit"):
            return
        if word == "/clear":
            conversation.messages.clear()
        elif word == "/system":
            conversation.system = rest.strip()
        elif word.startswith("/") and "/" not in word[1:]:
            context.note(HELP)
        elif line:
            try:
                respond(context, conversation, line, stats)
            except ClientError as error:
                context.note(str(error), "red")
            except KeyboardInterrupt:
                context.note("interrupted")


def _document(model: str, measured: StreamStats) -> JsonObject:
    return {
        "model": model,
        "content": measured.text,
        "reasoning": measured.reasoning,
        "usage": measured.usage,
        "timings": measured.timings,
        "ttft_s": None if measured.first is None else round(measured.first, 4),
        "total_s": round(measured.total, 4),
        "tokens_per_second": None if measured.rate is None else round(measured.rate, 2),
    }


def _speed_text(measured: StreamStats) -> str:
    first = "" if measured.first is None else f"first token after {measured.first:.2f}s, "
    rate = "" if measured.rate is None else f", {measured.rate:.1f} tokens/s"
    return f"{first}{measured.tokens} tokens in {measured.total:.2f}s{rate}"
