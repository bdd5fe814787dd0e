"""Who listens on a server's port: the process that was started for it, or another one."""

from __future__ import annotations

import re
from enum import Enum

from attrs import frozen

from llamaswap.config.endpoints import Endpoint
from llamaswap.config.schema import Model
from llamaswap.servers.spawn import Child, Kernel

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1", "0.0.0.0", "::"})


class PortOwner(Enum):
    """To whom the listener that answered belongs."""

    OURS = "ours"
    UNKNOWN = "unknown"  # the kernel does not tell, for example of a container's processes; accepted
    EXTERNAL = "external"  # `proxy` names a server that `cmd` does not start; accepted
    NEWCOMER = "newcomer"  # not our child's, but younger: a container's proxy looks like that, and so does a thief
    FOREIGN = "foreign"


@frozen
class Verdict:
    """The owner of a listener, and in words which process it is."""

    owner: PortOwner
    process: str = ""


def is_local(host: str) -> bool:
    """Whether the server would listen on this machine's loopback."""
    return host in LOOPBACK or host.startswith("127.")


def bind_address(host: str) -> str:
    """A name of this machine as an address that can be bound."""
    return {"localhost": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def find_owner(kernel: Kernel, child: Child, endpoint: Endpoint, model: Model) -> Verdict:
    """Whether the listener at `endpoint` is `child`'s or one of its descendants'."""
    if not is_local(endpoint.host) or not child.start:
        return Verdict(PortOwner.UNKNOWN)
    listeners = kernel.listening(endpoint.port)
    if not listeners:
        return Verdict(PortOwner.UNKNOWN)
    for pid in child.family():
        held = kernel.sockets(pid)
        if held is None:
            return Verdict(PortOwner.UNKNOWN)
        if held & listeners:
            return Verdict(PortOwner.OURS)
    holder = kernel.holder(endpoint.port)
    if holder is None:
        return Verdict(PortOwner.UNKNOWN)
    process = f"pid {holder.pid} ({holder.name})"
    if kernel.mark_of(holder.pid):
        return Verdict(PortOwner.FOREIGN, process)
    if may_be_external(model, endpoint):
        return Verdict(PortOwner.EXTERNAL, process)
    return Verdict(PortOwner.FOREIGN if holder.start < child.start else PortOwner.NEWCOMER, process)


def may_be_external(model: Model, endpoint: Endpoint) -> bool:
    """Whether `proxy` may name a server that runs already: neither ${PORT} nor the port's number is in the command."""
    own = rf"(?<!\d){endpoint.port}(?!\d)"
    return model.port is None and not any(re.search(own, text) for text in (model.cmd, *model.env))


def explain_wrong_port(kernel: Kernel, child: Child, endpoint: Endpoint) -> str:
    """On which port a server listens that runs but never answered at `endpoint`; empty if that is not the reason."""
    if not is_local(endpoint.host) or not child.start:
        return ""
    ports = kernel.ports_of({one.pid for one in child.remaining()})
    if not ports or endpoint.port in ports:
        return ""
    listed = ", ".join(str(port) for port in sorted(ports))
    return f"the server listens on port {listed} instead (is ${{PORT}} in cmd and proxy?)"
