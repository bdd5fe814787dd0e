"""Leases of memory for programs that llamaswap does not run, such as a training or a game.

A lease waits in the queue like a request, evicts unused models when its turn comes, and holds its memory until it is
ended or not renewed in time: a client that has died holds no memory for longer than its term.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from attrs import Factory, define, evolve, field, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from llamaswap.errors import DoesNotFit, LeaseRefused, RequestError
from llamaswap.routing.leases import Lease, PendingLease
from llamaswap.routing.router import Router
from llamaswap.scheduling.memory import (
    RAM,
    GpuShare,
    MemoryNeed,
    Sizes,
    gpu_numbers,
    need_in_words,
    room_in_words,
    sizes_in_words,
)
from llamaswap.scheduling.memory_leases import LEASE, HeldMemory

MAX_LEASES = 16
log = Logger()


@frozen
class LeaseRequest:
    """What a client wants: MiB of RAM, and MiB of GPU memory on so many GPUs together.

    The lease ends `seconds` after it was granted or renewed. `pid` is the first process of the program, 0 if unknown.
    """

    name: str
    ram: int
    vram: int
    gpus: int
    seconds: float
    pid: int = 0

    @property
    def need(self) -> MemoryNeed:
        """The memory as the scheduler counts it: spread evenly over the GPUs."""
        share = GpuShare(-(-self.vram // max(1, self.gpus)))
        return MemoryNeed(self.ram, ((share,) * self.gpus if self.vram else (),), "lease")


@frozen
class HandedLease:
    """A lease that a program hands to the next one in an upgrade; `seconds_left` until it ends unless it is renewed."""

    id: str
    request: LeaseRequest
    memory: HeldMemory
    seconds_left: float


@define(eq=False)
class MemoryLease:
    """A lease, granted or waiting; `memory` is what it holds once it is granted."""

    id: str
    request: LeaseRequest
    pid: int
    memory: HeldMemory = Factory(HeldMemory)
    expires: float = 0.0
    pending: PendingLease | None = None
    held: Lease | None = None
    timer: IDelayedCall | None = None

    @property
    def model(self) -> str:
        """Its name in the scheduler."""
        return LEASE + self.id

    @property
    def sizes(self) -> Sizes:
        """MiB by device."""
        return self.memory.sizes

    @property
    def gpus(self) -> tuple[int, ...]:
        """The numbers of its GPUs."""
        return tuple(sorted(gpu_numbers(self.sizes)))


@define(eq=False)
class MemoryLeases:
    """Grants leases and ends them. `token` makes a short random text."""

    router: Router
    clock: IReactorTime
    token: Callable[[], str]
    _leases: dict[str, MemoryLease] = field(factory=dict, init=False)

    def all(self) -> list[MemoryLease]:
        """The leases that are held or waited for, the oldest first."""
        return list(self._leases.values())

    def find(self, number: str) -> MemoryLease | None:
        """The lease with this id that is held; one whose memory was taken away is ended."""
        lease = self._leases.get(number)
        if lease is None or lease.held is None:
            return None
        if lease.held.lost:
            self._end(lease, "its memory was taken away")
            return None
        return lease

    # -- beginning -----------------------------------------------------------------------------------------

    async def take(self, request: LeaseRequest, wait: float | None = None) -> MemoryLease:
        """Wait for a lease, at most `wait` seconds. Raises a RequestError; cancelling it gives the lease up."""
        self._check(request)
        lease = self._add(request)
        try:
            if wait is not None and wait <= 0 and (reason := self.router.wait_reason(lease.model)) is not None:
                raise LeaseRefused(lease.model, reason.reason)
            lease.pending = self.router.request(lease.model, origin="lease")
            lease.held = await self._within(lease, lease.pending.granted, wait)
            lease.memory = self.router.memory_lease_granted(lease.model)
            if not lease.sizes:
                raise LeaseRefused(lease.model, "`routing.memory: on` was turned off")
        except BaseException:  # a cancellation too
            self._forget(lease)
            raise
        self._renew(lease, request.seconds)
        log.info("{lease} holds {sizes}", lease=lease.model, sizes=sizes_in_words(lease.sizes))
        return lease

    def _check(self, request: LeaseRequest) -> None:
        """Refuse what no wait could bring."""
        name = LEASE + request.name
        if len(self._leases) >= MAX_LEASES:
            raise LeaseRefused(name, f"{MAX_LEASES} leases exist already, which is the limit")
        devices = self.router.ledger.devices
        if RAM not in devices:
            raise LeaseRefused(name, "the memory of this machine has not been measured yet")
        if request.vram and request.gpus > len(devices) - 1:
            raise DoesNotFit(name, need_in_words(request.need), room_in_words(self.router.ledger))

    def _add(self, request: LeaseRequest) -> MemoryLease:
        number = f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', request.name)[:40] or 'lease'}-{self.token()}"
        lease = self._leases[number] = MemoryLease(number, request, request.pid)
        self.router.add_memory_lease(lease.model, request.need)
        return lease

    async def _within(self, lease: MemoryLease, granted: Deferred[Lease], wait: float | None) -> Lease:
        """Wait for the grant. After `wait` seconds it fails with what was in the way."""
        overdue: list[RequestError] = []

        def give_up() -> None:
            found = self.router.wait_reason(lease.model)
            overdue.append(
                LeaseRefused(lease.model, found.reason if found is not None else "its memory was not free in time")
            )
            granted.cancel()

        timer = self.clock.callLater(wait, give_up) if wait else None
        try:
            return await granted
        except CancelledError:
            raise (overdue[0] if overdue else CancelledError()) from None
        finally:
            if timer is not None and timer.active():
                timer.cancel()

    # -- while it is held ----------------------------------------------------------------------------------

    def renew(self, lease: MemoryLease, seconds: float, pid: int = 0) -> None:
        """Let a lease end in so many seconds from now; `pid` is that of its program, if it is known now."""
        lease.pid = pid or lease.pid
        self._renew(lease, seconds)

    def _renew(self, lease: MemoryLease, seconds: float) -> None:
        if lease.timer is not None:
            lease.timer.cancel()
        lease.expires = self.clock.seconds() + seconds
        lease.timer = self.clock.callLater(seconds, self._expired, lease)

    def _expired(self, lease: MemoryLease) -> None:
        lease.timer = None
        self._end(lease, "it was not renewed in time")

    # -- ending --------------------------------------------------------------------------------------------

    def end(self, lease: MemoryLease) -> None:
        """Give the memory back."""
        self._end(lease, "its program has ended")

    def _end(self, lease: MemoryLease, why: str) -> None:
        log.info("{lease} has ended: {why}", lease=lease.model, why=why)
        self._forget(lease)

    def _forget(self, lease: MemoryLease) -> None:
        if self._leases.pop(lease.id, None) is None:
            return
        if lease.timer is not None:
            lease.timer.cancel()
            lease.timer = None
        if lease.pending is not None:
            lease.pending.cancel()
        if lease.held is not None:
            lease.held.release()
        self.router.remove_memory_lease(lease.model)

    def close(self) -> None:
        """End all of them."""
        for lease in self.all():
            self._forget(lease)

    # -- upgrades in place ---------------------------------------------------------------------------------

    def hand_over(self) -> tuple[HandedLease, ...]:
        """The leases that are held, for the next program."""
        now = self.clock.seconds()
        return tuple(
            HandedLease(lease.id, evolve(lease.request, pid=lease.pid), lease.memory, max(0.0, lease.expires - now))
            for lease in self.all()
            if lease.held is not None
        )

    def adopt(self, handed: HandedLease) -> None:
        """Begin with a lease of the program before."""
        lease = self._leases[handed.id] = MemoryLease(handed.id, handed.request, handed.request.pid, handed.memory)
        self.router.adopt_memory_lease(lease.model, handed.request.need, handed.memory)
        lease.held = self.router.lease(lease.model)
        self._renew(lease, handed.seconds_left)
