"""Measures how much memory each model's server uses on each device, and who uses the rest.

A driver that lists processes is believed first. In a container it may list none, or those of the host by other
numbers: a model's use is then the difference that its load made to the board, if nothing else explains it. Blocks: for
a worker's thread. This module must not know why it is asked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Protocol

from attrs import Factory, define, field, frozen

from llamaswap.kernel_files import machine_memory
from llamaswap.memory.cgroup import ControlGroups
from llamaswap.memory.drm_use import DrmUse, fdinfo_use, kfd_use
from llamaswap.memory.nvidia_use import ListedUse
from llamaswap.memory.process_memory import RamUse, program_of, ram_of
from llamaswap.scheduling.memory import RAM, Sizes
from llamaswap.wire.byte_budget import MIB

MIN_DIFFERENCE = 64  # MiB on one GPU; a smaller difference of two readings is noise
EXPLAINED = 0.9  # a difference counts if so much of it is memory that no visible process is listed with
SILENT_LIST = 1024  # MiB in use of a GPU whose list of processes is empty: they are not visible from here
SEARCH_INTERVAL = 10.0  # seconds between searches for the largest foreign process: all processes are read for it


class BoardReading(Protocol):
    """One GPU at one moment, MiB. The memory of a `unified` one is the machine's."""

    @property
    def id(self) -> int: ...
    @property
    def mem_used_mb(self) -> int: ...
    @property
    def mem_total_mb(self) -> int: ...
    @property
    def pci(self) -> str: ...
    @property
    def unified(self) -> bool: ...


@frozen
class MeasuredServer:
    """The server of a model: its first process, its command, and the port that it listens on, if it does already."""

    model: str
    pid: int
    argv: tuple[str, ...] = ()
    port: int | None = None


@frozen
class ModelUse:
    """MiB by device, and how they are known: process, cgroup or board, which is the least certain."""

    sizes: Sizes
    source: str = "process"


@frozen
class DeviceUse:
    """MiB of a device. `foreign` is None if it cannot be told from what our servers use; `foreign_by` names the
    process that uses most of it, and `listed` is what a driver lists for such processes."""

    total: int
    used: int
    foreign: int | None = 0
    foreign_by: str = ""
    listed: int = 0


@frozen
class MachineUse:
    """One measurement: the devices, and what each model's server uses."""

    devices: Mapping[str, DeviceUse] = Factory(dict)
    models: Mapping[str, ModelUse] = Factory(dict)


class LargestForeign:
    """The process with most memory that is not one of `ours`, searched every few seconds."""

    def __init__(self, seconds: Callable[[], float], search: Callable[[Collection[int]], int | None]) -> None:
        self._seconds, self._search = seconds, search
        self._until = float("-inf")
        self._found: int | None = None

    def find(self, ours: Collection[int]) -> int | None:
        """Its pid; None if there is none."""
        if self._seconds() >= self._until or self._found in ours:
            self._until = self._seconds() + SEARCH_INTERVAL
            self._found = self._search(ours)
        return self._found


