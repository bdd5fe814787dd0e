"""`run [MODEL]`: a chat in the terminal: one response to a prompt (an argument, or piped in), or a conversation."""

from __future__ import annotations

import base64
import json
import mimetypes
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import click
from attrs import define, field

from llamaswap.cli.client import ClientError, JsonObject, quoted
from llamaswap.cli.context import CliContext, by_name, model_names, remote
from llamaswap.cli.streaming import StreamPiece, StreamStats, collect

HELP = """\
/model [NAME]        change the model; without a name, choose it from a list
/system [TEXT]       set the system prompt, or remove it
/set [NAME [VALUE]]  set a parameter such as temperature; without a value, remove it; without a name, show all
/clear               forget the conversation
/bye, Ctrl-D         leave; Ctrl-C interrupts a response, or takes a line back
\"\"\"                  begins and ends a prompt of several lines
Names of image files in a prompt attach the images."""
HINT = "/? lists the commands"
IMAGE = re.compile(r"\S+\.(?:png|jpe?g|webp|gif)", re.IGNORECASE)
MAX_IMAGE = 20 * 1024 * 1024  # bytes; servers accept less
LINES = '"""'
Ask = Callable[[str], str]


@define
class Conversation:
    """The messages so far, and the options of the next request."""

    model: str
    system: str = ""
    options: JsonObject = field(factory=dict)
    messages: list[JsonObject] = field(factory=list)

    def request(self, prompt: JsonObject) -> JsonObject:
        """The request for the response to a message."""
        lead = [{"role": "system", "content": self.system}] if self.system else []
        return {"model": self.model, "messages": [*lead, *self.messages, prompt], **self.options}

    def add(self, prompt: JsonObject, response: str) -> None:
        """Add a message and its response. The reasoning is not sent back, as models expect."""
        self.messages += [prompt, {"role": "assistant", "content": response}]


