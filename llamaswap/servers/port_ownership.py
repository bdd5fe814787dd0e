"""Who listens on a server's port: the process that was started for it, or another one."""

from __future__ import annotations

import re
from enum import Enum

from attrs import define, frozen
from twisted.logger import Logger

from llamaswap.config.endpoints import Endpoint
from llamaswap.config.schema.model import Model
from llamaswap.servers.spawn import Child, Kernel

_log = Logger()

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1", "0.0.0.0", "::"})


class PortOwner(Enum):
    """To whom the listener that answered belongs."""

    OURS = "ours"
    UNKNOWN = "unknown"  # the kernel does not tell, for example of a container's processes; accepted
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


def may_be_external(model: Model, endpoint: Endpoint) -> bool:
    """Whether `proxy` may name a server that runs already: neither ${PORT} nor the port's number is in the command."""
    own = rf"(?<!\d){endpoint.port}(?!\d)"
    return model.port is None and not any(re.search(own, text) for text in (model.cmd, *model.env))


@define(eq=False)
class PortOwnership:
    """Finds out who listens on the port of one model's server, and warns once of each external process."""

    kernel: Kernel
    _external: str = ""

    def find_owner(self, child: Child, endpoint: Endpoint, model: Model) -> Verdict:
        """Whether the listener at `endpoint` is `child`'s or one of its descendants'."""
        kernel = self.kernel
        listeners = kernel.listening(endpoint.port) if is_local(endpoint.host) and child.start else set()
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
            self._warn_of_external(model, endpoint, process)
            return Verdict(PortOwner.UNKNOWN, process)
        return Verdict(PortOwner.FOREIGN if holder.start < child.start else PortOwner.NEWCOMER, process)

    def _warn_of_external(self, model: Model, endpoint: Endpoint, process: str) -> None:
        if self._external != process:
            self._external = process
            _log.warn(
                "{model}: {proxy} is served by {process}, which cmd did not start; requests go there, and unloading "
                "the model does not stop it. Use ${{PORT}} in cmd if cmd was to start the server",
                model=model.id,
                proxy=str(endpoint),
                process=process,
            )

    def explain_wrong_port(self, child: Child, endpoint: Endpoint) -> str:
        """Says that a server which never answered at `endpoint` listens on other ports; empty if it listens on none, or
        on that one."""
        if not is_local(endpoint.host) or not child.start:
            return ""
        ports = self.kernel.ports_of({one.pid for one in child.remaining()})
        if not ports or endpoint.port in ports:
            return ""
        listed = ", ".join(str(port) for port in sorted(ports))
        return f"the server listens on port {listed} instead (is ${{PORT}} in cmd and proxy?)"
