"""Writes the configuration file that a command has changed."""

from __future__ import annotations

from pathlib import Path

from llamaswap.config import Config
from llamaswap.web.config_history import VersionSource
from llamaswap.web.configfile import ConfigFile


def write(path: Path, text: str, config: Config, author: str) -> None:
    """Replace the file as the web page's editor does: in one step, with a backup and an entry in the history."""
    file = ConfigFile(path, {}, lambda: config, list, lambda: None, allowed=True)
    file.write(text, VersionSource("saved", "", author))
