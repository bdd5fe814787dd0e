"""`run MODEL`: a chat in the terminal. With a prompt (an argument, or piped in) one answer; without, a conversation."""

from __future__ import annotations

import sys
from typing import Any

import click
from attrs import define, field

from llamaswap.cli.client import ApiClient, ClientError
from llamaswap.cli.context import CliContext, about, model_names, remote
from llamaswap.cli.streaming import StreamPiece, StreamStats, collect

HELP = (
    "/clear forgets the conversation, /system TEXT sets the system prompt, /bye or Ctrl-D leaves; Ctrl-C ends an answer"
)


@define
class Conversation:
    """What was said so far, and how to ask on."""

    model: str
    system: str = ""
    options: dict[str, Any] = field(factory=dict)
    said: list[dict[str, str]] = field(factory=list)

    def order(self, prompt: str) -> dict[str, Any]:
        """The request for the next answer."""
        lead = [{"role": "system", "content": self.system}] if self.system else []
        messages = [*lead, *self.said, {"role": "user", "content": prompt}]
        return {"model": self.model, "messages": messages, **self.options}

    def keep(self, prompt: str, answer: str) -> None:
        """Remember a turn. The reasoning is not sent back: models do not want it."""
        self.said += [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


class Printer:
    """Writes pieces as they come; reasoning is dim on a terminal and left out of a pipe."""

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
        """The answer is over."""
        if self._written or self._thinking:
            click.echo()


def answer(client: ApiClient, conversation: Conversation, prompt: str, printer: Printer | None) -> StreamStats:
    """One turn. An answer that is interrupted is not remembered."""
    with about(client, conversation.model):
        tally = collect(client, conversation.order(prompt), printer.show if printer else lambda piece: None)
    conversation.keep(prompt, tally.text)
    return tally


@click.command()
@click.argument("model", shell_complete=model_names)
@click.argument("prompt", nargs=-1)
@click.option("--system", default="", help="The system prompt.")
@click.option("--temperature", type=float, help="Sampling temperature.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Most tokens of an answer.")
@click.option("--stats", is_flag=True, help="Say how fast each answer came.")
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
    """Chat with a model; it is loaded if need be."""
    given = {"temperature": temperature, "max_tokens": max_tokens}
    options = {name: value for name, value in given.items() if value is not None}
    conversation = Conversation(model, system, options)
    piped = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read().strip()
    words = "\n\n".join(part for part in (" ".join(prompt), piped) if part)
    if words or not sys.stdin or not sys.stdin.isatty():
        if not words:
            raise click.UsageError("nothing to say: give a PROMPT, or pipe one in")
        _once(context, conversation, words, stats)
        return
    if context.as_json:
        raise click.UsageError("--json needs a PROMPT")
    _talk(context, conversation, stats)


def _once(context: CliContext, conversation: Conversation, prompt: str, stats: bool) -> None:
    printer = None if context.as_json else Printer(sys.stdout.isatty())
    try:
        tally = answer(context.client, conversation, prompt, printer)
    finally:
        if printer:
            printer.end()
    if context.as_json:
        context.document(
            {
                "model": conversation.model,
                "content": tally.text,
                "reasoning": tally.reasoning,
                "usage": tally.usage,
                "timings": tally.timings,
                **speeds(tally),
            }
        )
    elif stats:
        context.note(_told(tally))


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
            conversation.said.clear()
        elif word == "/system":
            conversation.system = rest.strip()
        elif word.startswith("/") and "/" not in word[1:]:
            context.note(HELP)
        else:
            _turn(context, conversation, line, stats)


def _turn(context: CliContext, conversation: Conversation, line: str, stats: bool) -> None:
    printer = Printer(sys.stdout.isatty())
    try:
        tally = answer(context.client, conversation, line, printer)
    except ClientError as trouble:
        printer.end()
        context.note(str(trouble), "red")
    except KeyboardInterrupt:
        printer.end()
        context.note("ended")
    else:
        printer.end()
        if stats:
            context.note(_told(tally))


def speeds(tally: StreamStats) -> dict[str, float | None]:
    """The measured numbers, rounded."""
    return {
        "ttft_s": None if tally.first is None else round(tally.first, 4),
        "total_s": round(tally.total, 4),
        "tokens_per_second": None if tally.rate is None else round(tally.rate, 2),
    }


def _told(tally: StreamStats) -> str:
    first = "" if tally.first is None else f"first token after {tally.first:.2f}s, "
    rate = "" if tally.rate is None else f", {tally.rate:.1f} tokens/s"
    return f"{first}{tally.tokens} tokens in {tally.total:.2f}s{rate}"
