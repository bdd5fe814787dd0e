"""Asks llama.cpp itself what a command will use: `llama-fit-params`, which comes with llama-server, loads no weights.

No other program is run, and it runs with the settings of the command that concern memory, offline, for a few seconds.
"""

from __future__ import annotations

import os
import re
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from attrs import frozen

from llamaswap.memory.llama_estimate import GPU_CONTEXT, Layout, LlamaModel, fitted_need
from llamaswap.memory.llama_flags import LLAMA_SERVER, Settings
from llamaswap.memory.spread import MIB, Estimate, Part, Spread, mib
from llamaswap.scheduling.memory import RAM

TIMEOUT = 3.0  # seconds
OUTPUT_LIMIT = 64 * 1024  # bytes
PROGRAM = "llama-fit-params"
_ROW = re.compile(r"^(\S+) +(\d{1,9}) +(\d{1,9}) +(\d{1,9}) *$", re.MULTILINE)
# Settings that it takes as flags; it may not know the others, and takes them from its environment if it does.
_AS_FLAGS = (
    *("gpu_layers", "cpu_moe", "override", "context", "batch", "ubatch", "key_type", "value_type", "flash"),
    *("tensor_split", "main_gpu", "split_mode", "device"),
)
_AS_ENVIRONMENT = ("parallel", "unified", "swa_full", "load_mode", "mmap", "mlock", "kv_offload", "repack", "cpu_ffn")


@frozen
class DeviceRow:
    """MiB that the engine will allocate on one device, by its own name such as CUDA0; `Host` is RAM."""

    device: str
    weights: int
    cache: int
    compute: int


def fit_program(argv: Sequence[str], environment: Mapping[str, str]) -> str | None:
    """`llama-fit-params` beside the llama-server of a command."""
    if not argv or Path(argv[0]).name != "llama-server":
        return None
    server = shutil.which(argv[0], path=environment.get("PATH"))
    for folder in (Path(server).parent, Path(server).resolve().parent) if server else ():
        if os.access(folder / PROGRAM, os.X_OK):
            return str(folder / PROGRAM)
    return None


def ask_engine(program: str, model: Path, settings: Settings, environment: Mapping[str, str]) -> list[DeviceRow]:
    """What the engine says that it will use. Blocks; raises OSError if it does not answer."""
    words = [program, "-m", str(model), "--fit", "off", "--fit-print", "on"]
    for name in _AS_FLAGS:
        if settings.text(name):
            words += [LLAMA_SERVER.values[name].split()[0], _flag_value(name, settings.text(name))]
    variables = {name: value for name, value in environment.items() if not name.startswith("LLAMA_ARG_")}
    variables["LLAMA_ARG_OFFLINE"] = "1"
    variables.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # the order of our names
    for name in _AS_ENVIRONMENT:
        if settings.text(name):
            variables[LLAMA_SERVER.environment[name][0]] = settings.text(name)
    output = _output(words, variables)
    rows = [DeviceRow(row[1], int(row[2]), int(row[3]), int(row[4])) for row in _ROW.finditer(output)]
    if not any(row.device == "Host" for row in rows):
        raise OSError(f"{program} printed no sizes")
    return rows


def estimate_from_rows(
    rows: Sequence[DeviceRow], files: LlamaModel, settings: Settings, ways: Sequence[Spread]
) -> Estimate:
    """The need of a command whose sizes the engine printed.

    The engine counts mapped weights like others, and does not count its own process or a projector: those are ours.
    """
    layout = Layout(settings, [1.0] if ways else [])
    layout.add_model(files.model)
    if files.projector:
        layout.add_projector(files.projector)
    gpus = [row for row in rows if row.device != "Host"]
    host = next(row for row in rows if row.device == "Host")
    ram = layout.ram
    ram.cache, ram.compute = host.cache * MIB, host.compute * MIB
    projector = mib(layout.gpus[0].projector) if layout.gpus else 0
    sizes = []
    for way in ways:
        count = len(way.names)
        if count == len(gpus):
            each = [row.weights + row.cache + row.compute for row in gpus]
        else:
            total = sum(row.weights + row.cache for row in gpus)
            each = [-(-total // count) + max((row.compute for row in gpus), default=0)] * count
        each[0] += projector
        sizes.append([size + mib(GPU_CONTEXT) for size in each])
    parts = [
        Part(row.device, purpose, size)
        for row in gpus
        for purpose, size in (("weights", row.weights), ("cache", row.cache), ("compute", row.compute))
    ]
    need, note = fitted_need(ways, sizes, layout, "engine")
    return Estimate(need, f"{PROGRAM} printed what the engine allocates{note}", (*parts, *ram.parts(RAM)))


def _flag_value(name: str, value: str) -> str:
    return "9999" if name == "cpu_moe" and value == "all" else value


def _output(words: Sequence[str], environment: Mapping[str, str]) -> str:
    """Standard output of a program, which is killed with its children at the end of its time."""
    deadline = time.monotonic() + TIMEOUT
    process = subprocess.Popen(
        list(words),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=dict(environment),
        start_new_session=True,
    )
    assert process.stdout is not None
    found = b""
    with process.stdout as stream, selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while len(found) < OUTPUT_LIMIT and selector.select(max(0.0, deadline - time.monotonic())):
            piece = os.read(stream.fileno(), OUTPUT_LIMIT)
            if not piece:
                break
            found += piece
    try:
        status = process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise OSError(f"{words[0]} took longer than {TIMEOUT:g} s") from None
    if status != 0:
        raise OSError(f"{words[0]} exited with status {status}")
    return found.decode("utf-8", "replace")
