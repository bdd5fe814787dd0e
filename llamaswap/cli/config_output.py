"""Writes generated configurations: only valid ones, and over an existing file only with --force."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from llamaswap.cli.context import CliContext, counted
from llamaswap.config import ConfigText, load
from llamaswap.discover.config_writer import ScanResult, configuration
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
    if context.as_json:
        context.document(
            {
                "output": None if output == "-" else output,
                "models": [{"name": model.name, "command": list(model.words)} for model in found.models],
                "servers": [
                    {"name": server.name, "url": server.url, "models": list(server.models)} for server in found.servers
                ],
                "engines": found.engines,
            }
        )
    elif output == "-":
        click.echo(text, nl=False)
    else:
        summary = f"{counted(len(found.models), 'model')}, {counted(len(found.servers), 'running server')}"
        context.say(f"{output}: {summary}", "green")
        if any(model.active and model.words[0] == "llama-server" for model in found.models):
            context.say("llama-server was not found: install llama.cpp, or put its path into the commands", "yellow")
        if not found.models and not found.servers:
            context.say(NO_MODEL_HINT, "yellow")
        else:
            name = shlex.quote(output)
            context.say(f"next: llamaswap check {name} && llamaswap -config {name} -listen 127.0.0.1:8080")
