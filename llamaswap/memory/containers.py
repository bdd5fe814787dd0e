"""The process in a container that serves a model's port: it is not a child of the command that runs the container.

Blocks: for a worker's thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path

from llamaswap.kernel_files import file_text

ENGINES = ("docker", "podman", "nerdctl")
# Programs that pass connections on to a container: the server is behind them.
FORWARDERS = ("docker-proxy", "rootlessport", "rootlessport-c", "pasta", "pasta.avx2", "slirp4netns", "conmon")


def serving_process(
    argv: tuple[str, ...],
    port: int,
    family: Collection[int],
    holder: Callable[[int], tuple[int, str] | None],
    output: Callable[..., str],
) -> int | None:
    """The pid of the process behind `port`, None if it is one of `family` or not known.

    `holder` gives pid and program of the process that listens on a port; `output` runs a program (OSError if it fails).
    """
    found = holder(port)
    if found is not None and found[0] in family:
        return None
    if found is not None and found[1] not in FORWARDERS:
        return found[0]
    return _first_process(argv, output)


def _first_process(argv: tuple[str, ...], output: Callable[..., str]) -> int | None:
    """The first process of the container that a command such as `podman run --name NAME` runs."""
    engine = os.path.basename(argv[0]) if argv else ""
    name = _name_of(argv)
    if engine not in ENGINES or not name:
        return None
    try:
        text = output(argv[0], "inspect", "--format", "{{.State.Pid}}", name).strip()
    except OSError:
        return None
    return int(text) if text.isdigit() and text != "0" else None


def _name_of(argv: tuple[str, ...]) -> str:
    for at, word in enumerate(argv):
        option, equals, value = word.partition("=")
        if option in ("--name", "--cidfile"):
            value = value if equals else (argv[at + 1] if at + 1 < len(argv) else "")
            return value if option == "--name" else file_text(Path(value))
    return ""
