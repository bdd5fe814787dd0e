"""The hosts that run models: /api/hosts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from attrs import define, field, frozen

from llamaswap.web.admin_request import AdminRequest, Response, json_answer
from llamaswap.web.errors import HttpError
from llamaswap.web.route import Route, RouteTable


@frozen
class DeviceDocument:
    """A device of a host: `ram`, `gpu0` and so on. `foreign_mib` is used by other programs."""

    device: str
    name: str
    total_mib: int
    foreign_mib: int


@frozen
class HostDocument:
    """A host; `here` is this machine. `seen_seconds` is how long ago it answered, `problem` why it is offline."""

    host: str
    address: str = ""
    online: bool = False
    drained: bool = False
    problem: str = ""
    seen_seconds: float | None = None
    labels: dict[str, str] = field(factory=dict)
    devices: list[DeviceDocument] = field(factory=list)
    models: list[str] = field(factory=list)


@frozen
class HostsDocument:
    """The hosts, empty without `hosts` in the configuration. `problem` says why nothing new is loaded on other hosts.
    `missed` are hosts that vanished with most of the others: what they ran is not loaded elsewhere. `findings` say what
    hosts lack for models that may run there."""

    hosts: list[HostDocument] = field(factory=list)
    problem: str = ""
    missed: list[str] = field(factory=list)
    findings: list[str] = field(factory=list)


class HostSource(Protocol):
    """Knows the hosts."""

    def document(self) -> HostsDocument: ...

    def drain(self, host: str, drained: bool) -> None:
        """Load nothing more on a host, or allow it again. Raises KeyError."""


route = RouteTable("hosts", Route)


@define(eq=False)
class HostEndpoints:
    """/api/hosts. `source` is None without other hosts, `load_elsewhere` loads what was lost with missed hosts."""

    source: HostSource | None
    load_elsewhere: Callable[[], None]

    @route("GET", "/api/hosts", answer=HostsDocument)
    def hosts(self, call: AdminRequest) -> Response:
        """The hosts, their memory, what they run, and when they last answered."""
        return json_answer(HostsDocument() if self.source is None else self.source.document())

    @route("POST", "/api/hosts/<host>/drain", answer=HostsDocument)
    def drain(self, call: AdminRequest) -> Response:
        """Load nothing more on a host; its models are stopped when their requests have ended."""
        return self._drained(call, True)

    @route("POST", "/api/hosts/<host>/undrain", answer=HostsDocument)
    def undrain(self, call: AdminRequest) -> Response:
        """Load models on a host again."""
        return self._drained(call, False)

    def _drained(self, call: AdminRequest, drained: bool) -> Response:
        name = call.variables["host"]
        if self.source is None:
            raise HttpError(404, "the configuration has no `hosts`")
        try:
            self.source.drain(name, drained)
        except KeyError:
            raise HttpError(404, f"no host is called {name}") from None
        return json_answer(self.source.document())

    @route("POST", "/api/hosts/load-elsewhere", answer=HostsDocument)
    def elsewhere(self, call: AdminRequest) -> Response:
        """Load elsewhere what ran on missed hosts."""
        self.load_elsewhere()
        return self.hosts(call)
