"""Where the service keeps its state."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def state_folder(environ: Mapping[str, str]) -> Path:
    """The folder for the service's state: systemd's choice, else the user's state folder."""
    given = environ.get("STATE_DIRECTORY", "").split(":")[0]
    if given:
        return Path(given)
    home = environ.get("XDG_STATE_HOME") or (environ["HOME"] + "/.local/state" if environ.get("HOME") else "")
    # Directly below a sticky folder: another user can create the name first, but cannot replace the folder later.
    return Path(home) / "llamaswap" if home else Path(f"/var/tmp/llamaswap-{os.geteuid()}")
