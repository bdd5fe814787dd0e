"""`init` and `import`: generate a first configuration from what is installed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click
from attrs import evolve

from llamaswap.cli.config_output import write
from llamaswap.cli.context import CliContext, local
from llamaswap.discover import disk
from llamaswap.discover.config_writer import ScanResult
from llamaswap.discover.scan import scan
from llamaswap.discover.servers import ask

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
    found = scan(Path.home(), os.environ, folders, ask=ask if servers else None)
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
    places = [folder] if folder else disk.ollama_folders(Path.home(), os.environ)
    installed = disk.engines()
    for place in places:
        models = disk.ollama_models(place, installed.get("llama-server", "llama-server"))
        if models:
            write(context, evolve(ScanResult(engines=installed), models=tuple(models)), output, force)
            return
    raise click.ClickException(
        f"no Ollama models in {', '.join(map(str, places))}; set --from FOLDER or $OLLAMA_MODELS"
    )
