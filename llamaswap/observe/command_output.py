"""The output of programs, run with a time limit on a worker's thread, never on the reactor's."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence

from attrs import frozen

TIMEOUT = 5.0  # seconds for each program: drivers may have to wake a device up

# Runs a program for at most so many seconds and returns its standard output; raises OSError for every failure.
Command = Callable[[Sequence[str], float], str]


class NotInstalled(OSError):
    """The program is not on PATH."""


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


@frozen
class Programs:
    """The programs of this machine, by name."""

    find: Callable[[str], str | None] = shutil.which
    command: Command = run

    def output(self, name: str, *arguments: str) -> str:
        """The output of a program. Raises NotInstalled, or OSError if it fails or takes too long."""
        path = self.find(name)
        if path is None:
            raise NotInstalled(f"{name} is not installed")
        return self.command([path, *arguments], TIMEOUT)
