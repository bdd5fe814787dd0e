"""`pull REPO[:QUANT]`: downloads files of a Hugging Face repository into its cache, and adds an entry for them.

A download that broke or was killed is resumed; complete files are not downloaded again.
"""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import click
from attrs import evolve

from llamaswap.cli.config_edit import READ, WRITTEN, add_model
from llamaswap.cli.context import CliContext, local
from llamaswap.cli.flags import DEFAULT_CONFIG
from llamaswap.cli.hf_download import fetch
from llamaswap.discover.config_writer import FoundModel, gguf_models, is_projector, model_entry, model_name, quant_of
from llamaswap.memory.llama_files import DEFAULT_QUANTS

PROGRESS_INTERVAL = 0.5
OFFLINE_TIMEOUT = 5.0  # seconds for a connection to the hub
LIST_TIMEOUT = 30.0  # seconds for the list of a repository's files
HUB_ADDRESS = re.compile(r"^(?:https?://)?(?:www\.)?(?:hf\.co|huggingface\.co)/", re.IGNORECASE)


class NoSuchQuant(Exception):
    """The repository has no files of that quantisation; the text lists those it has."""


def split_name(text: str) -> tuple[str, str]:
    """(repository, quant) of REPO[:QUANT], which may begin with the hub's address, as for Ollama."""
    repository, _, quant = HUB_ADDRESS.sub("", text).partition(":")
    return repository.strip("/"), quant


def is_reachable(url: str, timeout: float = OFFLINE_TIMEOUT) -> bool:
    """Whether a connection to the server of a URL can be opened in this time, with the name's resolution."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    outcome: list[bool] = []

    def connect() -> None:
        try:
            socket.create_connection((parts.hostname or "", port), timeout).close()
            outcome.append(True)
        except OSError:
            pass

    # In a thread, because the resolution of a name has no timeout, and each address of it would get its own.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(timeout)
    return bool(outcome)


def choose(names: Sequence[str], quant: str = "") -> list[str]:
    """The files to download: the shards of one quantisation and a projector, or all files of a repository without GGUF.

    Raises NoSuchQuant.
    """
    ggufs = [name for name in names if name.lower().endswith(".gguf")]
    if not ggufs:
        if quant:
            raise NoSuchQuant("the repository has no GGUF files, so no quantisations to choose from")
        return [name for name in names if not name.lower().endswith((".md", ".gitattributes", ".png", ".jpg"))]
    projectors = [name for name in ggufs if is_projector(Path(name))]
    models = [name for name in ggufs if name not in projectors]
    quants = list(dict.fromkeys(quant_of(name) for name in models))
    if quant:
        wanted = [name for name in models if quant_of(name) == quant.upper() or name == quant]
        if not wanted:
            raise NoSuchQuant(f"no {quant}; available: {', '.join(filter(None, quants)) or ', '.join(models)}")
    else:
        first = next((one for one in map(str.upper, DEFAULT_QUANTS) if one in quants), quants[0] if quants else "")
        wanted = [name for name in models if quant_of(name) == first]
    by_size = sorted(projectors, key=lambda name: (quant_of(name) != "F16", name))
    return wanted + by_size[:1]


@click.command()
@click.argument("name", metavar="REPO[:QUANT]")
@click.option("--revision", help="A branch, tag or commit.")
@click.option("--token", envvar="HF_TOKEN", help="For gated repositories ($HF_TOKEN).")
@click.option("--to", "folder", type=click.Path(path_type=Path), help="Download into this folder instead of the cache.")
@click.option("--progress", is_flag=True, help="Report the progress on standard error, in lines of JSON.")
@click.option("--add/--no-add", default=None, help="Add the model to the configuration; asked for on a terminal.")
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    default=DEFAULT_CONFIG,
    show_default=True,
    help="The configuration file for --add.",
)
@local
def pull(
    context: CliContext,
    name: str,
    revision: str | None,
    token: str | None,
    folder: Path | None,
    progress: bool,
    add: bool | None,
    config: Path,
) -> None:
    """Download a model from Hugging Face.

    The name may also be written as for Ollama: hf.co/REPO:QUANT.
    """
    repository, paths = _download(context, name, revision, token, folder and folder.absolute(), progress)
    models = gguf_models(path for path in paths if path.suffix.lower() == ".gguf")
    models = models or [FoundModel(model_name(repository.rpartition("/")[2]), ("vllm", "serve", repository))]
    _report(context, repository, paths, models)
    if add is None and not context.as_json and sys.stdin is not None and sys.stdin.isatty():
        add = click.confirm(f"Add {', '.join(model.name for model in models)} to {config}?", default=True, err=True)
    for model in models if add else ():
        config.touch()
        written = WRITTEN if config.stat().st_size else "{file} is written; " + READ
        add_model(config, model, "llamaswap pull")
        context.note(f"added {model.name}: {written.format(file=config)}", "green")


def _download(
    context: CliContext, name: str, revision: str | None, token: str | None, folder: Path | None, progress: bool
) -> tuple[str, list[Path]]:
    """The repository's name, and the downloaded files."""
    try:
        from huggingface_hub import HfApi, constants, hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError:
        raise click.ClickException(
            "this command needs the package huggingface_hub: pip install 'llamaswap[pull]'"
        ) from None
    repository, quant = split_name(name)
    paths: list[Path] = []
    if not getproxies() and not is_reachable(constants.ENDPOINT):
        raise click.ClickException(f"{name}: no connection to {constants.ENDPOINT}; is this machine offline?")
    try:
        # An empty token must not become an empty header; False would forbid the one the user logged in with.
        found = HfApi(token=token or None).model_info(repository, revision=revision, timeout=LIST_TIMEOUT)
        names = [sibling.rfilename for sibling in found.siblings or ()]
        chosen = choose(names, quant)
        for number, file in enumerate(chosen, 1):
            context.note(f"{number} of {len(chosen)}: {file}")
            if progress:
                fetch(repository, file, revision, token or None, folder, ProgressLines(file))
            else:
                fetch(repository, file, revision, token or None, folder)
            path = hf_hub_download(repository, file, revision=revision, token=token or None, local_dir=folder)
            paths.append(Path(path))
    except NoSuchQuant as error:
        raise click.ClickException(f"{repository}: {error}") from None
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise click.ClickException(f"{name}: {error}") from None
    except Exception as error:
        if not is_network_error(error):
            raise
        raise click.ClickException(f"{name}: {error}; is the hub reachable?") from None
    return repository, paths


class ProgressLines:
    """Writes the progress of one file, at most every `PROGRESS_INTERVAL` seconds and when it is complete."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._last = 0.0

    def __call__(self, digest: str, size: int, there: int) -> None:
        now = time.monotonic()
        if there < size and now - self._last < PROGRESS_INTERVAL:
            return
        self._last = now
        line = {"file": self._file, "digest": digest, "total": size, "completed": there}
        click.echo(json.dumps(line), err=True)


def is_network_error(error: Exception) -> bool:
    """Whether an error comes from the HTTP library below the hub's client; its versions use different ones."""
    return type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "requests", "urllib3")


def _report(context: CliContext, repository: str, paths: Sequence[Path], models: Sequence[FoundModel]) -> None:
    if context.as_json:
        rows = [{"name": model.name, "command": list(model.words)} for model in models]
        context.document({"repository": repository, "files": [str(path) for path in paths], "models": rows})
        return
    for path in paths:
        click.echo(str(path))
    for model in models:
        entry = model_entry(model.name, evolve(model, note=""))
        context.note(f"\nFor the configuration:\n\n{entry}".rstrip("\n"))
