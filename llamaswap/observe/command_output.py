"""The output of programs, run with a time limit on a worker's thread, never on the reactor's."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence

# Runs a program for at most so many seconds and returns its standard output; raises OSError for every failure.
Command = Callable[[Sequence[str], float], str]


def run(argv: Sequence[str], seconds: float) -> str:
    """The default `Command`."""
    try:
        done = subprocess.run(
            list(argv), capture_output=True, stdin=subprocess.DEVNULL, timeout=seconds, check=True, errors="replace"
        )
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{argv[0]} took longer than {seconds:g} s") from error
    except subprocess.CalledProcessError as error:
        words = (error.stderr or error.stdout or "").strip()[:200]
        raise OSError(f"{argv[0]} failed with {error.returncode}: {words}") from error
    return done.stdout