def message(text: str, images: Iterable[Path] = ()) -> JsonObject:
    """The user's message, with images. Raises OSError, and ClickException for an image that is too large."""
    parts: list[JsonObject] = []
    for path in images:
        if path.stat().st_size > MAX_IMAGE:
            raise click.ClickException(f"{path} has more than {MAX_IMAGE // 1024 // 1024} MiB")
        kind = mimetypes.guess_type(path.name)[0] or "image/png"
        data = base64.b64encode(path.read_bytes()).decode()
        parts.append({"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}})
    return {"role": "user", "content": [{"type": "text", "text": text}, *parts] if parts else text}


def images_in(text: str, missing: Callable[[str], None]) -> list[Path]:
    """The image files that a text names. `missing` is called with each name that is not a file; an address is none."""
    names = [name for name in IMAGE.findall(text) if "://" not in name]
    for name in names:
        if not os.path.isfile(os.path.expanduser(name)):
            missing(name)
    return [Path(name).expanduser() for name in names if os.path.isfile(os.path.expanduser(name))]


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


def respond(context: CliContext, conversation: Conversation, prompt: JsonObject, stats: bool) -> StreamStats:
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
@click.argument("model", required=False, shell_complete=model_names)
@click.argument("prompt", nargs=-1)
@click.option("--system", default="", help="The system prompt.")
@click.option("--temperature", type=float, help="Sampling temperature.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Limit of tokens per response.")
@click.option(
    "-i",
    "--image",
    "images",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="An image to attach.",
)
@click.option("--stats", is_flag=True, help="Print the speed of each response.")
@remote
def run(
    context: CliContext,
    model: str | None,
    prompt: tuple[str, ...],
    system: str,
    temperature: float | None,
    max_tokens: int | None,
    images: tuple[Path, ...],
    stats: bool,
) -> None:
    """Chat with a model; it is loaded if necessary. Without MODEL it can be chosen from a list."""
    given = {"temperature": temperature, "max_tokens": max_tokens}
    options = {name: value for name, value in given.items() if value is not None}
    terminal = sys.stdin is not None and sys.stdin.isatty()
    piped = "" if sys.stdin is None or terminal else sys.stdin.read().strip()
    words = "\n\n".join(part for part in (" ".join(prompt), piped) if part)
    if images and not words:
        raise click.UsageError("--image needs a PROMPT; in a conversation, name the image file in a prompt")
    if not terminal and (not model or not words):
        raise click.UsageError("no prompt: give a PROMPT, or pipe one in" if model else "name a MODEL")
    if context.as_json and not words:
        raise click.UsageError("--json needs a PROMPT")
    conversation = Conversation(model or choose(context, input), system, options)
    if not words:
        talk(context, conversation, stats, input)
        return
    measured = respond(context, conversation, message(words, images), stats)
    if context.as_json:
        context.document(_document(conversation.model, measured))


def choose(context: CliContext, ask: Ask) -> str:
    """Let the user choose one of the models. Raises ClientError if there is none."""
    names = [str(row["id"]) for row in context.client.json("/v1/models")["data"]]
    if not names:
        raise ClientError("no model is configured")
    if len(names) == 1:
        context.note(names[0])
        return names[0]
    for number, name in enumerate(names, 1):
        context.note(f"{number:>3}  {name}", "")
    while True:
        try:
            chosen = ask("model: ").strip()
        except EOFError:
            raise click.Abort from None
        if chosen.isdecimal() and 0 < int(chosen) <= len(names):
            return names[int(chosen) - 1]
        matching = [name for name in names if chosen and name.startswith(chosen)]
        if chosen in names or len(matching) == 1:
            return chosen if chosen in names else matching[0]
        context.note(f"type a number up to {len(names)}, or a name", "yellow")


def talk(context: CliContext, conversation: Conversation, stats: bool, ask: Ask) -> None:
    """A conversation: `ask` reads a line, and raises EOFError at the end."""
    try:
        import readline  # noqa: F401  # line editing and history for input()
    except ImportError:
        pass

    def not_attached(name: str) -> None:
        context.note(f"{name} is not a file; no image is attached", "yellow")

    context.note(HINT)
    while True:
        try:
            line, literal = _read(ask)
        except EOFError:
            click.echo()
            return
        except KeyboardInterrupt:  # it takes back what was typed, as in a shell
            context.note("\n/bye or Ctrl-D leaves")
            continue
        word, _, rest = line.partition(" ")
        if word in ("/bye", "/exit", "/quit") and not literal:
            return
        try:
            if word.startswith("/") and "/" not in word[1:] and not literal:
                _command(context, conversation, word, rest.strip(), ask)
            elif line:
                respond(context, conversation, message(line, images_in(line, not_attached)), stats)
        except (ClientError, OSError, click.ClickException) as error:
            context.note(str(error), "red")
        except KeyboardInterrupt:
            context.note("interrupted")


def _read(ask: Ask) -> tuple[str, bool]:
    """(the next prompt, whether it was between triple quotes, and is therefore not a command)."""
    line = ask("> ").strip()
    if not line.startswith(LINES):
        return line, False
    text = line.removeprefix(LINES)
    while LINES not in text:
        text += "\n" + ask("... ")
    return text.partition(LINES)[0].strip(), True


def _command(context: CliContext, conversation: Conversation, word: str, rest: str, ask: Ask) -> None:
    if word == "/clear":
        conversation.messages.clear()
    elif word == "/system":
        conversation.system = rest
    elif word == "/model":
        conversation.model = _known(context, rest) if rest else choose(context, ask)
        context.note(conversation.model)
    elif word == "/set":
        name, _, value = rest.partition(" ")
        if value:
            conversation.options[name] = _value(value.strip())
        elif name:
            conversation.options.pop(name, None)
        for name, value in conversation.options.items():
            context.note(f"{name}: {json.dumps(value, ensure_ascii=False)}")
    else:
        context.note(HELP)


def _known(context: CliContext, name: str) -> str:
    """The name that the server knows: this, or the only one that begins with it. Raises ClientError."""

    def ask(one: str) -> str:
        context.client.json(f"/v1/models/{quoted(one)}")
        return one

    return by_name(context.client, name, ask)


def _value(text: str) -> object:
    """A value as JSON has it; other text is itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


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