@frozen
class _Board:
    """A GPU of one measurement, and who uses it."""

    reading: BoardReading
    listed: ListedUse

    @property
    def device(self) -> str:
        return f"gpu{self.reading.id}"

    def of(self, pids: Collection[int], drm: DrmUse) -> int:
        """MiB that these processes use of it."""
        by_list = sum(size for pid, size in self.listed.sizes.items() if pid in pids)
        return max(by_list, drm.boards.get(self.reading.pci, 0) // MIB)

    @property
    def unexplained(self) -> int:
        """MiB in use that belong to no listed process."""
        return self.reading.mem_used_mb - sum(self.listed.sizes.values())


@define(eq=False, kw_only=True)
class Measurer:
    """Takes measurements.

    `listed` lists the processes of GPUs that a library or a file knows, by the number of the GPU.
    `family` gives the processes of a server by the pid of its first one, `outside` a process that serves its port and
    is not one of these. `difference` gives what the load of a model added to each GPU, None if that is unknown.
    """

    listed: Callable[[], Mapping[int, ListedUse]]
    family: Callable[[int], Collection[int]]
    outside: Callable[[MeasuredServer, Collection[int]], int | None] = lambda server, family: None
    difference: Callable[[str], Mapping[int, int] | None] = lambda model: {}
    foreign: LargestForeign
    groups: ControlGroups = field(factory=ControlGroups)
    kfd: Callable[[], Mapping[str, Mapping[int, int]]] = kfd_use
    fdinfo: Callable[[Iterable[int]], DrmUse] = fdinfo_use
    ram: Callable[[Iterable[int]], RamUse] = ram_of
    available: Callable[[], tuple[int, int]] = machine_memory
    program: Callable[[int], str] = program_of
    _outside: dict[int, int | None] = field(factory=dict, init=False)

    def measure(self, servers: Sequence[MeasuredServer], readings: Sequence[BoardReading]) -> MachineUse:
        """What these servers use now, and the devices, of which the GPUs were read just before."""
        boards = self._boards(readings)
        self._outside = {one.pid: self._outside[one.pid] for one in servers if one.pid in self._outside}
        models: dict[str, ModelUse] = {}
        ours: set[int] = {os.getpid()}
        in_ram = 0
        for server in servers:
            pids, ram, source = self._members(server)
            ours |= pids
            on_boards, host, source = self._on_boards(server, pids, boards, source)
            in_ram += ram.resident // MIB + host
            models[server.model] = ModelUse({RAM: (ram.resident + ram.swapped) // MIB + host, **on_boards}, source)
        devices = {RAM: self._ram_device(in_ram, ours)}
        for board in boards:
            if not board.reading.unified and board.reading.mem_total_mb:
                devices[board.device] = self._board_device(board, models, ours)
        return MachineUse(devices, models)

    def _boards(self, readings: Sequence[BoardReading]) -> list[_Board]:
        listed = self.listed() if readings else {}
        kfd = self.kfd() if any(reading.pci for reading in readings) else {}
        return [_Board(reading, self._checked(reading, listed, kfd)) for reading in readings]

    def _checked(
        self, reading: BoardReading, listed: Mapping[int, ListedUse], kfd: Mapping[str, Mapping[int, int]]
    ) -> ListedUse:
        """Who uses a board. A list is not complete if it is empty while much of the memory is in use."""
        if reading.id in listed:
            known = listed[reading.id]
            hidden = not known.sizes and reading.mem_used_mb > SILENT_LIST
            return ListedUse(known.sizes, known.complete and not hidden)
        sizes = {pid: min(size // MIB, reading.mem_total_mb) for pid, size in kfd.get(reading.pci, {}).items()}
        return ListedUse(sizes, complete=bool(reading.pci))

    # -- models --------------------------------------------------------------------------------------------

    def _members(self, server: MeasuredServer) -> tuple[set[int], RamUse, str]:
        """The processes of a server, and their RAM with its source."""
        pids = {server.pid, *self.family(server.pid)}
        other = self._outside.get(server.pid)
        if server.port is not None and (server.pid not in self._outside or (other and not self.program(other))):
            other = self._outside[server.pid] = self.outside(server, pids)
        if other is None:
            return pids, self.ram(pids), "process"
        folder = self.groups.folder_of(other)
        if folder is None or not self.groups.is_apart(folder) or folder == self.groups.folder_of(server.pid):
            pids |= {other, *self.family(other)}
            return pids, self.ram(pids), "process"
        inside = self.groups.ram_of(folder)
        members = self.groups.processes(folder)
        if inside is None:
            return pids | members, self.ram(pids | members), "process"
        client = self.ram(pids - members)  # of the program that runs the container
        ram = RamUse(inside.resident + client.resident, inside.swapped + client.swapped)
        return pids | members, ram, "cgroup"

    def _on_boards(
        self, server: MeasuredServer, pids: Collection[int], boards: Sequence[_Board], source: str
    ) -> tuple[dict[str, int], int, str]:
        """MiB of a server by GPU, MiB that GPUs use of the machine's memory for it, and the source."""
        drm = self.fdinfo(pids) if any(board.reading.pci for board in boards) else DrmUse()
        sizes: dict[str, int] = {}
        host = drm.host // MIB
        for board in boards:
            size = board.of(pids, drm)
            if board.reading.unified:
                host += size
            elif size:
                sizes[board.device] = size
        added = self.difference(server.model) if boards and not sizes else None
        for board in boards:
            size = (added or {}).get(board.reading.id, 0)
            if size >= MIN_DIFFERENCE and board.unexplained >= size * EXPLAINED and not board.reading.unified:
                sizes[board.device], source = size, "board"
        return sizes, host, source

    # -- devices -------------------------------------------------------------------------------------------

    def _ram_device(self, ours: int, pids: Collection[int]) -> DeviceUse:
        total, left = self.available()
        limit = self.groups.limit()
        if limit is not None:
            total, left = min(total, limit[0]), min(left, limit[1])
        used = (total - left) // MIB
        foreign = max(0, used - ours)
        largest = self.foreign.find(pids)
        return DeviceUse(total // MIB, used, foreign, self._described(largest) if largest is not None else "")

    def _board_device(self, board: _Board, models: Mapping[str, ModelUse], pids: Collection[int]) -> DeviceUse:
        used = min(board.reading.mem_used_mb, board.reading.mem_total_mb)
        ours = sum(use.sizes.get(board.device, 0) for use in models.values())
        others = {pid: size for pid, size in board.listed.sizes.items() if pid not in pids}
        largest = max(others, key=lambda pid: (others[pid], -pid), default=None)
        known = board.listed.complete or all(self.difference(model) is not None for model in models)
        return DeviceUse(
            board.reading.mem_total_mb,
            used,
            max(0, used - ours) if known else None,
            self._described(largest) if largest is not None else "",
            sum(others.values()),
        )

    def _described(self, pid: int) -> str:
        return f"{self.program(pid) or 'a program'} (pid {pid})"
