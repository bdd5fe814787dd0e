"""`estimate MODEL|FILE`: what a model will use before it is loaded, and how that is known."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
from rich.markup import escape

from llamaswap.cli.check import usable
from llamaswap.cli.client import ApiClient, ClientError, JsonObject
from llamaswap.cli.context import CliContext, model_names, remote, table
from llamaswap.cli.flags import DEFAULT_CONFIG
from llamaswap.cli.memory import document, size
from llamaswap.config import Config, Model, command_line
from llamaswap.config.schema.memory import NO_CHOICE, GpuChoice
from llamaswap.kernel_files import machine_memory
from llamaswap.memory.estimate import Estimator, declared_need
from llamaswap.memory.gguf import is_gguf
from llamaswap.memory.spread import MIB, Estimate
from llamaswap.observe.gpu_sources import usual
from llamaswap.observe.gpus import GpuReader
from llamaswap.scheduling.memory import RAM, Device, MemoryNeed
from llamaswap.servers.environment import server_environment
from llamaswap.web.secret_masking import known_secrets

LEARNED = ("learned", "carried")
UNKNOWN = (
    "what it needs is unknown until it has been loaded: with `routing.memory: on` it is loaded alone once and "
    "measured, or `memory:` in its configuration says it"
)


def machine(environ: Mapping[str, str]) -> dict[str, Device]:
    """The memory of this machine and of its GPUs."""
    readings = GpuReader(usual(sys.platform, environ), lambda: 0.0).read()
    gpus = {f"gpu{reading.id}": Device(reading.mem_total_mb) for reading in readings if reading.mem_total_mb}
    return {RAM: Device(machine_memory()[0] // MIB), **gpus}


def environment_of(model: Model, config: Config, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment that the model's server gets."""
    return server_environment(environ, model.env_policy, known_secrets(config), model.env)


def find_model(config: Config, name: str, file: Path) -> Model:
    """The model with this ID or alias."""
    for model in config.models.values():
        if name in (model.id, *model.aliases):
            return model
    raise click.ClickException(f"{name} is neither a file nor a model of {file} (--config names another configuration)")


def learned(client: ApiClient, model: str) -> JsonObject | None:
    """What a running service has measured of the model; None without a service that knows it."""
    try:
        need: JsonObject | None = (document(client).get("needs") or {}).get(model)
    except ClientError:
        return None
    return need if need and need.get("source") in LEARNED else None


def estimated(
    model: Model | None,
    argv: Sequence[str],
    environment: Mapping[str, str],
    devices: Mapping[str, Device],
) -> Estimate | None:
    """The first of what the configuration declares and what is found out without loading the model."""
    choice: GpuChoice = NO_CHOICE if model is None else model.gpus
    if model is not None and model.memory:
        return Estimate(declared_need(model.memory, choice, devices), "`memory` in the configuration")
    return Estimator().estimate(argv, environment, devices, choice)


@click.command()
@click.argument("what", metavar="MODEL|FILE", shell_complete=model_names)
@click.option("--config", type=click.Path(path_type=Path), default=DEFAULT_CONFIG, help="The file with the model.")
@click.option("-c", "--ctx-size", type=int, help="Another context size.")
@click.option("-ngl", "--n-gpu-layers", help="Another number of layers on GPUs.")
@click.option("-ctk", "--cache-type-k", help="Another type of the cache's keys, such as q8_0.")
@click.option("-ctv", "--cache-type-v", help="Another type of the cache's values.")
@remote
def estimate(context: CliContext, what: str, config: Path, **flags: object) -> None:
    """Show what a model will use before it is loaded.

    MODEL is in the configuration, FILE is a GGUF file. The flags change its command, for llama-server. A service that
    runs and has measured the model shows that value too.
    """
    model = None
    if Path(what).is_file():
        if not is_gguf(Path(what)):
            raise click.ClickException(f"{what} is not a GGUF file; a model of the configuration is named by its ID")
        argv, environment = ["llama-server", "-m", what], dict(os.environ)
    else:
        found = usable(config)
        model = find_model(found, what, config)
        argv, environment = command_line.split(model.cmd), environment_of(model, found, os.environ)
    for name, value in flags.items():
        argv += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    answer = estimated(model, argv, environment, machine(os.environ))
    measured = learned(context.client, model.id) if model is not None else None
    if context.as_json:
        context.document({"model": what, **_document(answer, measured), "learned": measured})
    else:
        _print(context, what, answer, measured)


def _document(answer: Estimate | None, measured: JsonObject | None) -> dict[str, object]:
    if answer is None and measured is not None:
        return {
            "source": measured["source"],
            "why": f"{measured['samples']} measurements",
            "firm": measured["source"] == "learned",
            "ram_mib": measured["ram_mib"],
            "gpus": [[{"device": None, "mib": share} for share in option] for option in measured["gpus"]],
            "parts": [],
        }
    if answer is None:
        return {"source": None, "why": UNKNOWN, "firm": False, "ram_mib": None, "gpus": [], "parts": []}
    need = answer.need
    return {
        "source": need.source,
        "why": answer.why,
        "firm": need.firm,
        "ram_mib": need.ram,
        "gpus": [[{"device": share.device or None, "mib": share.size} for share in option] for option in need.options],
        "parts": [{"device": part.device, "purpose": part.purpose, "mib": part.size} for part in answer.parts],
    }


def _print(context: CliContext, what: str, answer: Estimate | None, measured: JsonObject | None) -> None:
    if measured is not None:
        gpus = " + ".join(size(share) for share in (measured["gpus"] or [[]])[0])
        places = [f"{gpus} on GPUs"] if gpus else []
        text = " and ".join([*places, f"{size(measured['ram_mib'])} of RAM"])
        context.say(f"{what} {measured['source']}: {text}, from {measured['samples']} measurements", "green")
    if answer is None:
        if measured is None:
            context.say(f"{what}: {UNKNOWN}")
        return
    context.say(f"{what} {answer.need.source}: {answer.why}")
    if answer.parts:
        rows = [(escape(part.device), part.purpose, size(part.size)) for part in answer.parts]
        context.show(table(("DEVICE", "FOR", "SIZE"), rows, right=("SIZE",)))
    for sentence in _ways(answer.need):
        context.say(sentence)


def _ways(need: MemoryNeed) -> list[str]:
    """The need in words, one line for each way to use the GPUs."""
    lines = []
    for index, option in enumerate(need.options):
        shares = [f"{size(share.size)} of {share.device or 'a GPU'}" for share in option]
        lines.append(("needs " if index == 0 else "or    ") + " and ".join([*shares, f"{size(need.ram)} of RAM"]))
    return lines
