"""Leases of memory for other programs: who holds how much, and until when."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

from attrs import define, field, frozen
from twisted.internet.interfaces import IReactorTime

from llamaswap.routing.memory_leases import LeaseRequest, MemoryLease, MemoryLeases
from llamaswap.routing.router import Router
from llamaswap.web.admin_request import AdminRequest, JsonObject, Response, json_answer
from llamaswap.web.errors import HttpError
from llamaswap.web.route import Route, RouteTable

DEFAULT_TERM = 60.0  # seconds
SHORTEST_TERM, LONGEST_TERM = 1.0, 7 * 86400.0
MAX_MIB = 1 << 40
MAX_GPUS = 64
MAX_NAME = 100  # characters
BAD_BODY = 'the body is not a JSON object such as {"vram_mib": 12288}; nothing was leased'


@frozen
class LeaseBody:
    """What is wanted. `vram_mib` is spread evenly over `gpus` GPUs. The lease ends `seconds` after it was granted or
    renewed. `pid` is the first process of the program. After `wait` seconds without room it is refused, with 0 at once;
    without it as other requests are."""

    vram_mib: int = 0
    ram_mib: int = 0
    gpus: int = 1
    name: str = ""
    seconds: float = DEFAULT_TERM
    pid: int = 0
    wait: float | None = None


@frozen
class LeaseRenewal:
    """The lease ends in so many seconds. `pid` is the first process of its program, if it was not known before."""

    seconds: float = DEFAULT_TERM
    pid: int = 0


@frozen
class LeaseDocument:
    """A lease. `gpus` are the numbers of its GPUs, `mib` has its size on each device. While it waits, it holds nothing
    and has a `reason`."""

    id: str
    name: str
    state: str
    gpus: list[int] = field(factory=list)
    mib: dict[str, int] = field(factory=dict)
    seconds_left: float | None = None
    pid: int | None = None
    reason: str | None = None


@frozen
class LeaseList:
    """All leases, the oldest first."""

    leases: list[LeaseDocument]


route = RouteTable("leases", Route)


@define(eq=False)
class LeaseEndpoints:
    """/api/leases."""

    leases: MemoryLeases
    router: Router
    clock: IReactorTime

    @route("GET", "/api/leases", answer=LeaseList)
    def all(self, call: AdminRequest) -> Response:
        """The programs that hold memory, or wait for it."""
        return json_answer(LeaseList([self._document(lease) for lease in self.leases.all()]))

    @route("POST", "/api/leases", body=LeaseBody, status=201, answer=LeaseDocument)
    async def take(self, call: AdminRequest) -> Response:
        """Make room for a program, and keep it free for it; answers when there is room. Unused models leave for it."""
        if self.router.config.routing.memory.mode != "on":
            raise HttpError(
                409,
                "memory is leased only with `routing.memory: on`, which `llamaswap memory enable` sets",
                code="memory_off",
            )
        body = call.json_object(BAD_BODY)
        ram, vram = _whole(body, "ram_mib", MAX_MIB), _whole(body, "vram_mib", MAX_MIB)
        if not ram and not vram:
            raise HttpError(400, "vram_mib or ram_mib must be more than 0")
        name = body.get("name", "")
        if not isinstance(name, str):
            raise HttpError(400, "name must be a text")
        wait = _number(body, "wait", 0.0, LONGEST_TERM) if body.get("wait") is not None else None
        gpus = max(1, _whole(body, "gpus", MAX_GPUS)) if vram else 0
        request = LeaseRequest(name[:MAX_NAME], ram, vram, gpus, _term(body), _whole(body, "pid", 1 << 31))
        lease = await self.leases.take(request, wait)
        return json_answer(self._document(lease), 201, ((b"Location", f"/api/leases/{lease.id}".encode()),))

    @route("PATCH", "/api/leases/<string:number>", body=LeaseRenewal, answer=LeaseDocument)
    def renew(self, call: AdminRequest) -> Response:
        """Let a lease last longer, or tell which process uses it."""
        lease = self._find(call)
        body = call.json_object(BAD_BODY)
        self.leases.renew(lease, _term(body), _whole(body, "pid", 1 << 31))
        return json_answer(self._document(lease))

    @route("PUT", "/api/leases/<string:number>", body=LeaseRenewal, answer=LeaseDocument)
    def replace(self, call: AdminRequest) -> Response:
        """The same as PATCH."""
        return self.renew(call)

    @route("DELETE", "/api/leases/<string:number>", status=204)
    def end(self, call: AdminRequest) -> Response:
        """Give the memory back."""
        self.leases.end(self._find(call))
        return Response(204, b"", None)

    def _find(self, call: AdminRequest) -> MemoryLease:
        lease = self.leases.find(call.variables["number"])
        if lease is None:
            raise HttpError(404, "lease not found: it has ended, or was not renewed in time")
        return lease

    def _document(self, lease: MemoryLease) -> LeaseDocument:
        held = lease.held is not None
        reason = None if held else self.router.wait_reason(lease.model)
        return LeaseDocument(
            id=lease.id,
            name=lease.request.name,
            state="held" if held else "waiting",
            gpus=list(lease.gpus),
            mib=dict(lease.sizes),
            seconds_left=round(max(0.0, lease.expires - self.clock.seconds()), 3) if held else None,
            pid=lease.pid or None,
            reason=reason.reason if reason is not None else None,
        )


def _whole(body: JsonObject, name: str, most: int) -> int:
    value = body.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise HttpError(400, f"{name} must be a whole number from 0 to {most}")
    return value


def _number(body: Mapping[str, object], name: str, least: float, most: float) -> float:
    value = body.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise HttpError(400, f"{name} must be a number")
    if not least <= value <= most:
        raise HttpError(400, f"{name} must be from {least:g} to {most:g}")
    return float(value)


def _term(body: JsonObject) -> float:
    return _number({"seconds": DEFAULT_TERM, **body}, "seconds", SHORTEST_TERM, LONGEST_TERM)
