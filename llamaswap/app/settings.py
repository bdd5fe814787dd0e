"""What the command line decided, and what follows from it: where to listen, what to read, where to keep a little."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import frozen
from twisted.internet.interfaces import IStreamServerEndpoint

from llamaswap.config import ConfigText, files
from llamaswap.demo import demo_config
from llamaswap.proxy.listen import ListenAddress
from llamaswap.upgrade.inherited import AdoptingReactor, InheritedState


@frozen
class ServiceSettings:
    """What the command line decided. `config` and `config_dir` are paths; `demo` stands for both."""

    listen: ListenAddress
    config: str | None = None
    config_dir: str | None = None
    demo: bool = False
    watch: bool = False
    allow_config_edit: bool = False


def state_folder(environ: Mapping[str, str]) -> Path:
    """Where a service may keep a little of its own: systemd's choice, else the user's state folder."""
    given = environ.get("STATE_DIRECTORY", "").split(":")[0]
    if given:
        return Path(given)
    home = environ.get("XDG_STATE_HOME") or (environ["HOME"] + "/.local/state" if environ.get("HOME") else "")
    # One folder right below a sticky one: another user can take the name first, but not exchange the folder later.
    return Path(home) / "llamaswap" if home else Path(f"/var/tmp/llamaswap-{os.geteuid()}")


def record_path(listen: ListenAddress, environ: Mapping[str, str]) -> Path | None:
    """The file that names our servers for the next start at the same address; none where the port is any."""
    if listen.address is not None and listen.address[1] == 0:
        return None
    name = "".join(char if char.isalnum() or char in ".-" else "_" for char in listen.text)
    return state_folder(environ) / f"servers{name}.json"


def sources_of(settings: ServiceSettings) -> list[ConfigText]:
    """The configuration's texts as they are now."""
    if settings.demo:
        return [ConfigText("demo.yaml", demo_config())]
    return files.read_sources(settings.config, settings.config_dir)


def listening_endpoint(reactor: Any, listen: ListenAddress, inherited: InheritedState | None) -> IStreamServerEndpoint:
    """Where to listen: at the socket an earlier program left, if there is one. Raises as `ListenAddress.endpoint`
    does."""
    if inherited is None:
        return listen.endpoint(reactor)
    return AdoptingReactor(reactor, inherited.listening).endpoint(listen)
