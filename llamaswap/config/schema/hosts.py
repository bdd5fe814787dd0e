"""The records of hosts: several machines that one llamaswap uses, and where a model may run. See `schema`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from attrs import frozen

from llamaswap.config.diagnostics import Diagnostics, did_you_mean
from llamaswap.config.field_types import DURATION, INTEGER, TEXT, TEXT_MAP, TEXT_OR_LIST
from llamaswap.config.schema.memory import MAX_GPUS, SIZE

HERE = "here"  # how `place` names the machine that llamaswap itself runs on; no other host can have this name
HOST_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")
MAX_HOSTS = 1000  # in one `place`


@frozen
class Hosts:
    """Other machines that run models for this llamaswap. They join with `llamaswap hosts join`."""

    grace: float = DURATION.key(
        "How long the other hosts keep their models running while this llamaswap does not answer them.", default=600.0
    )
    unseen: float = DURATION.key(
        "How long a host may be silent before its models count as lost and are loaded elsewhere.", default=15.0
    )
    state: str = TEXT.key("Folder of the token and the state that a restart keeps; empty for the user's state folder.")


@frozen
class Place:
    """Where a model may run. `hosts` are names, the preferred one first; none: any host. `here` is this machine."""

    hosts: tuple[str, ...] = TEXT_OR_LIST.key(
        "Hosts that may run the model, in order of preference; `here` is this machine. Empty: any host."
    )
    gpus: int = INTEGER.key("GPUs that its host must have.", minimum=0, maximum=MAX_GPUS)
    vram: int = SIZE.key("GPU memory that its host must have on all GPUs together.")
    labels: Mapping[str, str] = TEXT_MAP.key("Labels that its host must have, with these values.")


def check_place(place: Place, path: str, hosts: Hosts | None, runs_elsewhere: bool, report: Diagnostics) -> None:
    """Report what is wrong with a `place`. `runs_elsewhere`: the server of the model is at an address of its own."""
    if place == Place():
        return
    if hosts is None:
        report.error(
            f"{path}: the configuration has no `hosts`, so there is only this machine",
            path,
            hint="write `hosts: {}` at the top level, or remove `place`",
        )
    elif runs_elsewhere:
        report.error(
            f"{path}: the server of the model is at the address in `proxy`, so no host can be chosen for it",
            path,
            hint="remove `place`, or let `proxy` name localhost and ${PORT}",
        )
    if len(place.hosts) > MAX_HOSTS:
        report.error(f"{path} has {len(place.hosts)} hosts, at most {MAX_HOSTS} are possible", path)
    for name in place.hosts:
        if not HOST_NAME.match(name):
            near = did_you_mean(name, (HERE,)) or "a name has letters, digits, `.`, `_` and `-`, at most 63 of them"
            report.error(f"{path}: {name!r} is not the name of a host", path, hint=near)
    if len(set(place.hosts)) < len(place.hosts):
        report.error(f"{path} names a host twice", path, hint="name each host once, the preferred one first")


def check_kept(model: str, place: Place, kept: Mapping[str, object], report: Diagnostics) -> None:
    """Warn of what a model loses that is loaded on another host. `kept` says by key whether the model wants it."""
    if place.hosts == (HERE,):
        return
    for key, effect in (("sleep", "is stopped instead of being put to sleep"), ("slots", "loses its prompt cache")):
        if kept[key]:
            path = f"models.{model}.{key}"
            report.warn(f"{path}: on another host the model {effect}", path, hint="`place: here` keeps it here")


def restart_needed(old: Hosts | None, new: Hosts | None) -> str:
    """Why a running llamaswap cannot use the new settings; "" if it can."""
    if (old is None) != (new is None):
        change = "added" if old is None else "removed"
        return f"`hosts` was {change}, which a reload cannot do: restart llamaswap to use the new configuration"
    if old is not None and new is not None and old.state != new.state:
        return "hosts.state was changed, which a reload cannot do: restart llamaswap to use the new configuration"
    return ""


def check_hosts(hosts: Hosts | None, report: Diagnostics) -> None:
    """Report settings of the hosts that cannot be used."""
    if hosts is None:
        return
    if not 1.0 <= hosts.unseen <= 3600.0:
        report.error("hosts.unseen must be between 1s and 1h", "hosts.unseen")
    if hosts.grace < hosts.unseen:
        report.error("hosts.grace must not be shorter than hosts.unseen", "hosts.grace")
    if "\0" in hosts.state:
        report.error("hosts.state: a path cannot contain a NUL character", "hosts.state")
