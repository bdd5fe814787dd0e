"""`init` and `import`: generate a first configuration from what is installed.

Only valid configurations are written, and an existing file is only replaced with --force.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import click
from attrs import evolve

from llamaswap.cli.context import CliContext, counted, local
from llamaswap.config import ConfigText, load
from llamaswap.discover import disk
from llamaswap.discover.config_writer import ScanResult, configuration
from llamaswap.discover.scan import scan
from llamaswap.discover.servers import ask
from llamaswap.errors import ConfigError

NO_MODEL_HINT = (
    "no model was found: llamaswap init --force --models FOLDER looks for GGUF files there, llamaswap pull REPO:QUANT "
    "downloads one, llamaswap demo needs none"
)


def write(context: CliContext, found: ScanResult, output: str, force: bool) -> None:
    """Write the configuration to `output` (- is standard output) and print a summary, as JSON with --json."""
    text = configuration(found)
    try:
        load([ConfigText(output, text)], {"LLAMASWAP_API_KEY": ""})
    except ConfigError as error:  # a name or path that the writer does not quote right
        raise click.ClickException(f"the generated configuration is invalid:\n{error}\n\n{text}") from None
    if output != "-":
        path = Path(output)
        if path.exists() and not force:
            raise click.ClickException(f"{path} exists; --force replaces it, -o FILE writes elsewhere")
        path.write_text(text, encoding="utf-8")
    losses = [f"{model.name}: not taken over: {', '.join(model.skipped)}" for model in found.models if model.skipped]
    if context.as_json:
        context.document(
            {
                "output": None if output == "-" else output,
                "models": [
                    {"name": model.name, "command": list(model.words), "skipped": list(model.skipped)}
                    for model in found.models
                ],
                "servers": [
                    {"name": server.name, "url": server.url, "models": list(server.models)} for server in found.servers
                ],
                "engines": found.engines,
            }
        )
    elif output == "-":
        click.echo(text, nl=False)
        for line in losses:
            context.note(line, "yellow")
    else:
        summary = f"{counted(len(found.models), 'model')}, {counted(len(found.servers), 'running server')}"
        context.say(f"{output}: {summary}", "green")
        for line in losses:
            context.say(line, "yellow")
        if any(model.active and model.words[0] == "llama-server" for model in found.models):
            context.say("llama-server was not found: install llama.cpp, or put its path into the commands", "yellow")
        if not found.models and not found.servers:
            context.say(NO_MODEL_HINT, "yellow")
        else:
            name = shlex.quote(output)
            context.say(f"next: llamaswap check {name} && llamaswap -config {name} -listen 127.0.0.1:8080")


OUTPUT = click.option(
    "-o",
    "--output",
    default="config.yaml",
    show_default=True,
    metavar="FILE",
    help="File to write, or - (stdout).",
)
FORCE = click.option("--force", is_flag=True, help="Replace an existing file.")


@click.command()
@click.option(
    "--models",
    "folders",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="Search here for GGUF files.",
)
@click.option("--servers/--no-servers", default=True, help="Ask local ports for running servers (default).")
@OUTPUT
@FORCE
@local
def init(context: CliContext, folders: Sequence[Path], servers: bool, output: str, force: bool) -> None:
    """Write a configuration for this machine.

    Looks for GGUF files, the Hugging Face cache, installed engines and running OpenAI-compatible servers.
    """
    found = scan(Path.home(), os.environ, [folder.absolute() for folder in folders], ask=ask if servers else None)
    write(context, found, output, force)


@click.group(name="import")
def take_over() -> None:
    """Use models that another program has downloaded."""


@take_over.command()
@click.option("--from", "folder", type=click.Path(path_type=Path, exists=True), help="Ollama's models folder.")
@OUTPUT
@FORCE
@local
def ollama(context: CliContext, folder: Path | None, output: str, force: bool) -> None:
    """Write a configuration that serves Ollama's models from its files, without copying them."""
    places = [folder.absolute()] if folder else disk.ollama_folders(Path.home(), os.environ)
    installed = disk.engines()
    for place in places:
        models = disk.ollama_models(place, installed.get("llama-server", "llama-server"))
        if models:
            for line in disk.unusable_ollama_models(place):
                context.note(f"skipped {line}", "yellow")
            write(context, evolve(ScanResult(engines=installed), models=tuple(models)), output, force)
            return
    raise click.ClickException(
        f"no Ollama models in {', '.join(map(str, places))}; set --from FOLDER or $OLLAMA_MODELS"
    )
